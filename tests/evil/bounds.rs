//! What a VMM may cost its host, whatever its guest does: looked at all the time while a case runs.

use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

/// Private memory outside the guest's: buffers of all connections included.
const PRIVATE_BYTES: u64 = 20 << 20;
/// A socket for each connection that a guest may open, and what the machine itself has.
const DESCRIPTORS: usize = 320;
/// Beside the vCPUs: the device thread, and workers of the kernel's for its I/O.
const THREADS_BESIDE_VCPUS: usize = 9;
/// Of one case, which takes seconds.
const LOG_LINES: usize = 60;
const LOG_LINE_BYTES: usize = 400;
/// For one answer of the control socket, on a machine of two cores that runs four vCPUs.
const ANSWER: Duration = Duration::from_secs(5);
/// Share of one processor that a VMM may use while its guest is halted.
const IDLE_SHARE: f64 = 0.3;
/// The question of a neighbour, on the same machine.
const NEIGHBOUR: Duration = Duration::from_secs(5);

/// The most that was seen of each.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    pub private_bytes: u64,
    pub descriptors: usize,
    pub threads: usize,
    pub log_lines: usize,
    pub answer: Duration,
    pub neighbour: Duration,
    pub idle_share: f64,
}

impl Seen {
    /// Another look.
    pub fn look(&mut self, pid: u32, private_bytes: u64, answer: Duration) {
        self.private_bytes = self.private_bytes.max(private_bytes);
        self.answer = self.answer.max(answer);
        let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
        self.descriptors = self.descriptors.max(count("fd"));
        self.threads = self.threads.max(count("task"));
    }

    /// `ends`: the machine ends by itself, maybe before anybody looks.
    pub fn judge(&self, vcpus: u32, ends: bool, log: &str) -> Result<()> {
        let bound = |what: &str, seen: u64, bound: u64| {
            ensure!(seen <= bound, "{what}: {seen}, the bound is {bound}");
            Ok(())
        };
        // a VMM makes itself undumpable: only root may list its descriptors
        ensure!(ends || self.descriptors > 0, "the VMM's descriptors cannot be counted: run this as root");
        bound("private bytes of the VMM", self.private_bytes, PRIVATE_BYTES)?;
        bound("descriptors of the VMM", self.descriptors as u64, DESCRIPTORS as u64)?;
        bound("threads of the VMM", self.threads as u64, u64::from(vcpus) + THREADS_BESIDE_VCPUS as u64)?;
        bound("lines of log", self.log_lines as u64, LOG_LINES as u64)?;
        let longest = log.lines().map(str::len).max().unwrap_or(0);
        bound("bytes of a line of log", longest as u64, LOG_LINE_BYTES as u64)?;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        bound("milliseconds for an answer of the control socket", millis(self.answer), millis(ANSWER))?;
        bound("milliseconds for an answer of the neighbour", millis(self.neighbour), millis(NEIGHBOUR))?;
        let share = self.idle_share;
        ensure!(share <= IDLE_SHARE, "the VMM of a halted guest uses {share:.2} of a processor");
        Ok(())
    }
}

/// Processor time of a process so far, in clock ticks of 10 ms (proc(5), `stat`, fields 14 and 15).
pub fn processor_ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').context("a name in parentheses")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |index: usize| -> Result<u64> { Ok(fields.get(index).context("so many fields")?.parse()?) };
    Ok(ticks(11)? + ticks(12)?)
}
