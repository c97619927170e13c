//! `stop` and `rm`. Several at once; every one is tried, the first failure is told at the end.

use crate::args::{Format, Remove, Stop};
use crate::lookup;
use crate::output::view::SandboxView;
use crate::output::{now_ms, show, table, write_stdout};
use anyhow::{Context, Result};
use futures::StreamExt;
use pinfold_domain::SandboxId;
use pinfold_sdk::{Client, Sandbox, SandboxFilter};
use std::time::Duration;

/// Beyond the grace period.
const END_LIMIT: Duration = Duration::from_secs(30);
/// Sandboxes that are waited for at the same time.
const PARALLEL: usize = 16;

pub async fn stop(client: &Client, options: Stop, format: Format) -> Result<i32> {
    let grace = options.grace;
    let one = async |text: &str| -> Result<Sandbox> {
        let id = lookup::id(client, text).await?;
        let sandbox = client.stop(id, grace).await.with_context(|| format!("cannot stop {id}"))?;
        if options.no_wait || sandbox.phase.is_final() {
            return Ok(sandbox);
        }
        let limit = END_LIMIT + grace.unwrap_or(Duration::from_secs(5));
        client.wait_ended(id, limit).await.with_context(|| format!("{id} has not ended"))
    };
    let one = &one;
    let results = futures::stream::iter(&options.sandboxes).map(|text| one(text)).buffered(PARALLEL);
    let (stopped, failure) = split(results.collect().await);
    let views: Vec<SandboxView> = stopped.iter().map(Into::into).collect();
    show(format, &views, || table::sandboxes(&stopped, now_ms()))?;
    failure.map_or(Ok(0), Err)
}

pub async fn rm(client: &Client, options: Remove) -> Result<i32> {
    let ids: Vec<Result<SandboxId>> = if options.all {
        let (all, _) = client.list_all(SandboxFilter::default()).await?;
        all.into_iter().map(|sandbox| Ok(sandbox.id)).collect()
    } else {
        let texts = futures::stream::iter(&options.sandboxes);
        texts.then(|text| lookup::id(client, text)).collect().await
    };
    let one = async |id: Result<SandboxId>| -> Result<SandboxId> {
        let id = id?;
        client.delete(id).await.with_context(|| format!("cannot remove {id}"))?;
        if !options.no_wait {
            client.wait_gone(id, END_LIMIT).await.with_context(|| format!("{id} is still there"))?;
        }
        Ok(id)
    };
    let one = &one;
    let results = futures::stream::iter(ids).map(one).buffered(PARALLEL);
    let (removed, failure) = split(results.collect().await);
    let text: String = removed.iter().map(|id| format!("{id}\n")).collect();
    write_stdout(text.as_bytes())?;
    failure.map_or(Ok(0), Err)
}

/// What succeeded, and the first failure; further ones are told at once.
pub fn split<T>(results: Vec<Result<T>>) -> (Vec<T>, Option<anyhow::Error>) {
    let mut good = Vec::new();
    let mut first = None;
    for result in results {
        match result {
            Ok(value) => good.push(value),
            Err(error) if first.is_none() => first = Some(error),
            Err(error) => eprintln!("error: {error:#}"),
        }
    }
    (good, first)
}
