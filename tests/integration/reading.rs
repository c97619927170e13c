//! Get and List.

use super::*;
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::sandbox_service_client::SandboxServiceClient;
use pinfold_sdk::SandboxFilter;
use pinfold_sdk::domain::Phase;
use std::collections::BTreeMap;

fn labelled(key: &str, value: &str) -> NewSandbox {
    NewSandbox { labels: BTreeMap::from([(key.to_owned(), value.to_owned())]), ..with_cpu_millis(100) }
}

fn by_label(key: &str, value: &str) -> SandboxFilter {
    SandboxFilter { labels: BTreeMap::from([(key.to_owned(), value.to_owned())]), phases: Vec::new() }
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_repetition() {
    let scheduler = Scheduler::start(|_| {}).await;
    let client = scheduler.client().await;
    let mut created = Vec::new();
    for _ in 0..7 {
        created.push(client.create(with_cpu_millis(100)).await.unwrap().id.to_string());
    }
    let mut raw = SandboxServiceClient::new(scheduler.channel().await);
    let (mut seen, mut page_token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = wire::ListSandboxesRequest { page_size: 3, page_token, ..Default::default() };
        let page = raw.list_sandboxes(request).await.unwrap().into_inner();
        assert!(page.sandboxes.len() <= 3);
        assert_eq!(page.revision, 7);
        seen.extend(page.sandboxes.into_iter().map(|sandbox| sandbox.id));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((seen, pages), (created, 3));
}

#[tokio::test]
async fn a_page_of_large_sandboxes_still_fits_a_message() {
    let scheduler = Scheduler::start(|_| {}).await;
    let client = scheduler.client().await;
    let environment = BTreeMap::from([("BIG".to_owned(), "x".repeat(32_000))]);
    let calls = (0..150)
        .map(|_| client.create(NewSandbox { environment: environment.clone(), ..NewSandbox::default() }));
    for created in futures::future::join_all(calls).await {
        created.unwrap();
    }
    let (all, _) = client.list_all(SandboxFilter::default()).await.unwrap();
    assert_eq!(all.len(), 150, "150 times 32 kB is more than the 4 MiB of a message");
}

#[tokio::test]
async fn lists_are_filtered_by_label_and_phase() {
    let fleet = Fleet::new().await;
    let client = &fleet.client;
    let blue = client.create(labelled("team", "blue")).await.unwrap();
    let red = client.create(labelled("team", "red")).await.unwrap();
    let plain = client.create(with_cpu_millis(100)).await.unwrap();
    for sandbox in [&blue, &red, &plain] {
        client.wait_running(sandbox.id, LIMIT).await.unwrap();
    }
    client.stop(red.id, None).await.unwrap();
    client.wait_ended(red.id, LIMIT).await.unwrap();
    let ids = async |filter: SandboxFilter| -> Vec<SandboxId> {
        client.list_all(filter).await.unwrap().0.into_iter().map(|sandbox| sandbox.id).collect()
    };
    assert_eq!(ids(by_label("team", "blue")).await, [blue.id]);
    assert_eq!(ids(by_label("team", "")).await, [blue.id, red.id], "an empty value asks for the key");
    assert!(ids(by_label("team", "green")).await.is_empty());
    let stopped = SandboxFilter { phases: vec![Phase::Stopped, Phase::Failed], ..SandboxFilter::default() };
    assert_eq!(ids(stopped.clone()).await, [red.id]);
    assert!(ids(SandboxFilter { labels: by_label("team", "blue").labels, ..stopped }).await.is_empty());
}

#[tokio::test]
async fn an_unknown_sandbox_is_not_found() {
    let scheduler = Scheduler::start(|_| {}).await;
    let error = scheduler.client().await.get(nobody()).await.unwrap_err();
    assert_eq!(error.cause().reason, Reason::SandboxNotFound);
    assert!(error.to_string().contains(&nobody().to_string()), "{error}");
}
