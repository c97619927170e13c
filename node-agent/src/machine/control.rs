//! One request over the VMM's control socket.

use super::ControlError;
use pinfold_vmm_api::control::{MAX_LINE_BYTES, Request, Response};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Connects, sends `request`, reads one answer, all within `limit`. A VMM that is not there yet holds the connection in
/// its socket's queue.
pub async fn ask(socket: &Path, request: &Request, limit: Duration) -> Result<Response, ControlError> {
    tokio::time::timeout(limit, exchange(socket, request))
        .await
        .map_err(|_| ControlError::Timeout(limit.as_millis()))?
}

async fn exchange(socket: &Path, request: &Request) -> Result<Response, ControlError> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut line = serde_json::to_vec(request).map_err(|error| ControlError::Protocol(error.to_string()))?;
    line.push(b'\n');
    stream.write_all(&line).await?;
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
        tokio::join!(server, ask(&path, &Request::Kill, LIMIT))
    }

    #[tokio::test]
    async fn a_request_is_one_line_and_so_is_the_answer() {
        let (line, response) = served(b"{\"response\":\"killed\"}\n").await;
        assert_eq!(line, "{\"request\":\"kill\"}\n");
        assert_eq!(response.unwrap(), Response::Killed);
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
    async fn a_socket_that_is_gone_is_an_error() {
        let error = ask(Path::new("/no/such/control.sock"), &Request::Status, LIMIT).await.unwrap_err();
        assert!(matches!(error, ControlError::Io(_)), "{error}");
    }
}
