//! The only place where something becomes a gRPC status.

use pinfold_domain::{Cause, Reason};
use pinfold_engine::Rejection;
use pinfold_proto::convert::sandbox::cause_from_wire;
use pinfold_proto::node::v1::RelayError;
use pinfold_proto::reasons;
use tonic::{Code, Status};

pub fn refuse(cause: impl Into<Cause>) -> Status {
    reasons::status(&cause.into())
}

/// A call that the engine turned down; the counts per filter are in the message.
pub fn rejected(rejection: Rejection) -> Status {
    let Rejection { mut cause, explanation } = rejection;
    if let Some(sentence) = explanation.map(|explanation| explanation.sentence())
        && !cause.message.contains(&sentence)
    {
        cause = Cause::new(cause.reason, format!("{} ({sentence})", cause.message));
    }
    refuse(cause)
}

/// What the guest or its node answered instead of a stream's good end.
pub fn relayed(error: RelayError) -> Status {
    match error.cause {
        Some(cause) => refuse(cause_from_wire(cause)),
        None => Status::new(Code::from_i32(error.code), "the node gave no reason"),
    }
}

pub fn deadline_exceeded() -> Status {
    refuse(Cause::new(Reason::DeadlineExceeded, "the deadline of the call has passed"))
}

pub fn shutting_down() -> Status {
    refuse(Cause::new(Reason::NodeUnreachable, "the scheduler is shutting down: call again"))
}

/// The bound on watches holds for all that waits for a change.
pub fn too_many_watches() -> Status {
    refuse(Cause::new(Reason::TooManyStreams, "too many watches are open: try again later"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_domain::{Explanation, FilterCount, Verdict};

    #[test]
    fn a_rejection_says_why_per_filter() {
        let filters = vec![FilterCount { filter: "memory".into(), rejected: 2 }];
        let explanation =
            Some(Explanation { verdict: Verdict::Never, nodes_considered: 2, filters, note: String::new() });
        let cause = Cause::new(Reason::Unplaceable, "no node could ever hold it");
        let status = rejected(Rejection { cause, explanation });
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.message(), "no node could ever hold it (0 of 2 nodes fit: 2 rejected by memory)");
        assert_eq!(reasons::cause(&status).reason, Reason::Unplaceable);
    }

    #[test]
    fn a_relayed_error_keeps_its_reason_or_at_least_its_code() {
        let cause = pinfold_proto::api::v1::Cause { reason: "FileNotFound".into(), message: "no /x".into() };
        let status = relayed(RelayError { code: 2, cause: Some(cause) });
        assert_eq!((status.code(), status.message()), (Code::NotFound, "no /x"));
        assert_eq!(relayed(RelayError { code: 8, cause: None }).code(), Code::ResourceExhausted);
    }
}
