//! The way to the host: vsock, or a port of a virtio console.

use super::set_up::appears;
use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

/// The host's context id and the port that the other side listens on.
const HOST: u32 = 2;
const PORT: u32 = 5000;
/// Name of the virtio console's port.
const PORT_NAME: &str = "bench";
/// A port without a peer reads as its end; so long until it is taken for one.
const PATIENCE: Duration = Duration::from_millis(10);
const PATIENCES: u32 = 3000;

pub fn open() -> Result<File> {
    let mut found = None;
    appears(|| {
        found = vsock().or_else(port);
        found.is_some()
    });
    found.context("neither vsock nor a virtio serial port is there")
}

fn vsock() -> Option<File> {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).ok()?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST, PORT)).ok()?;
    Some(File::from(socket))
}

fn port() -> Option<File> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    for entry in ports.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT_NAME {
            let path = PathBuf::from("/dev").join(entry.file_name());
            return OpenOptions::new().read(true).write(true).open(path).ok();
        }
    }
    None
}

/// Some bytes; the end only after it lasted.
pub fn read(channel: &mut File, buffer: &mut [u8]) -> Result<usize> {
    for _ in 0..PATIENCES {
        match channel.read(buffer) {
            Ok(0) => sleep(PATIENCE),
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("reading the channel"),
        }
    }
    bail!("the other side is gone")
}
