//! The guest behind the relays. Its programs:
//!
//! | command | does |
//! |---|---|
//! | `echo words` | writes the words, exit 0 |
//! | `cat` | stdin to stdout, exit 0 at the end of stdin |
//! | `count` | reads stdin, writes how many bytes came |
//! | `exit n` | exit n |
//! | `wait` | waits for a signal, ends by it |
//! | `deaf` | never reads |
//! | `flood` | writes without end |
//! | `cut` | its node goes away |
//! | `error reason` | the node answers with that reason |
//! | anything else | exit 127 |

use super::node::{Node, lock};
use bytes::Bytes;
use pinfold_proto::api::v1 as api;
use pinfold_proto::guest::v1 as guest;
use pinfold_proto::guest::v1::exec_request::Frame as In;
use pinfold_proto::guest::v1::exec_response::Frame as Out;
use pinfold_proto::guest::v1::{read_file_response, write_file_request};
use pinfold_proto::limits::{FRAME_BYTES, STREAM_QUEUE_FRAMES};
use pinfold_proto::node::v1 as wire;
use pinfold_proto::node::v1::node_session_service_client::NodeSessionServiceClient;
use pinfold_proto::node::v1::{relay_request, relay_response};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// What the guest of a node has seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GuestStats {
    /// streams that began
    pub started: u64,
    /// streams that the scheduler ended before they were done
    pub cancelled: u64,
    /// relays that the scheduler did not accept, with its last answer
    pub refused: u64,
    pub refusal: String,
    /// bytes of output that were handed to gRPC
    pub output_bytes: u64,
    /// bytes of input that arrived
    pub input_bytes: u64,
    /// the command of the last exec, with its environment
    pub last_start: Option<guest::ExecStart>,
}

/// One relay, from `accept` to its end.
pub async fn relay(node: Arc<Node>, open: wire::OpenRelay) {
    // a scheduler that is gone waits for no relay
    let Ok(channel) = super::session::connect(&node.endpoint).await else { return };
    let mut client = NodeSessionServiceClient::new(channel);
    let (sender, receiver) = mpsc::channel(STREAM_QUEUE_FRAMES);
    let node_id = node.config.relay_as.clone().unwrap_or_else(|| node.node_id().to_owned());
    let accept = wire::RelayAccept { relay_id: open.relay_id, node_id };
    let mut stream = Stream { node: Arc::clone(&node), to: sender };
    let _ = stream.send(relay_request::Frame::Accept(accept)).await;
    let mut from = match client.relay(ReceiverStream::new(receiver)).await {
        Ok(response) => response.into_inner(),
        Err(status) => {
            return node.guest.send_modify(|stats| {
                stats.refused += 1;
                stats.refusal = status.message().to_owned();
            });
        }
    };
    let first = match from.message().await {
        Ok(Some(response)) => response.frame,
        _ => None,
    };
    node.guest.send_modify(|stats| stats.started += 1);
    let done = match first {
        Some(relay_response::Frame::Exec(request)) => exec(&mut stream, &mut from, request).await,
        Some(relay_response::Frame::ReadFile(request)) => stream.read_file(&request.path).await.map(good),
        Some(relay_response::Frame::WriteFile(request)) => {
            write_file(&mut stream, &mut from, request).await.map(good)
        }
        Some(relay_response::Frame::Logs(request)) => {
            logs(&mut stream, &mut from, &open.sandbox_id, request).await.map(good)
        }
        None => Err(Cancelled),
    };
    drop(stream);
    match done {
        Ok(End::Good) => {
            // dropping the answers resets the call, and with it what has not been sent yet: the scheduler ends it
            while let Ok(Some(_)) = from.message().await {}
        }
        Ok(End::Cut) => {}
        Err(Cancelled) => node.guest.send_modify(|stats| stats.cancelled += 1),
    }
}

fn good((): ()) -> End {
    End::Good
}

/// How a stream ends by itself.
enum End {
    Good,
    Cut,
}

/// The scheduler ended the relay.
struct Cancelled;

type Step<T = ()> = Result<T, Cancelled>;

struct Stream {
    node: Arc<Node>,
    to: mpsc::Sender<wire::RelayRequest>,
}

impl Stream {
    async fn send(&mut self, frame: relay_request::Frame) -> Step {
        self.to.send(wire::RelayRequest { frame: Some(frame) }).await.map_err(|_| Cancelled)
    }

    async fn out(&mut self, frame: Out) -> Step {
        let bytes = match &frame {
            Out::Stdout(data) | Out::Stderr(data) => data.len() as u64,
            Out::Started(_) | Out::Exited(_) => 0,
        };
        self.send(relay_request::Frame::Exec(guest::ExecResponse { frame: Some(frame) })).await?;
        self.node.guest.send_modify(|stats| stats.output_bytes += bytes);
        Ok(())
    }

    async fn exited(&mut self, outcome: guest::exec_exited::Outcome, message: &str) -> Step {
        let exited =
            guest::ExecExited { outcome: Some(outcome), timed_out: false, message: message.to_owned() };
        self.out(Out::Exited(exited)).await?;
        // the scheduler may be done with the exit already
        let _ = self.send(relay_request::Frame::End(wire::RelayEnd {})).await;
        Ok(())
    }

    async fn code(&mut self, code: u32) -> Step {
        self.exited(guest::exec_exited::Outcome::ExitCode(code), "").await
    }

    async fn error(&mut self, reason: &str, message: String) -> Step {
        let cause = Some(api::Cause { reason: reason.to_owned(), message });
        self.send(relay_request::Frame::Error(wire::RelayError { code: 2, cause })).await
    }

    async fn read_file(&mut self, path: &str) -> Step {
        let content = lock(&self.node.files).get(path).cloned();
        let Some(content) = content else {
            return self.error("FileNotFound", format!("there is no {path}")).await;
        };
        let info = guest::FileInfo { size_bytes: content.len() as u64, mode: 0o644 };
        let frame = |frame| relay_request::Frame::ReadFile(guest::ReadFileResponse { frame: Some(frame) });
        self.send(frame(read_file_response::Frame::Info(info))).await?;
        for piece in content.chunks(FRAME_BYTES) {
            self.send(frame(read_file_response::Frame::Data(Bytes::copy_from_slice(piece)))).await?;
        }
        self.send(relay_request::Frame::End(wire::RelayEnd {})).await
    }
}

async fn exec(
    stream: &mut Stream,
    from: &mut Streaming<wire::RelayResponse>,
    request: guest::ExecRequest,
) -> Step<End> {
    let Some(In::Start(start)) = request.frame else { return Err(Cancelled) };
    stream.node.guest.send_modify(|stats| stats.last_start = Some(start.clone()));
    let words: Vec<&str> = start.command.iter().map(String::as_str).collect();
    if let ["error", reason] = words[..] {
        return stream.error(reason, format!("{reason} was asked for")).await.map(good);
    }
    stream.out(Out::Started(guest::ExecStarted { pid: 42 })).await?;
    let done = match words[..] {
        ["echo", ref rest @ ..] => {
            stream.out(Out::Stdout(format!("{}\n", rest.join(" ")).into())).await?;
            stream.code(0).await
        }
        ["exit", code] => stream.code(code.parse().expect("the test says a number")).await,
        ["cat"] => {
            while let Some(data) = stdin(stream, from).await? {
                stream.out(Out::Stdout(data)).await?;
            }
            stream.code(0).await
        }
        ["count"] => {
            let mut bytes = 0;
            while let Some(data) = stdin(stream, from).await? {
                bytes += data.len();
            }
            stream.out(Out::Stdout(bytes.to_string().into())).await?;
            stream.code(0).await
        }
        ["wait"] => loop {
            if let In::Signal(number) = input(stream, from).await? {
                break stream.exited(guest::exec_exited::Outcome::Signal(number), "").await;
            }
        },
        ["deaf"] => {
            stream.to.closed().await;
            Err(Cancelled)
        }
        ["flood"] => flood(stream, from).await,
        ["cut"] => return Ok(End::Cut),
        _ => stream.exited(guest::exec_exited::Outcome::ExitCode(127), "no such command").await,
    };
    done.map(good)
}

/// Writes until the scheduler ends the relay.
async fn flood(stream: &mut Stream, from: &mut Streaming<wire::RelayResponse>) -> Step {
    let data = Bytes::from(vec![b'y'; FRAME_BYTES]);
    let mut end_seen = std::pin::pin!(async { while let Ok(Some(_)) = from.message().await {} });
    loop {
        tokio::select! {
            () = &mut end_seen => return Err(Cancelled),
            written = stream.out(Out::Stdout(data.clone())) => written?,
        }
    }
}

/// The next frame of input.
async fn input(stream: &Stream, from: &mut Streaming<wire::RelayResponse>) -> Result<In, Cancelled> {
    match from.message().await {
        Ok(Some(wire::RelayResponse { frame: Some(relay_response::Frame::Exec(request)) })) => {
            if let Some(In::Stdin(data)) = &request.frame {
                stream.node.guest.send_modify(|stats| stats.input_bytes += data.len() as u64);
            }
            request.frame.ok_or(Cancelled)
        }
        _ => Err(Cancelled),
    }
}

/// The next piece of stdin; `None` at its end.
async fn stdin(
    stream: &Stream,
    from: &mut Streaming<wire::RelayResponse>,
) -> Result<Option<Bytes>, Cancelled> {
    loop {
        match input(stream, from).await? {
            In::Stdin(data) => return Ok(Some(data)),
            In::CloseStdin(_) => return Ok(None),
            In::Start(_) | In::Resize(_) | In::Signal(_) => {}
        }
    }
}

async fn write_file(
    stream: &mut Stream,
    from: &mut Streaming<wire::RelayResponse>,
    request: guest::WriteFileRequest,
) -> Step {
    let Some(write_file_request::Frame::Start(start)) = request.frame else { return Err(Cancelled) };
    if start.path.starts_with("/full/") {
        return stream.error("DiskFull", "no space is left".to_owned()).await;
    }
    let mut content = Vec::new();
    loop {
        let Ok(Some(response)) = from.message().await else { return Err(Cancelled) };
        let Some(relay_response::Frame::WriteFile(request)) = response.frame else { return Err(Cancelled) };
        match request.frame {
            Some(write_file_request::Frame::Data(data)) => {
                stream.node.guest.send_modify(|stats| stats.input_bytes += data.len() as u64);
                content.extend_from_slice(&data);
            }
            Some(write_file_request::Frame::Commit(_)) => break,
            Some(write_file_request::Frame::Start(_)) | None => return Err(Cancelled),
        }
    }
    let size_bytes = content.len() as u64;
    lock(&stream.node.files).insert(start.path, content);
    stream.send(relay_request::Frame::WriteFile(guest::WriteFileResponse { size_bytes })).await?;
    let _ = stream.send(relay_request::Frame::End(wire::RelayEnd {})).await;
    Ok(())
}

async fn logs(
    stream: &mut Stream,
    from: &mut Streaming<wire::RelayResponse>,
    sandbox_id: &str,
    request: wire::LogsRequest,
) -> Step {
    if !stream.node.has(sandbox_id) {
        return stream.error("SandboxEnded", "this node no longer has the console".to_owned()).await;
    }
    let console = format!("console of {sandbox_id}\n").into_bytes();
    let from_offset = usize::try_from(request.from_offset).unwrap_or(usize::MAX).min(console.len());
    let data = Bytes::copy_from_slice(&console[from_offset..]);
    stream.send(relay_request::Frame::Logs(wire::LogsChunk { offset: from_offset as u64, data })).await?;
    if request.follow {
        while let Ok(Some(_)) = from.message().await {}
        return Err(Cancelled);
    }
    stream.send(relay_request::Frame::End(wire::RelayEnd {})).await
}
