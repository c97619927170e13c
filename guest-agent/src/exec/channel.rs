//! A pipe's end or a terminal, read and written without blocking.

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
        self.0
            .async_io(Interest::READABLE, |fd| match nix::unistd::read(fd, buffer) {
                // the end of a terminal: its last process has closed it
                Err(Errno::EIO) => Ok(0),
                other => other.map_err(io::Error::from),
            })
            .await
    }

    /// Writes some of `data`, waiting for room. Dropped while it waits, it has written nothing.
    pub async fn write(&self, data: &[u8]) -> io::Result<usize> {
        self.0.async_io(Interest::WRITABLE, |fd| nix::unistd::write(fd, data).map_err(io::Error::from)).await
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
