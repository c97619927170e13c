//! One conversation: a caller and its process.

use super::input::{self, Input};
use super::output::{self, Sender, frame};
use super::plan::Plan;
use super::spawn::{End, Process, StartError, Streams};
use crate::agent::{Agent, limits};
use crate::reaper::Ended;
use crate::suspension::Era;
use pinfold_domain::{Cause, Reason};
use pinfold_proto::guest::v1::{
    ExecExited, ExecRequest, ExecStarted, exec_exited::Outcome, exec_response::Frame,
};
use pinfold_proto::reasons::status;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::Streaming;

/// Serves one stream from its first frame to its last. Ends early when the caller goes away, which ends the process; a
/// caller that is cut off because the machine was saved and restored has not gone away, and its process goes on.
pub async fn run(
    agent: Arc<Agent>,
    inbound: Streaming<ExecRequest>,
    to: Sender,
    trace_parent: Option<String>,
) {
    let era = agent.suspension.era();
    let last = tokio::select! {
        biased;
        () = gone_away(&agent, era, &to) => return,
        last = converse(&agent, era, inbound, &to, trace_parent) => last,
    };
    let last = match last {
        Ok(exited) => Ok(frame(Frame::Exited(exited))),
        Err(cause) => Err(status(&cause)),
    };
    // fails only when the caller has gone away, who then needs no answer
    drop(to.send(last).await);
}

/// Resolves when the caller has left on purpose.
async fn gone_away(agent: &Agent, era: Era, to: &Sender) {
    to.closed().await;
    if agent.suspension.was_cut(era) {
        std::future::pending().await
    }
}

async fn converse(
    agent: &Arc<Agent>,
    era: Era,
    mut inbound: Streaming<ExecRequest>,
    to: &Sender,
    trace_parent: Option<String>,
) -> Result<ExecExited, Cause> {
    let _slot = agent.exec_slot().await?;
    let start =
        tokio::time::timeout(limits::FIRST_FRAME, input::first(&mut inbound)).await.map_err(|_| {
            let seconds = limits::FIRST_FRAME.as_secs();
            Cause::new(
                Reason::DeadlineExceeded,
                format!("no start within {seconds} s of the stream's opening"),
            )
        })??;
    let plan =
        agent.workers.run(move || Plan::check(start, Path::new("/"), trace_parent.as_deref())).await??;
    // the machine may have been restored since: nobody is left who asked for this process
    if to.is_closed() {
        return Err(Cause::new(Reason::DeadlineExceeded, "the caller is gone before the process started"));
    }
    let (process, mut end, mut streams) = match Process::start(agent, &plan).await {
        Ok(started) => started,
        Err(StartError::Command { exit_code, message }) => {
            return Ok(ExecExited { outcome: Some(Outcome::ExitCode(exit_code)), timed_out: false, message });
        }
        Err(StartError::Fault(cause)) => return Err(cause),
    };
    let started = Frame::Started(ExecStarted { pid: process.pid.unsigned_abs() });
    drop(to.send(Ok(frame(started))).await);

    let input = match streams.stdin.take() {
        Some(stdin) => Input::Pipe(stdin),
        None => Input::Terminal { terminal: &streams.stdout, at_line_start: true },
    };
    let has_ended = watch::Sender::new(false);
    let life = async {
        let life = tokio::select! {
            end = wait(&process, &mut end, plan.time_limit) => Ok(end),
            cause = served(agent, era, input::serve(&mut inbound, input, &process)) => Err(cause),
        };
        has_ended.send_replace(true);
        life
    };
    let output = async {
        deliver_all(&streams, to, &has_ended).await;
        Ok(())
    };
    let ((ended, timed_out), ()) = tokio::try_join!(life, output)?;
    Ok(exited(ended, timed_out))
}

/// What ends the conversation. A caller that was cut off ends nothing; no input comes from it any more.
async fn served(agent: &Agent, era: Era, serve: impl Future<Output = Cause>) -> Cause {
    let cause = serve.await;
    if agent.suspension.was_cut(era) {
        return std::future::pending().await;
    }
    cause
}

/// Waits for the end of `process`, which at its time limit is asked to end and soon after made to, with its tree.
async fn wait(process: &Process, end: &mut End, time_limit: Option<Duration>) -> (Ended, bool) {
    let Some(time_limit) = time_limit else { return (process.ended(end).await, false) };
    if let Ok(ended) = tokio::time::timeout(time_limit, process.ended(end)).await {
        return (ended, false);
    }
    process.signal(libc::SIGTERM);
    let asked = tokio::time::timeout(limits::TIME_LIMIT_GRACE, process.ended(end)).await;
    process.kill_tree();
    match asked {
        Ok(ended) => (ended, true),
        Err(_) => (process.ended(end).await, true),
    }
}

async fn deliver_all(streams: &Streams, to: &Sender, ended: &watch::Sender<bool>) {
    let stdout = output::deliver(&streams.stdout, Frame::Stdout, to, ended.subscribe());
    match &streams.stderr {
        Some(stderr) => {
            let stderr = output::deliver(stderr, Frame::Stderr, to, ended.subscribe());
            tokio::join!(stdout, stderr);
        }
        None => stdout.await,
    }
}

fn exited(ended: Ended, timed_out: bool) -> ExecExited {
    let outcome = match ended {
        Ended::Code(code) => Outcome::ExitCode(code),
        Ended::Signal(number) => Outcome::Signal(number),
    };
    ExecExited { outcome: Some(outcome), timed_out, message: String::new() }
}
