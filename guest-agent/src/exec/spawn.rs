//! From a [`Plan`] to a running [`Process`].

use super::channel::Channel;
use super::child::{self, Orders, REPORT_BYTES, Step};
use super::plan::Plan;
use super::pty;
use crate::agent::{Agent, limits};
use crate::cgroup::Tree;
use crate::reaper::Ended;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Uid, pipe2};
use pinfold_domain::{Cause, Reason};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::oneshot;

/// A child that waits to be reaped, and all that it forked. Dropped before its end was seen, it is killed with its tree.
pub struct Process {
    pub pid: libc::pid_t,
    agent: Arc<Agent>,
    tree: Tree,
    has_ended: AtomicBool,
}

/// The end of a process, once.
pub struct End(oneshot::Receiver<Ended>);

/// The agent's ends of a process's standard streams. On a terminal, `stdout` is all of them.
pub struct Streams {
    pub stdin: Option<Channel>,
    pub stdout: Channel,
    pub stderr: Option<Channel>,
}

/// The process's ends.
struct Ends {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    on_terminal: bool,
}

pub enum StartError {
    /// the command cannot be run: an answer, with the exit code that a shell would give
    Command {
        exit_code: u32,
        message: String,
    },
    Fault(Cause),
}

impl StartError {
    fn io(act: &str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Fault(Cause::new(Reason::Internal, format!("cannot {act}: {error}")))
    }
}

impl Process {
    /// Starts `plan` in a tree of its own; returns when the program runs, or cannot.
    pub async fn start(agent: &Arc<Agent>, plan: &Plan) -> Result<(Self, End, Streams), StartError> {
        let (streams, ends) = open_streams(plan).map_err(StartError::io("open the standard streams"))?;
        let (report, child_report) = pipe().map_err(StartError::io("make a pipe"))?;
        let report = Channel::new(report).map_err(StartError::io("watch a pipe"))?;
        let tree = agent.workload.grow().map_err(StartError::io("make a cgroup"))?;
        let forked = tree
            .entrance()
            .and_then(|entrance| agent.reaper.spawn(|| fork(plan, &ends, entrance.as_ref(), &child_report)));
        let (pid, ended) = match forked {
            Ok(forked) => forked,
            Err(error) => {
                agent.workload.retire(&tree);
                return Err(StartError::io("make a process")(error));
            }
        };
        let process = Self { pid, agent: agent.clone(), tree, has_ended: AtomicBool::new(false) };
        drop((ends, child_report));
        process.started(plan, &report).await?;
        Ok((process, End(ended), streams))
    }

    /// The child's end of the report closes when it becomes the program.
    async fn started(&self, plan: &Plan, report: &Channel) -> Result<(), StartError> {
        let mut bytes = [0; REPORT_BYTES];
        let length = tokio::time::timeout(limits::START, report.read(&mut bytes))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))
            .flatten()
            .map_err(StartError::io("see the process start"))?;
        match Step::from_byte(bytes[0]) {
            Some(step) if length == REPORT_BYTES => {
                let errno = i32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
                Err(explain(plan, step, Errno::from_raw(errno)))
            }
            // killed before it became the program: its end says so
            _ => Ok(()),
        }
    }

    /// Waits for the end. Dropped while it waits, it can be called again.
    pub async fn ended(&self, end: &mut End) -> Ended {
        // the reaper lives as long as the runtime and keeps the sender until then
        let ended = (&mut end.0).await.unwrap_or(Ended::Signal(libc::SIGKILL.unsigned_abs()));
        self.has_ended.store(true, Ordering::Relaxed);
        self.agent.workload.retire(&self.tree);
        ended
    }

    /// To the process group that the process leads.
    pub fn signal(&self, number: i32) {
        self.agent.reaper.signal_group(self.pid, number);
    }

    /// SIGKILL to all that the process forked and to itself.
    pub fn kill_tree(&self) {
        self.tree.kill(&self.agent.reaper, self.pid);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.has_ended.load(Ordering::Relaxed) {
            self.kill_tree();
            self.agent.workload.retire(&self.tree);
        }
    }
}

fn open_streams(plan: &Plan) -> io::Result<(Streams, Ends)> {
    if let Some(size) = &plan.terminal {
        let (terminal, stdin) = pty::open(size, &plan.user)?;
        let (stdout, stderr) = (stdin.try_clone()?, stdin.try_clone()?);
        let streams = Streams { stdin: None, stdout: terminal, stderr: None };
        return Ok((streams, Ends { stdin, stdout, stderr, on_terminal: true }));
    }
    let (stdin, agent_stdin) = pipe()?;
    let (agent_stdout, stdout) = pipe()?;
    let (agent_stderr, stderr) = pipe()?;
    let streams = Streams {
        stdin: Some(Channel::new(agent_stdin)?),
        stdout: Channel::new(agent_stdout)?,
        stderr: Some(Channel::new(agent_stderr)?),
    };
    // the program may open its streams again by /dev/stdin and the like
    if Uid::effective().is_root() {
        for end in [&stdin, &stdout, &stderr] {
            nix::unistd::fchown(end, Some(Uid::from_raw(plan.user.uid)), None)?;
        }
    }
    Ok((streams, Ends { stdin, stdout, stderr, on_terminal: false }))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

/// Makes the child. Nothing is allocated after the fork, so all lists are made here.
fn fork(plan: &Plan, ends: &Ends, entrance: Option<&File>, report: &OwnedFd) -> io::Result<libc::pid_t> {
    let arguments = pointers(&plan.arguments);
    let mut script_arguments = vec![c"/bin/sh".as_ptr(), ptr::null()];
    script_arguments.extend_from_slice(&arguments[1..]);
    let orders = Orders {
        entrance: entrance.map_or(-1, AsRawFd::as_raw_fd),
        stdin: ends.stdin.as_raw_fd(),
        stdout: ends.stdout.as_raw_fd(),
        stderr: ends.stderr.as_raw_fd(),
        on_terminal: ends.on_terminal,
        report: report.as_raw_fd(),
        change_user: Uid::effective().is_root(),
        uid: plan.user.uid,
        gid: plan.user.gid,
        groups: &plan.user.groups,
        directory: &plan.directory,
        directory_is_default: plan.directory_is_default,
        candidates: &plan.candidates.iter().map(|path| path.as_ptr()).collect::<Vec<_>>(),
        arguments: &arguments,
        script_arguments: &mut script_arguments,
        environment: &pointers(&plan.environment),
    };
    // SAFETY: the child calls only async-signal-safe functions (`child::run`) until it execs or ends.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => child::run(orders),
        pid => Ok(pid),
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// What a shell would answer: 127 where there is no such command, 126 where it cannot be run.
fn explain(plan: &Plan, step: Step, errno: Errno) -> StartError {
    let Plan { program, directory, user, .. } = plan;
    let why = errno.desc().to_lowercase();
    let (exit_code, message) = match (step, errno) {
        (Step::Exec, Errno::ENOENT | Errno::ENOTDIR) => (127, format!("{program}: no such command")),
        (Step::Exec, _) => (126, format!("{program}: not executable: {why}")),
        (Step::Interpreter, _) => (126, format!("{program}: not executable: its interpreter does not exist")),
        (Step::Directory, _) => (126, format!("working directory {directory:?}: {why}")),
        (Step::Credentials, _) => (126, format!("cannot become user {:?}: {why}", user.name)),
        (Step::Setup, _) => {
            let message = format!("cannot prepare the process: {why}");
            return StartError::Fault(Cause::new(Reason::Internal, message));
        }
    };
    StartError::Command { exit_code, message }
}
