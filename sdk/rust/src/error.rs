//! The one error of this crate.

use pinfold_domain::{Cause, Reason};
use pinfold_proto::reasons;
use std::time::Duration;
use tonic::{Code, Status};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address of the scheduler cannot be used as it is written.
    #[error("scheduler address {endpoint:?} cannot be used: {why}")]
    Endpoint { endpoint: String, why: String },
    /// Nobody answers at the address.
    #[error("cannot connect to the scheduler at {endpoint}")]
    Connect { endpoint: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// The server refused the call, or the connection broke under it.
    #[error("{}", .cause.message)]
    Call { call: &'static str, cause: Cause, code: Code, retryable: bool },
    /// The deadline of the call passed before the answer came.
    #[error("{call} did not answer within {} ms", .limit.as_millis())]
    Deadline { call: &'static str, limit: Duration },
    /// The server's answer breaks the contract.
    #[error("{call}: the server's answer is not understood: {what}")]
    Protocol { call: &'static str, what: String },
    /// The caller's own reader or writer failed.
    #[error("{call}: cannot {act} the local data")]
    Local { call: &'static str, act: &'static str, source: std::io::Error },
    /// A bound that the caller gave was passed.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge { what: &'static str, limit: usize },
    /// A sandbox that was waited for ended in another phase.
    #[error("sandbox {id} is {phase}: {}", .cause.as_ref().map_or("no cause was given", |cause| &cause.message))]
    Ended { id: pinfold_domain::SandboxId, phase: pinfold_domain::Phase, cause: Option<Cause> },
}

impl Error {
    /// The stable reason and the sentence that came with it.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Call { cause, .. } | Self::Ended { cause: Some(cause), .. } => cause.clone(),
            Self::Endpoint { .. } | Self::TooLarge { .. } => {
                Cause::new(Reason::InvalidArgument, self.to_string())
            }
            Self::Connect { .. } => Cause::new(Reason::NodeUnreachable, self.to_string()),
            Self::Deadline { .. } => Cause::new(Reason::DeadlineExceeded, self.to_string()),
            Self::Protocol { .. } | Self::Local { .. } => Cause::new(Reason::Internal, self.to_string()),
            Self::Ended { cause: None, .. } => Cause::new(Reason::SandboxEnded, self.to_string()),
        }
    }

    /// The gRPC code, as it came or as the error would be expressed.
    pub fn code(&self) -> Code {
        match self {
            Self::Call { code, .. } => *code,
            Self::Endpoint { .. } => Code::InvalidArgument,
            Self::Connect { .. } => Code::Unavailable,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::Protocol { .. } => Code::Internal,
            Self::Local { .. } => Code::Aborted,
            Self::TooLarge { .. } => Code::ResourceExhausted,
            Self::Ended { .. } => Code::FailedPrecondition,
        }
    }

    /// The same call may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Call { retryable, .. } => *retryable,
            Self::Connect { .. } | Self::Deadline { .. } => true,
            Self::Endpoint { .. }
            | Self::Protocol { .. }
            | Self::Local { .. }
            | Self::TooLarge { .. }
            | Self::Ended { .. } => false,
        }
    }

    /// The call did not reach the server or its answer was cut off, so nothing is known of its effect.
    pub(crate) fn is_transport(&self) -> bool {
        matches!(self, Self::Call { code: Code::Unavailable, .. } | Self::Connect { .. })
    }

    pub(crate) fn from_status(call: &'static str, limit: Duration, status: &Status) -> Self {
        let named = status.metadata().get(reasons::REASON_KEY).is_some();
        // tonic reports its own timer as Cancelled or DeadlineExceeded without a reason
        let timer = matches!(status.code(), Code::DeadlineExceeded)
            || (status.code() == Code::Cancelled && status.message() == "Timeout expired");
        if timer && !named {
            return Self::Deadline { call, limit };
        }
        let cause = reasons::cause(status);
        // a connection that breaks has no reason; hyper's errors arrive as Unknown or Unavailable with a source
        let broken = !named && std::error::Error::source(status).is_some();
        if broken {
            let why = deepest(status);
            let message = format!("the connection to the scheduler broke: {why}");
            let cause = Cause::new(Reason::NodeUnreachable, message);
            return Self::Call { call, cause, code: Code::Unavailable, retryable: true };
        }
        let retryable = match status.metadata().get(reasons::RETRYABLE_KEY) {
            Some(value) => value.as_bytes() == b"true",
            None => matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Aborted),
        };
        Self::Call { call, cause, code: status.code(), retryable }
    }
}

/// The innermost source: what really happened (`Connection refused`), without the layers above.
pub(crate) fn deepest(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_keeps_reason_code_and_retryability() {
        let status = reasons::status(&Cause::new(Reason::QueueFull, "64 sandboxes wait, the limit is 64"));
        let error = Error::from_status("CreateSandbox", Duration::from_secs(1), &status);
        assert_eq!(error.cause().reason, Reason::QueueFull);
        assert_eq!(error.to_string(), "64 sandboxes wait, the limit is 64");
        assert_eq!((error.code(), error.retryable()), (Code::ResourceExhausted, true));
    }

    #[test]
    fn a_timer_of_the_transport_is_a_deadline() {
        for status in [Status::cancelled("Timeout expired"), Status::deadline_exceeded("too late")] {
            let error = Error::from_status("GetSandbox", Duration::from_millis(20), &status);
            assert_eq!(error.to_string(), "GetSandbox did not answer within 20 ms");
            assert!(error.retryable());
        }
    }

    #[test]
    fn a_cancellation_by_the_server_is_not_a_deadline() {
        let status = Status::cancelled("the scheduler stops");
        let error = Error::from_status("GetSandbox", Duration::from_secs(1), &status);
        assert_eq!(error.code(), Code::Cancelled);
    }
}
