//! Developer commands. `cargo xtask help` lists them; the Makefile is a thin front of this.
//!
//! Every command may be given at any time and does what is missing only: a step that finds its inputs unchanged
//! costs a few milliseconds. All products lie under `target/` (cargo) and `build/` (everything else).
#![forbid(unsafe_code)]

mod apt;
mod bench;
mod build;
mod check;
mod command;
mod cpio;
mod demo;
mod fuzz;
mod images;
mod progress;
mod setup;
mod stamp;
mod test;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use workspace::Workspace;

#[derive(Debug, Parser)]
#[command(name = "xtask", about = "Developer commands of Pinfold", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
    /// Take the product's binaries as they are instead of building them first
    #[arg(long, global = true)]
    no_build: bool,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install the distribution packages that are missing
    Setup,
    /// Build the product's binaries: release, static
    Build,
    /// Make the guest's root file system and stock kernel, and the virtual node
    Images,
    /// Make our own guest kernel (some minutes the first time) and use it by default
    Kernel,
    /// Show the product: from nothing to running sandboxes and back to nothing
    Demo(demo::Arguments),
    /// Run every test, real microVMs included
    Test(test::Arguments),
    /// Fuzz what guests and callers drive in the VMM
    Fuzz(fuzz::Arguments),
    /// Measure, and print a table: what must be reached, what was, and beside what
    Bench(bench::Arguments),
    /// Format, lints and unit tests
    Check,
    /// Remove everything under build/
    Clean,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // without anyhow's backtrace: the message is for a person who ran a command
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let workspace = Workspace::find()?;
    let _lock = workspace.lock()?;
    let build_first = !arguments.no_build;
    let prepare = || {
        setup::run(&workspace)?;
        if build_first {
            build::run(&workspace)?;
        }
        images::run(&workspace)
    };
    match arguments.task {
        Task::Setup => setup::run(&workspace),
        Task::Build => build::run(&workspace),
        Task::Images => prepare(),
        Task::Kernel => {
            images::own_kernel::run(&workspace)?;
            prepare()
        }
        Task::Demo(arguments) => {
            prepare()?;
            demo::run(&workspace, &arguments)
        }
        Task::Test(arguments) => {
            // both kernels are booted by the system tests
            if !arguments.no_system {
                images::own_kernel::run(&workspace)?;
            }
            prepare()?;
            test::run(&workspace, &arguments)
        }
        Task::Fuzz(arguments) => fuzz::run(&workspace, &arguments),
        Task::Bench(arguments) => {
            if !arguments.no_images {
                images::own_kernel::run(&workspace)?;
                prepare()?;
            }
            bench::run(&workspace, &arguments, build_first)
        }
        Task::Check => check::check(&workspace),
        Task::Clean => workspace.clean(),
    }
}
