//! Exponential back-off with full jitter, so that a fleet does not come back all at once.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const MOST: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub struct Backoff {
    ceiling: Duration,
    random: RandomState,
    draws: u64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { ceiling: FIRST, random: RandomState::new(), draws: 0 }
    }
}

impl Backoff {
    /// Half of the present ceiling and a random part of the other half; the ceiling doubles.
    pub fn next(&mut self) -> Duration {
        let half = self.ceiling / 2;
        self.ceiling = (self.ceiling * 2).min(MOST);
        half + half.mul_f64(self.fraction())
    }

    pub fn reset(&mut self) {
        self.ceiling = FIRST;
    }

    /// From 0 to 1. The standard library's per-process hash key is random enough to spread nodes.
    fn fraction(&mut self) -> f64 {
        self.draws += 1;
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.draws);
        f64::from((hasher.finish() >> 32) as u32) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_to_its_bound_and_starts_again() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..20).map(|_| backoff.next()).collect();
        assert!(pauses[0] >= FIRST / 2 && pauses[0] <= FIRST, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= MOST), "{pauses:?}");
        assert!(pauses[19] >= MOST / 2, "{pauses:?}");
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }

    #[test]
    fn two_nodes_do_not_keep_step() {
        let mut one = Backoff::default();
        let mut other = Backoff::default();
        let differ = (0..10).filter(|_| one.next() != other.next()).count();
        assert!(differ > 5);
    }
}
