//! `boot`: from exec to a mark, what it took; then, if asked, what the idle machine costs.

use crate::clock::now_us;
use crate::control;
use crate::counters::{self, Exits};
use crate::launch::{self, Machine, Running};
use crate::trace::Trace;
use crate::{memory, process};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pinfold_vmm_api::control::Request;
use serde_json::{Value, json};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// Pauses of an idle machine; their median counts.
const PAUSES: usize = 20;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    machine: Machine,
    /// Text on the console that ends the boot
    #[arg(long, default_value = "HELLO")]
    mark: String,
    /// The boot ends when the guest agent says hello instead
    #[arg(long)]
    agent: bool,
    /// Between two looks at the console
    #[arg(long, default_value_t = 1000)]
    poll_us: u64,
    #[arg(long, default_value_t = 100)]
    timeout_s: u64,
    /// Count exits by reason and port as well, which makes them slower
    #[arg(long)]
    profile: bool,
    /// Then leave the machine alone for a while, and look at it for as long again
    #[arg(long, default_value_t = 0)]
    idle_ms: u64,
}

pub fn run(arguments: &Arguments) -> Result<Value> {
    arguments.machine.warm()?;
    let trace = Trace::begin(arguments.profile)?;
    let mut running = launch::start(&arguments.machine)?;
    let marked_us = wait(&mut running, arguments)?;
    let exits = counters::read()?;
    let memory_bytes = arguments.machine.memory_mib << 20;
    let pid = running.pid();
    let first_run_us = trace.seen()?.first_entry_us;
    let activity = process::activity(pid)?;
    let mut result = json!({
        "to_first_run_us": first_run_us.map(|at| at.saturating_sub(running.began_us)),
        "to_mark_us": marked_us - running.began_us,
        "exits": exits,
        "memory": memory::resident(pid, memory_bytes)?,
        "activity": activity,
        "profile": trace.histograms()?,
    });
    drop(trace);
    if let Some(control) = &running.control {
        result["status"] = serde_json::to_value(control::status(control)?)?;
    }
    if arguments.idle_ms > 0 {
        result["idle"] = idle(pid, memory_bytes, Duration::from_millis(arguments.idle_ms))?;
        if let Some(control) = &running.control {
            result["pauses"] = pauses(control)?;
        }
    }
    Ok(result)
}

/// When the mark was seen.
fn wait(running: &mut Running, arguments: &Arguments) -> Result<u64> {
    let deadline = now_us() + arguments.timeout_s * 1_000_000;
    if arguments.agent {
        return wait_for_agent(running, deadline);
    }
    loop {
        let text = running.console.text()?;
        let now = now_us();
        if text.contains(&arguments.mark) {
            return Ok(now);
        }
        still_there(running, &text, now, deadline)?;
        // a console is a file or a ring in one: there is nothing to wait on but time
        sleep(Duration::from_micros(arguments.poll_us));
    }
}

fn wait_for_agent(running: &mut Running, deadline: u64) -> Result<u64> {
    let listener = running.hello.take().context("this VMM has no vsock for a guest agent")?;
    loop {
        let mut readable = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let step = PollTimeout::try_from(500).context("half a second is a timeout")?;
        if poll(&mut readable, step)? > 0 {
            let (mut stream, _) = listener.accept()?;
            // the hello is there when its first byte is
            ensure!(stream.read(&mut [0])? == 1, "the guest agent hung up without a hello");
            return Ok(now_us());
        }
        let text = running.console.text()?;
        still_there(running, &text, now_us(), deadline)?;
    }
}

fn still_there(running: &mut Running, console: &str, now: u64, deadline: u64) -> Result<()> {
    let tail: Vec<&str> = console.lines().rev().take(12).collect();
    let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
    if let Some(status) = running.child.try_wait()? {
        bail!("the VMM ended with {status} before the mark; its console ends:\n{tail}");
    }
    ensure!(now < deadline, "no mark in time; the console ends:\n{tail}");
    Ok(())
}

fn idle(pid: u32, memory_bytes: u64, span: Duration) -> Result<Value> {
    sleep(span);
    let (before, exits_before) = (process::activity(pid)?, counters::read()?);
    let began = now_us();
    sleep(span);
    let after = process::activity(pid)?.since(&before);
    let exits = counters::read()?;
    let span_us = now_us() - began;
    Ok(json!({
        "span_us": span_us,
        "activity": after,
        "exits": exits_since(&exits, &exits_before),
        "memory": memory::resident(pid, memory_bytes)?,
    }))
}

fn exits_since(after: &Exits, before: &Exits) -> Exits {
    Exits {
        total: after.total - before.total,
        io: after.io - before.io,
        mmio: after.mmio - before.mmio,
        halt: after.halt - before.halt,
        interrupt: after.interrupt - before.interrupt,
        page_faults: after.page_faults - before.page_faults,
    }
}

/// How long a pause and a resume of the idle machine take, asked and answered over the control socket.
fn pauses(control: &Path) -> Result<Value> {
    let (mut pause_us, mut resume_us) = (Vec::new(), Vec::new());
    for _ in 0..PAUSES {
        let began = now_us();
        control::done(control, &Request::Pause, &[])?;
        let paused = now_us();
        control::done(control, &Request::Resume, &[])?;
        pause_us.push(paused - began);
        resume_us.push(now_us() - paused);
    }
    pause_us.sort_unstable();
    resume_us.sort_unstable();
    Ok(json!({ "pause_us": pause_us[PAUSES / 2], "resume_us": resume_us[PAUSES / 2] }))
}
