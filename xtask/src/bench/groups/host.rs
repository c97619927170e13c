//! The VMM's own processor time, on this machine as it is: no virtual node, no emulation, and no guest that goes on.

use super::cmdline;
use crate::bench::lab::Lab;
use crate::bench::table::{Row, median};
use crate::command;
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

pub fn run(lab: &mut Lab<'_>, workspace: &Workspace) -> Result<Vec<Row>> {
    ensure!(Path::new("/dev/kvm").exists(), "this machine has no /dev/kvm");
    let mut rows = Vec::new();
    for (what, kernel) in [("stock bzImage", "stock/vmlinuz"), ("our kernel", "pinfold/vmlinux")] {
        let kernel = workspace.images().join("kernels").join(kernel);
        if !kernel.is_file() {
            continue;
        }
        let sample = measure(workspace, &kernel)?;
        lab.samples.push((what.to_owned(), sample.clone()));
        let title = format!("VMM's own CPU, exec to first guest instruction, this machine, {what}");
        let wall = middle(&sample, "wall_us")? / 1000.0;
        rows.push(
            Row::at_most(title, 10.0, middle(&sample, "cpu_us")? / 1000.0, "ms").beside(format!(
                "{wall:.1} ms by the wall's clock; published: Firecracker 8 CPU ms to its API"
            )),
        );
    }
    Ok(rows)
}

fn measure(workspace: &Workspace, kernel: &Path) -> Result<Value> {
    let directory = std::env::temp_dir().join(format!("pinfold-bench-{}", std::process::id()));
    let mut command = Command::new(workspace.binaries().join("pinfold-bench-node"));
    command.arg("first-run").arg("--program").arg(workspace.binaries().join("pinfold-vmm"));
    command.arg("--kernel").arg(kernel).args(["--cmdline", cmdline()]);
    command.arg("--initrd").arg(workspace.build.join("bench/staging/hello.cpio"));
    command.arg("--directory").arg(&directory);
    let output = command::output(&mut command);
    // whatever the run left
    let _ = std::fs::remove_dir_all(&directory);
    let output = output?;
    let line = output.lines().find_map(|line| line.strip_prefix("BENCH ")).context("no result")?;
    serde_json::from_str(line).with_context(|| format!("{line:?} is no JSON"))
}

fn middle(sample: &Value, key: &str) -> Result<f64> {
    let values = sample[key].as_array().with_context(|| format!("a sample without {key}"))?;
    let numbers: Vec<f64> = values.iter().filter_map(Value::as_f64).collect();
    // a VMM that does not count says 0
    ensure!(numbers.iter().all(|number| *number > 0.0), "{key} was not counted: {values:?}");
    Ok(median(&numbers))
}
