//! Orders about saved machines: pause, resume, snapshots, templates.
//!
//! Room is decided here, under the lock of the list, and the phase changes with it: a paused sandbox that is resumed has
//! its memory and CPU from that moment on, whatever is assigned next.

use super::{Registry, lock};
use crate::host::snapshots::Saved;
use crate::sandbox::actor::{ORDERS, Order};
use crate::sandbox::record::Record;
use crate::sandbox::{policy, template};
use pinfold_domain::{
    Cause, Epoch, Phase, Reason, Resources, SandboxId, SandboxSpec, SnapshotId, TemplateId,
};
use pinfold_service::CancellationToken;
use std::sync::Arc;

/// Beside guest memory and disk: state and manifest.
const OVERHEAD_BYTES: u64 = 1 << 20;

impl Registry {
    /// `false`: there is no such sandbox of that epoch. What becomes of the order is told in the sandbox's report.
    pub fn pause(&self, id: SandboxId, epoch: Epoch, order: u64) -> bool {
        let with_file = |record: &Record| {
            let mut paused = record.clone();
            paused.phase = Phase::Pausing;
            paused.held()
        };
        self.take_up(id, epoch, order, (Phase::Running, Phase::Pausing), with_file, Order::Pause)
    }

    pub fn resume(&self, id: SandboxId, epoch: Epoch, order: u64) -> bool {
        let resumed = |record: &Record| {
            let mut resumed = record.clone();
            resumed.phase = Phase::Resuming;
            resumed.held()
        };
        self.take_up(id, epoch, order, (Phase::Paused, Phase::Resuming), resumed, Order::Resume)
    }

    /// Where the sandbox is in the phase `from` and there is room for what it `asks`, it goes to `to` and its actor is told.
    fn take_up(
        &self,
        id: SandboxId,
        epoch: Epoch,
        number: u64,
        (from, to): (Phase, Phase),
        asks: impl FnOnce(&Record) -> Resources,
        order: Order,
    ) -> bool {
        let entries = lock(&self.entries);
        let Some(entry) = entries.get(&id).filter(|entry| entry.epoch == epoch) else { return false };
        let record = entry.ledger.record();
        if number > record.order && record.phase == from {
            let room = self.has_room(&entries, Some(id), &asks(&record));
            if let Err(cause) = room.map_err(|cause| Cause::new(Reason::NoRoom, cause.message)) {
                entry.ledger.decline(number, cause);
                return true;
            }
            match entry.orders.try_reserve() {
                Ok(place) => {
                    if entry.ledger.take_up(number, from, to) == Some(true) {
                        place.send(order);
                    }
                }
                Err(_) => entry.ledger.decline(number, too_many_orders()),
            }
            return true;
        }
        // it is as it is, and that is told once more
        entry.ledger.take_up(number, from, record.phase);
        drop(entries);
        (self.changed())(id);
        true
    }

    /// The answer is in the list of snapshots.
    pub fn take_snapshot(&self, snapshot: SnapshotId, id: SandboxId, epoch: Epoch) {
        let shelf = &self.host.catalog.snapshots;
        let entries = lock(&self.entries);
        let entry = entries.get(&id).filter(|entry| entry.epoch == epoch);
        let Some(entry) = entry else {
            let message = format!("sandbox {id} is not on this node");
            return shelf.refuse(snapshot, Cause::new(Reason::SnapshotFailed, message));
        };
        let record = entry.ledger.record();
        if record.phase != Phase::Running {
            let message = format!("the sandbox is {}, not running", record.phase);
            return shelf.refuse(snapshot, Cause::new(Reason::SnapshotFailed, message));
        }
        let Ok(place) = entry.orders.try_reserve() else {
            return shelf.refuse(snapshot, too_many_orders());
        };
        // a failure is listed, and what is there or under way is told again
        if let Some(Ok(())) = shelf.begin(snapshot, most_bytes(&record.assignment.spec)) {
            place.send(Order::Snapshot(snapshot));
        }
    }

    pub fn drop_snapshot(self: &Arc<Self>, snapshot: SnapshotId) {
        let catalog = Arc::clone(&self.host.catalog);
        drop(self.tasks.background("drop-snapshot", async move { catalog.snapshots.remove(snapshot).await }));
    }

    /// The answer is in the list of templates. Waits for its turn in a task of its own.
    pub fn prepare_template(self: &Arc<Self>, id: TemplateId, spec: SandboxSpec) {
        let shelf = &self.host.catalog.templates;
        if let Err(cause) = self.has_images(&spec) {
            return shelf.refuse(id, cause);
        }
        let dropped = CancellationToken::new();
        {
            // one that is dropped meanwhile finds both or neither
            let mut making = lock(&self.dropped);
            let Some(Ok(())) = shelf.begin(id, most_bytes(&spec)) else { return };
            making.insert(id, dropped.clone());
        }
        let registry = Arc::clone(self);
        drop(self.tasks.background("prepare-template", async move {
            let Some(made) = registry.prepare(id, spec, dropped).await else { return };
            match &made {
                Ok(saved) => tracing::info!(template = %id, bytes = saved.data_bytes(), "a template is prepared"),
                Err(cause) => {
                    tracing::warn!(template = %id, reason = cause.reason.as_str(), message = cause.message, "a template is not prepared");
                }
            }
            // what its machine took is free again when its end is told
            lock(&registry.preparing).remove(&id);
            lock(&registry.dropped).remove(&id);
            registry.host.catalog.templates.finish(id, made).await;
        }));
    }

    /// `None`: the agent ends; the one that comes after it removes what is left.
    async fn prepare(
        &self,
        id: TemplateId,
        spec: SandboxSpec,
        dropped: CancellationToken,
    ) -> Option<Result<Saved, Cause>> {
        let turn = tokio::select! {
            turn = self.preparations.acquire() => turn.expect("nobody closes the semaphore"),
            () = self.detach.cancelled() => return None,
            () = dropped.cancelled() => return Some(Err(template::dropped())),
        };
        if let Err(cause) = self.room_to_prepare(id, &spec) {
            return Some(Err(Cause::new(Reason::NoRoom, cause.message)));
        }
        let prepared = async {
            let draft = self.host.catalog.templates.draft(id).await?;
            template::prepare(&self.host, id, spec, draft, dropped).await
        };
        let prepared = tokio::select! {
            () = self.detach.cancelled() => None,
            prepared = prepared => Some(prepared),
        };
        drop(turn);
        prepared
    }

    pub(super) fn room_to_prepare(&self, id: TemplateId, spec: &SandboxSpec) -> Result<(), Cause> {
        let entries = lock(&self.entries);
        self.has_room(&entries, None, &spec.resources)?;
        lock(&self.preparing).insert(id, spec.resources);
        Ok(())
    }

    /// A preparation is ended; the template is listed until nothing of it is left.
    pub fn drop_template(self: &Arc<Self>, id: TemplateId) {
        let registry = Arc::clone(self);
        drop(self.tasks.background("drop-template", async move {
            registry.host.catalog.templates.remove(id).await;
            if let Some(dropped) = lock(&registry.dropped).get(&id) {
                dropped.cancel();
            }
        }));
    }
}

fn too_many_orders() -> Cause {
    Cause::new(Reason::LimitReached, format!("{ORDERS} orders wait for this sandbox, which is the limit"))
}

/// What a saved machine of `spec` can come to take.
fn most_bytes(spec: &SandboxSpec) -> u64 {
    let memory_bytes = policy::memory_mib(spec) << 20;
    memory_bytes.saturating_add(spec.resources.disk_bytes).saturating_add(OVERHEAD_BYTES)
}
