//! Forks: all or none, and the snapshot made for them ends with them.

use super::*;
use crate::event::{ForkRequest, ForkSource};
use pinfold_domain::SnapshotState;

#[derive(Debug, Clone)]
struct Forks {
    sandboxes: Vec<Sandbox>,
    snapshot: SnapshotId,
}

impl Bench {
    fn fork(&mut self, request: &str, source: ForkSource, count: u64) -> Result<Forks, Rejection> {
        self.fork_with(request, source, count, |_| {})
    }

    fn fork_with(
        &mut self,
        request: &str,
        source: ForkSource,
        count: u64,
        change: impl FnOnce(&mut ForkRequest),
    ) -> Result<Forks, Rejection> {
        let call = self.call();
        let mut fork = ForkRequest {
            tenant: Default::default(),
            request_id: request.parse().unwrap(),
            source,
            sandbox_ids: (0..count).map(|n| SandboxId(uuid(self.calls * 1_000 + n))).collect(),
            snapshot_id: SnapshotId(uuid(self.calls)),
            name: String::new(),
            labels: BTreeMap::new(),
            ttl: None,
        };
        change(&mut fork);
        self.step(Event::Fork { call, fork: Box::new(fork) });
        self.answered(call).map(|answered| match answered {
            Answered::Forks { sandboxes, snapshot_id } => Forks { sandboxes, snapshot: snapshot_id },
            other => panic!("not forks: {other:?}"),
        })
    }

    fn phases(&self, forks: &Forks) -> Vec<Phase> {
        forks.sandboxes.iter().map(|sandbox| self.phase(sandbox)).collect()
    }

    fn start_all(&mut self, forks: &Forks) {
        for sandbox in &forks.sandboxes {
            let sandbox = self.get(sandbox);
            self.report("n0", 1, status(&sandbox, 2, Phase::Running));
        }
    }
}

#[test]
fn forks_wait_for_their_snapshot_which_ends_when_the_last_has_started() {
    let mut bench = Bench::fleet(&[4, 9]);
    let labels = BTreeMap::from([("team".to_owned(), "blue".to_owned())]);
    let environment = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
    let source = SandboxSpec { labels, environment, name: "origin".to_owned(), ..spec() };
    let source = bench.try_create("source", source).unwrap();
    bench.report("n0", 1, status(&source, 2, Phase::Running));
    let more = BTreeMap::from([("branch".to_owned(), "b".to_owned())]);
    let forks = bench.fork_with("f", ForkSource::Sandbox(source.id), 3, |fork| fork.labels = more).unwrap();
    assert_eq!(bench.taken(), [(forks.snapshot, source.id)]);
    assert_eq!(bench.phases(&forks), [Phase::Pending; 3]);
    let one = &forks.sandboxes[0];
    assert_eq!((one.spec.name.as_str(), one.spec.labels.len()), ("origin", 2));
    assert_eq!(one.effective_spec().environment["A"], "1");
    assert!(one.explanation.as_ref().unwrap().note.contains("is still being taken on n0"));
    bench.says_of("n0", 1, forks.snapshot, SnapshotState::Ready);
    assert_eq!(bench.phases(&forks), [Phase::Assigned; 3]);
    let nodes: BTreeSet<_> = forks.sandboxes.iter().map(|fork| bench.get(fork).node.unwrap()).collect();
    assert_eq!(nodes, BTreeSet::from([node_id("n0")]), "where it lies");
    let two = Forks { sandboxes: forks.sandboxes[..2].to_vec(), ..forks.clone() };
    bench.start_all(&two);
    assert_eq!(bench.state_of(forks.snapshot), Some(SnapshotState::Ready), "one has not started");
    bench.start_all(&forks);
    assert_eq!(
        (bench.state_of(forks.snapshot), bench.dropped()),
        (Some(SnapshotState::Deleting), vec![forks.snapshot])
    );
    bench.list_snapshots("n0", 1, vec![]);
    assert_eq!(bench.state_of(forks.snapshot), None);
    assert_eq!((bench.phase(&source), bench.phases(&forks)), (Phase::Running, vec![Phase::Running; 3]));
}

#[test]
fn a_sandbox_of_another_tenant_is_forked_by_nobody() {
    let mut bench = Bench::fleet(&[4]);
    let source = bench.running("source");
    let stranger = |fork: &mut ForkRequest| fork.tenant = "stranger".parse().unwrap();
    let refused = bench.fork_with("f", ForkSource::Sandbox(source.id), 1, stranger).unwrap_err().cause;
    let unknown = SandboxId(uuid(4_711));
    let nowhere = bench.fork_with("g", ForkSource::Sandbox(unknown), 1, stranger).unwrap_err().cause;
    assert_eq!(refused.reason, nowhere.reason, "the two are not told apart");
    assert_eq!(refused.message.replace(&source.id.to_string(), &unknown.to_string()), nowhere.message);
    assert_eq!(bench.taken(), []);
}

#[test]
fn a_fork_of_a_snapshot_leaves_it() {
    let mut bench = Bench::fleet(&[4]);
    let source = bench.running("source");
    let snapshot = bench.ready("s", &source);
    let forks = bench.fork("f", ForkSource::Snapshot(snapshot.id), 2).unwrap();
    assert_eq!((forks.snapshot, bench.taken()), (snapshot.id, vec![]));
    assert_eq!(bench.phases(&forks), [Phase::Assigned; 2], "placed at once");
    bench.start_all(&forks);
    assert_eq!(bench.state_of(snapshot.id), Some(SnapshotState::Ready));
}

#[test]
fn a_fork_is_accepted_whole_or_not_at_all() {
    let config = EngineConfig { queue_length: 3, snapshots: 1, ..EngineConfig::default() };
    let mut bench = Bench::with(config);
    bench.join_all(&[9]);
    let source = bench.running("source");
    let before = bench.engine.sandboxes().count();
    let of = ForkSource::Sandbox(source.id);
    assert_eq!(bench.fork("f", of, 4).unwrap_err().cause.reason, Reason::QueueFull);
    for count in [0, 65] {
        let refused = bench.fork("f", of, count).unwrap_err().cause;
        assert_eq!(refused.message, format!("count is {count}, outside 1 to 64"));
    }
    let many = |fork: &mut ForkRequest| {
        fork.labels = (0..33).map(|n| (format!("l{n}"), String::new())).collect();
    };
    assert_eq!(bench.fork_with("f", of, 2, many).unwrap_err().cause.reason, Reason::InvalidArgument);
    let nobody = ForkSource::Sandbox(SandboxId(uuid(5)));
    assert_eq!(bench.fork("f", nobody, 2).unwrap_err().cause.reason, Reason::SandboxNotFound);
    bench.ready("s", &source);
    assert_eq!(bench.fork("f", of, 2).unwrap_err().cause.reason, Reason::LimitReached);
    assert_eq!(bench.engine.sandboxes().count(), before, "nothing of any of them was stored");
    assert_eq!((bench.engine.snapshots().count(), bench.engine.queue_length()), (1, 0));
}

#[test]
fn a_repeated_fork_gives_the_same_sandboxes() {
    let mut bench = Bench::fleet(&[4]);
    let source = bench.running("source");
    let of = ForkSource::Sandbox(source.id);
    let first = bench.fork("f", of, 2).unwrap();
    let again = bench.fork("f", of, 2).unwrap();
    let ids = |forks: &Forks| forks.sandboxes.iter().map(|s| s.id).collect::<Vec<_>>();
    assert_eq!((ids(&again), again.snapshot), (ids(&first), first.snapshot));
    assert_eq!(bench.taken(), []);
    assert_eq!(bench.fork("f", of, 3).unwrap_err().cause.reason, Reason::RequestIdConflict);
    bench.delete(&first.sandboxes[0]).unwrap();
    let late = bench.fork("f", of, 2).unwrap();
    assert_eq!(ids(&late), ids(&first), "also of those that are gone");
}

#[test]
fn forks_of_a_snapshot_that_fails_fail_and_it_is_dropped() {
    let mut bench = Bench::fleet(&[4]);
    let source = bench.running("source");
    let forks = bench.fork("f", ForkSource::Sandbox(source.id), 2).unwrap();
    bench.says_of("n0", 1, forks.snapshot, SnapshotState::Failed);
    assert_eq!(bench.phases(&forks), [Phase::Failed; 2]);
    assert_eq!(bench.reason(&forks.sandboxes[0]), Reason::SnapshotFailed);
    assert_eq!(bench.state_of(forks.snapshot), None, "nobody asked to keep it");
    assert_eq!(bench.phase(&source), Phase::Running);
}

#[test]
fn the_snapshot_ends_when_all_forks_are_stopped_before_it_is_ready() {
    let mut bench = Bench::fleet(&[4]);
    let source = bench.running("source");
    let forks = bench.fork("f", ForkSource::Sandbox(source.id), 2).unwrap();
    bench.stop(&forks.sandboxes[0]).unwrap();
    assert_eq!(bench.state_of(forks.snapshot), Some(SnapshotState::Creating));
    bench.delete(&forks.sandboxes[1]).unwrap();
    assert_eq!(bench.state_of(forks.snapshot), Some(SnapshotState::Deleting));
    bench.says_of("n0", 1, forks.snapshot, SnapshotState::Ready);
    assert_eq!(bench.dropped(), [forks.snapshot], "it was ready too late");
    bench.list_snapshots("n0", 1, vec![]);
    assert_eq!(bench.state_of(forks.snapshot), None);
}

#[test]
fn a_node_lost_meanwhile_ends_everything_of_the_fork() {
    let mut bench = Bench::fleet(&[2]);
    let source = bench.running("source");
    let forks = bench.fork("f", ForkSource::Sandbox(source.id), 2).unwrap();
    bench.says_of("n0", 1, forks.snapshot, SnapshotState::Ready);
    assert_eq!(bench.phases(&forks), [Phase::Assigned, Phase::Pending], "room for one");
    bench.advance(Millis(bench.config.lost_after.0 + 60_000));
    assert_eq!(bench.state_of(forks.snapshot), None);
    assert!(bench.phases(&forks).iter().all(|phase| phase.is_final()), "{:?}", bench.phases(&forks));
}

#[test]
fn a_fork_that_its_node_refuses_for_a_lost_snapshot_does_not_wait_for_it() {
    let mut bench = Bench::fleet(&[4]);
    let source = bench.running("source");
    let forks = bench.fork("f", ForkSource::Sandbox(source.id), 1).unwrap();
    bench.says_of("n0", 1, forks.snapshot, SnapshotState::Ready);
    let fork = bench.get(&forks.sandboxes[0]);
    bench.says_of("n0", 1, forks.snapshot, SnapshotState::Failed);
    assert_eq!(bench.state_of(forks.snapshot), Some(SnapshotState::Lost), "it was whole");
    bench.refuse("n0", 1, &fork, "the snapshot is damaged");
    assert_eq!((bench.phase(&fork), bench.reason(&fork)), (Phase::Failed, Reason::SnapshotUnusable));
    assert_eq!(bench.state_of(forks.snapshot), None);
}

#[test]
fn a_restart_finds_a_fork_under_way() {
    let mut bench = Bench::fleet(&[4]);
    let source = bench.running("source");
    let forks = bench.fork("f", ForkSource::Sandbox(source.id), 2).unwrap();
    bench.restart();
    let mut back = registration("n0", 2, room(4));
    back.statuses = vec![status(&source, 1, Phase::Running)];
    bench.join(back);
    assert_eq!(bench.taken(), [(forks.snapshot, source.id)]);
    bench.says_of("n0", 2, forks.snapshot, SnapshotState::Ready);
    assert_eq!(bench.phases(&forks), [Phase::Assigned; 2]);
}

#[test]
fn a_fork_is_known_by_its_request_id_while_any_of_it_is_kept() {
    let config = EngineConfig { remembered_requests: 2, ..EngineConfig::default() };
    let mut bench = Bench::with(config);
    bench.join_all(&[4]);
    let source = bench.running("source");
    let of = ForkSource::Sandbox(source.id);
    let first = bench.fork("f", of, 2).unwrap();
    bench.says_of("n0", 1, first.snapshot, SnapshotState::Ready);
    bench.start_all(&first);
    let running = |bench: &Bench| -> Vec<NodeReport> {
        let live = bench.engine.sandboxes().filter(|sandbox| sandbox.phase.holds_room());
        live.map(|sandbox| status(sandbox, 10, sandbox.phase)).collect()
    };
    let repeated = |bench: &mut Bench| {
        let again = bench.fork("f", of, 2).unwrap();
        (again.sandboxes.iter().map(|s| s.id).collect::<Vec<_>>(), bench.engine.sandboxes().count())
    };
    let ids: Vec<SandboxId> = first.sandboxes.iter().map(|sandbox| sandbox.id).collect();
    let long = Millis(bench.config.request_retention.0 + 60_000);
    let list = running(&bench);
    bench.advance_with_heartbeats(long, &[("n0", 1, list)]);
    assert_eq!(repeated(&mut bench), (ids.clone(), 3), "its time is over, its sandboxes live");
    // other requests beyond the number that is remembered, and a restart
    for n in 0..4 {
        bench.pause(&format!("p{n}"), &source).unwrap();
    }
    assert_eq!(bench.operations.len(), 3, "two by their age, and the fork");
    bench.restart();
    let mut back = registration("n0", 2, room(4));
    back.statuses = running(&bench);
    bench.join(back);
    assert_eq!(repeated(&mut bench), (ids.clone(), 3));
    // one of them is gone, and forgotten
    bench.stop(&first.sandboxes[0]).unwrap();
    let stopped = bench.get(&first.sandboxes[0]);
    bench.report("n0", 2, status(&stopped, u64::MAX, Phase::Stopped));
    bench.delete(&first.sandboxes[0]).unwrap();
    let list = running(&bench);
    bench.advance_with_heartbeats(long, &[("n0", 2, list)]);
    assert_eq!(repeated(&mut bench), (vec![ids[1]], 2), "what is left of it");
    bench.stop(&first.sandboxes[1]).unwrap();
    let stopped = bench.get(&first.sandboxes[1]);
    bench.report("n0", 2, status(&stopped, u64::MAX, Phase::Stopped));
    bench.delete(&first.sandboxes[1]).unwrap();
    assert_eq!(repeated(&mut bench), (vec![ids[1]], 1), "for a while after its end");
    let list = running(&bench);
    bench.advance_with_heartbeats(long, &[("n0", 2, list)]);
    assert_eq!(bench.operations.len(), 0);
}
