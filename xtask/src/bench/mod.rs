//! `cargo xtask bench vmm`: the VMM's speed and memory, beside its peers, as a table.
//!
//! ```text
//!   release binaries, images --> benchmark's disk --> groups, each in virtual nodes of its own --> table
//!                                                      \--> raw samples in build/bench/<group>.json
//! ```
//!
//! Two kinds of time (`docs/benchmarks.md`): counted instructions, which repeat within 1 %, one microVM per node; and the
//! wall's, where a peer runs beside ours in the same node, interleaved, and the ratio of medians counts.

mod disk;
mod groups;
mod lab;
mod node;
mod table;

use crate::build;
use crate::command;
use crate::images;
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use groups::Group;
use lab::Lab;
use serde_json::json;
use std::fs;
use std::process::Command;
use std::time::Instant;
use table::Row;

#[derive(Debug, Parser)]
pub struct Arguments {
    /// What to measure
    #[arg(value_enum)]
    what: What,
    /// Parts of it, separated by commas; all without this
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Group>,
    /// Runs of each VMM where the wall's clock counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    runs: u32,
    /// Take the images and kernels under build/ as they are
    #[arg(long)]
    pub no_images: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Vmm,
}

pub fn run(workspace: &Workspace, arguments: &Arguments, build_first: bool) -> Result<()> {
    let began = Instant::now();
    if build_first {
        build::benchmark(workspace)?;
    }
    let What::Vmm = arguments.what;
    fs::create_dir_all(workspace.build.join("bench"))?;
    let stock = images::stock::fetch(workspace)?;
    let mut lab = lab::open(workspace, &stock)?;
    let chosen: Vec<Group> = Group::value_variants()
        .iter()
        .copied()
        .filter(|group| arguments.only.is_empty() || arguments.only.contains(group))
        .collect();
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    for group in chosen {
        println!("\u{2022} {}: {}", group.name(), group.why());
        let group_began = Instant::now();
        match group.run(&mut lab, workspace, arguments.runs) {
            Ok(found) => {
                println!("  {} s\n{}", group_began.elapsed().as_secs(), table::render(&found));
                store(workspace, group, &mut lab, &found)?;
                rows.extend(found);
            }
            Err(error) => {
                println!("  FAILED after {} s: {error:#}", group_began.elapsed().as_secs());
                failures.push(group.name());
                lab.samples.clear();
            }
        }
        lab.renew();
    }
    summary(workspace, &rows, &lab, began)?;
    ensure!(failures.is_empty(), "could not be measured: {}", failures.join(", "));
    Ok(())
}

/// The raw samples of a group, with what is needed to make sense of them later.
fn store(workspace: &Workspace, group: Group, lab: &mut Lab<'_>, rows: &[Row]) -> Result<()> {
    let samples: Vec<_> =
        lab.samples.drain(..).map(|(label, value)| json!({"label": label, "value": value})).collect();
    let path = workspace.build.join("bench").join(format!("{}.json", group.name()));
    let record = json!({
        "command": format!("cargo xtask bench vmm --only {}", group.name()),
        "commit": commit(workspace),
        "date": date()?,
        "rows": rows,
        "samples": samples,
    });
    fs::write(&path, serde_json::to_vec_pretty(&record)?)
        .with_context(|| format!("writing {}", path.display()))
}

fn summary(workspace: &Workspace, rows: &[Row], lab: &Lab<'_>, began: Instant) -> Result<()> {
    let judged: Vec<bool> = rows.iter().filter_map(Row::holds).collect();
    let ok = judged.iter().filter(|held| **held).count();
    println!(
        "\n`cargo xtask bench vmm`, {}, {}, {} s\n",
        commit(workspace),
        date()?,
        began.elapsed().as_secs()
    );
    println!("{}", table::render(rows));
    println!(
        "{ok} ok, {} fall short; nodes that fell silent and were replaced: {}",
        judged.len() - ok,
        lab.replaced
    );
    Ok(())
}

/// With `-dirty` behind it when files differ from it.
fn commit(workspace: &Workspace) -> String {
    let mut git = Command::new("git");
    git.arg("-C").arg(&workspace.root).args(["describe", "--always", "--dirty", "--exclude=*"]);
    command::output(&mut git).map_or_else(|_| "no commit".to_owned(), |text| text.trim().to_owned())
}

fn date() -> Result<String> {
    Ok(command::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?.trim().to_owned())
}
