//! Calls other than create, stop and delete: what they ask, what they are answered, and what is remembered of them so
//! that a repetition does nothing twice.

use pinfold_domain::{
    Millis, RequestId, Sandbox, SandboxId, Snapshot, SnapshotId, Template, TenantId, Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a call is answered with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answered {
    /// create, stop, delete, pause, resume
    Sandbox(Box<Sandbox>),
    /// in the order of their ids
    Forks {
        sandboxes: Vec<Sandbox>,
        snapshot_id: SnapshotId,
    },
    Snapshot(Box<Snapshot>),
    Template(Box<Template>),
}

/// What a fork begins from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForkSource {
    /// running: a snapshot is taken of it for this
    Sandbox(SandboxId),
    Snapshot(SnapshotId),
}

/// A fork as the caller sent it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkRequest {
    pub tenant: TenantId,
    pub request_id: RequestId,
    pub source: ForkSource,
    /// one for each fork, in rising order, minted by the driver
    pub sandbox_ids: Vec<SandboxId>,
    /// minted by the driver: the id of this fork, and of the snapshot that it needs when its source is a sandbox
    pub snapshot_id: SnapshotId,
    /// empty: the name of the source
    pub name: String,
    /// added to those of the source
    pub labels: BTreeMap<String, String>,
    /// `None`: that of the source
    pub ttl: Option<Millis>,
}

impl ForkRequest {
    /// The same as far as a caller chooses it.
    pub fn is_same_request(&self, other: &Self) -> bool {
        let chosen = |fork: &Self| (fork.source, fork.sandbox_ids.len(), fork.ttl);
        chosen(self) == chosen(other) && self.name == other.name && self.labels == other.labels
    }
}

/// What was asked and accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    Pause {
        sandbox_id: SandboxId,
    },
    Resume {
        sandbox_id: SandboxId,
    },
    Fork(Box<ForkRequest>),
    /// as it was when it was accepted
    CreateSnapshot(Box<Snapshot>),
    /// in its last state
    DeleteSnapshot(Box<Snapshot>),
    CreateTemplate(Box<Template>),
    DeleteTemplate(Box<Template>),
}

/// An operation, remembered for a while by its request id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    pub tenant: TenantId,
    pub request_id: RequestId,
    pub operation: Operation,
    /// dropped after this
    pub until: Timestamp,
}
