//! What an earlier agent left: each sandbox is adopted without a restart, or its end is found out and reported.
//!
//! Nothing here trusts that the earlier agent ended well: a record may be missing or damaged, a machine may run without
//! one. What cannot be attributed to a record is removed.

use super::Host;
use super::actor::{Begin, Stop, phase_of_end};
use super::bringup::{Context, TakenList, evidence};
use super::record::{Changed, Ledger, Record, Saving};
use super::teardown;
use crate::clock::BootTime;
use crate::guest::clock_ms;
use crate::host::paths::SandboxPaths;
use crate::host::{HostError, blocking};
use crate::machine::Exit;
use crate::machine::ending::classify;
use pinfold_domain::{Cause, Phase, Reason, SandboxId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Longest record that is read: a spec has bounds that keep it far below.
const MAX_RECORD_BYTES: u64 = 1024 * 1024;

/// For a stop that an earlier agent had begun.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// One sandbox that was found.
pub struct Found {
    pub context: Context,
    /// `None`: it had ended, and its last report waits for a Forget
    pub begin: Option<Begin>,
    /// an order to end that was being carried out
    pub stop: Option<Stop>,
}

/// Looks at every directory and every cgroup of this agent.
pub async fn run(host: &Host, changed: &Changed) -> Result<Vec<Found>, HostError> {
    let mut found = Vec::new();
    let mut known = BTreeSet::new();
    for id in host.state.list()? {
        let paths = host.state.sandbox(id);
        match read(&paths) {
            // booted in order to be saved: nobody asked for it
            Ok(Record { saving: Saving { builds: Some(_), .. }, .. }) => {
                discard(host, id, &paths, "it was booted for a template").await;
            }
            Ok(record) if record.assignment.id == id => {
                known.insert(id);
                found.push(one(host, changed, record, paths).await?);
            }
            Ok(_) => discard(host, id, &paths, "its record is of another sandbox").await,
            Err(error) => discard(host, id, &paths, &error).await,
        }
    }
    for id in host.cgroups.list()?.difference(&known) {
        discard(host, *id, &host.state.sandbox(*id), "a cgroup without a record").await;
    }
    Ok(found)
}

async fn one(
    host: &Host,
    changed: &Changed,
    mut record: Record,
    paths: SandboxPaths,
) -> Result<Found, HostError> {
    outlive_the_boot(host, &mut record, &paths);
    let id = record.assignment.id;
    let half = paths.clone();
    if let Err(error) = blocking(move || half.remove_half_saved()).await {
        tracing::error!(sandbox = %id, error = error.sentence(), "half of a saved machine is left");
    }
    let machine = match record.process {
        Some(process) if record.boot_id == *host.boot_id => host.machines.attach(id, &paths, process)?,
        _ => None,
    };
    let (phase, uid, process, boot_id) = (record.phase, record.uid, record.process, record.boot_id.clone());
    let saved = record.saving.saved;
    // How much of its grace had passed is not known, so it gets little.
    let stop = record
        .cause
        .clone()
        .filter(|_| phase == Phase::Stopping)
        .map(|cause| Stop { cause, grace: STOP_GRACE });
    let ledger = Arc::new(Ledger::new(record, paths, Arc::clone(changed)));
    let context = Context { host: host.clone(), ledger, taken: TakenList::all(uid) };
    if let Some(uid) = uid {
        host.uids.adopt(uid);
    }
    // until its cgroup is empty, whatever the record says of its machine
    if let Some((origin, mapped)) = context.ledger.saving().maps {
        context.ledger.map(origin, host.catalog.adopt(origin, mapped));
    }
    if phase.is_final() {
        // Nothing should be left; what is, because a teardown failed, is tried once more, and keeps its uid until then.
        if let Err(left) = teardown::run(&context, None).await {
            tracing::error!(sandbox = %id, left, "a sandbox left something behind");
        }
        return Ok(Found { context, begin: None, stop: None });
    }
    let begin = match machine {
        // what was saved is whole: what is left of its machine goes
        _ if saved && matches!(phase, Phase::Pausing | Phase::Paused) => Begin::Paused { resume: false },
        Some(machine) if phase == Phase::Pausing => Begin::Pausing { machine },
        None if saved && phase == Phase::Resuming => Begin::Paused { resume: true },
        Some(machine) => {
            tracing::info!(sandbox = %id, %phase, "adopted");
            Begin::Adopted { machine, ready: !matches!(phase, Phase::Starting | Phase::Resuming) }
        }
        // It was on its way down, and came there: the order is its cause.
        None if let Some(stop) = &stop => Begin::Gone { phase: Phase::Stopped, cause: stop.cause.clone() },
        None if phase == Phase::Starting && process.is_none() && boot_id == *host.boot_id => {
            tracing::info!(sandbox = %id, "begun anew: the earlier agent ended before there was a machine");
            Begin::Again
        }
        None => {
            let cause = gone(host, &context, &boot_id);
            Begin::Gone { phase: phase_of_end(&cause), cause }
        }
    };
    Ok(Found { context, begin: Some(begin), stop })
}

/// A paused sandbox is files alone, which a boot of the node does not touch: its record is made one of this boot.
fn outlive_the_boot(host: &Host, record: &mut Record, paths: &SandboxPaths) {
    let on_disk = matches!(record.phase, Phase::Pausing | Phase::Paused | Phase::Resuming);
    let (true, true, Some(expires_ms)) = (on_disk, record.saving.saved, record.saving.expires_ms) else {
        return;
    };
    if record.boot_id == *host.boot_id {
        return;
    }
    tracing::info!(sandbox = %record.assignment.id, directory = %paths.saved().display(), "paused in an earlier boot");
    record.boot_id = host.boot_id.to_string();
    record.phase = Phase::Paused;
    record.process = None;
    // its own clock began anew; the wall clock is the only one that has counted the time between
    let left = Duration::from_millis(expires_ms.saturating_sub(clock_ms()));
    record.assignment.assigned_at = BootTime::now();
    record.assignment.expires_at = record.assignment.assigned_at.after(left);
}

/// Why a machine is gone that nobody watched.
fn gone(host: &Host, context: &Context, boot_id: &str) -> Cause {
    if *boot_id != *host.boot_id {
        return Cause::new(Reason::VmmFailed, "the node was booted again");
    }
    let exit: Exit = host.machines.ended(context.ledger.paths());
    classify(&evidence(context, exit))
}

fn read(paths: &SandboxPaths) -> Result<Record, String> {
    use std::io::Read;
    let mut text = Vec::new();
    let file = std::fs::File::open(paths.record()).map_err(|error| format!("no record: {error}"))?;
    file.take(MAX_RECORD_BYTES).read_to_end(&mut text).map_err(|error| format!("its record: {error}"))?;
    serde_json::from_slice(&text).map_err(|error| format!("its record: {error}"))
}

/// Nobody knows it, so nobody can be told: the scheduler learns by its absence from the next list.
async fn discard(host: &Host, id: SandboxId, paths: &SandboxPaths, why: &str) {
    tracing::warn!(sandbox = %id, why, "what is left of a sandbox is removed");
    let removed = async {
        host.cgroups.kill(id)?;
        host.cgroups.remove(id).await?;
        paths.remove()
    };
    if let Err(error) = removed.await {
        tracing::error!(sandbox = %id, error = error.sentence(), "it cannot be removed");
    }
}

#[cfg(test)]
mod tests;
