//! Step 4: the jail directory becomes the root, read-only, and the host's file systems go away.

use super::open_directory;
use crate::jail::{Act, JailError};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{fchdir, pivot_root};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

// linux/mount.h
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_NOEXEC: u64 = 0x8;

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Makes the directory at host path `path` the root and the working directory of this process.
///
/// It is opened here, not earlier: a mount can be cloned only by a descriptor of the namespace that the caller is in.
pub fn enter(path: &str) -> Result<(), JailError> {
    // Before anything is mounted: no mount of ours may travel back to the host.
    let everything = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, everything, None::<&str>).act("make the mounts private")?;
    let directory = open_directory(path, OFlag::O_PATH, "open the jail's root")?;
    let tree = clone_tree(&directory).act("clone the jail's root as a mount")?;
    restrict(&tree).act("make the jail's root read-only")?;
    attach(&tree, &directory).act("mount the jail's root")?;
    fchdir(&tree).act("enter the jail's root")?;
    // pivot_root(".", ".") stacks the old root on the new one; detaching "." then takes the old one away.
    pivot_root(".", ".").act("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).act("detach the host's root")?;
    nix::unistd::chdir("/").act("enter the new root")
}

/// A detached mount of `directory` alone, without what is mounted beneath it.
fn clone_tree(directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.unsigned_abs() | libc::AT_EMPTY_PATH.unsigned_abs();
    // SAFETY: open_tree(2) reads a descriptor, a NUL-terminated path that lives for the call, and flags.
    let result = unsafe { libc::syscall(libc::SYS_open_tree, directory.as_raw_fd(), c"".as_ptr(), flags) };
    let number = i32::try_from(Errno::result(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just returned this new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Connecting to a socket in it needs no write access to the mount, so nothing at all may be written.
fn restrict(tree: &OwnedFd) -> Result<(), Errno> {
    let attributes = MountAttributes {
        set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
        clear: 0,
        propagation: 0,
        user_namespace: 0,
    };
    // SAFETY: mount_setattr(2) reads a descriptor, a NUL-terminated path, flags, and a struct of the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    Errno::result(result).map(drop)
}

fn attach(tree: &OwnedFd, onto: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: move_mount(2) reads two descriptors, two NUL-terminated paths and flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            onto.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    Errno::result(result).map(drop)
}
