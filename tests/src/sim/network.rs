//! Sessions between nodes and the scheduler. A session delivers in order until it breaks; then both ends lose what was on
//! the way. Only reports of single changes may be lost or overtake each other: a node must not rely on them.

use super::rng::Rng;
use pinfold_domain::Timestamp;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    ToScheduler,
    ToNode,
}

#[derive(Debug)]
pub struct Link {
    pub node: usize,
    /// in order: nothing is delivered before what was sent before it
    last: BTreeMap<Direction, Timestamp>,
    /// the path carries nothing until then
    pub blocked_until: Timestamp,
}

/// Milliseconds on the way, from and to.
const LATENCY_MS: (u64, u64) = (0, 40);

impl Link {
    pub fn new(node: usize, now: Timestamp) -> Self {
        Self { node, last: BTreeMap::new(), blocked_until: now }
    }

    /// When something sent now arrives.
    pub fn arrival(&mut self, direction: Direction, now: Timestamp, rng: &mut Rng) -> Timestamp {
        let latency = Timestamp(now.0 + rng.between(LATENCY_MS));
        let last = self.last.entry(direction).or_default();
        *last = latency.max(self.blocked_until).max(*last);
        *last
    }

    /// When something arrives that may overtake.
    pub fn arrival_out_of_order(&self, now: Timestamp, rng: &mut Rng) -> Timestamp {
        Timestamp(now.0 + rng.between((0, 2_000))).max(self.blocked_until)
    }
}
