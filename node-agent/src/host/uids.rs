//! One host uid for each sandbox, never in use twice: a VMM that breaks out meets no other sandbox's files.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

#[derive(Debug)]
pub struct UidPool {
    base: u32,
    count: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: BTreeSet<u32>,
    /// where the next search begins: a uid that was given back rests as long as possible
    next: u32,
}

impl UidPool {
    pub fn new(base: u32, count: u32) -> Self {
        Self { base, count, state: Mutex::default() }
    }

    /// A uid that nobody has, or `None` when all are taken.
    pub fn take(&self) -> Option<u32> {
        let mut state = self.lock();
        for step in 0..self.count {
            let offset = (state.next + step) % self.count;
            let uid = self.base + offset;
            if state.taken.insert(uid) {
                state.next = (offset + 1) % self.count;
                return Some(uid);
            }
        }
        None
    }

    /// Marks the uid of a sandbox that was found at start.
    pub fn adopt(&self, uid: u32) {
        self.lock().taken.insert(uid);
    }

    pub fn give_back(&self, uid: u32) {
        self.lock().taken.remove(&uid);
    }

    /// Uids in use.
    pub fn taken(&self) -> usize {
        self.lock().taken.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_uid_is_given_twice_and_the_last_returned_rests_longest() {
        let pool = UidPool::new(100, 3);
        assert_eq!([pool.take(), pool.take()], [Some(100), Some(101)]);
        pool.give_back(100);
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(102), Some(100), None]);
        pool.give_back(101);
        pool.give_back(101);
        assert_eq!([pool.take(), pool.take()], [Some(101), None]);
    }

    #[test]
    fn an_adopted_uid_is_taken() {
        let pool = UidPool::new(100, 2);
        pool.adopt(100);
        assert_eq!([pool.take(), pool.take()], [Some(101), None]);
        assert_eq!(pool.taken(), 2);
    }
}
