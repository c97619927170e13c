//! How a call is made: with a deadline, and again when the connection broke under it and repeating is safe.

use crate::error::Error;
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// Attempts of one idempotent call, the first included.
const ATTEMPTS: u32 = 4;

/// Waits of 50 ms, 100 ms, ... up to 2 s.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Counts a failure; the time to wait before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = Duration::from_millis(50).saturating_mul(1 << self.failures.min(6));
        self.failures += 1;
        wait.min(Duration::from_secs(2))
    }
}

/// One attempt. `limit` bounds it here and travels as `grpc-timeout`.
pub(crate) async fn once<Q, A, Fut>(
    call: &'static str,
    limit: Duration,
    body: Q,
    send: impl FnOnce(Request<Q>) -> Fut,
) -> Result<A, Error>
where
    Fut: Future<Output = Result<Response<A>, Status>>,
{
    let mut request = Request::new(body);
    request.set_timeout(limit);
    match tokio::time::timeout(limit, send(request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Error::from_status(call, limit, &status)),
        Err(_) => Err(Error::Deadline { call, limit }),
    }
}

/// A call that may be repeated: it reads, or it carries a request id. All attempts together stay within `limit`.
pub(crate) async fn idempotent<Q, A, Fut>(
    call: &'static str,
    limit: Duration,
    body: Q,
    send: impl Fn(Request<Q>) -> Fut,
) -> Result<A, Error>
where
    Q: Clone,
    Fut: Future<Output = Result<Response<A>, Status>>,
{
    let deadline = Instant::now() + limit;
    let mut backoff = Backoff::default();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let error = match once(call, left, body.clone(), &send).await {
            Ok(answer) => return Ok(answer),
            Err(Error::Deadline { call, .. }) => return Err(Error::Deadline { call, limit }),
            Err(error) => error,
        };
        let wait = backoff.next();
        if !error.is_transport() || backoff.failures() >= ATTEMPTS || Instant::now() + wait >= deadline {
            return Err(error);
        }
        tokio::time::sleep(wait).await;
    }
}

/// The start of a stream: only its first answer (the headers) is bounded here.
pub(crate) async fn open<A, Fut>(call: &'static str, limit: Duration, sent: Fut) -> Result<A, Error>
where
    Fut: Future<Output = Result<Response<A>, Status>>,
{
    match tokio::time::timeout(limit, sent).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Error::from_status(call, limit, &status)),
        Err(_) => Err(Error::Deadline { call, limit }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_domain::{Cause, Reason};
    use pinfold_proto::reasons;
    use std::cell::Cell;

    fn failing(reason: Reason) -> Status {
        reasons::status(&Cause::new(reason, "no"))
    }

    async fn attempts(reason: Reason, succeed_at: u32) -> (u32, bool) {
        let count = Cell::new(0);
        let answer = idempotent("Test", Duration::from_secs(10), (), |_| {
            count.set(count.get() + 1);
            let now = count.get();
            async move { if now >= succeed_at { Ok(Response::new(())) } else { Err(failing(reason)) } }
        })
        .await;
        (count.get(), answer.is_ok())
    }

    #[tokio::test]
    async fn a_broken_connection_is_tried_again_a_bounded_number_of_times() {
        assert_eq!(attempts(Reason::StoreUnavailable, 3).await, (3, true));
        assert_eq!(attempts(Reason::StoreUnavailable, 100).await, (ATTEMPTS, false));
    }

    #[tokio::test]
    async fn a_refusal_is_not_repeated() {
        assert_eq!(attempts(Reason::InvalidArgument, 2).await, (1, false));
        // retryable, but when is for the caller to choose
        assert_eq!(attempts(Reason::QueueFull, 2).await, (1, false));
    }

    #[tokio::test]
    async fn the_deadline_ends_a_call_that_hangs() {
        let started = std::time::Instant::now();
        let limit = Duration::from_millis(50);
        let answer: Result<(), Error> = idempotent("Test", limit, (), |_| std::future::pending()).await;
        assert!(matches!(answer, Err(Error::Deadline { .. })));
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..8).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
    }
}
