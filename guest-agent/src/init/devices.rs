//! Waiting for a device node. The kernel makes it in devtmpfs before it tells of the device (uevent), so who listens first
//! and looks then misses nothing.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// From the start of the wait to the last device's node.
const LIMIT: Duration = Duration::from_secs(10);
/// The multicast group of the kernel's own messages.
const KERNEL_GROUP: u32 = 1;
/// Longest message (`UEVENT_BUFFER_SIZE`), and more.
const MESSAGE_BYTES: usize = 8192;

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("no {path} within {} s", LIMIT.as_secs())]
    Missing { path: String },
    #[error("cannot listen for devices: {0}")]
    Listen(#[from] io::Error),
}

pub struct Devices {
    events: OwnedFd,
    deadline: Instant,
}

impl Devices {
    /// The time to wait begins now, for all devices together.
    pub fn listen() -> Result<Self, DeviceError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let events =
            socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol).map_err(io::Error::from)?;
        bind(events.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP)).map_err(io::Error::from)?;
        Ok(Self { events, deadline: Instant::now() + LIMIT })
    }

    /// Returns when `path` is there.
    pub fn wait_for(&self, path: &str) -> Result<(), DeviceError> {
        while !Path::new(path).exists() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(DeviceError::Missing { path: path.to_owned() });
            }
            self.wait_for_news(left)?;
        }
        Ok(())
    }

    fn wait_for_news(&self, left: Duration) -> io::Result<()> {
        // LIMIT in milliseconds fits
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let mut readable = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
        match poll(&mut readable, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut message = [0; MESSAGE_BYTES];
        // what the news is does not matter, and lost news (ENOBUFS) are news too
        while recv(self.events.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT).is_ok() {}
        Ok(())
    }
}
