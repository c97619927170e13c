//! A gRPC connection to the guest: a Unix socket of the VMM, a one-line handshake, then HTTP/2.
//!
//! Each call of a caller gets a connection of its own. HTTP/2 windows are shared within a connection, so a stream whose
//! reader stands still could starve the others on it.

use super::GuestError;
use hyper_util::rt::TokioIo;
use pinfold_proto::limits::GUEST_PORT;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// `OK <port>` with a port of up to ten digits.
const MAX_ANSWER_BYTES: usize = 32;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection for one call. It is cut when this is dropped.
///
/// Dropping the call alone would not do: when its request waits for a window of the guest's HTTP/2 (a process that does
/// not read its input), the library has nowhere to put the cancellation, and the guest would never hear of it.
pub struct Link {
    pub channel: Channel,
    _cut: CutOnDrop,
}

struct CutOnDrop(std::os::unix::net::UnixStream);

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        // It fails when the other end has closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Connects to the guest's agent by the VMM's vsock socket at `socket`.
pub async fn connect(socket: &Path) -> Result<Link, GuestError> {
    let link = |error: io::Error| GuestError::Link(error.to_string());
    let opened = tokio::time::timeout(CONNECT_TIMEOUT, open(socket)).await;
    let stream = opened.map_err(|_| GuestError::Timeout(CONNECT_TIMEOUT.as_millis()))?.map_err(link)?;
    let cut = CutOnDrop(stream.as_fd().try_clone_to_owned().map_err(link)?.into());
    let mut once = Some(TokioIo::new(stream));
    // The address is never resolved: the connection is there. A link does not connect a second time.
    let connector = tower::service_fn(move |_: Uri| {
        let stream = once.take().ok_or_else(|| io::Error::other("the connection to the guest broke"));
        async { stream }
    });
    let channel = Endpoint::from_static("http://guest.invalid").connect_with_connector(connector).await;
    let channel = channel.map_err(|error| GuestError::Link(causes(&error)))?;
    Ok(Link { channel, _cut: cut })
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

async fn open(socket: &Path) -> io::Result<UnixStream> {
    handshake(UnixStream::connect(socket).await?, GUEST_PORT).await
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
    use futures::{Stream, StreamExt, stream};
    use pinfold_proto::guest::v1 as guest;
    use pinfold_proto::guest::v1::guest_service_client::GuestServiceClient;
    use pinfold_proto::guest::v1::guest_service_server::{GuestService, GuestServiceServer};
    use pinfold_service::CancellationToken;
    use std::pin::Pin;
    use std::sync::Mutex;

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
        let error =
            connect(Path::new("/no/such/vsock.sock")).await.err().expect("nobody is there").to_string();
        assert!(error.contains("No such file"), "{error}");
    }

    /// A guest whose process reads no input: it answers the call and then gives HTTP/2 no more room.
    struct NeverReads {
        /// cancelled when the guest hears that the call is over
        over: CancellationToken,
        /// the unread input stays open
        unread: Mutex<Vec<tonic::Streaming<guest::ExecRequest>>>,
    }

    type Answer<T> = Result<tonic::Response<T>, tonic::Status>;
    type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, tonic::Status>> + Send>>;

    #[tonic::async_trait]
    impl GuestService for NeverReads {
        type ExecStream = Frames<guest::ExecResponse>;
        type ReadFileStream = Frames<guest::ReadFileResponse>;

        async fn exec(
            &self,
            request: tonic::Request<tonic::Streaming<guest::ExecRequest>>,
        ) -> Answer<Self::ExecStream> {
            self.unread.lock().unwrap().push(request.into_inner());
            let over = self.over.clone().drop_guard();
            let started = guest::exec_response::Frame::Started(guest::ExecStarted { pid: 2 });
            let first = stream::iter([Ok(guest::ExecResponse { frame: Some(started) })]);
            let frames = first.chain(stream::pending()).map(move |frame| {
                let _held = &over;
                frame
            });
            Ok(tonic::Response::new(Box::pin(frames)))
        }

        async fn configure(
            &self,
            _: tonic::Request<guest::ConfigureRequest>,
        ) -> Answer<guest::ConfigureResponse> {
            Err(tonic::Status::unimplemented(""))
        }
        async fn read_file(&self, _: tonic::Request<guest::ReadFileRequest>) -> Answer<Self::ReadFileStream> {
            Err(tonic::Status::unimplemented(""))
        }
        async fn write_file(
            &self,
            _: tonic::Request<tonic::Streaming<guest::WriteFileRequest>>,
        ) -> Answer<guest::WriteFileResponse> {
            Err(tonic::Status::unimplemented(""))
        }
        async fn suspend(&self, _: tonic::Request<guest::SuspendRequest>) -> Answer<guest::SuspendResponse> {
            Err(tonic::Status::unimplemented(""))
        }
        async fn wake(&self, _: tonic::Request<guest::WakeRequest>) -> Answer<guest::WakeResponse> {
            Err(tonic::Status::unimplemented(""))
        }
        async fn shutdown(
            &self,
            _: tonic::Request<guest::ShutdownRequest>,
        ) -> Answer<guest::ShutdownResponse> {
            Err(tonic::Status::unimplemented(""))
        }
    }

    #[tokio::test]
    async fn a_call_whose_input_waits_is_cut_when_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let over = CancellationToken::new();
        let service = NeverReads { over: over.clone(), unread: Mutex::default() };
        let guest = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 13]).await.unwrap();
            stream.write_all(b"OK 1\n").await.unwrap();
            let connections = stream::iter([Ok::<_, io::Error>(stream)]).chain(stream::pending());
            let server = tonic::transport::Server::builder().add_service(GuestServiceServer::new(service));
            server.serve_with_incoming(connections).await.unwrap();
        };
        let host = async {
            let link = connect(&path).await.unwrap();
            let frame = guest::exec_request::Frame::Stdin(vec![0; 64 * 1024].into());
            let request = guest::ExecRequest { frame: Some(frame) };
            let mut client = GuestServiceClient::new(link.channel.clone());
            let output = client.exec(stream::iter(std::iter::repeat(request))).await.unwrap().into_inner();
            let mut output = Box::pin(output);
            output.next().await.unwrap().unwrap();
            // until the window is full nothing waits: there is no event for that, and too short a wait tests less
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(!over.is_cancelled());
            drop((output, client, link));
            tokio::time::timeout(Duration::from_secs(5), over.cancelled())
                .await
                .expect("the guest hears of the end");
        };
        tokio::select! {
            () = guest => panic!("the guest ended"),
            () = host => {}
        }
    }
}
