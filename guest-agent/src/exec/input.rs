//! From a caller's frames to a process: stdin, signals, sizes of the terminal.

use super::channel::Channel;
use super::plan::{check_size, invalid};
use super::pty;
use super::spawn::Process;
use crate::reaper;
use bytes::{Buf, Bytes};
use pinfold_domain::{Cause, Reason};
use pinfold_proto::guest::v1::{ExecRequest, ExecStart, TerminalSize, exec_request::Frame};
use pinfold_proto::limits::{FRAME_BYTES, STREAM_QUEUE_FRAMES};
use std::collections::VecDeque;
use std::io;
use tonic::Streaming;

/// Where stdin goes.
pub enum Input<'a> {
    Pipe(Channel),
    /// the channel is the output's too
    Terminal {
        terminal: &'a Channel,
        /// the last byte that was taken ended a line, so that one end-of-file character is enough
        at_line_start: bool,
    },
    /// the process has closed its stdin, or the caller has: what still comes is thrown away
    Closed,
}

/// EOF of a terminal in its default settings (termios(3)), twice.
static END_OF_FILE: [u8; 2] = [4, 4];

/// The first frame of a stream.
pub async fn first(inbound: &mut Streaming<ExecRequest>) -> Result<ExecStart, Cause> {
    match inbound.message().await {
        Ok(Some(ExecRequest { frame: Some(Frame::Start(start)) })) => Ok(start),
        Ok(Some(_)) => Err(invalid("frame: the first is start")),
        Ok(None) => Err(invalid("frame: the stream ended before start")),
        Err(status) => Err(broken(&status)),
    }
}

/// Serves `inbound`. Returns only what ends the conversation; at the end of the caller's frames it goes on writing.
pub async fn serve(inbound: &mut Streaming<ExecRequest>, mut input: Input<'_>, process: &Process) -> Cause {
    let mut waiting: VecDeque<Bytes> = VecDeque::with_capacity(STREAM_QUEUE_FRAMES);
    let (mut more_frames, mut close) = (true, false);
    loop {
        if close {
            close = !input.close(&mut waiting);
        }
        tokio::select! {
            frame = inbound.message(), if more_frames && waiting.len() < STREAM_QUEUE_FRAMES => match frame {
                Ok(Some(ExecRequest { frame: Some(Frame::Stdin(data)) })) => {
                    if data.len() > FRAME_BYTES {
                        return invalid(format!("stdin has {} bytes in a frame, the limit is {FRAME_BYTES}", data.len()));
                    }
                    // after close_stdin there is nobody to read it
                    if !close && !data.is_empty() && input.takes(&data) {
                        waiting.push_back(data);
                    }
                }
                Ok(Some(ExecRequest { frame: Some(Frame::CloseStdin(_)) })) => close = true,
                Ok(Some(ExecRequest { frame })) => {
                    if let Err(cause) = command(frame, &input, process) {
                        return cause;
                    }
                }
                Ok(None) => (more_frames, close) = (false, true),
                Err(status) => return broken(&status),
            },
            written = input.write(waiting.front()), if !waiting.is_empty() => match written {
                Ok(length) => advance(&mut waiting, length),
                Err(_) => {
                    // the process reads no more; it may well go on without
                    input = Input::Closed;
                    waiting.clear();
                }
            },
            else => std::future::pending().await,
        }
    }
}

fn advance(waiting: &mut VecDeque<Bytes>, length: usize) {
    if let Some(front) = waiting.front_mut() {
        front.advance(length);
        if front.is_empty() {
            waiting.pop_front();
        }
    }
}

fn command(frame: Option<Frame>, input: &Input<'_>, process: &Process) -> Result<(), Cause> {
    match frame {
        Some(Frame::Signal(number)) => match i32::try_from(number) {
            Ok(signal @ 1..=64) => {
                send_signal(signal, input, process);
                Ok(())
            }
            _ => Err(invalid(format!("signal is {number}, outside 1 to 64"))),
        },
        Some(Frame::Resize(size)) => {
            check_size(&size)?;
            resize(input, &size)
        }
        Some(Frame::Start(_)) => Err(invalid("frame: start comes first, and once")),
        // stdin and its end are served above
        Some(Frame::Stdin(_) | Frame::CloseStdin(_)) | None => Err(invalid("frame is missing")),
    }
}

/// On a terminal to the group in the foreground, as the terminal's own keys do; a shell moves its jobs to groups of their
/// own.
fn send_signal(number: i32, input: &Input<'_>, process: &Process) {
    match input {
        Input::Terminal { terminal, .. } => match pty::foreground(terminal) {
            Some(group) => reaper::kill(-group, number),
            None => process.signal(number),
        },
        Input::Pipe(_) | Input::Closed => process.signal(number),
    }
}

fn resize(input: &Input<'_>, size: &TerminalSize) -> Result<(), Cause> {
    match input {
        Input::Terminal { terminal, .. } => pty::resize(terminal, size)
            .map_err(|error| Cause::new(Reason::Internal, format!("cannot resize the terminal: {error}"))),
        Input::Pipe(_) | Input::Closed => Err(invalid("resize: the process has no terminal")),
    }
}

fn broken(status: &tonic::Status) -> Cause {
    Cause::new(Reason::InvalidArgument, format!("the caller's stream broke: {}", status.message()))
}

impl Input<'_> {
    async fn write(&self, data: Option<&Bytes>) -> io::Result<usize> {
        let data = data.map_or(&[][..], |data| data);
        match self {
            Self::Pipe(pipe) => pipe.write(data).await,
            Self::Terminal { terminal, .. } => terminal.write(data).await,
            Self::Closed => Ok(data.len()),
        }
    }

    /// Whether there is somebody to read `data`, which the caller now puts in the queue.
    fn takes(&mut self, data: &[u8]) -> bool {
        if let Self::Terminal { at_line_start, .. } = self {
            *at_line_start = data.last().is_none_or(|&byte| byte == b'\n' || byte == b'\r');
        }
        !matches!(self, Self::Closed)
    }

    /// Ends the input after what waits; false when that is still to do. A terminal cannot be half closed: its reader gets the
    /// end-of-file character, twice in the middle of a line, where the first only hands over what is there.
    fn close(&mut self, waiting: &mut VecDeque<Bytes>) -> bool {
        match self {
            Self::Terminal { at_line_start, .. } => {
                waiting.push_back(Bytes::from_static(if *at_line_start {
                    &END_OF_FILE[1..]
                } else {
                    &END_OF_FILE
                }));
            }
            Self::Pipe(_) if !waiting.is_empty() => return false,
            Self::Pipe(_) | Self::Closed => *self = Self::Closed,
        }
        true
    }
}
