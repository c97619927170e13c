//! A sandbox as it is stored, with its assignment to a node.

use crate::ids::{Epoch, NodeId, RequestId, Revision, SandboxId, TemplateId, TenantId};
use crate::lifecycle::Phase;
use crate::placement::Explanation;
use crate::reason::Cause;
use crate::resources::Resources;
use crate::spec::SandboxSpec;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A point in a sandbox's life that the timeline shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Milestone {
    /// stored by the scheduler
    Accepted,
    /// a node was chosen
    Placed,
    /// the VMM process exists inside its jail
    Jailed,
    /// the first guest instruction is about to run
    Booted,
    /// the guest's agent serves
    GuestReady,
    /// the first byte of output of the first command
    FirstByte,
    /// nothing of it is left on the node
    Stopped,
    /// a machine that was saved is in place again: its first instruction is about to run
    Restored,
    /// the guest that was restored has its name, its clock and randomness of its own; its workload goes on
    Woken,
}

impl Milestone {
    pub const ALL: [Self; 9] = [
        Self::Accepted,
        Self::Placed,
        Self::Jailed,
        Self::Booted,
        Self::GuestReady,
        Self::FirstByte,
        Self::Stopped,
        Self::Restored,
        Self::Woken,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Placed => "placed",
            Self::Jailed => "jailed",
            Self::Booted => "booted",
            Self::Restored => "restored",
            Self::Woken => "woken",
            Self::GuestReady => "guest_ready",
            Self::FirstByte => "first_byte",
            Self::Stopped => "stopped",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEntry {
    pub milestone: Milestone,
    /// by the scheduler's clock; what a node reports is added to the time of the assignment, so that the node's own
    /// clock does not matter
    pub at: Timestamp,
}

/// What the source of a sandbox gave to it, kept because the source may be gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub template: Option<TemplateId>,
    /// the spec's own goes over it
    pub environment: BTreeMap<String, String>,
}

/// Everything that the control plane keeps of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    pub id: SandboxId,
    pub tenant: TenantId,
    pub request_id: RequestId,
    pub spec: SandboxSpec,
    pub phase: Phase,
    /// why it is in this phase: always there when the phase is Stopping, Stopped, Failed or Lost
    pub cause: Option<Cause>,
    pub node: Option<NodeId>,
    pub epoch: Epoch,
    pub revision: Revision,
    pub created_at: Timestamp,
    /// when the phase last changed
    pub phase_at: Timestamp,
    /// when the time to live ends
    pub expires_at: Option<Timestamp>,
    /// in order of time, each milestone at most once
    pub timeline: Vec<TimelineEntry>,
    /// the last placement decision
    pub explanation: Option<Explanation>,
    /// of a sandbox that was not made from an image alone
    #[serde(default)]
    pub origin: Option<Origin>,
    /// counts pauses and resumes: what a node reports from before the last of them is of an old state
    #[serde(default)]
    pub order: u64,
    /// what it holds on its node, where that is not what its spec says; see [`Sandbox::held`]
    #[serde(default)]
    pub held: Option<Resources>,
    /// assignments that a node refused for want of room: they do not count as attempts
    #[serde(default)]
    pub refused_for_room: u64,
}

impl Sandbox {
    /// The room that it takes on its node. A sandbox that was paused has its memory in a file on the node's disk: paused
    /// it holds disk only, resumed it holds that file beside everything else, for its memory is mapped from there.
    pub fn held(&self) -> Resources {
        self.held.unwrap_or(self.spec.resources)
    }

    /// The spec as its node is told it: with the environment of its source.
    pub fn effective_spec(&self) -> SandboxSpec {
        let mut spec = self.spec.clone();
        if let Some(origin) = &self.origin {
            let mut environment = origin.environment.clone();
            environment.append(&mut spec.environment);
            spec.environment = environment;
        }
        spec
    }
}
