//! All that can ever happen to the engine, and all that it can ever ask for: two closed enums of plain data.
//!
//! Whoever drives the engine keeps one rule: **every [`Effect::Persist`] of a step is durable before any other effect of
//! that step is carried out, and steps are carried out in their order.** From it follow "acknowledged means stored" and
//! "a node never hears of an epoch that the store does not know". The effects of a step are ordered so already: changes
//! come first. Several steps may share one commit. When a change cannot be stored, the engine is ahead of the store: drop
//! it and build a new one with [`crate::Engine::restore`].

mod operation;

pub use operation::{Answered, ForkRequest, ForkSource, Operation, OperationRecord};

use pinfold_domain::{
    Cause, Epoch, Explanation, Milestone, Millis, NodeId, Phase, RequestId, Resources, Revision, Sandbox,
    SandboxId, SandboxSpec, Snapshot, SnapshotId, SnapshotReport, Template, TemplateId, TemplateReport,
    TenantId, Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A call that waits for an answer; the driver's number, of no meaning to the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CallId(pub u64);

/// One stream of one node. The driver numbers streams in the order in which they were opened and never uses a number
/// twice in the life of an engine, so that a late registration on an older stream is told from a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub u64);

/// What a node says of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    pub sandbox_id: SandboxId,
    pub epoch: Epoch,
    /// grows with each change of this sandbox on this node; an older one is ignored
    pub sequence: u64,
    /// Starting, Running, Pausing, Paused, Resuming, Stopping, Stopped or Failed; a report of another phase is ignored
    pub phase: Phase,
    pub cause: Option<Cause>,
    /// microseconds since the assignment reached the node, by its monotonic clock
    pub milestones: Vec<(Milestone, u64)>,
    /// the highest order that the node has taken up for this epoch
    pub order: u64,
}

/// What a node says of itself when its session begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRegistration {
    pub id: NodeId,
    pub session: SessionId,
    pub version: String,
    /// what sandboxes may take in all
    pub allocatable: Resources,
    pub labels: BTreeMap<String, String>,
    pub zone: String,
    pub images: BTreeSet<String>,
    pub kernels: BTreeSet<String>,
    /// everything that lives there, as in a heartbeat
    pub statuses: Vec<NodeReport>,
    pub snapshots: Vec<SnapshotReport>,
    pub templates: Vec<TemplateReport>,
}

/// Something that happened. The driver passes it with the time at which it saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A caller wants a sandbox. The spec was validated. Answered.
    Create {
        call: CallId,
        tenant: TenantId,
        request_id: RequestId,
        /// minted by the driver; not used when the request turns out to be a repetition
        sandbox_id: SandboxId,
        spec: Box<SandboxSpec>,
    },
    /// A caller wants an end, gently within `grace`. Answered with the sandbox as it is then. May be repeated.
    Stop { call: CallId, request_id: RequestId, sandbox_id: SandboxId, grace: Millis },
    /// A caller wants it gone: it is stopped first if need be and then removed. Answered with its last state. May be
    /// repeated.
    Delete { call: CallId, request_id: RequestId, sandbox_id: SandboxId },
    /// A caller wants memory and CPU of a running sandbox given back. Answered when it is Pausing. May be repeated.
    Pause { call: CallId, request_id: RequestId, sandbox_id: SandboxId },
    /// A caller wants a paused sandbox back. Answered when its room is reserved. May be repeated.
    Resume { call: CallId, request_id: RequestId, sandbox_id: SandboxId },
    /// A caller wants sandboxes made from what another one is now. Answered with all of them.
    Fork { call: CallId, fork: Box<ForkRequest> },
    /// A caller wants a running sandbox saved. Answered when it is Creating.
    CreateSnapshot {
        call: CallId,
        tenant: TenantId,
        request_id: RequestId,
        /// minted by the driver; not used when the request turns out to be a repetition
        snapshot_id: SnapshotId,
        sandbox_id: SandboxId,
        name: String,
    },
    /// A caller wants a snapshot gone. Answered with its last state. May be repeated.
    DeleteSnapshot { call: CallId, tenant: TenantId, request_id: RequestId, snapshot_id: SnapshotId },
    /// A caller wants a template. It was validated; its time is set here. Answered.
    CreateTemplate { call: CallId, template: Box<Template> },
    /// A caller wants a template gone. Answered with its last state. May be repeated.
    DeleteTemplate { call: CallId, tenant: TenantId, request_id: RequestId, name: String },
    /// A node's session began. It replaces an older session of the node; if the node has a newer one it is closed.
    NodeJoined { node: Box<NodeRegistration> },
    /// The full list of what lives on a node. It is authoritative.
    Heartbeat {
        node: NodeId,
        session: SessionId,
        statuses: Vec<NodeReport>,
        snapshots: Vec<SnapshotReport>,
        templates: Vec<TemplateReport>,
    },
    /// A change of one sandbox, sent at once.
    Report { node: NodeId, session: SessionId, status: NodeReport },
    /// A change of one snapshot, sent at once.
    SnapshotReported { node: NodeId, session: SessionId, status: SnapshotReport },
    /// A change of one template on one node, sent at once.
    TemplateReported { node: NodeId, session: SessionId, status: TemplateReport },
    /// A node will not take an assignment.
    Refused { node: NodeId, session: SessionId, sandbox_id: SandboxId, epoch: Epoch, cause: Cause },
    /// The stream of a session ended.
    NodeGone { node: NodeId, session: SessionId },
    /// The first byte of output of the first command passed the scheduler.
    FirstByte { sandbox_id: SandboxId, epoch: Epoch },
    /// Time passed. Due when [`crate::Engine::next_deadline`] says so; harmless at any other time.
    Tick,
}

/// What is remembered of a create after its sandbox was removed, so that a late repetition finds the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// the sandbox in its last state; holds tenant, request id and spec
    pub sandbox: Box<Sandbox>,
    /// dropped after this
    pub until: Timestamp,
}

/// A change of the stored state. Puts replace whole records; all are idempotent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// New or changed; key: `sandbox.id`; `sandbox.revision` is the revision of this change.
    PutSandbox(Box<Sandbox>),
    /// Removed; `sandbox` is its last state and carries the revision of the removal.
    DeleteSandbox {
        sandbox: Box<Sandbox>,
    },
    /// Key: tenant and request id of `record.sandbox`. Has no revision of its own.
    PutRequest(RequestRecord),
    /// Has no revision of its own.
    DropRequest {
        tenant: TenantId,
        request_id: RequestId,
    },
    /// Key: `snapshot.id`. This and all below have no revision.
    PutSnapshot(Box<Snapshot>),
    DeleteSnapshot {
        id: SnapshotId,
    },
    /// Key: `template.id`.
    PutTemplate(Box<Template>),
    DeleteTemplate {
        id: TemplateId,
    },
    /// Key: tenant and request id.
    PutOperation(Box<OperationRecord>),
    DropOperation {
        tenant: TenantId,
        request_id: RequestId,
    },
}

/// A call that was turned down. Nothing was stored for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    pub cause: Cause,
    /// for `Unplaceable` and `ImageUnknown`: nodes per filter
    pub explanation: Option<Explanation>,
}

/// Something to be done by the driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Make it durable before all other effects of this step.
    Persist(Change),
    /// Exactly one for each event with a `call`, in the step of that event.
    Answer { call: CallId, result: Result<Answered, Rejection> },
    /// Tell the node to bring `sandbox` up under `sandbox.epoch`. May be repeated with the same epoch.
    Assign {
        node: NodeId,
        session: SessionId,
        sandbox: Box<Sandbox>,
        /// time to live that is left
        ttl_left: Millis,
    },
    /// Tell the node to end it. May be repeated.
    StopOnNode {
        node: NodeId,
        session: SessionId,
        sandbox_id: SandboxId,
        epoch: Epoch,
        cause: Cause,
        grace: Millis,
    },
    /// Tell the node to save it and give its room back. May be repeated with the same order.
    PauseOnNode { node: NodeId, session: SessionId, sandbox_id: SandboxId, epoch: Epoch, order: u64 },
    /// Tell the node to bring it back. May be repeated with the same order.
    ResumeOnNode { node: NodeId, session: SessionId, sandbox_id: SandboxId, epoch: Epoch, order: u64 },
    /// Tell the node to save a sandbox and let it go on. May be repeated.
    TakeSnapshot {
        node: NodeId,
        session: SessionId,
        snapshot_id: SnapshotId,
        sandbox_id: SandboxId,
        epoch: Epoch,
    },
    /// The node is to drop what it has of it. May be repeated.
    DropSnapshot { node: NodeId, session: SessionId, snapshot_id: SnapshotId },
    /// Tell the node to boot and save it. May be repeated.
    PrepareTemplate { node: NodeId, session: SessionId, template: Box<Template> },
    /// The node is to drop what it has of it. May be repeated.
    DropTemplate { node: NodeId, session: SessionId, template_id: TemplateId },
    /// The end is stored: the node may drop its record.
    Forget { node: NodeId, session: SessionId, sandbox_id: SandboxId, epoch: Epoch },
    /// End the stream; the engine ignores what it still says.
    CloseSession { node: NodeId, session: SessionId, why: String },
}

/// What the store holds, read back at the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredState {
    pub sandboxes: Vec<Sandbox>,
    pub requests: Vec<RequestRecord>,
    pub snapshots: Vec<Snapshot>,
    pub templates: Vec<Template>,
    pub operations: Vec<OperationRecord>,
    /// the highest revision ever stored, of removals too
    pub revision: Revision,
}
