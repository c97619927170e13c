//! What a sandbox takes from its host. Each is a trait with its Linux form beside it, so that a fault can be put in at
//! any of them in a test.
//!
//! | trait | Linux form | what it gives |
//! |---|---|---|
//! | [`Images`] | [`images::ImageDirectory`] | kernels and root images of this node |
//! | [`Disks`] | [`disk::Ext4Disks`] | a sandbox's own disk, empty or a copy |
//! | [`Cgroups`] | [`cgroup::CgroupTree`] | hard limits, and an end that nothing escapes |
//!
//! [`snapshots`] is where saved machines lie.
//!
//! Every act that takes something away is idempotent: it succeeds when the thing is not there.

pub mod capacity;
pub mod cgroup;
pub mod clone;
pub mod disk;
pub mod images;
pub mod paths;
pub mod snapshots;
pub mod uids;

use futures::future::BoxFuture;
use pinfold_domain::SandboxId;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
#[error("cannot {act}")]
pub struct HostError {
    pub act: String,
    #[source]
    pub source: io::Error,
}

impl HostError {
    pub fn new(act: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { act: act.into(), source: source.into() }
    }

    /// With its cause, on one line.
    pub fn sentence(&self) -> String {
        format!("{self}: {}", self.source)
    }
}

/// Names the act that failed.
pub trait Act<T> {
    fn act(self, act: impl FnOnce() -> String) -> Result<T, HostError>;
}

impl<T, E: Into<io::Error>> Act<T> for Result<T, E> {
    fn act(self, act: impl FnOnce() -> String) -> Result<T, HostError> {
        self.map_err(|source| HostError::new(act(), source))
    }
}

/// A kernel of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    pub name: String,
    pub file: PathBuf,
    pub initrd: Option<PathBuf>,
    pub cmdline: String,
    pub mmio_on_cmdline: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("this node has no {kind} {name:?}; it has {}", if .have.is_empty() { "none" } else { .have })]
    Unknown { kind: &'static str, name: String, have: String },
    #[error("the {kind} {name:?} cannot be used: {why}")]
    Unusable { kind: &'static str, name: String, why: String },
}

pub trait Images: Send + Sync {
    /// Names that [`Self::root_image`] would take.
    fn images(&self) -> BTreeSet<String>;
    /// Names that [`Self::kernel`] would take.
    fn kernels(&self) -> BTreeSet<String>;
    /// The read-only root file system, shared by all sandboxes.
    fn root_image(&self, name: &str) -> Result<PathBuf, ImageError>;
    /// `None`: the node's default.
    fn kernel(&self, name: Option<&str>) -> Result<Kernel, ImageError>;
}

pub trait Disks: Send + Sync {
    /// Makes an empty file system of `bytes` at `path`. Only what the guest writes takes room on the host.
    fn create<'a>(&'a self, path: &'a Path, bytes: u64) -> BoxFuture<'a, Result<(), HostError>>;
    /// Makes `to` a copy of `from`, which nobody writes meanwhile.
    fn copy<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, Result<clone::Cloned, HostError>>;
    /// Brings what was written to `path` to the host's disk.
    fn sync<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<(), HostError>>;
    fn remove(&self, path: &Path) -> Result<(), HostError>;
}

/// Runs what waits for the disk where no task waits for it.
pub async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    let done = tokio::task::spawn_blocking(act).await;
    done.unwrap_or_else(|error| Err(HostError::new("finish work on the disk", io::Error::other(error))))
}

/// Hard limits of one VMM process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupLimits {
    /// thousandths of a CPU
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    /// threads of the VMM; the guest's own processes are limited in the guest
    pub pids: u64,
    pub io: Option<IoLimit>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoLimit {
    /// a file on the device that is limited
    pub file: PathBuf,
    /// of reads, and the same of writes
    pub bytes_per_second: u64,
}

pub trait Cgroups: Send + Sync {
    /// Makes the group with all limits in force, or fails.
    fn create(&self, id: SandboxId, limits: &CgroupLimits) -> Result<(), HostError>;
    /// Where a process joins.
    fn path(&self, id: SandboxId) -> PathBuf;
    /// SIGKILL to everything in it, forks that are under way included.
    fn kill(&self, id: SandboxId) -> Result<(), HostError>;
    /// Waits, for a bounded time, until it is empty, and removes it.
    fn remove(&self, id: SandboxId) -> BoxFuture<'_, Result<(), HostError>>;
    /// How often the kernel ended something in it for want of memory; 0 when there is no such group.
    fn oom_kills(&self, id: SandboxId) -> u64;
    /// Sandboxes that have a group.
    fn list(&self) -> Result<BTreeSet<SandboxId>, HostError>;
}
