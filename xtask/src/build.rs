//! The product's binaries.

use crate::command;
use crate::progress::{self, Step};
use crate::workspace::{TARGET, Workspace};
use anyhow::{Context, Result};
use std::fs;
use std::process::Command;

/// cargo package and the binary that it makes
const BINARIES: &[(&str, &str)] = &[
    ("pinfold-cli", "pinfold"),
    ("pinfold-scheduler", "pinfold-scheduler"),
    ("pinfold-node-agent", "pinfold-node-agent"),
    ("pinfold-vmm", "pinfold-vmm"),
    ("pinfold-jailer", "pinfold-jailer"),
    ("pinfold-guest-agent", "pinfold-guest-agent"),
];

/// What `cargo xtask bench` puts into its nodes and guests, with what it measures.
const BENCHMARK: &[(&str, &str)] = &[
    ("pinfold-vmm", "pinfold-vmm"),
    ("pinfold-bench", "pinfold-bench-node"),
    ("pinfold-bench", "pinfold-bench-guest"),
];

/// What the system tests bring into a node to start and ask VMMs there: an example of the VMM's package.
const TEST_EXAMPLE: (&str, &str) = ("pinfold-vmm", "boot");

/// Builds all of them as static release binaries in one cargo call.
///
/// Static: the guest agent runs in an empty root, the VMM in a jail without libraries, the node's in an initramfs, and
/// one call compiles every shared crate once.
pub fn run(workspace: &Workspace) -> Result<()> {
    let why = "static release builds, which run in a jail, a guest and a virtual node alike";
    build(workspace, "binaries", why, BINARIES)
}

/// Builds what is measured and what measures it.
pub fn benchmark(workspace: &Workspace) -> Result<()> {
    build(
        workspace,
        "benchmark",
        "static release builds of the VMM and of both ends of the benchmark",
        BENCHMARK,
    )
}

/// Builds what the system tests bring into a node.
pub fn test_programs(workspace: &Workspace) -> Result<()> {
    let step = Step::begin("test programs", "what starts and asks a VMM in a virtual node");
    let (package, example) = TEST_EXAMPLE;
    let mut cargo = static_release(workspace);
    cargo.args(["-p", package, "--example", example]);
    command::run(&step, &workspace.log("build-test-programs"), &mut cargo)?;
    step.done(example);
    Ok(())
}

fn static_release(workspace: &Workspace) -> Command {
    let mut cargo = workspace.cargo();
    cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    // a variable of the caller would take the place of the one above
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo.args(["build", "--release", "--target", TARGET]);
    cargo
}

fn build(workspace: &Workspace, title: &str, why: &str, binaries: &[(&str, &str)]) -> Result<()> {
    let step = Step::begin(title, why);
    let mut cargo = static_release(workspace);
    for (package, _) in binaries {
        cargo.args(["-p", package]);
    }
    command::run(&step, &workspace.log(&format!("build-{title}")), &mut cargo)?;
    let mut sizes = Vec::new();
    for (_, binary) in binaries {
        let path = workspace.binaries().join(binary);
        let size = fs::metadata(&path).with_context(|| format!("looking for {}", path.display()))?.len();
        sizes.push(format!("{} {}", binary.trim_start_matches("pinfold-"), progress::megabytes(size)));
    }
    step.done(&sizes.join(", "));
    Ok(())
}
