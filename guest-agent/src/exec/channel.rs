//! A pipe's end or a terminal, read and written without blocking.
//!
//! Written out, because of terminals: one whose processes have all closed it is "closed" for epoll for ever, and yet a write
//! into its full buffer says EAGAIN. Whoever waits then and tries again does so for ever, within one poll. So EAGAIN of what
//! is closed is the end.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, and nothing here replaces it.
        let registered = unsafe { AsyncFd::register(fd) };
        Ok(Self(registered?))
    }

    /// Reads what is there, waiting for the first byte; 0 at the end. Dropped while it waits, it has read nothing.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.ready(Interest::READABLE).await?;
            match nix::unistd::read(&self.0, &mut *buffer) {
                // the end of a terminal: its last process has closed it
                Err(Errno::EIO) => return Ok(0),
                Err(Errno::EAGAIN) if ready.ready().is_read_closed() => return Ok(0),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// Writes some of `data`, waiting for room. Dropped while it waits, it has written nothing.
    pub async fn write(&self, data: &[u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.ready(Interest::WRITABLE).await?;
            match nix::unistd::write(&self.0, data) {
                Err(Errno::EAGAIN) if ready.ready().is_write_closed() => return Err(Errno::EPIPE.into()),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                other => return Ok(other?),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
