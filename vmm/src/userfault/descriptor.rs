//! The system calls of a userfaultfd.

use crate::memory::PAGE_BYTES;
use linux_raw_sys::general::{
    UFFD_API, UFFD_EVENT_PAGEFAULT, UFFDIO, UFFDIO_REGISTER_MODE_MISSING, uffd_msg, uffdio_api, uffdio_copy,
    uffdio_range, uffdio_register, uffdio_zeropage,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_COPY, UFFDIO_REGISTER, UFFDIO_WAKE, UFFDIO_ZEROPAGE};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_val};

/// `USERFAULTFD_IOC_NEW`, `_IO(0xaa, 0)`: of `/dev/userfaultfd`.
const NEW: u32 = UFFDIO << 8;
/// Faults taken from the kernel at once.
const FAULTS: usize = 16;
/// How often a piece of memory is tried again that the kernel would not take at once: somebody changes its mappings.
const TRIES: usize = 1000;

/// A userfaultfd, non-blocking and close on exec.
#[derive(Debug)]
pub struct Userfault(File);

/// What became of a piece of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placed {
    /// so many bytes are in place; who waited for them goes on
    Bytes(u64),
    /// the first page was there before
    Already,
    /// the range is not one mapping of the handler's: its first page is not the handler's any more, or a later one is
    /// another mapping's
    NotOurs,
    /// the process that has the memory is gone
    ProcessGone,
}

impl Userfault {
    /// A new one for the memory of this process. `device`: `/dev/userfaultfd`.
    pub fn new(device: &File) -> io::Result<Self> {
        // SAFETY: the request takes flags and makes a descriptor.
        let fd = unsafe { ioctl_with_val(device, NEW.into(), (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let made = Self(unsafe { File::from_raw_fd(fd) });
        let mut api = uffdio_api { api: UFFD_API.into(), features: 0, ioctls: 0 };
        made.request(UFFDIO_API, &mut api)?;
        Ok(made)
    }

    /// Faults of missing pages in `bytes` from `start` on are reported from now on. Whole pages of private memory.
    pub fn register(&self, start: u64, bytes: u64) -> io::Result<()> {
        let range = uffdio_range { start, len: bytes };
        let mode = UFFDIO_REGISTER_MODE_MISSING.into();
        self.request(UFFDIO_REGISTER, &mut uffdio_register { range, mode, ioctls: 0 })
    }

    /// Puts `data`, whole pages, in place at `to` as far as nothing is there.
    fn copy(&self, to: u64, data: &[u8]) -> io::Result<Placed> {
        let (src, len) = (data.as_ptr() as u64, data.len() as u64);
        let mut copy = uffdio_copy { dst: to, src, len, mode: 0, copy: 0 };
        let result = self.request(UFFDIO_COPY, &mut copy);
        outcome(result, copy.copy)
    }

    /// So with `bytes` of zeroes, which take no memory until they are written.
    fn zero(&self, to: u64, bytes: u64) -> io::Result<Placed> {
        let range = uffdio_range { start: to, len: bytes };
        let mut zero = uffdio_zeropage { range, mode: 0, zeropage: 0 };
        let result = self.request(UFFDIO_ZEROPAGE, &mut zero);
        outcome(result, zero.zeropage)
    }

    /// Puts `data`, whole pages, in place at `to` wherever nothing is there and the page is the handler's. `false`: the
    /// process that has the memory is gone.
    pub fn fill(&self, to: u64, data: &[u8]) -> io::Result<bool> {
        let is_zero = data.iter().all(|byte| *byte == 0);
        let bytes = data.len() as u64;
        // where a mapping ends within the range the kernel takes none of it: so page by page
        let (mut done, mut tries, mut piece) = (0, 0, bytes);
        while done < bytes {
            let (at, end) = (to + done, bytes.min(done + piece));
            let placed = if is_zero {
                self.zero(at, end - done)
            } else {
                self.copy(at, &data[done as usize..end as usize])
            };
            match placed? {
                Placed::Bytes(0) if tries == TRIES => return Err(io::ErrorKind::TimedOut.into()),
                Placed::Bytes(0) => tries += 1,
                Placed::Bytes(some) => done += some,
                Placed::NotOurs if end - done > PAGE_BYTES => piece = PAGE_BYTES,
                Placed::Already | Placed::NotOurs => {
                    // who faulted at the same time sleeps still
                    self.wake(at, PAGE_BYTES)?;
                    done += PAGE_BYTES;
                }
                Placed::ProcessGone => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Lets those go on that wait for a page of this range.
    fn wake(&self, start: u64, bytes: u64) -> io::Result<()> {
        self.request(UFFDIO_WAKE, &mut uffdio_range { start, len: bytes })
    }

    /// Addresses that were touched and wait, into `faults`; none when nobody does.
    pub fn faults(&self, faults: &mut Vec<u64>) -> io::Result<()> {
        const MESSAGE_BYTES: usize = size_of::<uffd_msg>();
        let mut bytes = [0; MESSAGE_BYTES * FAULTS];
        let read = match (&self.0).read(&mut bytes) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        for message in bytes[..read].as_chunks::<MESSAGE_BYTES>().0 {
            if u32::from(message[0]) == UFFD_EVENT_PAGEFAULT {
                faults.push(fault_address(message));
            }
        }
        Ok(())
    }

    fn request<T>(&self, number: u32, argument: &mut T) -> io::Result<()> {
        // SAFETY: each caller gives the structure that its request reads and writes.
        let result = unsafe { ioctl_with_mut_ref(&self.0, number.into(), argument) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// `arg.pagefault.address` of `struct uffd_msg`: after eight bytes of header and eight of flags.
fn fault_address(message: &[u8]) -> u64 {
    message[16..24].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// `done`: what the kernel wrote, bytes or a negative error. It says EAGAIN when it did some of it.
fn outcome(result: io::Result<()>, done: i64) -> io::Result<Placed> {
    let Err(error) = result else { return Ok(Placed::Bytes(done.unsigned_abs())) };
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Ok(Placed::Bytes(u64::try_from(done).unwrap_or(0))),
        Some(libc::EEXIST) => Ok(Placed::Already),
        Some(libc::ENOENT) => Ok(Placed::NotOurs),
        Some(libc::ESRCH) => Ok(Placed::ProcessGone),
        _ => Err(error),
    }
}

impl From<OwnedFd> for Userfault {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

impl AsRawFd for Userfault {
    /// Readable when somebody waits for a page.
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_fault_is_where_the_kernel_puts_it() {
        let mut message = [0u8; size_of::<uffd_msg>()];
        message[0] = UFFD_EVENT_PAGEFAULT as u8;
        message[16..24].copy_from_slice(&0x7f12_3456_7000u64.to_le_bytes());
        assert_eq!(fault_address(&message), 0x7f12_3456_7000);
        assert_eq!(message.len(), 32);
    }

    #[test]
    fn what_was_done_is_told_from_why_it_was_not() {
        let failed = |number| Err(io::Error::from_raw_os_error(number));
        assert_eq!(outcome(Ok(()), 8192).expect("done"), Placed::Bytes(8192));
        assert_eq!(outcome(failed(libc::EAGAIN), 4096).expect("some"), Placed::Bytes(4096));
        assert_eq!(outcome(failed(libc::EAGAIN), -11).expect("none"), Placed::Bytes(0));
        assert_eq!(outcome(failed(libc::EEXIST), -17).expect("there"), Placed::Already);
        assert_eq!(outcome(failed(libc::ENOENT), -2).expect("released"), Placed::NotOurs);
        assert_eq!(outcome(failed(libc::ESRCH), -3).expect("ended"), Placed::ProcessGone);
        assert!(outcome(failed(libc::EINVAL), -22).is_err());
    }
}
