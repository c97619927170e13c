//! `exec`, and how a process is attached to the local terminal.

use crate::args::{Exec, ProcessFlags};
use crate::attach::{Attachment, attach};
use crate::lookup;
use crate::terminal::{self, RawMode};
use anyhow::Result;
use pinfold_domain::SandboxId;
use pinfold_sdk::{Client, ExecOptions};
use std::collections::BTreeMap;
use std::io::IsTerminal;

pub async fn run(client: &Client, options: Exec) -> Result<i32> {
    let id = lookup::id(client, &options.sandbox).await?;
    let environment = options.environment.into_iter().collect();
    process(client, id, options.process, environment, options.command).await
}

/// Runs `command`; the exit code to end with.
pub async fn process(
    client: &Client,
    id: SandboxId,
    flags: ProcessFlags,
    mut environment: BTreeMap<String, String>,
    command: Vec<String>,
) -> Result<i32> {
    if flags.tty {
        // what the local terminal understands
        if let Ok(kind) = std::env::var("TERM") {
            environment.entry("TERM".to_owned()).or_insert(kind);
        }
    }
    let stdin = !flags.no_stdin && (flags.interactive || !std::io::stdin().is_terminal());
    let exec = ExecOptions {
        command,
        environment,
        working_directory: flags.workdir,
        user: flags.user,
        terminal: flags.tty.then(terminal::size),
        timeout: flags.timeout,
        without_input: !stdin && !flags.tty,
    };
    let process = client.exec(id, exec).await?;
    let raw = if flags.tty && stdin { RawMode::enter()? } else { None };
    let code = attach(process, Attachment { stdin, terminal: flags.tty }).await;
    drop(raw);
    code
}
