//! To the disk and back.
//!
//! ```text
//!   Running --Pause--> Pausing --copied, on the disk, VMM ended--> Paused --Resume--> Resuming --woken--> Running
//!      ^                  |                                           ^                  |     \
//!      +-- why it failed -+                                           +-- no guest ran --+      +--> Failed
//!
//!   Running --Snapshot--> (stands still, is copied, goes on) --> Running
//! ```
//!
//! In each of these a stop and the time to live end it, and the agent may let go: the record says how far it came.

use super::{
    Actor, End, KILL_TIMEOUT, MAX_GRACE, Order, Origin, Stop, TTL_GRACE, hurried, ordered, phase_of_end,
    restore, teardown, ttl_expired,
};
use crate::clock::BootTime;
use crate::guest::clock_ms;
use crate::host::blocking;
use crate::host::snapshots::{Draft, Saved};
use crate::machine::Machine;
use crate::sandbox::bringup::host_cause;
use crate::sandbox::save::{self, Failure};
use pinfold_domain::{Cause, Phase, Reason, SnapshotId};
use pinfold_service::CancellationToken;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How a pause that was not cut short came out.
pub enum Paused {
    OnDisk,
    /// it could not be saved
    GoesOn,
}

/// What cuts an act short.
enum Cut {
    Detached,
    Stop(Stop),
}

impl Actor {
    /// Fails only when it ends.
    pub(super) async fn pause(&mut self, machine: &Arc<dyn Machine>) -> Result<Paused, End> {
        let context = self.context.clone();
        let act = save::in_time(Instant::now() + save::LIMIT, async {
            // an earlier agent may have stopped the machine, and a machine that stands still hears no order
            if context.ledger.saving().suspended {
                let resumed = machine.resume().await.map_err(|error| {
                    let message = format!("the machine does not go on: {error}");
                    Failure::Failed(Cause::new(Reason::SnapshotFailed, message))
                });
                resumed?;
            }
            let _turn = save::turn(&context).await;
            let target = context.ledger.paths().saved();
            let draft = blocking(move || Draft::begin(target, false)).await.map_err(host_cause);
            let draft = draft.map_err(Failure::Failed)?;
            let copied = save::copy(&context, machine, draft, false).await?;
            copied.publish().await.map_err(Failure::Failed)
        });
        match self.unless_cut(act).await {
            Err(cut) => Err(self.cut_short(machine, cut).await),
            Ok(Ok(saved)) => {
                self.give_back(machine, &saved).await;
                Ok(Paused::OnDisk)
            }
            Ok(Err(Failure::Ended(cause))) => Err(End::Final(phase_of_end(&cause), cause)),
            Ok(Err(Failure::Failed(cause))) => {
                self.go_on(machine).await?;
                let id = self.context.ledger.assignment().id;
                tracing::warn!(sandbox = %id, message = cause.message, "it could not be paused");
                self.context.ledger.go_on(Phase::Pausing, Phase::Running, Some(cause));
                Ok(Paused::GoesOn)
            }
        }
    }

    /// The machine is on the disk: memory and CPU go back to the node.
    async fn give_back(&self, machine: &Arc<dyn Machine>, saved: &Saved) {
        let ledger = &self.context.ledger;
        let left = ledger.assignment().expires_at.remaining();
        let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        ledger.note(true, |saving| {
            saving.saved = true;
            saving.has_memory_file = true;
            saving.suspended = false;
            saving.expires_ms = Some(clock_ms().saturating_add(left));
        });
        if machine.kill().await.is_ok() {
            // what is left after it falls to the teardown, which kills the cgroup
            let _ended = tokio::time::timeout(KILL_TIMEOUT, machine.exited()).await;
        }
        self.let_go(Some(machine)).await;
        tracing::info!(sandbox = %ledger.assignment().id, bytes = saved.data_bytes(), "paused");
        ledger.go_on(Phase::Pausing, Phase::Paused, None);
    }

    /// Undoes what a machine takes of its node.
    async fn let_go(&self, machine: Option<&Arc<dyn Machine>>) {
        let ledger = &self.context.ledger;
        if let Err(left) = teardown::to_the_disk(&self.context, machine).await {
            tracing::error!(sandbox = %ledger.assignment().id, left, "a paused sandbox left something behind");
        }
        ledger.clear_process();
    }

    /// On the disk, until it is resumed or ends. `resume`: an order to that was under way.
    pub(super) async fn on_disk(&mut self, mut resume: bool) -> Result<Arc<dyn Machine>, End> {
        self.let_go(None).await;
        self.context.ledger.go_on(Phase::Pausing, Phase::Paused, None);
        loop {
            if std::mem::take(&mut resume)
                && let Some(machine) = self.resume().await?
            {
                return Ok(machine);
            }
            let order = self.next_order().await;
            match order {
                Err(cut) => return Err(self.cut_short_on_disk(cut)),
                Ok(Some(Order::Resume)) => resume = true,
                Ok(Some(Order::Pause)) => {}
                Ok(Some(order @ Order::Snapshot(_))) => self.refuse(order, "paused").await,
                // nobody can give an order any more: only an end can come
                Ok(None) => return Err(self.ends_by_order().await),
            }
        }
    }

    /// `None`: it is on the disk as before.
    async fn resume(&mut self) -> Result<Option<Arc<dyn Machine>>, End> {
        let context = self.context.clone();
        let limit = Duration::from_millis(context.ledger.assignment().spec.start_timeout.0);
        let resumed = self.unless_cut(tokio::time::timeout(limit, restore::resume(&context))).await;
        let resumed = match resumed {
            Err(cut) => return Err(self.cut_short_on_disk(cut)),
            Ok(resumed) => resumed.unwrap_or_else(|_| {
                let message = format!("not ready within {} ms", limit.as_millis());
                let cause = Cause::new(Reason::RestoreFailed, message);
                let still_saved = context.ledger.saving().saved;
                let failed =
                    if still_saved { restore::NotResumed::StillSaved } else { restore::NotResumed::Lost };
                Err(failed(cause))
            }),
        };
        match resumed {
            Ok(restored) => {
                context.ledger.go_on(Phase::Resuming, Phase::Running, None);
                restored.tell(&context).await;
                Ok(Some(restored.machine))
            }
            Err(restore::NotResumed::StillSaved(cause)) => {
                tracing::warn!(sandbox = %context.ledger.assignment().id, message = cause.message, "it could not be resumed");
                self.let_go(None).await;
                context.ledger.go_on(Phase::Resuming, Phase::Paused, Some(cause));
                Ok(None)
            }
            Err(restore::NotResumed::Lost(cause)) => Err(End::Final(Phase::Failed, cause)),
        }
    }

    /// Fails only when it ends.
    pub(super) async fn snapshot(&mut self, machine: &Arc<dyn Machine>, id: SnapshotId) -> Result<(), End> {
        let context = self.context.clone();
        let act = async {
            let deadline = Instant::now() + save::LIMIT;
            let prepared = save::in_time(deadline, async {
                let turn = save::turn(&context).await;
                let draft = context.host.catalog.snapshots.draft(id).await;
                Ok((turn, draft.map_err(Failure::Failed)?))
            });
            let (_turn, draft) = match prepared.await {
                Ok(prepared) => prepared,
                Err(failure) => return (None, Ok(()), Some(Err(failure.cause()))),
            };
            let copied = save::in_time(deadline, save::copy(&context, machine, draft, true)).await;
            if matches!(copied, Err(Failure::Ended(_))) {
                return (copied.map(drop).err(), Ok(()), None);
            }
            let went_on = save::go_on(&context, machine).await;
            match copied {
                Ok(copied) => {
                    let made =
                        save::in_time(deadline, async { copied.publish().await.map_err(Failure::Failed) })
                            .await;
                    (None, went_on, Some(made.map_err(Failure::cause)))
                }
                Err(Failure::Ended(cause) | Failure::Failed(cause)) => (None, went_on, Some(Err(cause))),
            }
        };
        let catalog = &context.host.catalog.snapshots;
        match self.unless_cut(act).await {
            Ok((Some(Failure::Ended(cause) | Failure::Failed(cause)), _, _)) => {
                catalog.finish(id, Err(Cause::new(Reason::SnapshotFailed, cause.message.clone()))).await;
                Err(End::Final(phase_of_end(&cause), cause))
            }
            Ok((None, went_on, made)) => {
                let made = made.unwrap_or_else(|| Err(Cause::new(Reason::SnapshotFailed, "it was given up")));
                catalog.finish(id, made).await;
                went_on.map_err(|cause| End::Final(Phase::Failed, cause))
            }
            Err(cut) => {
                let cause = Cause::new(Reason::SnapshotFailed, "the sandbox ended while it was saved");
                catalog.finish(id, Err(cause)).await;
                Err(self.cut_short(machine, cut).await)
            }
        }
    }

    async fn go_on(&mut self, machine: &Arc<dyn Machine>) -> Result<(), End> {
        let context = self.context.clone();
        match self.unless_cut(save::go_on(&context, machine)).await {
            Err(cut) => Err(self.cut_short(machine, cut).await),
            Ok(went_on) => went_on.map_err(|cause| End::Final(Phase::Failed, cause)),
        }
    }

    /// An adopted machine whose guest was told to stand still by an earlier agent goes on.
    pub(super) async fn wake_adopted(&mut self, machine: &Arc<dyn Machine>) -> Result<(), End> {
        if !self.context.ledger.saving().suspended {
            return Ok(());
        }
        self.go_on(machine).await
    }

    /// `act`, unless an end is ordered before it is done.
    async fn unless_cut<T>(&mut self, act: impl Future<Output = T>) -> Result<T, Cut> {
        let ledger = &self.context.ledger;
        tokio::select! {
            biased;
            cut = cut(&self.detach, &mut self.stop, ledger.assignment().expires_at) => Err(cut),
            done = act => Ok(done),
        }
    }

    /// The next order for a sandbox that has no machine; `None` when none can come.
    async fn next_order(&mut self) -> Result<Option<Order>, Cut> {
        let ledger = &self.context.ledger;
        tokio::select! {
            biased;
            cut = cut(&self.detach, &mut self.stop, ledger.assignment().expires_at) => Err(cut),
            order = self.orders.recv() => Ok(order),
        }
    }

    /// The guest may stand still: it is ended as any other once it runs. Both together have its grace, or what a later order
    /// leaves of it.
    async fn cut_short(&mut self, machine: &Arc<dyn Machine>, cut: Cut) -> End {
        match cut {
            Cut::Detached => End::Detached,
            Cut::Stop(stop) => {
                let grace = stop.grace.clamp(KILL_TIMEOUT, MAX_GRACE);
                let begun = Instant::now();
                let resumed = tokio::select! {
                    resumed = tokio::time::timeout(grace, machine.resume()) => resumed,
                    () = hurried(&mut self.stop, grace) => Ok(Ok(())),
                };
                if !matches!(resumed, Ok(Ok(()))) {
                    tracing::debug!(?resumed, "the machine does not go on to be ended");
                }
                let left = stop.grace.saturating_sub(begun.elapsed());
                self.stop(machine, Stop { grace: left, ..stop }).await
            }
        }
    }

    fn cut_short_on_disk(&self, cut: Cut) -> End {
        match cut {
            Cut::Detached => End::Detached,
            Cut::Stop(stop) => {
                // a machine that was being resumed is one of those things that teardown undoes
                self.context.ledger.set_phase(Phase::Stopping, Some(stop.cause.clone()));
                End::Final(Phase::Stopped, stop.cause)
            }
        }
    }

    async fn ends_by_order(&mut self) -> End {
        let cut = self.unless_cut(std::future::pending::<std::convert::Infallible>()).await;
        match cut {
            Err(cut) => self.cut_short_on_disk(cut),
            Ok(never) => match never {},
        }
    }

    /// No order is carried out any more.
    pub(super) async fn refuse_orders(&mut self) {
        self.orders.close();
        while let Some(order) = self.orders.recv().await {
            self.refuse(order, "at its end").await;
        }
    }

    async fn refuse(&self, order: Order, state: &str) {
        if let Order::Snapshot(id) = order {
            let cause = Cause::new(Reason::WrongPhase, format!("the sandbox is {state}"));
            self.context.host.catalog.snapshots.finish(id, Err(cause)).await;
        }
    }

    /// Which pages a guest needs to answer is known once, and makes the next restore from the same files faster.
    pub(super) async fn record_working_set(&self, machine: &Arc<dyn Machine>, origin: Origin) {
        let catalog = &self.context.host.catalog;
        let (first, held) = match origin {
            Origin::Snapshot(id) => (catalog.snapshots.records_working_set(id), catalog.snapshots.get(id)),
            Origin::Template(id) => (catalog.templates.records_working_set(id), catalog.templates.get(id)),
        };
        let (true, Some(crate::catalog::Held::Ready(saved))) = (first, held) else { return };
        let recorded = async {
            let file = saved.new_working_set().map_err(|error| error.sentence())?;
            machine.working_set(&file).await.map_err(|error| error.to_string())?;
            saved.keep_working_set().map_err(|error| error.sentence())
        };
        match recorded.await {
            Ok(()) => tracing::info!(?origin, "a working set was recorded"),
            // the next restore is as slow as this one
            Err(why) => tracing::warn!(?origin, why, "a working set was not recorded"),
        }
    }
}

/// Resolves when it is to end, or the agent is.
async fn cut(
    detach: &CancellationToken,
    stop: &mut watch::Receiver<Option<Stop>>,
    expires_at: BootTime,
) -> Cut {
    tokio::select! {
        biased;
        () = detach.cancelled() => Cut::Detached,
        stop = ordered(stop) => Cut::Stop(stop),
        () = tokio::time::sleep(expires_at.remaining()) => {
            Cut::Stop(Stop { cause: ttl_expired(), grace: TTL_GRACE })
        }
    }
}
