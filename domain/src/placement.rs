//! Why a sandbox was placed, waits, or can never be placed.

use crate::ids::NodeId;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Placed {
        node: NodeId,
    },
    /// some node could hold it when others leave, or a node may yet join
    Wait,
    /// no node of the fleet could hold it, even when empty
    Never,
}

/// How many nodes a filter turned away. A node counts once, at the first filter that it fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterCount {
    pub filter: String,
    pub rejected: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub verdict: Verdict,
    pub nodes_considered: u64,
    /// in the order in which the filters ran
    pub filters: Vec<FilterCount>,
    /// more about it, for a person; may be empty
    #[serde(default)]
    pub note: String,
}

impl Explanation {
    /// One sentence, for example `0 of 3 nodes fit: 2 rejected by memory, 1 rejected by image`.
    pub fn sentence(&self) -> String {
        let rejected: u64 = self.filters.iter().map(|f| f.rejected).sum();
        let fit = self.nodes_considered.saturating_sub(rejected);
        let mut text = format!("{fit} of {} nodes fit", self.nodes_considered);
        let mut separator = ": ";
        for count in self.filters.iter().filter(|f| f.rejected > 0) {
            text.push_str(&format!("{separator}{} rejected by {}", count.rejected, count.filter));
            separator = ", ";
        }
        if !self.note.is_empty() {
            text.push_str(&format!("; {}", self.note));
        }
        text
    }
}
