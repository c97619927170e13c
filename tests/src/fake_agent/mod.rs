//! A node agent without a node: it speaks `pinfold.node.v1` over real gRPC, takes assignments, reports, and answers
//! relays with a guest that lives in this process ([`guest`]).
//!
//! It keeps what it was assigned across sessions, as a real node does, and dials again when its session ends.

mod guest;
mod node;
mod saved;
mod session;

pub use guest::GuestStats;

use node::Node;
use pinfold_proto::api::v1 as api;
use pinfold_proto::node::v1 as wire;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What it does with an assignment.
#[derive(Debug, Clone, Default)]
pub enum OnAssign {
    /// reports Starting, then Running
    #[default]
    Run,
    /// reports Starting and nothing more
    Start,
    /// says nothing
    Ignore,
    Refuse(api::Cause),
    /// reports Failed with this
    Fail(api::Cause),
}

/// What it does when it is to pause, resume, take a snapshot or prepare a template.
#[derive(Debug, Clone, Default)]
pub enum OnSave {
    /// it is done at once
    #[default]
    Done,
    /// it is begun and goes on for ever
    Begin,
    Fail(api::Cause),
}

#[derive(Debug, Clone)]
pub struct AgentConfig {
    pub register: wire::Register,
    pub on_assign: OnAssign,
    pub on_save: OnSave,
    /// dials in when it is asked for a stream
    pub answers_relays: bool,
    /// says this on relays instead of its own name
    pub relay_as: Option<String>,
    /// never reads what the scheduler says after it has registered
    pub deaf: bool,
}

impl AgentConfig {
    /// A node of 8 CPUs, 16 GiB of memory, 100 GiB of disk, with the image `base`.
    pub fn new(node_id: &str) -> Self {
        let register = wire::Register {
            node_id: node_id.to_owned(),
            agent_version: "fake".to_owned(),
            allocatable: Some(api::Resources {
                cpu_millis: 8000,
                memory_bytes: 16 << 30,
                disk_bytes: 100 << 30,
                pids: 100_000,
            }),
            images: vec!["base".to_owned()],
            kernels: vec!["own".to_owned()],
            ..wire::Register::default()
        };
        Self {
            register,
            on_assign: OnAssign::Run,
            on_save: OnSave::Done,
            answers_relays: true,
            relay_as: None,
            deaf: false,
        }
    }
}

/// What a test can see of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentStats {
    /// sessions that were registered
    pub sessions: u64,
    /// sessions that ended, with the message of the last end
    pub ended: u64,
    pub last_end: String,
    /// of the last command
    pub term: u64,
    pub assigned: u64,
    pub stopped: u64,
    pub forgotten: u64,
    /// assignments that named a template which is prepared here
    pub restored: u64,
}

pub struct FakeAgent {
    node: Arc<Node>,
    task: JoinHandle<()>,
}

impl FakeAgent {
    /// Begins to dial; see [`FakeAgent::registered`].
    pub fn start(endpoint: &str, config: AgentConfig) -> Self {
        let node = Arc::new(Node::new(endpoint.to_owned(), config));
        let task = tokio::spawn(session::run(Arc::clone(&node)));
        Self { node, task }
    }

    /// A running node with the defaults.
    pub async fn join(endpoint: &str, node_id: &str) -> Self {
        let agent = Self::start(endpoint, AgentConfig::new(node_id));
        agent.registered(1).await;
        agent
    }

    pub fn stats(&self) -> watch::Receiver<AgentStats> {
        self.node.stats.subscribe()
    }

    /// What its guest has seen.
    pub fn guest(&self) -> watch::Receiver<GuestStats> {
        self.node.guest.subscribe()
    }

    /// Waits for the given number of sessions.
    pub async fn registered(&self, sessions: u64) {
        self.until("a session", |stats| stats.sessions >= sessions).await;
    }

    /// Waits until `done` is true of the agent.
    pub async fn until(&self, what: &str, done: impl FnMut(&AgentStats) -> bool) -> AgentStats {
        let mut stats = self.stats();
        crate::harness::soon(what, stats.wait_for(done)).await.expect("the agent lives").clone()
    }

    /// Waits until `done` is true of the guest.
    pub async fn until_guest(&self, what: &str, done: impl FnMut(&GuestStats) -> bool) -> GuestStats {
        let mut stats = self.guest();
        crate::harness::soon(what, stats.wait_for(done)).await.expect("the agent lives").clone()
    }

    /// Sandboxes that live there.
    pub fn sandboxes(&self) -> Vec<wire::SandboxStatus> {
        self.node.statuses()
    }

    /// Snapshots that lie there.
    pub fn snapshots(&self) -> Vec<wire::SnapshotStatus> {
        self.node.snapshots()
    }

    /// What it has of templates.
    pub fn templates(&self) -> Vec<wire::TemplateStatus> {
        self.node.templates()
    }

    /// Reports that a sandbox failed, as when its VMM dies.
    pub fn fail(&self, sandbox_id: &str, cause: api::Cause) {
        self.node.report(sandbox_id, api::Phase::Failed, Some(cause));
    }

    /// Forgets everything, as a node that was made anew.
    pub fn wipe(&self) {
        self.node.wipe();
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Between attempts to dial.
const REDIAL: Duration = Duration::from_millis(20);
