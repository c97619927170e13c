//! The node's side of a guest's network: a tap with an address, and three servers on it.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

/// Of the tap; the guest is 10.9.0.2 (`guest/net.rs`).
const ADDRESS: &str = "10.9.0.1";
const NAME: &str = "benchtap";
const SINK: u16 = 7001;
const SOURCE: u16 = 7002;
const ECHO: u16 = 7003;
const CHUNK_BYTES: usize = 64 * 1024;

/// The node's end of the guest's network.
pub fn tap() -> Result<File> {
    pinfold_bench::tap::make(NAME, &format!("{ADDRESS}/24"))
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
