//! Preparing a template: a machine is booted as for any sandbox, saved when its guest is ready, and ended.
//!
//! It is not in the list of sandboxes and nobody can reach it. Its record says what it is for, so that the agent that
//! comes after this one removes it; then the scheduler asks for the template again.

use super::bringup::{Context, TakenList};
use super::record::{Assignment, Ledger, Record};
use super::{Host, bringup, save, teardown};
use crate::clock::BootTime;
use crate::host::snapshots::{Draft, Saved};
use crate::machine::Machine;
use pinfold_domain::{Cause, Epoch, Reason, SandboxId, SandboxSpec, TemplateId};
use pinfold_service::CancellationToken;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Of one that is dropped before it is made.
pub fn dropped() -> Cause {
    Cause::new(Reason::SnapshotFailed, "the template was dropped")
}

/// Boots `spec`, saves it into `draft`, and leaves nothing else. Ended early by `ended`.
pub async fn prepare(
    host: &Host,
    id: TemplateId,
    spec: SandboxSpec,
    draft: Draft,
    ended: CancellationToken,
) -> Result<Saved, Cause> {
    let context = context(host, id, spec);
    let start = Duration::from_millis(context.ledger.assignment().spec.start_timeout.0);
    let mut machine = None;
    let made = tokio::select! {
        made = boot_and_save(&context, start, draft, &mut machine) => made,
        () = ended.cancelled() => Err(dropped()),
    };
    let removed = teardown::run(&context, machine.as_ref()).await;
    let removed = removed.and_then(|()| context.ledger.paths().remove().map_err(|error| error.sentence()));
    if let Err(left) = removed {
        tracing::error!(template = %id, left, "the preparation of a template left something behind");
    }
    made
}

/// A sandbox of its own, with the template's id.
fn context(host: &Host, template: TemplateId, spec: SandboxSpec) -> Context {
    let assigned_at = BootTime::now();
    let id = SandboxId(template.0);
    let assignment = Assignment {
        id,
        epoch: Epoch(0),
        tenant: String::new(),
        expires_at: assigned_at.after(Duration::from_secs(24 * 3600)),
        spec: SandboxSpec { source: pinfold_domain::Source::Image, ..spec },
        assigned_at,
        template: None,
    };
    let mut record = Record::new(&host.boot_id, assignment);
    record.saving.builds = Some(template);
    let ledger = Arc::new(Ledger::new(record, host.state.sandbox(id), Arc::new(|_| {})));
    Context { host: host.clone(), ledger, taken: TakenList::default() }
}

async fn boot_and_save(
    context: &Context,
    start: Duration,
    draft: Draft,
    held: &mut Option<Arc<dyn Machine>>,
) -> Result<Saved, Cause> {
    let booted = tokio::time::timeout(start, bringup::run(context, None)).await;
    let ready = booted.unwrap_or_else(|_| {
        Err(Cause::new(Reason::StartTimeout, format!("not ready within {} ms", start.as_millis())))
    })?;
    let machine = held.insert(ready.machine);
    let saved = save::in_time(Instant::now() + save::LIMIT, async {
        let copied = {
            let _turn = save::turn(context).await;
            save::copy(context, machine, draft, true).await?
        };
        copied.publish().await.map_err(save::Failure::Failed)
    });
    saved.await.map_err(save::Failure::cause)
}
