//! A sandbox's machine and disk of one instant, kept on the node where they were taken.
//!
//! ```text
//!               ready               delete               gone
//!   Creating ----------> Ready ----------------> Deleting ------> (removed)
//!    | | |                 |                        ^
//!    | | |  delete         |  lose                  |
//!    | | +-----------------|------------------------+
//!    | |    lose           v
//!    | +---------------> Lost ---------- deleted, or after a while --> (removed)
//!    +--- fail --------> Failed -------- the same
//! ```
//!
//! A snapshot is never changed once it is Ready, and what a node says of an earlier state is never believed. There is no
//! wildcard arm below that decides.

use crate::ids::{NodeId, RequestId, SandboxId, SnapshotId, TenantId};
use crate::reason::Cause;
use crate::spec::SandboxSpec;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// the node was told to take it
    Creating,
    /// sandboxes can be made from it
    Ready,
    /// it could not be taken
    Failed,
    /// the node was told to drop it
    Deleting,
    /// its node was given up, or no longer has it
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotTransition {
    Ready,
    Fail,
    Lose,
    Delete,
}

impl SnapshotState {
    pub const ALL: [Self; 5] = [Self::Creating, Self::Ready, Self::Failed, Self::Deleting, Self::Lost];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
            Self::Lost => "lost",
        }
    }

    /// Nothing can be made from it any more.
    pub fn is_over(self) -> bool {
        match self {
            Self::Creating | Self::Ready => false,
            Self::Failed | Self::Deleting | Self::Lost => true,
        }
    }

    /// The state after `transition`; `None` where the drawing has no such way.
    pub fn next(self, transition: SnapshotTransition) -> Option<Self> {
        use SnapshotTransition as T;
        match (self, transition) {
            (Self::Creating, T::Ready) => Some(Self::Ready),
            (Self::Creating, T::Fail) => Some(Self::Failed),
            (Self::Creating | Self::Ready, T::Lose) => Some(Self::Lost),
            (Self::Creating | Self::Ready, T::Delete) => Some(Self::Deleting),
            (Self::Ready, T::Ready | T::Fail)
            | (Self::Failed | Self::Lost | Self::Deleting, T::Ready | T::Fail | T::Lose | T::Delete) => None,
        }
    }
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Bytes of data, as they lie on the node's disk; holes are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSizes {
    pub state_bytes: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

/// Everything that the control plane keeps of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub id: SnapshotId,
    pub tenant: TenantId,
    pub request_id: RequestId,
    /// for people; need not be unique; may be empty
    pub name: String,
    /// the sandbox that it was taken of
    pub sandbox: SandboxId,
    /// what that sandbox was, with its whole environment: a sandbox made from this has the same size and image
    pub spec: SandboxSpec,
    pub node: NodeId,
    /// made for forks only: dropped when the last of them has started or ended
    pub ephemeral: bool,
    pub state: SnapshotState,
    /// always there when the state is Failed or Lost
    pub cause: Option<Cause>,
    /// zero until it is Ready
    pub sizes: SnapshotSizes,
    pub created_at: Timestamp,
    /// when the state last changed
    pub state_at: Timestamp,
}

/// What one node has of one snapshot: Creating, Ready or Failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    pub snapshot_id: SnapshotId,
    pub state: SnapshotState,
    /// always there when it failed
    pub cause: Option<Cause>,
    /// zero until it is Ready
    pub sizes: SnapshotSizes,
}

#[cfg(test)]
mod tests {
    use super::*;
    use SnapshotState as S;
    use SnapshotTransition as T;

    /// Every legal pair, written out by hand; all others must be refused.
    const LEGAL: &[(S, T, S)] = &[
        (S::Creating, T::Ready, S::Ready),
        (S::Creating, T::Fail, S::Failed),
        (S::Creating, T::Lose, S::Lost),
        (S::Creating, T::Delete, S::Deleting),
        (S::Ready, T::Lose, S::Lost),
        (S::Ready, T::Delete, S::Deleting),
    ];

    #[test]
    fn the_table_of_snapshots_is_complete() {
        for state in S::ALL {
            for transition in [T::Ready, T::Fail, T::Lose, T::Delete] {
                let expected =
                    LEGAL.iter().find(|row| (row.0, row.1) == (state, transition)).map(|row| row.2);
                assert_eq!(state.next(transition), expected, "{state} {transition:?}");
            }
        }
    }
}
