//! The way up from saved files, one type for each stage as in [`super::bringup`].
//!
//! ```text
//!   of a snapshot or a template:  Accepted --prepare--> Prepared --jail--> Jailed --restore--> Restored --wake--> Ready
//!                                 (its disk is a copy of the saved one)
//!   of a paused sandbox:                   the same, but its disk is there, and the guest does not run before the
//!                                          record says that it may: from then on its files are of an older instant
//! ```
//!
//! What is made from a template boots where the template is not prepared, does not fit, or cannot be restored: that is
//! slower, and never wrong. What is made from a snapshot, or resumed, has no other source, so its failure is its end.

use super::bringup::{
    self, Context, Ready, Taken, confine, host_cause, hostname, image_cause, launch, machine_id, or_exit,
    take_uid, unresponsive,
};
use super::record::Assignment;
use super::{policy, teardown};
use crate::catalog::{Held, Origin};
use crate::clock::BootTime;
use crate::guest::clock_ms;
use crate::host::snapshots::key::{hexadecimal, random};
use crate::host::snapshots::{FileIdentity, Saved};
use crate::machine::{LaunchPlan, Machine, Restore, Start, confinement};
use pinfold_domain::{Cause, Milestone, Reason, Source, TemplateId};
use pinfold_proto::guest::v1::WakeRequest;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of randomness for a guest that is woken.
const ENTROPY_BYTES: usize = 64;
/// What a restore of a template may take before the sandbox is booted instead.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(20);

/// For a VMM to say how it came there; only the timeline misses it.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

struct Accepted {
    saved: Arc<Saved>,
    root_image: PathBuf,
}

struct Prepared {
    saved: Arc<Saved>,
    root_image: PathBuf,
    uid: u32,
}

struct Jailed {
    machine: Arc<dyn Machine>,
    at: BootTime,
}

/// The guest has been woken.
pub struct Restored {
    pub machine: Arc<dyn Machine>,
    /// when it was jailed
    at: BootTime,
}

/// The way that the assignment names.
pub async fn or_boot(context: &Context) -> Result<Ready, Cause> {
    let Assignment { id, spec, template, .. } = context.ledger.assignment();
    let catalog = &context.host.catalog;
    match (spec.source, template) {
        (Source::Snapshot(snapshot), _) => {
            let saved = match catalog.snapshots.get(snapshot) {
                Some(Held::Ready(saved)) => saved,
                Some(Held::Failed(cause)) => return Err(cause),
                Some(Held::Making) | None => {
                    let message = format!("this node does not hold snapshot {snapshot}");
                    return Err(Cause::new(Reason::RestoreFailed, message));
                }
            };
            let origin = Origin::Snapshot(snapshot);
            let restored = from_saved(context, saved, origin).await.map_err(restore_cause);
            after(context, origin, restored).await
        }
        (Source::Template(_), Some(template)) => {
            let Some(Held::Ready(saved)) = catalog.templates.get(template) else {
                tracing::info!(sandbox = %id, %template, "the template is not prepared here: it is booted");
                return bringup::boot(context).await;
            };
            if let Some(why) = saved.outdated(&*context.host.images) {
                tracing::info!(sandbox = %id, %template, %why, "the template is outdated: it is booted");
                catalog.outdate(template, &why).await;
                return bringup::boot(context).await;
            }
            let origin = Origin::Template(template);
            let restored = tokio::time::timeout(RESTORE_TIMEOUT, from_saved(context, saved, origin)).await;
            let restored = restored.unwrap_or_else(|_| {
                let seconds = RESTORE_TIMEOUT.as_secs();
                Err(Cause::new(Reason::RestoreFailed, format!("not ready within {seconds} s")))
            });
            match after(context, origin, restored).await {
                Ok(ready) => Ok(ready),
                Err(cause) => instead(context, template, cause).await,
            }
        }
        (Source::Image | Source::Template(_), _) => bringup::boot(context).await,
    }
}

/// Boots what could not be restored, after what the restore had taken is undone.
async fn instead(context: &Context, template: TemplateId, cause: Cause) -> Result<Ready, Cause> {
    let id = context.ledger.assignment().id;
    let fallbacks = context.host.catalog.note_fallback();
    tracing::warn!(sandbox = %id, %template, reason = cause.reason.as_str(), message = cause.message, fallbacks,
        "a template could not be restored: the sandbox is booted");
    teardown::run(context, None).await.map_err(|left| Cause::new(Reason::HostResources, left))?;
    context.ledger.note(false, |saving| saving.generation = None);
    context.ledger.clear_process();
    context.ledger.unreach(&[Milestone::Jailed, Milestone::Restored]);
    context.ledger.paths().create().map_err(host_cause)?;
    bringup::boot(context).await
}

/// A machine that is damaged is never used again.
async fn after(context: &Context, origin: Origin, restored: Result<Ready, Cause>) -> Result<Ready, Cause> {
    match (restored, origin) {
        (Ok(ready), origin) => Ok(Ready { origin: Some(origin), ..ready }),
        (Err(cause), origin) if cause.reason == Reason::SnapshotInvalid => {
            match origin {
                Origin::Snapshot(id) => context.host.catalog.snapshots.spoil(id, cause.clone()).await,
                Origin::Template(id) => context.host.catalog.templates.spoil(id, cause.clone()).await,
            }
            Err(cause)
        }
        (Err(cause), _) => Err(cause),
    }
}

/// What the VMM says of itself, or the host, is not the caller's affair when a restore fails; what the saved machine is, is.
fn restore_cause(cause: Cause) -> Cause {
    match cause.reason {
        Reason::VmmFailed | Reason::GuestUnresponsive | Reason::GuestPanic | Reason::GuestReset => {
            Cause::new(Reason::RestoreFailed, cause.message)
        }
        _ => cause,
    }
}

/// A new sandbox that begins where `saved` was taken.
async fn from_saved(context: &Context, saved: Arc<Saved>, origin: Origin) -> Result<Ready, Cause> {
    let generation = new_generation()?;
    context.ledger.note(false, |saving| saving.generation = Some(generation));
    let prepared = Accepted::check(context, saved)?.prepare(context).await?;
    context.ledger.map(origin, Arc::clone(prepared.saved.mapped()));
    let restored = prepared.jail(context, false).await?.restore(context, false).await?;
    Ok(restored.into())
}

/// How a resume failed.
pub enum NotResumed {
    /// no guest has run: it is as it was
    StillSaved(Cause),
    /// its machine is no longer what was saved
    Lost(Cause),
}

/// The paused sandbox goes on.
pub async fn resume(context: &Context) -> Result<Restored, NotResumed> {
    let saved = context.ledger.paths().saved();
    let saved = Saved::open(&saved, false)
        .map_err(|error| NotResumed::Lost(Cause::new(Reason::SnapshotInvalid, error.to_string())))?;
    let jailed = async {
        let generation = new_generation()?;
        context.ledger.note(false, |saving| saving.generation = Some(generation));
        let Accepted { saved, root_image } = Accepted::check(context, Arc::new(saved))?;
        let uid = context.ledger.record().uid;
        let uid = uid.ok_or_else(|| Cause::new(Reason::Internal, "a paused sandbox without a uid"))?;
        confine(context, uid)?;
        let jailed = Prepared { saved, root_image, uid }.jail(context, true).await?;
        // the VMM has read the state and mapped the memory when it answers: until then nothing is lost
        let status = or_exit(context, &jailed.machine, jailed.machine.status()).await?;
        status.map_err(|error| Cause::new(Reason::RestoreFailed, error.to_string()))?;
        Ok(jailed)
    };
    let jailed = jailed.await.map_err(|cause: Cause| match cause.reason {
        Reason::SnapshotInvalid => NotResumed::Lost(cause),
        _ => NotResumed::StillSaved(restore_cause(cause)),
    })?;
    // From here on the guest may write to its disk. That is on the host's disk first: after a loss of power the memory that was
    // saved must not meet a newer disk.
    context.ledger.note(true, |saving| saving.saved = false);
    jailed.restore(context, true).await.map_err(|cause| NotResumed::Lost(restore_cause(cause)))
}

/// The last step, for a machine that an earlier agent started from saved files.
pub async fn wake_again(context: &Context, machine: Arc<dyn Machine>) -> Result<Ready, Cause> {
    let paused = context.ledger.record().phase == pinfold_domain::Phase::Resuming;
    context.ledger.note(true, |saving| saving.saved = false);
    let jailed = Jailed { machine, at: BootTime::now() };
    Ok(jailed.restore(context, paused).await?.into())
}

impl From<Restored> for Ready {
    fn from(restored: Restored) -> Self {
        Self { machine: Arc::clone(&restored.machine), origin: None, restored: Some(restored) }
    }
}

impl Accepted {
    fn check(context: &Context, saved: Arc<Saved>) -> Result<Self, Cause> {
        let spec = context.ledger.assignment().spec;
        let root_image = context.host.images.root_image(&spec.image).map_err(image_cause)?;
        let identity = FileIdentity::of(&spec.image, &root_image).map_err(host_cause)?;
        let unusable = |error: crate::host::snapshots::Unusable| {
            Cause::new(Reason::RestoreFailed, format!("the saved machine does not fit: {error}"))
        };
        saved.fits(&spec, &identity).map_err(unusable)?;
        Ok(Self { saved, root_image })
    }

    /// As bring-up does it, but the disk is a copy.
    async fn prepare(self, context: &Context) -> Result<Prepared, Cause> {
        let Self { saved, root_image } = self;
        let Context { host, ledger, taken } = context;
        let uid = take_uid(context)?;
        taken.push(Taken::Disk);
        let copied = host.disks.copy(&saved.disk(), &ledger.paths().disk()).await.map_err(host_cause)?;
        tracing::debug!(sandbox = %ledger.assignment().id, method = ?copied.method, took_us = copied.took.as_micros(),
            "its disk was copied");
        confine(context, uid)?;
        Ok(Prepared { saved, root_image, uid })
    }
}

impl Prepared {
    /// The VMM process exists inside its jail. `paused`: its guest waits.
    async fn jail(self, context: &Context, paused: bool) -> Result<Jailed, Cause> {
        let Self { saved, root_image, uid } = self;
        let Context { host, ledger, .. } = context;
        let Assignment { id, spec, .. } = ledger.assignment();
        let restore = Restore {
            state: saved.state(),
            memory: saved.memory(),
            working_set: saved.working_set(),
            key: host.catalog.key().clone(),
            made: saved.manifest.made(),
            paused,
        };
        let plan = LaunchPlan {
            id,
            paths: ledger.paths().clone(),
            cgroup: host.cgroups.path(id),
            uid,
            vcpus: spec.vcpus(),
            memory_mib: policy::memory_mib(&spec),
            start: Start::Restore(restore),
            root_image,
            file_size_bytes: policy::file_size_bytes(&spec),
        };
        let (machine, at) = launch(context, plan).await?;
        Ok(Jailed { machine, at })
    }
}

impl Jailed {
    /// The guest runs, has what tells it from others, and its workload goes on. It is asked at once and answers as soon as it
    /// can: nothing is waited for before it.
    async fn restore(self, context: &Context, paused: bool) -> Result<Restored, Cause> {
        let Self { machine, at } = self;
        if paused {
            let resumed = or_exit(context, &machine, machine.resume()).await?;
            resumed.map_err(|error| Cause::new(Reason::RestoreFailed, error.to_string()))?;
        }
        let generation = context.ledger.saving().generation;
        let request = wake_request(context, generation)?;
        let woken = context.host.guests.wake(context.ledger.paths(), request);
        if let Err(error) = or_exit(context, &machine, woken).await? {
            return Err(unresponsive(context, &machine, error).await);
        }
        context.ledger.woken();
        context.ledger.note(false, |saving| saving.suspended = false);
        Ok(Restored { machine, at })
    }
}

impl Restored {
    /// What the VMM says of the way there, for the timeline. Asked when the guest serves already: the VMM would answer from
    /// the thread that the guest waits for.
    pub async fn tell(&self, context: &Context) {
        let asked = tokio::time::timeout(STATUS_TIMEOUT, self.machine.status()).await;
        let Ok(Ok(status)) = asked else { return };
        tracing::info!(sandbox = %context.ledger.assignment().id, version = status.version,
            timing = ?status.timing, memory = ?status.memory, "the VMM runs what was saved");
        let id = context.ledger.assignment().id;
        confinement::log(id, &status.confinement, self.machine.has_user_namespace());
        let first_run = self.at.after(Duration::from_micros(status.timing.first_run_us));
        context.ledger.reach(Milestone::Restored, Some(first_run.min(BootTime::now())));
    }
}

/// `generation`: `None` for a machine that goes on where it stood.
pub fn wake_request(context: &Context, generation: Option<String>) -> Result<WakeRequest, Cause> {
    let assignment = context.ledger.assignment();
    let entropy = random::<ENTROPY_BYTES>().map_err(host_cause)?;
    Ok(WakeRequest {
        clock_ms: clock_ms(),
        hostname: hostname(&assignment),
        entropy: entropy.to_vec().into(),
        generation: generation.unwrap_or_default(),
        pids_max: assignment.spec.resources.pids,
        machine_id: machine_id(&assignment),
    })
}

/// Another one for each restore.
fn new_generation() -> Result<String, Cause> {
    Ok(hexadecimal(&random::<16>().map_err(host_cause)?))
}
