//! Step 8: exactly the passed descriptors stay open.
//!
//! Sources and targets may overlap, so everything that stays is first duplicated above the highest target, close on
//! exec, and only then put in its place. What lies between is closed by ranges, so nothing has to be listed.

use crate::jail::{Act, JailError};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use pinfold_vmm_api::{FdNumber, PassedFd};
use std::collections::BTreeSet;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `/dev/null` of the host, to be opened while there still is one.
pub fn open_null() -> Result<ManuallyDrop<OwnedFd>, JailError> {
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).act("open /dev/null")?;
    Ok(ManuallyDrop::new(null))
}

/// A file that does not close its descriptor.
pub fn borrow_file(number: RawFd) -> ManuallyDrop<File> {
    // SAFETY: the callers pass the report socket, which stays open until exec or exit; it is not closed here.
    ManuallyDrop::new(unsafe { File::from_raw_fd(number) })
}

/// Puts `passed` in place and `null` on 0 to 2, closes everything else but `executable` and `report`. These two get
/// new numbers, close on exec: the first is returned, `report` is updated as soon as it holds.
pub fn keep_only(
    passed: &[PassedFd],
    executable: FdNumber,
    null: &OwnedFd,
    report: &mut RawFd,
) -> Result<RawFd, JailError> {
    let ceiling = passed.iter().map(|fd| fd.target).max().unwrap_or(2).max(2) + 1;
    *report = lift(*report, ceiling).act("move the report socket")?;
    let executable = lift(executable, ceiling).act("move the executable's descriptor")?;
    let null = lift(null.as_raw_fd(), ceiling).act("move /dev/null")?;
    let mut placed: Vec<(RawFd, RawFd)> = (0..3).map(|stream| (null, stream)).collect();
    for fd in passed {
        placed.push((lift(fd.source, ceiling).act("move a passed descriptor")?, fd.target));
    }
    for &(lifted, target) in &placed {
        // SAFETY: dup2(2) takes two numbers; whatever `target` was is not used by this process any more.
        Errno::result(unsafe { libc::dup2(lifted, target) }).act("renumber a passed descriptor")?;
    }
    let mut keep: BTreeSet<u32> = placed.iter().map(|&(_, target)| target.unsigned_abs()).collect();
    keep.extend([executable.unsigned_abs(), report.unsigned_abs()]);
    for (first, last) in gaps(&keep) {
        // SAFETY: close_range(2) takes two numbers and flags; no owner of a closed number is used or dropped later.
        let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        Errno::result(result).act("close the other descriptors")?;
    }
    Ok(executable)
}

/// Duplicates `number` to one of at least `floor`, close on exec.
fn lift(number: RawFd, floor: RawFd) -> Result<RawFd, Errno> {
    // SAFETY: F_DUPFD_CLOEXEC takes two numbers and makes a new descriptor.
    Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, floor) })
}

/// The ranges, both ends included, of all numbers that are not in `keep`.
fn gaps(keep: &BTreeSet<u32>) -> Vec<(u32, u32)> {
    let mut ranges = Vec::new();
    let mut next = 0;
    for &number in keep {
        if number > next {
            ranges.push((next, number - 1));
        }
        next = number + 1;
    }
    ranges.push((next, u32::MAX));
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_the_complement() {
        let of = |numbers: &[u32]| gaps(&numbers.iter().copied().collect());
        assert_eq!(of(&[]), [(0, u32::MAX)]);
        assert_eq!(of(&[0, 1, 2]), [(3, u32::MAX)]);
        assert_eq!(of(&[0, 2, 3, 7]), [(1, 1), (4, 6), (8, u32::MAX)]);
        assert_eq!(of(&[5]), [(0, 4), (6, u32::MAX)]);
    }

    #[test]
    fn a_lifted_descriptor_is_the_same_file_above_the_floor() {
        let file = tempfile::tempfile().expect("a temporary file");
        let lifted = lift(file.as_raw_fd(), 200).expect("a duplicate");
        assert!(lifted >= 200);
        // SAFETY: `lift` has just made it and nothing else owns it.
        let copy = unsafe { File::from_raw_fd(lifted) };
        file.set_len(7).expect("set the length");
        assert_eq!(copy.metadata().expect("metadata").len(), 7);
        assert_eq!(lift(987_654, 3), Err(Errno::EBADF));
    }
}
