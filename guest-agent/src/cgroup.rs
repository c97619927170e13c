//! The workload's cgroup (v2), and one child of it for each process that a caller started.
//!
//! ```text
//! /agent                 this process: protected memory, first in line for the CPU
//! /workload              pids.max and memory.max of all that the sandbox runs
//!     /exec-1            one process of a caller and all that it forks, however it detaches
//!     /exec-2
//! ```
//!
//! A child's own pids.max is a little below the workload's, so that a fork bomb leaves room for the process that looks
//! for it. A workload that is root in its guest can undo all this, and harms its own guest only. Where there is no cgroup v2, a process tree is its process group: what leaves the group escapes the kill.

use crate::reaper::{self, Reaper};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Depth to which cgroups that the workload made in its own are searched.
const DEPTH: usize = 16;
/// Most bytes of a cgroup file that are read: pids of 65,536 processes, and more.
const FILE_BYTES: u64 = 1 << 20;

/// All that the sandbox runs.
pub struct Workload {
    root: Option<PathBuf>,
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// cgroups of ended processes that still had background children; each holds a live process, so pids.max bounds them
    left_over: Vec<PathBuf>,
    exec_pids_max: Option<u64>,
}

/// The processes that one process of a caller forked, and itself.
pub enum Tree {
    Cgroup(PathBuf),
    ProcessGroup,
}

impl Workload {
    /// `root` is an empty cgroup v2 directory that is the workload's.
    pub fn in_cgroup(root: PathBuf) -> Self {
        Self { root: Some(root), next: AtomicU64::new(1), state: Mutex::default() }
    }

    /// Without cgroup v2.
    pub fn in_process_groups() -> Self {
        Self { root: None, next: AtomicU64::new(1), state: Mutex::default() }
    }

    /// Bounds the processes and threads of the workload.
    pub fn set_pids_max(&self, pids_max: u64) -> io::Result<()> {
        let Some(root) = &self.root else { return Ok(()) };
        write(&root.join("pids.max"), pids_max)?;
        self.state().exec_pids_max = Some(pids_of_one(pids_max));
        Ok(())
    }

    /// A place for a new process and all that it will fork.
    pub fn grow(&self) -> io::Result<Tree> {
        let Some(root) = &self.root else { return Ok(Tree::ProcessGroup) };
        self.sweep();
        let path = root.join(format!("exec-{}", self.next.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path)?;
        if let Some(pids_max) = self.state().exec_pids_max {
            write(&path.join("pids.max"), pids_max)?;
        }
        Ok(Tree::Cgroup(path))
    }

    /// The process of `tree` has ended. Background children live on in their cgroup; it is removed when they are gone.
    pub fn retire(&self, tree: &Tree) {
        if let Tree::Cgroup(path) = tree
            && fs::remove_dir(path).is_err()
        {
            self.state().left_over.push(path.clone());
        }
    }

    /// Removes the cgroups whose last process has ended.
    pub fn sweep(&self) {
        self.state().left_over.retain(|path| match fs::remove_dir(path) {
            Ok(()) => false,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        });
    }

    /// Makes every process stand still, those of cgroups below included; returns when they do. A process that waits in
    /// the kernel for something uninterruptible may not come to it: then this is a time-out. Blocks.
    pub fn freeze(&self, limit: Duration) -> io::Result<()> {
        write(&self.freezable()?.join("cgroup.freeze"), 1)?;
        self.wait_for("frozen 1", limit)
    }

    /// Lets them go on. They do at once.
    pub fn thaw(&self) -> io::Result<()> {
        write(&self.freezable()?.join("cgroup.freeze"), 0)
    }

    fn freezable(&self) -> io::Result<&Path> {
        let none = || io::Error::new(io::ErrorKind::Unsupported, "there is no cgroup v2 to freeze");
        self.root.as_deref().ok_or_else(none)
    }

    /// Waits until `cgroup.events` of the workload has `line`. The kernel tells of each change by POLLPRI (Linux,
    /// Control Group v2, "populated notification").
    fn wait_for(&self, line: &str, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        let mut events = File::open(self.freezable()?.join("cgroup.events"))?;
        loop {
            let mut text = String::new();
            events.rewind()?;
            (&events).take(FILE_BYTES).read_to_string(&mut text)?;
            if text.lines().any(|found| found == line) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends SIGTERM to every process.
    pub fn terminate(&self, reaper: &Reaper) {
        match &self.root {
            Some(root) => terminate_in(root, DEPTH),
            None => reaper.noted().into_iter().for_each(|pid| reaper.signal_group(pid, libc::SIGTERM)),
        }
    }

    /// Sends SIGKILL to every process.
    pub fn kill(&self, reaper: &Reaper) -> io::Result<()> {
        match &self.root {
            Some(root) => write(&root.join("cgroup.kill"), 1),
            None => {
                reaper.noted().into_iter().for_each(|pid| reaper.signal_group(pid, libc::SIGKILL));
                Ok(())
            }
        }
    }

    /// Whether no process is left.
    pub fn is_empty(&self, reaper: &Reaper) -> bool {
        match &self.root {
            Some(root) => {
                read(&root.join("cgroup.events")).is_ok_and(|events| events.contains("populated 0"))
            }
            None => reaper.noted().is_empty(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tree {
    /// The file into which a process writes `0` to join; none where there is no cgroup.
    pub fn entrance(&self) -> io::Result<Option<File>> {
        match self {
            Self::Cgroup(path) => OpenOptions::new().write(true).open(path.join("cgroup.procs")).map(Some),
            Self::ProcessGroup => Ok(None),
        }
    }

    /// Ends every process of the tree that `leader` began.
    pub fn kill(&self, reaper: &Reaper, leader: libc::pid_t) {
        if let Self::Cgroup(path) = self
            && write(&path.join("cgroup.kill"), 1).is_ok()
        {
            return;
        }
        reaper.signal_group(leader, libc::SIGKILL);
    }
}

/// What one process tree may use of the workload's `pids_max`: an eighth, at most 32, is left for others.
fn pids_of_one(pids_max: u64) -> u64 {
    pids_max.saturating_sub((pids_max / 8).clamp(1, 32)).max(1)
}

fn terminate_in(directory: &Path, depth: usize) {
    let pids = read(&directory.join("cgroup.procs")).unwrap_or_default();
    // 0 is a process of another pid namespace: kill(0) would be this process's own group
    let pids = pids.lines().filter_map(|line| line.parse::<libc::pid_t>().ok()).filter(|&pid| pid > 1);
    pids.for_each(|pid| reaper::kill(pid, libc::SIGTERM));
    let Some(depth) = depth.checked_sub(1) else { return };
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        terminate_in(&entry.path(), depth);
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a value into a control file, which must be there.
pub fn write(path: &Path, value: impl ToString) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tree_leaves_room_for_another() {
        for pids_max in [2, 16, 512, 65_536] {
            let one = pids_of_one(pids_max);
            assert!(one >= 1 && one < pids_max && pids_max - one <= 32, "{pids_max}: {one}");
        }
        assert_eq!(pids_of_one(1), 1);
    }

    #[test]
    fn a_workload_that_does_not_stand_still_is_waited_for_so_long() {
        let directory = tempfile::tempdir().unwrap();
        let workload = Workload::in_cgroup(directory.path().to_owned());
        for file in ["cgroup.freeze", "cgroup.events"] {
            fs::write(directory.path().join(file), "populated 1\nfrozen 0\n").unwrap();
        }
        let error = workload.freeze(Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        fs::write(directory.path().join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        workload.freeze(Duration::from_millis(20)).unwrap();
        let error = Workload::in_process_groups().freeze(Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }
}
