//! The newest changes, oldest first, at most as many as its bound.
//!
//! Invariant: every change after `compacted` is here, in the order of revisions.

use crate::store::HistoryEntry;
use pinfold_domain::Revision;
use std::collections::VecDeque;

pub struct Ring {
    entries: VecDeque<HistoryEntry>,
    /// the newest change that is no longer here
    compacted: Revision,
    bound: usize,
}

impl Ring {
    pub fn new(history: &[HistoryEntry], compacted: Revision, bound: usize) -> Self {
        let mut ring = Self { entries: VecDeque::new(), compacted, bound };
        for entry in history {
            ring.push(entry.clone());
        }
        ring
    }

    pub fn push(&mut self, entry: HistoryEntry) {
        self.entries.push_back(entry);
        while self.entries.len() > self.bound {
            if let Some(dropped) = self.entries.pop_front() {
                self.compacted = dropped.revision();
            }
        }
    }

    /// At most `limit` changes after `revision`; `None` when some of them are gone.
    pub fn after(&self, revision: Revision, limit: usize) -> Option<Vec<HistoryEntry>> {
        if revision < self.compacted {
            return None;
        }
        let first = self.entries.partition_point(|entry| entry.revision() <= revision);
        Some(self.entries.range(first..).take(limit).cloned().collect())
    }

    pub fn compacted(&self) -> Revision {
        self.compacted
    }
}
