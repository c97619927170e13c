//! `pinfold-node-agent`: the worker of a node. See README.md beside this crate's manifest.
#![forbid(unsafe_code)]

mod app;
mod catalog;
mod clock;
mod config;
#[cfg(test)]
mod fake_scheduler;
mod guest;
mod host;
mod leftovers;
mod machine;
mod preflight;
mod registry;
mod relay;
mod sandbox;
mod session;

use clap::{Parser, Subcommand, ValueEnum};
use config::{AgentConfig, RunArgs};
use pinfold_service::config::{Decision, resolve};
use pinfold_service::logs;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "pinfold-node-agent", version, about = "The worker of a Pinfold node")]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep a session with the scheduler and run sandboxes (the default)
    Run(Box<RunArgs>),
    /// Say whether this machine can run sandboxes, and if not, why
    Preflight {
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
        #[arg(long, default_value = "/usr/bin/pinfold-vmm")]
        vmm: PathBuf,
        #[arg(long, default_value = "/var/lib/pinfold/images")]
        images_dir: PathBuf,
    },
    /// List all that belongs to sandboxes on this machine, from kernel state
    Leftovers {
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
        #[arg(long, default_value = "/var/lib/pinfold")]
        state_dir: PathBuf,
        #[arg(long, default_value = "/sys/fs/cgroup/pinfold")]
        cgroup_root: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => run(&cli.run),
        Some(Command::Run(args)) => run(&args),
        Some(Command::Preflight { output, vmm, images_dir }) => {
            let report = preflight::run(&vmm, &images_dir);
            print(output, &report, &report.text(), report.ok)
        }
        Some(Command::Leftovers { output, state_dir, cgroup_root }) => {
            leftovers::find(&state_dir, &cgroup_root)
                .map_err(anyhow::Error::from)
                .and_then(|found| print(output, &found, &found.text(), found.is_empty()))
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("pinfold-node-agent: {error:#}");
        ExitCode::from(2)
    })
}

fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let config: AgentConfig = match resolve(&args.config, &args.flags)? {
        Decision::Run(config) => config,
        Decision::Print(text) => {
            std::io::stdout().write_all(text.as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    logs::init(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(app::run(config))?;
    Ok(ExitCode::SUCCESS)
}

/// Exit code 0 when `good`, else 1.
fn print(output: Output, value: &impl serde::Serialize, text: &str, good: bool) -> anyhow::Result<ExitCode> {
    let text = match output {
        Output::Json => serde_json::to_string_pretty(value)? + "\n",
        Output::Text => text.to_owned(),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
