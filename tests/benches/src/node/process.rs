//! What the scheduler knows of a process: CPU time to the nanosecond, threads, and how often they gave the CPU away.

use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Activity {
    pub threads: u64,
    /// on a CPU, the guest's time included
    pub cpu_ns: u64,
    /// sleeps that ended: each is a wake-up of a thread
    pub voluntary_switches: u64,
}

impl Activity {
    pub fn since(&self, before: &Self) -> Self {
        Self {
            threads: self.threads,
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            voluntary_switches: self.voluntary_switches.saturating_sub(before.voluntary_switches),
        }
    }
}

/// Sums over the threads of a process.
pub fn activity(pid: u32) -> Result<Activity> {
    let mut sum = Activity::default();
    let tasks = format!("/proc/{pid}/task");
    for entry in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
        let path = entry?.path();
        // a thread may end while we look
        let Ok(statistics) = fs::read_to_string(path.join("schedstat")) else { continue };
        let Ok(status) = fs::read_to_string(path.join("status")) else { continue };
        sum.threads += 1;
        sum.cpu_ns += number(statistics.split_whitespace().next());
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum.voluntary_switches += number(line.map(str::trim));
    }
    Ok(sum)
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_the_processor() {
        let seen = activity(std::process::id()).unwrap();
        assert!(seen.threads >= 1 && seen.cpu_ns > 0, "{seen:?}");
        assert_eq!(seen.since(&seen).cpu_ns, 0);
    }
}
