//! Reading: `info`, then the content.

use super::{cause, kind_of, wrong_type};
use crate::agent::Agent;
use crate::exec::plan::invalid;
use crate::exec::users::{self, User};
use crate::files::identity;
use bytes::Bytes;
use pinfold_domain::Cause;
use pinfold_proto::convert::file::check_path;
use pinfold_proto::convert::process::check_user;
use pinfold_proto::guest::v1::{FileInfo, ReadFileRequest, ReadFileResponse, read_file_response::Frame};
use pinfold_proto::limits::FRAME_BYTES;
use pinfold_proto::reasons::status;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::Status;

pub type Sender = mpsc::Sender<Result<ReadFileResponse, Status>>;

/// Serves one read. Ends early when the caller goes away.
pub async fn run(agent: Arc<Agent>, request: ReadFileRequest, to: Sender) {
    tokio::select! {
        biased;
        () = to.closed() => {}
        done = deliver(&agent, request, &to) => {
            if let Err(cause) = done {
                drop(to.send(Err(status(&cause))).await);
            }
        }
    }
}

async fn deliver(agent: &Agent, request: ReadFileRequest, to: &Sender) -> Result<(), Cause> {
    let _slot = agent.file_slot().await?;
    check_path("path", &request.path)?;
    let user = resolve(agent, &request.user).await?;
    let path = request.path.clone();
    let (mut file, info) = agent.workers.run(move || open(&user, &path)).await??;
    let size_bytes = info.size_bytes;
    send(to, Frame::Info(info)).await?;
    // A file that grows is delivered as long as it was. Files of /proc have no length: they are delivered to their end.
    let mut left = if size_bytes == 0 { u64::MAX } else { size_bytes };
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(FRAME_BYTES);
        let (returned, piece) = agent.workers.run(move || read_piece(file, length)).await?;
        let piece = piece.map_err(|error| cause("read", &request.path, &error))?;
        if piece.is_empty() {
            break;
        }
        (file, left) = (returned, left - piece.len() as u64);
        send(to, Frame::Data(piece)).await?;
    }
    Ok(())
}

/// The guest user of a file call, by name or number.
pub async fn resolve(agent: &Agent, user: &str) -> Result<User, Cause> {
    check_user(user)?;
    let user = user.to_owned();
    let found = agent.workers.run(move || users::find(Path::new("/"), &user)).await?;
    found.map_err(|error| invalid(error.to_string()))
}

async fn send(to: &Sender, frame: Frame) -> Result<(), Cause> {
    // the caller has gone away when this fails, and nobody reads the cause
    to.send(Ok(ReadFileResponse { frame: Some(frame) })).await.map_err(|_| invalid("the caller went away"))
}

fn open(user: &User, path: &str) -> Result<(File, FileInfo), Cause> {
    let opened = identity::with(user, || {
        // to open a FIFO or a device is to act on it, so what it is comes first
        let kind = fs::metadata(path)?.file_type();
        if !kind.is_file() {
            return Ok(Err(kind));
        }
        let file =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
        Ok(Ok(file))
    });
    let failed = |error: io::Error| cause("read", path, &error);
    let file = opened.and_then(|opened| opened).map_err(failed)?;
    let file = file.map_err(|kind| wrong_type("read", path, kind_of(kind)))?;
    let metadata = file.metadata().map_err(failed)?;
    // it may have been replaced in between
    if !metadata.is_file() {
        return Err(wrong_type("read", path, kind_of(metadata.file_type())));
    }
    let info = FileInfo { size_bytes: metadata.len(), mode: metadata.permissions().mode() & 0o7777 };
    Ok((file, info))
}

fn read_piece(mut file: File, length: usize) -> (File, io::Result<Bytes>) {
    let mut piece = vec![0; length];
    let read = loop {
        match file.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other,
        }
    };
    let piece = read.map(|length| {
        piece.truncate(length);
        Bytes::from(piece)
    });
    (file, piece)
}
