//! A process that is no child of the agent, or no longer: watched through a pidfd, told apart by its start time.

use super::ProcessRecord;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub struct Process {
    record: ProcessRecord,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Opens `pid` if it is in `cgroup`. `None`: it is gone, or the number belongs to another process now.
    pub fn open_new(pid: u32, cgroup: &std::path::Path) -> io::Result<Option<Self>> {
        let Some(pidfd) = open(pid)? else { return Ok(None) };
        // Looked at after the open: from then on the number cannot be given to another process unnoticed.
        match (start_ticks(pid), in_cgroup(pid, cgroup)) {
            (Some(start_ticks), true) => Ok(Some(Self::watch(ProcessRecord { pid, start_ticks }, pidfd)?)),
            _ => Ok(None),
        }
    }

    /// Opens the process of `record`. `None`: it is gone.
    pub fn open_known(record: ProcessRecord) -> io::Result<Option<Self>> {
        let Some(pidfd) = open(record.pid)? else { return Ok(None) };
        if start_ticks(record.pid) != Some(record.start_ticks) {
            return Ok(None);
        }
        Ok(Some(Self::watch(record, pidfd)?))
    }

    #[expect(
        deprecated,
        reason = "its replacement is unsafe for descriptors that may change; an OwnedFd does not"
    )]
    fn watch(record: ProcessRecord, pidfd: OwnedFd) -> io::Result<Self> {
        Ok(Self { record, pidfd: AsyncFd::with_interest(pidfd, Interest::READABLE)? })
    }

    pub fn record(&self) -> ProcessRecord {
        self.record
    }

    /// Whether its user namespace is another one than that of this process; `None` where the kernel does not say.
    pub fn has_user_namespace(&self) -> Option<bool> {
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/user")).ok();
        Some(namespace(&self.record.pid.to_string())? != namespace("self")?)
    }

    /// What its main thread has done so far: another value later says that it is at work.
    pub fn work(&self) -> Work {
        work(self.record.pid)
    }

    /// Resolves when the process is gone, with the signal that ended it if the agent is its reaper.
    pub async fn exited(&self) -> Option<i32> {
        // A pidfd becomes readable when its process ends and stays so; an error here means that it cannot be watched,
        // which the kernel does not do to an open pidfd.
        let _ready = self.pidfd.readable().await;
        self.reap()
    }

    /// The VMM's parent is gone, so it is the child of the agent (a subreaper) or of the machine's process 1. In the
    /// second case this finds nothing to wait for.
    fn reap(&self) -> Option<i32> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), options).ok()??;
        status.terminating_signal()
    }
}

fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Field 22 of `/proc/<pid>/stat` of a process that has not ended. The name (field 2) may hold anything, so fields are
/// counted from its closing parenthesis.
pub fn start_ticks(pid: u32) -> Option<u64> {
    let fields = fields_from_third(&format!("/proc/{pid}/stat"));
    // zombie, dead
    if matches!(fields.first()?.as_str(), "Z" | "X") {
        return None;
    }
    fields.get(22 - 3)?.parse().ok()
}

/// Of a `stat` file (proc(5)), from field 3 on; none when there is no such process.
fn fields_from_third(stat: &str) -> Vec<String> {
    let text = fs::read_to_string(stat).unwrap_or_default();
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_whitespace().map(str::to_owned).collect()
}

/// Of the main thread of a process, which serves the control socket of a VMM and writes what is saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// in user and kernel mode
    cpu_ticks: u64,
    /// by system calls that have ended, and into pages on their way to a disk; 0 where the kernel does not say
    written_bytes: u64,
}

/// Fields 14 and 15 of `stat`, `wchar` and `write_bytes` of `io` (proc(5)). Under a low I/O limit one write lasts minutes.
fn work(pid: u32) -> Work {
    let thread = format!("/proc/{pid}/task/{pid}");
    let fields = fields_from_third(&format!("{thread}/stat"));
    let ticks =
        |number: usize| fields.get(number - 3).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or(0);
    let io = fs::read_to_string(format!("{thread}/io")).unwrap_or_default();
    let written =
        |name: &str| io.lines().find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok()).unwrap_or(0);
    Work {
        cpu_ticks: ticks(14).saturating_add(ticks(15)),
        written_bytes: written("wchar: ").saturating_add(written("write_bytes: ")),
    }
}

/// Whether `/proc/<pid>/cgroup` names a v2 group that ends like `cgroup`.
fn in_cgroup(pid: u32, cgroup: &std::path::Path) -> bool {
    let Some(name) = cgroup.file_name().and_then(|name| name.to_str()) else { return false };
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("0::"));
    line.is_some_and(|path| path.rsplit('/').next() == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;
    use std::time::Duration;
    use tokio::process::Command;

    #[tokio::test]
    async fn a_process_is_watched_to_its_end() {
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id().unwrap();
        let record = ProcessRecord { pid, start_ticks: start_ticks(pid).unwrap() };
        let process = Process::open_known(record).unwrap().expect("it lives");
        assert_eq!(process.has_user_namespace(), Some(false));
        let early = tokio::time::timeout(Duration::from_millis(30), process.pidfd.readable()).await;
        assert!(early.is_err(), "it has not ended yet");
        child.start_kill().unwrap();
        tokio::time::timeout(Duration::from_secs(10), process.pidfd.readable())
            .await
            .unwrap()
            .unwrap()
            .retain_ready();
        child.wait().await.unwrap();
        assert!(Process::open_known(record).unwrap().is_none());
        tokio::time::timeout(Duration::from_secs(10), process.exited()).await.unwrap();
        assert_eq!(process.has_user_namespace(), None);
    }

    #[tokio::test]
    async fn a_process_at_work_is_told_from_one_that_waits() {
        let start = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
            let child = command.spawn().unwrap();
            let pid = child.id().unwrap();
            (child, pid)
        };
        let (_busy, busy) = start("while :; do :; done");
        let (_waiting, waiting) = start("kill -STOP $$");
        let before = work(busy);
        let changed = async {
            while work(busy) == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), changed).await.expect("it works");
        let stopped = async {
            while !fs::read_to_string(format!("/proc/{waiting}/stat")).unwrap().contains(") T ") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), stopped).await.expect("it stops");
        let before = work(waiting);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(work(waiting), before);
        assert_eq!(work(0), Work::default(), "no such process");
        let (_writer, writer) = start("while :; do echo 1234567; done");
        let written = async {
            while work(writer).written_bytes < 10_000 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), written).await.expect("what it writes is seen");
    }

    #[tokio::test]
    async fn another_start_time_is_another_process() {
        let pid = std::process::id();
        let record = ProcessRecord { pid, start_ticks: start_ticks(pid).unwrap() + 1 };
        assert!(Process::open_known(record).unwrap().is_none());
        assert!(Process::open_new(pid, std::path::Path::new("/no/such/group")).unwrap().is_none());
        assert!(Process::open_known(ProcessRecord { pid: 0, start_ticks: 0 }).unwrap().is_none());
    }
}
