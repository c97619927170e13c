//! `cargo xtask test`: every test of the workspace, in three stages, with a closing summary.
//!
//! ```text
//!   units, simulation, integration, style   by nextest when it is there, else by cargo test
//!   hostile guest: tests/evil on this KVM   one process, a table of its cases
//!   system: real microVMs in a virtual node  one process, its cases' results as they come
//!   fuzz: each target of vmm/fuzz             a few seconds each
//! ```
//!
//! Every stage runs whatever the others say.

use crate::build;
use crate::check;
use crate::fuzz;
use crate::images;
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Instant;

/// The test target that needs a virtual node.
const SYSTEM: &str = "system";
/// The test target that needs a `/dev/kvm`, of any kind, and a tap.
const EVIL: &str = "evil";
const EVIL_NEEDS: [&str; 2] = ["/dev/kvm", "/dev/net/tun"];

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Leave out the tests that need a virtual node
    #[arg(long)]
    pub no_system: bool,
    /// Leave out the short run of each fuzz target
    #[arg(long)]
    pub no_fuzz: bool,
    /// Only tests whose names contain one of these
    pub filters: Vec<String>,
}

/// What a stage came to.
struct Outcome {
    stage: &'static str,
    passed: bool,
    seconds: u64,
    /// the runner's own words
    counts: Counts,
}

pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let began = Instant::now();
    let mut outcomes = vec![stage(
        "units, simulation, integration, style",
        workspace,
        &mut first_stage(workspace, arguments)?,
    )?];
    let own_list = |target: &str| {
        let mut cargo = workspace.cargo();
        cargo.args(["test", "--workspace", "--test", target, "--"]).args(&arguments.filters);
        cargo
    };
    let closed = |device: &&str| File::options().read(true).write(true).open(device).is_err();
    let lacking = match EVIL_NEEDS.into_iter().find(closed) {
        Some(device) => Some(format!("{device} cannot be opened here")),
        None if fs::metadata("/proc/self")?.uid() != 0 => Some("only root can make a tap for it".to_owned()),
        None => None,
    };
    match lacking {
        None => {
            outcomes.push(stage("hostile guest, in microVMs on this host", workspace, &mut own_list(EVIL))?);
        }
        Some(why) => println!("\n\u{2022} tests: the hostile guest is left out: {why}"),
    }
    if !arguments.no_system {
        build::test_programs(workspace)?;
        outcomes.push(stage("system, with real microVMs", workspace, &mut own_list(SYSTEM))?);
    }
    if !arguments.no_fuzz && arguments.filters.is_empty() {
        outcomes.push(fuzz_stage(workspace));
    }
    println!(
        "\nSummary of `cargo xtask test`: {} s, builds of the tests included",
        began.elapsed().as_secs()
    );
    println!("  default guest kernel: {}", images::default_kernel(workspace));
    for outcome in &outcomes {
        let verdict = if outcome.passed { "passed" } else { "FAILED" };
        println!("  {verdict}  {:<40} {:>5} s  {}", outcome.stage, outcome.seconds, outcome.counts.text());
    }
    ensure!(outcomes.iter().all(|outcome| outcome.passed), "some tests failed, see above");
    Ok(())
}

/// A short run of each fuzz target; each counts as a test.
fn fuzz_stage(workspace: &Workspace) -> Outcome {
    let began = Instant::now();
    let result = fuzz::run(workspace, &fuzz::Arguments::short());
    if let Err(error) = &result {
        println!("{error:#}");
    }
    let targets = fuzz::count(workspace);
    let counts = match result {
        Ok(()) => Counts { passed: targets, ..Counts::default() },
        Err(_) => Counts { failed: 1, ..Counts::default() },
    };
    let passed = counts.failed == 0;
    Outcome { stage: "fuzz targets, a few seconds each", passed, seconds: began.elapsed().as_secs(), counts }
}

fn first_stage(workspace: &Workspace, arguments: &Arguments) -> Result<Command> {
    let mut cargo = workspace.cargo();
    if check::has_nextest(workspace) {
        cargo.args(["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests", "pass"]);
        cargo.args(["-E", &format!("not binary({SYSTEM}) and not binary({EVIL})")]).args(&arguments.filters);
        return Ok(cargo);
    }
    cargo.args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins"]);
    for target in test_targets(workspace)? {
        cargo.args(["--test", &target]);
    }
    cargo.arg("--").args(&arguments.filters);
    Ok(cargo)
}

/// Names of the integration test targets, those of a stage of their own left out: cargo has no option for that.
fn test_targets(workspace: &Workspace) -> Result<Vec<String>> {
    let mut cargo = workspace.cargo();
    let text = crate::command::output(cargo.args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("reading cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let targets = packages.iter().filter_map(|package| package["targets"].as_array()).flatten();
    let tests = targets.filter(|target| target["kind"][0] == "test");
    let mut names: Vec<String> = tests
        .filter_map(|target| target["name"].as_str())
        .filter(|name| ![SYSTEM, EVIL].contains(name))
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Runs one stage; its output goes straight through and is counted on the way.
fn stage(title: &'static str, workspace: &Workspace, command: &mut Command) -> Result<Outcome> {
    println!("\n\u{2022} tests: {title}");
    let began = Instant::now();
    command.env("PINFOLD_BUILD_DIR", &workspace.build).env("PINFOLD_BIN_DIR", workspace.binaries());
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().context("starting cargo")?;
    // the command still holds the pipe's writing end: without this the reader would never see the end
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut counts = Counts::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.context("reading the tests' output")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        counts.add(&line);
    }
    let passed = child.wait().context("waiting for cargo")?.success();
    Ok(Outcome { stage: title, passed, seconds: began.elapsed().as_secs(), counts })
}

/// Passed and failed tests, from the lines of the three runners.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    /// virtual nodes that were replaced
    replaced: u64,
}

impl Counts {
    fn add(&mut self, line: &str) {
        let number_before = |word: &str| {
            let words: Vec<&str> = line.split([' ', ',', ';', '.']).filter(|part| !part.is_empty()).collect();
            let at = words.iter().position(|part| *part == word)?;
            words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
        };
        let is_summary =
            line.contains("tests run:") || line.starts_with("test result:") || line.ends_with(" skipped");
        if is_summary {
            self.passed += number_before("passed").unwrap_or(0);
            self.failed += number_before("failed").unwrap_or(0);
        }
        if let Some(count) = line.strip_prefix("nodes that fell silent and were replaced: ") {
            self.replaced += count.trim().parse::<u64>().unwrap_or(0);
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{} passed, {} failed", self.passed, self.failed);
        if self.replaced > 0 {
            text.push_str(&format!(", {} silent nodes replaced", self.replaced));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(lines: &[&str]) -> Counts {
        let mut counts = Counts::default();
        lines.iter().for_each(|line| counts.add(line));
        counts
    }

    #[test]
    fn counts_nextest() {
        let line = "     Summary [   4.190s] 345 tests run: 343 passed (1 slow), 2 failed, 7 skipped";
        assert_eq!(
            counted(&["        PASS [   0.1s] a::passed", line]),
            Counts { passed: 343, failed: 2, replaced: 0 }
        );
    }

    #[test]
    fn counts_libtest_over_several_binaries() {
        let line =
            "test result: ok. 21 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.04s";
        assert_eq!(counted(&[line, "test a ... ok", line]), Counts { passed: 42, failed: 2, replaced: 0 });
    }

    #[test]
    fn counts_the_system_tests() {
        let lines = ["nodes that fell silent and were replaced: 1", "30 passed, 0 failed, 2 skipped"];
        let counts = counted(&lines);
        assert_eq!(counts, Counts { passed: 30, failed: 0, replaced: 1 });
        assert_eq!(counts.text(), "30 passed, 0 failed, 1 silent nodes replaced");
    }
}
