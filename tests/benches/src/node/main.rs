//! `pinfold-bench-node`: starts one VMM in a virtual node, watches it from outside and prints what it cost.
//!
//! Everything is measured in the same way for every VMM: times by CLOCK_MONOTONIC and the kernel's trace points, exits by
//! KVM's own counters, memory by `smaps`, CPU by `schedstat`. The result is one line, `BENCH {json}`; `cargo xtask bench`
//! reads it.
#![forbid(unsafe_code)]

mod boot;
mod clock;
mod control;
mod counters;
mod first_run;
mod io;
mod launch;
mod memory;
mod net;
mod process;
mod restore;
mod trace;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "pinfold-bench-node", about = "Measures VMMs inside a virtual node")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot one microVM up to a mark, look at it, end it
    Boot(boot::Arguments),
    /// Boot a guest that serves, and measure its disk, network and channel
    Io(io::Arguments),
    /// Save a sandbox, and take it up again many times
    Restore(restore::Arguments),
    /// The VMM's own processor time to the guest's first instruction; runs on any machine with /dev/kvm
    FirstRun(first_run::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Boot(arguments) => boot::run(&arguments),
        Command::Io(arguments) => io::run(&arguments),
        Command::Restore(arguments) => restore::run(&arguments),
        Command::FirstRun(arguments) => first_run::run(&arguments),
    };
    match result.and_then(|value| print(&value)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pinfold-bench-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print(value: &serde_json::Value) -> Result<()> {
    println!("BENCH {}", serde_json::to_string(value)?);
    Ok(())
}
