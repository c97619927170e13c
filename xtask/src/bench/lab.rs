//! Where measurements are made: nodes that come and go, with retries that are counted.

use super::disk;
use super::node::{Node, Silent, Time};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

/// A node that falls silent is replaced this often for one measurement.
const ATTEMPTS: u32 = 4;
/// Of one call in the node. The node itself ends a command after 120 s of its own time.
const CALL_LIMIT: Duration = Duration::from_secs(200);

/// For the end of a measurement, 50 s each.
const WAITS: u32 = 8;

pub struct Lab<'a> {
    workspace: &'a Workspace,
    disk: PathBuf,
    node: Option<Node>,
    /// nodes that fell silent and were replaced
    pub replaced: u32,
    /// everything that was measured, in order: (label, value)
    pub samples: Vec<(String, Value)>,
}

impl<'a> Lab<'a> {
    pub fn new(workspace: &'a Workspace, disk: PathBuf) -> Self {
        Self { workspace, disk, node: None, replaced: 0, samples: Vec::new() }
    }

    /// One measurement in a node of its own that counts instructions.
    pub fn counted(&mut self, label: &str, arguments: &[&str]) -> Result<Value> {
        self.node = None;
        let value = self.retried(Time::Counted, label, arguments);
        self.node = None;
        value
    }

    /// One measurement by the wall's clock, in the node that is there.
    pub fn real(&mut self, label: &str, arguments: &[&str]) -> Result<Value> {
        self.retried(Time::Real, label, arguments)
    }

    /// The next measurement gets a new node.
    pub fn renew(&mut self) {
        self.node = None;
    }

    fn retried(&mut self, time: Time, label: &str, arguments: &[&str]) -> Result<Value> {
        for attempt in 1..=ATTEMPTS {
            match self.once(time, arguments) {
                Ok(value) => {
                    self.samples.push((label.to_owned(), value.clone()));
                    return Ok(value);
                }
                Err(error) if error.is::<Silent>() || error.chain().any(|cause| cause.is::<Silent>()) => {
                    self.node = None;
                    self.replaced += 1;
                    println!("    {label}: {error:#}; a new node (attempt {attempt} of {ATTEMPTS})");
                }
                Err(error) => {
                    self.node = None;
                    return Err(error.context(label.to_owned()));
                }
            }
        }
        bail!("{label}: {ATTEMPTS} virtual nodes fell silent, one after the other")
    }

    fn once(&mut self, time: Time, arguments: &[&str]) -> Result<Value> {
        if self.node.is_none() {
            self.node = Some(Node::start(self.workspace, &self.disk, time)?);
        }
        let node = self.node.as_mut().context("a node was just started")?;
        let words: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
        let command = format!("pinfold-bench-node {}", words.join(" "));
        let output = match time {
            Time::Counted => node.run(&command, CALL_LIMIT)?,
            Time::Real => behind(node, &command)?,
        };
        let line = output.lines().find_map(|line| line.strip_prefix("BENCH "));
        let line = line.with_context(|| format!("no result in {output:?}"))?;
        serde_json::from_str(line).with_context(|| format!("{line:?} is no JSON"))
    }
}

/// Runs a command behind the control shell, which ends what takes longer than 120 s. Where instructions are counted it is not
/// used: the waiting would be counted too.
fn behind(node: &mut Node, command: &str) -> Result<String> {
    let begin = format!(
        "rm -f /run/code; (trap '' TERM; setsid {command} >/run/out 2>&1; echo $? >/run/code.new; mv /run/code.new /run/code) \
         </dev/null >/dev/null 2>&1 &"
    );
    node.run(&begin, CALL_LIMIT)?;
    let wait = "n=0; while [ ! -e /run/code ] && [ $n -lt 100 ]; do sleep 0.5; n=$((n+1)); done; cat /run/code 2>/dev/null";
    for _ in 0..WAITS {
        // the shell's own exit code is that of cat: nothing there yet
        let Ok(code) = node.run(&format!("{wait} || true"), CALL_LIMIT)?.trim().parse::<i32>() else {
            continue;
        };
        let output = node.run("cat /run/out", CALL_LIMIT)?;
        ensure!(code == 0, "`{command}` ended with {code} in the node:\n{}", output.trim());
        return Ok(output);
    }
    Err(Silent::new("a measurement did not end").into())
}

/// For `sh`.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// A number in a sample, by a path such as `exits.total`.
pub fn at(value: &Value, path: &str) -> Result<f64> {
    let found = path.split('.').try_fold(value, |value, key| value.get(key));
    found.and_then(Value::as_f64).with_context(|| format!("a sample has no number {path}: {value}"))
}

/// Builds the disk, then hands the lab to `work`.
pub fn open<'a>(workspace: &'a Workspace, stock: &crate::images::stock::StockKernel) -> Result<Lab<'a>> {
    Ok(Lab::new(workspace, disk::make(workspace, stock)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_shell_whole() {
        assert_eq!(quoted("a-b=c/d.e,f"), "a-b=c/d.e,f");
        assert_eq!(quoted("console=ttyS0 it's"), "'console=ttyS0 it'\\''s'");
    }

    #[test]
    fn numbers_are_found_by_path() {
        let value = serde_json::json!({"exits": {"io": 284}});
        assert_eq!(at(&value, "exits.io").expect("there"), 284.0);
        assert!(at(&value, "exits.mmio").is_err());
    }
}
