//! Runs the cases one after the other, and prints a table.

use crate::bounds::{Seen, processor_ticks};
use crate::cases::{self, Case, End};
use crate::host::Host;
use crate::machine::{Machine, Shape};
use crate::neighbour::Neighbour;
use anyhow::{Context as _, Result, bail, ensure};
use pinfold_vmm_api::control::{ExitReason, MachineState, Request, Response, SnapshotKind, SnapshotRequest};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const VCPUS: u32 = 2;
const MEMORY_MIB: u64 = 128;
/// Between two looks at a machine.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Looks from one pause in the midst of a case to the next.
const PAUSE_EVERY: u32 = 4;
/// How long a halted guest's VMM is watched for work that it does not have.
const IDLE_TIME: Duration = Duration::from_millis(400);
/// From a request to end to the end.
const END_LIMIT: Duration = Duration::from_secs(5);
/// From what a guest does to the event on the watching connection.
const EVENT_LIMIT: Duration = Duration::from_secs(3);
/// What a guest that reads nothing may make a VMM take from the host, beside what its sockets hold.
const FLOOD_BYTES_MAX: u64 = 2 << 20;
/// The right frame, as in the guest's `net.rs`.
const PROBE_BYTES: u64 = 42;

/// True when all passed.
pub fn all(filters: &[&str]) -> Result<bool> {
    documented()?;
    let chosen: Vec<&Case> =
        cases::ALL.iter().filter(|case| filters.is_empty() || filters.contains(&case.name)).collect();
    println!("running {} cases of the hostile guest", chosen.len());
    let began = Instant::now();
    let neighbour = Neighbour::start()?;
    let mut failed = 0;
    println!(
        "{:<13} {:>7} {:>8} {:>4} {:>7} {:>5} {:>9} {:>9}  events",
        "case", "seconds", "private", "fds", "threads", "lines", "answer ms", "neighbour"
    );
    for case in &chosen {
        let began = Instant::now();
        let mut seen = Seen::default();
        let outcome = one(case, &neighbour, &mut seen);
        let events = outcome.as_ref().map_or(String::new(), Clone::clone);
        println!(
            "{:<13} {:>7.1} {:>4} KiB {:>4} {:>7} {:>5} {:>9} {:>6} ms  {events}",
            case.name,
            began.elapsed().as_secs_f32(),
            seen.private_bytes / 1024,
            seen.descriptors,
            seen.threads,
            seen.log_lines,
            seen.answer.as_millis(),
            seen.neighbour.as_millis()
        );
        if let Err(error) = outcome {
            failed += 1;
            println!("test {} ({}) ... FAILED\n    {error:#}", case.name, case.what);
        }
    }
    neighbour.is_untouched()?;
    println!("hostile guest: {} s", began.elapsed().as_secs());
    println!(
        "{} passed, {failed} failed, {} skipped",
        chosen.len() - failed,
        cases::ALL.len() - chosen.len()
    );
    // a filter may be meant for another suite
    let ran = !chosen.is_empty() || !filters.is_empty();
    Ok(failed == 0 && ran)
}

/// Every case has its row in the document.
fn documented() -> Result<()> {
    let text = include_str!("../../docs/hostile-guest.md");
    for case in cases::ALL {
        ensure!(
            text.contains(&format!("| {} |", case.name)),
            "docs/hostile-guest.md has no row {}",
            case.name
        );
    }
    Ok(())
}

/// One case; what was told of it.
fn one(case: &Case, neighbour: &Neighbour, seen: &mut Seen) -> Result<String> {
    let directory = Machine::directory()?;
    let host = Host::listen(&Machine::vsock_prefix(directory.path()))?;
    let disks = [false, true];
    // gone with its machine, so one name does for all cases of this process
    let tap = format!("pfevil{}", std::process::id());
    let shape = Shape {
        case: case.name,
        vcpus: VCPUS,
        memory_mib: MEMORY_MIB,
        disks: &disks,
        balloon: true,
        tap: Some(&tap),
    };
    let began = Instant::now();
    let mut machine = Machine::start(&shape, directory)?;
    let outcome = follow(case, &mut machine, seen).and_then(|()| match case.end {
        End::Done => stop(&mut machine, seen),
        End::Itself(reason) => ends_by_itself(&mut machine, reason),
    });
    let log = machine.log();
    seen.log_lines = log.lines().count();
    let fared = neighbour.slowest_since(began, Duration::from_secs(10));
    outcome.with_context(|| format!("the VMM's log:\n{log}\n{}", console_end(&machine)))?;
    seen.neighbour = fared?;
    seen.judge(VCPUS, matches!(case.end, End::Itself(_)), &log)?;
    let told = told(case, &machine)?;
    files_are_bounded(case, &machine, &host)?;
    frames_are_right(case, &machine)?;
    Ok(told)
}

fn console_end(machine: &Machine) -> String {
    let text = machine.console(0).map(|chunk| chunk.data).unwrap_or_default();
    let end = &text[text.len().saturating_sub(600)..];
    format!("the console's end: {}", end.escape_ascii())
}

/// Looks at the machine until the guest is done, or the machine has ended.
fn follow(case: &Case, machine: &mut Machine, seen: &mut Seen) -> Result<()> {
    let done = format!("done {}\n", case.name).into_bytes();
    let failed = b"failed";
    let (mut offset, mut text, mut looks, mut pressed) = (0, Vec::new(), 0u32, false);
    loop {
        if machine.ended()?.is_some() {
            return match case.end {
                End::Itself(_) => Ok(()),
                End::Done => bail!("the VMM ended: {:?}", machine.record()),
            };
        }
        match machine.status() {
            Ok((status, took)) => seen.look(machine.pid(), status.memory.vmm_private_bytes, took),
            // it may end between the two questions
            Err(_) if machine.wait(END_LIMIT).is_ok() => continue,
            Err(error) => return Err(error),
        }
        let chunk = machine.console(offset)?;
        offset = chunk.offset + chunk.data.len() as u64;
        text.extend(chunk.data);
        let holds = |what: &[u8]| text.windows(what.len()).any(|window| window == what);
        ensure!(!holds(failed), "the guest says that it failed");
        if case.presses && !pressed && holds(b"waiting for the button") {
            pressed = true;
            let asked = machine.ask(&Request::PowerButton)?;
            ensure!(asked.response == Response::Done, "the button was answered {:?}", asked.response);
        }
        if holds(&done) {
            return Ok(());
        }
        text.drain(..text.len().saturating_sub(64));
        looks += 1;
        if looks % PAUSE_EVERY == 0 && matches!(case.end, End::Done) {
            pause_and_resume(machine, seen, |_| Ok(()))?;
        }
        ensure!(machine.began.elapsed() < case.limit, "not done within {} s", case.limit.as_secs());
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Whatever its guest is about. `while_paused` is done in between.
fn pause_and_resume(
    machine: &Machine,
    seen: &mut Seen,
    while_paused: impl FnOnce(&Machine) -> Result<()>,
) -> Result<()> {
    becomes(machine, &Request::Pause, MachineState::Paused, seen)?;
    while_paused(machine)?;
    becomes(machine, &Request::Resume, MachineState::Running, seen)
}

fn becomes(machine: &Machine, request: &Request, state: MachineState, seen: &mut Seen) -> Result<()> {
    let asked = machine.ask(request)?;
    ensure!(asked.response == Response::Done, "{request:?} was answered {:?}", asked.response);
    seen.answer = seen.answer.max(asked.took);
    let (status, _) = machine.status()?;
    ensure!(status.state == state, "{:?} after {request:?}", status.state);
    Ok(())
}

/// A machine is saved whatever state its guest has left its devices in.
fn save(machine: &Machine) -> Result<()> {
    let (state, memory) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let request = Request::Snapshot(SnapshotRequest { kind: SnapshotKind::Full, key: "5a".repeat(32) });
    let asked = machine.ask_with(&request, &[state.as_fd(), memory.as_fd()])?;
    let Response::Snapshot(taken) = asked.response else {
        bail!("a snapshot was answered {:?}", asked.response)
    };
    ensure!(state.metadata()?.len() == taken.state_bytes, "{taken:?}");
    ensure!(memory.metadata()?.len() == MEMORY_MIB << 20, "{taken:?}");
    Ok(())
}

/// A guest that is done is halted: its VMM has nothing to do, can be paused and resumed, and ends when it is told to.
fn stop(machine: &mut Machine, seen: &mut Seen) -> Result<()> {
    let before = processor_ticks(machine.pid())?;
    let began = Instant::now();
    std::thread::sleep(IDLE_TIME);
    let ticks = processor_ticks(machine.pid())?.saturating_sub(before);
    seen.idle_share = ticks as f64 * 0.01 / began.elapsed().as_secs_f64();
    pause_and_resume(machine, seen, save)?;
    let killed = machine.ask(&Request::Kill)?;
    ensure!(killed.response == Response::Killed, "a kill was answered {:?}", killed.response);
    machine.wait(END_LIMIT)?;
    ends_by_itself(machine, ExitReason::Killed)
}

fn ends_by_itself(machine: &mut Machine, reason: ExitReason) -> Result<()> {
    let status = machine.wait(END_LIMIT)?;
    ensure!(status.success(), "the VMM ended with {status}");
    let record = machine.record()?;
    ensure!(record.reason == reason, "{:?} ({}) instead of {reason:?}", record.reason, record.message);
    Ok(())
}

/// Each kind of event that the case's row names was counted, and told on the watching connection.
fn told(case: &Case, machine: &Machine) -> Result<String> {
    let counted = machine.record()?.events;
    let until = Instant::now() + EVENT_LIMIT;
    for (kind, device) in case.told {
        let is_it = |k, d: &str| k == *kind && d == *device;
        ensure!(
            counted.iter().any(|event| is_it(event.kind, &event.device) && event.count > 0),
            "nothing counted as {} of {device}: {counted:?}",
            kind.as_str()
        );
        while !machine.events().iter().any(|(_, event)| is_it(event.kind, &event.device)) {
            ensure!(Instant::now() < until, "no event {} of {device}", kind.as_str());
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
    let words =
        counted.iter().map(|event| format!("{} {} {}", event.device, event.kind.as_str(), event.count));
    Ok(words.collect::<Vec<_>>().join(", "))
}

/// What went out of the network device, and what did not.
fn frames_are_right(case: &Case, machine: &Machine) -> Result<()> {
    let counters = machine.record()?.counters;
    let (sent, spoofed) = (counters.net_transmitted_bytes, counters.net_spoofed_frames);
    match case.name {
        // the one right frame that each ends with
        "G35" | "G36" => ensure!(sent == PROBE_BYTES, "{sent} bytes of frames went out, not {PROBE_BYTES}"),
        "G37" => ensure!(counters.net_dropped_frames > 0, "no frame was too long for its buffers"),
        _ => return Ok(()),
    }
    ensure!(spoofed > 0 || case.name == "G36", "no frame with another's address was counted");
    ensure!(counters.net_received_bytes > 0, "no frame was received");
    Ok(())
}

/// What the guest could have made grow on the host's disk or in its sockets has not grown.
fn files_are_bounded(case: &Case, machine: &Machine, host: &Host) -> Result<()> {
    use pinfold_vmm_api::console::{HEADER_BYTES, RING_BYTES};
    let length = std::fs::metadata(machine.path("console"))?.len();
    ensure!(length == HEADER_BYTES + RING_BYTES, "the console's file has {length} bytes");
    let flooded = host.flooded.load(std::sync::atomic::Ordering::Relaxed);
    ensure!(flooded <= FLOOD_BYTES_MAX, "{flooded} bytes were taken for a guest that reads nothing");
    if case.name == "G10" {
        ensure!(flooded > 0, "nobody was flooded");
    }
    if case.name == "G15" {
        ensure!(machine.record()?.counters.console_dropped_bytes > 0, "nothing was dropped");
    }
    let mut sector = [0; 512];
    let image = std::fs::File::open(machine.path("disk1"))?;
    for index in 0..64 {
        image.read_exact_at(&mut sector, index * 512)?;
        ensure!(sector == [0; 512], "the read-only image was written to");
    }
    Ok(())
}
