//! Processes that outlive the command that started them.
//!
//! A pid alone may name another process by now, so a [`ProcessRef`] keeps the start time beside it. Signals go through
//! a pidfd that was opened first and compared afterwards: what is signalled is what was compared.

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::net::unix::pipe;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    pub pid: u32,
    /// clock ticks since boot, field 22 of /proc/PID/stat (proc_pid_stat(5))
    pub start_time: u64,
}

impl ProcessRef {
    /// The process with this pid now.
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, start_time: start_time(pid)? })
    }

    /// A descriptor of this very process; `None` when it has ended.
    fn open(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let descriptor = pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
        (start_time(self.pid) == Some(self.start_time)).then_some(descriptor)
    }

    /// It has not ended. One that waits to be reaped has.
    pub fn is_alive(&self) -> bool {
        self.open().is_some_and(|descriptor| !has_ended(&descriptor))
    }

    /// Sends SIGKILL and does not wait: for a way out that cannot.
    pub fn signal_end(&self) {
        self.signal(Signal::KILL);
    }

    /// Sends `signal`, if it is still there.
    fn signal(&self, signal: Signal) {
        if let Some(descriptor) = self.open() {
            // it may end in between, which is what was wanted
            let _ = pidfd_send_signal(&descriptor, signal);
        }
    }

    /// Waits for its end. `false` when it still runs after `limit`.
    pub async fn wait(&self, limit: Duration) -> Result<bool> {
        let Some(descriptor) = self.open() else { return Ok(true) };
        if !has_ended(&descriptor) {
            // a pidfd is readable when its process has ended (pidfd_open(2)); to the runtime it is like a pipe
            let watched = descriptor.try_clone().and_then(pipe::Receiver::from_owned_fd_unchecked);
            let watched = watched.context("cannot wait for a process")?;
            if tokio::time::timeout(limit, watched.readable()).await.is_err() {
                return Ok(false);
            }
        }
        reap(&descriptor);
        Ok(true)
    }

    /// SIGTERM, and SIGKILL after `grace`. An error when it survives that too.
    pub async fn end(&self, grace: Duration) -> Result<()> {
        self.signal(Signal::TERM);
        if self.wait(grace).await? {
            return Ok(());
        }
        self.kill().await
    }

    /// SIGKILL. An error when it has not ended 10 s later (it hangs in the kernel).
    pub async fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL);
        let ended = self.wait(Duration::from_secs(10)).await?;
        anyhow::ensure!(ended, "process {} did not end 10 s after SIGKILL", self.pid);
        Ok(())
    }
}

fn has_ended(descriptor: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(descriptor, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        match poll(&mut fds, Some(&at_once)) {
            Err(Errno::INTR) => {}
            result => return result.is_ok_and(|ready| ready > 0),
        }
    }
}

/// Takes the exit status if it is our own child. Another's child is reaped by its parent.
fn reap(descriptor: &OwnedFd) {
    let _ = waitid(WaitId::PidFd(descriptor.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the name, field 2, is in parentheses and may hold anything
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Starts `program` in a session of its own, without stdin, its output appended to `log`: it does not end with us.
pub fn spawn_detached(
    program: &Path,
    arguments: &[impl AsRef<OsStr>],
    directory: &Path,
    log: &Path,
) -> Result<ProcessRef> {
    anyhow::ensure!(program.is_file(), "{} does not exist", program.display());
    let log_file = File::options().create(true).append(true).open(log);
    let log_file = log_file.with_context(|| format!("cannot write {}", log.display()))?;
    let errors = log_file.try_clone().context("cannot share a log file")?;
    // setsid(1) becomes the program: the pid stays
    let child = Command::new("setsid")
        .arg(program)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(log_file)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("cannot start {} (by setsid)", program.display()))?;
    ProcessRef::of(child.id()).with_context(|| format!("{} ended at once", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(directory: &Path) -> ProcessRef {
        spawn_detached(Path::new("/bin/sleep"), &["60"], directory, &directory.join("log")).unwrap()
    }

    #[tokio::test]
    async fn a_process_is_ended_and_known_to_have_ended() {
        let directory = tempfile::tempdir().unwrap();
        let process = sleeper(directory.path());
        assert!(process.is_alive());
        assert!(!process.wait(Duration::from_millis(10)).await.unwrap());
        process.end(Duration::from_secs(5)).await.unwrap();
        assert!(!process.is_alive());
        // once more is no error
        process.end(Duration::from_secs(5)).await.unwrap();
    }

    #[tokio::test]
    async fn another_process_with_the_same_pid_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let process = sleeper(directory.path());
        let stale = ProcessRef { start_time: process.start_time - 1, ..process };
        assert!(!stale.is_alive());
        stale.kill().await.unwrap();
        assert!(process.is_alive());
        process.kill().await.unwrap();
    }

    #[test]
    fn a_missing_program_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let error = spawn_detached(Path::new("/no/such"), &["x"], directory.path(), &log).unwrap_err();
        assert_eq!(error.to_string(), "/no/such does not exist");
    }
}
