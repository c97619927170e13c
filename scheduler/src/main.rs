//! `pinfold-scheduler`: reads its configuration, runs the [`App`], ends in order.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use pinfold_scheduler::app::App;
use pinfold_scheduler::config::{ConfigFlags, SchedulerConfig};
use pinfold_service::config::{ConfigArgs, Decision, resolve};
use pinfold_service::{Tasks, logs, shutdown};
use std::process::ExitCode;

/// The control plane of Pinfold: places sandboxes on nodes and keeps their record.
///
/// Settings come from the file, then from PINFOLD_SCHEDULER_* variables, then from flags; --dump-config shows them all.
#[derive(Debug, Parser)]
#[command(name = "pinfold-scheduler", version)]
struct Arguments {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    flags: ConfigFlags,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pinfold-scheduler: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = match resolve::<SchedulerConfig>(&arguments.config, &arguments.flags)? {
        Decision::Print(text) => {
            print!("{text}");
            return Ok(());
        }
        Decision::Run(config) => config,
    };
    logs::init(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the async runtime cannot start")?;
    runtime.block_on(async {
        let tasks = Tasks::default();
        shutdown::on_signals(&tasks).context("signals cannot be handled")?;
        let app = App::start(config, tasks).await?;
        app.run_to_end().await
    })
}
