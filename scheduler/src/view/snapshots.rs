//! Snapshots as readers see them. They have no revision and no history: who wants to know of a change waits for it.

use super::View;
use pinfold_domain::{Cause, Reason, SandboxId, Snapshot, SnapshotId, SnapshotState};
use pinfold_engine::Change;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// One page of a list.
#[derive(Debug)]
pub struct SnapshotPage {
    pub snapshots: Vec<Arc<Snapshot>>,
    /// the last id of this page, when more may follow
    pub next_after: Option<SnapshotId>,
}

/// Takes in what is about snapshots; how much that was.
pub(super) fn apply(snapshots: &mut BTreeMap<SnapshotId, Arc<Snapshot>>, changes: &[Change]) -> u64 {
    let mut count = 0;
    for change in changes {
        match change {
            Change::PutSnapshot(snapshot) => {
                snapshots.insert(snapshot.id, Arc::new(Snapshot::clone(snapshot)));
            }
            Change::DeleteSnapshot { id } => {
                snapshots.remove(id);
            }
            _ => continue,
        }
        count += 1;
    }
    count
}

impl View {
    pub fn snapshot(&self, id: SnapshotId) -> Result<Arc<Snapshot>, Cause> {
        let not_found = || Cause::new(Reason::SnapshotNotFound, format!("there is no snapshot {id}"));
        self.read().snapshots.get(&id).map(Arc::clone).ok_or_else(not_found)
    }

    /// The snapshot when it is no longer being taken. Cancel safe.
    pub async fn snapshot_settled(&self, id: SnapshotId) -> Result<Arc<Snapshot>, Cause> {
        let mut changes = self.snapshot_changes.subscribe();
        loop {
            changes.mark_unchanged();
            let found = self.snapshot(id)?;
            if found.state != SnapshotState::Creating {
                return Ok(found);
            }
            if changes.changed().await.is_err() {
                return Err(Cause::new(Reason::StoreUnavailable, "the scheduler is shutting down"));
            }
        }
    }

    /// At most `size` snapshots, in the order of their creation, behind `after`; of one sandbox or of all.
    pub fn snapshots(
        &self,
        sandbox: Option<SandboxId>,
        after: Option<SnapshotId>,
        size: usize,
    ) -> SnapshotPage {
        let state = self.read();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = state.snapshots.range((from, Bound::Unbounded)).map(|(_, snapshot)| snapshot);
        let mut found = behind.filter(|snapshot| sandbox.is_none_or(|id| snapshot.sandbox == id));
        let snapshots: Vec<_> = found.by_ref().take(size).map(Arc::clone).collect();
        let more = found.next().is_some();
        let next_after = snapshots.last().filter(|_| more).map(|snapshot| snapshot.id);
        SnapshotPage { snapshots, next_after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Loaded;
    use crate::store::conformance::snapshot;

    fn put(snapshot: &Snapshot) -> Change {
        Change::PutSnapshot(Box::new(snapshot.clone()))
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "a test's task ends with its runtime")]
    async fn who_waits_for_a_snapshot_is_woken_when_it_is_settled() {
        let view = Arc::new(View::new(&Loaded::default(), 10));
        let mut taken = snapshot(1);
        view.apply(&[put(&taken)]);
        let waiting = Arc::clone(&view);
        let id = taken.id;
        let waiter = tokio::spawn(async move { waiting.snapshot_settled(id).await });
        tokio::task::yield_now().await;
        // of no concern
        view.apply(&[put(&snapshot(2))]);
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        taken.state = SnapshotState::Ready;
        view.apply(&[put(&taken)]);
        assert_eq!(waiter.await.unwrap().unwrap().state, SnapshotState::Ready);
        view.apply(&[Change::DeleteSnapshot { id }]);
        assert_eq!(view.snapshot_settled(id).await.unwrap_err().reason, Reason::SnapshotNotFound);
    }

    #[test]
    fn pages_follow_each_other() {
        let view = View::new(&Loaded::default(), 10);
        view.apply(&[put(&snapshot(1)), put(&snapshot(2)), put(&snapshot(3))]);
        let first = view.snapshots(None, None, 2);
        assert_eq!((first.snapshots.len(), first.next_after), (2, Some(snapshot(2).id)));
        let last = view.snapshots(None, first.next_after, 2);
        assert_eq!((last.snapshots.len(), last.next_after), (1, None));
        let of_nobody = view.snapshots(Some(SandboxId(uuid::Uuid::from_u128(9))), None, 2);
        assert!(of_nobody.snapshots.is_empty());
    }
}
