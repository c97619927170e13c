//! `snapshot` and `template`.

use crate::args::{Format, SnapshotCommand, TemplateCommand};
use crate::lookup;
use crate::output::saved::{SnapshotView, TemplateView, snapshots, templates};
use crate::output::{now_ms, show, write_stdout};
use crate::progress::Progress;
use anyhow::{Context, Result};
use pinfold_sdk::{Client, NewTemplate, Template};
use std::time::Duration;

/// For the memory of a large sandbox to reach a slow disk.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(600);
/// For the nodes to boot it once and save it.
const PREPARATION_LIMIT: Duration = Duration::from_secs(600);
/// Between looks at a preparation: it is the state of many nodes, of which no change is told.
const PREPARATION_POLL: Duration = Duration::from_millis(200);

pub async fn snapshot(client: &Client, command: SnapshotCommand, format: Format) -> Result<i32> {
    match command {
        SnapshotCommand::Create(options) => {
            let id = lookup::id(client, &options.sandbox).await?;
            let name = options.name.unwrap_or_default();
            let taken = client.create_snapshot(id, &name, options.request_id).await;
            let mut taken = taken.with_context(|| format!("cannot take a snapshot of {id}"))?;
            if !options.no_wait {
                let ready = client.wait_snapshot(taken.id, SNAPSHOT_LIMIT).await;
                taken = ready.with_context(|| format!("snapshot {} is not ready", taken.id))?;
            }
            show(format, &SnapshotView::from(&taken), || snapshots(std::slice::from_ref(&taken), now_ms()))?;
        }
        SnapshotCommand::Ls(options) => {
            let of = match &options.sandbox {
                Some(text) => Some(lookup::id(client, text).await?),
                None => None,
            };
            let all = client.snapshots(of).await?;
            let views: Vec<SnapshotView> = all.iter().map(Into::into).collect();
            show(format, &views, || snapshots(&all, now_ms()))?;
        }
        SnapshotCommand::Rm(options) => {
            for text in &options.snapshots {
                let id = lookup::snapshot(client, text).await?;
                client.delete_snapshot(id).await.with_context(|| format!("cannot remove snapshot {id}"))?;
                write_stdout(format!("{id}\n").as_bytes())?;
            }
        }
    }
    Ok(0)
}

pub async fn template(client: &Client, command: TemplateCommand, format: Format) -> Result<i32> {
    match command {
        TemplateCommand::Create(options) => {
            let no_wait = options.no_wait;
            let new = NewTemplate {
                request_id: options.request_id,
                name: options.name,
                resources: options.size.resources(),
                image: options.image,
                kernel: options.kernel,
                environment: options.environment.into_iter().collect(),
            };
            let mut stored = client.create_template(new).await.context("cannot create the template")?;
            if !no_wait {
                stored = prepared(client, stored).await?;
            }
            show(format, &TemplateView::from(&stored), || {
                templates(std::slice::from_ref(&stored), now_ms())
            })?;
        }
        TemplateCommand::Ls => {
            let all = client.templates().await?;
            let views: Vec<TemplateView> = all.iter().map(Into::into).collect();
            show(format, &views, || templates(&all, now_ms()))?;
        }
        TemplateCommand::Rm(options) => {
            for name in &options.names {
                client
                    .delete_template(name)
                    .await
                    .with_context(|| format!("cannot remove template {name:?}"))?;
                write_stdout(format!("{name}\n").as_bytes())?;
            }
        }
    }
    Ok(0)
}

/// Waits until no node is at work on it any more, at most for [`PREPARATION_LIMIT`]. What did not succeed is shown, and is
/// no failure: a create from it boots there.
async fn prepared(client: &Client, mut template: Template) -> Result<Template> {
    let mut progress = Progress::quiet();
    progress.begin(format!("template {}", template.name));
    let settled = async {
        while template.nodes_prepared + template.nodes_failed < template.nodes_eligible {
            let Template { nodes_prepared, nodes_eligible, .. } = template;
            progress.detail(&format!("prepared on {nodes_prepared} of {nodes_eligible} nodes"));
            tokio::time::sleep(PREPARATION_POLL).await;
            template = client.get_template(&template.name).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    // whatever is reached by then is shown
    if let Ok(settled) = tokio::time::timeout(PREPARATION_LIMIT, settled).await {
        settled?;
    }
    Ok(template)
}
