//! When something is due: one time for each sandbox, snapshot and node, kept in order.

use pinfold_domain::{NodeId, SandboxId, SnapshotId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TimerKey {
    Node(NodeId),
    Sandbox(SandboxId),
    Snapshot(SnapshotId),
    /// the oldest remembered request
    Requests,
    /// the oldest remembered operation
    Operations,
}

#[derive(Debug, Default)]
pub(crate) struct Timers {
    by_time: BTreeSet<(Timestamp, TimerKey)>,
    by_key: BTreeMap<TimerKey, Timestamp>,
}

impl Timers {
    /// Sets the one time of `key`, or clears it.
    pub fn set(&mut self, key: TimerKey, at: Option<Timestamp>) {
        let old = match at {
            Some(at) => self.by_key.insert(key.clone(), at),
            None => self.by_key.remove(&key),
        };
        if old == at {
            return;
        }
        if let Some(old) = old {
            self.by_time.remove(&(old, key.clone()));
        }
        if let Some(at) = at {
            self.by_time.insert((at, key));
        }
    }

    pub fn first(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes the first timer out if it is due.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<TimerKey> {
        if self.first()? > now {
            return None;
        }
        let (_, key) = self.by_time.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }

    pub fn get(&self, key: &TimerKey) -> Option<Timestamp> {
        self.by_key.get(key).copied()
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_time() {
        let mut timers = Timers::default();
        timers.set(TimerKey::Requests, Some(Timestamp(5)));
        timers.set(TimerKey::Requests, Some(Timestamp(9)));
        assert_eq!(timers.first(), Some(Timestamp(9)));
        assert_eq!(timers.pop_due(Timestamp(8)), None);
        assert_eq!(timers.pop_due(Timestamp(9)), Some(TimerKey::Requests));
        assert_eq!((timers.first(), timers.len()), (None, 0));
        timers.set(TimerKey::Requests, Some(Timestamp(1)));
        timers.set(TimerKey::Requests, None);
        assert_eq!((timers.first(), timers.len()), (None, 0));
    }
}
