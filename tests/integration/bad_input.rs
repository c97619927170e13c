//! Bad input: each gets an error that names the field and the limit, and nothing is stored.

use super::*;
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::file_service_client::FileServiceClient;
use pinfold_proto::api::v1::node_service_client::NodeServiceClient;
use pinfold_proto::api::v1::process_service_client::ProcessServiceClient;
use pinfold_proto::api::v1::sandbox_service_client::SandboxServiceClient;
use pinfold_proto::reasons;
use pinfold_tests::harness::soon;
use tonic::{Code, Status};

#[track_caller]
fn check(status: &Status, expected: &str) {
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert_eq!(reasons::cause(status).reason, Reason::InvalidArgument);
    assert!(status.message().contains(expected), "{:?} does not say {expected:?}", status.message());
}

fn resources(cpu_millis: u64, memory_bytes: u64, disk_bytes: u64, pids: u64) -> Option<wire::Resources> {
    Some(wire::Resources { cpu_millis, memory_bytes, disk_bytes, pids })
}

#[tokio::test]
async fn specs() {
    let scheduler = Scheduler::start(|_| {}).await;
    let mut raw = SandboxServiceClient::new(scheduler.channel().await);
    let spec = wire::SandboxSpec::default;
    let (memory, disk) = (256 << 20, 1 << 30);
    let label = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    let many = |count: usize| (0..count).map(|n| (format!("K{n}"), String::new())).collect();
    let cases = [
        (wire::SandboxSpec { name: "Upper".into(), ..spec() }, "name \"Upper\""),
        (wire::SandboxSpec { name: "a".repeat(64), ..spec() }, "the limit is 63"),
        (wire::SandboxSpec { image: "../base".into(), ..spec() }, "image \"../base\""),
        (wire::SandboxSpec { kernel: "k k".into(), ..spec() }, "kernel \"k k\""),
        (
            wire::SandboxSpec { resources: resources(0, memory, disk, 512), ..spec() },
            "resources.cpu_millis is 0",
        ),
        (
            wire::SandboxSpec { resources: resources(1000, 1, disk, 512), ..spec() },
            "resources.memory_bytes is 1",
        ),
        (
            wire::SandboxSpec { resources: resources(1000, memory, u64::MAX, 512), ..spec() },
            "18446744073709551615",
        ),
        (wire::SandboxSpec { resources: resources(1000, memory, disk, 15), ..spec() }, "outside 16 to 65536"),
        (wire::SandboxSpec { ttl_seconds: Some(0), ..spec() }, "ttl_seconds is 0"),
        (wire::SandboxSpec { ttl_seconds: Some(u64::MAX), ..spec() }, "ttl_seconds"),
        (wire::SandboxSpec { start_timeout_seconds: Some(3601), ..spec() }, "start_timeout_seconds is 3601"),
        (wire::SandboxSpec { io_bytes_per_second: Some(1), ..spec() }, "io_bytes_per_second is 1"),
        (wire::SandboxSpec { labels: label("a b", ""), ..spec() }, "labels: \"a b\""),
        (wire::SandboxSpec { labels: label("a", &"v".repeat(64)), ..spec() }, "at most 63"),
        (wire::SandboxSpec { labels: many(33), ..spec() }, "labels has 33 entries, the limit is 32"),
        (wire::SandboxSpec { node_labels: label("ä", ""), ..spec() }, "node_labels"),
        (wire::SandboxSpec { environment: label("1A", ""), ..spec() }, "environment: \"1A\""),
        (wire::SandboxSpec { environment: label("A", "\0"), ..spec() }, "NUL"),
        (wire::SandboxSpec { environment: many(257), ..spec() }, "the limit is 256"),
        (wire::SandboxSpec { environment: label("A", &"v".repeat(40_000)), ..spec() }, "the limit is 32768"),
    ];
    for (spec, expected) in cases {
        let request = wire::CreateSandboxRequest { request_id: "r".into(), spec: Some(spec) };
        check(&raw.create_sandbox(request).await.unwrap_err(), expected);
    }
    let cases = [
        (String::new(), "request_id is empty"),
        ("a b".into(), "request_id"),
        ("x".repeat(65), "limit is 64"),
    ];
    for (request_id, expected) in cases {
        let request = wire::CreateSandboxRequest { request_id, spec: Some(spec()) };
        check(&raw.create_sandbox(request).await.unwrap_err(), expected);
    }
    let request = wire::CreateSandboxRequest { request_id: "r".into(), spec: None };
    check(&raw.create_sandbox(request).await.unwrap_err(), "spec is missing");
    let listed = raw.list_sandboxes(wire::ListSandboxesRequest::default()).await.unwrap().into_inner();
    assert_eq!((listed.sandboxes.len(), listed.revision), (0, 0), "nothing was stored");
}

#[tokio::test]
async fn ids_pages_and_phases() {
    let scheduler = Scheduler::start(|_| {}).await;
    let channel = scheduler.channel().await;
    let mut raw = SandboxServiceClient::new(channel.clone());
    for (sandbox_id, expected) in
        [("", "sandbox_id is missing"), ("x", "not a UUID"), ("../../etc", "not a UUID")]
    {
        let sandbox_id = sandbox_id.to_owned();
        let get = raw.get_sandbox(wire::GetSandboxRequest { sandbox_id: sandbox_id.clone() }).await;
        check(&get.unwrap_err(), expected);
        let stop = wire::StopSandboxRequest {
            request_id: "r".into(),
            sandbox_id: sandbox_id.clone(),
            ..Default::default()
        };
        check(&raw.stop_sandbox(stop).await.unwrap_err(), expected);
        let delete = wire::DeleteSandboxRequest { request_id: "r".into(), sandbox_id: sandbox_id.clone() };
        check(&raw.delete_sandbox(delete).await.unwrap_err(), expected);
        let logs = wire::StreamLogsRequest { sandbox_id, ..Default::default() };
        check(&raw.stream_logs(logs).await.unwrap_err(), expected);
    }
    let watch = wire::WatchSandboxesRequest { sandbox_id: "x".into(), ..Default::default() };
    check(&raw.watch_sandboxes(watch).await.unwrap_err(), "not a UUID");
    let stop = wire::StopSandboxRequest {
        request_id: "r".into(),
        sandbox_id: nobody().to_string(),
        grace_seconds: Some(3601),
    };
    check(&raw.stop_sandbox(stop).await.unwrap_err(), "grace_seconds is 3601");
    let stop = wire::StopSandboxRequest { sandbox_id: nobody().to_string(), ..Default::default() };
    check(&raw.stop_sandbox(stop).await.unwrap_err(), "request_id is empty");
    let list = wire::ListSandboxesRequest::default;
    let cases = [
        (wire::ListSandboxesRequest { page_size: 1001, ..list() }, "page_size is 1001, outside 1 to 1000"),
        (wire::ListSandboxesRequest { page_token: "next".into(), ..list() }, "page_token \"next\""),
        (wire::ListSandboxesRequest { phases: vec![0], ..list() }, "phase is 0"),
        (wire::ListSandboxesRequest { phases: vec![99], ..list() }, "phase is 99"),
        (wire::ListSandboxesRequest { labels: [("a b".into(), String::new())].into(), ..list() }, "labels"),
    ];
    for (request, expected) in cases {
        check(&raw.list_sandboxes(request).await.unwrap_err(), expected);
    }
    let mut nodes = NodeServiceClient::new(channel);
    let request = wire::ListNodesRequest { page_token: "Not A Node".into(), ..Default::default() };
    check(&nodes.list_nodes(request).await.unwrap_err(), "page_token");
    let request = wire::ListNodesRequest { page_size: 1001, ..Default::default() };
    check(&nodes.list_nodes(request).await.unwrap_err(), "page_size");
}

/// The status of an exec, whether it comes at its beginning or later.
async fn exec_refusal(fleet: &Fleet, frames: Vec<wire::exec_request::Frame>) -> Status {
    let mut raw = ProcessServiceClient::new(fleet.scheduler.channel().await);
    let frames = frames.into_iter().map(|frame| wire::ExecRequest { frame: Some(frame) });
    let frames = futures::StreamExt::chain(futures::stream::iter(frames), futures::stream::pending());
    let mut answers = match soon("an answer", raw.exec(frames)).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return status,
    };
    loop {
        match soon("an answer", answers.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it was not refused"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn execs() {
    use wire::exec_request::Frame;
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id.to_string();
    let start =
        || wire::ExecStart { sandbox_id: id.clone(), command: vec!["wait".into()], ..Default::default() };
    let size = |rows, columns| wire::TerminalSize { rows, columns };
    let cases = [
        (wire::ExecStart { sandbox_id: "x".into(), ..start() }, "not a UUID"),
        (wire::ExecStart { command: vec![], ..start() }, "command is missing"),
        (wire::ExecStart { command: vec!["a\0".into()], ..start() }, "NUL"),
        (wire::ExecStart { command: vec!["a".repeat(130_000)], ..start() }, "the limit is 122880"),
        (wire::ExecStart { command: vec!["a".into(); 5000], ..start() }, "outside 1 to 4096"),
        (wire::ExecStart { working_directory: "tmp".into(), ..start() }, "working_directory"),
        (wire::ExecStart { user: "root;".into(), ..start() }, "user"),
        (wire::ExecStart { timeout_ms: Some(0), ..start() }, "timeout_ms is 0"),
        (wire::ExecStart { terminal: Some(size(0, 80)), ..start() }, "terminal.rows is 0"),
        (wire::ExecStart { terminal: Some(size(24, 65_536)), ..start() }, "terminal.columns is 65536"),
        (wire::ExecStart { environment: [("A B".into(), String::new())].into(), ..start() }, "environment"),
    ];
    for (start, expected) in cases {
        check(&exec_refusal(&fleet, vec![Frame::Start(start)]).await, expected);
    }
    check(&exec_refusal(&fleet, vec![Frame::Stdin("x".into())]).await, "not start");
    let before = fleet.agent.guest().borrow().cancelled;
    let later = [
        (Frame::Start(start()), "start comes first, and once"),
        (Frame::Stdin(vec![0; 65_537].into()), "stdin takes 65537 bytes, the limit is 65536"),
        (Frame::Signal(65), "signal is 65, outside 1 to 64"),
        (Frame::Resize(size(0, 0)), "terminal.rows is 0"),
    ];
    let count = later.len() as u64;
    for (frame, expected) in later {
        check(&exec_refusal(&fleet, vec![Frame::Start(start()), frame]).await, expected);
    }
    fleet.agent.until_guest("the end of each process", |stats| stats.cancelled == before + count).await;
}

#[tokio::test]
async fn paths() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id.to_string();
    let mut raw = FileServiceClient::new(fleet.scheduler.channel().await);
    let long = format!("/{}", "a".repeat(4095));
    let cases = [
        ("", "absolute"),
        ("etc/x", "absolute"),
        ("/a/../b", ".."),
        ("/a\0", "NUL"),
        (&long, "limit is 4095"),
    ];
    for (path, expected) in cases {
        let read =
            wire::ReadFileRequest { sandbox_id: id.clone(), path: path.to_owned(), user: String::new() };
        check(&raw.read_file(read).await.unwrap_err(), expected);
        let start =
            wire::WriteFileStart { sandbox_id: id.clone(), path: path.to_owned(), ..Default::default() };
        let frame = wire::WriteFileRequest { frame: Some(wire::write_file_request::Frame::Start(start)) };
        check(&raw.write_file(futures::stream::iter([frame])).await.unwrap_err(), expected);
    }
    let start =
        wire::WriteFileStart { sandbox_id: id, path: "/x".into(), mode: Some(0o10000), ..Default::default() };
    let frame = wire::WriteFileRequest { frame: Some(wire::write_file_request::Frame::Start(start)) };
    check(&raw.write_file(futures::stream::iter([frame])).await.unwrap_err(), "mode is 4096");
}

#[tokio::test]
async fn messages_that_are_too_large_are_refused_before_they_are_read() {
    let scheduler = Scheduler::start(|_| {}).await;
    let mut raw = SandboxServiceClient::new(scheduler.channel().await);
    let labels = [("k".to_owned(), "v".repeat(200 * 1024))].into();
    let request = wire::ListSandboxesRequest { labels, ..Default::default() };
    let status = raw.list_sandboxes(request).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert!(status.message().contains("131072"), "{}", status.message());
    raw.list_sandboxes(wire::ListSandboxesRequest::default()).await.expect("the connection goes on");
}
