//! The one task that owns a sandbox. It decides; [`super::bringup`] and [`super::teardown`] act.
//!
//! ```text
//!                    start limit, failure
//!   Starting --------------------------------+
//!      |  \ stop, time to live               |
//!      |   +-------------+                   v
//!      v ready           v                 (teardown) --> Failed
//!   Running --stop,--> Stopping --> (teardown) --> Stopped
//!      |      ttl          ^                         ^
//!      +-- the machine ends --> (why?) --------------+--> Failed
//!      v                     |
//!   [saving]: pause, snapshot; Paused; resume
//! ```
//!
//! [`saving`] has the part of the drawing that leads to the disk and back.
//!
//! Whatever the way, the last report is sent only after teardown: a phase that is final means that nothing is left but
//! the record and the console. When the agent itself ends, the actor lets go (`detach`) and the sandbox goes on.

use super::bringup::{self, Context, Ready};
use super::restore;
use super::teardown;
use crate::catalog::Origin;
use crate::clock::BootTime;
use crate::machine::Machine;
use crate::machine::ending::{classify, in_console};
use pinfold_domain::{Cause, Phase, Reason, SnapshotId};
use pinfold_service::CancellationToken;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// From the guest's word that its workload has ended to its power-off.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(5);
/// From a kill over the control socket to the end; then its cgroup is killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// For a clean end when the time to live is over.
const TTL_GRACE: Duration = Duration::from_secs(2);
/// Longest grace that a stop may ask for.
const MAX_GRACE: Duration = Duration::from_secs(300);

/// An order that does not end it. At most [`ORDERS`] wait.
#[derive(Debug)]
pub enum Order {
    /// The phase is Pausing already.
    Pause,
    /// The phase is Resuming already, and the room is taken.
    Resume,
    /// The snapshot is listed as being made.
    Snapshot(SnapshotId),
}

/// Orders that wait for the actor: a pause or a resume, and snapshots that forks ask for.
pub const ORDERS: usize = 8;

/// An order to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    pub cause: Cause,
    pub grace: Duration,
}

/// Where the actor begins.
pub enum Begin {
    /// a new assignment; `after` is cancelled when the sandbox's earlier epoch is gone
    Assigned { after: Option<CancellationToken> },
    /// an earlier agent ended before there was a machine: what it had taken is undone, then it begins anew, within the
    /// start limit of the assignment
    Again,
    /// an earlier agent brought the machine up; it was ready if `ready`
    Adopted { machine: Arc<dyn Machine>, ready: bool },
    /// an earlier agent was saving it to pause it; its machine lives, and perhaps stands still
    Pausing { machine: Arc<dyn Machine> },
    /// it is on the disk; what a machine may have left is undone
    Paused { resume: bool },
    /// an earlier agent brought it up, and the machine has ended since
    Gone { phase: Phase, cause: Cause },
}

pub struct Actor {
    pub context: Context,
    pub begin: Begin,
    pub stop: watch::Receiver<Option<Stop>>,
    pub orders: mpsc::Receiver<Order>,
    /// the agent ends: let go
    pub detach: CancellationToken,
    /// cancelled when nothing is left
    pub ended: CancellationToken,
}

/// How it ended, before teardown.
enum End {
    Final(Phase, Cause),
    Detached,
}

impl Actor {
    pub async fn run(mut self) {
        let mut machine = None;
        let begin = std::mem::replace(&mut self.begin, Begin::Assigned { after: None });
        let end = self.live(begin, &mut machine).await;
        let End::Final(phase, cause) = end else { return };
        self.finish(phase, cause, machine).await;
        self.ended.cancel();
    }

    async fn live(&mut self, begin: Begin, held: &mut Option<Arc<dyn Machine>>) -> End {
        let started = match begin {
            Begin::Gone { phase, cause } => return End::Final(phase, cause),
            Begin::Pausing { machine } => return self.serve(machine, held, Some(Order::Pause)).await,
            Begin::Paused { resume } => {
                return match self.on_disk(resume).await {
                    Ok(machine) => self.serve(machine, held, None).await,
                    Err(end) => end,
                };
            }
            Begin::Adopted { machine, ready: true } => Ok(Ready { machine, origin: None, restored: None }),
            Begin::Adopted { machine, ready: false } => {
                *held = Some(Arc::clone(&machine));
                let context = self.context.clone();
                self.starting(async move { bringup::resume(&context, machine).await }).await
            }
            Begin::Again => {
                let context = self.context.clone();
                self.starting(async move { bringup::again(&context).await }).await
            }
            Begin::Assigned { after } => {
                let context = self.context.clone();
                self.starting(async move { bringup::run(&context, after).await }).await
            }
        };
        let Ready { machine, origin, restored } = match started {
            Ok(ready) => ready,
            Err(end) => return end,
        };
        if let Err(end) = self.wake_adopted(&machine).await {
            *held = Some(machine);
            return end;
        }
        // an adopted sandbox may be on its way down already
        for phase in [Phase::Starting, Phase::Resuming] {
            self.context.ledger.go_on(phase, Phase::Running, None);
        }
        if let Some(restored) = restored {
            restored.tell(&self.context).await;
        }
        if let Some(origin) = origin {
            self.record_working_set(&machine, origin).await;
        }
        self.serve(machine, held, None).await
    }

    /// A machine that runs, with all orders that come, until it ends. `first`: an order that was under way.
    async fn serve(
        &mut self,
        mut machine: Arc<dyn Machine>,
        held: &mut Option<Arc<dyn Machine>>,
        mut first: Option<Order>,
    ) -> End {
        loop {
            *held = Some(Arc::clone(&machine));
            let order = match first.take() {
                Some(order) => Ok(order),
                None => self.running(&machine).await,
            };
            let served = match order {
                Ok(Order::Snapshot(id)) => self.snapshot(&machine, id).await,
                Ok(Order::Pause) => match self.pause(&machine).await {
                    Ok(Paused::GoesOn) => Ok(()),
                    Ok(Paused::OnDisk) => {
                        *held = None;
                        match self.on_disk(false).await {
                            Ok(resumed) => {
                                machine = resumed;
                                Ok(())
                            }
                            Err(end) => Err(end),
                        }
                    }
                    Err(end) => Err(end),
                },
                // it runs
                Ok(Order::Resume) => Ok(()),
                Err(end) => Err(end),
            };
            if let Err(end) = served {
                return end;
            }
        }
    }

    /// Bring-up under the start limit, a stop and the time to live.
    async fn starting(&mut self, up: impl Future<Output = Result<Ready, Cause>>) -> Result<Ready, End> {
        let assignment = self.context.ledger.assignment();
        let limit = Duration::from_millis(assignment.spec.start_timeout.0);
        // an earlier agent may have begun to resume it long after its assignment
        let resuming = self.context.ledger.record().phase == Phase::Resuming;
        let begun = if resuming { BootTime::now() } else { assignment.assigned_at };
        let deadline = begun.after(limit);
        let stopped = tokio::select! {
            biased;
            () = self.detach.cancelled() => return Err(End::Detached),
            stop = ordered(&mut self.stop) => stop.cause,
            () = tokio::time::sleep(assignment.expires_at.remaining()) => ttl_expired(),
            () = tokio::time::sleep(deadline.remaining()) => {
                return Err(End::Final(Phase::Failed, self.start_timeout(limit)));
            }
            result = up => return result.map_err(|cause| End::Final(Phase::Failed, cause)),
        };
        self.context.ledger.set_phase(Phase::Stopping, Some(stopped.clone()));
        Err(End::Final(Phase::Stopped, stopped))
    }

    /// Until an order comes, or it ends.
    async fn running(&mut self, machine: &Arc<dyn Machine>) -> Result<Order, End> {
        let expires_at = self.context.ledger.assignment().expires_at;
        let stop = tokio::select! {
            biased;
            () = self.detach.cancelled() => return Err(End::Detached),
            exit = machine.exited() => {
                let cause = classify(&bringup::evidence(&self.context, exit));
                return Err(End::Final(phase_of_end(&cause), cause));
            }
            stop = ordered(&mut self.stop) => stop,
            () = tokio::time::sleep(expires_at.remaining()) => Stop { cause: ttl_expired(), grace: TTL_GRACE },
            Some(order) = self.orders.recv() => return Ok(order),
        };
        Err(self.stop(machine, stop).await)
    }

    async fn stop(&mut self, machine: &Arc<dyn Machine>, stop: Stop) -> End {
        self.context.ledger.set_phase(Phase::Stopping, Some(stop.cause.clone()));
        self.stop_machine(machine, stop.grace.min(MAX_GRACE)).await;
        End::Final(Phase::Stopped, stop.cause)
    }

    /// The guest first, then the VMM; what is left after it falls to teardown, which kills the cgroup.
    async fn stop_machine(&mut self, machine: &Arc<dyn Machine>, grace: Duration) {
        let id = self.context.ledger.assignment().id;
        let context = &self.context;
        let clean = async {
            match context.host.guests.shutdown(context.ledger.paths(), grace).await {
                Ok(()) => tokio::time::timeout(POWER_OFF_TIMEOUT, machine.exited()).await.is_ok(),
                Err(error) => {
                    tracing::warn!(sandbox = %id, %error, "no clean stop, the VMM is ended");
                    false
                }
            }
        };
        let gone = tokio::select! {
            biased;
            _ = machine.exited() => true,
            gone = clean => gone,
            () = hurried(&mut self.stop, grace) => false,
        };
        if gone {
            return;
        }
        if let Err(error) = machine.kill().await {
            tracing::debug!(sandbox = %id, %error, "the VMM did not take a kill");
        }
        if tokio::time::timeout(KILL_TIMEOUT, machine.exited()).await.is_err() {
            tracing::warn!(sandbox = %id, "the VMM does not end, its cgroup is killed");
        }
    }

    /// Teardown, then the last report.
    async fn finish(&mut self, phase: Phase, mut cause: Cause, machine: Option<Arc<dyn Machine>>) {
        self.refuse_orders().await;
        if let Err(left) = teardown::run(&self.context, machine.as_ref()).await {
            let id = self.context.ledger.assignment().id;
            tracing::error!(sandbox = %id, left, "a sandbox left something behind");
            cause = Cause::new(cause.reason, format!("{} ({left})", cause.message));
        }
        self.context.ledger.end(phase, cause);
    }

    /// What the guest said last may be why it was not ready.
    fn start_timeout(&self, limit: Duration) -> Cause {
        if let Some(cause) = in_console(&bringup::console_tail(&self.context), false) {
            return cause;
        }
        let record = self.context.ledger.record();
        let reached = record.milestones.last().map_or("assigned", |(milestone, _)| milestone.as_str());
        let message = format!("not ready within {} ms; it came as far as {reached}", limit.as_millis());
        Cause::new(Reason::StartTimeout, message)
    }
}

/// Of an end that nobody asked for: a guest that switches itself off has ended in order, all else is a failure.
pub fn phase_of_end(cause: &Cause) -> Phase {
    if cause.reason == Reason::GuestPowerOff { Phase::Stopped } else { Phase::Failed }
}

fn ttl_expired() -> Cause {
    Cause::new(Reason::TtlExpired, "its time to live is over")
}

/// The next order to end; never, when nobody can give one any more.
async fn ordered(stop: &mut watch::Receiver<Option<Stop>>) -> Stop {
    let order = stop.wait_for(Option::is_some).await.ok().and_then(|order| order.clone());
    match order {
        Some(stop) => stop,
        None => std::future::pending().await,
    }
}

/// Resolves when a later order left less than `grace`, and that has passed since now.
async fn hurried(stop: &mut watch::Receiver<Option<Stop>>, grace: Duration) {
    let begun = Instant::now();
    let mut grace = lowered(stop, grace).await;
    while let Ok(less) = tokio::time::timeout_at(begun + grace, lowered(stop, grace)).await {
        grace = less;
    }
}

/// The grace of an order that leaves less than `grace`, once there is one.
async fn lowered(stop: &mut watch::Receiver<Option<Stop>>, grace: Duration) -> Duration {
    let less = stop.wait_for(|order| order.as_ref().is_some_and(|stop| stop.grace < grace)).await;
    match less.ok().and_then(|order| order.as_ref().map(|stop| stop.grace)) {
        Some(grace) => grace,
        None => std::future::pending().await,
    }
}

mod saving;
use saving::Paused;

#[cfg(test)]
pub mod tests;
