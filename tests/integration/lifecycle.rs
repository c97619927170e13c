//! Create, stop, delete; what repeats, what is refused, what waits.

use super::*;
use pinfold_proto::api::v1 as wire;
use pinfold_sdk::domain::{Epoch, Milestone, Phase};
use pinfold_sdk::{Code, Error, Verdict};
use pinfold_tests::fake_agent::{AgentConfig, OnAssign};

#[tokio::test]
async fn a_sandbox_runs_and_its_timeline_is_in_order() {
    let fleet = Fleet::new().await;
    let sandbox = fleet.running().await;
    assert_eq!(sandbox.node.as_deref(), Some("node-1"));
    assert_eq!(sandbox.epoch, Epoch(1));
    let reached: Vec<_> = sandbox.timeline.iter().map(|entry| entry.milestone).collect();
    use Milestone as M;
    assert_eq!(reached, [M::Accepted, M::Placed, M::Jailed, M::Booted, M::GuestReady]);
    assert!(sandbox.timeline.is_sorted_by_key(|entry| entry.at));
    assert_eq!(fleet.client.get(sandbox.id).await.unwrap(), sandbox, "what a watcher saw is what is read");
}

#[tokio::test]
async fn the_same_request_id_gives_the_same_sandbox_and_another_spec_a_conflict() {
    let fleet = Fleet::new().await;
    let first = fleet.client.create(with_request_id("once")).await.unwrap();
    let again = fleet.client.create(with_request_id("once")).await.unwrap();
    assert_eq!(first.id, again.id);
    let other = NewSandbox { name: Some("other".into()), ..with_request_id("once") };
    let error = fleet.client.create(other).await.unwrap_err();
    assert_eq!(error.cause().reason, Reason::RequestIdConflict);
    assert_eq!((error.code(), error.retryable()), (Code::AlreadyExists, false));
    fleet.client.delete(first.id).await.unwrap();
    fleet.client.wait_gone(first.id, LIMIT).await.unwrap();
    let late = fleet.client.create(with_request_id("once")).await.unwrap();
    assert_eq!(late.id, first.id, "a late repetition does not make a second sandbox");
}

#[tokio::test]
async fn many_callers_with_one_request_id_make_one_sandbox() {
    let fleet = Fleet::new().await;
    let calls = (0..32).map(|_| fleet.client.create(with_request_id("race")));
    let answers = futures::future::join_all(calls).await;
    let ids: std::collections::BTreeSet<_> = answers.into_iter().map(|answer| answer.unwrap().id).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(fleet.client.list_all(Default::default()).await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn stop_ends_it_with_its_reason_and_may_be_repeated() {
    let fleet = Fleet::new().await;
    let sandbox = fleet.running().await;
    let stopping = fleet.client.stop(sandbox.id, None).await.unwrap();
    assert!(matches!(stopping.phase, Phase::Stopping | Phase::Stopped), "{}", stopping.phase);
    assert_eq!(stopping.cause.unwrap().reason, Reason::StopRequested);
    let stopped = fleet.client.wait_ended(sandbox.id, LIMIT).await.unwrap();
    assert_eq!(stopped.phase, Phase::Stopped);
    assert_eq!(stopped.cause.as_ref().unwrap().reason, Reason::StopRequested);
    assert!(stopped.reached(Milestone::Stopped).is_some());
    assert_eq!(fleet.client.stop(sandbox.id, None).await.unwrap().phase, Phase::Stopped);
    fleet.agent.until("a forget", |stats| stats.forgotten >= 1).await;
    assert!(fleet.agent.sandboxes().is_empty());
    assert_eq!(reason(fleet.client.stop(nobody(), None).await), Reason::SandboxNotFound);
}

#[tokio::test]
async fn delete_stops_first_and_leaves_nothing() {
    let fleet = Fleet::new().await;
    let sandbox = fleet.running().await;
    fleet.client.delete(sandbox.id).await.unwrap();
    fleet.client.wait_gone(sandbox.id, LIMIT).await.unwrap();
    assert_eq!(reason(fleet.client.get(sandbox.id).await), Reason::SandboxNotFound);
    assert_eq!(reason(fleet.client.delete(nobody()).await), Reason::SandboxNotFound);
    fleet.agent.until("a stop", |stats| stats.stopped == 1 && stats.forgotten >= 1).await;
    let nodes = fleet.client.nodes().await.unwrap();
    assert_eq!((nodes[0].sandboxes, nodes[0].reserved), (0, Resources::default()));
}

#[tokio::test]
async fn what_no_node_could_ever_hold_is_refused_at_once_with_the_reason_per_filter() {
    let fleet = Fleet::new().await;
    let error = fleet.client.create(with_cpu_millis(9_000)).await.unwrap_err();
    assert_eq!(error.cause().reason, Reason::Unplaceable);
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.to_string().contains("0 of 1 nodes fit: 1 rejected by cpu"), "{error}");
    let unknown = NewSandbox { image: Some("nix".into()), ..NewSandbox::default() };
    let error = fleet.client.create(unknown).await.unwrap_err();
    assert_eq!(error.cause().reason, Reason::ImageUnknown);
    assert!(error.to_string().contains("nix"), "{error}");
    assert!(fleet.client.list_all(Default::default()).await.unwrap().0.is_empty(), "nothing was stored");
}

#[tokio::test]
async fn what_has_no_room_now_waits_and_runs_when_there_is_room() {
    let fleet = Fleet::new().await;
    let first = fleet.client.create(with_cpu_millis(6_000)).await.unwrap();
    fleet.client.wait_running(first.id, LIMIT).await.unwrap();
    let second = fleet.client.create(with_cpu_millis(6_000)).await.unwrap();
    assert_eq!(second.phase, Phase::Pending);
    let explanation = second.explanation.unwrap();
    assert_eq!(explanation.verdict, Verdict::Wait);
    assert_eq!(explanation.sentence, "0 of 1 nodes fit: 1 rejected by cpu");
    fleet.client.stop(first.id, None).await.unwrap();
    let second = fleet.client.wait_running(second.id, LIMIT).await.unwrap();
    assert_eq!(second.explanation.unwrap().verdict, Verdict::Placed);
}

#[tokio::test]
async fn what_waits_is_explained_by_the_fleet_of_this_moment() {
    let fleet = Fleet::new().await;
    let first = fleet.client.create(with_cpu_millis(6_000)).await.unwrap();
    fleet.client.wait_running(first.id, LIMIT).await.unwrap();
    let second = fleet.client.create(with_cpu_millis(6_000)).await.unwrap();
    assert_eq!(second.explanation.unwrap().sentence, "0 of 1 nodes fit: 1 rejected by cpu");
    let mut small = AgentConfig::new("small");
    small.register.images = vec!["other".to_owned()];
    let _small = FakeAgent::start(&fleet.scheduler.endpoint(), small);
    let now = async {
        loop {
            let sentence = fleet.client.get(second.id).await.unwrap().explanation.unwrap().sentence;
            if !sentence.starts_with("0 of 1 ") {
                return sentence;
            }
            tokio::task::yield_now().await;
        }
    };
    let now = tokio::time::timeout(LIMIT, now).await.expect("the node joins");
    assert_eq!(now, "0 of 2 nodes fit: 1 rejected by image, 1 rejected by cpu");
}

#[tokio::test]
async fn without_a_node_it_waits_for_one_to_join() {
    let scheduler = Scheduler::start(|_| {}).await;
    let client = scheduler.client().await;
    let waiting = client.create(NewSandbox::default()).await.unwrap();
    assert_eq!(waiting.phase, Phase::Pending);
    let _agent = FakeAgent::join(&scheduler.endpoint(), "late").await;
    assert_eq!(client.wait_running(waiting.id, LIMIT).await.unwrap().node.as_deref(), Some("late"));
}

#[tokio::test]
async fn a_full_queue_sheds_and_loses_nothing() {
    let scheduler = Scheduler::start(|config| config.engine.queue_length = 3).await;
    let client = scheduler.client().await;
    for n in 0..3 {
        client.create(with_request_id(&format!("r{n}"))).await.unwrap();
    }
    let error = client.create(with_request_id("r3")).await.unwrap_err();
    assert_eq!(error.cause().reason, Reason::QueueFull);
    assert_eq!((error.code(), error.retryable()), (Code::ResourceExhausted, true));
    client.create(with_request_id("r1")).await.expect("a repetition is no new entry");
    assert_eq!(client.list_all(Default::default()).await.unwrap().0.len(), 3);
}

#[tokio::test]
async fn a_failure_on_the_node_is_told_with_the_true_reason_and_gives_room_back() {
    let scheduler = Scheduler::start(|_| {}).await;
    let cause = wire::Cause { reason: "GuestPanic".into(), message: "not syncing: no init".into() };
    let config = AgentConfig { on_assign: OnAssign::Fail(cause), ..AgentConfig::new("node-1") };
    let agent = FakeAgent::start(&scheduler.endpoint(), config);
    agent.registered(1).await;
    let client = scheduler.client().await;
    let created = client.create(NewSandbox::default()).await.unwrap();
    let error = client.wait_running(created.id, LIMIT).await.unwrap_err();
    let Error::Ended { phase, cause: Some(cause), .. } = error else { panic!("{error}") };
    assert_eq!((phase, cause.reason), (Phase::Failed, Reason::GuestPanic));
    assert_eq!(cause.message, "not syncing: no init");
    agent.until("a forget", |stats| stats.forgotten >= 1).await;
    assert_eq!(client.nodes().await.unwrap()[0].reserved, Resources::default());
}

#[tokio::test]
async fn a_node_that_refuses_is_not_the_last_word() {
    let scheduler = Scheduler::start(|_| {}).await;
    let full = wire::Cause { reason: "HostResources".into(), message: "no room after all".into() };
    let config = AgentConfig { on_assign: OnAssign::Refuse(full), ..AgentConfig::new("refuses") };
    let refusing = FakeAgent::start(&scheduler.endpoint(), config);
    refusing.registered(1).await;
    let client = scheduler.client().await;
    let created = client.create(NewSandbox::default()).await.unwrap();
    refusing.until("an assignment", |stats| stats.assigned == 1).await;
    let _willing = FakeAgent::join(&scheduler.endpoint(), "willing").await;
    let sandbox = client.wait_running(created.id, LIMIT).await.unwrap();
    assert_eq!(sandbox.node.as_deref(), Some("willing"));
    assert_eq!(sandbox.epoch, Epoch(2), "a new assignment is a new epoch");
}

#[tokio::test]
async fn a_burst_is_placed_whole() {
    let fleet = Fleet::new().await;
    let small = || with_cpu_millis(100);
    let created = futures::future::join_all((0..40).map(|_| fleet.client.create(small()))).await;
    for sandbox in created {
        fleet.client.wait_running(sandbox.unwrap().id, LIMIT).await.unwrap();
    }
    let node = &fleet.client.nodes().await.unwrap()[0];
    assert_eq!((node.sandboxes, node.reserved.cpu_millis), (40, 4_000));
}

#[tokio::test]
async fn thousands_at_once_over_one_connection_are_all_taken() {
    let scheduler = Scheduler::start(|config| config.engine.check_invariants = false).await;
    let client = scheduler.client().await;
    let calls = (0..2_000).map(|n| {
        let client = client.clone();
        async move { client.create(with_request_id(&format!("r{n}"))).await }
    });
    for created in futures::future::join_all(calls).await {
        created.unwrap();
    }
    assert_eq!(client.list_all(Default::default()).await.unwrap().0.len(), 2_000);
}
