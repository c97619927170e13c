//! The score is a struct whose field order is the policy; the smallest wins. Between equal scores the node's name decides,
//! so that equal nodes are taken in a fixed order and a replay decides the same.

use super::Requirement;
use crate::cluster::node::NodeEntry;
use crate::config::PlacementPolicy;
use pinfold_domain::resources::Dimension;

/// Millionths of a node's own size.
const WHOLE: u64 = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score {
    /// the sandbox would boot here and could be restored elsewhere
    unprepared: bool,
    /// Pack: what would be left free, summed over the dimensions (best fit). Spread: the use of the fullest dimension.
    policy: u64,
    /// how unevenly the dimensions would be left: room of one kind only is of no use
    imbalance: u64,
    /// how many sandboxes the loss of the node would take along
    sandboxes: u64,
}

impl Score {
    /// `entry` has room for what is required.
    pub fn new(policy: PlacementPolicy, entry: &NodeEntry, requirement: &Requirement) -> Self {
        let left = entry.free().saturating_sub(&requirement.resources());
        let unprepared = requirement.template.is_some_and(|template| !entry.is_prepared(template));
        let shares = Dimension::ALL.map(|d| share(left.get(d), entry.node.allocatable.get(d)));
        let most = shares.into_iter().max().unwrap_or(0);
        let least = shares.into_iter().min().unwrap_or(0);
        let policy = match policy {
            PlacementPolicy::Pack => shares.into_iter().sum(),
            PlacementPolicy::Spread => WHOLE - least,
        };
        Self { unprepared, policy, imbalance: most - least, sandboxes: entry.node.sandboxes }
    }
}

/// `part` of `whole` in millionths; nothing of nothing is nothing.
fn share(part: u64, whole: u64) -> u64 {
    let millionths = (u128::from(part) * u128::from(WHOLE)).checked_div(u128::from(whole)).unwrap_or(0);
    u64::try_from(millionths).unwrap_or(WHOLE).min(WHOLE)
}
