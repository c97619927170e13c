//! Nodes: sessions, and how they end.

use super::*;
use pinfold_proto::api::v1 as wire;
use pinfold_proto::node::v1 as node_wire;
use pinfold_proto::node::v1::node_session_service_client::NodeSessionServiceClient;
use pinfold_proto::node::v1::session_request::Message;
use pinfold_sdk::domain::{Millis, NodeState, Phase};
use pinfold_tests::fake_agent::{AgentConfig, OnAssign};
use pinfold_tests::harness::soon;
use std::collections::BTreeMap;

#[tokio::test]
async fn the_fleet_is_listed_with_what_is_reserved() {
    let scheduler = Scheduler::start(|_| {}).await;
    let mut config = AgentConfig::new("node-2");
    config.register.zone = "z1".into();
    config.register.labels.insert("disk".into(), "ssd".into());
    let second = FakeAgent::start(&scheduler.endpoint(), config);
    second.registered(1).await;
    let _first = FakeAgent::join(&scheduler.endpoint(), "node-1").await;
    let client = scheduler.client().await;
    let node_labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
    let created = client.create(NewSandbox { node_labels, ..NewSandbox::default() }).await.unwrap();
    client.wait_running(created.id, LIMIT).await.unwrap();
    let nodes = client.nodes().await.unwrap();
    let names: Vec<_> =
        nodes.iter().map(|node| (node.id.as_str(), node.sandboxes, node.zone.as_str())).collect();
    assert_eq!(names, [("node-1", 0, ""), ("node-2", 1, "z1")]);
    assert_eq!(nodes[1].reserved.cpu_millis, 1000);
    assert!(nodes.iter().all(|node| node.state == NodeState::Ready));
}

#[tokio::test]
async fn a_newer_session_of_a_node_ends_the_older() {
    let scheduler = Scheduler::start(|_| {}).await;
    let older = FakeAgent::join(&scheduler.endpoint(), "node-1").await;
    let newer = FakeAgent::join(&scheduler.endpoint(), "node-1").await;
    let ended = older.until("the end of the older session", |stats| stats.ended >= 1).await;
    assert!(ended.last_end.contains("newer session"), "{}", ended.last_end);
    drop(older);
    drop(newer);
}

#[tokio::test]
async fn a_node_that_does_not_read_is_cut() {
    let scheduler = Scheduler::start(|config| config.nodes.command_queue = 4).await;
    let config = AgentConfig { deaf: true, on_assign: OnAssign::Ignore, ..AgentConfig::new("node-1") };
    let agent = FakeAgent::start(&scheduler.endpoint(), config);
    agent.registered(1).await;
    let client = scheduler.client().await;
    let environment = BTreeMap::from([("BIG".to_owned(), "x".repeat(32_000))]);
    for _ in 0..30 {
        let big = NewSandbox { environment: environment.clone(), ..with_cpu_millis(100) };
        client.create(big).await.unwrap();
    }
    agent.until("the cut", |stats| stats.ended >= 1).await;
}

#[tokio::test]
async fn every_command_carries_the_term_which_grows_with_every_start() {
    let scheduler = Scheduler::start(|_| {}).await;
    let agent = FakeAgent::join(&scheduler.endpoint(), "node-1").await;
    assert_eq!(agent.stats().borrow().term, 1);
    let _scheduler = scheduler.restart().await;
    agent.until("a command of the next term", |stats| stats.term == 2).await;
}

#[tokio::test]
async fn a_session_that_breaks_a_rule_is_refused_by_name() {
    let scheduler = Scheduler::start(|config| config.nodes.first_message_timeout_ms = 200).await;
    let channel = scheduler.channel().await;
    let refusal = async |first: Option<Message>| {
        let mut raw = NodeSessionServiceClient::new(channel.clone());
        let messages = first.map(|message| node_wire::SessionRequest { message: Some(message) });
        // an open stream, so that silence is silence and not an end
        let messages = futures::StreamExt::chain(futures::stream::iter(messages), futures::stream::pending());
        soon("a refusal", raw.session(messages)).await.map(drop).unwrap_err().message().to_owned()
    };
    let register = AgentConfig::new("node-1").register;
    let broken = |change: fn(&mut node_wire::Register)| {
        let mut changed = register.clone();
        change(&mut changed);
        Some(Message::Register(changed))
    };
    let cases = [
        (None, "no register within 200 ms"),
        (Some(Message::Heartbeat(Default::default())), "not register"),
        (broken(|r| r.node_id = "Node 1".into()), "node_id"),
        (broken(|r| r.allocatable = None), "allocatable is missing"),
        (broken(|r| r.images = vec!["../etc".into()]), "images"),
        (broken(|r| r.highest_term = 99), "term 99"),
    ];
    for (first, expected) in cases {
        let message = refusal(first).await;
        assert!(message.contains(expected), "{message}");
    }
}

#[tokio::test]
async fn a_lost_node_loses_its_sandboxes_and_says_so() {
    let scheduler = Scheduler::start(|config| {
        config.engine.suspect_after = Millis(250);
        config.engine.disconnected_after = Millis(400);
        config.engine.lost_after = Millis(600);
    })
    .await;
    let agent = FakeAgent::join(&scheduler.endpoint(), "node-1").await;
    let client = scheduler.client().await;
    let sandbox = running(&client).await;
    drop(agent);
    let ended = client.wait_ended(sandbox.id, LIMIT).await.unwrap();
    assert_eq!((ended.phase, ended.cause.unwrap().reason), (Phase::Lost, Reason::NodeLost));
    assert_eq!(client.nodes().await.unwrap()[0].state, NodeState::Lost);
}

#[tokio::test]
async fn a_short_break_of_a_session_loses_nothing() {
    let fleet = Fleet::new().await;
    let sandbox = fleet.running().await;
    // a second agent of the same name takes the session over for a moment; the first one dials again
    let intruder = FakeAgent::join(&fleet.scheduler.endpoint(), "node-1").await;
    fleet.agent.until("the end of its session", |stats| stats.ended >= 1).await;
    drop(intruder);
    fleet.agent.registered(2).await;
    let output =
        fleet.client.exec(sandbox.id, pinfold_sdk::ExecOptions::command(["echo", "still"])).await.unwrap();
    assert_eq!(soon("an end", output.output(1024)).await.unwrap().stdout, b"still\n");
    assert_eq!(fleet.client.get(sandbox.id).await.unwrap().epoch, sandbox.epoch);
}

#[tokio::test]
async fn what_a_node_reports_between_heartbeats_is_believed() {
    let fleet = Fleet::new().await;
    let sandbox = fleet.running().await;
    let cause = wire::Cause { reason: "VmmFailed".into(), message: "signal 11".into() };
    fleet.agent.fail(&sandbox.id.to_string(), cause);
    let ended = fleet.client.wait_ended(sandbox.id, LIMIT).await.unwrap();
    assert_eq!((ended.phase, ended.cause.unwrap().reason), (Phase::Failed, Reason::VmmFailed));
}

#[tokio::test]
async fn a_node_that_forgot_its_sandbox_ends_it() {
    let scheduler = Scheduler::start(|config| config.engine.forgotten_after = Millis(200)).await;
    let agent = FakeAgent::join(&scheduler.endpoint(), "node-1").await;
    let client = scheduler.client().await;
    let sandbox = running(&client).await;
    agent.wipe();
    let ended = client.wait_ended(sandbox.id, LIMIT).await.unwrap();
    assert_eq!(ended.cause.unwrap().reason, Reason::NodeForgot);
}
