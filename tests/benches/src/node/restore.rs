//! `restore`: a sandbox is booted, saved, and taken up again many times.
//!
//! ```text
//!   cold boot --agent answers--> pause, snapshot, end --> restore, note its working set, end --> restore x runs
//!                                                                                            \-> clones, all at once
//! ```
//!
//! The guest agent *answers* when it has sent its HTTP/2 settings on a new vsock connection: its own code ran for it.

use crate::clock::now_us;
use crate::control;
use crate::launch::{self, KEY, Machine, Running, Template};
use crate::memory;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pinfold_vmm_api::control::{Request, Response, SnapshotKind, SnapshotRequest};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// The guest agent's port, and how HTTP/2 begins (RFC 9113, 3.4) with empty settings behind it.
const CONNECT: &[u8] = b"CONNECT 1024\n";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
const PATIENCE_US: u64 = 90_000_000;
const TEMPLATES: &str = "/run/bench-template";

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    machine: Machine,
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Then so many at once from one template
    #[arg(long, default_value_t = 0)]
    clones: u32,
    /// Leave out the record of the working set
    #[arg(long)]
    without_working_set: bool,
}

pub fn run(arguments: &Arguments) -> Result<Value> {
    let machine = &arguments.machine;
    machine.warm()?;
    let (cold_us, mut template, taken) = save(machine)?;
    if !arguments.without_working_set {
        template.working_set = Some(working_set(machine, &template)?);
    }
    let mut restores = Vec::new();
    for _ in 0..arguments.runs {
        restores.push(restored(machine, &template)?);
    }
    let clones =
        if arguments.clones > 0 { clones(machine, &template, arguments.clones)? } else { Value::Null };
    let sets = template.working_set.as_ref().map(std::fs::metadata).transpose()?;
    Ok(json!({
        "cold_us": cold_us,
        "snapshot": taken,
        "working_set_bytes": sets.map(|metadata| metadata.len()),
        "restores": restores,
        "clones": clones,
    }))
}

/// The cold boot's time, the files, and what the VMM said of the snapshot.
fn save(machine: &Machine) -> Result<(u64, Template, Value)> {
    let directory = Path::new(TEMPLATES);
    std::fs::create_dir_all(directory)?;
    let mut running = launch::start(machine)?;
    hello(&mut running)?;
    let cold_us = answers(machine, &mut running)? - running.began_us;
    let socket = running.control.clone().context("snapshots need our VMM")?;
    control::done(&socket, &Request::Pause, &[])?;
    let template = Template {
        state: directory.join("state"),
        memory: directory.join("memory"),
        disk: directory.join("disk"),
        working_set: None,
    };
    let (state, memory) = (empty(&template.state)?, empty(&template.memory)?);
    let request = Request::Snapshot(SnapshotRequest { kind: SnapshotKind::Full, key: KEY.to_owned() });
    let taken = match control::ask(&socket, &request, &[state.as_fd(), memory.as_fd()])? {
        Response::Snapshot(taken) => serde_json::to_value(taken)?,
        other => bail!("the VMM answered {other:?} to a snapshot request"),
    };
    launch::copy_sparse(&machine.scratch(), &template.disk)?;
    Ok((cold_us, template, taken))
}

fn working_set(machine: &Machine, template: &Template) -> Result<PathBuf> {
    let mut running = launch::restore(machine, template)?;
    answers(machine, &mut running)?;
    let path = Path::new(TEMPLATES).join("working-set");
    let socket = running.control.clone().context("snapshots need our VMM")?;
    control::done(&socket, &Request::WorkingSet, &[empty(&path)?.as_fd()])?;
    Ok(path)
}

/// One restore, alone.
fn restored(machine: &Machine, template: &Template) -> Result<Value> {
    let mut running = launch::restore(machine, template)?;
    let to_answer_us = answers(machine, &mut running)? - running.began_us;
    let memory = memory::resident(running.pid(), machine.memory_mib << 20)?;
    let socket = running.control.clone().context("snapshots need our VMM")?;
    let timing = control::status(&socket)?.timing;
    Ok(json!({ "to_answer_us": to_answer_us, "memory": memory, "timing": timing }))
}

/// All of them live at once; each is looked at when the last has answered.
fn clones(machine: &Machine, template: &Template, count: u32) -> Result<Value> {
    let mut alive = Vec::new();
    let began = now_us();
    for number in 0..count {
        let mut machine = machine.clone();
        machine.directory = machine.directory.join(format!("clone{number}"));
        let mut running = launch::restore(&machine, template)?;
        answers(&machine, &mut running)?;
        alive.push(running);
    }
    let took_us = now_us() - began;
    let memory: Result<Vec<_>> =
        alive.iter().map(|running| memory::resident(running.pid(), machine.memory_mib << 20)).collect();
    Ok(json!({ "took_us": took_us, "memory": memory? }))
}

fn hello(running: &mut Running) -> Result<()> {
    let listener = running.hello.take().context("this VMM has no vsock for a guest agent")?;
    let deadline = now_us() + PATIENCE_US;
    loop {
        let mut readable = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut readable, PollTimeout::try_from(500)?)? > 0 {
            listener.accept()?;
            return Ok(());
        }
        alive(running, deadline)?;
    }
}

/// When the guest agent has answered on a new connection.
fn answers(machine: &Machine, running: &mut Running) -> Result<u64> {
    let path = machine.directory.join("vsock");
    let deadline = now_us() + PATIENCE_US;
    loop {
        if let Ok(at) = answer(&path) {
            return Ok(at);
        }
        alive(running, deadline)?;
        // refused: the guest does not listen yet
        sleep(Duration::from_millis(2));
    }
}

fn answer(path: &Path) -> Result<u64> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(CONNECT)?;
    let mut byte = [0];
    // `OK <port>`
    loop {
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            break;
        }
    }
    stream.write_all(PREFACE)?;
    stream.read_exact(&mut [0; 9])?;
    Ok(now_us())
}

fn alive(running: &mut Running, deadline: u64) -> Result<()> {
    if let Some(status) = running.child.try_wait()? {
        bail!("the VMM ended with {status}; its console: {}", running.console.text()?);
    }
    ensure!(now_us() < deadline, "no answer in time; the console: {}", running.console.text()?);
    Ok(())
}

fn empty(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
    file.with_context(|| format!("making {}", path.display()))
}
