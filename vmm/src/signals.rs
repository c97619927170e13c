//! Signals by descriptor.
//!
//! The VMM may be PID 1 of its namespace, for which the kernel drops signals without a handler. Blocked signals are
//! kept, handler or not, and the device thread reads them from a signalfd.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use vmm_sys_util::signal::create_sigset;

/// Signals that ask for the end.
const ENDING: [libc::c_int; 2] = [libc::SIGTERM, libc::SIGINT];
/// Blocked so that a write past RLIMIT_FSIZE is an error and not the end.
const HARMLESS: [libc::c_int; 1] = [libc::SIGXFSZ];

#[derive(Debug)]
pub struct Signals {
    file: File,
}

impl Signals {
    /// Blocks the signals for the calling thread and those that it will start.
    pub fn block() -> io::Result<Self> {
        let all: Vec<_> = ENDING.into_iter().chain(HARMLESS).collect();
        let blocked = create_sigset(&all)?;
        // SAFETY: `blocked` is an initialised set; the old mask is not wanted.
        let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &blocked, std::ptr::null_mut()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        let ending = create_sigset(&ENDING)?;
        // SAFETY: `ending` is an initialised set; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &ending, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self { file: unsafe { File::from_raw_fd(fd) } })
    }

    /// Number of a signal that came, if one did.
    pub fn take(&self) -> Option<u32> {
        let mut information = [0; size_of::<libc::signalfd_siginfo>()];
        let read = (&self.file).read(&mut information).ok()?;
        // ssi_signo is the first field
        (read == information.len())
            .then(|| u32::from_ne_bytes([information[0], information[1], information[2], information[3]]))
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
