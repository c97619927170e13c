//! How an error is told: what happened, why, and what to do next.

use pinfold_domain::Reason;
use pinfold_sdk::Error;

/// Exit code when a call failed, as `docker` and `env` use it.
pub const CALL_FAILED: i32 = 125;
/// Exit code after Ctrl-C: 128 + SIGINT.
pub const INTERRUPTED: i32 = 130;
/// Exit code when the reader of our output has gone, as with `| head`: 128 + SIGPIPE.
const READER_GONE: i32 = 141;

/// The user ended it: no message.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// An error with advice of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Advised {
    pub message: String,
    pub advice: String,
}

pub fn advised(message: impl Into<String>, advice: impl Into<String>) -> anyhow::Error {
    Advised { message: message.into(), advice: advice.into() }.into()
}

/// Prints `error` on stderr; the exit code.
pub fn report(error: &anyhow::Error) -> i32 {
    if error.is::<Interrupted>() {
        return INTERRUPTED;
    }
    if error.downcast_ref().is_some_and(|io: &std::io::Error| io.kind() == std::io::ErrorKind::BrokenPipe) {
        return READER_GONE;
    }
    eprintln!("{}", text(error));
    CALL_FAILED
}

fn text(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}");
    let mut said = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // a transparent layer says the same again
        if !said.contains(&cause) {
            text.push_str(&format!(": {cause}"));
        }
        said = cause;
    }
    if let Some(Error::Call { cause, .. } | Error::Ended { cause: Some(cause), .. }) = error.downcast_ref() {
        text.push_str(&format!(" [{}]", cause.reason.as_str()));
    }
    if let Some(advice) = advice(error) {
        text.push_str(&format!("\nhint: {advice}"));
    }
    text
}

fn advice(error: &anyhow::Error) -> Option<String> {
    if let Some(advised) = error.downcast_ref::<Advised>() {
        return Some(advised.advice.clone());
    }
    let error = error.downcast_ref::<Error>()?;
    let advice = match error {
        Error::Connect { .. } => {
            "is the scheduler running? `pinfold dev up` starts a local fleet; \
                                  --scheduler or PINFOLD_SCHEDULER names another one"
        }
        Error::Endpoint { .. } => "write it like http://127.0.0.1:7420",
        Error::Deadline { .. } => {
            "the scheduler or the node is slow or gone: `pinfold nodes` shows the fleet"
        }
        Error::Protocol { .. } => "are pinfold and the scheduler of the same version?",
        Error::Local { .. } | Error::TooLarge { .. } => return None,
        Error::Call { cause, .. } | Error::Ended { cause: Some(cause), .. } => by_reason(cause.reason)?,
        Error::Ended { cause: None, .. } => "`pinfold get` shows its timeline",
    };
    Some(advice.to_owned())
}

fn by_reason(reason: Reason) -> Option<&'static str> {
    use Reason as R;
    Some(match reason {
        R::SandboxNotFound => "`pinfold ls` shows what there is",
        R::SnapshotNotFound | R::SnapshotUnusable => "`pinfold snapshot ls` shows what there is",
        R::TemplateNotFound | R::TemplateExists => "`pinfold template ls` shows what there is",
        R::SnapshotInUse => "wait until what is made from it runs, or remove that first",
        R::NoRoom => "`pinfold ls` shows what runs on the node: stop or pause some of it",
        R::LimitReached => "remove what is no longer needed",
        R::ImageUnknown => "`pinfold nodes -o json` shows the images and kernels of each node",
        R::RequestIdConflict => "use another --request-id, or leave it out",
        R::Unplaceable => "`pinfold nodes` shows what the nodes can hold: ask for less, or add a larger node",
        R::QueueFull | R::TooManyStreams => "try again in a moment",
        R::SandboxStarting => "it is on its way: `pinfold watch` shows when it runs",
        R::SandboxEnded => "`pinfold get` shows why it ended",
        R::WrongPhase => "`pinfold get` shows its phase; `pinfold resume` brings a paused sandbox back",
        R::NodeUnreachable | R::NodeLost => "`pinfold nodes` shows the state of its node",
        R::RevisionCompacted => "leave --from out to begin with the present state",
        R::StoreUnavailable => "the scheduler cannot write its store: look at its log and its disk",
        R::GuestUnresponsive => "`pinfold logs` shows the guest's console",
        R::FileWrongType => "only regular files can be copied; for a directory use `pinfold exec ... -- tar`",
        R::FilePermission => "use --user, or the default user root",
        R::DiskFull => "give the sandbox a larger --disk, or delete files in it",
        R::StartTimeout | R::KernelInvalid | R::RootImageInvalid | R::GuestPanic | R::GuestReset => {
            "`pinfold logs` shows the guest's console"
        }
        R::SnapshotInvalid => "take another snapshot: this one cannot be used",
        R::HostResources
        | R::JailFailed
        | R::VmmFailed
        | R::NodeRefused
        | R::SnapshotFailed
        | R::RestoreFailed => "`pinfold doctor` on the node shows what it lacks",
        R::OutOfMemory => "give the sandbox more --memory",
        R::InvalidArgument
        | R::DeadlineExceeded
        | R::FileNotFound
        | R::Internal
        | R::StopRequested
        | R::DeleteRequested
        | R::TtlExpired
        | R::GuestPowerOff
        | R::NodeForgot => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_refused_connection_says_what_to_do() {
        let source = std::io::Error::from_raw_os_error(111).to_string().into();
        let error = anyhow::Error::from(Error::Connect { endpoint: "http://127.0.0.1:1".into(), source });
        let text = text(&error);
        assert!(
            text.starts_with(
                "error: cannot connect to the scheduler at http://127.0.0.1:1: Connection refused"
            )
        );
        assert!(
            text.contains("hint: is the scheduler running? `pinfold dev up` starts a local fleet"),
            "{text}"
        );
    }

    #[test]
    fn a_refusal_shows_its_reason_and_context() {
        let cause = pinfold_domain::Cause::new(Reason::ImageUnknown, "no node holds the image \"nope\"");
        let code = pinfold_sdk::Code::FailedPrecondition;
        let error = Error::Call { call: "CreateSandbox", cause, code, retryable: false };
        let error = Err::<(), _>(error).context("cannot create the sandbox").unwrap_err();
        assert_eq!(
            text(&error),
            "error: cannot create the sandbox: no node holds the image \"nope\" [ImageUnknown]\n\
             hint: `pinfold nodes -o json` shows the images and kernels of each node"
        );
    }
}
