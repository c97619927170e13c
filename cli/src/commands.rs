//! One file per command, or per few that belong together.

mod copy;
mod create;
mod doctor;
mod exec;
mod inspect;
mod logs;
mod remove;
mod run;
mod saved;
mod suspend;

use crate::args::{Cli, Command, Dev};
use crate::output::write_stdout;
use crate::{connect, dev};
use anyhow::Result;
use clap::CommandFactory;

/// Carries the command out; the exit code.
pub async fn dispatch(cli: Cli) -> Result<i32> {
    let format = cli.output;
    let command = match cli.command {
        Command::Dev(Dev::Up(options)) => return dev::up::run(options, format).await,
        Command::Dev(Dev::Status) => return dev::status::run(format).await,
        Command::Dev(Dev::Down) => return dev::down::run(format).await,
        Command::Doctor => return doctor::run(format).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "pinfold", &mut script);
            write_stdout(&script)?;
            return Ok(0);
        }
        command => command,
    };
    let client = connect::client(cli.scheduler.as_deref()).await?;
    match command {
        Command::Run(options) => run::run(&client, options).await,
        Command::Create(options) => create::run(&client, options, format).await,
        Command::Exec(options) => exec::run(&client, options).await,
        Command::Ls(options) => inspect::ls(&client, options, format).await,
        Command::Get(options) => inspect::get(&client, &options, format).await,
        Command::Watch(options) => inspect::watch(&client, options, format).await,
        Command::Pause(options) => suspend::pause(&client, options, format).await,
        Command::Resume(options) => suspend::resume(&client, options, format).await,
        Command::Fork(options) => suspend::fork(&client, options, format).await,
        Command::Snapshot(command) => saved::snapshot(&client, command, format).await,
        Command::Template(command) => saved::template(&client, command, format).await,
        Command::Nodes => inspect::nodes(&client, format).await,
        Command::Logs(options) => logs::run(&client, &options).await,
        Command::Cp(options) => copy::run(&client, options).await,
        Command::Stop(options) => remove::stop(&client, options, format).await,
        Command::Rm(options) => remove::rm(&client, options).await,
        Command::Dev(_) | Command::Doctor | Command::Completions { .. } => Ok(0),
    }
}
