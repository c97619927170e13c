use super::*;

#[test]
fn reports_move_it_and_fill_its_timeline() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.create("a");
    let placed = bench.now;
    bench.advance(Millis(100));
    let mut starting = status(&sandbox, 1, Phase::Starting);
    starting.milestones = vec![(Milestone::Jailed, 40_900)];
    bench.report("n0", 1, starting);
    assert_eq!(bench.phase(&sandbox), Phase::Starting);
    bench.advance(Millis(400));
    let mut running = status(&sandbox, 2, Phase::Running);
    running.milestones =
        vec![(Milestone::Jailed, 40_900), (Milestone::Booted, 60_000), (Milestone::GuestReady, 400_000)];
    bench.report("n0", 1, running);
    assert_eq!(bench.phase(&sandbox), Phase::Running);
    bench.advance(Millis(100));
    bench.step(Event::FirstByte { sandbox_id: sandbox.id, epoch: Epoch(1) });
    bench.step(Event::FirstByte { sandbox_id: sandbox.id, epoch: Epoch(1) });
    assert_eq!(bench.writes(), 0, "the first byte comes once");
    bench.stop(&sandbox).unwrap();
    // a node whose clock runs wild cannot put the end into the future
    let mut stopped = status(&sandbox, 3, Phase::Stopped);
    stopped.milestones = vec![(Milestone::Stopped, u64::MAX)];
    bench.report("n0", 1, stopped);
    assert_eq!(bench.forgets(), [(sandbox.id, Epoch(1))]);
    let sandbox = bench.get(&sandbox);
    let timeline: Vec<_> = sandbox.timeline.iter().map(|t| (t.milestone, t.at.since(placed).0)).collect();
    let expected = [
        (Milestone::Accepted, 0),
        (Milestone::Placed, 0),
        (Milestone::Jailed, 40),
        (Milestone::Booted, 60),
        (Milestone::GuestReady, 400),
        (Milestone::FirstByte, 600),
        (Milestone::Stopped, 600),
    ];
    assert_eq!(timeline, expected);
}

#[test]
fn what_is_old_is_ignored() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.running("a");
    bench.report("n0", 1, status(&sandbox, 1, Phase::Stopped));
    assert_eq!((bench.phase(&sandbox), bench.writes()), (Phase::Running, 0), "an older sequence");
    bench.report("n0", 7, status(&sandbox, 9, Phase::Stopped));
    assert_eq!(bench.phase(&sandbox), Phase::Running, "another session");
    bench.report("n0", 1, NodeReport { epoch: Epoch(4), ..status(&sandbox, 9, Phase::Stopped) });
    assert_eq!(bench.phase(&sandbox), Phase::Running, "another epoch");
    assert_eq!(bench.forgets(), [(sandbox.id, Epoch(4))]);
    bench.report("n0", 1, NodeReport { epoch: Epoch(4), ..status(&sandbox, 9, Phase::Running) });
    assert_eq!(bench.stops(), [(sandbox.id, Epoch(4), Reason::NodeRefused, Millis(0))]);
    bench.step(Event::FirstByte { sandbox_id: sandbox.id, epoch: Epoch(4) });
    assert_eq!(bench.writes(), 0);
    for phase in [Phase::Pending, Phase::Assigned, Phase::Paused, Phase::Lost] {
        bench.report("n0", 1, status(&sandbox, 9, phase));
        assert_eq!(
            (bench.phase(&sandbox), bench.writes()),
            (Phase::Running, 0),
            "{phase} is not a node's to say"
        );
    }
    bench.report("n0", 1, status(&sandbox, 9, Phase::Starting));
    assert_eq!(bench.phase(&sandbox), Phase::Running, "a phase that was passed");
}

#[test]
fn a_refusal_goes_to_another_node_and_room_comes_back() {
    let mut bench = Bench::fleet(&[1, 4]);
    let sandbox = bench.create("a");
    assert_eq!(sandbox.node, Some(node_id("n0")), "the tighter fit");
    bench.refuse("n0", 1, &sandbox, "no cgroup");
    let again = bench.get(&sandbox);
    assert_eq!((again.phase, again.epoch, again.node), (Phase::Assigned, Epoch(2), Some(node_id("n1"))));
    assert_eq!(again.explanation.unwrap().sentence(), "1 of 2 nodes fit: 1 rejected by refused");
    let n0 = bench.engine.node(&node_id("n0")).unwrap();
    assert_eq!((n0.reserved, n0.sandboxes), (Resources::default(), 0));
    // the refusal of an epoch that is over says nothing
    bench.refuse("n0", 1, &sandbox, "no cgroup");
    assert_eq!(bench.writes(), 0);
}

#[test]
fn the_only_node_is_asked_again_after_a_while_and_not_for_ever() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.create("a");
    bench.refuse("n0", 1, &sandbox, "busy");
    assert_eq!(bench.phase(&sandbox), Phase::Pending);
    // another of its kind that was not refused is not held up by it
    let other = bench.create("b");
    assert_eq!(other.phase, Phase::Assigned);
    bench.report("n0", 1, status(&other, 1, Phase::Stopped));
    bench.advance(bench.config.refusal_backoff);
    let second = bench.get(&sandbox);
    assert_eq!((second.phase, second.epoch), (Phase::Assigned, Epoch(2)));
    bench.refuse("n0", 1, &second, "busy");
    bench.advance(bench.config.refusal_backoff);
    let third = bench.get(&sandbox);
    bench.refuse("n0", 1, &third, "still busy");
    let failed = bench.get(&sandbox);
    assert_eq!((failed.phase, failed.epoch), (Phase::Failed, Epoch(3)));
    let cause = failed.cause.unwrap();
    assert_eq!(cause.reason, Reason::NodeRefused);
    assert_eq!(cause.message, "3 assignments, the last one to n0: still busy");
}

#[test]
fn a_refusal_for_want_of_room_is_no_failed_attempt_but_not_for_ever() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.create("a");
    let (mut waited, mut refusals) = (Millis(0), 0);
    while bench.phase(&sandbox) == Phase::Assigned {
        let current = bench.get(&sandbox);
        bench.refuse_for(Reason::HostResources, "n0", 1, &current, "no room on this node");
        refusals += 1;
        if refusals == 5 {
            // the count is stored with it
            bench.restart();
            bench.join(registration("n0", 1, room(1)));
        }
        for _ in 0..60 {
            if bench.phase(&sandbox) != Phase::Pending {
                break;
            }
            bench.advance(Millis::from_secs(1));
            bench.heartbeat("n0", 1, vec![]);
            waited = Millis(waited.0 + 1_000);
        }
    }
    assert_eq!(
        refusals,
        bench.config.room_refusals + 1,
        "far more than {}",
        bench.config.assignment_attempts
    );
    assert!(waited > Millis::from_secs(9 * 60), "the waits grow: {waited:?} in all");
    let cause = bench.get(&sandbox).cause.unwrap();
    assert_eq!(cause.reason, Reason::NodeRefused);
    assert!(cause.message.ends_with("the last one to n0: no room on this node"), "{}", cause.message);
}

#[test]
fn an_assignment_that_nobody_accepts_expires() {
    let mut bench = Bench::fleet(&[1, 4]);
    let sandbox = bench.create("a");
    bench.advance(bench.config.assignment_timeout);
    // should n0 have it all the same, it ends it
    assert_eq!(bench.stops(), [(sandbox.id, Epoch(1), Reason::NodeRefused, Millis(0))]);
    let again = bench.get(&sandbox);
    assert_eq!((again.epoch, again.node), (Epoch(2), Some(node_id("n1"))));
    // the late report of the old epoch is not believed, and what runs under it is stopped
    bench.report("n0", 1, status(&sandbox, 1, Phase::Running));
    assert_eq!(bench.stops(), [(sandbox.id, Epoch(1), Reason::NodeRefused, Millis(0))]);
    assert_eq!(bench.phase(&sandbox), Phase::Assigned);
    bench.report("n0", 1, status(&sandbox, 2, Phase::Stopped));
    assert_eq!(bench.forgets(), [(sandbox.id, Epoch(1))]);
}

#[test]
fn a_lost_assign_is_sent_again_when_the_node_comes_back() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.create("a");
    bench.step(Event::NodeGone { node: node_id("n0"), session: SessionId(1) });
    bench.advance(Millis::from_secs(5));
    bench.join(registration("n0", 2, room(1)));
    let assigns = bench.assigns();
    assert_eq!(assigns.len(), 1);
    assert_eq!((assigns[0].1, assigns[0].2.epoch), (2, Epoch(1)));
    // the node has its full time again
    bench.advance(Millis::from_secs(6));
    assert_eq!(bench.get(&sandbox).epoch, Epoch(1));
}

#[test]
fn a_start_that_takes_too_long_is_ended_and_has_failed() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.create("a");
    let starting = status(&sandbox, 1, Phase::Starting);
    bench.report("n0", 1, starting.clone());
    let limit = Millis(spec().start_timeout.0 + bench.config.start_margin.0);
    bench.advance_with_heartbeats(limit, &[("n0", 1, vec![starting])]);
    assert_eq!((bench.phase(&sandbox), bench.reason(&sandbox)), (Phase::Stopping, Reason::StartTimeout));
    let mut stopped = status(&sandbox, 2, Phase::Stopped);
    stopped.cause = Some(Cause::new(Reason::StopRequested, "told to"));
    bench.report("n0", 1, stopped);
    assert_eq!((bench.phase(&sandbox), bench.reason(&sandbox)), (Phase::Failed, Reason::StartTimeout));
}

#[test]
fn a_failure_on_the_node_keeps_its_cause() {
    let mut bench = Bench::fleet(&[1]);
    let sandbox = bench.create("a");
    let mut failed = status(&sandbox, 1, Phase::Failed);
    failed.cause = Some(Cause::new(Reason::KernelInvalid, "not a kernel"));
    bench.report("n0", 1, failed);
    assert_eq!((bench.phase(&sandbox), bench.reason(&sandbox)), (Phase::Failed, Reason::KernelInvalid));
    assert_eq!(bench.engine.node(&node_id("n0")).unwrap().reserved, Resources::default());
    // a node that ends without a word
    let other = bench.running("b");
    bench.report("n0", 1, status(&other, 3, Phase::Stopped));
    assert_eq!((bench.phase(&other), bench.reason(&other)), (Phase::Stopped, Reason::Internal));
}
