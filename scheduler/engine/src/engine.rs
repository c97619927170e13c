//! The function: one event in, effects out. One match, no logic.

use crate::admission::{self, Wanted};
use crate::cluster::liveness::{self, NodeList};
use crate::config::EngineConfig;
use crate::event::{Effect, Event, StoredState};
use crate::snapshots::{self, WantedSnapshot};
use crate::state::State;
use crate::templates::{self, TemplateStatus};
use crate::{assignment, fork, invariants, lifetimes, origin, placement, reconcile, restore, suspension};
use pinfold_domain::{
    Explanation, Node, NodeId, Revision, Sandbox, SandboxId, Snapshot, SnapshotId, TenantId, Timestamp,
};

/// The scheduler's whole mind. It has no clock, no socket, no task and no randomness of its own.
#[derive(Debug)]
pub struct Engine {
    state: State,
}

impl Engine {
    /// An engine that knows nothing yet.
    pub fn new(config: EngineConfig) -> Self {
        Self::restore(config, Timestamp::default(), StoredState::default())
    }

    /// An engine that continues from what was stored. Nodes are unknown until they register; their sandboxes wait for
    /// them for `lost_after`.
    pub fn restore(config: EngineConfig, now: Timestamp, stored: StoredState) -> Self {
        Self { state: restore::restore(config, now, stored) }
    }

    /// Takes `event` in, which was seen at `now`, and says what is to be done, changes first. Time never goes
    /// back: when the clock behind `now` was set back, the engine's goes on from where it was.
    ///
    /// # Panics
    ///
    /// With `check_invariants`, when an invariant does not hold: a fault of the engine.
    pub fn step(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        let state = &mut self.state;
        let before = state.revision;
        lifetimes::pass_time(state, now);
        take(state, event);
        lifetimes::run_due(state);
        assignment::drain(state);
        templates::tend(state);
        snapshots::sweep(state);
        lifetimes::trim(state);
        let effects = state.flush();
        if state.config.check_invariants
            && let Err(broken) = invariants::check(state, before)
        {
            panic!("invariant of the engine: {broken}");
        }
        effects
    }

    /// When the next [`Event::Tick`] is due, unless another event comes before; a time that has passed means now. As long as
    /// anything can become due that is at most a second from the last step: an engine that is stepped late takes it that
    /// the driver stood still, and judges nobody by the silence of that time.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        lifetimes::next_step(&self.state)
    }

    /// The revision of the last change.
    pub fn revision(&self) -> Revision {
        self.state.revision
    }

    pub fn sandbox(&self, id: SandboxId) -> Option<&Sandbox> {
        self.state.sandbox(id)
    }

    /// In the order of their ids, which is the order of their creation.
    pub fn sandboxes(&self) -> impl Iterator<Item = &Sandbox> {
        self.state.sandboxes.values().map(|entry| &entry.sandbox)
    }

    /// The nodes in the order of their names, with what is taken on them by sandboxes and by the preparation of templates.
    pub fn nodes(&self) -> impl Iterator<Item = Node> {
        self.state.cluster.registered().map(|entry| Node { reserved: entry.taken(), ..entry.node.clone() })
    }

    pub fn node(&self, id: &NodeId) -> Option<Node> {
        let entry = self.state.cluster.get(id).filter(|entry| entry.registered)?;
        Some(Node { reserved: entry.taken(), ..entry.node.clone() })
    }

    /// How many sandboxes wait for room.
    pub fn queue_length(&self) -> usize {
        self.state.queue.len()
    }

    /// Why `id` waits, by the fleet of this moment; `None` when it does not wait.
    pub fn explain(&self, id: SandboxId) -> Option<Explanation> {
        if !self.state.queue.contains(id) {
            return None;
        }
        let requirement = assignment::requirement(&self.state, id)?;
        let policy = self.state.config.placement;
        let explanation = placement::scan(&self.state.cluster, policy, &requirement).explanation;
        Some(origin::with_note(&self.state, id, None, explanation))
    }

    pub fn snapshot(&self, id: SnapshotId) -> Option<&Snapshot> {
        self.state.snapshots.get(id).map(|entry| &entry.snapshot)
    }

    /// In the order of their ids, which is the order of their creation.
    pub fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        self.state.snapshots.all().map(|entry| &entry.snapshot)
    }

    /// At most `limit` templates of a tenant by their names, behind `after`, with how far the fleet is with each.
    pub fn templates(&self, tenant: &TenantId, after: Option<&str>, limit: usize) -> Vec<TemplateStatus> {
        templates::page(&self.state, tenant, after, limit)
    }

    pub fn template(&self, tenant: &TenantId, name: &str) -> Option<TemplateStatus> {
        self.state.templates.named(tenant, name).map(|template| templates::status(&self.state, template))
    }
}

/// One event to whom it concerns.
fn take(state: &mut State, event: Event) {
    match event {
        Event::Create { call, tenant, request_id, sandbox_id, spec } => {
            admission::create(state, call, Wanted { tenant, request_id, sandbox_id, spec: *spec });
        }
        Event::Stop { call, request_id: _, sandbox_id, grace } => {
            admission::stop(state, call, sandbox_id, grace);
        }
        Event::Delete { call, request_id: _, sandbox_id } => admission::delete(state, call, sandbox_id),
        Event::Pause { call, request_id, sandbox_id } => {
            suspension::pause(state, call, request_id, sandbox_id)
        }
        Event::Resume { call, request_id, sandbox_id } => {
            suspension::resume(state, call, request_id, sandbox_id);
        }
        Event::Fork { call, fork: wanted } => fork::fork(state, call, *wanted),
        Event::CreateSnapshot { call, tenant, request_id, snapshot_id: id, sandbox_id: sandbox, name } => {
            let wanted = WantedSnapshot { tenant, request_id, id, sandbox, name, ephemeral: false };
            snapshots::create(state, call, wanted);
        }
        Event::DeleteSnapshot { call, tenant, request_id, snapshot_id } => {
            snapshots::delete(state, call, tenant, request_id, snapshot_id);
        }
        Event::CreateTemplate { call, template } => templates::create(state, call, *template),
        Event::DeleteTemplate { call, tenant, request_id, name } => {
            templates::delete(state, call, tenant, request_id, &name);
        }
        Event::NodeJoined { node } => liveness::joined(state, *node),
        Event::Heartbeat { node, session, statuses, snapshots, templates } => {
            liveness::heartbeat(state, &node, session, NodeList { statuses, snapshots, templates });
        }
        Event::Report { node, session, status } => reconcile::report(state, &node, session, status),
        Event::SnapshotReported { node, session, status } => snapshots::report(state, &node, session, status),
        Event::TemplateReported { node, session, status } => templates::report(state, &node, session, status),
        Event::Refused { node, session, sandbox_id, epoch, cause } => {
            assignment::refused(state, &node, session, sandbox_id, epoch, cause);
        }
        Event::NodeGone { node, session } => liveness::gone(state, &node, session),
        Event::FirstByte { sandbox_id, epoch } => reconcile::first_byte(state, sandbox_id, epoch),
        Event::Tick => {}
    }
}

#[cfg(test)]
mod tests;
