//! From a process's pipe to frames.

use super::channel::Channel;
use crate::agent::limits::OUTPUT_SILENCE;
use bytes::Bytes;
use pinfold_proto::guest::v1::{ExecResponse, exec_response::Frame};
use pinfold_proto::limits::FRAME_BYTES;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tonic::Status;

pub type Sender = mpsc::Sender<Result<ExecResponse, Status>>;

/// What a pipe holds at most (pipe(7)), so that what an ended process wrote is in the first so many bytes after its end.
const PIPE_BYTES: usize = 64 * 1024;
/// For those who write on to the pipe of an ended process.
const LINGER: Duration = Duration::from_secs(1);

pub fn frame(frame: Frame) -> ExecResponse {
    ExecResponse { frame: Some(frame) }
}

/// Delivers until the end of `channel`; or, once the process has ended (`ended` is true), until another process that
/// still holds the channel was silent for 200 ms, or all that the ended one wrote is delivered and a second has passed.
/// Reads only when there is room for a frame; when nobody takes frames any more, reads on and drops what it reads.
pub async fn deliver(
    channel: &Channel,
    wrap: fn(Bytes) -> Frame,
    to: &Sender,
    mut ended: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; FRAME_BYTES];
    let mut after_end: Option<(Instant, usize)> = None;
    loop {
        let Ok(room) = to.reserve().await else { return discard(channel, &mut buffer, &mut ended).await };
        let length = tokio::select! {
            biased;
            read = channel.read(&mut buffer) => read.unwrap_or(0),
            () = silence(&mut ended) => 0,
        };
        if length == 0 {
            return;
        }
        room.send(Ok(frame(wrap(Bytes::copy_from_slice(&buffer[..length])))));
        if *ended.borrow() {
            let (since, bytes) = after_end.get_or_insert_with(|| (Instant::now(), 0));
            *bytes += length;
            if *bytes >= PIPE_BYTES + FRAME_BYTES && since.elapsed() > LINGER {
                return;
            }
        }
    }
}

/// A process whose caller was cut off goes on, so somebody has to read what it prints.
async fn discard(channel: &Channel, buffer: &mut [u8], ended: &mut watch::Receiver<bool>) {
    loop {
        let length = tokio::select! {
            biased;
            () = silence(ended) => 0,
            read = channel.read(buffer) => read.unwrap_or(0),
        };
        if length == 0 {
            return;
        }
    }
}

async fn silence(ended: &mut watch::Receiver<bool>) {
    // an error means that the conversation is over, which ends this future too
    drop(ended.wait_for(|&ended| ended).await);
    tokio::time::sleep(OUTPUT_SILENCE).await;
}
