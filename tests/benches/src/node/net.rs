//! The node's side of a guest's network: a tap with an address, and three servers on it.

use anyhow::{Context, Result, ensure};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

/// Of the tap; the guest is 10.9.0.2 (`guest/net.rs`).
const ADDRESS: &str = "10.9.0.1";
const NAME: &str = "benchtap";
const SINK: u16 = 7001;
const SOURCE: u16 = 7002;
const ECHO: u16 = 7003;
const CHUNK_BYTES: usize = 64 * 1024;

nix::ioctl_write_ptr_bad!(tunsetiff, request_code(), libc::ifreq);

const fn request_code() -> libc::c_ulong {
    // _IOW('T', 202, int) of linux/if_tun.h
    0x4004_54ca
}

/// A tap as the VMMs want it: frames with a virtio header, one queue, up and with an address.
pub fn tap() -> Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).open("/dev/net/tun").context("opening /dev/net/tun")?;
    let mut name = [0; libc::IFNAMSIZ];
    for (place, byte) in name.iter_mut().zip(NAME.bytes()) {
        *place = byte.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
    };
    // SAFETY: TUNSETIFF reads the name and the flags of an ifreq, which lives until the call returns.
    unsafe { tunsetiff(file.as_raw_fd(), &raw const request) }.context("making a tap")?;
    for arguments in [&["addr", "add", "10.9.0.1/24", "dev", NAME][..], &["link", "set", NAME, "up"]] {
        let status = Command::new("ip").args(arguments).status().context("starting ip")?;
        ensure!(status.success(), "ip {arguments:?} ended with {status}");
    }
    Ok(file)
}

/// They end with the process.
pub struct Servers;

impl Servers {
    pub fn start() -> Result<Self> {
        serve(SINK, sink)?;
        serve(SOURCE, source)?;
        serve(ECHO, echo)?;
        Ok(Self)
    }
}

fn serve(port: u16, each: fn(TcpStream) -> std::io::Result<()>) -> Result<()> {
    // the tap has its address only later
    let listener =
        TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("listening on {ADDRESS}:{port}"))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // a guest that hangs up ends its stream
            let _ = each(stream);
        }
    });
    Ok(())
}

/// Reads to the end, then says so with one byte.
fn sink(mut stream: TcpStream) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    while stream.read(&mut chunk)? > 0 {}
    stream.write_all(&[1])
}

fn source(mut stream: TcpStream) -> std::io::Result<()> {
    let chunk = vec![0x5a; CHUNK_BYTES];
    loop {
        stream.write_all(&chunk)?;
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
    }
}
