//! The saved machines that this node holds, by id: snapshots of sandboxes, and templates.
//!
//! ```text
//!            begin             finish
//!   (none) --------> Making -----------> Ready ---- spoil ----+
//!      ^                |                  |                  v
//!      |                |  finish          |  remove        Failed (stays listed until it is removed)
//!      |                +------------------|----------------> |
//!      +------ remove ---------------------+------------------+
//! ```
//!
//! Invariant: what is Ready is whole on the disk. Both lists are bounded in number and in bytes, room for what is being
//! made included. Removed while it is being made, it is gone when the making ends.

use crate::host::snapshots::{Draft, Found, Saved, SnapshotKey, SnapshotStore};
use crate::host::{HostError, blocking};
use pinfold_domain::{
    Cause, Preparation, Reason, SnapshotId, SnapshotReport, SnapshotSizes, SnapshotState, TemplateId,
    TemplateReport,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, Semaphore};

/// How much a node keeps.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub number: usize,
    pub bytes: u64,
}

pub struct Catalog {
    pub snapshots: Shelf<SnapshotId>,
    pub templates: Shelf<TemplateId>,
    /// machines that are being saved at once: each writes as fast as the disk takes it
    pub saving: Semaphore,
    fallbacks: AtomicU64,
}

/// What there is of one saved machine.
#[derive(Debug, Clone)]
pub enum Held {
    Making,
    Ready(Arc<Saved>),
    Failed(Cause),
}

struct Entry {
    held: Held,
    /// bytes that it takes, or may come to take
    bytes: u64,
    /// its working set is being recorded, or has been
    recorded: bool,
    /// to be removed as soon as it is made
    unwanted: bool,
}

/// One of the two lists.
pub struct Shelf<Id> {
    store: SnapshotStore,
    bounds: Bounds,
    kind: &'static str,
    entries: Mutex<BTreeMap<Id, Entry>>,
    changed: Mutex<BTreeSet<Id>>,
    notify: Notify,
}

impl Catalog {
    /// Looks at the disk; what is damaged there is listed as failed.
    pub fn open(
        snapshots: (SnapshotStore, Bounds),
        templates: (SnapshotStore, Bounds),
        at_once: usize,
    ) -> Result<Self, HostError> {
        Ok(Self {
            snapshots: Shelf::open("snapshot", snapshots)?,
            templates: Shelf::open("template", templates)?,
            saving: Semaphore::new(at_once),
            fallbacks: AtomicU64::new(0),
        })
    }

    pub fn key(&self) -> &SnapshotKey {
        self.snapshots.store.key()
    }

    /// Counts a create from a template that had to boot; how many there were since the agent's start.
    pub fn note_fallback(&self) -> u64 {
        self.fallbacks.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn snapshot_reports(&self) -> Vec<SnapshotReport> {
        self.snapshots.list().into_iter().map(|(id, held)| snapshot_report(id, &held)).collect()
    }

    pub fn template_reports(&self) -> Vec<TemplateReport> {
        self.templates.list().into_iter().map(|(id, held)| template_report(id, &held)).collect()
    }

    /// Waits until something changes; returns what has changed since the last call.
    pub async fn next_changes(&self) -> (Vec<SnapshotReport>, Vec<TemplateReport>) {
        loop {
            let snapshots = self.snapshots.changes();
            let templates = self.templates.changes();
            if !snapshots.is_empty() || !templates.is_empty() {
                let snapshots = snapshots.iter().map(|(id, held)| snapshot_report(*id, held)).collect();
                let templates = templates.iter().map(|(id, held)| template_report(*id, held)).collect();
                return (snapshots, templates);
            }
            tokio::select! {
                () = self.snapshots.notify.notified() => {}
                () = self.templates.notify.notified() => {}
            }
        }
    }
}

impl<Id: Copy + Ord + Display + FromStr + Send + 'static> Shelf<Id> {
    fn open(kind: &'static str, (store, bounds): (SnapshotStore, Bounds)) -> Result<Self, HostError> {
        let mut entries = BTreeMap::new();
        for (id, found) in store.list::<Id>()? {
            let entry = match found {
                Found::Whole(saved) => Entry::ready(saved),
                Found::Damaged(why) => Entry::failed(Cause::new(Reason::SnapshotInvalid, why)),
            };
            entries.insert(id, entry);
        }
        let (changed, notify) = (Mutex::default(), Notify::new());
        Ok(Self { store, bounds, kind, entries: Mutex::new(entries), changed, notify })
    }

    /// A place for one more that may take `bytes`. `None`: it is there already, or is being made; its state is told again.
    pub fn begin(&self, id: Id, bytes: u64) -> Option<Result<Draft, Cause>> {
        let mut entries = lock(&self.entries);
        if entries.get(&id).is_some_and(|entry| !matches!(entry.held, Held::Failed(_))) {
            drop(entries);
            self.changed(id);
            return None;
        }
        let others = || entries.iter().filter(|(other, _)| **other != id).map(|(_, entry)| entry);
        let number = others().filter(|entry| !matches!(entry.held, Held::Failed(_))).count();
        let taken = others().fold(0_u64, |sum, entry| sum.saturating_add(entry.bytes));
        let Bounds { number: most, bytes: most_bytes } = self.bounds;
        let refused = if number >= most {
            Some(format!("this node holds {number} {}s, its limit is {most}", self.kind))
        } else if taken.saturating_add(bytes) > most_bytes {
            Some(format!(
                "the {}s of this node take {taken} bytes, and up to {bytes} more are past its limit of {most_bytes}",
                self.kind
            ))
        } else {
            None
        };
        let begun = match refused {
            Some(why) => Err(Cause::new(Reason::LimitReached, why)),
            None => {
                self.store.draft(id).map_err(|error| Cause::new(Reason::SnapshotFailed, error.sentence()))
            }
        };
        let entry = match &begun {
            Ok(_) => Entry { held: Held::Making, bytes, recorded: false, unwanted: false },
            Err(cause) => Entry::failed(cause.clone()),
        };
        entries.insert(id, entry);
        drop(entries);
        self.changed(id);
        Some(begun)
    }

    /// The making has ended.
    pub async fn finish(&self, id: Id, made: Result<Saved, Cause>) {
        let unwanted = {
            let mut entries = lock(&self.entries);
            let unwanted = entries.get(&id).is_none_or(|entry| entry.unwanted);
            if unwanted {
                entries.remove(&id);
            } else {
                let made = made.map_or_else(Entry::failed, Entry::ready);
                entries.insert(id, made);
            }
            unwanted
        };
        if unwanted {
            self.delete(id).await;
        }
        self.changed(id);
    }

    /// What fails before there is anything to make. What is there, or is being made, stays.
    pub fn refuse(&self, id: Id, cause: Cause) {
        let mut entries = lock(&self.entries);
        if entries.get(&id).is_none_or(|entry| matches!(entry.held, Held::Failed(_))) {
            entries.insert(id, Entry::failed(cause));
        }
        drop(entries);
        self.changed(id);
    }

    pub fn get(&self, id: Id) -> Option<Held> {
        lock(&self.entries).get(&id).map(|entry| entry.held.clone())
    }

    /// It was found damaged when it was used.
    pub fn spoil(&self, id: Id, cause: Cause) {
        let mut entries = lock(&self.entries);
        if entries.get(&id).is_some_and(|entry| matches!(entry.held, Held::Ready(_))) {
            let Found::Damaged(_) = self.store.set_aside(id, cause.message.clone()) else { return };
            entries.insert(id, Entry::failed(cause));
            drop(entries);
            self.changed(id);
        }
    }

    /// `true` for the first who asks, who then records its working set.
    pub fn records_working_set(&self, id: Id) -> bool {
        let mut entries = lock(&self.entries);
        entries.get_mut(&id).is_some_and(|entry| !std::mem::replace(&mut entry.recorded, true))
    }

    /// It is no longer listed when this returns. Machines that were restored from it go on: what they have open or mapped
    /// stays theirs.
    pub async fn remove(&self, id: Id) {
        {
            let mut entries = lock(&self.entries);
            match entries.get_mut(&id) {
                Some(Entry { held: Held::Making, unwanted, .. }) => {
                    *unwanted = true;
                    return;
                }
                Some(_) => drop(entries.remove(&id)),
                None => return,
            }
        }
        self.delete(id).await;
    }

    async fn delete(&self, id: Id) {
        let store = self.store.clone();
        match blocking(move || store.remove(id)).await {
            Ok(()) => tracing::info!(%id, kind = self.kind, "a saved machine was removed"),
            Err(error) => {
                tracing::error!(%id, kind = self.kind, error = error.sentence(), "a saved machine cannot be removed")
            }
        }
    }

    /// Without what is to be removed.
    fn list(&self) -> Vec<(Id, Held)> {
        let entries = lock(&self.entries);
        let wanted = entries.iter().filter(|(_, entry)| !entry.unwanted);
        wanted.map(|(id, entry)| (*id, entry.held.clone())).collect()
    }

    fn changed(&self, id: Id) {
        lock(&self.changed).insert(id);
        self.notify.notify_one();
    }

    fn changes(&self) -> Vec<(Id, Held)> {
        let changed = std::mem::take(&mut *lock(&self.changed));
        self.list().into_iter().filter(|(id, _)| changed.contains(id)).collect()
    }
}

impl Entry {
    fn ready(saved: Saved) -> Self {
        let (bytes, recorded) = (saved.data_bytes(), saved.working_set().is_some());
        Self { held: Held::Ready(Arc::new(saved)), bytes, recorded, unwanted: false }
    }

    fn failed(cause: Cause) -> Self {
        Self { held: Held::Failed(cause), bytes: 0, recorded: true, unwanted: false }
    }
}

fn parts(held: &Held) -> (Option<Cause>, SnapshotSizes) {
    match held {
        Held::Making => (None, SnapshotSizes::default()),
        Held::Ready(saved) => (None, saved.manifest.sizes),
        Held::Failed(cause) => (Some(cause.clone()), SnapshotSizes::default()),
    }
}

fn snapshot_report(snapshot_id: SnapshotId, held: &Held) -> SnapshotReport {
    let state = match held {
        Held::Making => SnapshotState::Creating,
        Held::Ready(_) => SnapshotState::Ready,
        Held::Failed(_) => SnapshotState::Failed,
    };
    let (cause, sizes) = parts(held);
    SnapshotReport { snapshot_id, state, cause, sizes }
}

fn template_report(template_id: TemplateId, held: &Held) -> TemplateReport {
    let preparation = match held {
        Held::Making => Preparation::Preparing,
        Held::Ready(_) => Preparation::Prepared,
        Held::Failed(_) => Preparation::Failed,
    };
    let (cause, sizes) = parts(held);
    TemplateReport { template_id, preparation, cause, sizes }
}

/// A panic elsewhere leaves the maps whole: every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub mod tests;
