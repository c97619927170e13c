//! A tap: made by opening it, gone when its last descriptor is closed.

use anyhow::{Context, Result, ensure};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::process::Command;

nix::ioctl_write_ptr_bad!(tunsetiff, request_code(), libc::ifreq);

const fn request_code() -> libc::c_ulong {
    // _IOW('T', 202, int) of linux/if_tun.h
    0x4004_54ca
}

/// A tap as the VMMs want it: frames with a virtio header, one queue, up and with an address.
///
/// # Errors
/// When /dev/net/tun cannot be opened, when the name is longer than an interface's may be or in use, when `ip` fails.
pub fn make(name: &str, address: &str) -> Result<File> {
    ensure!(name.len() < libc::IFNAMSIZ, "the name {name} of a tap has more than 15 bytes");
    let file =
        OpenOptions::new().read(true).write(true).open("/dev/net/tun").context("opening /dev/net/tun")?;
    let mut padded = [0; libc::IFNAMSIZ];
    for (place, byte) in padded.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let request = libc::ifreq {
        ifr_name: padded,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
    };
    // SAFETY: TUNSETIFF reads the name and the flags of an ifreq, which lives until the call returns.
    unsafe { tunsetiff(file.as_raw_fd(), &raw const request) }
        .with_context(|| format!("making the tap {name}"))?;
    for arguments in [&["addr", "add", address, "dev", name][..], &["link", "set", name, "up"]] {
        let status = Command::new("ip").args(arguments).status().context("starting ip")?;
        ensure!(status.success(), "ip {arguments:?} ended with {status}");
    }
    Ok(file)
}
