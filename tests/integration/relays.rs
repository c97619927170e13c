//! Relays: bounded in number, time and memory; only the node that was asked may answer.

use super::*;
use bytes::Bytes;
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::process_service_client::ProcessServiceClient;
use pinfold_sdk::ExecOptions;
use pinfold_sdk::domain::Reason;
use pinfold_tests::fake_agent::AgentConfig;
use pinfold_tests::harness::{resident_bytes, soon};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What may be in flight between the ends: windows and queues of two hops, with room to spare.
const IN_FLIGHT_BYTES: u64 = 8 << 20;
/// Growth of this process while an end does not read.
const GROWTH_BYTES: u64 = 96 << 20;

/// Waits until `count` has not moved for a while: there is no event for "nothing happens".
async fn settled(count: impl Fn() -> u64) -> u64 {
    let mut last = count();
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let now = count();
        if now == last && now > 0 {
            return now;
        }
        last = now;
    }
    panic!("it still moves after 7.5 s: {last} bytes");
}

#[tokio::test]
async fn a_gibibyte_of_stdin_for_a_guest_that_never_reads_is_held_back() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let before = resident_bytes();
    let taken = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&taken);
    let start =
        wire::ExecStart { sandbox_id: id.to_string(), command: vec!["deaf".into()], ..Default::default() };
    let first = wire::ExecRequest { frame: Some(wire::exec_request::Frame::Start(start)) };
    let piece = Bytes::from(vec![0; 64 * 1024]);
    let rest = (0..16 * 1024).map(move |_| {
        counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
        wire::ExecRequest { frame: Some(wire::exec_request::Frame::Stdin(piece.clone())) }
    });
    // a process of its own, as it were: its end closes its connection whatever is still to be said on it
    let client = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let endpoint = fleet.scheduler.endpoint();
    let frames = futures::stream::iter(std::iter::once(first).chain(rest));
    let call = client.spawn(async move {
        let mut raw = ProcessServiceClient::connect(endpoint).await.unwrap();
        raw.exec(frames).await.unwrap()
    });
    let _answers = soon("a process", call).await.unwrap();
    let sent = settled(|| taken.load(Ordering::Relaxed)).await;
    assert!(sent < IN_FLIGHT_BYTES, "{sent} bytes were taken for a guest that reads nothing");
    let growth = resident_bytes().saturating_sub(before);
    assert!(growth < GROWTH_BYTES, "memory grew by {growth} bytes");
    client.shutdown_background();
    fleet.agent.until_guest("a cancellation", |stats| stats.cancelled == 1).await;
}

#[tokio::test]
async fn endless_output_for_a_caller_that_never_reads_is_held_back() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let before = resident_bytes();
    let flood = fleet.client.exec(id, ExecOptions::command(["flood"])).await.unwrap();
    let guest = fleet.agent.guest();
    let written = settled(|| guest.borrow().output_bytes).await;
    assert!(written < IN_FLIGHT_BYTES, "{written} bytes were written for a caller that reads nothing");
    let growth = resident_bytes().saturating_sub(before);
    assert!(growth < GROWTH_BYTES, "memory grew by {growth} bytes");
    let beside = fleet.client.exec(id, ExecOptions::command(["echo", "beside"])).await.unwrap();
    assert_eq!(soon("an end", beside.output(1024)).await.unwrap().stdout, b"beside\n");
    drop(flood);
    fleet.agent.until_guest("a cancellation", |stats| stats.cancelled == 1).await;
}

#[tokio::test]
async fn streams_that_nobody_reads_do_not_stall_the_session_of_their_node() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let mut floods = Vec::new();
    for _ in 0..20 {
        // a connection each, so that it is the node's connection that carries them all
        let client = fleet.scheduler.client().await;
        floods.push(client.exec(id, ExecOptions::command(["flood"])).await.unwrap());
    }
    let guest = fleet.agent.guest();
    settled(|| guest.borrow().output_bytes).await;
    let sandbox = fleet.running().await;
    assert_eq!(sandbox.node.as_deref(), Some("node-1"), "the session still carries commands and reports");
    drop(floods);
    fleet.agent.until_guest("20 cancellations", |stats| stats.cancelled == 20).await;
}

#[tokio::test]
async fn a_node_that_does_not_dial_in_is_unreachable_in_time() {
    let scheduler = Scheduler::start(|config| config.relay.open_timeout_ms = 200).await;
    let config = AgentConfig { answers_relays: false, ..AgentConfig::new("node-1") };
    let agent = FakeAgent::start(&scheduler.endpoint(), config);
    agent.registered(1).await;
    let client = scheduler.client().await;
    let id = running(&client).await.id;
    let error = soon("a refusal", client.exec(id, ExecOptions::command(["true"]))).await.unwrap_err();
    assert_eq!(error.cause().reason, Reason::NodeUnreachable);
    assert!(error.to_string().contains("within 200 ms"), "{error}");
}

#[tokio::test]
async fn a_relay_is_only_for_the_node_that_was_asked() {
    let scheduler = Scheduler::start(|config| config.relay.open_timeout_ms = 500).await;
    let config = AgentConfig { relay_as: Some("stranger".into()), ..AgentConfig::new("node-1") };
    let agent = FakeAgent::start(&scheduler.endpoint(), config);
    agent.registered(1).await;
    let client = scheduler.client().await;
    let id = running(&client).await.id;
    let error = soon("a refusal", client.exec(id, ExecOptions::command(["true"]))).await.unwrap_err();
    assert_eq!(error.cause().reason, Reason::NodeUnreachable);
    let stats = agent.until_guest("a refusal", |stats| stats.refused == 1).await;
    assert_eq!(stats.refusal, "relay_id is not awaited from this node");
    assert_eq!(stats.started, 0);
}

#[tokio::test]
async fn streams_of_one_sandbox_are_bounded_and_given_back() {
    let scheduler = Scheduler::start(|config| config.relay.streams_per_sandbox = 2).await;
    let agent = FakeAgent::join(&scheduler.endpoint(), "node-1").await;
    let client = scheduler.client().await;
    let id = running(&client).await.id;
    let wait = || ExecOptions::command(["wait"]);
    let one = client.exec(id, wait()).await.unwrap();
    let _two = client.exec(id, wait()).await.unwrap();
    assert_eq!(reason(client.exec(id, wait()).await.map(drop)), Reason::TooManyStreams);
    let other = running(&client).await.id;
    client.exec(other, wait()).await.expect("another sandbox has streams of its own");
    drop(one);
    agent.until_guest("a cancellation", |stats| stats.cancelled >= 1).await;
    // the place is given back just after the node has been told
    soon("a free place", async {
        while client.exec(id, wait()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn without_a_session_of_its_node_a_sandbox_is_unreachable_at_once() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let mut open = fleet.client.exec(id, ExecOptions::command(["wait"])).await.unwrap();
    drop(fleet.agent);
    // its connections are gone with it: what was open ends, and nothing new begins
    let cut = soon("the cut", open.wait()).await.unwrap_err();
    assert_eq!(cut.cause().reason, Reason::NodeUnreachable);
    let error = soon("a refusal", fleet.client.exec(id, ExecOptions::command(["true"]))).await.unwrap_err();
    assert_eq!(error.cause().reason, Reason::NodeUnreachable);
    assert!(error.retryable());
}
