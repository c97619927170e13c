//! What the host sets before the sandbox is called ready: names, clock, bound on processes.

use crate::agent::{Agent, Role};
use crate::cgroup;
use crate::exec::plan::invalid;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use pinfold_domain::{Cause, Reason};
use pinfold_proto::guest::v1::ConfigureRequest;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// 2000-01-01, in milliseconds since the Unix epoch: an earlier clock is a mistake of the host.
const EARLIEST_CLOCK_MS: u64 = 946_684_800_000;
/// machine-id(5)
const MACHINE_ID_DIGITS: usize = 32;
/// `HOST_NAME_MAX`
const HOSTNAME_BYTES: usize = 64;
/// Most processes and threads of a kernel (`PID_MAX_LIMIT`).
const PIDS: u64 = 4 * 1024 * 1024;
/// What the kernel and the agent need beside the workload's.
const PIDS_BESIDE: u64 = 1024;

/// Empty names and a clock of 0 leave the guest's own.
pub fn apply(agent: &Agent, request: &ConfigureRequest) -> Result<(), Cause> {
    check(request)?;
    bound_processes(agent, request.pids_max)?;
    identify(agent, request.clock_ms, &request.hostname, &request.machine_id)
}

/// Both the workload's bound and the kernel's above it.
pub fn bound_processes(agent: &Agent, pids_max: u64) -> Result<(), Cause> {
    agent.workload.set_pids_max(pids_max).map_err(failed("bound the processes"))?;
    if agent.role == Role::Plain {
        return Ok(());
    }
    make_room_for(pids_max).map_err(failed("raise the kernel's bound on processes"))
}

/// What tells this machine from others, and the time. The clock comes last: it is right when the workload looks at it.
pub fn identify(agent: &Agent, clock_ms: u64, hostname: &str, machine_id: &str) -> Result<(), Cause> {
    if agent.role == Role::Plain {
        return Ok(());
    }
    if !hostname.is_empty() {
        let set = nix::unistd::sethostname(hostname).map_err(io::Error::from);
        set.map_err(failed("set the hostname"))?;
    }
    if let (Some(file), false) = (&agent.machine_id, machine_id.is_empty()) {
        // machine-id(5): 32 digits and a line feed. Always the same length, so nothing is left of the old one.
        file.write_all_at(format!("{machine_id}\n").as_bytes(), 0).map_err(failed("set the machine id"))?;
    }
    if clock_ms > 0 {
        set_clock(clock_ms).map_err(failed("set the clock"))?;
    }
    Ok(())
}

fn failed(act: &'static str) -> impl FnOnce(io::Error) -> Cause {
    move |error| Cause::new(Reason::Internal, format!("cannot {act}: {error}"))
}

fn check(request: &ConfigureRequest) -> Result<(), Cause> {
    check_pids_max(request.pids_max)?;
    check_identity(request.clock_ms, &request.hostname, &request.machine_id)
}

pub fn check_pids_max(pids_max: u64) -> Result<(), Cause> {
    if (1..=PIDS).contains(&pids_max) {
        return Ok(());
    }
    Err(invalid(format!("pids_max is {pids_max}, outside 1 to {PIDS}")))
}

pub fn check_identity(clock_ms: u64, hostname: &str, machine_id: &str) -> Result<(), Cause> {
    if clock_ms > 0 && clock_ms < EARLIEST_CLOCK_MS {
        return Err(invalid(format!("clock_ms is {clock_ms}, before the year 2000")));
    }
    let digits = machine_id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !machine_id.is_empty() && (machine_id.len() != MACHINE_ID_DIGITS || !digits) {
        return Err(invalid(format!("machine_id is not {MACHINE_ID_DIGITS} digits of 0-9 a-f")));
    }
    check_hostname(hostname)
}

/// Letters, digits, `-` and `.`, up to 64 bytes.
pub fn check_hostname(hostname: &str) -> Result<(), Cause> {
    if hostname.len() > HOSTNAME_BYTES {
        return Err(invalid(format!("hostname has {} bytes, the limit is {HOSTNAME_BYTES}", hostname.len())));
    }
    if hostname.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.') {
        return Ok(());
    }
    Err(invalid(format!("hostname {hostname:?}: allowed are a-z A-Z 0-9 - .")))
}

fn set_clock(clock_ms: u64) -> io::Result<()> {
    let too_far = || io::Error::from(io::ErrorKind::InvalidInput);
    let seconds = i64::try_from(clock_ms / 1000).map_err(|_| too_far())?;
    // below 10^9, so it fits
    let nanoseconds = (clock_ms % 1000) as i64 * 1_000_000;
    Ok(clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, nanoseconds))?)
}

/// The kernel derives its own bound on threads from the memory. In a small guest it could be below the workload's, and
/// then a fork bomb would meet it first, and the agent with it.
fn make_room_for(pids_max: u64) -> io::Result<()> {
    for bound in ["/proc/sys/kernel/threads-max", "/proc/sys/kernel/pid_max"] {
        let now: u64 = fs::read_to_string(bound)?.trim().parse().unwrap_or(0);
        let wanted = (pids_max + PIDS_BESIDE).min(PIDS);
        if now < wanted {
            cgroup::write(Path::new(bound), wanted)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ConfigureRequest {
        ConfigureRequest {
            hostname: "sb-1".into(),
            clock_ms: 1_750_000_000_000,
            pids_max: 64,
            machine_id: "0".repeat(32),
        }
    }

    #[test]
    fn each_bad_field_is_named() {
        assert!(check(&request()).is_ok());
        let message = |change: fn(&mut ConfigureRequest)| {
            let mut changed = request();
            change(&mut changed);
            check(&changed).unwrap_err().message
        };
        assert!(message(|r| r.pids_max = 0).contains("pids_max is 0"));
        assert!(message(|r| r.clock_ms = 5).contains("clock_ms"));
        assert!(message(|r| r.hostname = "a b".into()).contains("hostname"));
        assert!(message(|r| r.hostname = "a".repeat(65)).contains("64"));
        assert!(message(|r| r.machine_id = "0".repeat(33)).contains("machine_id"));
        assert!(message(|r| r.machine_id = "G".repeat(32)).contains("machine_id"));
    }
}
