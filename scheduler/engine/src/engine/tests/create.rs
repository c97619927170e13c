use super::*;

#[test]
fn a_create_is_stored_once_answered_and_assigned() {
    let mut bench = Bench::fleet(&[2]);
    let sandbox = bench.create("a");
    assert_eq!((sandbox.phase, sandbox.epoch, sandbox.revision.0), (Phase::Assigned, Epoch(1), 1));
    assert_eq!(sandbox.node, Some(node_id("n0")));
    assert_eq!(sandbox.expires_at, Some(bench.now.after(spec().ttl)));
    // one write carries both the acceptance and the placement
    assert!(matches!(
        bench.effects.as_slice(),
        [Effect::Persist(Change::PutSandbox(_)), Effect::Answer { .. }, Effect::Assign { .. }]
            | [Effect::Persist(Change::PutSandbox(_)), Effect::Assign { .. }, Effect::Answer { .. }]
    ));
    assert_eq!(bench.assigns(), vec![("n0".to_owned(), 1, sandbox.clone())]);
    let reached: Vec<_> = sandbox.timeline.iter().map(|entry| entry.milestone).collect();
    assert_eq!(reached, [Milestone::Accepted, Milestone::Placed]);
}

#[test]
fn the_same_request_gives_the_same_answer() {
    let mut bench = Bench::fleet(&[2]);
    let first = bench.create("a");
    let again = bench.create("a");
    assert_eq!(again, first);
    assert_eq!((bench.writes(), bench.engine.sandboxes().count()), (0, 1));

    let other = SandboxSpec { image: "other".to_owned(), ..spec() };
    let rejection = bench.try_create("a", other).unwrap_err();
    assert_eq!(rejection.cause.reason, Reason::RequestIdConflict);
    assert_eq!(bench.writes(), 0);
}

#[test]
fn a_request_is_remembered_beyond_the_removal_but_not_for_ever() {
    let mut bench = Bench::fleet(&[2]);
    let first = bench.running("a");
    bench.delete(&first).unwrap();
    bench.report("n0", 1, status(&first, 3, Phase::Stopped));
    assert!(bench.engine.sandbox(first.id).is_none());

    let again = bench.create("a");
    assert_eq!((again.id, again.phase), (first.id, Phase::Stopped));
    assert_eq!(again.cause.unwrap().reason, Reason::DeleteRequested);
    let other = SandboxSpec { name: "other".to_owned(), ..spec() };
    assert_eq!(bench.try_create("a", other).unwrap_err().cause.reason, Reason::RequestIdConflict);

    bench.restart();
    bench.join_all(&[2]);
    assert_eq!(bench.create("a").id, first.id);

    bench.advance_with_heartbeats(bench.config.request_retention, &[("n0", 1, vec![])]);
    assert!(bench.requests.is_empty());
    assert_ne!(bench.create("a").id, first.id);
}

#[test]
fn without_nodes_it_waits_and_the_first_node_takes_it() {
    let mut bench = Bench::new();
    let sandbox = bench.create("a");
    assert_eq!((sandbox.phase, sandbox.epoch), (Phase::Pending, Epoch(0)));
    assert_eq!(sandbox.explanation.as_ref().unwrap().sentence(), "0 of 0 nodes fit");
    bench.join(registration("n0", 1, room(1)));
    assert_eq!(bench.phase(&sandbox), Phase::Assigned);
    assert_eq!(bench.assigns().len(), 1);
    assert_eq!(bench.engine.queue_length(), 0);
}

#[test]
fn what_no_node_could_hold_is_refused_at_once_and_not_stored() {
    let mut bench = Bench::fleet(&[2, 4]);
    let mut large = spec();
    large.resources.memory_bytes = 2 * GIB;
    let rejection = bench.try_create("a", large).unwrap_err();
    assert_eq!(rejection.cause.reason, Reason::Unplaceable);
    assert_eq!(
        rejection.cause.message,
        "no node could hold it, even when empty: 0 of 2 nodes fit: 2 rejected by memory"
    );
    assert_eq!((bench.writes(), bench.engine.sandboxes().count()), (0, 0));
    // the request id was not used up
    bench.create("a");
}

#[test]
fn an_image_or_kernel_that_nobody_holds_is_named() {
    let mut bench = Bench::fleet(&[2]);
    let image = SandboxSpec { image: "nowhere".to_owned(), ..spec() };
    let rejection = bench.try_create("a", image).unwrap_err();
    assert_eq!(rejection.cause.reason, Reason::ImageUnknown);
    assert_eq!(rejection.cause.message, "no node holds image \"nowhere\"");
    let kernel = SandboxSpec { kernel: Some("none".to_owned()), ..spec() };
    let rejection = bench.try_create("a", kernel).unwrap_err();
    assert_eq!(rejection.cause.reason, Reason::ImageUnknown);
    assert_eq!(rejection.cause.message, "no node holds kernel \"none\"");
}

#[test]
fn the_image_of_a_lost_node_is_not_known() {
    let mut bench = Bench::fleet(&[2]);
    let mut other = registration("n1", 9, room(2));
    other.images = BTreeSet::from(["rare".to_owned()]);
    bench.join(other);
    let rare = SandboxSpec { image: "rare".to_owned(), ..spec() };
    bench.advance_with_heartbeats(Millis::from_secs(60), &[("n0", 1, vec![])]);
    // not heard of for a while: it may come back
    assert_eq!(bench.state("n1"), NodeState::Disconnected);
    assert_eq!(bench.try_create("a", rare.clone()).unwrap().phase, Phase::Pending);
    bench.advance_with_heartbeats(bench.config.lost_after, &[("n0", 1, vec![])]);
    assert_eq!(bench.state("n1"), NodeState::Lost);
    assert_eq!(bench.try_create("b", rare).unwrap_err().cause.reason, Reason::ImageUnknown);
}

#[test]
fn the_queue_is_bounded() {
    let mut bench = Bench::with(EngineConfig { queue_length: 2, ..EngineConfig::default() });
    bench.create("a");
    bench.create("b");
    let rejection = bench.try_create("c", spec()).unwrap_err();
    assert_eq!(rejection.cause.reason, Reason::QueueFull);
    assert!(rejection.cause.message.contains("the limit is 2"), "{}", rejection.cause.message);
    // a repetition is not a new one
    bench.create("b");
}

#[test]
fn equals_wait_in_order_and_others_pass() {
    let mut bench = Bench::fleet(&[2]);
    let mut large = spec();
    large.resources = room(2);
    let running = bench.running("running");
    let first = bench.try_create("first", large.clone()).unwrap();
    let second = bench.try_create("second", large.clone()).unwrap();
    assert_eq!((first.phase, second.phase), (Phase::Pending, Phase::Pending));
    // a small one passes them
    let small = bench.create("small");
    assert_eq!(small.phase, Phase::Assigned);
    assert_eq!(bench.engine.explain(first.id).unwrap().sentence(), "0 of 1 nodes fit: 1 rejected by cpu");

    for (sandbox, sequence) in [(&running, 3), (&small, 1)] {
        bench.report("n0", 1, status(sandbox, sequence, Phase::Stopped));
    }
    assert_eq!((bench.phase(&first), bench.phase(&second)), (Phase::Assigned, Phase::Pending));
    // a third of their kind stands behind, room or not
    bench.join(registration("n1", 2, room(1)));
    let third = bench.try_create("third", large).unwrap();
    assert_eq!(third.phase, Phase::Pending);
    bench.join(registration("n2", 3, room(2)));
    assert_eq!((bench.phase(&second), bench.phase(&third)), (Phase::Assigned, Phase::Pending));
}

#[test]
fn spread_gives_two_of_six_to_each_of_three_nodes() {
    let placement = PlacementPolicy::Spread;
    let mut bench = Bench::with(EngineConfig { placement, ..EngineConfig::default() });
    bench.join_all(&[8, 8, 8]);
    for request in ["a", "b", "c", "d", "e", "f"] {
        bench.create(request);
    }
    assert!(bench.engine.nodes().all(|node| node.sandboxes == 2));
}

#[test]
fn pack_fills_one_node_first() {
    let mut bench = Bench::fleet(&[4, 4, 4]);
    for request in ["a", "b", "c", "d", "e", "f"] {
        bench.create(request);
    }
    let counts: Vec<_> = bench.engine.nodes().map(|node| node.sandboxes).collect();
    assert_eq!(counts, [4, 2, 0]);
}
