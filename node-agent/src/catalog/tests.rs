//! The two lists and their bounds; the files are real.

use super::*;
use crate::host::paths::StateDirectory;
use crate::host::snapshots::Draft;
use crate::host::snapshots::draft::Subject;
use crate::host::snapshots::tests::{ID, subject};
use pinfold_domain::Reason;
use shelf::MAX_FAILED;
use std::fs::File;
use std::io::Write;

const OTHER: &str = "0190b3f0-5a00-7000-8000-00000000000c";

fn id() -> SnapshotId {
    ID.parse().unwrap()
}

fn other() -> SnapshotId {
    OTHER.parse().unwrap()
}

struct Bench {
    catalog: Catalog,
    subject: Subject,
    directory: tempfile::TempDir,
}

fn open(directory: &std::path::Path, bounds: Bounds) -> Catalog {
    let state = StateDirectory::open(directory).unwrap();
    let key = SnapshotKey::open(&state.snapshot_key()).unwrap();
    let store = |name| (SnapshotStore::open(&state, name, &key).unwrap(), bounds);
    Catalog::open(store("snapshots"), store("templates"), 1).unwrap()
}

fn bench(bounds: Bounds) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("rootfs.erofs");
    std::fs::write(&image, "image").unwrap();
    Bench { catalog: open(directory.path(), bounds), subject: subject(&image), directory }
}

const ROOM: Bounds = Bounds { number: 8, bytes: 1 << 30 };

impl Bench {
    fn fill(&self, draft: Draft) -> Saved {
        self.filled(draft, b"")
    }

    fn filled(&self, draft: Draft, content: &[u8]) -> Saved {
        let (mut state, mut memory) = draft.files().unwrap();
        state.write_all(b"state").unwrap();
        memory.write_all(content).unwrap();
        memory.set_len(96 << 20).unwrap();
        File::create_new(draft.disk()).unwrap().set_len(16 << 20).unwrap();
        draft.publish(&self.subject, || true).unwrap()
    }

    async fn begin(&self, id: SnapshotId, bytes: u64) -> Draft {
        self.catalog.snapshots.begin(id, bytes).unwrap().unwrap();
        self.catalog.snapshots.draft(id).await.unwrap()
    }

    async fn make(&self, id: SnapshotId) {
        let draft = self.begin(id, 1 << 20).await;
        let saved = self.fill(draft);
        self.catalog.snapshots.finish(id, Ok(saved)).await;
    }

    fn states(&self) -> Vec<SnapshotState> {
        self.catalog.snapshot_reports().into_iter().map(|report| report.state).collect()
    }

    fn on_disk(&self) -> usize {
        std::fs::read_dir(self.directory.path().join("snapshots")).unwrap().count()
    }
}

#[tokio::test]
async fn each_change_is_told_and_the_list_is_whole() {
    let bench = bench(ROOM);
    let draft = bench.begin(id(), 1).await;
    let (told, _) = bench.catalog.next_changes().await;
    assert_eq!((told.len(), told[0].state), (1, SnapshotState::Creating));
    let saved = bench.fill(draft);
    bench.catalog.snapshots.finish(id(), Ok(saved)).await;
    let (told, _) = bench.catalog.next_changes().await;
    assert_eq!((told.len(), told[0].state), (1, SnapshotState::Ready));
    assert!(told[0].sizes.state_bytes > 0);
    // the same order again changes nothing and is answered
    assert!(bench.catalog.snapshots.begin(id(), 1).is_none());
    assert_eq!(bench.catalog.next_changes().await.0[0].state, SnapshotState::Ready);
    bench.catalog.templates.refuse(ID.parse().unwrap(), Cause::new(Reason::ImageUnknown, "none"));
    let (_, told) = bench.catalog.next_changes().await;
    assert_eq!((told.len(), told[0].preparation), (1, Preparation::Failed));
    // the next agent finds what is on the disk
    let next = open(bench.directory.path(), ROOM);
    assert_eq!(next.snapshot_reports(), bench.catalog.snapshot_reports());
    assert_eq!(next.key(), bench.catalog.key());
    bench.catalog.snapshots.remove(id()).await;
    assert_eq!((bench.states(), bench.on_disk()), (Vec::new(), 0));
}

#[tokio::test]
async fn the_bounds_hold() {
    let bench = bench(Bounds { number: 1, bytes: 10 << 20 });
    let refused = |shelf: &Shelf<SnapshotId>, id, bytes| shelf.begin(id, bytes).unwrap().unwrap_err();
    let cause = refused(&bench.catalog.snapshots, id(), 11 << 20);
    assert_eq!(cause.reason, Reason::LimitReached);
    assert!(cause.message.contains("its limit of 10485760"), "{}", cause.message);
    // a failed one does not count, and may be tried again
    bench.make(id()).await;
    let cause = refused(&bench.catalog.snapshots, other(), 1);
    assert!(cause.message.contains("holds 1 snapshots, its limit is 1"), "{}", cause.message);
    assert_eq!(bench.states(), [SnapshotState::Ready, SnapshotState::Failed]);
    bench.catalog.snapshots.remove(id()).await;
    bench.make(other()).await;
    assert_eq!(bench.states(), [SnapshotState::Ready]);
}

#[tokio::test]
async fn what_is_dropped_while_it_is_made_is_gone_when_it_is_made() {
    let bench = bench(ROOM);
    let draft = bench.begin(id(), 1).await;
    bench.catalog.snapshots.remove(id()).await;
    assert_eq!(bench.states(), [SnapshotState::Creating], "something of it is there");
    assert!(bench.catalog.snapshots.begin(id(), 1).is_none());
    let saved = bench.fill(draft);
    bench.catalog.snapshots.finish(id(), Ok(saved)).await;
    assert_eq!((bench.states(), bench.on_disk()), (Vec::new(), 0));
}

#[tokio::test]
async fn what_is_damaged_is_listed_as_failed_until_it_is_dropped() {
    let bench = bench(ROOM);
    bench.make(id()).await;
    bench.make(other()).await;
    // the VMM says so
    bench.catalog.snapshots.spoil(id(), Cause::new(Reason::SnapshotInvalid, "its checksum is wrong")).await;
    assert!(matches!(bench.catalog.snapshots.get(id()), Some(Held::Failed(_))));
    // a file says so when the next agent starts
    let path = bench.directory.path().join("snapshots").join(OTHER).join("state");
    std::fs::write(path, "").unwrap();
    let next = open(bench.directory.path(), ROOM);
    let reports = next.snapshot_reports();
    assert_eq!(reports.len(), 2);
    for report in reports {
        assert_eq!(report.state, SnapshotState::Failed);
        assert_eq!(report.cause.unwrap().reason, Reason::SnapshotInvalid);
    }
    next.snapshots.remove(id()).await;
    next.snapshots.remove(other()).await;
    assert_eq!(bench.on_disk(), 0);
}

#[tokio::test]
async fn a_working_set_is_recorded_once() {
    let bench = bench(ROOM);
    assert!(!bench.catalog.snapshots.records_working_set(id()));
    bench.make(id()).await;
    assert!(bench.catalog.snapshots.records_working_set(id()));
    assert!(!bench.catalog.snapshots.records_working_set(id()));
}

/// Bytes that the snapshots take, as a refusal tells it.
fn taken(catalog: &Catalog) -> u64 {
    let cause = catalog.snapshots.begin("0190b3f0-5a00-7000-8000-0000000000ff".parse().unwrap(), u64::MAX);
    let message = cause.unwrap().unwrap_err().message;
    let words: Vec<_> = message.split(' ').collect();
    let at = words.iter().position(|word| *word == "take").expect("it tells");
    words[at + 1].parse().unwrap()
}

#[tokio::test]
async fn a_removed_one_is_charged_as_long_as_a_machine_maps_it() {
    let bench = bench(ROOM);
    let draft = bench.begin(id(), 1).await;
    let saved = bench.filled(draft, &vec![1; 8 << 20]);
    bench.catalog.snapshots.finish(id(), Ok(saved)).await;
    let Some(Held::Ready(saved)) = bench.catalog.snapshots.get(id()) else { panic!("it is made") };
    let all = taken(&bench.catalog);
    let [first, second] = [(); 2].map(|()| Arc::clone(saved.mapped()));
    let mapped = *first;
    drop(saved);
    bench.catalog.snapshots.remove(id()).await;
    let left = taken(&bench.catalog);
    assert!(left >= 8 << 20 && left <= all, "{left} of {all}");
    drop(first);
    assert_eq!(taken(&bench.catalog), left, "once, however many map it");
    // the next agent hears of it from the machines alone
    let next = open(bench.directory.path(), ROOM);
    assert_eq!(taken(&next), 0);
    let origin = Origin::Snapshot(id());
    let adopted = [(); 2].map(|()| next.adopt(origin, mapped));
    assert_eq!(taken(&next), left);
    drop(adopted);
    assert_eq!(taken(&next), 0);
    drop(second);
    assert_eq!(taken(&bench.catalog), 0);
    // of one that is there its own entry is charged
    bench.make(id()).await;
    let Some(Held::Ready(saved)) = bench.catalog.snapshots.get(id()) else { panic!("it is made") };
    let all = taken(&bench.catalog);
    let _known = bench.catalog.adopt(origin, **saved.mapped());
    assert_eq!(taken(&bench.catalog), all);
}

#[tokio::test]
async fn what_is_damaged_takes_its_room_until_it_is_dropped() {
    let bench = bench(ROOM);
    bench.make(id()).await;
    let whole = taken(&bench.catalog);
    bench.catalog.snapshots.spoil(id(), Cause::new(Reason::SnapshotInvalid, "its checksum is wrong")).await;
    assert_eq!(taken(&bench.catalog), whole);
    let next = taken(&open(bench.directory.path(), ROOM));
    assert!(next >= whole, "{next} of {whole}: the manifest too");
    // of no use is not damaged
    bench.make(other()).await;
    bench.catalog.snapshots.remove(id()).await;
    bench.catalog.snapshots.outdate(other(), Cause::new(Reason::SnapshotInvalid, "another image")).await;
    assert_eq!(bench.states(), [SnapshotState::Failed, SnapshotState::Failed], "the last is the asker\'s");
    assert_eq!((taken(&bench.catalog), bench.on_disk()), (0, 0));
}

#[tokio::test]
async fn failures_are_bounded_and_the_oldest_go_first() {
    let bench = bench(ROOM);
    bench.make(id()).await;
    bench.catalog.snapshots.spoil(id(), Cause::new(Reason::SnapshotInvalid, "its checksum is wrong")).await;
    let number = |n: usize| format!("0190b3f0-5a00-7000-8000-{n:012x}").parse::<SnapshotId>().unwrap();
    for n in (1000..1000 + MAX_FAILED + 50).rev() {
        bench.catalog.snapshots.refuse(number(n), Cause::new(Reason::WrongPhase, "it does not run"));
    }
    assert_eq!(bench.states().len(), MAX_FAILED + 1, "one has files");
    assert!(matches!(bench.catalog.snapshots.get(id()), Some(Held::Failed(_))));
    assert!(bench.catalog.snapshots.get(number(1000)).is_some(), "the newest");
    assert!(bench.catalog.snapshots.get(number(1000 + MAX_FAILED + 49)).is_none(), "the oldest");
    assert!(bench.catalog.next_changes().await.0.len() <= MAX_FAILED + 1);
}
