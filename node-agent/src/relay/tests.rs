//! Relays between a scheduler that the test plays and a guest with the real transport: a Unix socket, the handshake, and
//! gRPC.

use super::*;
use crate::fake_scheduler::{Bench, LIMIT, RelayCall};
use crate::sandbox::fake_host::Fault;
use crate::sandbox::record::tests::{ID, assignment};
use futures::{Stream, stream};
use pinfold_proto::guest::v1 as guest;
use pinfold_proto::guest::v1::exec_request::Frame as In;
use pinfold_proto::guest::v1::exec_response::Frame as Out;
use pinfold_proto::guest::v1::guest_service_server::{GuestService, GuestServiceServer};
use pinfold_vmm_api::console::Writer;
use std::pin::Pin;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

/// Tells its environment, repeats its input, and exits with 7 at its end.
struct Echo {
    /// cancelled when the guest hears that a call is over
    over: CancellationToken,
}

type Answer<T> = Result<tonic::Response<T>, Status>;
type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl GuestService for Echo {
    type ExecStream = Frames<guest::ExecResponse>;
    type ReadFileStream = Frames<guest::ReadFileResponse>;

    async fn exec(&self, request: tonic::Request<Streaming<guest::ExecRequest>>) -> Answer<Self::ExecStream> {
        let over = self.over.clone().drop_guard();
        let begun = Some((request.into_inner(), over));
        // the process's exit is the last word, whatever input is still to come
        let frames = stream::unfold(begun, |state| async {
            let (mut requests, over) = state?;
            let frame = match requests.message().await.ok()??.frame {
                Some(In::Start(start)) => {
                    let mut environment: Vec<_> = start.environment.into_iter().collect();
                    environment.sort();
                    Out::Stderr(format!("{environment:?}").into_bytes().into())
                }
                Some(In::Stdin(data)) => Out::Stdout(data),
                _ => {
                    let outcome = Some(guest::exec_exited::Outcome::ExitCode(7));
                    let exited = Out::Exited(guest::ExecExited { outcome, ..Default::default() });
                    return Some((Ok(guest::ExecResponse { frame: Some(exited) }), None));
                }
            };
            Some((Ok(guest::ExecResponse { frame: Some(frame) }), Some((requests, over))))
        });
        Ok(tonic::Response::new(Box::pin(frames)))
    }

    async fn read_file(
        &self,
        request: tonic::Request<guest::ReadFileRequest>,
    ) -> Answer<Self::ReadFileStream> {
        let path = request.into_inner().path;
        if path != "/there" {
            return Err(reasons::status(&Cause::new(Reason::FileNotFound, format!("{path} does not exist"))));
        }
        let data = |text: &'static str| guest::read_file_response::Frame::Data(text.into());
        let frames = ["one", "two"].map(|text| Ok(guest::ReadFileResponse { frame: Some(data(text)) }));
        Ok(tonic::Response::new(Box::pin(stream::iter(frames))))
    }

    async fn write_file(
        &self,
        request: tonic::Request<Streaming<guest::WriteFileRequest>>,
    ) -> Answer<guest::WriteFileResponse> {
        let mut frames = request.into_inner();
        let mut size_bytes = 0;
        while let Some(request) = frames.message().await? {
            match request.frame {
                Some(guest::write_file_request::Frame::Data(data)) => size_bytes += data.len() as u64,
                Some(guest::write_file_request::Frame::Commit(_)) => break,
                _ => {}
            }
        }
        Ok(tonic::Response::new(guest::WriteFileResponse { size_bytes }))
    }

    async fn configure(
        &self,
        _: tonic::Request<guest::ConfigureRequest>,
    ) -> Answer<guest::ConfigureResponse> {
        Err(Status::unimplemented(""))
    }

    async fn suspend(&self, _: tonic::Request<guest::SuspendRequest>) -> Answer<guest::SuspendResponse> {
        Err(tonic::Status::unimplemented(""))
    }
    async fn wake(&self, _: tonic::Request<guest::WakeRequest>) -> Answer<guest::WakeResponse> {
        Err(tonic::Status::unimplemented(""))
    }
    async fn shutdown(&self, _: tonic::Request<guest::ShutdownRequest>) -> Answer<guest::ShutdownResponse> {
        Err(Status::unimplemented(""))
    }
}

/// Serves [`Echo`] where the VMM's vsock would be. Each accepted stream has done the handshake.
fn serve(bench: &Bench, listener: UnixListener) -> CancellationToken {
    let over = CancellationToken::new();
    let service = GuestServiceServer::new(Echo { over: over.clone() });
    let connections = stream::unfold(listener, |listener| async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 13]).await.unwrap();
        stream.write_all(b"OK 1\n").await.unwrap();
        Some((Ok::<_, std::io::Error>(stream), listener))
    });
    let server = tonic::transport::Server::builder().add_service(service);
    drop(bench.tasks().background("guest", server.serve_with_incoming(connections)));
    over
}

/// A running sandbox with a guest, and the session that orders relays to it.
async fn running() -> (Bench, crate::fake_scheduler::SessionCall, CancellationToken) {
    let mut bench = Bench::start([]).await;
    let mut session = bench.session().await;
    session.welcome(1, 60_000).await;
    let mut assignment = assignment(1);
    assignment.spec.environment =
        [("A", "sandbox"), ("B", "sandbox")].map(|(k, v)| (k.into(), v.into())).into();
    bench.registry.assign(assignment).unwrap();
    let ledger = bench.registry.ledger(ID.parse().unwrap()).unwrap();
    let mut reports = ledger.reports();
    tokio::time::timeout(LIMIT, reports.wait_for(|report| report.phase == Phase::Running))
        .await
        .unwrap()
        .unwrap();
    let over = serve(&bench, UnixListener::bind(ledger.paths().vsock()).unwrap());
    (bench, session, over)
}

/// Orders a relay and takes its accept.
async fn open(bench: &mut Bench, session: &crate::fake_scheduler::SessionCall, sandbox: &str) -> RelayCall {
    let order = wire::OpenRelay { relay_id: "r1".into(), sandbox_id: sandbox.into() };
    session.order(1, wire::session_response::Message::OpenRelay(order)).await;
    let mut relay = bench.relay().await;
    let accept = wire::RelayAccept { relay_id: "r1".into(), node_id: "node-1".into() };
    assert_eq!(relay.next().await, Say::Accept(accept));
    relay
}

impl RelayCall {
    async fn next(&mut self) -> Say {
        let next = tokio::time::timeout(LIMIT, self.said.message()).await.expect("the node says something");
        next.expect("the stream is whole").expect("the node goes on").frame.expect("a frame")
    }

    async fn ask(&self, frame: Ask) {
        self.say.send(Ok(wire::RelayResponse { frame: Some(frame) })).await.expect("the node listens");
    }

    async fn fails_with(mut self) -> Reason {
        let Say::Error(error) = self.next().await else { panic!("no error") };
        Reason::from_str_exact(&error.cause.unwrap().reason).expect("a known reason")
    }
}

fn exec(frame: In) -> Ask {
    Ask::Exec(guest::ExecRequest { frame: Some(frame) })
}

fn start() -> Ask {
    let environment = [("B", "call"), ("C", "call")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    exec(In::Start(guest::ExecStart { command: vec!["echo".into()], environment, ..Default::default() }))
}

fn output(frame: Out) -> Say {
    Say::Exec(guest::ExecResponse { frame: Some(frame) })
}

#[tokio::test]
async fn a_stream_past_the_bound_is_told_so() {
    let (mut bench, session, _) = running().await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut relay = open(&mut bench, &session, ID).await;
        relay.ask(start()).await;
        relay.next().await;
        held.push(relay);
    }
    let relay = open(&mut bench, &session, ID).await;
    relay.ask(start()).await;
    assert_eq!(relay.fails_with().await, Reason::TooManyStreams);
    for mut relay in held {
        // the others are as they were
        relay.ask(exec(In::Stdin(vec![b'x'].into()))).await;
        assert_eq!(relay.next().await, output(Out::Stdout(vec![b'x'].into())));
    }
}

#[tokio::test]
async fn exec_carries_frames_both_ways_and_ends_in_order() {
    let (mut bench, session, _) = running().await;
    let mut relay = open(&mut bench, &session, ID).await;
    relay.ask(start()).await;
    let environment = br#"[("A", "sandbox"), ("B", "call"), ("C", "call")]"#;
    assert_eq!(relay.next().await, output(Out::Stderr(environment.to_vec().into())));
    relay.ask(exec(In::Stdin("hello".into()))).await;
    assert_eq!(relay.next().await, output(Out::Stdout("hello".into())));
    relay.ask(exec(In::CloseStdin(guest::CloseStdin {}))).await;
    assert!(matches!(relay.next().await, Say::Exec(guest::ExecResponse { frame: Some(Out::Exited(_)) })));
    assert_eq!(relay.next().await, Say::End(wire::RelayEnd {}));
}

#[tokio::test]
async fn a_client_that_goes_ends_the_guests_call() {
    let (mut bench, session, over) = running().await;
    let mut relay = open(&mut bench, &session, ID).await;
    relay.ask(start()).await;
    relay.next().await;
    assert!(!over.is_cancelled());
    drop(relay);
    tokio::time::timeout(LIMIT, over.cancelled()).await.expect("the guest hears of it");
}

#[tokio::test]
async fn files_go_both_ways_and_the_guests_reason_comes_back() {
    let (mut bench, session, _) = running().await;
    let read = |path: &str| Ask::ReadFile(guest::ReadFileRequest { path: path.into(), user: String::new() });
    let mut relay = open(&mut bench, &session, ID).await;
    relay.ask(read("/there")).await;
    for text in ["one", "two"] {
        let frame = Some(guest::read_file_response::Frame::Data(text.into()));
        assert_eq!(relay.next().await, Say::ReadFile(guest::ReadFileResponse { frame }));
    }
    assert_eq!(relay.next().await, Say::End(wire::RelayEnd {}));

    let relay = open(&mut bench, &session, ID).await;
    relay.ask(read("/not-there")).await;
    assert_eq!(relay.fails_with().await, Reason::FileNotFound);

    use guest::write_file_request::Frame;
    let mut relay = open(&mut bench, &session, ID).await;
    for frame in [
        Frame::Start(guest::WriteFileStart { path: "/new".into(), ..Default::default() }),
        Frame::Data("12345".into()),
        Frame::Commit(guest::CommitFile {}),
    ] {
        relay.ask(Ask::WriteFile(guest::WriteFileRequest { frame: Some(frame) })).await;
    }
    assert_eq!(relay.next().await, Say::WriteFile(guest::WriteFileResponse { size_bytes: 5 }));
    assert_eq!(relay.next().await, Say::End(wire::RelayEnd {}));
}

#[tokio::test]
async fn a_stream_that_cannot_be_says_why() {
    let (mut bench, session, _) = running().await;
    let relay = open(&mut bench, &session, "0190b3f0-5a00-7000-8000-00000000dead").await;
    relay.ask(start()).await;
    assert_eq!(relay.fails_with().await, Reason::SandboxNotFound);
    // a frame of another kind than the first
    let mut relay = open(&mut bench, &session, ID).await;
    relay.ask(start()).await;
    relay.next().await;
    relay.ask(Ask::Logs(wire::LogsRequest::default())).await;
    assert_eq!(relay.fails_with().await, Reason::InvalidArgument);

    let mut bench = Bench::start([Fault::NoHello]).await;
    let mut session = bench.session().await;
    session.welcome(1, 60_000).await;
    bench.registry.assign(assignment(1)).unwrap();
    let relay = open(&mut bench, &session, ID).await;
    relay.ask(start()).await;
    assert_eq!(relay.fails_with().await, Reason::SandboxStarting);
}

#[tokio::test]
async fn the_console_is_followed_to_the_end_of_the_sandbox() {
    let (mut bench, session, _) = running().await;
    let ledger = bench.registry.ledger(ID.parse().unwrap()).unwrap();
    let ring =
        std::fs::File::options().read(true).write(true).create_new(true).open(ledger.paths().console());
    let mut console = Writer::create(ring.unwrap()).unwrap();
    console.append(b"booting\n").unwrap();
    let mut relay = open(&mut bench, &session, ID).await;
    relay.ask(Ask::Logs(wire::LogsRequest { from_offset: 4, follow: true })).await;
    assert_eq!(relay.next().await, Say::Logs(wire::LogsChunk { offset: 4, data: "ing\n".into() }));
    console.append(b"ready\n").unwrap();
    assert_eq!(relay.next().await, Say::Logs(wire::LogsChunk { offset: 8, data: "ready\n".into() }));
    let stop = crate::sandbox::actor::Stop {
        cause: Cause::new(Reason::StopRequested, "asked"),
        grace: Duration::from_secs(1),
    };
    bench.registry.stop(ID.parse().unwrap(), pinfold_domain::Epoch(1), stop);
    assert_eq!(relay.next().await, Say::End(wire::RelayEnd {}));
    // it can be read until it is forgotten
    let mut relay = open(&mut bench, &session, ID).await;
    relay.ask(Ask::Logs(wire::LogsRequest { from_offset: 0, follow: false })).await;
    assert_eq!(relay.next().await, Say::Logs(wire::LogsChunk { offset: 0, data: "booting\nready\n".into() }));
    assert_eq!(relay.next().await, Say::End(wire::RelayEnd {}));
}
