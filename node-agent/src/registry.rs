//! All sandboxes of this node, and the last word on room.
//!
//! Invariants, whatever the scheduler orders:
//! - the sum of what live sandboxes take never exceeds what is allocatable;
//! - of one sandbox at most one epoch is live: a newer epoch waits until the older is gone, an older one is ignored;
//! - a sandbox stays in the list, with its last report, until the scheduler says that the report is stored (Forget).
//!
//! No method waits: orders are passed on to the sandbox's actor.

use crate::sandbox::Host;
use crate::sandbox::actor::{Actor, Begin, ORDERS, Order, Stop};
use crate::sandbox::bringup::{Context, TakenList};
use crate::sandbox::record::{Assignment, Changed, Ledger, Record};
use crate::sandbox::recover::Found;
use pinfold_domain::{Cause, Epoch, Reason, Resources, SandboxId, SandboxSpec, TemplateId};
use pinfold_proto::convert::sandbox::StatusReport;
use pinfold_service::{CancellationToken, Tasks};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, Semaphore, mpsc, watch};

pub struct Registry {
    host: Host,
    allocatable: Resources,
    tasks: Tasks,
    /// cancelled when the agent ends: actors let go
    detach: CancellationToken,
    entries: Mutex<BTreeMap<SandboxId, Entry>>,
    /// what the machines take that are booted for templates
    preparing: Mutex<BTreeMap<TemplateId, Resources>>,
    /// one template at a time is prepared
    preparations: Semaphore,
    /// of those that are being prepared or wait for it: cancelled when one is dropped
    dropped: Mutex<BTreeMap<TemplateId, CancellationToken>>,
    changes: Arc<Changes>,
}

/// Sandboxes whose report has changed since somebody looked. Bounded by the number of sandboxes.
#[derive(Debug, Default)]
struct Changes {
    ids: Mutex<BTreeSet<SandboxId>>,
    notify: Notify,
}

struct Entry {
    epoch: Epoch,
    ledger: Arc<Ledger>,
    stop: watch::Sender<Option<Stop>>,
    orders: mpsc::Sender<Order>,
    ended: CancellationToken,
}

impl Entry {
    /// It has something of the node. The last report is made when nothing is left, so it is what decides: a Forget that
    /// answers it is never too early.
    fn is_live(&self) -> bool {
        !self.ledger.record().phase.is_final()
    }
}

impl Registry {
    pub fn new(host: Host, allocatable: Resources, tasks: Tasks, detach: CancellationToken) -> Self {
        let (entries, preparing, preparations) = (Mutex::default(), Mutex::default(), Semaphore::new(1));
        let (dropped, changes) = (Mutex::default(), Arc::default());
        Self { host, allocatable, tasks, detach, entries, preparing, preparations, dropped, changes }
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn allocatable(&self) -> Resources {
        self.allocatable
    }

    /// Called by every ledger of this registry.
    pub fn changed(&self) -> Changed {
        let changes = Arc::clone(&self.changes);
        Arc::new(move |id| {
            lock(&changes.ids).insert(id);
            changes.notify.notify_one();
        })
    }

    /// Takes an order, or says why not. An order that was taken before, or that is older, changes nothing.
    pub fn assign(&self, assignment: Assignment) -> Result<(), Cause> {
        let mut entries = lock(&self.entries);
        let (id, epoch) = (assignment.id, assignment.epoch);
        let earlier = entries.get(&id);
        if earlier.is_some_and(|entry| entry.epoch >= epoch) {
            tracing::info!(sandbox = %id, %epoch, "an assignment that is known or outdated was ignored");
            return Ok(());
        }
        self.has_images(&assignment.spec)?;
        self.has_room(&entries, Some(assignment.id), &assignment.spec.resources)?;
        let after = earlier.map(|entry| {
            let cause =
                Cause::new(Reason::StopRequested, format!("epoch {epoch} of it was assigned to this node"));
            order(entry, Stop { cause, grace: std::time::Duration::ZERO });
            entry.ended.clone()
        });
        let record = Record::new(&self.host.boot_id, assignment);
        let ledger = Arc::new(Ledger::new(record, self.host.state.sandbox(id), self.changed()));
        let context = Context { host: self.host.clone(), ledger, taken: TakenList::default() };
        let entry = self.start(context, Begin::Assigned { after }, None);
        entries.insert(id, entry);
        drop(entries);
        (self.changed())(id);
        Ok(())
    }

    /// Takes over what an earlier agent left.
    pub fn adopt(&self, found: Found) {
        let Found { context, begin, stop } = found;
        let id = context.ledger.assignment().id;
        let entry = match begin {
            Some(begin) => self.start(context, begin, stop),
            None => {
                let (entry, _no_orders) = entry(&context, None);
                entry.ended.cancel();
                entry
            }
        };
        lock(&self.entries).insert(id, entry);
    }

    fn start(&self, context: Context, begin: Begin, stop: Option<Stop>) -> Entry {
        let (entry, orders) = entry(&context, stop);
        let actor = Actor {
            context,
            begin,
            stop: entry.stop.subscribe(),
            orders,
            detach: self.detach.clone(),
            ended: entry.ended.clone(),
        };
        drop(self.tasks.background("sandbox", actor.run()));
        entry
    }

    fn has_images(&self, spec: &SandboxSpec) -> Result<(), Cause> {
        let unknown = |error: crate::host::ImageError| Cause::new(Reason::ImageUnknown, error.to_string());
        self.host.images.root_image(&spec.image).map_err(unknown)?;
        // A kernel that is there but broken is found out at the start, with its true reason.
        match self.host.images.kernel(spec.kernel.as_deref()) {
            Err(error @ crate::host::ImageError::Unknown { .. }) => Err(unknown(error)),
            _ => Ok(()),
        }
    }

    /// Whether all others leave room for `asked`; `own`: the sandbox that asks, whose present share does not count.
    fn has_room(
        &self,
        entries: &BTreeMap<SandboxId, Entry>,
        own: Option<SandboxId>,
        asked: &Resources,
    ) -> Result<(), Cause> {
        let others = entries.iter().filter(|(id, entry)| Some(**id) != own && entry.is_live());
        let others = others.map(|(_, entry)| entry.ledger.record().held());
        let preparing: Vec<_> = lock(&self.preparing).values().copied().collect();
        let taken = others
            .chain(preparing)
            .fold(Resources::default(), |sum, held| sum.checked_add(&held).unwrap_or(self.allocatable));
        let free = self.allocatable.saturating_sub(&taken);
        match asked.first_excess(&free) {
            None => Ok(()),
            Some(dimension) => Err(Cause::new(
                Reason::HostResources,
                format!(
                    "no room on this node: {} asked {}, free {} of {}",
                    dimension.name(),
                    asked.get(dimension),
                    free.get(dimension),
                    self.allocatable.get(dimension)
                ),
            )),
        }
    }

    /// Passes an order to end on. `false`: there is no such sandbox of that epoch.
    pub fn stop(&self, id: SandboxId, epoch: Epoch, stop: Stop) -> bool {
        let entries = lock(&self.entries);
        let Some(entry) = entries.get(&id).filter(|entry| entry.epoch == epoch) else { return false };
        order(entry, stop);
        true
    }

    /// The last report of this epoch is stored: its record and its console may go.
    pub fn forget(&self, id: SandboxId, epoch: Epoch) {
        let mut entries = lock(&self.entries);
        let Some(entry) = entries.get(&id).filter(|entry| entry.epoch <= epoch) else { return };
        if entry.is_live() {
            tracing::warn!(sandbox = %id, %epoch, "a sandbox that lives was to be forgotten; it stays");
            return;
        }
        let removed = entry.ledger.paths().remove();
        entries.remove(&id);
        match removed {
            Ok(()) => tracing::info!(sandbox = %id, %epoch, "forgotten"),
            Err(error) => {
                tracing::error!(sandbox = %id, error = error.sentence(), "its files cannot be removed")
            }
        }
    }

    /// The record's owner, for streams of callers.
    pub fn ledger(&self, id: SandboxId) -> Option<Arc<Ledger>> {
        lock(&self.entries).get(&id).map(|entry| Arc::clone(&entry.ledger))
    }

    /// The full list.
    pub fn reports(&self) -> Vec<StatusReport> {
        lock(&self.entries).values().map(|entry| entry.ledger.record().report()).collect()
    }

    /// Waits until a report changes; returns all that have changed since the last call.
    pub async fn next_changes(&self) -> Vec<StatusReport> {
        loop {
            let ids = std::mem::take(&mut *lock(&self.changes.ids));
            let entries = ids.iter().filter_map(|id| self.ledger(*id));
            let reports: Vec<_> = entries.map(|ledger| ledger.record().report()).collect();
            if !reports.is_empty() {
                return reports;
            }
            self.changes.notify.notified().await;
        }
    }

    /// Orders all to end and waits until they have.
    pub async fn stop_all(&self, stop: &Stop) {
        let ended: Vec<_> = {
            let entries = lock(&self.entries);
            entries.values().for_each(|entry| order(entry, stop.clone()));
            entries.values().map(|entry| entry.ended.clone()).collect()
        };
        for ended in ended {
            ended.cancelled().await;
        }
    }

    /// Removes the records of all that have ended.
    pub fn forget_ended(&self) {
        let ended: Vec<_> = {
            let entries = lock(&self.entries);
            let ended = entries.iter().filter(|(_, entry)| !entry.is_live());
            ended.map(|(id, entry)| (*id, entry.epoch)).collect()
        };
        for (id, epoch) in ended {
            self.forget(id, epoch);
        }
    }
}

fn entry(context: &Context, stop: Option<Stop>) -> (Entry, mpsc::Receiver<Order>) {
    let (orders, receiver) = mpsc::channel(ORDERS);
    let entry = Entry {
        epoch: context.ledger.assignment().epoch,
        ledger: Arc::clone(&context.ledger),
        stop: watch::Sender::new(stop),
        orders,
        ended: CancellationToken::new(),
    };
    (entry, receiver)
}

/// The first order stands, because its cause is why the sandbox ended; a later one may leave it less time.
fn order(entry: &Entry, stop: Stop) {
    entry.stop.send_if_modified(|order| match order {
        None => {
            *order = Some(stop);
            true
        }
        Some(first) if stop.grace < first.grace => {
            first.grace = stop.grace;
            true
        }
        Some(_) => false,
    });
}

/// A panic elsewhere leaves the maps whole: every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

mod saving;

#[cfg(test)]
mod tests;
