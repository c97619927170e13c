//! Processes in a sandbox: one bidirectional stream each.

use crate::call;
use crate::client::Client;
use crate::connection::{self, OwnConnection};
use crate::error::Error;
use bytes::Bytes;
use pinfold_domain::SandboxId;
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::process_service_client::ProcessServiceClient;
use pinfold_proto::limits;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use wire::exec_request::Frame as Request;
use wire::exec_response::Frame as Response;

const CALL: &str = "Exec";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

impl From<TerminalSize> for wire::TerminalSize {
    fn from(size: TerminalSize) -> Self {
        Self { rows: u32::from(size.rows), columns: u32::from(size.columns) }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// program and arguments; the program is looked up in the guest's PATH
    pub command: Vec<String>,
    /// added to the sandbox's environment
    pub environment: BTreeMap<String, String>,
    /// `None`: the user's home
    pub working_directory: Option<String>,
    /// name or number; `None`: root
    pub user: Option<String>,
    /// on a pseudo-terminal of this size: stdout carries all output
    pub terminal: Option<TerminalSize>,
    /// the process is ended after this time, in whole milliseconds
    pub timeout: Option<Duration>,
    /// Stdin is closed from the start, and nothing can be written to it. Such a process shares the client's
    /// connection; others have one of their own, so that giving them up reaches the server whatever waits on the way.
    pub without_input: bool,
}

impl ExecOptions {
    pub fn command<S: Into<String>>(words: impl IntoIterator<Item = S>) -> Self {
        Self { command: words.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    fn into_wire(self, id: SandboxId) -> wire::ExecStart {
        wire::ExecStart {
            sandbox_id: id.to_string(),
            command: self.command,
            environment: self.environment.into_iter().collect(),
            working_directory: self.working_directory.unwrap_or_default(),
            user: self.user.unwrap_or_default(),
            terminal: self.terminal.map(Into::into),
            timeout_ms: self.timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// 0 to 255; 127: no such command, 126: not executable
    Code(u8),
    Signal(u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub outcome: Outcome,
    /// it ran into its time limit
    pub timed_out: bool,
    /// why it could not be started; empty otherwise
    pub message: String,
}

impl Exit {
    pub fn success(&self) -> bool {
        self.outcome == Outcome::Code(0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEvent {
    /// its pid in the guest
    Started(u32),
    Stdout(Bytes),
    Stderr(Bytes),
    /// the last event
    Exited(Exit),
}

/// Everything that a process wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit: Exit,
}

/// The way in: stdin, its end, terminal size, signals. Clones feed the same process. All of it shares one ordered
/// stream: what is sent behind stdin that nobody reads waits with it.
#[derive(Debug, Clone)]
pub struct ProcessInput {
    frames: mpsc::Sender<wire::ExecRequest>,
    stdin_closed: Arc<AtomicBool>,
}

impl ProcessInput {
    /// `false` when the process has ended: there is nobody to send to.
    async fn send(&self, frame: Request) -> bool {
        self.frames.send(wire::ExecRequest { frame: Some(frame) }).await.is_ok()
    }

    /// Sends `data` to stdin; waits while the process does not read. `false`: the process has ended, or stdin is closed.
    pub async fn write(&self, data: impl Into<Bytes>) -> bool {
        if self.stdin_closed.load(Ordering::Relaxed) {
            return false;
        }
        let mut data: Bytes = data.into();
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(limits::FRAME_BYTES));
            if !self.send(Request::Stdin(piece)).await {
                return false;
            }
        }
        true
    }

    /// End of stdin. Output goes on. A second time changes nothing.
    pub async fn close_stdin(&self) -> bool {
        if self.stdin_closed.swap(true, Ordering::Relaxed) {
            return true;
        }
        self.send(Request::CloseStdin(wire::CloseStdin {})).await
    }

    pub async fn resize(&self, size: TerminalSize) -> bool {
        self.send(Request::Resize(size.into())).await
    }

    /// Sends a signal (1 to 64) to the process group.
    pub async fn signal(&self, number: u32) -> bool {
        self.send(Request::Signal(number)).await
    }
}

/// A process. Dropping it ends it in the guest.
#[derive(Debug)]
pub struct Process {
    input: ProcessInput,
    frames: Streaming<wire::ExecResponse>,
    limit: Duration,
    exited: bool,
    /// shut down when the process is dropped
    _connection: Option<OwnConnection>,
}

impl Process {
    pub fn input(&self) -> &ProcessInput {
        &self.input
    }

    /// The next event; `None` after [`ProcessEvent::Exited`]. What is not taken here is held back in the guest, where
    /// the process waits. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<ProcessEvent>, Error> {
        if self.exited {
            return Ok(None);
        }
        loop {
            let frame = match self.frames.message().await {
                Ok(Some(message)) => message.frame,
                Ok(None) => return Err(protocol("the stream ended before the process did")),
                Err(status) => return Err(Error::from_status(CALL, self.limit, &status)),
            };
            return Ok(Some(match frame {
                Some(Response::Started(started)) => ProcessEvent::Started(started.pid),
                Some(Response::Stdout(data)) => ProcessEvent::Stdout(data),
                Some(Response::Stderr(data)) => ProcessEvent::Stderr(data),
                Some(Response::Exited(exited)) => {
                    self.exited = true;
                    ProcessEvent::Exited(exit(exited)?)
                }
                // a frame of a newer server
                None => continue,
            }));
        }
    }

    /// Closes stdin, gathers all output and waits for the end. More than `limit` bytes of output are an error, and
    /// the process is ended.
    pub async fn output(mut self, limit: usize) -> Result<Output, Error> {
        self.input.close_stdin().await;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(event) = self.next().await? {
            match event {
                ProcessEvent::Started(_) => {}
                ProcessEvent::Stdout(data) => stdout.extend_from_slice(&data),
                ProcessEvent::Stderr(data) => stderr.extend_from_slice(&data),
                ProcessEvent::Exited(exit) => return Ok(Output { stdout, stderr, exit }),
            }
            if stdout.len() + stderr.len() > limit {
                return Err(Error::TooLarge { what: "the output of the process", limit });
            }
        }
        Err(protocol("the stream ended before the process did"))
    }

    /// Waits for the end; output is dropped.
    pub async fn wait(&mut self) -> Result<Exit, Error> {
        while let Some(event) = self.next().await? {
            if let ProcessEvent::Exited(exit) = event {
                return Ok(exit);
            }
        }
        Err(protocol("the process has been waited for already"))
    }
}

fn protocol(what: &str) -> Error {
    Error::Protocol { call: CALL, what: what.to_owned() }
}

fn exit(exited: wire::ExecExited) -> Result<Exit, Error> {
    use wire::exec_exited::Outcome as Wire;
    let outcome = match exited.outcome {
        Some(Wire::ExitCode(code)) => Outcome::Code(
            u8::try_from(code).map_err(|_| protocol(&format!("exit code {code} is above 255")))?,
        ),
        Some(Wire::Signal(signal)) => Outcome::Signal(signal),
        None => return Err(protocol("an end without exit code and signal")),
    };
    Ok(Exit { outcome, timed_out: exited.timed_out, message: exited.message })
}

impl Client {
    /// Starts a process. A command that does not exist is no error here: it ends with code 127 and a message.
    pub async fn exec(&self, id: SandboxId, options: ExecOptions) -> Result<Process, Error> {
        let (frames, queue) = mpsc::channel(limits::STREAM_QUEUE_FRAMES);
        let input = ProcessInput { frames, stdin_closed: Arc::default() };
        let without_input = options.without_input;
        input.send(Request::Start(options.into_wire(id))).await;
        if without_input {
            input.close_stdin().await;
        }
        let limit = self.options.stream_start_timeout;
        let (channel, _connection) = if without_input {
            (self.channel.clone(), None)
        } else {
            let (channel, connection) = connection::own(&self.target).await?;
            (channel, Some(connection))
        };
        let mut client = ProcessServiceClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES);
        let frames = call::open(CALL, limit, client.exec(ReceiverStream::new(queue))).await?;
        Ok(Process { input, frames, limit, exited: false, _connection })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_code_or_a_signal() {
        let wire = |outcome| wire::ExecExited { outcome, timed_out: false, message: String::new() };
        let code = exit(wire(Some(wire::exec_exited::Outcome::ExitCode(7)))).unwrap();
        assert_eq!(code.outcome, Outcome::Code(7));
        assert!(exit(wire(None)).is_err());
        assert!(exit(wire(Some(wire::exec_exited::Outcome::ExitCode(256)))).is_err());
    }
}
