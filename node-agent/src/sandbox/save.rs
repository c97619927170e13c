//! From a machine that runs to its files.
//!
//! ```text
//!   guest: stand still --> VMM: pause --> state, memory, copy of the disk --> (go on) --> on the disk, named
//!      \______________________________________________________________________/
//!                   what fails here is undone by [`go_on`]
//! ```
//!
//! Invariant: nothing of the machine runs and nothing of it is in flight while its memory and its disk are copied, so all
//! of it is of one instant. That the guest may stand still is in the record first: whoever finds the record wakes it.

use super::bringup::{Context, host_cause, image_cause, or_exit};
use super::restore;
use crate::guest::GuestError;
use crate::host::blocking;
use crate::host::snapshots::draft::Subject;
use crate::host::snapshots::{Draft, FileIdentity, KernelIdentity, Saved};
use crate::machine::{ControlError, Machine, Made};
use pinfold_domain::{Cause, Reason};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

/// For a machine to be saved, from the wait for its turn to its name; a guest that stands still longer is of no use to anybody.
pub const LIMIT: Duration = Duration::from_secs(600);
/// For a machine whose VMM answers to go on, with as many tries as that allows.
const GO_ON_LIMIT: Duration = Duration::from_secs(300);
/// Between two tries; a guest that takes calls again cannot be waited for otherwise.
const GO_ON_PAUSE: Duration = Duration::from_secs(1);
/// For a VMM to show that it still serves its socket.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A machine that stands still, and what was copied of it.
pub struct Copied {
    draft: Draft,
    subject: Subject,
}

/// Why it was not saved.
pub enum Failure {
    /// the machine is gone
    Ended(Cause),
    /// it is there, and may stand still
    Failed(Cause),
}

impl Failure {
    pub fn cause(self) -> Cause {
        match self {
            Self::Ended(cause) | Self::Failed(cause) => cause,
        }
    }
}

/// `act`, which is part of a save that ends by `deadline`: [`LIMIT`] after it began.
pub async fn in_time<T>(
    deadline: Instant,
    act: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::time::timeout_at(deadline, act).await.unwrap_or_else(|_| {
        let message = format!("it was not saved within {} s", LIMIT.as_secs());
        Err(Failure::Failed(Cause::new(Reason::SnapshotFailed, message)))
    })
}

/// Waits for its turn: few machines are saved at once.
pub async fn turn(context: &Context) -> SemaphorePermit<'_> {
    context.host.catalog.saving.acquire().await.expect("nobody closes the semaphore")
}

/// Makes the machine stand still and copies it into `draft`, with its disk if `has_disk`. It stands still when this
/// returns, whatever it returns.
pub async fn copy(
    context: &Context,
    machine: &Arc<dyn Machine>,
    draft: Draft,
    has_disk: bool,
) -> Result<Copied, Failure> {
    let Context { host, ledger, .. } = context;
    let subject = subject(context).map_err(Failure::Failed)?;
    let (state, memory) = draft.files().map_err(|error| Failure::Failed(host_cause(error)))?;
    let failed = |step: &str, why: String| Cause::new(Reason::SnapshotFailed, format!("{step}: {why}"));
    ledger.note(false, |saving| saving.suspended = true);
    let all = async {
        let suspended = host.guests.suspend(ledger.paths()).await;
        suspended.map_err(|error| failed("the guest does not stand still", error.to_string()))?;
        let paused = machine.pause().await;
        paused.map_err(|error| failed("the machine cannot be paused", error.to_string()))?;
        let (disk, target) = (ledger.paths().disk(), draft.disk());
        let disk = async {
            if has_disk {
                let copied = host.disks.copy(&disk, &target).await;
                let copied = copied.map_err(|error| failed("the disk", error.sentence()))?;
                tracing::info!(sandbox = %ledger.assignment().id, method = ?copied.method,
                    copied_bytes = copied.copied_bytes, took_us = copied.took.as_micros(), "a disk was copied");
            } else {
                // the memory that is saved goes on with this disk, also after a loss of power
                let synced = host.disks.sync(&disk).await;
                synced.map_err(|error| failed("the disk", error.sentence()))?;
            }
            Ok(())
        };
        // both to their ends: an answer that nobody waits for would hold up the next request
        let (disk, taken) = tokio::join!(disk, machine.save(&state, &memory, host.catalog.key()));
        let taken = taken.map_err(|error| failed("the machine", error.to_string()))?;
        tracing::info!(sandbox = %ledger.assignment().id, state_bytes = taken.state_bytes,
            memory_bytes = taken.memory_data_bytes, took_us = taken.took_us, "a machine was saved");
        disk
    };
    match or_exit(context, machine, all).await {
        Err(ended) => Err(Failure::Ended(ended)),
        Ok(Err(cause)) => Err(Failure::Failed(cause)),
        Ok(Ok(())) => Ok(Copied { draft, subject }),
    }
}

/// After a copy, or after one that failed: the machine and its guest go on where they stood. One that was late is asked again
/// for as long as its VMM answers: it may have been busy, or its node.
pub async fn go_on(context: &Context, machine: &Arc<dyn Machine>) -> Result<(), Cause> {
    let deadline = Instant::now() + GO_ON_LIMIT;
    let went_on = or_exit(context, machine, async {
        loop {
            let tried = tokio::time::timeout_at(deadline, try_to_go_on(context, machine)).await;
            let (why, late) = match tried {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failed)) => failed,
                Err(_) => (format!("not within {} s", GO_ON_LIMIT.as_secs()), true),
            };
            if !late || Instant::now() >= deadline || !answers(machine).await {
                return Err(why);
            }
            tracing::warn!(sandbox = %context.ledger.assignment().id, why, "it does not go on yet after it was saved");
            tokio::time::sleep(GO_ON_PAUSE).await;
        }
    });
    match went_on.await? {
        Ok(()) => {
            context.ledger.note(false, |saving| saving.suspended = false);
            Ok(())
        }
        Err(why) => {
            let message = format!("it does not go on after it was saved: {why}");
            Err(Cause::new(Reason::GuestUnresponsive, message))
        }
    }
}

/// Why not, and whether that was a matter of time.
async fn try_to_go_on(context: &Context, machine: &Arc<dyn Machine>) -> Result<(), (String, bool)> {
    let resumed = machine.resume().await;
    resumed.map_err(|error| (error.to_string(), matches!(error, ControlError::Timeout(_))))?;
    let request = restore::wake_request(context, None).map_err(|cause| (cause.message, false))?;
    let woken = context.host.guests.wake(context.ledger.paths(), request).await;
    woken.map_err(|error| (error.to_string(), !matches!(error, GuestError::Answer(_))))
}

async fn answers(machine: &Arc<dyn Machine>) -> bool {
    matches!(tokio::time::timeout(ANSWER_TIMEOUT, machine.status()).await, Ok(Ok(_)))
}

impl Copied {
    /// Brings the files to the disk and gives them their name.
    pub async fn publish(self) -> Result<Saved, Cause> {
        let Self { draft, subject } = self;
        // what nobody waits for any more gets no name
        let wanted = Arc::new(());
        let asked = Arc::downgrade(&wanted);
        let published = blocking(move || draft.publish(&subject, || asked.strong_count() > 0)).await;
        drop(wanted);
        published.map_err(|error| Cause::new(Reason::SnapshotFailed, error.sentence()))
    }
}

fn subject(context: &Context) -> Result<Subject, Cause> {
    let assignment = context.ledger.assignment();
    let image = context.host.images.root_image(&assignment.spec.image).map_err(image_cause)?;
    let image = FileIdentity::of(&assignment.spec.image, &image).map_err(host_cause)?;
    let kernel = context.host.images.kernel(assignment.spec.kernel.as_deref()).map_err(image_cause)?;
    let kernel = KernelIdentity::of(assignment.spec.kernel.as_deref(), &kernel).map_err(host_cause)?;
    // an agent that did not write it gave no machine a balloon
    let made = Made { mmio_on_cmdline: kernel.mmio_on_cmdline, balloon: false };
    let made = context.ledger.record().made.unwrap_or(made);
    Ok(Subject {
        tenant: assignment.tenant,
        source: assignment.id.to_string(),
        spec: assignment.spec,
        image,
        kernel,
        made,
    })
}
