//! Standing still while the machine is saved, and going on afterwards: where it stood, or as another machine.
//!
//! ```text
//!   awake --Suspend--> workload frozen, files on the disk --Wake--> identity, randomness, clock --> thawed: awake
//!            (the host saves the machine here, and may restore it any number of times)
//! ```
//!
//! Invariant: between Suspend and the end of Wake no process of the workload runs and no call of the host touches it. So
//! what is the same in all machines that come of one snapshot (the clock's reading, the state of the random number
//! generator, the names) is set right before the workload can look at it, also under a kernel that knows nothing of
//! snapshots. What a process has drawn and kept before is its own affair.
//!
//! A restore cuts every connection. A caller whose stream breaks by it has not gone away on purpose, so its process goes
//! on without it; [`Suspension::was_cut`] tells the two apart.

use crate::agent::{Agent, Role, limits};
use crate::entropy;
use crate::exec::plan::invalid;
use crate::settings;
use nix::unistd::syncfs;
use pinfold_domain::{Cause, Reason};
use pinfold_proto::guest::v1::WakeRequest;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

pub struct Suspension {
    suspended: watch::Sender<bool>,
    restored: Mutex<Restored>,
    /// one Suspend or Wake at a time
    turn: tokio::sync::Mutex<()>,
}

/// How often the machine was restored, and as what the last time.
#[derive(Default)]
struct Restored {
    times: u64,
    generation: String,
}

/// When a call began, for [`Suspension::was_cut`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Era(u64);

impl Default for Suspension {
    fn default() -> Self {
        Self {
            suspended: watch::Sender::new(false),
            restored: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }
}

impl Suspension {
    /// Returns when the guest is awake; an error when it is not within [`limits::WAKE`].
    pub async fn awake(&self) -> Result<(), Cause> {
        let mut suspended = self.suspended.subscribe();
        let awake = tokio::time::timeout(limits::WAKE, suspended.wait_for(|suspended| !suspended)).await;
        awake.map(drop).map_err(|_| {
            let seconds = limits::WAKE.as_secs();
            Cause::new(Reason::WrongPhase, format!("the guest was suspended and not woken for {seconds} s"))
        })
    }

    pub fn era(&self) -> Era {
        Era(self.restored().times)
    }

    /// Whether the connection of a call that began in `era`, and is broken now, was cut by a restore.
    pub fn was_cut(&self, era: Era) -> bool {
        *self.suspended.borrow() || self.era() != era
    }

    fn enter(&self, generation: &str) {
        let mut restored = self.restored();
        if !generation.is_empty() && restored.generation != generation {
            restored.times += 1;
            restored.generation = generation.to_owned();
        }
    }

    fn restored(&self) -> std::sync::MutexGuard<'_, Restored> {
        self.restored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the workload stand still and brings its files to the disk. What fails is undone.
pub async fn suspend(agent: &Arc<Agent>) -> Result<(), Cause> {
    let _turn = agent.suspension.turn.lock().await;
    agent.refuse_when_stopping()?;
    agent.suspension.suspended.send_replace(true);
    let done = stand_still(agent).await;
    if done.is_err() {
        // it was not frozen, or it was and is to go on: an error here would hide the first one
        drop(thaw(agent).await);
        agent.suspension.suspended.send_replace(false);
    }
    done
}

async fn stand_still(agent: &Arc<Agent>) -> Result<(), Cause> {
    let frozen = agent.clone();
    let frozen = agent.workers.run(move || frozen.workload.freeze(limits::FREEZE)).await?;
    frozen.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => Cause::new(
            Reason::GuestUnresponsive,
            format!(
                "a process of the workload does not stand still within {} ms: it waits in the guest's kernel",
                limits::FREEZE.as_millis()
            ),
        ),
        _ => Cause::new(Reason::Internal, format!("cannot freeze the workload: {error}")),
    })?;
    if agent.role == Role::Plain {
        return Ok(());
    }
    // the overlay hands it to the sandbox's disk, which is all that is kept of it
    let synced = agent.workers.run(|| File::open("/").and_then(|root| Ok(syncfs(root)?)));
    let synced = tokio::time::timeout(limits::SYNC, synced).await.map_err(|_| {
        let seconds = limits::SYNC.as_secs();
        Cause::new(Reason::DeadlineExceeded, format!("the disk takes no more writes for {seconds} s"))
    })?;
    synced?.map_err(|error| Cause::new(Reason::Internal, format!("cannot sync the disk: {error}")))
}

/// Takes on what `request` says, then lets the workload go on.
pub async fn wake(agent: &Arc<Agent>, request: &WakeRequest) -> Result<(), Cause> {
    check(request)?;
    let _turn = agent.suspension.turn.lock().await;
    agent.refuse_when_stopping()?;
    if agent.role == Role::Init && !request.entropy.is_empty() {
        entropy::add(&request.entropy)
            .map_err(|error| Cause::new(Reason::Internal, format!("cannot add randomness: {error}")))?;
    }
    settings::identify(agent, request.clock_ms, &request.hostname, &request.machine_id)?;
    if request.pids_max > 0 {
        settings::bound_processes(agent, request.pids_max)?;
    }
    agent.suspension.enter(&request.generation);
    thaw(agent).await?;
    agent.suspension.suspended.send_replace(false);
    Ok(())
}

async fn thaw(agent: &Arc<Agent>) -> Result<(), Cause> {
    agent
        .workload
        .thaw()
        .map_err(|error| Cause::new(Reason::Internal, format!("cannot thaw the workload: {error}")))
}

fn check(request: &WakeRequest) -> Result<(), Cause> {
    let (least, most) = limits::ENTROPY_BYTES;
    let bytes = request.entropy.len();
    if bytes > most || (bytes < least && !(bytes == 0 && request.generation.is_empty())) {
        return Err(invalid(format!("entropy has {bytes} bytes, outside {least} to {most}")));
    }
    if request.generation.len() > limits::GENERATION_BYTES {
        let (bytes, most) = (request.generation.len(), limits::GENERATION_BYTES);
        return Err(invalid(format!("generation has {bytes} bytes, the limit is {most}")));
    }
    settings::check_pids_max(request.pids_max.max(1))?;
    settings::check_identity(request.clock_ms, &request.hostname, &request.machine_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn request() -> WakeRequest {
        WakeRequest {
            clock_ms: 1_750_000_000_000,
            hostname: "sb-1".into(),
            entropy: vec![7; 32].into(),
            generation: "one".into(),
            pids_max: 64,
            machine_id: "0123456789abcdef0123456789abcdef".into(),
        }
    }

    #[test]
    fn each_bad_field_is_named() {
        assert!(check(&request()).is_ok());
        let message = |change: fn(&mut WakeRequest)| {
            let mut changed = request();
            change(&mut changed);
            check(&changed).unwrap_err().message
        };
        assert!(message(|r| r.entropy = vec![1; 31].into()).contains("entropy has 31 bytes"));
        assert!(message(|r| r.entropy = vec![1; 513].into()).contains("entropy has 513 bytes"));
        assert!(message(|r| r.entropy.clear()).contains("entropy has 0 bytes"));
        assert!(message(|r| r.generation = "g".repeat(65)).contains("generation has 65 bytes"));
        assert!(message(|r| r.clock_ms = 5).contains("clock_ms"));
        assert!(message(|r| r.hostname = "a b".into()).contains("hostname"));
        assert!(message(|r| r.machine_id = "xyz".into()).contains("machine_id"));
        assert!(message(|r| r.pids_max = u64::MAX).contains("pids_max"));
        // a machine that was not restored needs none
        let resumed = WakeRequest { entropy: Default::default(), generation: String::new(), ..request() };
        assert!(check(&resumed).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_for_the_wake_but_not_for_ever() {
        let suspension = Suspension::default();
        suspension.awake().await.unwrap();
        suspension.suspended.send_replace(true);
        assert_eq!(suspension.awake().await.unwrap_err().reason, Reason::WrongPhase);
        let woken = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            suspension.suspended.send_replace(false);
        };
        let (awake, ()) = tokio::join!(suspension.awake(), woken);
        awake.unwrap();
    }

    #[test]
    fn only_a_restore_cuts_a_stream() {
        let suspension = Suspension::default();
        let era = suspension.era();
        assert!(!suspension.was_cut(era));
        suspension.enter("");
        assert!(!suspension.was_cut(era), "a machine that went on where it stood has kept its connections");
        suspension.enter("one");
        assert!(suspension.was_cut(era));
        let era = suspension.era();
        suspension.enter("one");
        assert!(!suspension.was_cut(era), "the same restore, told twice");
    }
}
