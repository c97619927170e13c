//! Restores of a saved sandbox: our kernel, the guest agent, one processor; files in the node's memory.

use super::Sandbox;
use crate::bench::lab::{Lab, at};
use crate::bench::table::{Goal, Row, median};
use anyhow::{Context, Result};
use serde_json::Value;

const MIB: f64 = 1_048_576.0;
const CLONES: f64 = 20.0;

pub fn run(lab: &mut Lab<'_>, runs: u32) -> Result<Vec<Row>> {
    let runs = runs.to_string();
    let small = measure(lab, "256 MiB", &["--runs", &runs])?;
    let plain = measure(lab, "256 MiB, no working set", &["--runs", &runs, "--without-working-set"])?;
    let large = measure(lab, "2 GiB", &["--runs", &runs, "--memory-mib", "2048"])?;
    lab.renew();
    let clones = measure(lab, "20 clones", &["--runs", "1", "--clones", "20"])?;
    let small_ms = middle(&small, "to_answer_us")? / 1000.0;
    let what = "restore to guest agent answering, working set prefetched";
    Ok(vec![
        Row::ratio(what, Goal::RatioAtMost(0.08), small_ms, "ms", at(&small, "cold_us")? / 1000.0)
            .beside("cold boot with our kernel; recorded: Firecracker 0.054 of its own with the stock kernel, to the first line"),
        Row::shown("restore without a working set", middle(&plain, "to_answer_us")? / 1000.0, "ms"),
        Row::ratio(
            "restore of 2 GiB",
            Goal::RatioAtMost(1.2),
            middle(&large, "to_answer_us")? / 1000.0,
            "ms",
            small_ms,
        )
        .beside("of 256 MiB"),
        Row::shown("guest memory that a restored guest has of its own", middle(&small, "memory.guest_private")? / MIB, "MiB"),
        Row::shown("time to save 256 MiB", at(&small, "snapshot.took_us")? / 1000.0, "ms"),
        shared(&clones)?,
        own_files(&clones)?,
    ])
}

/// Of the template's pages, how many a clone still shares with the others.
fn shared(sample: &Value) -> Result<Row> {
    let template = at(sample, "snapshot.memory_data_bytes")?;
    let clones = sample["clones"]["memory"].as_array().context("a sample without clones")?;
    let own: Result<Vec<f64>> = clones.iter().map(|memory| at(memory, "guest_private")).collect();
    let own = own?.iter().sum::<f64>() / CLONES;
    let share = (template - own).max(0.0) / template * 100.0;
    Ok(Row::at_least("pages of the template that each of 20 clones shares", 80.0, share, "%").beside(
        format!(
            "{:.1} MiB in the template, {:.1} MiB of its own in a clone, on average",
            template / MIB,
            own / MIB
        ),
    ))
}

/// The VMM's program is one file in the page cache, whoever runs it: the jailer executes it by descriptor and copies nothing.
fn own_files(sample: &Value) -> Result<Row> {
    let clones = sample["clones"]["memory"].as_array().context("a sample without clones")?;
    let parts: Result<Vec<f64>> = clones.iter().map(|memory| at(memory, "vmm_file_proportional")).collect();
    let part = parts?.iter().sum::<f64>() / CLONES / MIB;
    Ok(Row::shown("file-backed memory of a VMM, its part of what 20 share", part, "MiB"))
}

fn measure(lab: &mut Lab<'_>, label: &str, more: &[&str]) -> Result<Value> {
    let sandbox = Sandbox::with("pinfold/vmlinux");
    let mut arguments = sandbox.arguments();
    arguments[0] = "restore";
    arguments.retain(|argument| *argument != "--agent");
    // each size has its files in the node's memory: one at a time
    lab.real(label, &[&arguments[..], &["--huge-pages", "never"], more].concat())
}

fn middle(sample: &Value, path: &str) -> Result<f64> {
    let restores = sample["restores"].as_array().context("a sample without restores")?;
    let values: Result<Vec<f64>> = restores.iter().map(|restore| at(restore, path)).collect();
    Ok(median(&values?))
}
