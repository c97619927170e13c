use super::*;

#[test]
fn ended_sandboxes_are_kept_for_a_while() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.running("a");
    bench.report("n0", 1, status(&sandbox, 3, Phase::Stopped));
    bench.advance_with_heartbeats(Millis(bench.config.ended_retention.0 - 1), &[("n0", 1, vec![])]);
    assert_eq!(bench.phase(&sandbox), Phase::Stopped);
    bench.advance(Millis(1));
    assert!(bench.engine.sandbox(sandbox.id).is_none() && bench.stored.is_empty());
}

#[test]
fn the_oldest_ended_goes_when_there_are_too_many() {
    let mut bench =
        Bench::with(EngineConfig { ended_sandboxes: 2, remembered_requests: 1, ..Default::default() });
    bench.join_all(&[1]);
    let mut ended = Vec::new();
    for request in ["a", "b", "c", "d", "e"] {
        let sandbox = bench.running(request);
        bench.report("n0", 1, status(&sandbox, 3, Phase::Stopped));
        bench.advance_with_heartbeats(Millis(10), &[("n0", 1, vec![])]);
        ended.push(sandbox.id);
    }
    let kept: Vec<_> = bench.engine.sandboxes().map(|sandbox| sandbox.id).collect();
    assert_eq!(kept, ended[3..]);
    assert_eq!(bench.requests.len(), 1);
    assert_eq!(bench.requests.values().next().unwrap().sandbox.id, ended[2]);
}

#[test]
fn a_node_too_many_is_sent_away() {
    let mut bench = Bench::with(EngineConfig { nodes: 1, ..Default::default() });
    bench.join(registration("n0", 1, room(1)));
    bench.join(registration("n1", 2, room(1)));
    assert_eq!((bench.closed(), bench.engine.nodes().count()), (vec![2], 1));
    bench.join(registration("n0", 3, room(1)));
    assert_eq!(bench.closed(), [1], "a known node is always welcome");
}

#[test]
fn the_work_of_a_step_is_bounded_and_goes_on_at_once() {
    let mut bench = Bench::with(EngineConfig { work_per_step: 3, ..Default::default() });
    let ids: Vec<_> = (0..8).map(|n| bench.create(&format!("r{n}")).id).collect();
    bench.join(registration("n0", 1, room(8)));
    assert_eq!(bench.assigns().len(), 3);
    assert_eq!(bench.engine.next_deadline(), Some(bench.now));
    // who comes now stands behind those that wait, although there is room
    let late = bench.create("late");
    assert_eq!((late.phase, bench.assigns().len()), (Phase::Pending, 3));
    assert_eq!(late.explanation.unwrap().verdict, pinfold_domain::Verdict::Wait);
    bench.step(Event::Tick);
    assert_eq!(bench.assigns().len(), 2);
    assert_ne!(bench.engine.next_deadline(), Some(bench.now));
    assert_eq!(bench.engine.queue_length(), 1);
    let placed = bench.engine.sandboxes().filter(|sandbox| sandbox.phase == Phase::Assigned);
    let order: Vec<_> = placed.map(|sandbox| (sandbox.revision, sandbox.id)).collect();
    let mut by_revision = order.clone();
    by_revision.sort();
    assert_eq!(by_revision.into_iter().map(|(_, id)| id).collect::<Vec<_>>(), ids, "the oldest first");
}

#[test]
fn configuration_is_checked() {
    let zero = EngineConfig { queue_length: 0, ..Default::default() };
    assert_eq!(zero.validate().unwrap_err().to_string(), "queue_length is 0, it must be at least 1");
    let order = EngineConfig { lost_after: Millis(5), ..Default::default() };
    let error = order.validate().unwrap_err().to_string();
    assert_eq!(error, "lost_after_ms is 5 ms, it must be more than disconnected_after_ms, which is 30000 ms");
    assert!(EngineConfig::default().validate().is_ok());
}

#[test]
fn revisions_rise_by_one_with_each_change_of_a_sandbox() {
    let mut bench = Bench::fleet(&[2]);
    let mut seen = 0;
    for request in ["a", "b"] {
        let sandbox = bench.create(request);
        for (sequence, phase) in [(1, Phase::Starting), (2, Phase::Running), (3, Phase::Stopped)] {
            bench.report("n0", 1, status(&sandbox, sequence, phase));
            assert_eq!((bench.writes(), bench.get(&sandbox).revision.0), (1, seen + sequence + 1));
            bench.heartbeat("n0", 1, vec![status(&sandbox, sequence, phase)]);
            assert_eq!(bench.writes(), 0, "a list that says nothing new is not written");
        }
        seen += 4;
    }
    assert_eq!(bench.engine.revision().0, 8);
}
