//! What is printed: one form for programs ([`view`], JSON or YAML) and one for people ([`table`]).

pub mod saved;
pub mod table;
pub mod view;

use crate::args::Format;
use anyhow::{Context, Result};
use serde::Serialize;
use std::io::Write;

/// Prints `value` for a program, or `table` for a person.
pub fn show<T: Serialize>(format: Format, value: &T, table: impl FnOnce() -> String) -> Result<()> {
    let text = match format {
        Format::Table => table(),
        Format::Json => serde_json::to_string_pretty(value).context("cannot write JSON")? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(value).context("cannot write YAML")?,
    };
    write_stdout(text.as_bytes())
}

/// One of a stream of values: a JSON line, a YAML document, or `line`.
pub fn show_one<T: Serialize>(format: Format, value: &T, line: impl FnOnce() -> String) -> Result<()> {
    let text = match format {
        Format::Table => line(),
        Format::Json => serde_json::to_string(value).context("cannot write JSON")? + "\n",
        Format::Yaml => format!("---\n{}", serde_yaml_ng::to_string(value).context("cannot write YAML")?),
    };
    write_stdout(text.as_bytes())
}

/// Unlike `print!` this is an error when the reader is gone, not a panic.
pub fn write_stdout(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).context("cannot write to stdout")
}

/// Milliseconds since the Unix epoch by this machine's clock.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
pub mod tests {
    use pinfold_domain::spec::{SandboxSpec, defaults};
    use pinfold_domain::{
        Cause, Epoch, FilterCount, Milestone, Phase, Reason, Revision, TimelineEntry, Timestamp,
    };
    use pinfold_sdk::{Explanation, Sandbox, Verdict};

    /// A sandbox that has run and failed.
    pub fn sandbox(id: &str) -> Sandbox {
        let at = |milestone, ms: u64| TimelineEntry { milestone, at: Timestamp(1_700_000_000_000 + ms) };
        Sandbox {
            id: id.parse().unwrap(),
            tenant: "default".into(),
            spec: SandboxSpec {
                name: "web".into(),
                image: "base".into(),
                kernel: None,
                resources: defaults::RESOURCES,
                labels: [("team".to_owned(), "blue".to_owned())].into(),
                environment: [].into(),
                ttl: defaults::TTL,
                start_timeout: defaults::START_TIMEOUT,
                node_labels: [].into(),
                io_bytes_per_second: None,
                source: Default::default(),
            },
            phase: Phase::Failed,
            cause: Some(Cause::new(Reason::GuestPanic, "not syncing: \x1b[2J")),
            node: Some("node-1".into()),
            epoch: Epoch(1),
            revision: Revision(42),
            created_at: Timestamp(1_700_000_000_000),
            phase_at: Timestamp(1_700_000_002_500),
            expires_at: Some(Timestamp(1_700_003_600_000)),
            timeline: vec![
                at(Milestone::Accepted, 0),
                at(Milestone::Placed, 1),
                at(Milestone::Jailed, 46),
                at(Milestone::Booted, 61),
                at(Milestone::GuestReady, 1905),
                at(Milestone::Stopped, 2500),
            ],
            explanation: Some(Explanation {
                verdict: Verdict::Placed,
                nodes_considered: 3,
                filters: vec![FilterCount { filter: "memory".into(), rejected: 1 }],
                node: Some("node-1".into()),
                sentence: "2 of 3 nodes fit: 1 rejected by memory".into(),
            }),
            held: None,
        }
    }
}
