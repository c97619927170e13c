//! `pause`, `resume` and `fork`.

use super::create;
use super::remove::split;
use crate::args::{Fork, Format, Suspend};
use crate::lookup;
use crate::output::view::SandboxView;
use crate::output::{now_ms, show, table};
use anyhow::{Context, Result};
use futures::StreamExt;
use pinfold_sdk::{Client, ForkOf, ForkOptions, Sandbox};
use std::time::Duration;

/// For the memory of a large sandbox to reach a slow disk, or to come back.
const LIMIT: Duration = Duration::from_secs(600);
/// Sandboxes that are waited for at the same time.
const PARALLEL: usize = 16;

pub async fn pause(client: &Client, options: Suspend, format: Format) -> Result<i32> {
    let one = async |text: &str| -> Result<Sandbox> {
        let id = lookup::id(client, text).await?;
        let sandbox = client.pause(id).await.with_context(|| format!("cannot pause {id}"))?;
        if options.no_wait {
            return Ok(sandbox);
        }
        client.wait_paused(id, LIMIT).await.with_context(|| format!("{id} was not paused"))
    };
    let one = &one;
    let results = futures::stream::iter(&options.sandboxes).map(|text| one(text)).buffered(PARALLEL);
    finish(results.collect().await, format)
}

pub async fn resume(client: &Client, options: Suspend, format: Format) -> Result<i32> {
    let one = async |text: &str| -> Result<Sandbox> {
        let id = lookup::id(client, text).await?;
        let sandbox = client.resume(id).await.with_context(|| format!("cannot resume {id}"))?;
        if options.no_wait {
            return Ok(sandbox);
        }
        client.wait_resumed(id, LIMIT).await.with_context(|| format!("{id} was not resumed"))
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
