//! Exec frames: the public API's to the guest's and back.

use super::{WireError, at_most, excerpt, in_range};
use crate::api::v1 as api;
use crate::guest::v1 as guest;
use crate::limits;
use pinfold_domain::SandboxId;
use pinfold_domain::spec::check_environment;

/// Sandbox and guest request of a process. The environment of the sandbox is merged in later, by its node.
pub fn start_to_guest(start: api::ExecStart) -> Result<(SandboxId, guest::ExecStart), WireError> {
    let sandbox_id = start.sandbox_id.parse()?;
    check_command(&start.command)?;
    let environment = start.environment.clone().into_iter().collect();
    check_environment("environment", &environment)?;
    if !start.working_directory.is_empty() {
        super::file::check_path("working_directory", &start.working_directory)?;
    }
    check_user(&start.user)?;
    if let Some(timeout_ms) = start.timeout_ms {
        in_range("timeout_ms", timeout_ms, (1, 30 * 24 * 3600 * 1000))?;
    }
    let guest_start = guest::ExecStart {
        command: start.command,
        environment: start.environment,
        working_directory: start.working_directory,
        user: start.user,
        terminal: start.terminal.map(terminal_to_guest).transpose()?,
        timeout_ms: start.timeout_ms,
    };
    Ok((sandbox_id, guest_start))
}

/// 1 to [`limits::COMMAND_WORDS`] words without NUL, [`limits::COMMAND_BYTES`] in all; the first is not empty.
pub fn check_command(command: &[String]) -> Result<(), WireError> {
    if command.first().is_none_or(String::is_empty) {
        return Err(WireError::Missing { field: "command" });
    }
    in_range("command words", command.len() as u64, (1, limits::COMMAND_WORDS as u64))?;
    at_most("command", command.iter().map(|word| word.len() + 1).sum(), limits::COMMAND_BYTES)?;
    match command.iter().find(|word| word.contains('\0')) {
        Some(word) => {
            let why = "a word holds a NUL byte";
            Err(WireError::NotAllowed { field: "command", value: excerpt(word), why })
        }
        None => Ok(()),
    }
}

/// A user name or number of the guest; empty for the default.
pub fn check_user(user: &str) -> Result<(), WireError> {
    at_most("user", user.len(), limits::USER_BYTES)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'$');
    if user.bytes().all(allowed) {
        Ok(())
    } else {
        let why = "allowed are a-z A-Z 0-9 - _ . $";
        Err(WireError::NotAllowed { field: "user", value: excerpt(user), why })
    }
}

fn terminal_to_guest(size: api::TerminalSize) -> Result<guest::TerminalSize, WireError> {
    let cells = (1, u64::from(limits::TERMINAL_CELLS));
    in_range("terminal.rows", u64::from(size.rows), cells)?;
    in_range("terminal.columns", u64::from(size.columns), cells)?;
    Ok(guest::TerminalSize { rows: size.rows, columns: size.columns })
}

/// A frame after the first.
pub fn frame_to_guest(request: api::ExecRequest) -> Result<guest::ExecRequest, WireError> {
    use api::exec_request::Frame as From;
    use guest::exec_request::Frame as To;
    let frame = match request.frame.ok_or(WireError::Missing { field: "frame" })? {
        From::Start(_) => {
            let why = "start comes first, and once";
            return Err(WireError::NotAllowed { field: "frame", value: "start".to_owned(), why });
        }
        From::Stdin(data) => {
            at_most("stdin", data.len(), limits::FRAME_BYTES)?;
            To::Stdin(data)
        }
        From::CloseStdin(_) => To::CloseStdin(guest::CloseStdin {}),
        From::Resize(size) => To::Resize(terminal_to_guest(size)?),
        From::Signal(number) => {
            in_range("signal", u64::from(number), (1, 64))?;
            To::Signal(number)
        }
    };
    Ok(guest::ExecRequest { frame: Some(frame) })
}

pub fn frame_from_guest(response: guest::ExecResponse) -> api::ExecResponse {
    use api::exec_response::Frame as To;
    use guest::exec_response::Frame as From;
    let frame = response.frame.map(|frame| match frame {
        From::Started(started) => To::Started(api::ExecStarted { pid: started.pid }),
        From::Stdout(data) => To::Stdout(data),
        From::Stderr(data) => To::Stderr(data),
        From::Exited(exited) => To::Exited(exited_from_guest(exited)),
    });
    api::ExecResponse { frame }
}

fn exited_from_guest(exited: guest::ExecExited) -> api::ExecExited {
    use api::exec_exited::Outcome as To;
    use guest::exec_exited::Outcome as From;
    let outcome = exited.outcome.map(|outcome| match outcome {
        From::ExitCode(code) => To::ExitCode(code),
        From::Signal(number) => To::Signal(number),
    });
    api::ExecExited { outcome, timed_out: exited.timed_out, message: exited.message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> api::ExecStart {
        api::ExecStart {
            sandbox_id: "0190b3f0-5a00-7000-8000-000000000001".into(),
            command: vec!["true".into()],
            ..Default::default()
        }
    }

    fn error_of(change: impl FnOnce(&mut api::ExecStart)) -> String {
        let mut changed = start();
        change(&mut changed);
        start_to_guest(changed).expect_err("the change breaks a rule").to_string()
    }

    #[test]
    fn a_start_is_checked_field_by_field() {
        assert!(start_to_guest(start()).is_ok());
        assert!(error_of(|s| s.sandbox_id = "x".into()).contains("sandbox_id"));
        assert_eq!(error_of(|s| s.command.clear()), "command is missing");
        assert_eq!(error_of(|s| s.command = vec![String::new()]), "command is missing");
        assert!(error_of(|s| s.command.push("a\0".into())).contains("NUL"));
        assert!(error_of(|s| s.command.push("a".repeat(200_000))).contains("122880"));
        assert!(error_of(|s| s.command = vec!["a".into(); 5000]).contains("4096"));
        assert!(error_of(|s| s.working_directory = "tmp".into()).contains("working_directory"));
        assert!(error_of(|s| s.user = "a b".into()).contains("user"));
        assert!(error_of(|s| s.timeout_ms = Some(0)).contains("timeout_ms"));
        let terminal = Some(api::TerminalSize { rows: 0, columns: 80 });
        assert!(error_of(|s| s.terminal = terminal).contains("terminal.rows"));
        assert!(
            error_of(|s| drop(s.environment.insert("A B".into(), String::new()))).contains("environment")
        );
    }

    #[test]
    fn later_frames_are_checked() {
        use api::exec_request::Frame;
        let refused = |frame| frame_to_guest(api::ExecRequest { frame }).is_err();
        assert!(refused(None));
        assert!(refused(Some(Frame::Start(start()))));
        assert!(refused(Some(Frame::Stdin(vec![0; limits::FRAME_BYTES + 1].into()))));
        assert!(refused(Some(Frame::Signal(0))));
        assert!(refused(Some(Frame::Signal(65))));
        assert!(!refused(Some(Frame::CloseStdin(api::CloseStdin {}))));
    }
}
