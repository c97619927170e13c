//! `io`: a guest that serves requests (`guest/serve.rs`), and how fast its disk, its network and its way to the host are.
//! Disks are raw files on a tmpfs of the node: what is compared is the VMM, not a disk.

use crate::clock::now_us;
use crate::launch::{self, Machine, Running};
use crate::net::Servers;
use crate::process;
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

const BLOCK_LOOPS: &[&str] =
    &["read", "write", "random-read", "random-write", "deep-read", "deep-write", "flush"];
const NET_LOOPS: &[&str] = &["out", "in", "echo"];
/// Round trips of one loop; their median counts.
const ROUND_TRIPS: usize = 60;
const BULK_BYTES: u64 = 24 << 20;
const CHUNK_BYTES: usize = 64 * 1024;
/// For the guest to call in, and for one answer.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    machine: Machine,
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    what: Vec<What>,
    /// Of each timed loop in the guest
    #[arg(long, default_value_t = 1000)]
    span_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Block,
    Net,
    /// vsock, or the virtio serial port
    Channel,
}

/// The host's end of the channel.
struct Channel {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
}

pub fn run(arguments: &Arguments) -> Result<Value> {
    arguments.machine.warm()?;
    let _servers = if arguments.machine.tap { Some(Servers::start()?) } else { None };
    let mut running = launch::start(&arguments.machine)?;
    let mut channel = open(&mut running)?;
    channel.ask("ping").context("the guest does not answer")?;
    let mut result = Map::new();
    for what in &arguments.what {
        match what {
            What::Block => {
                loops(&mut channel, &running, "block", BLOCK_LOOPS, arguments.span_ms, &mut result)?
            }
            What::Net => loops(&mut channel, &running, "net", NET_LOOPS, arguments.span_ms, &mut result)?,
            What::Channel => talk(&mut channel, &mut result)?,
        }
    }
    channel.ask("quit")?;
    Ok(Value::Object(result))
}

fn open(running: &mut Running) -> Result<Channel> {
    let stream = match (&running.bench_listener, &running.bench_socket) {
        (Some(listener), _) => {
            let mut readable = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut readable, PollTimeout::try_from(PATIENCE)?)?;
            ensure!(ready > 0, "the guest does not call in; its console: {}", running.console.text()?);
            listener.accept()?.0
        }
        (None, Some(path)) => {
            let path = path.clone();
            serving(running)?;
            UnixStream::connect(path).context("connecting to the serial port")?
        }
        (None, None) => anyhow::bail!("this VMM was given no channel"),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(Channel { writer: stream.try_clone()?, reader: BufReader::with_capacity(CHUNK_BYTES, stream) })
}

/// Waits for the guest to say that it serves: a port without a guest takes what is written and loses it.
fn serving(running: &mut Running) -> Result<()> {
    let deadline = now_us() + PATIENCE.as_micros() as u64;
    while !running.console.text()?.contains("SERVING") {
        ensure!(now_us() < deadline, "the guest does not serve; its console: {}", running.console.text()?);
        ensure!(running.child.try_wait()?.is_none(), "the VMM ended: {}", running.console.text()?);
        // a console is a file: there is nothing to wait on but time
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

impl Channel {
    fn ask(&mut self, request: &str) -> Result<String> {
        self.writer.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        self.reader.read_line(&mut line).with_context(|| format!("waiting for the answer to {request:?}"))?;
        Ok(line.trim().to_owned())
    }

    /// Median microseconds of a request and its answer.
    fn round_trip_us(&mut self, request: &str) -> Result<u64> {
        let mut samples = Vec::new();
        for _ in 0..ROUND_TRIPS {
            let began = now_us();
            let answer = self.ask(request)?;
            samples.push(now_us() - began);
            ensure!(answer == "ok", "the guest answered {answer:?} to {request:?}");
        }
        samples.sort_unstable();
        Ok(samples[samples.len() / 2])
    }
}

/// What the guest's own clock says, and what the VMM's process had of the processors.
fn loops(
    channel: &mut Channel,
    running: &Running,
    device: &str,
    kinds: &[&str],
    span_ms: u64,
    result: &mut Map<String, Value>,
) -> Result<()> {
    for kind in kinds {
        let before = process::activity(running.pid())?;
        let answer = channel.ask(&format!("{device} {kind} {span_ms}"))?;
        let mut value: Value =
            serde_json::from_str(&answer).with_context(|| format!("{device} {kind}: {answer:?}"))?;
        value["vmm"] = json!(process::activity(running.pid())?.since(&before));
        result.insert(format!("{device}-{kind}"), value);
    }
    Ok(())
}

fn talk(channel: &mut Channel, result: &mut Map<String, Value>) -> Result<()> {
    result.insert("channel-ping".to_owned(), json!({ "us": channel.round_trip_us("ping")? }));
    result.insert("channel-exec".to_owned(), json!({ "us": channel.round_trip_us("exec")? }));
    let mut chunk = vec![0; CHUNK_BYTES];
    let began = now_us();
    channel.writer.write_all(format!("send {BULK_BYTES}\n").as_bytes())?;
    let mut left = BULK_BYTES;
    while left > 0 {
        let most = left.min(CHUNK_BYTES as u64) as usize;
        let count = channel.reader.read(&mut chunk[..most])?;
        ensure!(count > 0, "the channel ended with {left} bytes to come");
        left -= count as u64;
    }
    result.insert("channel-in".to_owned(), json!({ "bytes": BULK_BYTES, "us": now_us() - began }));
    let began = now_us();
    channel.writer.write_all(format!("take {BULK_BYTES}\n").as_bytes())?;
    for _ in 0..BULK_BYTES / CHUNK_BYTES as u64 {
        channel.writer.write_all(&chunk)?;
    }
    let mut line = String::new();
    channel.reader.read_line(&mut line)?;
    ensure!(line.trim() == "ok", "the guest answered {line:?} to a transfer");
    result.insert("channel-out".to_owned(), json!({ "bytes": BULK_BYTES, "us": now_us() - began }));
    Ok(())
}
