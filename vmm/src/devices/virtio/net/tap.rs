//! The tap: a descriptor from which whole frames are read and to which they are written, each with a virtio header.

use super::header::{self, HEADER_BYTES};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// `linux/if_tun.h`. The second is the only one that is used once the guest runs.
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
pub const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
const OFFLOAD_CSUM: libc::c_uint = 1;
const OFFLOAD_TSO4: libc::c_uint = 2;
const OFFLOAD_TSO6: libc::c_uint = 4;

#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error("the descriptor is not a tap: {0}")]
    NotATap(#[source] io::Error),
    #[error("the tap has flags {flags:#x}, not IFF_TAP | IFF_NO_PI | IFF_VNET_HDR")]
    Flags { flags: i16 },
    #[error("the tap cannot be set up: {0}")]
    SetUp(#[source] io::Error),
}

#[derive(Debug)]
pub struct Tap {
    file: File,
}

impl Tap {
    /// Takes over a tap that the host has made and attached.
    pub fn new(file: File) -> Result<Self, TapError> {
        let fd = file.as_raw_fd();
        // SAFETY: all zeroes is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes one ifreq; on another kind of file it is refused.
        let result = unsafe { libc::ioctl(fd, TUNGETIFF, &mut request) };
        if result < 0 {
            return Err(TapError::NotATap(io::Error::last_os_error()));
        }
        // SAFETY: TUNGETIFF has written the flags.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        let wanted = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err(TapError::Flags { flags });
        }
        let tap = Self { file };
        tap.set_up().map_err(TapError::SetUp)?;
        Ok(tap)
    }

    /// A socket that keeps the borders of frames in place of a tap, for tests and fuzzing.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn over_socket(socket: std::os::unix::net::UnixDatagram) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { file: File::from(std::os::fd::OwnedFd::from(socket)) })
    }

    fn set_up(&self) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        let bytes = HEADER_BYTES as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe { libc::ioctl(fd, TUNSETVNETHDRSZ, &bytes) })?;
        // SAFETY: F_GETFL reads the flags of an open descriptor.
        let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
        // SAFETY: F_SETFL changes the flags of an open descriptor.
        check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
        self.set_offload(0)
    }

    /// What the host may leave undone in frames for a guest with these features.
    pub fn set_offload(&self, features: u64) -> io::Result<()> {
        let pairs = [
            (header::F_GUEST_CSUM, OFFLOAD_CSUM),
            (header::F_GUEST_TSO4, OFFLOAD_TSO4),
            (header::F_GUEST_TSO6, OFFLOAD_TSO6),
        ];
        let offload = pairs.iter().filter(|(feature, _)| features & feature != 0).map(|(_, bit)| bit);
        let offload: libc::c_uint = offload.sum();
        // SAFETY: TUNSETOFFLOAD takes a number.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(offload)) })?;
        Ok(())
    }

    /// Reads one frame; how many bytes it filled.
    ///
    /// # Safety
    /// The vectors are valid for writes.
    pub unsafe fn read(&self, vectors: &[libc::iovec]) -> io::Result<usize> {
        // SAFETY: promised by the caller; there are as many vectors as is said.
        let read =
            unsafe { libc::readv(self.file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// Writes one frame.
    ///
    /// # Safety
    /// The vectors are valid for reads.
    pub unsafe fn write(&self, vectors: &[libc::iovec]) -> io::Result<()> {
        // SAFETY: promised by the caller; there are as many vectors as is said.
        let written =
            unsafe { libc::writev(self.file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
