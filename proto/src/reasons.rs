//! What each reason means on the wire: its gRPC code, and whether the same call may succeed later.
//!
//! A status carries the reason's stable string in the metadata key [`REASON_KEY`] and the message as its text.

use pinfold_domain::{Cause, Reason};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

pub const REASON_KEY: &str = "pinfold-reason";
/// `true` or `false`: the same call may succeed later.
pub const RETRYABLE_KEY: &str = "pinfold-retryable";

/// gRPC code and retryability of `reason`. The reasons of an ended sandbox are reported in its `cause`; as the answer
/// of a call (exec in a sandbox that has ended so) they are failed preconditions.
pub fn wire(reason: Reason) -> (Code, bool) {
    use Reason as R;
    match reason {
        R::InvalidArgument => (Code::InvalidArgument, false),
        R::SandboxNotFound | R::SnapshotNotFound | R::TemplateNotFound | R::FileNotFound => {
            (Code::NotFound, false)
        }
        R::ImageUnknown | R::Unplaceable => (Code::FailedPrecondition, false),
        R::RequestIdConflict | R::TemplateExists => (Code::AlreadyExists, false),
        R::QueueFull | R::TooManyStreams | R::NoRoom => (Code::ResourceExhausted, true),
        R::DiskFull | R::LimitReached => (Code::ResourceExhausted, false),
        R::SandboxStarting | R::SnapshotInUse => (Code::FailedPrecondition, true),
        R::SandboxEnded | R::WrongPhase | R::SnapshotUnusable | R::FileWrongType => {
            (Code::FailedPrecondition, false)
        }
        R::FilePermission => (Code::PermissionDenied, false),
        R::NodeUnreachable | R::StoreUnavailable | R::GuestUnresponsive => (Code::Unavailable, true),
        R::RevisionCompacted => (Code::OutOfRange, false),
        R::DeadlineExceeded => (Code::DeadlineExceeded, true),
        R::Internal => (Code::Internal, false),
        R::StopRequested
        | R::DeleteRequested
        | R::TtlExpired
        | R::StartTimeout
        | R::HostResources
        | R::JailFailed
        | R::KernelInvalid
        | R::RootImageInvalid
        | R::GuestPanic
        | R::GuestPowerOff
        | R::GuestReset
        | R::OutOfMemory
        | R::VmmFailed
        | R::SnapshotFailed
        | R::SnapshotInvalid
        | R::RestoreFailed
        | R::NodeRefused
        | R::NodeLost
        | R::NodeForgot => (Code::FailedPrecondition, false),
    }
}

/// The one way in which a reason becomes a gRPC status.
pub fn status(cause: &Cause) -> Status {
    let (code, retryable) = wire(cause.reason);
    let mut status = Status::new(code, cause.message.clone());
    let metadata = status.metadata_mut();
    metadata.insert(REASON_KEY, MetadataValue::from_static(cause.reason.as_str()));
    metadata.insert(RETRYABLE_KEY, MetadataValue::from_static(if retryable { "true" } else { "false" }));
    status
}

/// The reason in a status: from its metadata, else from its code.
pub fn cause(status: &Status) -> Cause {
    let named = status.metadata().get(REASON_KEY).and_then(|value| value.to_str().ok());
    let reason = named.and_then(Reason::from_str_exact).unwrap_or(match status.code() {
        Code::InvalidArgument => Reason::InvalidArgument,
        Code::DeadlineExceeded => Reason::DeadlineExceeded,
        Code::Unavailable => Reason::NodeUnreachable,
        _ => Reason::Internal,
    });
    Cause::new(reason, status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        for &reason in Reason::ALL {
            let sent = Cause::new(reason, "what happened");
            assert_eq!(cause(&status(&sent)), sent);
        }
    }
}
