//! A worker node as the control plane knows it.

use crate::ids::NodeId;
use crate::resources::Resources;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// registered, its first full list is awaited
    Joining,
    Ready,
    /// heartbeats are late: nothing new is placed here
    Suspect,
    Disconnected,
    /// given up: its sandboxes are lost
    Lost,
    Draining,
    Quarantined,
}

impl NodeState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Suspect => "suspect",
            Self::Disconnected => "disconnected",
            Self::Lost => "lost",
            Self::Draining => "draining",
            Self::Quarantined => "quarantined",
        }
    }
}

/// What a node says of itself when it registers, and what the scheduler adds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub state: NodeState,
    /// what sandboxes may take in all
    pub allocatable: Resources,
    /// what placed sandboxes and the preparation of templates take
    pub reserved: Resources,
    pub labels: BTreeMap<String, String>,
    /// failure domain; empty when the operator gave none
    pub zone: String,
    pub images: BTreeSet<String>,
    pub kernels: BTreeSet<String>,
    pub version: String,
    pub last_heartbeat: Timestamp,
    /// sandboxes that hold room here
    pub sandboxes: u64,
}
