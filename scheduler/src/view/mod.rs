//! What readers see: the stored state and its newest changes, in memory.
//!
//! Invariant: it holds nothing that is not durable ([`View::apply`] is called after the commit), and its revision never
//! goes back. The lock is held for one look-up or one page, never across an await.

mod ring;
mod snapshots;
mod watch;

pub use watch::{WatchEnd, WatchEvent, WatchFilter, Watcher};

use crate::store::{HistoryEntry, Loaded};
use pinfold_domain::{Cause, Phase, Reason, Revision, Sandbox, SandboxId, Snapshot, SnapshotId};
use pinfold_engine::Change;
use ring::Ring;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::watch as signal;

/// The read model. Shared by all handlers; written by the driver alone.
pub struct View {
    state: RwLock<State>,
    /// the newest revision: watchers sleep on it
    newest: signal::Sender<Revision>,
    /// counts changes of snapshots, which have no revision: who waits for one sleeps on it
    snapshot_changes: signal::Sender<u64>,
}

struct State {
    sandboxes: BTreeMap<SandboxId, Arc<Sandbox>>,
    snapshots: BTreeMap<SnapshotId, Arc<Snapshot>>,
    ring: Ring,
    revision: Revision,
}

/// Which sandboxes a list shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// all of these; an empty value asks for the key alone
    pub labels: BTreeMap<String, String>,
    /// any of these; none: all
    pub phases: BTreeSet<Phase>,
}

impl ListFilter {
    fn matches(&self, sandbox: &Sandbox) -> bool {
        let phase = self.phases.is_empty() || self.phases.contains(&sandbox.phase);
        let has = |(key, value): (&String, &String)| match sandbox.spec.labels.get(key) {
            Some(found) => value.is_empty() || found == value,
            None => false,
        };
        phase && self.labels.iter().all(has)
    }
}

/// One page of a list.
#[derive(Debug)]
pub struct Page {
    pub sandboxes: Vec<Arc<Sandbox>>,
    /// the last id of this page, when more may follow
    pub next_after: Option<SandboxId>,
    pub revision: Revision,
}

impl View {
    /// `history_entries` bounds the changes that are kept for watchers.
    pub fn new(loaded: &Loaded, history_entries: usize) -> Self {
        let sandboxes = loaded.state.sandboxes.iter();
        let state = State {
            sandboxes: sandboxes.map(|sandbox| (sandbox.id, Arc::new(sandbox.clone()))).collect(),
            snapshots: loaded.state.snapshots.iter().map(|s| (s.id, Arc::new(s.clone()))).collect(),
            ring: Ring::new(&loaded.history, loaded.compacted, history_entries),
            revision: loaded.state.revision,
        };
        let (newest, _) = signal::channel(state.revision);
        let (snapshot_changes, _) = signal::channel(0);
        Self { state: RwLock::new(state), newest, snapshot_changes }
    }

    /// Takes in what was just committed, and wakes the watchers.
    pub fn apply(&self, changes: &[Change]) {
        let mut of_snapshots = 0;
        let revision = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            for entry in changes.iter().filter_map(HistoryEntry::of) {
                state.revision = state.revision.max(entry.revision());
                if entry.deleted {
                    state.sandboxes.remove(&entry.sandbox.id);
                } else {
                    state.sandboxes.insert(entry.sandbox.id, Arc::clone(&entry.sandbox));
                }
                state.ring.push(entry);
            }
            of_snapshots += snapshots::apply(&mut state.snapshots, changes);
            state.revision
        };
        self.newest.send_replace(revision);
        if of_snapshots > 0 {
            self.snapshot_changes.send_modify(|count| *count += of_snapshots);
        }
    }

    pub fn revision(&self) -> Revision {
        self.read().revision
    }

    pub fn get(&self, id: SandboxId) -> Result<Arc<Sandbox>, Cause> {
        self.read().sandboxes.get(&id).map(Arc::clone).ok_or_else(|| not_found(id))
    }

    /// At most `size` sandboxes that match, in the order of their creation, behind `after`.
    pub fn list(&self, filter: &ListFilter, after: Option<SandboxId>, size: usize) -> Page {
        let state = self.read();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = state.sandboxes.range((from, Bound::Unbounded)).map(|(_, sandbox)| sandbox);
        let mut found = behind.filter(|sandbox| filter.matches(sandbox));
        let sandboxes: Vec<_> = found.by_ref().take(size).map(Arc::clone).collect();
        let more = found.next().is_some();
        let next_after = sandboxes.last().filter(|_| more).map(|sandbox| sandbox.id);
        Page { next_after, revision: state.revision, sandboxes }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_found(id: SandboxId) -> Cause {
    Cause::new(Reason::SandboxNotFound, format!("there is no sandbox {id}"))
}

#[cfg(test)]
mod tests;
