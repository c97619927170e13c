//! What the node has: sandboxes with their states, files of the guests, and the way to say something.

use super::{AgentConfig, AgentStats, GuestStats};
use pinfold_proto::api::v1 as api;
use pinfold_proto::node::v1 as wire;
use pinfold_proto::node::v1::session_request::Message;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};

pub struct Node {
    pub endpoint: String,
    pub config: AgentConfig,
    pub stats: watch::Sender<AgentStats>,
    pub guest: watch::Sender<GuestStats>,
    /// path -> content of what was written
    pub files: Mutex<BTreeMap<String, Vec<u8>>>,
    pub(super) sandboxes: Mutex<BTreeMap<String, wire::SandboxStatus>>,
    pub(super) snapshots: Mutex<BTreeMap<String, wire::SnapshotStatus>>,
    pub(super) templates: Mutex<BTreeMap<String, wire::TemplateStatus>>,
    session: Mutex<Option<mpsc::Sender<wire::SessionRequest>>>,
}

impl Node {
    pub fn new(endpoint: String, config: AgentConfig) -> Self {
        Self {
            endpoint,
            config,
            stats: watch::Sender::default(),
            guest: watch::Sender::default(),
            files: Mutex::default(),
            sandboxes: Mutex::default(),
            snapshots: Mutex::default(),
            templates: Mutex::default(),
            session: Mutex::default(),
        }
    }

    pub fn node_id(&self) -> &str {
        &self.config.register.node_id
    }

    pub fn statuses(&self) -> Vec<wire::SandboxStatus> {
        lock(&self.sandboxes).values().cloned().collect()
    }

    pub fn has(&self, sandbox_id: &str) -> bool {
        lock(&self.sandboxes).contains_key(sandbox_id)
    }

    pub fn wipe(&self) {
        lock(&self.sandboxes).clear();
        lock(&self.snapshots).clear();
        lock(&self.templates).clear();
    }

    pub fn set_session(&self, session: Option<mpsc::Sender<wire::SessionRequest>>) {
        *lock(&self.session) = session;
    }

    /// To the scheduler; false when there is no session, nobody at its other end, or no room.
    pub fn say(&self, message: Message) -> bool {
        let session = lock(&self.session);
        session
            .as_ref()
            .is_some_and(|session| session.try_send(wire::SessionRequest { message: Some(message) }).is_ok())
    }

    /// Takes a new assignment in, or repeats what is known of it.
    pub fn assign(&self, assign: &wire::Assign) -> bool {
        let mut sandboxes = lock(&self.sandboxes);
        if sandboxes.get(&assign.sandbox_id).is_some_and(|known| known.epoch >= assign.epoch) {
            return false;
        }
        let status = wire::SandboxStatus {
            sandbox_id: assign.sandbox_id.clone(),
            epoch: assign.epoch,
            sequence: 0,
            phase: api::Phase::Starting.into(),
            ..wire::SandboxStatus::default()
        };
        sandboxes.insert(assign.sandbox_id.clone(), status);
        true
    }

    pub fn forget(&self, sandbox_id: &str) {
        lock(&self.sandboxes).remove(sandbox_id);
    }

    /// Changes the phase of a sandbox and reports it.
    pub fn report(&self, sandbox_id: &str, phase: api::Phase, cause: Option<api::Cause>) {
        let status = {
            let mut sandboxes = lock(&self.sandboxes);
            let Some(status) = sandboxes.get_mut(sandbox_id) else { return };
            status.sequence += 1;
            status.phase = phase.into();
            status.cause = cause;
            let reached = |milestone: api::Milestone, since_assignment_us| wire::MilestoneReached {
                milestone: milestone.into(),
                since_assignment_us,
            };
            if phase == api::Phase::Running {
                status.milestones = vec![
                    reached(api::Milestone::Jailed, 1_000),
                    reached(api::Milestone::Booted, 2_000),
                    reached(api::Milestone::GuestReady, 3_000),
                ];
            }
            status.clone()
        };
        let _ = self.say(Message::Status(status));
    }
}

/// A test that panicked while it held the lock has failed already.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
