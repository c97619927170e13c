//! A remote process on the local terminal or pipes.
//!
//! Three things go on at once until the process ends: its output is printed, local stdin is sent, signals are passed
//! on. None waits for another: a process that does not read its stdin still shows its output.

use crate::failure::{CALL_FAILED, INTERRUPTED};
use crate::terminal;
use anyhow::{Context, Result};
use pinfold_sdk::{Exit, Outcome, Process, ProcessEvent, ProcessInput};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

/// Exit code when the time limit ended the process, as timeout(1) has it.
const TIMED_OUT: i32 = 124;
/// A signal frame waits behind stdin that nobody reads: not longer than this.
const SIGNAL_WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
pub struct Attachment {
    /// send local stdin
    pub stdin: bool,
    /// the process has a terminal: follow the size of ours
    pub terminal: bool,
}

/// Carries bytes and signals until the process ends; the exit code to end with. A second Ctrl-C, SIGTERM or SIGHUP
/// gives the process up (it is then ended in the guest).
pub async fn attach(mut process: Process, attachment: Attachment) -> Result<i32> {
    let input = process.input().clone();
    let mut interrupts = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut terminations = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut hangups = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    let mut resizes = signal(SignalKind::window_change()).context("cannot handle SIGWINCH")?;
    let output = print(&mut process);
    let stdin = send_stdin(&input, attachment.stdin);
    tokio::pin!(output, stdin);
    let mut stdin_open = true;
    let mut interrupted = false;
    loop {
        tokio::select! {
            exit = &mut output => return Ok(exit_code(&exit?)),
            result = &mut stdin, if stdin_open => {
                result?;
                stdin_open = false;
            }
            _ = resizes.recv(), if attachment.terminal => {
                let _ = tokio::time::timeout(SIGNAL_WAIT, input.resize(terminal::size())).await;
            }
            _ = interrupts.recv() => {
                if interrupted || tokio::time::timeout(SIGNAL_WAIT, input.signal(2)).await.is_err() {
                    return Ok(INTERRUPTED);
                }
                interrupted = true;
            }
            _ = terminations.recv() => return Ok(128 + 15),
            _ = hangups.recv() => return Ok(128 + 1),
        }
    }
}

async fn print(process: &mut Process) -> Result<Exit> {
    let mut stdout = tokio::io::stdout();
    let mut stderr = tokio::io::stderr();
    while let Some(event) = process.next().await? {
        match event {
            ProcessEvent::Started(_) => {}
            ProcessEvent::Stdout(data) => {
                stdout.write_all(&data).await.context("cannot write to stdout")?;
                stdout.flush().await.context("cannot write to stdout")?;
            }
            ProcessEvent::Stderr(data) => {
                stderr.write_all(&data).await.context("cannot write to stderr")?;
                stderr.flush().await.context("cannot write to stderr")?;
            }
            ProcessEvent::Exited(exit) => return Ok(exit),
        }
    }
    anyhow::bail!("the process ended without saying how")
}

/// Sends local stdin and then its end. What the process does not read is not read here either.
async fn send_stdin(input: &ProcessInput, wanted: bool) -> Result<()> {
    if wanted {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let count = stdin.read(&mut buffer).await.context("cannot read stdin")?;
            if count == 0 {
                break;
            }
            if !input.write(buffer[..count].to_vec()).await {
                return Ok(());
            }
        }
    }
    input.close_stdin().await;
    Ok(())
}

fn exit_code(exit: &Exit) -> i32 {
    if !exit.message.is_empty() {
        eprintln!("pinfold: {}", crate::escape::line(&exit.message));
    }
    match exit.outcome {
        _ if exit.timed_out => TIMED_OUT,
        Outcome::Code(code) => i32::from(code),
        Outcome::Signal(signal) => i32::try_from(signal).map_or(CALL_FAILED, |signal| 128 + signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        let exit = |outcome, timed_out| Exit { outcome, timed_out, message: String::new() };
        assert_eq!(exit_code(&exit(Outcome::Code(7), false)), 7);
        assert_eq!(exit_code(&exit(Outcome::Code(127), false)), 127);
        assert_eq!(exit_code(&exit(Outcome::Signal(9), false)), 137);
        assert_eq!(exit_code(&exit(Outcome::Signal(9), true)), 124);
        assert_eq!(exit_code(&exit(Outcome::Signal(u32::MAX), false)), 125);
    }
}
