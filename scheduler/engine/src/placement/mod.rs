//! Which node takes a sandbox: filters in their order, then the best score.
//!
//! The answer is a node, *wait* or *never*. Never is said only about a fleet of at least one node that is not lost, when
//! none of its nodes could hold the sandbox even if it were empty.

pub(crate) mod explain;
pub(crate) mod filter;
pub(crate) mod score;
pub(crate) mod views;

use crate::cluster::Cluster;
use crate::config::PlacementPolicy;
use crate::state::State;
use explain::Counts;
use pinfold_domain::{
    Explanation, NodeId, Reason, Resources, SandboxSpec, SnapshotId, Source, TemplateId, Verdict,
};
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
    /// only the node that holds it
    pub snapshot: Option<SnapshotId>,
    /// a node that has prepared it is better than any that has not
    pub template: Option<TemplateId>,
    /// nodes that refused this very sandbox a moment ago
    pub refused_by: BTreeSet<NodeId>,
}

impl Requirement {
    pub fn new(spec: &SandboxSpec, template: Option<TemplateId>, refused_by: BTreeSet<NodeId>) -> Self {
        let snapshot = match spec.source {
            Source::Snapshot(id) => Some(id),
            Source::Image | Source::Template(_) => None,
        };
        let Resources { cpu_millis, memory_bytes, disk_bytes, pids } = spec.resources;
        Self {
            amounts: [cpu_millis, memory_bytes, disk_bytes, pids],
            image: spec.image.clone(),
            kernel: spec.kernel.clone(),
            node_labels: spec.node_labels.clone(),
            snapshot,
            template,
            refused_by,
        }
    }

    pub fn resources(&self) -> Resources {
        let [cpu_millis, memory_bytes, disk_bytes, pids] = self.amounts;
        Resources { cpu_millis, memory_bytes, disk_bytes, pids }
    }
}

/// What placement says about one requirement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    /// the best node now
    pub node: Option<NodeId>,
    /// how many nodes each filter turned away
    pub explanation: Explanation,
    /// some node that is not lost could hold it when empty
    pub possible: bool,
}

impl Decision {
    fn new(node: Option<NodeId>, counts: &Counts, possible: bool) -> Self {
        let verdict = node.clone().map_or(Verdict::Wait, |node| Verdict::Placed { node });
        Self { node, explanation: counts.explanation(verdict), possible }
    }
}

/// Looks at every node.
pub(crate) fn scan(cluster: &Cluster, policy: PlacementPolicy, requirement: &Requirement) -> Decision {
    let mut counts = Counts::default();
    let mut best: Option<(Score, &NodeId)> = None;
    for entry in cluster.registered() {
        let rejection = filter::first_rejection(entry, requirement);
        counts.add(rejection);
        if rejection.is_none() {
            let score = (Score::new(policy, entry, requirement), &entry.node.id);
            best = Some(best.map_or(score, |held| held.min(score)));
        }
    }
    let mut not_lost = cluster.not_lost();
    let possible = not_lost.any(|entry| filter::first_rejection_when_empty(entry, requirement).is_none());
    Decision::new(best.map(|(_, node)| node.clone()), &counts, possible)
}

/// The best node for a requirement, from a view that is kept.
pub(crate) fn decide(state: &mut State, requirement: &Requirement) -> Decision {
    let policy = state.config.placement;
    // one node at most can take it, and few sandboxes share it: not worth a view
    if requirement.snapshot.is_some() {
        return scan(&state.cluster, policy, requirement);
    }
    let decision = state.views.decide(&state.cluster, policy, requirement);
    if state.config.check_invariants {
        assert_eq!(decision, scan(&state.cluster, policy, requirement), "a view differs from the fleet");
    }
    decision
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
