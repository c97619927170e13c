//! Snapshots: taken, listed, lost, dropped, and creates from them.

use super::*;
use crate::event::Operation;
use pinfold_domain::{SnapshotReport, SnapshotSizes, SnapshotState, Source};

impl Bench {
    pub fn snapshot(&mut self, request: &str, sandbox: &Sandbox) -> Result<Snapshot, Rejection> {
        let (call, sandbox_id) = (self.call(), sandbox.id);
        let (snapshot_id, request_id) = (SnapshotId(uuid(self.calls)), request.parse().unwrap());
        let (tenant, name) = (Default::default(), "s".to_owned());
        self.step(Event::CreateSnapshot { call, tenant, request_id, snapshot_id, sandbox_id, name });
        self.snapshot_answer(call)
    }

    fn snapshot_answer(&self, call: CallId) -> Result<Snapshot, Rejection> {
        self.answered(call).map(|answered| match answered {
            Answered::Snapshot(snapshot) => *snapshot,
            other => panic!("not a snapshot: {other:?}"),
        })
    }

    fn delete_snapshot(&mut self, request: &str, id: SnapshotId) -> Result<Snapshot, Rejection> {
        let (call, request_id) = (self.call(), request.parse().unwrap());
        self.step(Event::DeleteSnapshot { call, tenant: Default::default(), request_id, snapshot_id: id });
        self.snapshot_answer(call)
    }

    pub fn says_of(&mut self, node: &str, session: u64, id: SnapshotId, state: SnapshotState) {
        let status = said(id, state);
        let (node, session) = (node_id(node), SessionId(session));
        self.step(Event::SnapshotReported { node, session, status });
    }

    pub fn ready(&mut self, request: &str, sandbox: &Sandbox) -> Snapshot {
        let snapshot = self.snapshot(request, sandbox).unwrap();
        let node = snapshot.node.clone();
        let session = self.session(&node);
        self.says_of(node.as_str(), session, snapshot.id, SnapshotState::Ready);
        self.engine.snapshot(snapshot.id).unwrap().clone()
    }

    pub fn list_snapshots(&mut self, node: &str, session: u64, list: Vec<(SnapshotId, SnapshotState)>) {
        let held = self.engine.sandboxes().filter(|s| s.phase.holds_room() && s.node == Some(node_id(node)));
        let statuses = held.map(|sandbox| status(sandbox, u64::MAX, sandbox.phase)).collect();
        let snapshots = list.into_iter().map(|(id, state)| said(id, state)).collect();
        let (node, session, templates) = (node_id(node), SessionId(session), Vec::new());
        self.step(Event::Heartbeat { node, session, statuses, snapshots, templates });
    }

    pub fn state_of(&self, id: SnapshotId) -> Option<SnapshotState> {
        let state = self.engine.snapshot(id).map(|snapshot| snapshot.state);
        assert_eq!(self.snapshots.get(&id).map(|stored| stored.state), state, "the store knows the same");
        state
    }

    pub fn taken(&self) -> Vec<(SnapshotId, SandboxId)> {
        let take = |effect: &Effect| match effect {
            Effect::TakeSnapshot { snapshot_id, sandbox_id, .. } => Some((*snapshot_id, *sandbox_id)),
            _ => None,
        };
        self.effects.iter().filter_map(take).collect()
    }

    pub fn dropped(&self) -> Vec<SnapshotId> {
        let drop = |effect: &Effect| match effect {
            Effect::DropSnapshot { snapshot_id, .. } => Some(*snapshot_id),
            _ => None,
        };
        self.effects.iter().filter_map(drop).collect()
    }
}

fn said(snapshot_id: SnapshotId, state: SnapshotState) -> SnapshotReport {
    let failed = state == SnapshotState::Failed;
    let cause = failed.then(|| Cause::new(Reason::SnapshotFailed, "no space left"));
    let sizes = SnapshotSizes { state_bytes: 1, memory_bytes: 2, disk_bytes: 3 };
    SnapshotReport { snapshot_id, state, cause, sizes }
}

pub fn from_snapshot(id: SnapshotId) -> SandboxSpec {
    SandboxSpec { source: Source::Snapshot(id), ..spec() }
}

#[test]
fn a_snapshot_is_taken_and_sandboxes_start_where_it_lies() {
    let mut bench = Bench::fleet(&[1, 4]);
    let filler = bench.running("filler");
    let source = SandboxSpec { environment: BTreeMap::from([("A".into(), "1".into())]), ..spec() };
    let source = bench.try_create("source", source).unwrap();
    let source = {
        bench.report("n1", 2, status(&source, 2, Phase::Running));
        bench.get(&source)
    };
    let snapshot = bench.snapshot("s", &source).unwrap();
    assert_eq!((snapshot.state, snapshot.node.as_str()), (SnapshotState::Creating, "n1"));
    assert_eq!(bench.taken(), [(snapshot.id, source.id)]);
    bench.says_of("n1", 2, snapshot.id, SnapshotState::Ready);
    assert_eq!(bench.engine.snapshot(snapshot.id).unwrap().sizes.memory_bytes, 2);
    // n0 is the better fit, and does not hold it
    bench.stop(&filler).unwrap();
    bench.report("n0", 1, status(&bench.get(&filler), 9, Phase::Stopped));
    let made = bench.try_create("made", from_snapshot(snapshot.id)).unwrap();
    assert_eq!((made.phase, made.node.clone()), (Phase::Assigned, Some(node_id("n1"))));
    assert_eq!(made.effective_spec().environment["A"], "1");
    assert_eq!(made.explanation.unwrap().sentence(), "1 of 2 nodes fit: 1 rejected by snapshot");
    assert_eq!(bench.phase(&source), Phase::Running, "it goes on");
}

#[test]
fn a_create_from_a_snapshot_waits_for_it_and_for_room() {
    let mut bench = Bench::fleet(&[1, 8]);
    let source = bench.running("source");
    assert_eq!(source.node, Some(node_id("n0")));
    let snapshot = bench.snapshot("s", &source).unwrap();
    let made = bench.try_create("made", from_snapshot(snapshot.id)).unwrap();
    assert_eq!(made.phase, Phase::Pending);
    let text = made.explanation.as_ref().unwrap().sentence();
    assert!(text.ends_with(&format!("; snapshot {} is still being taken on n0", snapshot.id)), "{text}");
    bench.says_of("n0", 1, snapshot.id, SnapshotState::Ready);
    assert_eq!(bench.phase(&made), Phase::Pending, "its node is full");
    let text = bench.engine.explain(made.id).unwrap().sentence();
    let wanted = format!(
        "0 of 2 nodes fit: 1 rejected by snapshot, 1 rejected by cpu; snapshot {} is on n0",
        snapshot.id
    );
    assert_eq!(text, wanted);
    bench.stop(&source).unwrap();
    bench.report("n0", 1, status(&bench.get(&source), 9, Phase::Stopped));
    assert_eq!(bench.phase(&made), Phase::Assigned);
}

#[test]
fn what_cannot_be_used_is_refused() {
    let mut bench = Bench::fleet(&[4]);
    let source = bench.create("source");
    assert_eq!(bench.snapshot("s", &source).unwrap_err().cause.reason, Reason::SandboxStarting);
    let nobody = SnapshotId(uuid(99));
    let refused = bench.try_create("a", from_snapshot(nobody)).unwrap_err();
    assert_eq!(refused.cause.reason, Reason::SnapshotNotFound);
    assert_eq!(bench.delete_snapshot("d", nobody).unwrap_err().cause.reason, Reason::SnapshotNotFound);
    bench.report("n0", 1, status(&source, 2, Phase::Running));
    let snapshot = bench.snapshot("s", &source).unwrap();
    bench.says_of("n0", 1, snapshot.id, SnapshotState::Failed);
    assert_eq!(
        (bench.state_of(snapshot.id), bench.dropped()),
        (Some(SnapshotState::Failed), vec![snapshot.id])
    );
    let refused = bench.try_create("a", from_snapshot(snapshot.id)).unwrap_err();
    assert_eq!(refused.cause.reason, Reason::SnapshotUnusable);
    let mut large = from_snapshot(snapshot.id);
    large.environment = (0..256).map(|n| (format!("V{n}"), String::new())).collect();
    let with = SandboxSpec { environment: BTreeMap::from([("A".into(), "1".into())]), ..spec() };
    let other = bench.try_create("other", with).unwrap();
    bench.report("n0", 1, status(&other, 2, Phase::Running));
    large.source = Source::Snapshot(bench.ready("s2", &other).id);
    let refused = bench.try_create("b", large).unwrap_err().cause;
    assert_eq!(refused.reason, Reason::InvalidArgument);
    assert!(refused.message.contains("257 entries, the limit is 256"), "{}", refused.message);
}

#[test]
fn a_snapshot_that_fails_fails_those_that_wait_for_it() {
    let mut bench = Bench::fleet(&[4]);
    let source = bench.running("source");
    let snapshot = bench.snapshot("s", &source).unwrap();
    let made = bench.try_create("made", from_snapshot(snapshot.id)).unwrap();
    bench.says_of("n0", 1, snapshot.id, SnapshotState::Failed);
    assert_eq!((bench.phase(&made), bench.reason(&made)), (Phase::Failed, Reason::SnapshotFailed));
    assert!(bench.get(&made).cause.unwrap().message.contains("no space left"));
    assert_eq!(bench.phase(&source), Phase::Running);
    bench.says_of("n0", 1, snapshot.id, SnapshotState::Ready);
    assert_eq!(bench.state_of(snapshot.id), Some(SnapshotState::Failed), "nothing leads back");
    assert_eq!(bench.dropped(), [snapshot.id]);
}

#[test]
fn a_snapshot_that_is_never_ready_fails_in_time() {
    let mut bench = Bench::fleet(&[4]);
    let source = bench.running("source");
    let snapshot = bench.snapshot("s", &source).unwrap();
    for _ in 0..(bench.config.snapshot_timeout.0 / 3_000 + 2) {
        bench.advance(Millis(3_000));
        bench.list_snapshots("n0", 1, vec![(snapshot.id, SnapshotState::Creating)]);
    }
    assert_eq!(bench.state_of(snapshot.id), Some(SnapshotState::Failed));
    assert_eq!(bench.dropped(), [snapshot.id], "its list still has it");
}

#[test]
fn a_sandbox_that_ends_meanwhile_leaves_the_word_to_the_node() {
    let mut bench = Bench::fleet(&[4]);
    let source = bench.running("source");
    let (done, failed) = (bench.snapshot("s", &source).unwrap(), bench.snapshot("t", &source).unwrap());
    bench.stop(&source).unwrap();
    bench.report("n0", 1, status(&bench.get(&source), 9, Phase::Stopped));
    assert_eq!(bench.state_of(done.id), Some(SnapshotState::Creating));
    bench.says_of("n0", 1, done.id, SnapshotState::Ready);
    bench.says_of("n0", 1, failed.id, SnapshotState::Failed);
    assert_eq!(bench.state_of(done.id), Some(SnapshotState::Ready), "it was whole before the end");
    assert_eq!(bench.state_of(failed.id), Some(SnapshotState::Failed));
}

#[test]
fn a_lost_node_takes_its_snapshots_with_it() {
    let mut bench = Bench::fleet(&[2]);
    let source = bench.running("source");
    let (ready, creating) = (bench.ready("a", &source), bench.snapshot("b", &source).unwrap());
    let doomed = bench.ready("c", &source);
    bench.delete_snapshot("d", doomed.id).unwrap();
    let waiting = bench.try_create("w", from_snapshot(creating.id)).unwrap();
    bench.advance(Millis(bench.config.lost_after.0 + 60_000));
    for lost in [ready.id, creating.id] {
        assert_eq!(bench.state_of(lost), Some(SnapshotState::Lost));
        assert_eq!(bench.engine.snapshot(lost).unwrap().cause.as_ref().unwrap().reason, Reason::NodeLost);
    }
    assert_eq!(bench.state_of(doomed.id), None, "nobody is left to drop it");
    assert_eq!((bench.phase(&waiting), bench.reason(&waiting)), (Phase::Failed, Reason::SnapshotUnusable));
    bench.join(registration("n0", 9, room(2)));
    bench.list_snapshots("n0", 9, vec![(ready.id, SnapshotState::Ready)]);
    assert_eq!(bench.state_of(ready.id), Some(SnapshotState::Lost), "nothing leads back");
    assert_eq!(bench.dropped(), [ready.id]);
    bench.advance(bench.config.ended_retention);
    assert_eq!(bench.state_of(ready.id), None, "kept to be read for a while");
}

#[test]
fn what_a_node_ought_not_to_have_is_dropped() {
    let mut bench = Bench::fleet(&[2, 2]);
    let source = bench.running("source");
    let snapshot = bench.ready("a", &source);
    let unknown = SnapshotId(uuid(77));
    bench.list_snapshots(
        "n1",
        2,
        vec![(snapshot.id, SnapshotState::Ready), (unknown, SnapshotState::Failed)],
    );
    assert_eq!(bench.dropped(), [snapshot.id, unknown], "it lies on n0");
    assert_eq!(bench.state_of(snapshot.id), Some(SnapshotState::Ready));
}

#[test]
fn one_list_never_ends_a_snapshot_by_lacking_it() {
    let mut bench = Bench::fleet(&[2]);
    let source = bench.running("source");
    let (ready, creating) = (bench.ready("a", &source), bench.snapshot("b", &source).unwrap());
    bench.list_snapshots("n0", 1, vec![]);
    assert_eq!(bench.state_of(ready.id), Some(SnapshotState::Ready));
    assert_eq!(bench.state_of(creating.id), Some(SnapshotState::Creating));
    bench.advance(bench.config.forgotten_after);
    bench.list_snapshots("n0", 1, vec![]);
    assert_eq!(bench.state_of(ready.id), Some(SnapshotState::Lost));
    assert_eq!(bench.state_of(creating.id), Some(SnapshotState::Failed));
}

#[test]
fn a_delete_waits_for_the_node_and_for_those_who_need_it() {
    let mut bench = Bench::fleet(&[4]);
    let source = bench.running("source");
    let snapshot = bench.ready("a", &source);
    let made = bench.try_create("made", from_snapshot(snapshot.id)).unwrap();
    let refused = bench.delete_snapshot("d", snapshot.id).unwrap_err().cause;
    assert_eq!(refused.reason, Reason::SnapshotInUse);
    bench.report("n0", 1, status(&made, 1, Phase::Starting));
    assert_eq!(bench.delete_snapshot("d", snapshot.id).unwrap_err().cause.reason, Reason::SnapshotInUse);
    bench.report("n0", 1, status(&made, 2, Phase::Running));
    assert_eq!(bench.delete_snapshot("d", snapshot.id).unwrap().state, SnapshotState::Deleting);
    assert_eq!(bench.dropped(), [snapshot.id]);
    bench.list_snapshots("n0", 1, vec![(snapshot.id, SnapshotState::Ready)]);
    assert_eq!(
        (bench.state_of(snapshot.id), bench.dropped()),
        (Some(SnapshotState::Deleting), vec![snapshot.id])
    );
    bench.list_snapshots("n0", 1, vec![]);
    assert_eq!(bench.state_of(snapshot.id), None);
    assert_eq!(bench.delete_snapshot("d", snapshot.id).unwrap().id, snapshot.id, "a repetition");
    assert_eq!(bench.delete_snapshot("e", snapshot.id).unwrap_err().cause.reason, Reason::SnapshotNotFound);
}

#[test]
fn a_repeated_create_is_one_snapshot() {
    let mut bench = Bench::fleet(&[2]);
    let (source, other) = (bench.running("source"), bench.running("other"));
    let first = bench.snapshot("s", &source).unwrap();
    bench.says_of("n0", 1, first.id, SnapshotState::Ready);
    let again = bench.snapshot("s", &source).unwrap();
    assert_eq!((again.id, again.state), (first.id, SnapshotState::Ready));
    assert_eq!(bench.taken(), []);
    assert_eq!(bench.snapshot("s", &other).unwrap_err().cause.reason, Reason::RequestIdConflict);
    assert_eq!(bench.snapshot("source", &source).unwrap_err().cause.reason, Reason::RequestIdConflict);
    for _ in 0..=bench.config.request_retention.0 / 3_000 {
        bench.advance(Millis(3_000));
        bench.list_snapshots("n0", 1, vec![(first.id, SnapshotState::Ready)]);
    }
    assert_eq!(bench.snapshot("s", &source).unwrap().id, first.id, "for as long as it is kept");
}

#[test]
fn snapshots_are_bounded() {
    let config = EngineConfig { snapshots: 3, snapshots_per_node: 2, ..EngineConfig::default() };
    let mut bench = Bench::with(config);
    bench.join_all(&[1, 1]);
    let (a, b) = (bench.running("a"), bench.running("b"));
    bench.ready("1", &a);
    let second = bench.ready("2", &a);
    let refused = bench.snapshot("3", &a).unwrap_err().cause;
    assert_eq!(refused.reason, Reason::LimitReached);
    assert!(refused.message.contains("n0 has 2 snapshots already, the limit is 2"), "{}", refused.message);
    bench.ready("4", &b);
    assert!(bench.snapshot("5", &b).unwrap_err().cause.message.contains("the limit is 3"));
    bench.delete_snapshot("d", second.id).unwrap();
    bench.list_snapshots("n0", 1, vec![]);
    bench.snapshot("6", &b).unwrap();
}

#[test]
fn a_restart_finds_snapshots_and_who_needs_them() {
    let mut bench = Bench::fleet(&[2]);
    let source = bench.running("source");
    let (ready, creating) = (bench.ready("a", &source), bench.snapshot("b", &source).unwrap());
    let waiting = bench.try_create("w", from_snapshot(creating.id)).unwrap();
    bench.restart();
    assert_eq!(bench.delete_snapshot("d", creating.id).unwrap_err().cause.reason, Reason::SnapshotInUse);
    let mut back = registration("n0", 5, room(2));
    back.statuses = vec![status(&source, 1, Phase::Running)];
    back.snapshots = vec![said(ready.id, SnapshotState::Ready)];
    bench.join(back);
    assert_eq!(bench.taken(), [(creating.id, source.id)], "the node has not heard of it");
    assert_eq!(bench.state_of(ready.id), Some(SnapshotState::Ready));
    bench.says_of("n0", 5, creating.id, SnapshotState::Ready);
    assert_eq!(bench.phase(&waiting), Phase::Assigned);
    let remembered =
        bench.operations.values().filter(|r| matches!(r.operation, Operation::CreateSnapshot(_)));
    assert_eq!(remembered.count(), 2);
    bench.advance(bench.config.request_retention);
    assert_eq!(bench.operations.len(), 2, "both are lost, and still listed");
    bench.advance(Millis(bench.config.ended_retention.0 + bench.config.request_retention.0));
    assert_eq!((bench.operations.len(), bench.snapshots.len()), (0, 0), "for a while after their end");
}

#[test]
fn failed_snapshots_are_listed_for_a_while_in_bounded_number_and_take_no_place() {
    let config =
        EngineConfig { snapshots: 3, snapshots_per_node: 2, ended_snapshots: 4, ..EngineConfig::default() };
    let mut bench = Bench::with(config);
    bench.join_all(&[2]);
    let source = bench.running("source");
    let mut failed = Vec::new();
    for n in 0..9 {
        let snapshot = bench.snapshot(&format!("s{n}"), &source).expect("those that failed do not count");
        bench.says_of("n0", 1, snapshot.id, SnapshotState::Failed);
        failed.push(snapshot.id);
    }
    let listed: Vec<_> = bench.engine.snapshots().map(|snapshot| snapshot.id).collect();
    assert_eq!(listed, failed[5..], "the oldest went first");
    assert_eq!(bench.snapshots.len(), 4, "in the store too");
    bench.restart();
    assert_eq!(bench.engine.snapshots().count(), 4);
}
