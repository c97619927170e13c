//! Step 1: into the cgroup whose limits the node agent has already written.

use super::open_directory;
use crate::jail::{Act, JailError};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use nix::unistd::write;

/// Moves this process (one thread) into the cgroup v2 directory `path`.
pub fn join(path: &str) -> Result<(), JailError> {
    let directory = open_directory(path, OFlag::O_RDONLY, "open the cgroup directory")?;
    let kind = fstatfs(&directory).act("look at the cgroup's file system")?.filesystem_type();
    if kind != CGROUP2_SUPER_MAGIC {
        // Writing "cgroup.procs" into an ordinary directory would confine nothing.
        return Err(JailError::Config(format!("cgroup {path:?} is not on a cgroup v2 file system")));
    }
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let procs = openat(&directory, "cgroup.procs", flags, Mode::empty()).act("open cgroup.procs")?;
    // "0" means the writer itself
    match write(&procs, b"0").act("join the cgroup")? {
        1 => Ok(()),
        _ => Err(Errno::EIO).act("join the cgroup"),
    }
}
