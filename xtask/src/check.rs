//! `cargo xtask check`: what a change must pass before it is looked at.

use crate::command;
use crate::progress::Step;
use crate::workspace::Workspace;
use anyhow::Result;
use std::process::Command;

/// Format, lints, unit tests.
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

/// Nextest is taken when it is installed; nothing needs it.
pub fn has_nextest(workspace: &Workspace) -> bool {
    let mut probe: Command = workspace.cargo();
    command::output(probe.args(["nextest", "--version"])).is_ok()
}
