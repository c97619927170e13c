//! Deadlines: the `grpc-timeout` of a call (gRPC over HTTP/2, "Requests"), and the server's own for plain calls.

use super::status;
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::MetadataMap;

/// The transport cuts a call off at its deadline with a status that has no reason: ours is this much earlier.
const AHEAD_OF_TRANSPORT: Duration = Duration::from_millis(2);

/// When the caller wants the call to end; `None` without `grpc-timeout`, or with one that is malformed.
pub fn of(metadata: &MetadataMap) -> Option<Instant> {
    let timeout = parse(metadata.get("grpc-timeout")?.to_str().ok()?)?;
    Instant::now().checked_add(timeout.saturating_sub(AHEAD_OF_TRANSPORT))
}

/// At most 8 digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// Runs `call` until the caller's deadline, at most for `limit`.
pub async fn within<T>(
    call_deadline: Option<Instant>,
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let limited = tokio::time::timeout(limit, call);
    tokio::select! {
        biased;
        outcome = limited => outcome.unwrap_or_else(|_| Err(status::deadline_exceeded())),
        () = passed(call_deadline) => Err(status::deadline_exceeded()),
    }
}

/// Sleeps until `deadline`, forever without one.
pub async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_of_the_protocol() {
        let cases = [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("99999999S", Duration::from_secs(99_999_999)),
            ("250m", Duration::from_millis(250)),
            ("1u", Duration::from_micros(1)),
            ("0n", Duration::ZERO),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        for bad in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1.5S", "1é", "é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
