//! cgroups, loopback and limits: what keeps the workload from the agent, and what programs expect of a machine.

use super::mounts;
use crate::cgroup::{self, Workload};
use crate::console::{self, Fatal};
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

const CGROUPS: &str = "/sys/fs/cgroup";
const MIB: u64 = 1 << 20;
/// Least memory that the workload leaves free of what is available when it starts; else a sixteenth of all. So the
/// workload meets its own limit, where only its largest process ends, before the kernel runs out for everybody.
const RESERVE_BYTES: u64 = 16 * MIB;
/// Memory of the agent that is not reclaimed.
const AGENT_BYTES: u64 = 16 * MIB;
/// Until the host says how many.
const FIRST_PIDS_MAX: u64 = 512;
/// Descriptors of the agent: four for each process, one for each file and connection, and some.
const OPEN_FILES: u64 = 4096;

/// Puts this process into `/agent` and makes `/workload`.
pub fn set_up_cgroups() -> Result<Workload, Fatal> {
    mounts::cgroups(CGROUPS)?;
    let root = Path::new(CGROUPS);
    enable(root, &["pids"], &["memory", "cpu", "io"])?;
    let agent = root.join("agent");
    let workload = root.join("workload");
    for path in [&agent, &workload] {
        DirBuilder::new().create(path).map_err(Fatal::internal("cannot make a cgroup"))?;
    }
    cgroup::write(&agent.join("cgroup.procs"), 1).map_err(Fatal::internal("cannot enter the cgroup"))?;
    // the processor is shared between commands, not processes: a fork bomb in one does not starve the next
    enable(&workload, &["pids"], &["cpu"])?;
    // a kernel without the memory or cpu controller has none of these, and has said so above
    drop(cgroup::write(&agent.join("memory.min"), AGENT_BYTES));
    drop(cgroup::write(&agent.join("cpu.weight"), 10_000));
    drop(cgroup::write(
        &workload.join("memory.max"),
        workload_bytes(meminfo("MemTotal:"), meminfo("MemAvailable:")),
    ));
    drop(cgroup::write(&workload.join("memory.oom.group"), 0));
    let workload = Workload::in_cgroup(workload);
    workload.set_pids_max(FIRST_PIDS_MAX).map_err(Fatal::internal("cannot bound the processes"))?;
    Ok(workload)
}

/// Without `needed` there is no bound on what the workload may do; without `wanted` it is a poorer one.
fn enable(parent: &Path, needed: &[&str], wanted: &[&str]) -> Result<(), Fatal> {
    let control = parent.join("cgroup.subtree_control");
    for name in needed {
        cgroup::write(&control, format!("+{name}"))
            .map_err(|error| Fatal::Internal(format!("no {name} controller: {error}")))?;
    }
    for name in wanted {
        if let Err(error) = cgroup::write(&control, format!("+{name}")) {
            console::say(format_args!("no {name} controller: {error}"));
        }
    }
    Ok(())
}

fn workload_bytes(total: u64, available: u64) -> u64 {
    available.saturating_sub((total / 16).max(RESERVE_BYTES))
}

/// What the guest's kernel manages, in bytes.
pub fn memory_bytes() -> u64 {
    meminfo("MemTotal:")
}

/// A line of `/proc/meminfo` (proc_meminfo(5)), in bytes; 0 when it is not there.
fn meminfo(name: &str) -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Whatever of this fails is missed later by who needs it; it is said on the console and is not the guest's end.
pub fn set_up_the_rest() {
    let said = |act: &str, done: io::Result<()>| {
        if let Err(error) = done {
            console::say(format_args!("cannot {act}: {error}"));
        }
    };
    said("be the last victim of the OOM killer", cgroup::write(Path::new("/proc/self/oom_score_adj"), -1000));
    // its list of all processes would take seconds on a serial port
    said("shorten the OOM report", cgroup::write(Path::new("/proc/sys/vm/oom_dump_tasks"), 0));
    let files = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES);
    said("raise the limit on open files", files.map_err(io::Error::from));
    said("bring up the loopback", bring_up_loopback());
}

/// `ip link set lo up`: netdevice(7).
fn bring_up_loopback() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the descriptor is open, and SIOCSIFFLAGS reads one ifreq, which `request` is.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    Errno::result(done).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_leaves_memory_to_the_kernel_and_the_agent() {
        assert_eq!(workload_bytes(96 * MIB, 60 * MIB), 44 * MIB);
        assert_eq!(workload_bytes(1600 * MIB, 1500 * MIB), 1400 * MIB);
        assert_eq!(workload_bytes(0, 0), 0);
    }

    #[test]
    fn meminfo_is_read_in_bytes() {
        assert!(meminfo("MemTotal:") > meminfo("MemAvailable:"));
        assert_eq!(meminfo("NoSuchLine:"), 0);
    }
}
