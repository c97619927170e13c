//! What the calls share: the reaper, the workload's cgroup, the file workers, and the bounds.

use crate::cgroup::Workload;
use crate::files::Workers;
use crate::reaper::Reaper;
use crate::suspension::Suspension;
use pinfold_domain::{Cause, Reason};
use std::fs::File;
use std::io;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Every bound of the agent that is not a bound of the wire (those are in `pinfold_proto::limits`).
pub mod limits {
    use std::time::Duration;

    /// connections of the host at a time; one more is closed at once
    pub const CONNECTIONS: usize = 160;
    /// streams of one connection at a time
    pub const STREAMS: u32 = 128;
    /// bytes that one stream may send before the agent has read them
    pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
    /// As many as all streams together, so that streams whose processes do not read cannot use up what the others need.
    pub const CONNECTION_WINDOW_BYTES: u32 = STREAMS * STREAM_WINDOW_BYTES;
    /// largest message that the agent takes: a start with its command and environment
    pub const MESSAGE_BYTES: usize = 512 * 1024;
    /// processes that callers started, at a time, for each GiB of memory
    pub const EXECS_PER_GIB: u64 = 64;
    /// lowest and highest number of processes that callers started
    pub const EXECS: (u64, u64) = (8, 64);
    /// files that are being read or written at a time
    pub const FILES: usize = 32;
    /// threads that do file work; made before the first call
    pub const FILE_WORKERS: usize = 4;
    /// pieces of file work that wait for a thread
    pub const FILE_JOBS: usize = 64;
    /// from the opening of a stream to its first frame
    pub const FIRST_FRAME: Duration = Duration::from_secs(30);
    /// from fork to exec of a process
    pub const START: Duration = Duration::from_secs(60);
    /// from the order to stand still to a workload that does
    pub const FREEZE: Duration = Duration::from_secs(10);
    /// for the workload's files to reach the disk
    pub const SYNC: Duration = Duration::from_secs(120);
    /// how long a call waits for a suspended guest to be woken
    pub const WAKE: Duration = Duration::from_secs(30);
    /// bytes of randomness in a Wake: as much as a ChaCha20 key at least, two blocks of BLAKE2s' input and more at most
    pub const ENTROPY_BYTES: (usize, usize) = (32, 512);
    /// bytes of a generation
    pub const GENERATION_BYTES: usize = 64;
    /// between SIGTERM and SIGKILL for a process that ran into its time limit
    pub const TIME_LIMIT_GRACE: Duration = Duration::from_secs(2);
    /// Silence on a pipe after which the output of an ended process counts as complete, when another process still
    /// holds the pipe.
    pub const OUTPUT_SILENCE: Duration = Duration::from_millis(200);
    /// from SIGKILL to the end of the last process, at shutdown
    pub const KILL: Duration = Duration::from_secs(5);
    /// between SIGTERM and SIGKILL when the power button is pressed
    pub const POWER_BUTTON_GRACE: Duration = Duration::from_secs(5);
    /// longest grace that a shutdown may ask for
    pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(300);
    /// for the streams that are open at a shutdown to end
    pub const FAREWELL: Duration = Duration::from_millis(500);
    /// for what was written to leave the machine before it ends
    pub const LINGER: Duration = Duration::from_millis(100);
}

/// Whether this process is the guest's init, or only serves the same calls on a machine that is not its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// PID 1: the machine's clock, hostname and power are the agent's
    Init,
    /// an ordinary process: it serves, and leaves the machine as it is
    Plain,
}

pub struct Agent {
    pub role: Role,
    pub reaper: Reaper,
    pub workload: Workload,
    pub workers: Workers,
    execs: Arc<Semaphore>,
    execs_max: usize,
    files: Arc<Semaphore>,
    phase: watch::Sender<Phase>,
    pub(crate) suspension: Suspension,
    /// what is bound over `/etc/machine-id`, where this is the machine's init
    pub(crate) machine_id: Option<File>,
}

/// Running -> Stopping -> Off, never back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Running,
    /// no new calls; the workload is being ended
    Stopping,
    /// the workload has ended and the disk is synced
    Off,
}

impl Agent {
    /// Must run inside a tokio runtime with signals enabled. `memory_bytes` is the guest's.
    pub fn new(
        role: Role,
        workload: Workload,
        memory_bytes: u64,
        machine_id: Option<File>,
    ) -> io::Result<Arc<Self>> {
        let execs_max = execs_for(memory_bytes);
        Ok(Arc::new(Self {
            role,
            reaper: Reaper::start()?,
            workload,
            workers: Workers::start()?,
            execs: Arc::new(Semaphore::new(execs_max)),
            execs_max,
            files: Arc::new(Semaphore::new(limits::FILES)),
            phase: watch::Sender::new(Phase::Running),
            suspension: Suspension::default(),
            machine_id,
        }))
    }

    /// Room for one more process of a caller. Waits while the guest is suspended.
    pub async fn exec_slot(&self) -> Result<OwnedSemaphorePermit, Cause> {
        self.suspension.awake().await?;
        self.refuse_when_stopping()?;
        self.execs.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{} processes are being served, the limit of this sandbox", self.execs_max);
            Cause::new(Reason::TooManyStreams, message)
        })
    }

    /// Room for one more file stream. Waits while the guest is suspended.
    pub async fn file_slot(&self) -> Result<OwnedSemaphorePermit, Cause> {
        self.suspension.awake().await?;
        self.refuse_when_stopping()?;
        self.files.clone().try_acquire_owned().map_err(|_| {
            let message =
                format!("{} files are being read or written, the limit of a sandbox", limits::FILES);
            Cause::new(Reason::TooManyStreams, message)
        })
    }

    pub(crate) fn refuse_when_stopping(&self) -> Result<(), Cause> {
        if *self.phase.borrow() == Phase::Running {
            return Ok(());
        }
        Err(Cause::new(Reason::SandboxEnded, "the sandbox is stopping"))
    }

    pub fn enter(&self, phase: Phase) {
        self.phase.send_modify(|now| *now = (*now).max(phase));
    }

    pub async fn reached(&self, phase: Phase) {
        // the sender lives as long as `self`, so this ends only when the phase is reached
        drop(self.phase.subscribe().wait_for(|now| *now >= phase).await);
    }
}

fn execs_for(memory_bytes: u64) -> usize {
    let (low, high) = limits::EXECS;
    // a stalled stream holds up to about 1 MiB of buffers: this keeps all of them under a tenth of the memory
    let by_memory = memory_bytes.saturating_mul(limits::EXECS_PER_GIB) >> 30;
    by_memory.clamp(low, high) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_guest_serves_fewer_processes() {
        assert_eq!(execs_for(96 << 20), 8);
        assert_eq!(execs_for(512 << 20), 32);
        assert_eq!(execs_for(1 << 40), 64);
    }

    #[test]
    fn stalled_streams_cannot_use_up_the_connection() {
        let all_streams = u64::from(limits::STREAMS) * u64::from(limits::STREAM_WINDOW_BYTES);
        assert!(u64::from(limits::CONNECTION_WINDOW_BYTES) >= all_streams);
        assert!(limits::STREAMS as u64 > limits::EXECS.1 + limits::FILES as u64);
    }
}
