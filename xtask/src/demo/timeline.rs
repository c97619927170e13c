//! The timeline of a sandbox, from the JSON form of `pinfold get`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// In the order in which they happen.
const MILESTONES: &[&str] =
    &["accepted", "placed", "jailed", "booted", "guest_ready", "first_byte", "stopped"];

/// Prints one line per milestone; a milestone that is missing is an error.
pub fn print(sandbox: &Value) -> Result<()> {
    let entries = read(sandbox)?;
    println!("\n  timeline of {}", sandbox["id"].as_str().unwrap_or("a sandbox without an id"));
    println!("    {:<12} {:>10} {:>10}", "milestone", "at ms", "after ms");
    let mut previous = 0;
    for (name, at_ms) in entries {
        println!("    {name:<12} {at_ms:>10} {:>10}", format!("+{}", at_ms.saturating_sub(previous)));
        previous = at_ms;
    }
    Ok(())
}

/// Milliseconds since acceptance of every milestone.
fn read(sandbox: &Value) -> Result<Vec<(String, u64)>> {
    let timeline = sandbox["timeline"].as_array().context("the sandbox has no timeline")?;
    let mut entries = Vec::new();
    for entry in timeline {
        let name = entry["milestone"].as_str().context("a milestone has no name")?.replace('-', "_");
        let at_ms = entry["since_accepted_ms"].as_u64().with_context(|| format!("{name} has no time"))?;
        entries.push((name, at_ms));
    }
    for milestone in MILESTONES {
        ensure!(entries.iter().any(|(name, _)| name == milestone), "the timeline has no {milestone}");
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sandbox(milestones: &[&str]) -> Value {
        let entries: Vec<Value> = milestones
            .iter()
            .enumerate()
            .map(|(at, name)| json!({"milestone": name, "since_accepted_ms": at * 10}))
            .collect();
        json!({"id": "x", "timeline": entries})
    }

    #[test]
    fn reads_every_milestone() {
        let entries = read(&sandbox(MILESTONES)).expect("complete");
        assert_eq!(entries[1], ("placed".to_owned(), 10));
        assert_eq!(entries.len(), MILESTONES.len());
    }

    #[test]
    fn a_missing_milestone_is_an_error() {
        let error = read(&sandbox(&MILESTONES[..4])).expect_err("incomplete").to_string();
        assert_eq!(error, "the timeline has no guest_ready");
        assert!(read(&json!({})).is_err());
    }
}
