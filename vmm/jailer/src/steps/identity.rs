//! Steps 6 (groups), 11 and 12: capabilities, groups and ids go, and the process looks whether they are gone.

use crate::jail::{Act, JailError};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, getgroups, getresgid, getresuid, setgroups, setresgid, setresuid};

/// linux/capability.h
const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// Bits that version 3 has room for.
const CAPABILITY_BITS: libc::c_ulong = 64;

/// `struct __user_cap_header_struct`; pid 0 is the caller.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`, twice: low and high 32 bits.
#[repr(C)]
#[derive(Default, Clone, Copy, PartialEq, Eq)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

// linux/securebits.h: a bit, and above it the lock of the bit
const NO_ROOT: libc::c_ulong = 1 << 0 | 1 << 1;
const ID_CHANGE_CLEARS: libc::c_ulong = 1 << 3;
const KEEPS_NOTHING: libc::c_ulong = 1 << 5;
const NO_AMBIENT: libc::c_ulong = 1 << 6 | 1 << 7;

/// Uid 0 gives no capability on exec, a change of ids clears them all, and this stays so.
pub fn lock_securebits() -> Result<(), JailError> {
    let bits = NO_ROOT | ID_CHANGE_CLEARS | KEEPS_NOTHING | NO_AMBIENT;
    // SAFETY: PR_SET_SECUREBITS takes one number.
    let result = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits, 0, 0, 0) };
    Errno::result(result).map(drop).act("lock the securebits")
}

/// No exec can ever gain a capability again. The kernel ends the list with EINVAL.
pub fn drop_bounding_set() -> Result<(), JailError> {
    for capability in 0..CAPABILITY_BITS {
        // SAFETY: PR_CAPBSET_DROP takes one number.
        match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(_) => {}
            Err(Errno::EINVAL) if capability > 0 => break,
            Err(error) => return Err(error).act("drop a capability of the bounding set"),
        }
    }
    // SAFETY: PR_CAP_AMBIENT_CLEAR_ALL takes no argument.
    let cleared = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    Errno::result(cleared).map(drop).act("clear the ambient capabilities")
}

/// Before the user namespace: in it no group but one exists.
pub fn leave_groups() -> Result<(), JailError> {
    setgroups(&[]).act("leave all groups")
}

/// The gid first: it needs a privilege that the change of the uid gives up.
pub fn become_user(uid: u32, gid: u32) -> Result<(), JailError> {
    let gid = Gid::from_raw(gid);
    setresgid(gid, gid, gid).act("change the gid")?;
    let uid = Uid::from_raw(uid);
    setresuid(uid, uid, uid).act("change the uid")?;
    // The kernel clears the permitted and effective sets with the uid, but not the inheritable one.
    let header = CapabilityHeader { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let none = [CapabilityData::default(); 2];
    // SAFETY: capset(2) reads a header and, for version 3, two data structs; both live for the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    Errno::result(result).map(drop).act("clear the capabilities")
}

/// The VMM is not started unless everything is gone.
pub fn verify(uid: u32, gid: u32) -> Result<(), JailError> {
    let still = |what| Err(JailError::StillPrivileged { what });
    let ids = getresuid().act("read the uid")?;
    if [ids.real, ids.effective, ids.saved].iter().any(|id| id.as_raw() != uid) {
        return still("a uid is left");
    }
    let ids = getresgid().act("read the gid")?;
    if [ids.real, ids.effective, ids.saved].iter().any(|id| id.as_raw() != gid) {
        return still("a gid is left");
    }
    if !getgroups().act("read the groups")?.is_empty() {
        return still("a group is left");
    }
    let header = CapabilityHeader { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let mut held = [CapabilityData { effective: 1, permitted: 1, inheritable: 1 }; 2];
    // SAFETY: capget(2) reads a header and, for version 3, fills two data structs; both live for the call.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw const header, held.as_mut_ptr()) };
    Errno::result(result).act("read the capabilities")?;
    if held != [CapabilityData::default(); 2] {
        return still("a capability is left");
    }
    Ok(())
}
