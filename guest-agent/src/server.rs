//! `pinfold.guest.v1` over any stream of connections: vsock in a guest, a Unix socket in tests.

use crate::agent::{Agent, Phase, limits};
use crate::exec::session;
use crate::files::{read, write};
use crate::{settings, shutdown, suspension, tasks};
use pinfold_domain::{Cause, Reason};
use pinfold_proto::guest::v1::guest_service_server::{GuestService, GuestServiceServer};
use pinfold_proto::guest::v1::{
    ConfigureRequest, ConfigureResponse, ExecRequest, ExecResponse, ReadFileRequest, ReadFileResponse,
    ShutdownRequest, ShutdownResponse, SuspendRequest, SuspendResponse, WakeRequest, WakeResponse,
    WriteFileRequest, WriteFileResponse,
};
use pinfold_proto::limits::STREAM_QUEUE_FRAMES;
use pinfold_proto::reasons::status;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

/// A message of 64 KiB with its prefix in one HTTP/2 frame, instead of five.
const HTTP2_FRAME_BYTES: u32 = 65 * 1024;

/// Serves until the agent's phase is Off, and for a moment longer, so that the last answers leave.
pub async fn serve<S, E>(
    agent: Arc<Agent>,
    incoming: impl Stream<Item = Result<S, E>> + Send + 'static,
) -> Result<(), tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS));
    // a connection beyond the bound is dropped here, which closes it; a failed accept is not the end of the listener
    let incoming = incoming.filter_map(move |accepted| {
        let place = places.clone().try_acquire_owned().ok()?;
        Some(Ok::<_, io::Error>(Connection { stream: accepted.ok()?, _place: place }))
    });
    let off = agent.clone();
    let farewell = agent.clone();
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(limits::STREAMS)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .http2_max_pending_accept_reset_streams(Some(limits::STREAMS as usize))
        .add_service(
            GuestServiceServer::new(Service { agent }).max_decoding_message_size(limits::MESSAGE_BYTES),
        )
        .serve_with_incoming_shutdown(incoming, async move { off.reached(Phase::Off).await });
    tokio::select! {
        served = server => served,
        () = async {
            farewell.reached(Phase::Off).await;
            tokio::time::sleep(limits::FAREWELL).await;
        } => Ok(()),
    }
}

struct Service {
    agent: Arc<Agent>,
}

#[tonic::async_trait]
impl GuestService for Service {
    type ExecStream = ReceiverStream<Result<ExecResponse, Status>>;
    type ReadFileStream = ReceiverStream<Result<ReadFileResponse, Status>>;

    async fn configure(
        &self,
        request: Request<ConfigureRequest>,
    ) -> Result<Response<ConfigureResponse>, Status> {
        settings::apply(&self.agent, request.get_ref()).map_err(|cause| status(&cause))?;
        Ok(Response::new(ConfigureResponse {}))
    }

    /// Answers at once, so that a caller may wait for the answer before it sends its first frame; an error comes as the
    /// stream's end.
    async fn exec(
        &self,
        request: Request<Streaming<ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let trace_parent = request.metadata().get("traceparent").and_then(|value| value.to_str().ok());
        let trace_parent = trace_parent.map(str::to_owned);
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE_FRAMES);
        tasks::spawn("exec", session::run(self.agent.clone(), request.into_inner(), sender, trace_parent));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE_FRAMES);
        tasks::spawn("read", read::run(self.agent.clone(), request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<WriteFileRequest>>,
    ) -> Result<Response<WriteFileResponse>, Status> {
        let written = write::run(self.agent.clone(), request.into_inner()).await;
        written.map(Response::new).map_err(|cause| status(&cause))
    }

    /// In tasks of their own, as a stop is: half a suspension is no state to leave a guest in.
    async fn suspend(&self, _: Request<SuspendRequest>) -> Result<Response<SuspendResponse>, Status> {
        let agent = self.agent.clone();
        let suspended = tasks::spawn("suspend", async move { suspension::suspend(&agent).await }).await;
        finished(suspended.ok().flatten(), "the suspension")?;
        Ok(Response::new(SuspendResponse {}))
    }

    async fn wake(&self, request: Request<WakeRequest>) -> Result<Response<WakeResponse>, Status> {
        let (agent, request) = (self.agent.clone(), request.into_inner());
        let woken = tasks::spawn("wake", async move { suspension::wake(&agent, &request).await }).await;
        finished(woken.ok().flatten(), "the waking")?;
        Ok(Response::new(WakeResponse {}))
    }

    async fn shutdown(
        &self,
        request: Request<ShutdownRequest>,
    ) -> Result<Response<ShutdownResponse>, Status> {
        let grace = Duration::from_millis(request.get_ref().grace_ms.into());
        // goes on when the caller goes away: a stop is not taken back
        let stopping = tasks::spawn("shutdown", shutdown::stop_workload(self.agent.clone(), grace));
        finished(stopping.await.ok().flatten(), "the shutdown")?;
        Ok(Response::new(ShutdownResponse {}))
    }
}

/// `None`: the task has panicked.
fn finished(done: Option<Result<(), Cause>>, act: &str) -> Result<(), Status> {
    let done = done.unwrap_or_else(|| Err(Cause::new(Reason::Internal, format!("{act} failed"))));
    done.map_err(|cause| status(&cause))
}

/// A connection that holds its place among the bounded number of them.
struct Connection<S> {
    stream: S,
    _place: OwnedSemaphorePermit,
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
