//! `run`: create, exec, delete in one. Whatever happens, the sandbox is deleted at the end.

use super::{create, exec};
use crate::args::Run;
use crate::failure::Interrupted;
use crate::output::table;
use anyhow::{Context, Result};
use pinfold_domain::SandboxId;
use pinfold_sdk::Client;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// For the removal at the end: a stop has 5 s of grace.
const REMOVAL_LIMIT: Duration = Duration::from_secs(30);

pub async fn run(client: &Client, options: Run) -> Result<i32> {
    let Run { spec, process, timeline, keep, command } = options;
    // from here on Ctrl-C no longer ends this process by itself
    let mut interrupts = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut terminations = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut hangups = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    // stored before anything can interrupt it, so that there is an id to delete
    let sandbox = create::store(client, spec).await?;
    let id = sandbox.id;
    let work = async {
        let started = create::started(client, sandbox);
        tokio::pin!(started);
        tokio::select! {
            ready = &mut started => ready?,
            _ = interrupts.recv() => return Err(Interrupted.into()),
            _ = terminations.recv() => return Err(Interrupted.into()),
            _ = hangups.recv() => return Err(Interrupted.into()),
        };
        // the environment of the sandbox holds for every process in it
        exec::process(client, id, process, BTreeMap::new(), command).await
    };
    let result = work.await;
    if keep {
        eprintln!("sandbox {id} is kept: `pinfold rm {id}` removes it");
        return result;
    }
    let removed = remove(client, id, timeline).await;
    let code = result?;
    removed?;
    Ok(code)
}

async fn remove(client: &Client, id: SandboxId, timeline: bool) -> Result<()> {
    let context = || format!("sandbox {id} may be left over: `pinfold rm {id}` removes it");
    if timeline {
        client.stop(id, None).await.with_context(context)?;
        let ended = client.wait_ended(id, REMOVAL_LIMIT).await.with_context(context)?;
        eprint!("{}", table::timeline(&ended));
    }
    client.delete(id).await.with_context(context)?;
    client.wait_gone(id, REMOVAL_LIMIT).await.with_context(context)
}
