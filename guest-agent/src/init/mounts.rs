//! The kernel's own file systems: before the root is there, moved into it, and what it needs beside them.

use crate::console::{self, Fatal};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::syncfs;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

const QUIET: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// `/dev`, `/proc` and `/sys` of the initramfs.
pub fn kernel_file_systems() -> Result<(), Fatal> {
    let safe = QUIET.union(MsFlags::MS_NOEXEC);
    mount_new("devtmpfs", "/dev", MsFlags::MS_NOSUID, Some("mode=0755"))?;
    mount_new("proc", "/proc", safe, None)?;
    mount_new("sysfs", "/sys", safe, None)
}

/// Moves them to the same places below `root`.
pub fn move_into(root: &str) -> Result<(), Fatal> {
    for path in ["/dev", "/proc", "/sys"] {
        let target = format!("{root}{path}");
        make_directory(&target)?;
        mount(Some(path), target.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(|errno| Fatal::Internal(format!("cannot move {path}: {}", errno.desc())))?;
    }
    Ok(())
}

/// What programs expect of a root. `/tmp` is on the sandbox's disk, under its limit.
pub fn in_the_root() -> Result<(), Fatal> {
    nix::sys::stat::umask(Mode::S_IWGRP | Mode::S_IWOTH);
    mount_new("tmpfs", "/run", QUIET, Some("mode=0755,size=25%"))?;
    let terminals = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
    mount_new("devpts", "/dev/pts", terminals, Some("mode=0620,ptmxmode=0666,gid=5"))?;
    mount_new("tmpfs", "/dev/shm", QUIET, Some("mode=1777"))?;
    make_directory("/tmp")?;
    // what fails here is missed by programs that need it, and by no other
    drop(fs::set_permissions("/tmp", Permissions::from_mode(0o1777)));
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        drop(symlink(target, Path::new("/dev").join(name)));
    }
    Ok(())
}

/// A file in memory over `/etc/machine-id`, so that a machine gets its id without a write to its disk, and each of those that
/// come of one snapshot its own. `None`, and said so on the console, where that cannot be had.
pub fn machine_id() -> Option<File> {
    const MEMORY: &str = "/run/machine-id";
    const PLACE: &str = "/etc/machine-id";
    let made = || -> io::Result<File> {
        let file =
            File::options().write(true).create_new(true).custom_flags(libc::O_NOFOLLOW).open(MEMORY)?;
        file.set_permissions(Permissions::from_mode(0o444))?;
        if !Path::new(PLACE).exists() {
            File::create_new(PLACE)?;
        }
        mount(Some(MEMORY), PLACE, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(file)
    };
    made().inspect_err(|error| console::say(format_args!("cannot prepare the machine id: {error}"))).ok()
}

/// `cgroup2` where all programs look for it.
pub fn cgroups(path: &str) -> Result<(), Fatal> {
    mount_new("cgroup2", path, QUIET.union(MsFlags::MS_NOEXEC), None)
}

/// Brings all to the disk and closes it to writes. What fails here costs a journal replay at most.
pub fn seal(disk: &OwnedFd) {
    if let Err(errno) = syncfs(disk) {
        console::say(format_args!("cannot sync the disk: {errno}"));
    }
    // no path leads to the mount since the root was changed, but the descriptor does
    let path = format!("/proc/self/fd/{}", disk.as_raw_fd());
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    let _ = mount(None::<&str>, path.as_str(), None::<&str>, flags, None::<&str>);
}

fn mount_new(kind: &str, path: &str, flags: MsFlags, options: Option<&str>) -> Result<(), Fatal> {
    make_directory(path)?;
    mount(Some(kind), path, Some(kind), flags, options)
        .map_err(|errno| Fatal::Internal(format!("cannot mount {kind} on {path}: {}", errno.desc())))
}

fn make_directory(path: &str) -> Result<(), Fatal> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|error| Fatal::Internal(format!("cannot make {path}: {error}")))
}
