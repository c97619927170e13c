//! `create`, and the wait for a sandbox that `run` shares.

use crate::args::{Create, Format, SpecFlags};
use crate::lookup;
use crate::output::view::SandboxView;
use crate::output::{now_ms, show, table};
use crate::progress::Progress;
use anyhow::{Context, Result};
use pinfold_domain::Phase;
use pinfold_sdk::{Client, Error, Sandbox};
use std::time::Duration;

/// Beyond the start limit of the sandbox itself: for the queue, as long as it takes on a busy fleet.
const QUEUE_LIMIT: Duration = Duration::from_secs(600);

pub async fn run(client: &Client, options: Create, format: Format) -> Result<i32> {
    let no_wait = options.no_wait;
    let mut sandbox = store(client, options.spec).await?;
    if !no_wait {
        sandbox = started(client, sandbox).await?;
    }
    show(format, &SandboxView::from(&sandbox), || table::sandbox(&sandbox, now_ms()))?;
    Ok(0)
}

pub async fn store(client: &Client, spec: SpecFlags) -> Result<Sandbox> {
    let snapshot = match &spec.snapshot {
        Some(text) => Some(lookup::snapshot(client, text).await?),
        None => None,
    };
    client.create(spec.into_new(snapshot)).await.context("cannot create the sandbox")
}

/// Waits until `sandbox` runs; shows its phase meanwhile.
pub async fn started(client: &Client, sandbox: Sandbox) -> Result<Sandbox> {
    let mut progress = Progress::quiet();
    progress.begin(format!("sandbox {}", sandbox.id));
    let limit = QUEUE_LIMIT + Duration::from_millis(sandbox.spec.start_timeout.0);
    let mut watch = client.watch_one(sandbox.id);
    let run = async {
        loop {
            let event = watch.next().await?;
            let now = event.sandbox;
            if now.phase == Phase::Running && !event.deleted {
                return Ok(now);
            }
            if event.deleted || now.phase.is_final() || now.phase == Phase::Stopping {
                return Err(Error::Ended { id: now.id, phase: now.phase, cause: now.cause });
            }
            let why = now.explanation.as_ref().filter(|_| now.phase == Phase::Pending);
            let why = why.map_or(String::new(), |explanation| format!(" ({})", explanation.sentence));
            progress.detail(&format!("{}{why}", now.phase));
        }
    };
    let ended = tokio::time::timeout(limit, run).await;
    Ok(ended.unwrap_or(Err(Error::Deadline { call: "the start of the sandbox", limit }))?)
}
