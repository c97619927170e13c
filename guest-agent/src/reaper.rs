//! The only caller of `waitpid`.
//!
//! PID 1 inherits every orphan of the guest, so it waits for any child; and it must not lose the status of a child that a
//! caller waits for. Both hold because one task reaps, under the lock under which children are made:
//!
//! ```text
//! spawn: lock, fork, note the pid, unlock          reap: lock, waitpid(any), take the note, unlock, hand over the status
//! ```
//!
//! A pid in the notes is not reaped, so it cannot have been given to another process: signals go through the notes.

use crate::tasks;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// 0 to 255
    Code(u32),
    /// 1 to 64
    Signal(u32),
}

type Notes = HashMap<libc::pid_t, oneshot::Sender<Ended>>;

#[derive(Clone)]
pub struct Reaper {
    notes: Arc<Mutex<Notes>>,
    /// children reaped so far
    reaped: watch::Sender<u64>,
}

/// Children reaped in one go; then other tasks have their turn, however fast the workload forks.
const REAPED_PER_TURN: usize = 64;

impl Reaper {
    /// Starts the task that reaps; it lives as long as the runtime.
    pub fn start() -> io::Result<Self> {
        let children = signal(SignalKind::child())?;
        let reaper = Self { notes: Arc::default(), reaped: watch::Sender::new(0) };
        tasks::spawn("reaper", reaper.clone().reap_for_ever(children));
        Ok(reaper)
    }

    /// Makes a child with `fork` and notes it. The receiver gets its end, exactly once.
    pub fn spawn<E>(
        &self,
        fork: impl FnOnce() -> Result<libc::pid_t, E>,
    ) -> Result<(libc::pid_t, oneshot::Receiver<Ended>), E> {
        let mut notes = self.notes();
        let pid = fork()?;
        let (sender, receiver) = oneshot::channel();
        notes.insert(pid, sender);
        Ok((pid, receiver))
    }

    /// Sends `number` to the process group that `leader` leads; nothing, when `leader` has ended.
    pub fn signal_group(&self, leader: libc::pid_t, number: i32) {
        let notes = self.notes();
        if notes.contains_key(&leader) {
            kill(-leader, number);
        }
    }

    /// The children that callers wait for.
    pub fn noted(&self) -> Vec<libc::pid_t> {
        self.notes().keys().copied().collect()
    }

    /// Changes each time that children were reaped.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.reaped.subscribe()
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reap_for_ever(self, mut children: Signal) {
        // one signal may stand for many children, so each round reaps all there are
        while children.recv().await.is_some() {
            while self.reap_some() {
                tokio::task::yield_now().await;
            }
        }
    }

    /// True when there may be more.
    fn reap_some(&self) -> bool {
        for count in 0..REAPED_PER_TURN {
            let mut notes = self.notes();
            let Some((pid, ended)) = wait_any() else {
                drop(notes);
                self.count(count);
                return false;
            };
            let note = notes.remove(&pid);
            drop(notes);
            if let Some(note) = note {
                // nobody waits any more when the caller has gone away
                let _ = note.send(ended);
            }
        }
        self.count(REAPED_PER_TURN);
        true
    }

    fn count(&self, reaped: usize) {
        if reaped > 0 {
            self.reaped.send_modify(|total| *total += reaped as u64);
        }
    }
}

/// One child that has ended, if there is one.
fn wait_any() -> Option<(libc::pid_t, Ended)> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the status; WNOHANG returns at once.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then(|| (pid, decode(status)))
}

// nix's decoding refuses real-time signals, which can end a process like any other
fn decode(status: i32) -> Ended {
    if libc::WIFSIGNALED(status) {
        Ended::Signal(libc::WTERMSIG(status).unsigned_abs())
    } else {
        Ended::Code(libc::WEXITSTATUS(status).unsigned_abs())
    }
}

/// `kill(2)`. What it can fail of, a process that ended meanwhile, is no fault.
pub fn kill(target: libc::pid_t, number: i32) {
    // SAFETY: kill takes two numbers and touches no memory of this process.
    unsafe { libc::kill(target, number) };
}
