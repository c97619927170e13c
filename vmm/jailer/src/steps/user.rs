//! Step 7: a user namespace in which one uid and one gid exist, and in which nobody can make another namespace.
//!
//! What it adds to dropped capabilities: an id that is not mapped cannot be taken on, not even by a process that found a
//! way to a capability, because such a capability counts in this namespace alone. And a process without any privilege
//! may otherwise make a user namespace of its own and be root in it, which is how most of the kernel's privileged code
//! is reached: here the number of namespaces of every kind is limited to none.
//!
//! The namespace is made by the child and mapped by the parent, which still has the privilege to.

use crate::jail::{Act, JailError};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, write};
use std::os::fd::OwnedFd;

/// `/proc/sys/user/<name>` of the namespace; a kernel that does not know one has no such namespaces to limit.
const COUNTED: [&str; 10] = [
    "max_user_namespaces",
    "max_mnt_namespaces",
    "max_net_namespaces",
    "max_pid_namespaces",
    "max_ipc_namespaces",
    "max_uts_namespaces",
    "max_cgroup_namespaces",
    "max_time_namespaces",
    "max_inotify_instances",
    "max_fanotify_groups",
];

/// The host's `/proc`, to be opened while there still is one.
pub fn open_proc() -> Result<OwnedFd, JailError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open("/proc", flags, Mode::empty()).act("open /proc")
}

/// False where the host lets nobody make one: then the VMM cannot either.
pub fn make() -> Result<bool, JailError> {
    match unshare(CloneFlags::CLONE_NEWUSER) {
        Ok(()) => Ok(true),
        // user.max_user_namespaces is 0; the kernel was built without them
        Err(Errno::ENOSPC | Errno::EINVAL) => Ok(false),
        Err(error) => Err(error).act("make a user namespace"),
    }
}

/// The parent's part: `uid` and `gid` of the host are the same in the namespace of `child`, and there are no others.
///
/// By the descriptor of `/proc`: both processes share one mount namespace, of which the child has changed the root.
pub fn map(proc: &OwnedFd, child: Pid, uid: u32, gid: u32) -> Result<(), JailError> {
    for (file, id) in [("uid_map", uid), ("gid_map", gid)] {
        let path = format!("{child}/{file}");
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let map =
            openat(proc, path.as_str(), flags, Mode::empty()).act("open the map of the user namespace")?;
        let line = format!("{id} {id} 1");
        write_whole(&map, line.as_bytes()).act("map the ids of the user namespace")?;
    }
    Ok(())
}

/// In the namespace, while its maker still has every capability in it.
pub fn forbid_more(proc: &OwnedFd) -> Result<(), JailError> {
    for name in COUNTED {
        let path = format!("sys/user/{name}");
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(proc, path.as_str(), flags, Mode::empty()) {
            Ok(limit) => write_whole(&limit, b"0").act("forbid more namespaces")?,
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error).act("open a limit of namespaces"),
        }
    }
    Ok(())
}

/// These files take one write.
fn write_whole(file: &OwnedFd, text: &[u8]) -> Result<(), Errno> {
    if write(file, text)? == text.len() { Ok(()) } else { Err(Errno::EIO) }
}
