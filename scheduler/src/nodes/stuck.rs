//! Ending a call whose far end does not read.
//!
//! An answer stream that is over ends with trailers, and those wait behind the data before them. When the node has
//! stopped reading (a guest's process does not take its input), they never come through, and the node would not learn
//! that the client is gone. HTTP/2 has a reset for this, which the server library does not send while it waits for
//! room; so the connection under the call is closed instead. Nodes dial once per stream: nothing else is on it.

use crate::listen::{ConnectionHandle, OpenCall};
use futures::Stream;
use pinfold_service::Tasks;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};

/// From the end of an answer stream until the node must have taken what was said before.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// An answer stream that tells when the server has let go of it.
pub struct Watched<S> {
    stream: S,
    _gone: DropGuard,
}

impl<S: Stream + Unpin> Stream for Watched<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.stream).poll_next(cx)
    }
}

/// Watches over `stream`: once `over` is cancelled it has [`LAST_WORDS`] to reach the node.
pub fn watch<S>(
    tasks: &Tasks,
    connection: Option<&ConnectionHandle>,
    over: CancellationToken,
    stream: S,
) -> Watched<S> {
    let gone = CancellationToken::new();
    if let Some(call) = connection.map(ConnectionHandle::open_call) {
        drop(tasks.background("end-of-call", sever_when_stuck(call, over, gone.clone())));
    }
    Watched { stream, _gone: gone.drop_guard() }
}

async fn sever_when_stuck(call: OpenCall, over: CancellationToken, gone: CancellationToken) {
    tokio::select! {
        () = over.cancelled() => {}
        () = gone.cancelled() => return,
    }
    if tokio::time::timeout(LAST_WORDS, gone.cancelled()).await.is_err() {
        let severed = call.sever();
        tracing::debug!(severed, "a call is over and its node does not read");
    }
}
