//! A guest user's rights over files, for one thread, for a while: setfsuid(2), setfsgid(2), credentials(7).
//!
//! Identity is an attribute of a thread in Linux. The C library hides that for setgroups, so it is called raw. With a
//! file-system user other than root, the kernel takes the thread's file capabilities away; with root it gives them back.

use crate::exec::users::User;
use nix::errno::Errno;
use nix::unistd::Uid;
use std::io;

/// Runs `act` with the rights of `user`. A process that is not root acts as itself.
pub fn with<T>(user: &User, act: impl FnOnce() -> T) -> io::Result<T> {
    if !Uid::effective().is_root() {
        return Ok(act());
    }
    let restore = Restore;
    set_groups(&user.groups)?;
    set_file_system_ids(user.uid, user.gid)?;
    let result = act();
    drop(restore);
    Ok(result)
}

struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        let restored = set_file_system_ids(0, 0).and_then(|()| set_groups(&[]));
        // the thread kept its capability to change identities, so this cannot fail; going on as another user would
        // mix up the rights of callers
        if restored.is_err() {
            std::process::abort();
        }
    }
}

fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of one slice; the raw call acts on this thread alone.
    let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    Errno::result(done).map(drop).map_err(io::Error::from)
}

/// The group first: as another user the thread could not change it. Back to root the order does not matter.
fn set_file_system_ids(uid: u32, gid: u32) -> io::Result<()> {
    set(libc::SYS_setfsgid, gid)?;
    set(libc::SYS_setfsuid, uid)
}

/// The calls return the old value and no error, so each is asked again with an id that is none.
fn set(call: libc::c_long, id: u32) -> io::Result<()> {
    // SAFETY: takes a number, acts on this thread alone.
    unsafe { libc::syscall(call, id) };
    // SAFETY: -1 is no valid id, so this changes nothing and returns the id in force.
    let now = unsafe { libc::syscall(call, u32::MAX) };
    if now == libc::c_long::from(id) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}
