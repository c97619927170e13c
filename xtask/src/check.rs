//! `test` and `check`.

use crate::command;
use crate::progress::Step;
use crate::workspace::Workspace;
use anyhow::{Result, bail};
use std::process::Command;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub struct TestArguments {
    /// Handed to the test runner, for example the name of a test
    #[arg(trailing_var_arg = true)]
    pub filter: Vec<String>,
}

/// Runs the whole workspace's tests. Nextest is taken when it is installed; nothing needs it.
pub fn test(workspace: &Workspace, arguments: &TestArguments) -> Result<()> {
    let started = Instant::now();
    let nextest = has_nextest(workspace);
    println!(
        "\u{2022} tests: all of the workspace, with real microVMs in virtual nodes, by {}",
        if nextest { "cargo nextest" } else { "cargo test" }
    );
    let mut cargo = workspace.cargo();
    if nextest {
        cargo.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        cargo.args(["test", "--workspace", "--no-fail-fast"]);
    }
    cargo.args(&arguments.filter);
    cargo.env("PINFOLD_BUILD_DIR", &workspace.build).env("PINFOLD_BIN_DIR", workspace.binaries());
    // straight through: a test run is read as it goes
    let status = cargo.status()?;
    let took = started.elapsed().as_secs();
    println!("\nClosing summary of `cargo xtask test`");
    println!("  runner            {}", if nextest { "cargo nextest" } else { "cargo test" });
    println!("  binaries          {}", workspace.shown(&workspace.binaries()));
    println!("  images            {}", workspace.shown(&workspace.images()));
    println!("  default kernel    {}", crate::images::default_kernel(workspace));
    println!("  time              {} min {} s, builds of the tests included", took / 60, took % 60);
    println!("  result            {}", if status.success() { "all passed" } else { "FAILED, see above" });
    if !status.success() {
        bail!("tests ended with {status}");
    }
    Ok(())
}

/// What a change must pass before it is looked at: format, lints, unit tests.
pub fn check(workspace: &Workspace) -> Result<()> {
    let unit_tests: &[&str] = if has_nextest(workspace) {
        &["nextest", "run", "--workspace", "--lib", "--bins"]
    } else {
        &["test", "--workspace", "--lib", "--bins"]
    };
    let steps: [(&str, &str, &[&str]); 3] = [
        ("format", "one layout for all code", &["fmt", "--all", "--check"]),
        (
            "lints",
            "clippy, where every warning counts",
            &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        ),
        ("unit tests", "those beside the code; no virtual node", unit_tests),
    ];
    for (title, why, words) in steps {
        let step = Step::begin(title, why);
        let log = workspace.log(&title.replace(' ', "-"));
        command::run(&step, &log, workspace.cargo().args(words))?;
        step.done("passed");
    }
    Ok(())
}

fn has_nextest(workspace: &Workspace) -> bool {
    let mut probe: Command = workspace.cargo();
    command::output(probe.args(["nextest", "--version"])).is_ok()
}
