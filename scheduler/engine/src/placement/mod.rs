//! Which node takes a sandbox: filters in their order, then the best score.
//!
//! The answer is a node, *wait* or *never*. Never is said only about a fleet of at least one node that is not lost, when
//! none of its nodes could hold the sandbox even if it were empty.

pub(crate) mod explain;
pub(crate) mod filter;
pub(crate) mod score;

use crate::cluster::Cluster;
use crate::config::PlacementPolicy;
use explain::Counts;
use pinfold_domain::{Explanation, NodeId, Reason, Resources, SandboxSpec, Verdict};
use score::Score;
use std::collections::{BTreeMap, BTreeSet};

/// All that placement reads of a sandbox. Sandboxes with an equal requirement are interchangeable to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Requirement {
    /// in the order of `Dimension::ALL`
    amounts: [u64; 4],
    pub image: String,
    pub kernel: Option<String>,
    pub node_labels: BTreeMap<String, String>,
    /// nodes that refused this very sandbox a moment ago
    pub refused_by: BTreeSet<NodeId>,
}

impl Requirement {
    pub fn new(spec: &SandboxSpec, refused_by: BTreeSet<NodeId>) -> Self {
        let Resources { cpu_millis, memory_bytes, disk_bytes, pids } = spec.resources;
        Self {
            amounts: [cpu_millis, memory_bytes, disk_bytes, pids],
            image: spec.image.clone(),
            kernel: spec.kernel.clone(),
            node_labels: spec.node_labels.clone(),
            refused_by,
        }
    }

    pub fn resources(&self) -> Resources {
        let [cpu_millis, memory_bytes, disk_bytes, pids] = self.amounts;
        Resources { cpu_millis, memory_bytes, disk_bytes, pids }
    }
}

/// The best node for `requirement` now, and how many nodes each filter turned away.
pub(crate) fn decide(
    cluster: &Cluster,
    policy: PlacementPolicy,
    requirement: &Requirement,
) -> (Option<NodeId>, Explanation) {
    let mut counts = Counts::default();
    let mut best: Option<Score<'_>> = None;
    for entry in cluster.registered() {
        let rejection = filter::first_rejection(entry, requirement);
        counts.add(rejection);
        if rejection.is_none() {
            let score = Score::new(policy, entry, &requirement.resources());
            best = Some(best.map_or(score, |held| held.min(score)));
        }
    }
    let node = best.map(|score| score.node.clone());
    let verdict = node.clone().map_or(Verdict::Wait, |node| Verdict::Placed { node });
    (node, counts.explanation(verdict))
}

/// One of `nodes` has room for `requirement`.
pub(crate) fn fits_on_any(cluster: &Cluster, nodes: &BTreeSet<NodeId>, requirement: &Requirement) -> bool {
    let mut entries = nodes.iter().filter_map(|id| cluster.get(id));
    entries.any(|entry| entry.registered && filter::first_rejection(entry, requirement).is_none())
}

/// Why no node of this fleet could ever hold `requirement`; `None` when one could, or when there is no node.
pub(crate) fn never(cluster: &Cluster, requirement: &Requirement) -> Option<(Reason, Explanation)> {
    let mut counts = Counts::default();
    for entry in cluster.not_lost() {
        let rejection = filter::first_rejection_when_empty(entry, requirement);
        rejection?;
        counts.add(rejection);
    }
    if counts.considered() == 0 {
        return None;
    }
    let image_somewhere = cluster.not_lost().any(|entry| filter::has_image(entry, requirement));
    let kernel_somewhere = cluster.not_lost().any(|entry| filter::has_kernel(entry, requirement));
    let reason = if image_somewhere && kernel_somewhere { Reason::Unplaceable } else { Reason::ImageUnknown };
    Some((reason, counts.explanation(Verdict::Never)))
}

#[cfg(test)]
mod tests;
