//! Processes: through scheduler and relay to a guest and back.

use super::*;
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::process_service_client::ProcessServiceClient;
use pinfold_proto::reasons;
use pinfold_sdk::domain::{Milestone, Phase};
use pinfold_sdk::{Code, ExecOptions, Outcome, Output, Process, ProcessEvent};
use pinfold_tests::fake_agent::{AgentConfig, OnAssign};
use pinfold_tests::harness::soon;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;

impl Fleet {
    async fn exec(&self, id: SandboxId, words: &[&str]) -> Process {
        let options = ExecOptions::command(words.iter().copied());
        soon("a process", self.client.exec(id, options)).await.unwrap()
    }

    async fn output(&self, id: SandboxId, words: &[&str]) -> Output {
        soon("an end", self.exec(id, words).await.output(1 << 20)).await.unwrap()
    }
}

async fn started(process: &mut Process) {
    let event = soon("a start", process.next()).await.unwrap();
    assert_eq!(event, Some(ProcessEvent::Started(42)));
}

#[tokio::test]
async fn output_and_exit_code_come_back() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let output = fleet.output(id, &["echo", "hello", "world"]).await;
    assert_eq!((output.stdout.as_slice(), output.exit.outcome), (&b"hello world\n"[..], Outcome::Code(0)));
    assert_eq!(fleet.output(id, &["exit", "7"]).await.exit.outcome, Outcome::Code(7));
    let missing = fleet.output(id, &["no-such"]).await.exit;
    assert_eq!((missing.outcome, missing.message.as_str()), (Outcome::Code(127), "no such command"));
}

#[tokio::test]
async fn the_first_byte_of_the_first_command_is_on_the_timeline() {
    let fleet = Fleet::new().await;
    let sandbox = fleet.running().await;
    assert_eq!(sandbox.reached(Milestone::FirstByte), None);
    let mut watch = fleet.client.watch_one_from(sandbox.id, sandbox.revision);
    fleet.output(sandbox.id, &["exit", "0"]).await;
    fleet.output(sandbox.id, &["echo", "x"]).await;
    let event = soon("a change", watch.next()).await.unwrap();
    let at = event.sandbox.reached(Milestone::FirstByte).expect("that is the change");
    fleet.output(sandbox.id, &["echo", "y"]).await;
    assert_eq!(fleet.client.get(sandbox.id).await.unwrap().reached(Milestone::FirstByte), Some(at));
}

#[tokio::test]
async fn stdin_has_an_end_and_output_goes_on_after_it() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let process = fleet.exec(id, &["count"]).await;
    for _ in 0..100 {
        assert!(process.input().write(vec![1_u8; 100_000]).await);
    }
    let output = soon("an end", process.output(1024)).await.unwrap();
    assert_eq!(output.stdout, b"10000000");
}

#[tokio::test]
async fn a_caller_that_half_closes_without_a_frame_closes_stdin_too() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let start =
        wire::ExecStart { sandbox_id: id.to_string(), command: vec!["count".into()], ..Default::default() };
    let frames = [wire::exec_request::Frame::Start(start), wire::exec_request::Frame::Stdin("abc".into())];
    let frames = frames.map(|frame| wire::ExecRequest { frame: Some(frame) });
    let mut raw = ProcessServiceClient::new(fleet.scheduler.channel().await);
    let mut answers = raw.exec(futures::stream::iter(frames)).await.unwrap().into_inner();
    let mut last = None;
    while let Some(answer) = soon("an answer", answers.message()).await.unwrap() {
        last = answer.frame;
    }
    let exited =
        wire::ExecExited { outcome: Some(wire::exec_exited::Outcome::ExitCode(0)), ..Default::default() };
    assert_eq!(last, Some(wire::exec_response::Frame::Exited(exited)));
}

#[tokio::test]
async fn bytes_go_both_ways_at_once() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let mut process = fleet.exec(id, &["cat"]).await;
    started(&mut process).await;
    for n in 0..50_u8 {
        assert!(process.input().write(vec![n; 1000]).await);
        let event = soon("an echo", process.next()).await.unwrap();
        assert_eq!(event, Some(ProcessEvent::Stdout(vec![n; 1000].into())));
    }
    process.input().close_stdin().await;
    assert!(soon("an end", process.wait()).await.unwrap().success());
}

#[tokio::test]
async fn signals_arrive() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let mut process = fleet.exec(id, &["wait"]).await;
    started(&mut process).await;
    assert!(process.input().signal(15).await);
    assert_eq!(soon("an end", process.wait()).await.unwrap().outcome, Outcome::Signal(15));
}

#[tokio::test]
async fn what_the_caller_asks_for_reaches_the_guest() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let options = ExecOptions {
        environment: [("K".to_owned(), "v".to_owned())].into(),
        working_directory: Some("/tmp".into()),
        user: Some("nobody".into()),
        timeout: Some(Duration::from_millis(1500)),
        terminal: Some(pinfold_sdk::TerminalSize { rows: 24, columns: 80 }),
        ..ExecOptions::command(["echo"])
    };
    soon("an end", fleet.client.exec(id, options).await.unwrap().output(1024)).await.unwrap();
    let start = fleet.agent.guest().borrow().last_start.clone().unwrap();
    assert_eq!((start.working_directory.as_str(), start.user.as_str()), ("/tmp", "nobody"));
    assert_eq!((start.timeout_ms, start.environment["K"].as_str()), (Some(1500), "v"));
    assert_eq!(start.terminal.map(|size| (size.rows, size.columns)), Some((24, 80)));
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_its_process() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    for words in [["wait"], ["flood"], ["deaf"]] {
        let before = fleet.agent.guest().borrow().cancelled;
        let mut process = fleet.exec(id, &words).await;
        started(&mut process).await;
        drop(process);
        fleet.agent.until_guest("a cancellation", |stats| stats.cancelled == before + 1).await;
    }
}

#[tokio::test]
async fn the_deadline_of_the_call_ends_the_process() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let start =
        wire::ExecStart { sandbox_id: id.to_string(), command: vec!["wait".into()], ..Default::default() };
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(wire::ExecRequest { frame: Some(wire::exec_request::Frame::Start(start)) }).await.unwrap();
    let mut request = tonic::Request::new(ReceiverStream::new(receiver));
    // as a header only, so that it is the server that keeps it
    request.metadata_mut().insert("grpc-timeout", "300m".parse().unwrap());
    let mut raw = ProcessServiceClient::new(fleet.scheduler.channel().await);
    let mut answers = raw.exec(request).await.unwrap().into_inner();
    assert!(soon("a start", answers.message()).await.unwrap().is_some());
    let status = soon("the deadline", answers.message()).await.unwrap_err();
    assert_eq!(
        (status.code(), reasons::cause(&status).reason),
        (Code::DeadlineExceeded, Reason::DeadlineExceeded)
    );
    fleet.agent.until_guest("a cancellation", |stats| stats.cancelled == 1).await;
}

#[tokio::test]
async fn a_phase_that_does_not_run_says_which() {
    let scheduler = Scheduler::start(|_| {}).await;
    let client = scheduler.client().await;
    let refusal = async |id| {
        let error = client.exec(id, ExecOptions::command(["true"])).await.unwrap_err();
        (error.cause().reason, error.code(), error.retryable())
    };
    assert_eq!(refusal(nobody()).await, (Reason::SandboxNotFound, Code::NotFound, false));
    let pending = client.create(NewSandbox::default()).await.unwrap();
    assert_eq!(refusal(pending.id).await, (Reason::SandboxStarting, Code::FailedPrecondition, true));
    let config = AgentConfig { on_assign: OnAssign::Start, ..AgentConfig::new("node-1") };
    let agent = FakeAgent::start(&scheduler.endpoint(), config);
    let mut watch = client.watch_one(pending.id);
    while soon("a change", watch.next()).await.unwrap().sandbox.phase != Phase::Starting {}
    assert_eq!(refusal(pending.id).await, (Reason::SandboxStarting, Code::FailedPrecondition, true));
    client.stop(pending.id, None).await.unwrap();
    client.wait_ended(pending.id, LIMIT).await.unwrap();
    assert_eq!(refusal(pending.id).await, (Reason::SandboxEnded, Code::FailedPrecondition, false));
    drop(agent);
}

#[tokio::test]
async fn the_guests_own_refusals_keep_their_reason() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    for reason in [Reason::FilePermission, Reason::GuestUnresponsive, Reason::InvalidArgument] {
        let mut process = fleet.exec(id, &["error", reason.as_str()]).await;
        let error = soon("a refusal", process.next()).await.unwrap_err();
        assert_eq!(error.cause().reason, reason);
        assert_eq!(error.code(), reasons::wire(reason).0);
    }
}

#[tokio::test]
async fn a_node_that_goes_away_is_no_good_end() {
    let fleet = Fleet::new().await;
    let id = fleet.running().await.id;
    let mut process = fleet.exec(id, &["cut"]).await;
    let error = soon("the cut", process.wait()).await.unwrap_err();
    assert_eq!((error.cause().reason, error.code()), (Reason::NodeUnreachable, Code::Unavailable));
}
