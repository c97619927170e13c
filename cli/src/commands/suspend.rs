//! `pause`, `resume` and `fork`.

use super::create;
use super::remove::split;
use crate::args::{Fork, Format, Suspend};
use crate::lookup;
use crate::output::view::SandboxView;
use crate::output::{now_ms, show, table};
use anyhow::{Context, Result};
use futures::StreamExt;
use pinfold_domain::SandboxId;
use pinfold_sdk::{Client, ForkOf, ForkOptions, Sandbox};
use std::time::Duration;

/// For the memory of a large sandbox to reach a slow disk, or to come back.
const LIMIT: Duration = Duration::from_secs(600);
/// Sandboxes that are waited for at the same time.
const PARALLEL: usize = 16;

pub async fn pause(client: &Client, options: Suspend, format: Format) -> Result<i32> {
    let ordered = async |id| client.pause(id).await.with_context(|| format!("cannot pause {id}"));
    let done = async |id| client.wait_paused(id, LIMIT).await.with_context(|| format!("{id} was not paused"));
    each(client, options, format, ordered, done).await
}

pub async fn resume(client: &Client, options: Suspend, format: Format) -> Result<i32> {
    let ordered = async |id| client.resume(id).await.with_context(|| format!("cannot resume {id}"));
    let done =
        async |id| client.wait_resumed(id, LIMIT).await.with_context(|| format!("{id} was not resumed"));
    each(client, options, format, ordered, done).await
}

/// Gives the order to each of them, and waits until it is carried out, unless told not to.
async fn each(
    client: &Client,
    options: Suspend,
    format: Format,
    ordered: impl AsyncFn(SandboxId) -> Result<Sandbox>,
    done: impl AsyncFn(SandboxId) -> Result<Sandbox>,
) -> Result<i32> {
    let one = async |text: &str| -> Result<Sandbox> {
        let id = lookup::id(client, text).await?;
        let sandbox = ordered(id).await?;
        if options.no_wait { Ok(sandbox) } else { done(id).await }
    };
    let one = &one;
    let results = futures::stream::iter(&options.sandboxes).map(|text| one(text)).buffered(PARALLEL);
    finish(results.collect().await, format)
}

pub async fn fork(client: &Client, options: Fork, format: Format) -> Result<i32> {
    let of = match (&options.sandbox, &options.snapshot) {
        (Some(text), _) => ForkOf::Sandbox(lookup::id(client, text).await?),
        (None, Some(text)) => ForkOf::Snapshot(lookup::snapshot(client, text).await?),
        // clap asks for one of them
        (None, None) => anyhow::bail!("name a sandbox, or a snapshot with --snapshot"),
    };
    let fork = ForkOptions {
        request_id: options.request_id,
        name: options.name,
        labels: options.labels.into_iter().collect(),
        ttl: options.ttl,
    };
    let (sandboxes, _) = client.fork(of, options.count, fork).await.context("cannot fork")?;
    let one = async |sandbox: Sandbox| match options.no_wait {
        true => Ok(sandbox),
        false => create::started(client, sandbox).await,
    };
    let one = &one;
    let results = futures::stream::iter(sandboxes).map(one).buffered(PARALLEL);
    finish(results.collect().await, format)
}

fn finish(results: Vec<Result<Sandbox>>, format: Format) -> Result<i32> {
    let (sandboxes, failure) = split(results);
    let views: Vec<SandboxView> = sandboxes.iter().map(Into::into).collect();
    show(format, &views, || table::sandboxes(&sandboxes, now_ms()))?;
    failure.map_or(Ok(0), Err)
}
