//! A gRPC connection to the guest: a Unix socket of the VMM, a one-line handshake, then HTTP/2.
//!
//! Each call of a caller gets a connection of its own. HTTP/2 windows are shared within a connection, so a stream whose
//! reader stands still could starve the others on it.

use super::GuestError;
use hyper_util::rt::TokioIo;
use pinfold_proto::limits::GUEST_PORT;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// `OK <port>` with a port of up to ten digits.
const MAX_ANSWER_BYTES: usize = 32;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects to the guest's agent by the VMM's vsock socket at `socket`.
pub async fn connect(socket: &Path) -> Result<Channel, GuestError> {
    let path = socket.to_owned();
    // The address is never resolved: the connector below knows where to go.
    let endpoint = Endpoint::from_static("http://guest.invalid").connect_timeout(CONNECT_TIMEOUT);
    let connector = tower::service_fn(move |_: Uri| open(path.clone()));
    endpoint.connect_with_connector(connector).await.map_err(|error| GuestError::Link(causes(&error)))
}

/// The error and its causes on one line.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

async fn open(socket: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    Ok(TokioIo::new(handshake(UnixStream::connect(&socket).await?, GUEST_PORT).await?))
}

/// `CONNECT <port>\n`, `OK <host port>\n`.
async fn handshake(mut stream: UnixStream, port: u32) -> io::Result<UnixStream> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::with_capacity(MAX_ANSWER_BYTES);
    // Byte by byte: what follows the line belongs to HTTP/2.
    loop {
        match stream.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) if answer.len() < MAX_ANSWER_BYTES => answer.push(byte),
            Ok(_) => return Err(io::Error::other("the VMM answered with a line that is too long")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::Error::other(format!("nothing listens on port {port} of the guest")));
            }
            Err(error) => return Err(error),
        }
    }
    if answer.starts_with(b"OK ") {
        Ok(stream)
    } else {
        Err(io::Error::other(format!("the VMM answered {:?}", String::from_utf8_lossy(&answer))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn with_answer(answer: &'static [u8]) -> (io::Result<UnixStream>, Vec<u8>) {
        let (host, mut vmm) = UnixStream::pair().unwrap();
        let vmm = async move {
            let mut asked = vec![0; 13];
            vmm.read_exact(&mut asked).await.unwrap();
            vmm.write_all(answer).await.unwrap();
            asked
        };
        tokio::join!(handshake(host, 1024), vmm)
    }

    #[tokio::test]
    async fn nothing_after_the_line_is_swallowed() {
        let (stream, asked) = with_answer(b"OK 1073741824\nPRI").await;
        assert_eq!(asked, b"CONNECT 1024\n");
        let mut rest = Vec::new();
        stream.unwrap().read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"PRI");
    }

    #[tokio::test]
    async fn a_refusal_is_an_error() {
        for (answer, text) in [
            (&b""[..], "nothing listens on port 1024"),
            (b"NO\n", "NO"),
            (b"OK 11111111111111111111111111111111111111", "too long"),
        ] {
            let error = with_answer(answer).await.0.unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[tokio::test]
    async fn a_vmm_that_is_gone_is_named() {
        let error = connect(Path::new("/no/such/vsock.sock")).await.unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
    }
}
