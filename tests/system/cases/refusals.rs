//! Calls that must be refused, with the reason and the limit named.

use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use pinfold_domain::spec::defaults;
use pinfold_domain::{Phase, Reason, Resources};
use pinfold_sdk::{ExecOptions, NewSandbox, SandboxFilter, Verdict};
use std::time::Duration;

async fn refused(context: &Context, new: NewSandbox) -> Result<(Reason, String)> {
    match context.client.create(new).await {
        Ok(sandbox) => anyhow::bail!("it was accepted: {:?}", sandbox.spec),
        Err(error) => Ok((error.cause().reason, error.to_string())),
    }
}

pub async fn bad_specs_are_refused(context: Context) -> Result<()> {
    let resources = |change: fn(&mut Resources)| {
        let mut resources = defaults::RESOURCES;
        change(&mut resources);
        NewSandbox { resources: Some(resources), ..NewSandbox::default() }
    };
    let labels = |key: &str, value: &str| NewSandbox {
        labels: [(key.to_owned(), value.to_owned())].into(),
        ..NewSandbox::default()
    };
    let bad: Vec<(NewSandbox, &[&str])> = vec![
        (resources(|r| r.cpu_millis = 0), &["cpu_millis", "0", "100"]),
        (resources(|r| r.memory_bytes = 0), &["memory_bytes", "0"]),
        (resources(|r| r.memory_bytes = u64::MAX), &["memory_bytes", "18446744073709551615"]),
        (resources(|r| r.disk_bytes = 1), &["disk_bytes", "1"]),
        (resources(|r| r.pids = u64::MAX), &["pids"]),
        (NewSandbox { name: Some("Not_A_Name".into()), ..NewSandbox::default() }, &["name", "Not_A_Name"]),
        (NewSandbox { image: Some("../etc".into()), ..NewSandbox::default() }, &["image", "../etc"]),
        (
            NewSandbox { ttl: Some(Duration::from_secs(u64::MAX / 1000)), ..NewSandbox::default() },
            &["ttl_seconds"],
        ),
        (labels("", "x"), &["labels"]),
        (labels("key with space", "x"), &["labels", "key with space"]),
        (labels("key", &"v".repeat(64)), &["labels", "63"]),
        (NewSandbox { request_id: Some("a b".into()), ..NewSandbox::default() }, &["request_id"]),
    ];
    for (new, named) in bad {
        let (reason, message) = refused(&context, new.clone()).await?;
        ensure!(reason == Reason::InvalidArgument, "{new:?}: {} {message}", reason.as_str());
        for word in named {
            ensure!(message.contains(word), "{message:?} does not name {word:?}");
        }
    }
    for new in [
        NewSandbox { image: Some("no-such-image".into()), ..NewSandbox::default() },
        NewSandbox { kernel: Some("no-such-kernel".into()), ..NewSandbox::default() },
    ] {
        let (reason, message) = refused(&context, new).await?;
        ensure!(
            reason == Reason::ImageUnknown && message.contains("no-such-"),
            "{} {message}",
            reason.as_str()
        );
    }
    let (all, _) = context.client.list_all(SandboxFilter::default()).await?;
    ensure!(all.is_empty(), "a refused sandbox was stored: {all:?}");
    Ok(())
}

pub async fn request_id_is_idempotent(context: Context) -> Result<()> {
    let new =
        NewSandbox { request_id: Some("the-same".into()), name: Some("one".into()), ..NewSandbox::default() };
    let first = context.client.create(new.clone()).await?;
    let again = context.client.create(new.clone()).await?;
    ensure!(first.id == again.id, "two sandboxes for one request id");
    let (reason, message) = refused(&context, NewSandbox { name: Some("two".into()), ..new }).await?;
    ensure!(reason == Reason::RequestIdConflict, "{} {message}", reason.as_str());
    Ok(())
}

pub async fn what_no_node_can_hold_is_refused_at_once(context: Context) -> Result<()> {
    let resources = Some(Resources { memory_bytes: 64 << 30, ..defaults::RESOURCES });
    let (reason, message) = refused(&context, NewSandbox { resources, ..NewSandbox::default() }).await?;
    ensure!(reason == Reason::Unplaceable, "{} {message}", reason.as_str());
    ensure!(message.contains("memory"), "{message:?} does not name the filter");
    let node_labels = [("gpu".to_owned(), "yes".to_owned())].into();
    let (reason, message) = refused(&context, NewSandbox { node_labels, ..NewSandbox::default() }).await?;
    ensure!(reason == Reason::Unplaceable && message.contains("label"), "{} {message}", reason.as_str());
    Ok(())
}

/// What does not fit now waits, says why, and starts when there is room.
pub async fn full_fleet_lets_wait(context: Context) -> Result<()> {
    let nodes = context.client.nodes().await?;
    let room = nodes.first().context("the node is registered")?.allocatable;
    let half = Resources { memory_bytes: room.memory_bytes * 6 / 10, ..defaults::RESOURCES };
    let new = NewSandbox { resources: Some(half), ..NewSandbox::default() };
    let first = context.start(new.clone()).await?;
    let second = context.client.create(new).await?;
    let waiting = context.client.get(second.id).await?;
    ensure!(waiting.phase == Phase::Pending, "{}", waiting.phase);
    let why = waiting.explanation.context("it has no explanation")?;
    ensure!(why.verdict == Verdict::Wait && why.sentence.contains("memory"), "{why:?}");
    let error = context.client.exec(second.id, ExecOptions::command(["true"])).await.err();
    let error = error.context("exec in a sandbox that waits")?;
    ensure!(error.cause().reason == Reason::SandboxStarting, "{error}");
    context.client.delete(first.id).await?;
    let placed = context.client.wait_running(second.id, crate::context::START_LIMIT).await?;
    ensure!(placed.explanation.is_some_and(|why| why.verdict == Verdict::Placed));
    Ok(())
}

pub async fn exec_needs_a_running_sandbox(context: Context) -> Result<()> {
    let unknown = "0190b3f0-5a00-7000-8000-000000000001".parse()?;
    let error = context.exec(unknown, ExecOptions::command(["true"])).await.err().context("exec nowhere")?;
    let cause =
        |error: &anyhow::Error| error.downcast_ref::<pinfold_sdk::Error>().map(|error| error.cause().reason);
    ensure!(cause(&error) == Some(Reason::SandboxNotFound), "{error:#}");
    let id = context.sandbox().await?;
    for command in [vec![], vec![String::new()], vec!["a\0b".to_owned()]] {
        let error = context.exec(id, ExecOptions::command(command.clone())).await.err();
        let error = error.with_context(|| format!("{command:?} was taken"))?;
        ensure!(cause(&error) == Some(Reason::InvalidArgument), "{command:?}: {error:#}");
    }
    context.client.stop(id, None).await?;
    context.ended(id).await?;
    let error = context.exec(id, ExecOptions::command(["true"])).await.err().context("exec after the end")?;
    ensure!(cause(&error) == Some(Reason::SandboxEnded), "{error:#}");
    Ok(())
}
