//! Sandboxes made from what another one is at this moment, all of them accepted or none.
//!
//! ```text
//!   running sandbox --take--> snapshot made for this fork --Ready--> N creates, placed where it lies --> dropped
//!   snapshot ------------------------------------------------------> N creates, placed where it lies
//! ```
//!
//! A fork is nothing but creates with a snapshot as their source: they wait in the queue until it is Ready and its node has
//! room, and each then goes its own way. Their request ids are made of the id of the fork.

use crate::admission::{self, Wanted};
use crate::event::{CallId, ForkRequest, ForkSource, Operation, Rejection};
use crate::operations::{self, reject};
use crate::outbox::Reply;
use crate::placement::{self, Requirement};
use crate::snapshots::{self, WantedSnapshot};
use crate::state::State;
use crate::suspension;
use crate::{assignment, origin};
use pinfold_domain::spec::limits;
use pinfold_domain::{Explanation, Reason, RequestId, SandboxId, SandboxSpec, SnapshotId, Source, Verdict};

pub(crate) fn fork(state: &mut State, call: CallId, fork: ForkRequest) {
    let key = (fork.tenant.clone(), fork.request_id.clone());
    let same = |before: &Operation| match before {
        Operation::Fork(before) if before.is_same_request(&fork) => Some(forks_of(before)),
        _ => None,
    };
    let reply = operations::known(state, &key, same).unwrap_or_else(|| match admit(state, &fork) {
        Ok(()) => {
            let reply = forks_of(&fork);
            operations::remember(state, key, Operation::Fork(Box::new(fork)));
            reply
        }
        Err(rejection) => Reply::Rejected(rejection),
    });
    state.outbox.answer(call, reply);
}

fn forks_of(fork: &ForkRequest) -> Reply {
    Reply::Forks { ids: fork.sandbox_ids.clone(), snapshot_id: snapshot_of(fork) }
}

fn snapshot_of(fork: &ForkRequest) -> SnapshotId {
    match fork.source {
        ForkSource::Sandbox(_) => fork.snapshot_id,
        ForkSource::Snapshot(id) => id,
    }
}

/// Checks everything first: what is stored after that is stored whole.
fn admit(state: &mut State, fork: &ForkRequest) -> Result<(), Rejection> {
    let count = fork.sandbox_ids.len();
    if !(1..=limits::FORKS).contains(&count) {
        let message = format!("count is {count}, outside 1 to {}", limits::FORKS);
        return Err(reject(Reason::InvalidArgument, message));
    }
    let taken = |id| state.sandboxes.contains_key(id) || state.requests.removed(*id).is_some();
    if let Some(id) = fork.sandbox_ids.iter().find(|id| taken(id)) {
        return Err(reject(Reason::Internal, format!("sandbox id {id} is taken")));
    }
    let (length, limit) = (state.queue.len(), state.config.queue_length);
    if length.saturating_add(count) > limit {
        let message =
            format!("{length} sandboxes wait already, with {count} forks the limit of {limit} is passed");
        return Err(reject(Reason::QueueFull, message));
    }
    let wanted = children(fork, source_spec(state, fork)?)?;
    if let ForkSource::Sandbox(sandbox) = fork.source {
        let wanted = WantedSnapshot {
            tenant: fork.tenant.clone(),
            // of its own: it can never be asked for by a caller's
            request_id: request_id(fork.snapshot_id, "snapshot"),
            id: fork.snapshot_id,
            sandbox,
            name: fork.name.clone(),
            ephemeral: true,
        };
        snapshots::take(state, wanted)?;
    }
    let mut explanation = None;
    for mut wanted in wanted {
        let (id, now) = (wanted.sandbox_id, state.now);
        let origin = origin::resolve(state, &fork.tenant, &mut wanted.spec)?;
        admission::insert(state, wanted, origin);
        let Some(requirement) = assignment::requirement(state, id) else { continue };
        // the same for all of them
        let why = explanation.get_or_insert_with(|| why_it_waits(state, id, &requirement)).clone();
        if let Some(entry) = state.sandboxes.get_mut(&id) {
            entry.sandbox.explanation = Some(why);
        }
        state.queue.push((now, id), requirement, false);
    }
    Ok(())
}

fn why_it_waits(state: &State, id: SandboxId, requirement: &Requirement) -> Explanation {
    let decision = placement::scan(&state.cluster, state.config.placement, requirement);
    let explanation = Explanation { verdict: Verdict::Wait, ..decision.explanation };
    origin::with_note(state, id, None, explanation)
}

/// What the source is, with its whole environment.
fn source_spec(state: &State, fork: &ForkRequest) -> Result<SandboxSpec, Rejection> {
    match fork.source {
        ForkSource::Sandbox(id) => match state.sandbox(id) {
            Some(sandbox) => Ok(sandbox.effective_spec()),
            None => Err(suspension::not_found(id)),
        },
        ForkSource::Snapshot(id) => {
            let snapshot = &snapshots::find(state, &fork.tenant, id)?.snapshot;
            if snapshot.state.is_over() {
                let message = format!("snapshot {id} is {}", snapshot.state);
                return Err(reject(Reason::SnapshotUnusable, message));
            }
            Ok(snapshot.spec.clone())
        }
    }
}

/// One create for each fork.
fn children(fork: &ForkRequest, source: SandboxSpec) -> Result<Vec<Wanted>, Rejection> {
    let snapshot = snapshot_of(fork);
    let mut labels = source.labels.clone();
    labels.extend(fork.labels.clone());
    let spec = SandboxSpec {
        name: if fork.name.is_empty() { source.name.clone() } else { fork.name.clone() },
        labels,
        ttl: fork.ttl.unwrap_or(source.ttl),
        source: Source::Snapshot(snapshot),
        // the place is given by the snapshot
        node_labels: Default::default(),
        // the source's own comes with the snapshot
        environment: Default::default(),
        ..source
    };
    spec.validate().map_err(|error| reject(Reason::InvalidArgument, error.to_string()))?;
    let children = fork.sandbox_ids.iter().enumerate();
    Ok(children
        .map(|(index, id)| Wanted {
            tenant: fork.tenant.clone(),
            request_id: request_id(fork.snapshot_id, &index.to_string()),
            sandbox_id: *id,
            spec: spec.clone(),
        })
        .collect())
}

fn request_id(fork: SnapshotId, part: &str) -> RequestId {
    format!("fork/{fork}/{part}").parse().expect("below 64 bytes of printable ASCII without space")
}
