//! `ls`, `get`, `watch`, `nodes`.

use crate::args::{Format, Get, Ls, Watch};
use crate::lookup;
use crate::output::view::{EventView, NodeView, SandboxView};
use crate::output::{now_ms, show, show_one, table, write_stdout};
use anyhow::Result;
use pinfold_domain::Revision;
use pinfold_sdk::{Client, SandboxFilter};

pub async fn ls(client: &Client, options: Ls, format: Format) -> Result<i32> {
    let filter = SandboxFilter { labels: options.labels.into_iter().collect(), phases: options.phases };
    let (sandboxes, _) = client.list_all(filter).await?;
    if options.quiet {
        let ids: String = sandboxes.iter().map(|sandbox| format!("{}\n", sandbox.id)).collect();
        write_stdout(ids.as_bytes())?;
        return Ok(0);
    }
    let views: Vec<SandboxView> = sandboxes.iter().map(Into::into).collect();
    show(format, &views, || table::sandboxes(&sandboxes, now_ms()))?;
    Ok(0)
}

pub async fn get(client: &Client, options: &Get, format: Format) -> Result<i32> {
    let sandbox = client.get(lookup::id(client, &options.sandbox).await?).await?;
    show(format, &SandboxView::from(&sandbox), || table::sandbox(&sandbox, now_ms()))?;
    Ok(0)
}

/// Ends with the removal of the one sandbox that was asked for, else with Ctrl-C.
pub async fn watch(client: &Client, options: Watch, format: Format) -> Result<i32> {
    let one = match &options.sandbox {
        Some(text) => Some(lookup::id(client, text).await?),
        None => None,
    };
    let mut watch = match one {
        Some(id) => client.watch_one_from(id, Revision(options.from.unwrap_or(0))),
        None => client.watch(Revision(options.from.unwrap_or(0))),
    };
    loop {
        let event = watch.next().await?;
        show_one(format, &EventView::from(&event), || table::event(&event))?;
        if one.is_some() && event.deleted {
            return Ok(0);
        }
    }
}

pub async fn nodes(client: &Client, format: Format) -> Result<i32> {
    let nodes = client.nodes().await?;
    let views: Vec<NodeView> = nodes.iter().map(Into::into).collect();
    show(format, &views, || table::nodes(&nodes, now_ms()))?;
    Ok(0)
}
