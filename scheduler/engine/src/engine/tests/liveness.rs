use super::*;

#[test]
fn silence_is_judged_step_by_step() {
    let mut bench = Bench::fleet(&[2]);
    let sandbox = bench.running("a");
    let joined = bench.now;
    let config = bench.config.clone();
    bench.advance(Millis(config.suspect_after.0 - 1));
    assert_eq!(bench.state("n0"), NodeState::Ready);
    bench.advance(Millis(1));
    assert_eq!(bench.state("n0"), NodeState::Suspect);
    // nothing new is placed there
    let waiting = bench.create("b");
    assert_eq!(waiting.phase, Phase::Pending);
    assert_eq!(waiting.explanation.unwrap().sentence(), "0 of 1 nodes fit: 1 rejected by node_state");
    bench.advance(Millis(config.disconnected_after.0 - bench.now.since(joined).0));
    assert_eq!((bench.state("n0"), bench.closed()), (NodeState::Disconnected, vec![1]));
    assert_eq!(bench.phase(&sandbox), Phase::Running);
    bench.advance(Millis(config.lost_after.0 - bench.now.since(joined).0));
    assert_eq!(bench.state("n0"), NodeState::Lost);
    assert_eq!((bench.phase(&sandbox), bench.reason(&sandbox)), (Phase::Lost, Reason::NodeLost));
    assert_eq!(bench.engine.node(&node_id("n0")).unwrap().sandboxes, 0);
    bench.advance(config.lost_node_retention);
    assert_eq!(bench.engine.nodes().count(), 0);
}

#[test]
fn a_heartbeat_brings_a_suspect_back_and_room_with_it() {
    let mut bench = Bench::fleet(&[2]);
    bench.advance(bench.config.suspect_after);
    let waiting = bench.create("a");
    assert_eq!(waiting.phase, Phase::Pending);
    bench.heartbeat("n0", 1, vec![]);
    assert_eq!((bench.state("n0"), bench.phase(&waiting)), (NodeState::Ready, Phase::Assigned));
}

#[test]
fn a_lost_node_that_comes_back_ends_what_was_given_up() {
    let mut bench = Bench::fleet(&[2]);
    let sandbox = bench.running("a");
    bench.advance(bench.config.lost_after);
    assert_eq!(bench.phase(&sandbox), Phase::Lost);
    let mut back = registration("n0", 2, room(2));
    back.statuses = vec![status(&sandbox, 2, Phase::Running)];
    bench.join(back);
    assert_eq!(bench.stops(), [(sandbox.id, Epoch(1), Reason::NodeLost, Millis(0))]);
    assert_eq!((bench.state("n0"), bench.phase(&sandbox)), (NodeState::Ready, Phase::Lost));
    bench.heartbeat("n0", 2, vec![status(&sandbox, 3, Phase::Stopping)]);
    assert!(bench.stops().is_empty(), "it was told");
    bench.heartbeat("n0", 2, vec![status(&sandbox, 4, Phase::Stopped)]);
    assert_eq!(bench.forgets(), [(sandbox.id, Epoch(1))]);
}

#[test]
fn a_fleet_that_falls_silent_at_once_is_given_up_one_by_one() {
    let mut bench = Bench::fleet(&[1, 1, 1]);
    let sandboxes = [bench.running("a"), bench.running("b"), bench.running("c")];
    let lost = |bench: &Bench| sandboxes.iter().filter(|s| bench.phase(s) == Phase::Lost).count();
    bench.advance(bench.config.lost_after);
    assert_eq!(lost(&bench), 1);
    bench.advance(Millis::from_secs(59));
    assert_eq!(lost(&bench), 1);
    bench.advance(Millis::from_secs(1));
    assert_eq!(lost(&bench), 2);
    // the scheduler was cut off: the third comes back in time
    let (last, node) = sandboxes
        .iter()
        .find_map(|s| (bench.phase(s) == Phase::Running).then(|| (s.clone(), s.node.clone().unwrap())))
        .unwrap();
    let mut back = registration(node.as_str(), 9, room(1));
    back.statuses = vec![status(&last, 1, Phase::Running)];
    bench.join(back);
    bench.advance_with_heartbeats(
        Millis::from_secs(120),
        &[(node.as_str(), 9, vec![status(&last, 1, Phase::Running)])],
    );
    assert_eq!((bench.phase(&last), lost(&bench)), (Phase::Running, 2));
}

#[test]
fn a_session_that_ended_gives_up_nothing() {
    let mut bench = Bench::fleet(&[2]);
    let sandbox = bench.running("a");
    bench.step(Event::NodeGone { node: node_id("n0"), session: SessionId(1) });
    assert_eq!((bench.state("n0"), bench.phase(&sandbox)), (NodeState::Suspect, Phase::Running));
    let mut back = registration("n0", 2, room(2));
    back.statuses = vec![status(&sandbox, 1, Phase::Running)];
    bench.join(back);
    assert_eq!((bench.state("n0"), bench.phase(&sandbox)), (NodeState::Ready, Phase::Running));
    // the end of the old session, heard late, is not the end of the new one
    bench.step(Event::NodeGone { node: node_id("n0"), session: SessionId(1) });
    assert_eq!(bench.state("n0"), NodeState::Ready);
}

#[test]
fn a_newer_session_replaces_the_older() {
    let mut bench = Bench::fleet(&[2]);
    let sandbox = bench.running("a");
    let mut newer = registration("n0", 2, room(2));
    newer.statuses = vec![status(&sandbox, 1, Phase::Running)];
    bench.join(newer);
    assert_eq!(bench.closed(), [1]);
    bench.heartbeat("n0", 1, vec![]);
    assert_eq!((bench.closed(), bench.phase(&sandbox)), (vec![1], Phase::Running));
    // a registration that was on its way for so long that the node has dialled again since
    bench.join(registration("n0", 1, room(2)));
    assert_eq!(bench.closed(), [1]);
    bench.heartbeat("n0", 2, vec![status(&sandbox, 2, Phase::Running)]);
    assert_eq!((bench.closed(), bench.phase(&sandbox)), (vec![], Phase::Running));
    bench.heartbeat("stranger", 5, vec![]);
    assert_eq!(bench.closed(), [5]);
}

#[test]
fn what_a_node_no_longer_lists_was_forgotten() {
    let mut bench = Bench::fleet(&[2]);
    let sandbox = bench.running("a");
    bench.heartbeat("n0", 1, vec![]);
    assert_eq!(bench.phase(&sandbox), Phase::Running, "the list may be older than the report");
    bench.advance(Millis::from_secs(3));
    bench.heartbeat("n0", 1, vec![status(&sandbox, 2, Phase::Running)]);
    bench.advance(Millis::from_secs(3));
    bench.heartbeat("n0", 1, vec![]);
    assert_eq!(bench.phase(&sandbox), Phase::Running, "missing lists count in a row");
    bench.advance_with_heartbeats(bench.config.forgotten_after, &[("n0", 1, vec![])]);
    assert_eq!((bench.phase(&sandbox), bench.reason(&sandbox)), (Phase::Failed, Reason::NodeForgot));

    // the first list of a session is one list among others
    let other = bench.running("b");
    bench.join(registration("n0", 2, room(2)));
    assert_eq!(bench.phase(&other), Phase::Running);
    bench.advance_with_heartbeats(bench.config.forgotten_after, &[("n0", 2, vec![])]);
    assert_eq!((bench.phase(&other), bench.reason(&other)), (Phase::Failed, Reason::NodeForgot));
}

#[test]
fn strays_are_stopped_and_then_forgotten() {
    let mut bench = Bench::fleet(&[2, 2]);
    let mut unknown = bench.running("a");
    let home = unknown.node.clone().unwrap();
    let (other, session) = if home == node_id("n0") { ("n1", 2) } else { ("n0", 1) };
    bench.heartbeat(other, session, vec![status(&unknown, 9, Phase::Running)]);
    assert_eq!(bench.stops().len(), 1, "it lives on another node");
    assert_eq!(bench.phase(&unknown), Phase::Running);
    unknown.id = SandboxId(uuid(77));
    bench.heartbeat(other, session, vec![status(&unknown, 1, Phase::Starting)]);
    assert_eq!(bench.stops(), [(unknown.id, Epoch(1), Reason::DeleteRequested, Millis(0))]);
    bench.heartbeat(other, session, vec![status(&unknown, 2, Phase::Failed)]);
    assert_eq!(bench.forgets(), [(unknown.id, Epoch(1))]);
    assert_eq!(bench.engine.sandboxes().count(), 1);
}

#[test]
fn a_driver_that_stood_still_judges_nobody() {
    let mut bench = Bench::fleet(&[2]);
    let sandbox = bench.running("a");
    // a suspended laptop: far beyond lost_after in one jump
    bench.now = bench.now.after(Millis::from_secs(1_000));
    bench.step(Event::Tick);
    assert_eq!((bench.state("n0"), bench.phase(&sandbox)), (NodeState::Ready, Phase::Running));
    bench.heartbeat("n0", 1, vec![status(&sandbox, 2, Phase::Running)]);
    bench.advance_with_heartbeats(
        Millis::from_secs(60),
        &[("n0", 1, vec![status(&sandbox, 2, Phase::Running)])],
    );
    assert_eq!((bench.state("n0"), bench.phase(&sandbox)), (NodeState::Ready, Phase::Running));
}

/// Found by simulation: a silence that ended within the stall, with its limit a moment before the first step after it.
#[test]
fn a_limit_just_missed_in_a_stall_is_not_judged_either() {
    let mut bench = Bench::fleet(&[2]);
    let sandbox = bench.running("a");
    bench.restart();
    bench.step(Event::Tick);
    bench.now = bench.now.after(Millis(bench.config.lost_after.0 + 900));
    bench.create("b");
    assert_eq!(bench.phase(&sandbox), Phase::Running);
}

#[test]
fn a_clock_that_is_set_back_goes_on_from_where_it_was() {
    let mut bench = Bench::fleet(&[2]);
    let sandbox = bench.running("a");
    bench.now = Timestamp(5);
    bench.heartbeat("n0", 1, vec![status(&sandbox, 2, Phase::Running)]);
    let other = bench.create("b");
    assert_eq!(other.created_at, sandbox.created_at);
    // silence is judged and times to live end as if nothing had happened
    bench.advance(bench.config.suspect_after);
    assert_eq!(bench.state("n0"), NodeState::Suspect);
    assert_eq!(bench.engine.state.now, sandbox.created_at.after(bench.config.suspect_after));
    // a moment back is not a clock that was set
    bench.now = Timestamp(bench.now.0 - 900);
    bench.create("c");
    bench.advance(Millis(900));
    assert_eq!(bench.engine.state.now, sandbox.created_at.after(bench.config.suspect_after));
}

#[test]
fn a_node_that_comes_back_smaller_gets_nothing_until_there_is_room() {
    let mut bench = Bench::fleet(&[3]);
    let (first, second) = (bench.running("a"), bench.running("b"));
    let list = vec![status(&first, 1, Phase::Running), status(&second, 1, Phase::Running)];
    let mut back = registration("n0", 2, room(1));
    back.statuses = list.clone();
    bench.join(back);
    let waiting = bench.create("c");
    assert_eq!((bench.phase(&first), waiting.phase), (Phase::Running, Phase::Pending));
    bench.heartbeat("n0", 2, vec![status(&first, 2, Phase::Stopped), list[1].clone()]);
    assert_eq!(bench.phase(&waiting), Phase::Pending);
    bench.heartbeat("n0", 2, vec![status(&second, 2, Phase::Stopped)]);
    assert_eq!(bench.phase(&waiting), Phase::Assigned);
}
