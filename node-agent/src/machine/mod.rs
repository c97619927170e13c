//! The VMM process as the agent sees it: started through the jailer, known by a pidfd, asked over its control socket.
//!
//! A [`Machine`] outlives the agent. The next agent attaches to it by its [`ProcessRecord`].

pub mod confinement;
pub mod control;
pub mod ending;
pub mod events;
pub mod launch;
pub mod linux;
pub mod process;

use crate::host::paths::SandboxPaths;
use crate::host::snapshots::SnapshotKey;
use crate::host::{HostError, Kernel};
use futures::future::BoxFuture;
use pinfold_domain::SandboxId;
use pinfold_vmm_api::control::{ExitRecord, SnapshotTaken, Status};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

/// Names one process over restarts of the agent: a pid alone may be another process by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessRecord {
    /// in the agent's pid namespace
    pub pid: u32,
    /// clock ticks since boot (field 22 of /proc/pid/stat)
    pub start_ticks: u64,
}

/// All that a VMM is started with.
#[derive(Debug, Clone)]
pub struct LaunchPlan {
    pub id: SandboxId,
    pub paths: SandboxPaths,
    pub cgroup: PathBuf,
    pub uid: u32,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub start: Start,
    pub root_image: PathBuf,
    /// RLIMIT_FSIZE
    pub file_size_bytes: u64,
}

/// Where the machine's first instruction comes from.
#[derive(Debug, Clone)]
pub enum Start {
    Boot(Kernel),
    Restore(Restore),
}

impl Start {
    pub fn made(&self) -> Made {
        match self {
            // the guest's free pages go back to the host, if its kernel drives the balloon
            Self::Boot(kernel) => Made { mmio_on_cmdline: kernel.mmio_on_cmdline, balloon: true },
            Self::Restore(restore) => restore.made,
        }
    }
}

/// What a machine is made of that is not in its spec: one that is restored has to be made as it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// its kernel found its devices on the command line
    pub mmio_on_cmdline: bool,
    pub balloon: bool,
}

/// Files of a saved machine. None of them is written.
#[derive(Debug, Clone)]
pub struct Restore {
    pub state: PathBuf,
    pub memory: PathBuf,
    /// pages to have in place before the guest goes on
    pub working_set: Option<PathBuf>,
    pub key: SnapshotKey,
    pub made: Made,
    /// the guest does not run before [`Machine::resume`]
    pub paused: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("the jailer says: {0}")]
    Jail(String),
    /// the jail held, but the VMM ended before it could be watched
    #[error("the VMM ended at once")]
    Ended(Exit),
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("the VMM's control socket cannot be used: {0}")]
    Io(#[from] std::io::Error),
    #[error("the VMM did not answer its control socket within {0} ms")]
    Timeout(u128),
    #[error("the VMM answered what is no answer: {0}")]
    Protocol(String),
}

/// How a VMM ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    /// what it wrote before it ended; nothing when it was killed
    pub record: Option<ExitRecord>,
    /// the signal that ended it, where the agent is the one that is told
    pub signal: Option<i32>,
}

pub trait Machines: Send + Sync {
    /// Returns when the VMM runs in its jail. Cancel-safe: what a cancelled launch leaves behind is in the sandbox's
    /// cgroup and directory.
    fn launch(&self, plan: LaunchPlan) -> BoxFuture<'_, Result<Arc<dyn Machine>, LaunchError>>;
    /// The machine of an earlier agent; `None` when it is gone.
    fn attach(
        &self,
        id: SandboxId,
        paths: &SandboxPaths,
        process: ProcessRecord,
    ) -> Result<Option<Arc<dyn Machine>>, HostError>;
    /// How a machine that is gone had ended.
    fn ended(&self, paths: &SandboxPaths) -> Exit;
}

pub trait Machine: Send + Sync {
    fn process(&self) -> ProcessRecord;
    /// Whether it is in a user namespace of its own; `None` where that cannot be told.
    fn has_user_namespace(&self) -> Option<bool>;
    fn status(&self) -> BoxFuture<'_, Result<Status, ControlError>>;
    /// Returns when no virtual CPU runs and no device touches guest memory. A paused machine stays so.
    fn pause(&self) -> BoxFuture<'_, Result<(), ControlError>>;
    fn resume(&self) -> BoxFuture<'_, Result<(), ControlError>>;
    /// Saves a paused machine into two empty files.
    fn save<'a>(
        &'a self,
        state: &'a File,
        memory: &'a File,
        key: &'a SnapshotKey,
    ) -> BoxFuture<'a, Result<SnapshotTaken, ControlError>>;
    /// Writes which guest pages are in use.
    fn working_set<'a>(&'a self, file: &'a File) -> BoxFuture<'a, Result<(), ControlError>>;
    /// Asks the VMM to end at once; it may be gone already.
    fn kill(&self) -> BoxFuture<'_, Result<(), ControlError>>;
    /// Resolves when the process is gone; at once when it is gone already.
    fn exited(&self) -> BoxFuture<'_, Exit>;
}
