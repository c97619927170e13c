//! Loops over TCP with the node, through the guest's one network device.

use super::serve::{Done, repeated};
use super::set_up::appears;
use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const DEVICE: &str = "/sys/class/net/eth0";
/// The node's side of the tap, and what listens there.
const NODE: &str = "10.9.0.1";
const GUEST: &str = "10.9.0.2/24";
const SINK: u16 = 7001;
const SOURCE: u16 = 7002;
const ECHO: u16 = 7003;
const CHUNK_BYTES: usize = 64 * 1024;

/// `out`: bytes to the node. `in`: bytes from it. `echo`: one byte there and back.
pub fn run(kind: &str, span: Duration) -> Result<Done> {
    set_up()?;
    let mut chunk = vec![0x5a; CHUNK_BYTES];
    match kind {
        "out" => {
            let mut stream = connect(SINK)?;
            let began = Instant::now();
            let mut done = repeated(span, || Ok(stream.write(&chunk)? as u64))?;
            stream.shutdown(Shutdown::Write)?;
            // the other side answers when it has read everything
            stream.read_exact(&mut chunk[..1])?;
            done.us = began.elapsed().as_micros() as u64;
            Ok(done)
        }
        "in" => {
            let mut stream = connect(SOURCE)?;
            repeated(span, || Ok(stream.read(&mut chunk)? as u64))
        }
        "echo" => {
            let mut stream = connect(ECHO)?;
            stream.set_nodelay(true)?;
            repeated(span, || {
                stream.write_all(&[1])?;
                stream.read_exact(&mut chunk[..1])?;
                Ok(1)
            })
        }
        _ => bail!("no network loop is called {kind}"),
    }
}

fn connect(port: u16) -> Result<TcpStream> {
    TcpStream::connect((NODE, port)).with_context(|| format!("connecting to {NODE}:{port}"))
}

fn set_up() -> Result<()> {
    ensure!(appears(|| Path::new(DEVICE).exists()), "{DEVICE} does not appear");
    if std::fs::read_to_string(Path::new(DEVICE).join("operstate")).is_ok_and(|state| state.trim() == "up") {
        return Ok(());
    }
    for arguments in [&["addr", "add", GUEST, "dev", "eth0"][..], &["link", "set", "eth0", "up"]] {
        let status = Command::new("/busybox").arg("ip").args(arguments).status().context("starting ip")?;
        ensure!(status.success(), "ip {arguments:?} ended with {status}");
    }
    Ok(())
}
