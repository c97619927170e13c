//! The kernel's own trace points: when a program was executed, and when KVM first entered a guest.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const ROOT: &str = "/sys/kernel/tracing";
/// Trace points that a profile counts, by which of their fields.
const PROFILED: &[(&str, &str)] = &[
    ("kvm_exit", "exit_reason"),
    ("kvm_pio", "port"),
    ("kvm_msr", "ecx"),
    ("kvm_cpuid", "function"),
    ("kvm_page_fault", "fault_address"),
];
/// Entries of a histogram that are kept.
const HISTOGRAM_ENTRIES: usize = 24;

/// Times by CLOCK_MONOTONIC.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    pub first_entry_us: Option<u64>,
}

/// Watches for the first entry into a guest. One at a time.
pub struct Trace {
    profile: bool,
}

/// A field's values, with how often.
pub type Histogram = BTreeMap<String, u64>;

impl Trace {
    /// Needs tracefs. With `profile`, exits are counted by reason and port, which costs time on every exit.
    pub fn begin(profile: bool) -> Result<Self> {
        write("tracing_on", "0")?;
        write("trace_clock", "mono")?;
        write("trace", "")?;
        write("events/kvm/kvm_entry/enable", "1")?;
        // the first entry is all that is wanted; later ones must cost next to nothing
        write("events/kvm/kvm_entry/trigger", "traceoff:1")?;
        if profile {
            for (event, field) in PROFILED {
                write(&format!("events/kvm/{event}/trigger"), &format!("hist:keys={field}"))?;
            }
        }
        write("tracing_on", "1")?;
        Ok(Self { profile })
    }

    pub fn seen(&self) -> Result<Seen> {
        let text = read("trace")?;
        let entry = text.lines().find(|line| line.contains(" kvm_entry: "));
        Ok(Seen { first_entry_us: entry.and_then(time_us) })
    }

    /// By trace point, what exits were for.
    pub fn histograms(&self) -> Result<BTreeMap<&'static str, Histogram>> {
        let profiled = PROFILED.iter().filter(|_| self.profile);
        profiled
            .map(|(event, _)| Ok((*event, histogram(&read(&format!("events/kvm/{event}/hist"))?))))
            .collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // a trace that is left on only costs time
        let _ = write("events/kvm/kvm_entry/trigger", "!traceoff");
        let _ = write("events/kvm/kvm_entry/enable", "0");
        for (event, field) in PROFILED.iter().filter(|_| self.profile) {
            let _ = write(&format!("events/kvm/{event}/trigger"), &format!("!hist:keys={field}"));
        }
    }
}

/// `task-pid [cpu] flags seconds.micros: event: ...`
fn time_us(line: &str) -> Option<u64> {
    let before = line.split(": ").next()?;
    let (seconds, micros) = before.rsplit_once(' ')?.1.split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?)
}

/// `{ key: value } hitcount: n`, largest counts first.
fn histogram(text: &str) -> Histogram {
    let mut entries: Vec<(String, u64)> = text
        .lines()
        .filter_map(|line| {
            let (key, count) = line.strip_prefix('{')?.split_once("} hitcount:")?;
            let key = key.split_once(':')?.1.trim();
            Some((key.to_owned(), count.trim().parse().ok()?))
        })
        .collect();
    entries.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    entries.truncate(HISTOGRAM_ENTRIES);
    entries.into_iter().collect()
}

fn write(name: &str, text: &str) -> Result<()> {
    let path = Path::new(ROOT).join(name);
    fs::write(&path, text).with_context(|| format!("writing {text:?} to {}", path.display()))
}

fn read(name: &str) -> Result<String> {
    let path = Path::new(ROOT).join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_time_of_a_trace_line() {
        let line = "            vcpu0-212     [001] d....    12.345678: kvm_entry: vcpu 0, rip 0x1000200";
        assert_eq!(time_us(line), Some(12_345_678));
        assert_eq!(time_us("# tracer: nop"), None);
    }

    #[test]
    fn reads_a_histogram() {
        let text = "# event histogram\n\n{ port:         96 } hitcount:         12\n\
                    { port:       1016 } hitcount:        140\n\nTotals:\n    Hits: 152\n";
        let counts = histogram(text);
        assert_eq!(counts.get("1016"), Some(&140));
        assert_eq!(counts.len(), 2);
    }
}
