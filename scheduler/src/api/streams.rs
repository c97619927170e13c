//! What all streaming answers share: they end at the caller's deadline and at shutdown, with a status that says so.

use super::{deadline, status};
use futures::{Stream, StreamExt};
use pinfold_service::CancellationToken;
use std::pin::{Pin, pin};
use tokio::time::Instant;
use tonic::Status;

pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Passes `stream` on until its end, its first error, the deadline or the shutdown.
pub fn bounded<T: Send + 'static>(
    stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
    call_deadline: Option<Instant>,
    shutdown: CancellationToken,
) -> Answers<T> {
    Box::pin(async_stream::stream! {
        let mut stream = pin!(stream);
        let mut over = pin!(over(call_deadline, shutdown));
        loop {
            let item = tokio::select! {
                biased;
                status = &mut over => Some(Err(status)),
                item = stream.next() => item,
            };
            let Some(item) = item else { break };
            let last = item.is_err();
            yield item;
            if last {
                break;
            }
        }
    })
}

async fn over(call_deadline: Option<Instant>, shutdown: CancellationToken) -> Status {
    tokio::select! {
        () = deadline::passed(call_deadline) => status::deadline_exceeded(),
        () = shutdown.cancelled() => status::shutting_down(),
    }
}
