//! What this machine can give to sandboxes when the operator does not say.

use super::{Act, HostError};
use pinfold_domain::Resources;
use std::path::Path;

const MIB: u64 = 1024 * 1024;
/// For the kernel, the agent and page cache: a fixed part and a share.
const MEMORY_KEPT_BYTES: u64 = 128 * MIB;
const MEMORY_SHARE_PERCENT: u64 = 85;
const DISK_SHARE_PERCENT: u64 = 90;
/// A guest's processes are the guest kernel's, so this bounds a promise, not the host's process table.
const PIDS: u64 = 1_000_000;

/// All CPUs, a share of memory, and a share of what is free where `state_dir` is.
pub fn of_machine(state_dir: &Path) -> Result<Resources, HostError> {
    let cpus = std::thread::available_parallelism().act(|| "count the CPUs".to_owned())?.get() as u64;
    let information = std::fs::read_to_string("/proc/meminfo").act(|| "read /proc/meminfo".to_owned())?;
    let total = memory_total_bytes(&information).unwrap_or(0);
    let disk = rustix::fs::statvfs(state_dir).act(|| format!("look at {}", state_dir.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok(Resources {
        cpu_millis: cpus * 1000,
        memory_bytes: (total / 100 * MEMORY_SHARE_PERCENT).saturating_sub(MEMORY_KEPT_BYTES),
        disk_bytes: free / 100 * DISK_SHARE_PERCENT,
        pids: PIDS,
    })
}

fn memory_total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_something_of_each() {
        let capacity = of_machine(Path::new("/")).unwrap();
        assert!(capacity.cpu_millis >= 1000 && capacity.memory_bytes > 0 && capacity.disk_bytes > 0);
    }

    #[test]
    fn memory_is_read_in_kibibytes() {
        assert_eq!(memory_total_bytes("MemTotal:        3072 kB\nMemFree: 1 kB\n"), Some(3072 * 1024));
        assert_eq!(memory_total_bytes(""), None);
    }
}
