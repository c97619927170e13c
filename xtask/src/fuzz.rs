//! `cargo xtask fuzz`: the fuzz targets of the VMM, each for a while, with a table at the end.
//!
//! The binaries are made by cargo-fuzz, installed under `build/tools`. It wants a nightly compiler; this workspace's stable
//! one does with `RUSTC_BOOTSTRAP`. New inputs go to `build/fuzz/<target>`, so a run never changes the checkout unless it is
//! told to `--keep` them.

use crate::command;
use crate::progress::Step;
use crate::setup;
use crate::workspace::{TARGET, Workspace};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The version that the targets are known to build with.
const CARGO_FUZZ: &str = "0.13.2";
/// libFuzzer links against the C++ library.
const PACKAGES: &[&str] = &["g++"];
/// An input that takes longer is a finding.
const INPUT_SECONDS_MAX: u32 = 10;
const RESIDENT_MIB_MAX: u32 = 2048;
/// Kept inputs of a target are merged down to those that reach different code, none longer than this.
const INPUT_BYTES_MAX: u32 = 4096;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How long each target runs
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
    /// Add inputs that reach new code to the corpora in the checkout
    #[arg(long)]
    pub keep: bool,
    /// Only these targets
    pub targets: Vec<String>,
}

impl Arguments {
    /// For every run of the tests.
    pub fn short() -> Self {
        Self { seconds: 5, keep: false, targets: Vec::new() }
    }
}

/// How many targets there are.
pub fn count(workspace: &Workspace) -> u64 {
    chosen(&workspace.root.join("vmm/fuzz"), &[]).map_or(0, |targets| targets.len() as u64)
}

/// What one target came to.
struct Outcome {
    target: String,
    executions: u64,
    /// edges of the control flow graph that were reached
    edges: u64,
    finding: Option<PathBuf>,
}

pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let folder = workspace.root.join("vmm/fuzz");
    let targets = chosen(&folder, &arguments.targets)?;
    setup::ensure(workspace, PACKAGES, "what libFuzzer links against")?;
    let binaries = build(workspace, &folder)?;
    let mut outcomes = Vec::new();
    for target in targets {
        let step = Step::begin("fuzz", &format!("{target} for {} s", arguments.seconds));
        let outcome = fuzz(workspace, &step, &folder, &binaries, &target, arguments)?;
        step.done(&format!("{} executions, {} edges", outcome.executions, outcome.edges));
        outcomes.push(outcome);
    }
    println!("\n{:<16} {:>12} {:>8}  finding", "target", "executions", "edges");
    for outcome in &outcomes {
        let finding = outcome.finding.as_deref().map_or("none".to_owned(), |path| path.display().to_string());
        println!("{:<16} {:>12} {:>8}  {finding}", outcome.target, outcome.executions, outcome.edges);
    }
    ensure!(outcomes.iter().all(|outcome| outcome.finding.is_none()), "fuzzing found something, see above");
    Ok(())
}

/// All targets, or those asked for; an unknown one is an error that lists the known.
fn chosen(folder: &Path, asked: &[String]) -> Result<Vec<String>> {
    let mut known = Vec::new();
    for entry in fs::read_dir(folder.join("fuzz_targets")).context("listing the fuzz targets")? {
        let path = entry?.path();
        known.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    known.sort();
    if let Some(unknown) = asked.iter().find(|name| !known.contains(name)) {
        bail!("{unknown} is no fuzz target; there are {}", known.join(", "));
    }
    Ok(if asked.is_empty() { known } else { asked.to_vec() })
}

/// Builds all targets; returns where they are.
fn build(workspace: &Workspace, folder: &Path) -> Result<PathBuf> {
    let tools = workspace.build.join("tools");
    let mut install = workspace.cargo();
    install.args(["install", "cargo-fuzz", "--locked", "--version", CARGO_FUZZ, "--root"]).arg(&tools);
    let step = Step::begin("fuzz", "cargo-fuzz and the binaries of the targets");
    command::run(&step, &workspace.log("cargo-fuzz"), &mut install)?;
    let target = workspace.build.join("fuzz/target");
    let mut cargo = Command::new(tools.join("bin/cargo-fuzz"));
    cargo.current_dir(folder).env("RUSTC_BOOTSTRAP", "1");
    cargo
        .args(["fuzz", "build", "--release", "--target", TARGET, "--fuzz-dir", ".", "--target-dir"])
        .arg(&target);
    command::run(&step, &workspace.log("fuzz-build"), &mut cargo)?;
    step.done("built with the address sanitizer");
    Ok(target.join(TARGET).join("release"))
}

fn fuzz(
    workspace: &Workspace,
    step: &Step,
    folder: &Path,
    binaries: &Path,
    target: &str,
    arguments: &Arguments,
) -> Result<Outcome> {
    let (found, corpus) = (workspace.build.join("fuzz").join(target), folder.join("corpus").join(target));
    let artifacts = workspace.build.join("fuzz/findings").join(target);
    for directory in [&found, &artifacts] {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    let before = list(&artifacts)?;
    let mut fuzzer = Command::new(binaries.join(target));
    fuzzer
        .arg(format!("-max_total_time={}", arguments.seconds))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={RESIDENT_MIB_MAX}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args([&found, &corpus]);
    let log = workspace.log(&format!("fuzz-{target}"));
    // it ends with an error when it found something: the new file says so too
    let ended = command::run(step, &log, &mut fuzzer);
    let finding = list(&artifacts)?.into_iter().find(|path| !before.contains(path));
    if let (Err(error), None) = (ended, &finding) {
        return Err(error);
    }
    if arguments.keep {
        merge(&binaries.join(target), &corpus, &found)?;
    }
    let text = fs::read(&log).with_context(|| format!("reading {}", log.display()))?;
    let (executions, edges) = progress_of(&String::from_utf8_lossy(&text));
    Ok(Outcome { target: target.to_owned(), executions, edges, finding })
}

fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Adds to `corpus` what of `found` reaches code that `corpus` does not.
fn merge(binary: &Path, corpus: &Path, found: &Path) -> Result<()> {
    let mut fuzzer = Command::new(binary);
    fuzzer.args(["-merge=1", &format!("-max_len={INPUT_BYTES_MAX}")]).args([corpus, found]);
    let status = fuzzer.stdout(Stdio::null()).stderr(Stdio::null()).status().context("merging a corpus")?;
    ensure!(status.success(), "merging {} ended with {status}", corpus.display());
    Ok(())
}

/// Executions and edges in the last line of progress: `#161969 DONE cov: 900 ft: 3761 ...`.
fn progress_of(log: &str) -> (u64, u64) {
    let mut progress = (0, 0);
    for line in log.lines() {
        let Some(rest) = line.strip_prefix('#') else { continue };
        let words: Vec<&str> = rest.split_whitespace().collect();
        let Some(executions) = words.first().and_then(|word| word.parse().ok()) else { continue };
        let edges =
            words.iter().position(|word| *word == "cov:").and_then(|at| words.get(at + 1)?.parse().ok());
        progress = (executions, edges.unwrap_or(progress.1));
    }
    progress
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_the_last_line() {
        let log = "INFO: seed\n#2\tINITED cov: 10 ft: 11\n#500\tNEW    cov: 20 ft: 30\n#161969\tDONE   cov: 900 ft: 3761\nDone 161969\n";
        assert_eq!(progress_of(log), (161_969, 900));
        assert_eq!(progress_of("nothing"), (0, 0));
    }

    #[test]
    fn an_unknown_target_is_refused_with_the_known_ones() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmm/fuzz");
        let error = chosen(&folder, &["nosuch".to_owned()]).expect_err("unknown").to_string();
        assert!(error.contains("nosuch") && error.contains("vsock_packets"), "{error}");
        assert_eq!(chosen(&folder, &["rng".to_owned()]).expect("known"), ["rng"]);
        assert!(chosen(&folder, &[]).expect("all").len() > 5);
    }
}
