//! The snapshots that are kept, by id and by node.
//!
//! Invariant: each is in `by_node` once, and in `ended` if and only if it failed or was lost.

use pinfold_domain::{NodeId, SandboxId, Snapshot, SnapshotId, SnapshotState, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// A snapshot with what is known of it but not stored.
#[derive(Debug)]
pub(crate) struct SnapshotEntry {
    pub snapshot: Snapshot,
    /// sandboxes that are to start from it and have not yet
    pub users: BTreeSet<SandboxId>,
    /// first list in a row that lacked it
    pub(super) missing_since: Option<Timestamp>,
}

#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    pub(super) entries: BTreeMap<SnapshotId, SnapshotEntry>,
    by_node: BTreeMap<NodeId, BTreeSet<SnapshotId>>,
    /// those that failed or were lost, by the time of that
    pub(super) ended: BTreeSet<(Timestamp, SnapshotId)>,
    /// whose users may have become none in this step
    pub(super) released: BTreeSet<SnapshotId>,
}

impl Snapshots {
    pub fn get(&self, id: SnapshotId) -> Option<&SnapshotEntry> {
        self.entries.get(&id)
    }

    pub fn all(&self) -> impl Iterator<Item = &SnapshotEntry> {
        self.entries.values()
    }

    /// Those that failed or were lost do not count.
    pub(super) fn usable(&self) -> usize {
        self.entries.len() - self.ended.len()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many of those that are listed failed or were lost.
    pub fn ended(&self) -> usize {
        self.ended.len()
    }

    pub fn on_node(&self, node: &NodeId) -> impl Iterator<Item = SnapshotId> {
        self.by_node.get(node).into_iter().flatten().copied()
    }

    /// Adds a snapshot that has no users yet.
    pub fn insert(&mut self, snapshot: Snapshot) {
        let id = snapshot.id;
        self.by_node.entry(snapshot.node.clone()).or_default().insert(id);
        if has_ended(snapshot.state) {
            self.ended.insert((snapshot.state_at, id));
        }
        self.entries.insert(id, SnapshotEntry { snapshot, users: BTreeSet::new(), missing_since: None });
        self.released.insert(id);
    }

    /// `sandbox` is to start from `id`.
    pub fn use_by(&mut self, id: SnapshotId, sandbox: SandboxId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.users.insert(sandbox);
        }
    }

    /// `sandbox` has started from `id`, or never will.
    pub fn release(&mut self, id: SnapshotId, sandbox: SandboxId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.users.remove(&sandbox);
            self.released.insert(id);
        }
    }

    pub(super) fn remove(&mut self, id: SnapshotId) -> Option<Snapshot> {
        let snapshot = self.entries.remove(&id)?.snapshot;
        self.ended.remove(&(snapshot.state_at, id));
        if let Some(here) = self.by_node.get_mut(&snapshot.node) {
            here.remove(&id);
            if here.is_empty() {
                self.by_node.remove(&snapshot.node);
            }
        }
        Some(snapshot)
    }
}

/// It is listed for people only: nothing of it is left on a node.
pub(crate) fn has_ended(state: SnapshotState) -> bool {
    match state {
        SnapshotState::Failed | SnapshotState::Lost => true,
        SnapshotState::Creating | SnapshotState::Ready | SnapshotState::Deleting => false,
    }
}
