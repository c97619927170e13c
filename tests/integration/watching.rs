//! Watch: from the present, from a revision, from too long ago, too slowly.

use super::*;
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::sandbox_service_client::SandboxServiceClient;
use pinfold_proto::reasons;
use pinfold_sdk::domain::{Phase, Revision};
use pinfold_tests::harness::soon;
use std::collections::BTreeMap;
use tonic::Code;

#[tokio::test]
async fn a_watch_shows_every_phase_once_and_in_order() {
    let fleet = Fleet::new().await;
    let created = fleet.client.create(NewSandbox::default()).await.unwrap();
    let mut watch = fleet.client.watch(created.revision);
    fleet.client.wait_running(created.id, LIMIT).await.unwrap();
    fleet.client.delete(created.id).await.unwrap();
    let (mut phases, mut revisions) = (vec![created.phase], vec![created.revision]);
    loop {
        let event = soon("a change", watch.next()).await.unwrap();
        assert_eq!(event.sandbox.id, created.id);
        revisions.push(event.revision);
        if phases.last() != Some(&event.sandbox.phase) {
            phases.push(event.sandbox.phase);
        }
        if event.deleted {
            break;
        }
    }
    assert!(revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
    // the answer may be of before or after the placement
    let expected = [Phase::Assigned, Phase::Starting, Phase::Running, Phase::Stopping, Phase::Stopped];
    phases.retain(|phase| *phase != Phase::Pending);
    assert_eq!(phases, expected);
}

#[tokio::test]
async fn a_watch_resumes_from_the_revision_that_it_had_reached() {
    let fleet = Fleet::new().await;
    let sandbox = fleet.running().await;
    let (_, revision) = fleet.client.list_all(Default::default()).await.unwrap();
    fleet.client.stop(sandbox.id, None).await.unwrap();
    fleet.client.wait_ended(sandbox.id, LIMIT).await.unwrap();
    let mut watch = fleet.client.watch(revision);
    let first = soon("a change", watch.next()).await.unwrap();
    assert!(first.revision > revision, "not what was listed already");
    assert_eq!(first.sandbox.phase, Phase::Stopping);
}

#[tokio::test]
async fn a_revision_that_is_no_longer_kept_is_out_of_range() {
    let scheduler = Scheduler::start(|config| config.store.history_entries = 5).await;
    let client = scheduler.client().await;
    for _ in 0..10 {
        client.create(with_cpu_millis(100)).await.unwrap();
    }
    let error = soon("a refusal", client.watch(Revision(2)).next()).await.unwrap_err();
    assert_eq!(error.cause().reason, Reason::RevisionCompacted);
    assert_eq!((error.code(), error.retryable()), (Code::OutOfRange, false));
    assert!(error.to_string().contains("from_revision is 2"), "{error}");
    let error = soon("a refusal", client.watch(Revision(11)).next()).await.unwrap_err();
    assert_eq!(error.cause().reason, Reason::InvalidArgument, "a revision of the future");
    let event = soon("a change", client.watch(Revision(5)).next()).await.unwrap();
    assert_eq!(event.revision, Revision(6));
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_cut_and_costs_no_memory() {
    let scheduler = Scheduler::start(|config| config.store.history_entries = 8).await;
    let client = scheduler.client().await;
    let mut raw = SandboxServiceClient::new(scheduler.channel().await);
    let mut slow = raw.watch_sandboxes(wire::WatchSandboxesRequest::default()).await.unwrap().into_inner();
    let environment = BTreeMap::from([("BIG".to_owned(), "x".repeat(32_000))]);
    let calls = (0..200)
        .map(|_| client.create(NewSandbox { environment: environment.clone(), ..NewSandbox::default() }));
    for created in futures::future::join_all(calls).await {
        created.unwrap();
    }
    let end = soon("the end of the watch", async {
        loop {
            if let Err(status) = slow.message().await {
                break status;
            }
        }
    });
    let status = end.await;
    assert_eq!(
        (status.code(), reasons::cause(&status).reason),
        (Code::OutOfRange, Reason::RevisionCompacted)
    );
    assert!(status.message().contains("fell behind"), "{}", status.message());
}

#[tokio::test]
async fn a_watch_of_one_sandbox_that_is_not_there_is_refused() {
    let scheduler = Scheduler::start(|_| {}).await;
    let error = soon("a refusal", scheduler.client().await.watch_one(nobody()).next()).await.unwrap_err();
    assert_eq!(error.cause().reason, Reason::SandboxNotFound);
}

#[tokio::test]
async fn watches_are_bounded() {
    let scheduler = Scheduler::start(|config| config.server.watches = 2).await;
    let mut raw = SandboxServiceClient::new(scheduler.channel().await);
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(raw.watch_sandboxes(wire::WatchSandboxesRequest::default()).await.unwrap());
    }
    let status = raw.watch_sandboxes(wire::WatchSandboxesRequest::default()).await.unwrap_err();
    assert_eq!(reasons::cause(&status).reason, Reason::TooManyStreams);
    open.pop();
    // the place is free when the server has seen the end
    soon("a free place", async {
        while raw.watch_sandboxes(wire::WatchSandboxesRequest::default()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
