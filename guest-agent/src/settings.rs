//! What the host sets before the sandbox is called ready: hostname, clock, bound on processes.

use crate::agent::{Agent, Role};
use crate::cgroup;
use crate::exec::plan::invalid;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use pinfold_domain::{Cause, Reason};
use pinfold_proto::guest::v1::ConfigureRequest;
use std::fs;
use std::io;
use std::path::Path;

/// 2000-01-01, in milliseconds since the Unix epoch: an earlier clock is a mistake of the host.
const EARLIEST_CLOCK_MS: u64 = 946_684_800_000;
/// `HOST_NAME_MAX`
const HOSTNAME_BYTES: usize = 64;
/// Most processes and threads of a kernel (`PID_MAX_LIMIT`).
const PIDS: u64 = 4 * 1024 * 1024;
/// What the kernel and the agent need beside the workload's.
const PIDS_BESIDE: u64 = 1024;

/// An empty hostname and a clock of 0 leave the guest's own.
pub fn apply(agent: &Agent, request: &ConfigureRequest) -> Result<(), Cause> {
    check(request)?;
    let failed =
        |act: &'static str| move |error: io::Error| Cause::new(Reason::Internal, format!("{act}: {error}"));
    agent.workload.set_pids_max(request.pids_max).map_err(failed("cannot bound the processes"))?;
    if agent.role == Role::Plain {
        return Ok(());
    }
    make_room_for(request.pids_max).map_err(failed("cannot raise the kernel's bound on processes"))?;
    if !request.hostname.is_empty() {
        let set = nix::unistd::sethostname(&request.hostname).map_err(io::Error::from);
        set.map_err(failed("cannot set the hostname"))?;
    }
    if request.clock_ms > 0 {
        set_clock(request.clock_ms).map_err(failed("cannot set the clock"))?;
    }
    Ok(())
}

fn check(request: &ConfigureRequest) -> Result<(), Cause> {
    if !(1..=PIDS).contains(&request.pids_max) {
        return Err(invalid(format!("pids_max is {}, outside 1 to {PIDS}", request.pids_max)));
    }
    if request.clock_ms > 0 && request.clock_ms < EARLIEST_CLOCK_MS {
        return Err(invalid(format!("clock_ms is {}, before the year 2000", request.clock_ms)));
    }
    check_hostname(&request.hostname)
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
        ConfigureRequest { hostname: "sb-1".into(), clock_ms: 1_750_000_000_000, pids_max: 64 }
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
    }
}
