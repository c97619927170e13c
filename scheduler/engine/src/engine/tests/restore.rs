use super::*;

#[test]
fn everything_accepted_is_there_again() {
    let mut bench = Bench::fleet(&[3]);
    let running = bench.running("running");
    let assigned = bench.create("assigned");
    let ended = bench.running("ended");
    bench.report("n0", 1, status(&ended, 3, Phase::Stopped));
    let mut large = spec();
    large.resources = room(3);
    let waiting = bench.try_create("waiting", large).unwrap();
    let before: Vec<Sandbox> = bench.engine.sandboxes().cloned().collect();
    let revision = bench.engine.revision();
    bench.restart();
    assert_eq!(bench.engine.sandboxes().cloned().collect::<Vec<_>>(), before);
    assert_eq!((bench.engine.revision(), bench.engine.queue_length()), (revision, 1));
    assert_eq!(bench.engine.nodes().count(), 0, "an awaited node is not listed");

    let mut back = registration("n0", 7, room(3));
    back.statuses = vec![status(&running, 1, Phase::Running), status(&ended, 9, Phase::Stopped)];
    bench.join(back);
    assert_eq!(bench.phase(&running), Phase::Running);
    assert_eq!(bench.assigns(), vec![("n0".to_owned(), 7, assigned.clone())], "the same epoch again");
    assert_eq!(bench.forgets(), [(ended.id, Epoch(1))]);
    assert_eq!(bench.engine.node(&node_id("n0")).unwrap().sandboxes, 2);
    assert_eq!(bench.phase(&waiting), Phase::Pending);
    assert_eq!(bench.create("running").id, running.id);
}

#[test]
fn a_node_that_never_comes_back_is_lost_in_time() {
    let mut bench = Bench::fleet(&[3]);
    let running = bench.running("a");
    let mut slow = spec();
    slow.ttl = Millis::from_secs(7_200);
    let assigned = bench.try_create("b", slow).unwrap();
    bench.restart();
    bench.advance(bench.config.assignment_timeout);
    // nobody was heard to accept it
    assert_eq!((bench.phase(&assigned), bench.phase(&running)), (Phase::Pending, Phase::Running));
    bench.advance(bench.config.lost_after);
    assert_eq!((bench.phase(&running), bench.reason(&running)), (Phase::Lost, Reason::NodeLost));
    assert_eq!(bench.engine.state.cluster.all().count(), 0);
}

#[test]
fn nothing_is_called_unplaceable_while_the_fleet_dials_in() {
    let mut bench = Bench::fleet(&[1, 4]);
    bench.running("a");
    bench.restart();
    bench.join(registration("n0", 3, room(1)));
    let mut large = spec();
    large.resources = room(4);
    let waiting = bench.try_create("b", large.clone()).unwrap();
    assert_eq!(waiting.phase, Phase::Pending);
    bench.join(registration("n1", 4, room(4)));
    assert_eq!(bench.phase(&waiting), Phase::Assigned);
    let list = vec![status(&bench.get(&waiting), 1, Phase::Running)];
    bench.advance_with_heartbeats(bench.config.settle_after_restore, &[("n0", 3, vec![]), ("n1", 4, list)]);
    large.resources = room(5);
    assert_eq!(bench.try_create("c", large).unwrap_err().cause.reason, Reason::Unplaceable);
}

#[test]
fn attempts_are_counted_across_restarts() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.create("a");
    for session in 2..=bench.config.assignment_attempts {
        let current = bench.get(&sandbox);
        bench.refuse("n0", session - 1, &current, "busy");
        bench.restart();
        bench.join(registration("n0", session, room(1)));
        assert_eq!(bench.get(&sandbox).epoch, Epoch(session));
    }
    let current = bench.get(&sandbox);
    bench.refuse("n0", bench.config.assignment_attempts, &current, "busy");
    assert_eq!((bench.phase(&sandbox), bench.reason(&sandbox)), (Phase::Failed, Reason::NodeRefused));
}

#[test]
fn a_record_without_its_node_fails_and_is_said() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.running("a");
    bench.stored.get_mut(&sandbox.id).unwrap().node = None;
    bench.restart();
    bench.step(Event::Tick);
    assert_eq!((bench.phase(&sandbox), bench.reason(&sandbox)), (Phase::Failed, Reason::Internal));
    assert_eq!(bench.writes(), 1);
}
