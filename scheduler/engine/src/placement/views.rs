//! The fleet seen through one requirement, kept up to date instead of scanned.
//!
//! A view holds the verdict on every node and those that fit in the order of their scores. A decision re-judges only the
//! nodes that changed since the view was last used, and takes the first: the answer is that of a scan, to the letter (the
//! engine compares the two when it checks its invariants). Most creates of a fleet share a few requirements, so few views
//! are kept; what finds no view while all are in use is scanned for.

use super::explain::Counts;
use super::filter::{self, Filter};
use super::score::Score;
use super::{Decision, Requirement};
use crate::cluster::node::NodeEntry;
use crate::cluster::{Cluster, Version};
use crate::config::PlacementPolicy;
use pinfold_domain::{NodeId, NodeState};
use std::collections::{BTreeMap, BTreeSet};

/// Views that are kept. One takes some 200 bytes for each node.
const VIEWS: usize = 16;
/// Decisions after which a view that was not used may give way to another.
const IDLE: u64 = 1_024;

#[derive(Debug, Default)]
pub(crate) struct Views {
    views: BTreeMap<Requirement, View>,
    /// counts decisions
    clock: u64,
}

#[derive(Debug, Default)]
struct View {
    /// the fleet was seen up to here
    seen: Version,
    nodes: BTreeMap<NodeId, Verdict>,
    /// those that fit, the best first
    ranking: BTreeSet<(Score, NodeId)>,
    counts: Counts,
    /// nodes, not lost, that could hold it when empty
    possible: usize,
    last_used: u64,
}

/// What one node is to one requirement.
#[derive(Debug, Clone, Copy)]
struct Verdict {
    now: Result<Score, Filter>,
    possible: bool,
}

impl Views {
    /// The same as [`super::scan`].
    pub fn decide(
        &mut self,
        cluster: &Cluster,
        policy: PlacementPolicy,
        requirement: &Requirement,
    ) -> Decision {
        self.clock += 1;
        if !self.views.contains_key(requirement) && !self.make_room() {
            return super::scan(cluster, policy, requirement);
        }
        let view = self.views.entry(requirement.clone()).or_default();
        view.last_used = self.clock;
        view.refresh(cluster, policy, requirement);
        let node = view.ranking.first().map(|(_, node)| node.clone());
        Decision::new(node, &view.counts, view.possible > 0)
    }

    /// True when one more view may be kept, if need be in place of an idle one.
    fn make_room(&mut self) -> bool {
        if self.views.len() < VIEWS {
            return true;
        }
        let oldest = self.views.iter().min_by_key(|(_, view)| view.last_used);
        let Some(key) =
            oldest.filter(|(_, view)| view.last_used + IDLE < self.clock).map(|(key, _)| key.clone())
        else {
            return false;
        };
        self.views.remove(&key);
        true
    }
}

impl View {
    fn refresh(&mut self, cluster: &Cluster, policy: PlacementPolicy, requirement: &Requirement) {
        match cluster.changed_since(self.seen) {
            Some(changed) => changed.for_each(|entry| self.judge(entry, policy, requirement)),
            None => {
                *self = Self { last_used: self.last_used, ..Self::default() };
                cluster.all().for_each(|entry| self.judge(entry, policy, requirement));
            }
        }
        self.seen = cluster.version();
    }

    fn judge(&mut self, entry: &NodeEntry, policy: PlacementPolicy, requirement: &Requirement) {
        let id = &entry.node.id;
        if !entry.registered {
            return;
        }
        let now = match filter::first_rejection(entry, requirement) {
            Some(rejection) => Err(rejection),
            None => Ok(Score::new(policy, entry, requirement)),
        };
        let possible = entry.node.state != NodeState::Lost
            && filter::first_rejection_when_empty(entry, requirement).is_none();
        match self.nodes.get_mut(id) {
            Some(held) => {
                let old = std::mem::replace(held, Verdict { now, possible });
                self.counts.remove(old.now.err());
                self.possible -= usize::from(old.possible);
                if let Ok(score) = old.now {
                    self.ranking.remove(&(score, id.clone()));
                }
            }
            None => {
                self.nodes.insert(id.clone(), Verdict { now, possible });
            }
        }
        self.counts.add(now.err());
        self.possible += usize::from(possible);
        if let Ok(score) = now {
            self.ranking.insert((score, id.clone()));
        }
    }
}
