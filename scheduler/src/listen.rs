//! Connections: how many at once, and how long one may stay silent at its beginning.
//!
//! One connection more than the bound is not accepted: it waits in the kernel's backlog until another one ends.

use crate::config::ServerConfig;
use futures::{Stream, stream};
use pinfold_service::CancellationToken;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

/// After a failed accept (no descriptors left): the cause is elsewhere, and nothing tells when it is gone.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Accepts connections as long as it is polled.
pub fn incoming(
    listener: TcpListener,
    config: &ServerConfig,
) -> impl Stream<Item = io::Result<Connection>> + use<> {
    let slots = Arc::new(Semaphore::new(config.connections));
    let first_byte_timeout = Duration::from_millis(config.first_byte_timeout_ms);
    stream::unfold((listener, slots), move |(listener, slots)| async move {
        // the semaphore is never closed
        let permit = Arc::clone(&slots).acquire_owned().await.ok()?;
        let accepted = listener.accept().await.and_then(|(stream, _)| {
            stream.set_nodelay(true)?;
            Ok(Connection::new(stream, first_byte_timeout, permit))
        });
        if let Err(error) = &accepted {
            tracing::warn!(%error, "a connection cannot be accepted");
            tokio::time::sleep(ACCEPT_RETRY).await;
        }
        Some((accepted, (listener, slots)))
    })
}

/// A TCP connection that counts against the bound, breaks when its first byte does not come in time, and can be severed
/// from inside a call.
pub struct Connection {
    stream: TcpStream,
    /// until the first byte
    silence: Option<Pin<Box<Sleep>>>,
    handle: ConnectionHandle,
    severed: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: OwnedSemaphorePermit,
}

/// The connection as its calls see it, in their extensions.
#[derive(Debug, Clone, Default)]
pub struct ConnectionHandle {
    sever: CancellationToken,
    /// calls of nodes that are open on it
    calls: Arc<AtomicUsize>,
}

/// One call counts until this is dropped.
#[derive(Debug)]
pub struct OpenCall(ConnectionHandle);

impl ConnectionHandle {
    pub fn open_call(&self) -> OpenCall {
        self.calls.fetch_add(1, Ordering::SeqCst);
        OpenCall(self.clone())
    }
}

impl OpenCall {
    /// Closes the connection under this call, unless another call uses it too. True when it was closed.
    pub fn sever(&self) -> bool {
        let alone = self.0.calls.load(Ordering::SeqCst) == 1;
        if alone {
            self.0.sever.cancel();
        }
        alone
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Connection {
    fn new(stream: TcpStream, first_byte_timeout: Duration, permit: OwnedSemaphorePermit) -> Self {
        let handle = ConnectionHandle::default();
        let severed = Box::pin(handle.sever.clone().cancelled_owned());
        let silence = Some(Box::pin(tokio::time::sleep(first_byte_timeout)));
        Self { stream, silence, handle, severed, _permit: permit }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.severed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "severed")));
        }
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if read.is_ready() {
            this.silence = None;
        } else if let Some(silence) = &mut this.silence
            && silence.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no first byte in time")));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionHandle;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.handle.clone()
    }
}
