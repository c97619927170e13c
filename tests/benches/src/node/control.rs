//! Our control socket: one request, one answer; with descriptors where a request wants some.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use pinfold_vmm_api::control::{Request, Response, Status};
use std::io::{BufRead, BufReader, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(90);

pub fn ask(control: &Path, request: &Request, files: &[BorrowedFd<'_>]) -> Result<Response> {
    let stream = UnixStream::connect(control).context("connecting to the control socket")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let numbers: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let messages = if numbers.is_empty() { &rights[..0] } else { &rights[..] };
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&line)], messages, MsgFlags::empty(), None)?;
    ensure!(sent == line.len(), "only {sent} of {} bytes of a request were taken", line.len());
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    serde_json::from_str(&answer).with_context(|| format!("the VMM answered {answer:?}"))
}

/// A request whose answer is only that it was done.
pub fn done(control: &Path, request: &Request, files: &[BorrowedFd<'_>]) -> Result<()> {
    match ask(control, request, files)? {
        Response::Done => Ok(()),
        other => bail!("the VMM answered {other:?} to {request:?}"),
    }
}

pub fn status(control: &Path) -> Result<Status> {
    match ask(control, &Request::Status, &[])? {
        Response::Status(status) => Ok(status),
        other => bail!("the VMM answered {other:?} to a status request"),
    }
}
