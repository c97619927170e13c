//! What every gRPC server of ours offers: reflection, health, bounds.

use super::*;
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::sandbox_service_client::SandboxServiceClient;
use pinfold_tests::harness::soon;
use std::collections::BTreeSet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const SERVICES: [&str; 7] = [
    "pinfold.api.v1.FileService",
    "pinfold.api.v1.NodeService",
    "pinfold.api.v1.ProcessService",
    "pinfold.api.v1.SandboxService",
    "pinfold.api.v1.SnapshotService",
    "pinfold.api.v1.TemplateService",
    "pinfold.node.v1.NodeSessionService",
];

macro_rules! reflected {
    ($channel:expr, $version:ident) => {{
        use tonic_reflection::pb::$version as pb;
        let mut client = pb::server_reflection_client::ServerReflectionClient::new($channel.clone());
        let ask =
            |request| pb::ServerReflectionRequest { host: String::new(), message_request: Some(request) };
        use pb::server_reflection_request::MessageRequest;
        let requests = [
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol("pinfold.api.v1.Sandbox.timeline".to_owned())),
            ask(MessageRequest::FileByFilename("google/protobuf/timestamp.proto".to_owned())),
        ];
        let answers = client.server_reflection_info(futures::stream::iter(requests)).await.unwrap();
        let mut answers = answers.into_inner();
        use pb::server_reflection_response::MessageResponse;
        let mut listed = BTreeSet::new();
        let mut files = 0;
        while let Some(answer) = soon("an answer", answers.message()).await.unwrap() {
            match answer.message_response.unwrap() {
                MessageResponse::ListServicesResponse(list) => {
                    listed.extend(list.service.into_iter().map(|service| service.name));
                }
                MessageResponse::FileDescriptorResponse(found) => files += found.file_descriptor_proto.len(),
                other => panic!("{other:?}"),
            }
        }
        (listed, files)
    }};
}

#[tokio::test]
async fn reflection_answers_in_both_versions() {
    let scheduler = Scheduler::start(|_| {}).await;
    let channel = scheduler.channel().await;
    for (listed, files) in [reflected!(channel, v1), reflected!(channel, v1alpha)] {
        for service in SERVICES {
            assert!(listed.contains(service), "{service} is not in {listed:?}");
        }
        assert!(!listed.contains("pinfold.guest.v1.GuestService"), "it is not served here");
        assert_eq!(files, 2);
    }
}

#[tokio::test]
async fn every_service_is_healthy() {
    let scheduler = Scheduler::start(|_| {}).await;
    let mut health = HealthClient::new(scheduler.channel().await);
    for service in SERVICES.into_iter().chain([""]) {
        let answer = health.check(HealthCheckRequest { service: service.to_owned() }).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service}");
    }
}

#[tokio::test]
async fn a_deadline_that_has_passed_is_said_with_its_reason() {
    let scheduler = Scheduler::start(|_| {}).await;
    let mut raw = SandboxServiceClient::new(scheduler.channel().await);
    let mut request = tonic::Request::new(wire::WatchSandboxesRequest::default());
    request.metadata_mut().insert("grpc-timeout", "50m".parse().unwrap());
    let mut watch = raw.watch_sandboxes(request).await.unwrap().into_inner();
    let status = soon("the deadline", watch.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(pinfold_proto::reasons::cause(&status).reason, Reason::DeadlineExceeded);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let scheduler = Scheduler::start(|config| config.server.first_byte_timeout_ms = 100).await;
    let mut silent = TcpStream::connect(scheduler.address).await.unwrap();
    let read = soon("the end", silent.read_to_end(&mut Vec::new())).await;
    // closed, or reset when our side had something to say first
    assert!(read.is_ok() || read.unwrap_err().kind() == std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_is_not_http2_is_closed() {
    let scheduler = Scheduler::start(|_| {}).await;
    let mut stranger = TcpStream::connect(scheduler.address).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let _ = soon("the end", stranger.read_to_end(&mut Vec::new())).await;
    scheduler.client().await.nodes().await.expect("others are served");
}

#[tokio::test]
async fn connections_are_bounded_and_the_next_one_waits() {
    let scheduler = Scheduler::start(|config| config.server.connections = 2).await;
    let one = TcpStream::connect(scheduler.address).await.unwrap();
    let client = scheduler.client().await;
    client.nodes().await.unwrap();
    let endpoint = scheduler.endpoint();
    let third = tokio::spawn(async move { Client::connect(&endpoint).await.unwrap().nodes().await.unwrap() });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(!third.is_finished(), "there is no place for a third connection");
    drop(one);
    assert!(soon("a place", third).await.unwrap().is_empty());
}

#[tokio::test]
async fn headers_are_bounded() {
    let scheduler = Scheduler::start(|_| {}).await;
    let mut raw = SandboxServiceClient::new(scheduler.channel().await);
    let mut request = tonic::Request::new(wire::ListSandboxesRequest::default());
    request.metadata_mut().insert("x-large", "v".repeat(20_000).parse().unwrap());
    let status = raw.list_sandboxes(request).await.unwrap_err();
    assert_ne!(status.code(), Code::Ok);
    raw.list_sandboxes(wire::ListSandboxesRequest::default()).await.expect("an ordinary call is answered");
}
