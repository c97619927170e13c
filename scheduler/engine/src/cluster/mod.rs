//! The fleet as the engine sees it: soft state, rebuilt from what nodes say.

pub(crate) mod liveness;
pub(crate) mod node;
pub(crate) mod reservation;

use crate::event::SessionId;
use node::NodeEntry;
use pinfold_domain::{Millis, NodeId, NodeState, Resources, SandboxId, Timestamp};
use reservation::Reservation;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A state of the fleet: views of it compare theirs with the cluster's. The default is older than any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    /// counts removals of nodes
    removals: u64,
    /// counts changes of nodes
    changes: u64,
}

/// Whoever gets a node to change it marks it as changed: no change is missed by a view.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    nodes: BTreeMap<NodeId, NodeEntry>,
    version: Version,
    /// each node once, by the number of its last change
    by_change: BTreeMap<u64, NodeId>,
    last_change: BTreeMap<NodeId, u64>,
    /// nodes that may have more room than when the queue last looked
    woken: BTreeSet<NodeId>,
    /// when nodes were given up, in the last while
    losses: VecDeque<Timestamp>,
}

impl Cluster {
    pub fn get(&self, id: &NodeId) -> Option<&NodeEntry> {
        self.nodes.get(id)
    }

    pub fn get_mut(&mut self, id: &NodeId) -> Option<&mut NodeEntry> {
        if self.nodes.contains_key(id) {
            self.mark(id);
        }
        self.nodes.get_mut(id)
    }

    /// The node, if `session` is the one that it speaks by now.
    pub fn in_session(&mut self, id: &NodeId, session: SessionId) -> Option<&mut NodeEntry> {
        if self.nodes.get(id)?.session != Some(session) {
            return None;
        }
        self.get_mut(id)
    }

    pub fn is_in_session(&self, id: &NodeId, session: SessionId) -> bool {
        self.nodes.get(id).is_some_and(|entry| entry.session == Some(session))
    }

    /// The node, known or from now on awaited.
    pub fn entry(&mut self, id: &NodeId, now: Timestamp) -> &mut NodeEntry {
        self.mark(id);
        self.nodes.entry(id.clone()).or_insert_with(|| NodeEntry::awaited(id.clone(), now))
    }

    pub fn remove(&mut self, id: &NodeId) {
        self.nodes.remove(id);
        self.woken.remove(id);
        self.version.removals += 1;
        if let Some(change) = self.last_change.remove(id) {
            self.by_change.remove(&change);
        }
    }

    fn mark(&mut self, id: &NodeId) {
        self.version.changes += 1;
        let change = self.version.changes;
        if let Some(old) = self.last_change.insert(id.clone(), change) {
            self.by_change.remove(&old);
        }
        self.by_change.insert(change, id.clone());
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// Nodes that changed after `seen`; `None` when nodes were removed since, so that all have to be looked at.
    pub fn changed_since(&self, seen: Version) -> Option<impl Iterator<Item = &NodeEntry>> {
        let changed = self.by_change.range(seen.changes + 1..);
        (seen.removals == self.version.removals).then(|| changed.filter_map(|(_, id)| self.nodes.get(id)))
    }

    /// All nodes, those only awaited too.
    pub fn all(&self) -> impl Iterator<Item = &NodeEntry> {
        self.nodes.values()
    }

    /// Nodes that have registered: the fleet as others see it.
    pub fn registered(&self) -> impl Iterator<Item = &NodeEntry> {
        self.nodes.values().filter(|entry| entry.registered)
    }

    /// Nodes that count when it is asked whether a sandbox could ever be placed.
    pub fn not_lost(&self) -> impl Iterator<Item = &NodeEntry> {
        self.registered().filter(|entry| entry.node.state != NodeState::Lost)
    }

    pub fn reserve(&mut self, node: &NodeId, id: SandboxId, reservation: Reservation) {
        if let Some(entry) = self.get_mut(node) {
            entry.reserve(id, reservation);
        }
    }

    /// Gives the room of `id` back and lets the queue look at the node again.
    pub fn release(&mut self, node: &NodeId, id: SandboxId) {
        if self.get_mut(node).and_then(|entry| entry.release(id)).is_some() {
            self.wake(node);
        }
    }

    /// Changes what `id` takes; when it takes less the queue looks at the node again.
    pub fn resize(&mut self, node: &NodeId, id: SandboxId, resources: Resources) {
        let Some(entry) = self.get_mut(node) else { return };
        let before = entry.node.reserved;
        entry.resize(id, resources);
        if before.first_excess(&entry.node.reserved).is_some() {
            self.wake(node);
        }
    }

    /// What is known of a reservation; its amounts are not to be changed.
    pub fn reservation(&mut self, node: &NodeId, id: SandboxId) -> Option<&mut Reservation> {
        self.nodes.get_mut(node)?.reservations.get_mut(&id)
    }

    /// Remembers a loss, and those before it that are younger than `span`.
    pub fn note_loss(&mut self, now: Timestamp, span: Millis) {
        self.losses.retain(|at| now.since(*at) < span);
        self.losses.push_back(now);
    }

    /// In order of time; some may be older than what counts.
    pub fn losses(&self) -> &VecDeque<Timestamp> {
        &self.losses
    }

    pub fn wake(&mut self, node: &NodeId) {
        self.woken.insert(node.clone());
    }

    pub fn woken(&self) -> &BTreeSet<NodeId> {
        &self.woken
    }

    pub fn clear_woken(&mut self) {
        self.woken.clear();
    }
}
