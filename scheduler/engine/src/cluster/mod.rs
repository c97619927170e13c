//! The fleet as the engine sees it: soft state, rebuilt from what nodes say.

pub(crate) mod liveness;
pub(crate) mod node;
pub(crate) mod reservation;

use crate::event::SessionId;
use node::NodeEntry;
use pinfold_domain::{NodeId, NodeState, SandboxId, Timestamp};
use reservation::Reservation;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(crate) struct Cluster {
    nodes: BTreeMap<NodeId, NodeEntry>,
    /// nodes that may have more room than when the queue last looked
    woken: BTreeSet<NodeId>,
}

impl Cluster {
    pub fn get(&self, id: &NodeId) -> Option<&NodeEntry> {
        self.nodes.get(id)
    }

    pub fn get_mut(&mut self, id: &NodeId) -> Option<&mut NodeEntry> {
        self.nodes.get_mut(id)
    }

    /// The node, if `session` is the one that it speaks by now.
    pub fn in_session(&mut self, id: &NodeId, session: SessionId) -> Option<&mut NodeEntry> {
        self.nodes.get_mut(id).filter(|entry| entry.session == Some(session))
    }

    /// The node, known or from now on awaited.
    pub fn entry(&mut self, id: &NodeId, now: Timestamp) -> &mut NodeEntry {
        self.nodes.entry(id.clone()).or_insert_with(|| NodeEntry::awaited(id.clone(), now))
    }

    pub fn remove(&mut self, id: &NodeId) {
        self.nodes.remove(id);
        self.woken.remove(id);
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
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.reserve(id, reservation);
        }
    }

    /// Gives the room of `id` back and lets the queue look at the node again.
    pub fn release(&mut self, node: &NodeId, id: SandboxId) {
        if self.nodes.get_mut(node).and_then(|entry| entry.release(id)).is_some() {
            self.wake(node);
        }
    }

    pub fn reservation(&mut self, node: &NodeId, id: SandboxId) -> Option<&mut Reservation> {
        self.nodes.get_mut(node)?.reservations.get_mut(&id)
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
