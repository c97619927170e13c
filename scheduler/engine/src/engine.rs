//! The function: one event in, effects out.

use crate::config::EngineConfig;
use crate::event::{Effect, Event, StoredState};
use pinfold_domain::{Explanation, Node, NodeId, Revision, Sandbox, SandboxId, Timestamp};

/// The scheduler's whole mind. It has no clock, no socket, no task and no randomness of its own.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    now: Timestamp,
    stored: StoredState,
}

impl Engine {
    /// An engine that knows nothing yet.
    pub fn new(config: EngineConfig) -> Self {
        Self::restore(config, Timestamp::default(), StoredState::default())
    }

    /// An engine that continues from what was stored. Nodes are unknown until they register; their sandboxes wait for
    /// them for `lost_after`.
    pub fn restore(config: EngineConfig, now: Timestamp, stored: StoredState) -> Self {
        Self { config, now, stored }
    }

    /// Takes `event` in, which was seen at `now`, and says what is to be done, changes first. Time never goes back: an
    /// earlier `now` than the last one counts as the last one.
    pub fn step(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        self.now = self.now.max(now);
        let _ = (event, &self.config);
        Vec::new()
    }

    /// When the next [`Event::Tick`] is due; a time that has passed means now.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        None
    }

    /// The revision of the last change.
    pub fn revision(&self) -> Revision {
        self.stored.revision
    }

    pub fn sandbox(&self, id: SandboxId) -> Option<&Sandbox> {
        self.stored.sandboxes.iter().find(|s| s.id == id)
    }

    /// In the order of their ids, which is the order of their creation.
    pub fn sandboxes(&self) -> impl Iterator<Item = &Sandbox> {
        self.stored.sandboxes.iter()
    }

    /// The nodes in the order of their names, with what is reserved on them.
    pub fn nodes(&self) -> impl Iterator<Item = Node> {
        std::iter::empty()
    }

    pub fn node(&self, _id: &NodeId) -> Option<Node> {
        None
    }

    /// How many sandboxes wait for room.
    pub fn queue_length(&self) -> usize {
        0
    }

    /// Why `id` waits, by the fleet of this moment; `None` when it does not wait.
    pub fn explain(&self, _id: SandboxId) -> Option<Explanation> {
        None
    }
}
