use super::*;
use crate::store::conformance::sandbox;
use std::time::Duration;

fn put(number: u128, revision: u64) -> Change {
    Change::PutSandbox(Box::new(sandbox(number, revision)))
}

fn delete(number: u128, revision: u64) -> Change {
    Change::DeleteSandbox { sandbox: Box::new(sandbox(number, revision)) }
}

fn view(history_entries: usize, changes: &[Change]) -> Arc<View> {
    let view = View::new(&Loaded::default(), history_entries);
    view.apply(changes);
    Arc::new(view)
}

fn id(number: u128) -> SandboxId {
    sandbox(number, 0).id
}

async fn next(watcher: &mut Watcher) -> Result<(SandboxId, u64, bool), Cause> {
    let event =
        tokio::time::timeout(Duration::from_secs(5), watcher.next()).await.expect("an event in time")?;
    Ok((event.sandbox.id, event.revision.0, event.deleted))
}

async fn silent(watcher: &mut Watcher) -> bool {
    tokio::time::timeout(Duration::from_millis(20), watcher.next()).await.is_err()
}

#[test]
fn a_list_is_paged_in_order_and_filtered() {
    let changes: Vec<_> = (1..=5).map(|n| put(n, n as u64)).collect();
    let view = view(10, &changes);
    let all = ListFilter::default();
    let first = view.list(&all, None, 2);
    assert_eq!(first.sandboxes.iter().map(|s| s.id).collect::<Vec<_>>(), [id(1), id(2)]);
    assert_eq!((first.next_after, first.revision), (Some(id(2)), Revision(5)));
    assert_eq!(
        view.list(&all, Some(id(3)), 2).next_after,
        None,
        "the last page says so when it is just full"
    );
    assert!(view.list(&all, Some(id(5)), 2).sandboxes.is_empty());
    let labels = |value: &str| BTreeMap::from([("team".to_owned(), value.to_owned())]);
    let count = |filter: &ListFilter| view.list(filter, None, 100).sandboxes.len();
    assert_eq!(count(&ListFilter { labels: labels("blue"), ..ListFilter::default() }), 5);
    assert_eq!(count(&ListFilter { labels: labels(""), ..ListFilter::default() }), 5);
    assert_eq!(count(&ListFilter { labels: labels("red"), ..ListFilter::default() }), 0);
    assert_eq!(count(&ListFilter { phases: BTreeSet::from([Phase::Pending]), ..ListFilter::default() }), 5);
    assert_eq!(count(&ListFilter { phases: BTreeSet::from([Phase::Running]), ..ListFilter::default() }), 0);
}

#[tokio::test]
async fn a_watch_from_zero_gives_the_state_and_then_the_changes() {
    let view = view(10, &[put(1, 1), put(2, 2), put(1, 3)]);
    let mut watcher = Watcher::new(Arc::clone(&view), WatchFilter::default(), Revision(0)).unwrap();
    assert_eq!(next(&mut watcher).await, Ok((id(1), 0, false)), "half the state is not to be resumed from");
    assert_eq!(next(&mut watcher).await, Ok((id(2), 3, false)));
    assert!(silent(&mut watcher).await);
    view.apply(&[put(2, 4), delete(1, 5)]);
    assert_eq!(next(&mut watcher).await, Ok((id(2), 4, false)));
    assert_eq!(next(&mut watcher).await, Ok((id(1), 5, true)));
    assert_eq!(view.get(id(1)).unwrap_err().reason, Reason::SandboxNotFound);
}

#[tokio::test]
async fn a_watch_resumes_where_it_was() {
    let view = view(10, &[put(1, 1), put(2, 2), delete(1, 3)]);
    let mut watcher = Watcher::new(Arc::clone(&view), WatchFilter::default(), Revision(1)).unwrap();
    assert_eq!(next(&mut watcher).await, Ok((id(2), 2, false)));
    assert_eq!(next(&mut watcher).await, Ok((id(1), 3, true)));
    assert!(silent(&mut watcher).await);
}

#[tokio::test]
async fn a_watch_of_one_sandbox_sees_only_that_one() {
    let view = view(10, &[put(1, 1)]);
    let filter = |number| WatchFilter { sandbox: Some(id(number)) };
    let missing = Watcher::new(Arc::clone(&view), filter(2), Revision(0)).err().unwrap();
    assert_eq!(missing.reason, Reason::SandboxNotFound);
    let mut watcher = Watcher::new(Arc::clone(&view), filter(1), Revision(0)).unwrap();
    assert_eq!(next(&mut watcher).await, Ok((id(1), 1, false)));
    view.apply(&[put(2, 2), put(1, 3)]);
    assert_eq!(next(&mut watcher).await, Ok((id(1), 3, false)));
}

#[tokio::test]
async fn what_is_no_longer_kept_is_refused_and_a_slow_watcher_is_cut() {
    let view = view(3, &(1..=5).map(|n| put(1, n)).collect::<Vec<_>>());
    let start = |from| Watcher::new(Arc::clone(&view), WatchFilter::default(), Revision(from));
    assert_eq!(start(1).err().unwrap().reason, Reason::RevisionCompacted);
    assert_eq!(start(6).err().unwrap().reason, Reason::InvalidArgument);
    let mut slow = start(2).unwrap();
    view.apply(&[put(1, 6)]);
    let cause = next(&mut slow).await.unwrap_err();
    assert_eq!(cause.reason, Reason::RevisionCompacted);
    assert!(cause.message.contains("fell behind"), "{}", cause.message);
}

#[test]
fn history_survives_a_restart() {
    let history: Vec<_> = (3..=5).filter_map(|n| HistoryEntry::of(&put(1, n))).collect();
    let mut loaded = Loaded { history, compacted: Revision(2), ..Loaded::default() };
    loaded.state.revision = Revision(5);
    let view = Arc::new(View::new(&loaded, 3));
    assert!(Watcher::new(Arc::clone(&view), WatchFilter::default(), Revision(2)).is_ok());
    assert!(Watcher::new(view, WatchFilter::default(), Revision(1)).is_err());
}
