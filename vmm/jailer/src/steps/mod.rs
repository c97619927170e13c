//! One file per kind of step of [`crate::jail`].

pub mod cgroup;
pub mod fds;
pub mod identity;
pub mod process;
pub mod root;
pub mod user;

use crate::jail::{Act, JailError};
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use std::os::fd::OwnedFd;

/// Opens a directory of which no component is a symbolic link.
fn open_directory(path: &str, flags: OFlag, act: &'static str) -> Result<OwnedFd, JailError> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(AT_FDCWD, path, how).act(act)
}
