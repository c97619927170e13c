use super::*;

#[test]
fn a_stop_is_told_to_the_node_and_ends_with_its_report() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.running("a");
    let stopping = bench.stop(&sandbox).unwrap();
    assert_eq!(stopping.phase, Phase::Stopping);
    assert_eq!(bench.stops(), [(sandbox.id, Epoch(1), Reason::StopRequested, Millis(1_500))]);
    // again: the same answer, nothing is stored, nothing is sent
    assert_eq!(bench.stop(&sandbox).unwrap(), stopping);
    assert_eq!(bench.effects.len(), 1);
    // room is held until the node says that nothing is left
    assert_eq!(bench.engine.node(&node_id("n0")).unwrap().sandboxes, 1);
    let mut report = status(&sandbox, 3, Phase::Stopping);
    bench.report("n0", 1, report.clone());
    report.sequence = 4;
    report.phase = Phase::Stopped;
    report.cause = Some(Cause::new(Reason::GuestPowerOff, "the guest obeyed"));
    bench.report("n0", 1, report);
    assert_eq!((bench.phase(&sandbox), bench.reason(&sandbox)), (Phase::Stopped, Reason::StopRequested));
    assert_eq!(bench.engine.node(&node_id("n0")).unwrap().sandboxes, 0);
    assert_eq!(bench.stop(&sandbox).unwrap().phase, Phase::Stopped);
}

#[test]
fn a_second_stop_may_be_less_patient() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.running("a");
    bench.stop(&sandbox).unwrap();
    let (call, request_id, sandbox_id) = (bench.call(), "r".parse().unwrap(), sandbox.id);
    bench.step(Event::Stop { call, request_id, sandbox_id, grace: Millis(0) });
    assert_eq!(bench.stops(), [(sandbox.id, Epoch(1), Reason::StopRequested, Millis(0))]);
}

#[test]
fn what_waits_stops_at_once() {
    let mut bench = Bench::new();
    let sandbox = bench.create("a");
    let stopped = bench.stop(&sandbox).unwrap();
    assert_eq!(stopped.phase, Phase::Stopped);
    assert_eq!(bench.engine.queue_length(), 0);
    bench.join(registration("n0", 1, room(1)));
    assert_eq!(bench.phase(&sandbox), Phase::Stopped);
}

#[test]
fn a_stop_that_the_node_did_not_hear_is_repeated() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.running("a");
    bench.step(Event::NodeGone { node: node_id("n0"), session: SessionId(1) });
    assert_eq!(bench.stop(&sandbox).unwrap().phase, Phase::Stopping);
    assert!(bench.stops().is_empty(), "there is nobody to tell");
    let mut back = registration("n0", 2, room(1));
    back.statuses = vec![status(&sandbox, 1, Phase::Running)];
    bench.join(back);
    assert_eq!(bench.stops(), [(sandbox.id, Epoch(1), Reason::StopRequested, Millis(1_500))]);
    bench.heartbeat("n0", 2, vec![status(&sandbox, 1, Phase::Running)]);
    assert_eq!(bench.stops().len(), 1);
    bench.heartbeat("n0", 2, vec![status(&sandbox, 2, Phase::Stopping)]);
    assert!(bench.stops().is_empty());
    bench.heartbeat("n0", 2, vec![status(&sandbox, 3, Phase::Stopped)]);
    assert_eq!(bench.phase(&sandbox), Phase::Stopped);
}

#[test]
fn a_stop_before_the_node_accepted() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.create("a");
    bench.stop(&sandbox).unwrap();
    bench.refuse("n0", 1, &sandbox, "busy");
    assert_eq!((bench.phase(&sandbox), bench.reason(&sandbox)), (Phase::Stopped, Reason::StopRequested));

    let other = bench.create("b");
    bench.stop(&other).unwrap();
    // the node never got it: its next session's lists show that
    bench.join(registration("n0", 2, room(1)));
    assert_eq!(bench.phase(&other), Phase::Stopping);
    bench.advance_with_heartbeats(bench.config.forgotten_after, &[("n0", 2, vec![])]);
    assert_eq!((bench.phase(&other), bench.reason(&other)), (Phase::Stopped, Reason::StopRequested));
}

#[test]
fn a_delete_stops_first_and_then_removes() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.running("a");
    let answer = bench.delete(&sandbox).unwrap();
    assert_eq!(answer.phase, Phase::Stopping);
    assert_eq!(bench.stops()[0].2, Reason::DeleteRequested);
    bench.report("n0", 1, status(&sandbox, 3, Phase::Stopped));
    assert!(bench.engine.sandbox(sandbox.id).is_none() && bench.stored.is_empty());
    assert_eq!(bench.forgets(), [(sandbox.id, Epoch(1))]);
    // a repetition finds the last state; a stop does not
    assert_eq!(bench.delete(&sandbox).unwrap().phase, Phase::Stopped);
    assert_eq!(bench.stop(&sandbox).unwrap_err().cause.reason, Reason::SandboxNotFound);
}

#[test]
fn a_delete_of_what_waits_has_ended_or_stops() {
    let mut bench = Bench::new();
    let waiting = bench.create("a");
    assert_eq!(bench.delete(&waiting).unwrap().phase, Phase::Stopped);
    assert!(bench.stored.is_empty());

    bench.join(registration("n0", 1, room(1)));
    let running = bench.running("b");
    bench.stop(&running).unwrap();
    assert_eq!(bench.delete(&running).unwrap().cause.unwrap().reason, Reason::DeleteRequested);
    bench.report("n0", 1, status(&running, 3, Phase::Stopped));
    assert!(bench.stored.is_empty());

    let ended = bench.running("c");
    bench.report("n0", 1, status(&ended, 3, Phase::Stopped));
    assert_eq!(bench.stored.len(), 1);
    bench.delete(&ended).unwrap();
    assert!(bench.stored.is_empty());
}

#[test]
fn a_delete_survives_a_restart() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.running("a");
    bench.delete(&sandbox).unwrap();
    bench.restart();
    let mut back = registration("n0", 2, room(1));
    back.statuses = vec![status(&sandbox, 1, Phase::Stopped)];
    bench.join(back);
    assert!(bench.stored.is_empty());
}

#[test]
fn unknown_sandboxes_are_not_found() {
    let mut bench = Bench::fleet(&[1]);
    let mut sandbox = bench.create("a");
    sandbox.id = SandboxId(uuid(999));
    assert_eq!(bench.stop(&sandbox).unwrap_err().cause.reason, Reason::SandboxNotFound);
    assert_eq!(bench.delete(&sandbox).unwrap_err().cause.reason, Reason::SandboxNotFound);
}

#[test]
fn the_time_to_live_ends_it_in_every_phase() {
    let mut bench = Bench::fleet(&[1]);
    let ttl = Millis::from_secs(30);
    let short = SandboxSpec { ttl, ..spec() };
    let running = bench.try_create("a", short.clone()).unwrap();
    let waiting = bench.try_create("b", short).unwrap();
    assert_eq!(waiting.phase, Phase::Pending);
    let list = vec![status(&running, 1, Phase::Running)];
    bench.report("n0", 1, list[0].clone());
    bench.advance_with_heartbeats(Millis(ttl.0 - 1), &[("n0", 1, list.clone())]);
    assert_eq!((bench.phase(&running), bench.phase(&waiting)), (Phase::Running, Phase::Pending));
    bench.advance(Millis(1));
    assert_eq!((bench.phase(&running), bench.reason(&running)), (Phase::Stopping, Reason::TtlExpired));
    assert_eq!((bench.phase(&waiting), bench.reason(&waiting)), (Phase::Stopped, Reason::TtlExpired));
    assert_eq!(bench.stops(), [(running.id, Epoch(1), Reason::TtlExpired, bench.config.stop_grace)]);
}
