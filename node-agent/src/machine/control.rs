//! One request over the VMM's control socket.

use super::ControlError;
use pinfold_vmm_api::control::{MAX_LINE_BYTES, Request, Response};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;

/// Descriptors that go with a request: a snapshot's two.
const MAX_FDS: usize = 2;

/// Connects, sends `request` and the descriptors that belong to it, reads one answer, all within `limit`. A VMM that is
/// not there yet holds the connection in its socket's queue.
pub async fn ask(
    socket: &Path,
    request: &Request,
    files: &[BorrowedFd<'_>],
    limit: Duration,
) -> Result<Response, ControlError> {
    tokio::time::timeout(limit, exchange(socket, request, files))
        .await
        .map_err(|_| ControlError::Timeout(limit.as_millis()))?
}

/// How long a VMM is waited for that may be at work on another request.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// without any work of it
    pub idle: Duration,
    /// in all
    pub limit: Duration,
}

/// As [`ask`], of a VMM that answers when it has finished what it is at: it is waited for as long as `work` tells something else
/// from one `patience.idle` to the next.
pub async fn ask_at_work<Work: PartialEq>(
    socket: &Path,
    request: &Request,
    patience: Patience,
    work: impl Fn() -> Work,
) -> Result<Response, ControlError> {
    let begun = tokio::time::Instant::now();
    let mut answer = std::pin::pin!(exchange(socket, request, &[]));
    loop {
        let before = work();
        if let Ok(answer) = tokio::time::timeout(patience.idle, &mut answer).await {
            return answer;
        }
        let waited = begun.elapsed();
        if waited >= patience.limit || work() == before {
            return Err(ControlError::Timeout(waited.as_millis()));
        }
    }
}

/// The descriptors travel with the first byte, in one message (unix(7), SCM_RIGHTS); what did not fit follows.
async fn send(stream: &mut UnixStream, line: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut sent = 0;
    if !files.is_empty() {
        stream.writable().await?;
        sent = stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !control.push(SendAncillaryMessage::ScmRights(files)) {
                    return Err(io::Error::other(format!("more than {MAX_FDS} descriptors")));
                }
                Ok(sendmsg(&*stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?)
            })
            .await?;
    }
    stream.write_all(&line[sent..]).await
}

async fn exchange(
    socket: &Path,
    request: &Request,
    files: &[BorrowedFd<'_>],
) -> Result<Response, ControlError> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut line = serde_json::to_vec(request).map_err(|error| ControlError::Protocol(error.to_string()))?;
    line.push(b'\n');
    send(&mut stream, &line, files).await?;
    let mut answer = Vec::new();
    BufReader::new(stream).take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut answer).await?;
    if answer.is_empty() {
        return Err(ControlError::Protocol("it closed the connection".to_owned()));
    }
    if answer.len() > MAX_LINE_BYTES {
        return Err(ControlError::Protocol(format!("a line of more than {MAX_LINE_BYTES} bytes")));
    }
    match serde_json::from_slice(&answer) {
        Ok(Response::Error { message }) => Err(ControlError::Protocol(message)),
        Ok(response) => Ok(response),
        Err(error) => Err(ControlError::Protocol(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Serves one connection with a fixed answer and returns what was asked.
    async fn served(answer: &[u8]) -> (String, Result<Response, ControlError>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            // a client that has seen enough may close first
            let _ = stream.write_all(answer).await;
            line
        };
        tokio::join!(server, ask(&path, &Request::Kill, &[], LIMIT))
    }

    #[tokio::test]
    async fn a_request_is_one_line_and_so_is_the_answer() {
        let (line, response) = served(b"{\"response\":\"killed\"}\n").await;
        assert_eq!(line, "{\"request\":\"kill\"}\n");
        assert_eq!(response.unwrap(), Response::Killed);
    }

    /// Answers a request after `late`, and takes no notice of who has gone meanwhile.
    async fn served_late(
        late: Duration,
        patience: Patience,
        work: impl Fn() -> u64,
    ) -> Result<Response, ControlError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::time::sleep(late).await;
            let _ = stream.write_all(b"{\"response\":\"done\"}\n").await;
        };
        let asked = ask_at_work(&path, &Request::Resume, patience, work);
        tokio::join!(server, asked).1
    }

    #[tokio::test]
    async fn a_vmm_is_waited_for_as_long_as_it_works() {
        let work = std::cell::Cell::new(0);
        let at_work = || work.replace(work.get() + 1);
        let patience = Patience { idle: Duration::from_millis(20), limit: LIMIT };
        let late = Duration::from_millis(200);
        assert_eq!(served_late(late, patience, at_work).await.unwrap(), Response::Done);
        assert!(work.get() > 2, "it was looked at {} times", work.get());
        // one that does nothing is not, and none for ever
        let idle = served_late(late, patience, || 0).await.unwrap_err();
        assert!(matches!(idle, ControlError::Timeout(20..200)), "{idle}");
        let short = Patience { limit: Duration::from_millis(60), ..patience };
        let ended = served_late(late, short, at_work).await.unwrap_err();
        assert!(matches!(ended, ControlError::Timeout(60..)), "{ended}");
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        for answer in [&b""[..], b"nonsense\n", b"{\"response\":\"error\",\"message\":\"no\"}\n"] {
            let (_, response) = served(answer).await;
            assert!(matches!(response, Err(ControlError::Protocol(_))), "{response:?}");
        }
        let (_, response) = served(&vec![b'x'; MAX_LINE_BYTES + 10]).await;
        assert!(response.unwrap_err().to_string().contains("16384"));
    }

    #[tokio::test]
    async fn descriptors_go_with_the_line() {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
        use std::io::{IoSliceMut, Read, Seek, Write};
        use std::os::fd::AsFd;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let vmm = tokio::task::spawn_blocking(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut line = [0; 200];
            let got = recvmsg(&stream, &mut [IoSliceMut::new(&mut line)], &mut control, RecvFlags::empty());
            let bytes = got.unwrap().bytes;
            let mut files = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    files.extend(fds.map(std::fs::File::from));
                }
            }
            files[1].write_all(b"memory").unwrap();
            stream.write_all(b"{\"response\":\"done\"}\n").unwrap();
            (files.len(), String::from_utf8_lossy(&line[..bytes]).into_owned())
        });
        let (state, mut memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let answer = ask(&path, &Request::WorkingSet, &[state.as_fd(), memory.as_fd()], LIMIT).await;
        assert_eq!(answer.unwrap(), Response::Done);
        assert_eq!(vmm.await.unwrap(), (2, "{\"request\":\"working_set\"}\n".to_owned()));
        let mut written = String::new();
        memory.rewind().unwrap();
        memory.read_to_string(&mut written).unwrap();
        assert_eq!(written, "memory");
    }

    #[tokio::test]
    async fn a_socket_that_is_gone_is_an_error() {
        let error = ask(Path::new("/no/such/control.sock"), &Request::Status, &[], LIMIT).await.unwrap_err();
        assert!(matches!(error, ControlError::Io(_)), "{error}");
    }
}
