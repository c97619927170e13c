//! Snapshots: asked for, taken by a node, used by sandboxes that start from them, dropped. The states are drawn in
//! `pinfold_domain::snapshot`; what nodes say moves them along ([`listing`]).
//!
//! Whoever is to start from a snapshot and has not yet is its user. A snapshot with users is not deleted by a caller; one
//! that was made for forks is dropped as soon as it has none.

mod listing;
mod table;

pub(crate) use listing::{list, node_lost, report};
pub(crate) use table::{SnapshotEntry, Snapshots, has_ended};

use crate::event::{CallId, Effect, Operation, Rejection};
use crate::operations::Made;
use crate::outbox::Reply;
use crate::state::{Ending, State};
use crate::timers::TimerKey;
use crate::{ending, operations, suspension};
use pinfold_domain::{
    Cause, NodeId, Phase, Reason, RequestId, SandboxId, Snapshot, SnapshotId, SnapshotSizes, SnapshotState,
    SnapshotTransition, Source, TenantId, Timestamp,
};

/// A snapshot as the caller sent it.
pub(crate) struct WantedSnapshot {
    pub tenant: TenantId,
    pub request_id: RequestId,
    pub id: SnapshotId,
    pub sandbox: SandboxId,
    pub name: String,
    pub ephemeral: bool,
}

pub(crate) fn create(state: &mut State, call: CallId, wanted: WantedSnapshot) {
    let key = (wanted.tenant.clone(), wanted.request_id.clone());
    let same = |operation: &Operation| match operation {
        Operation::CreateSnapshot(taken)
            if (taken.sandbox, &taken.name) == (wanted.sandbox, &wanted.name) =>
        {
            Some(Reply::Snapshot(taken.clone()))
        }
        _ => None,
    };
    let reply = operations::known(state, &key, same).unwrap_or_else(|| match take(state, wanted) {
        Ok(snapshot) => {
            operations::remember(state, key, Operation::CreateSnapshot(snapshot.clone()));
            Reply::Snapshot(snapshot)
        }
        Err(rejection) => Reply::Rejected(rejection),
    });
    state.outbox.answer(call, reply);
}

/// Stores a new snapshot of a running sandbox and tells its node.
pub(crate) fn take(state: &mut State, wanted: WantedSnapshot) -> Result<Box<Snapshot>, Rejection> {
    // a stranger's sandbox is as one that is not there: a snapshot holds its memory
    if state.sandbox(wanted.sandbox).is_none_or(|sandbox| sandbox.tenant != wanted.tenant) {
        return Err(suspension::not_found(wanted.sandbox));
    }
    let node = suspension::running_on(state, wanted.sandbox)?;
    if state.snapshots.get(wanted.id).is_some() {
        return Err(operations::reject(Reason::Internal, format!("snapshot id {} is taken", wanted.id)));
    }
    may_add(state, &node)?;
    let now = state.now;
    let Some(sandbox) = state.sandbox(wanted.sandbox) else {
        return Err(suspension::not_found(wanted.sandbox));
    };
    let snapshot = Snapshot {
        id: wanted.id,
        tenant: wanted.tenant,
        request_id: wanted.request_id,
        name: wanted.name,
        sandbox: wanted.sandbox,
        spec: sandbox.effective_spec(),
        node,
        ephemeral: wanted.ephemeral,
        state: SnapshotState::Creating,
        cause: None,
        sizes: SnapshotSizes::default(),
        created_at: now,
        state_at: now,
    };
    state.snapshots.insert(snapshot.clone());
    touch(state, wanted.id);
    send_take(state, wanted.id);
    Ok(Box::new(snapshot))
}

fn may_add(state: &State, node: &NodeId) -> Result<(), Rejection> {
    let usable = |id: &SnapshotId| state.snapshots.get(*id).is_some_and(|e| !has_ended(e.snapshot.state));
    let here = state.snapshots.on_node(node).filter(usable).count();
    let on_node = state.config.snapshots_per_node;
    if here >= on_node {
        let message = format!("node {node} has {here} snapshots already, the limit is {on_node}");
        return Err(operations::reject(Reason::LimitReached, message));
    }
    let (count, limit) = (state.snapshots.usable(), state.config.snapshots);
    if count >= limit {
        let message = format!("there are {count} snapshots already, the limit is {limit}");
        return Err(operations::reject(Reason::LimitReached, message));
    }
    Ok(())
}

/// Tells the node to take it, while its sandbox runs there.
fn send_take(state: &mut State, id: SnapshotId) {
    let Some(snapshot) = state.snapshots.get(id).map(|entry| &entry.snapshot) else { return };
    let (node, sandbox_id) = (snapshot.node.clone(), snapshot.sandbox);
    let Some(sandbox) = state.sandbox(sandbox_id).filter(|s| s.node.as_ref() == Some(&node)) else { return };
    let epoch = sandbox.epoch;
    if let Some(session) = state.cluster.get(&node).and_then(|entry| entry.session) {
        state.outbox.send(Effect::TakeSnapshot { node, session, snapshot_id: id, sandbox_id, epoch });
    }
}

fn send_drop(state: &mut State, node: &NodeId, snapshot_id: SnapshotId) {
    if let Some(session) = state.cluster.get(node).and_then(|entry| entry.session) {
        state.outbox.send(Effect::DropSnapshot { node: node.clone(), session, snapshot_id });
    }
}

/// Marks it as changed: it is stored, and its time is set anew, at the end of the step.
pub(crate) fn touch(state: &mut State, id: SnapshotId) {
    state.outbox.snapshots.insert(id);
    state.retime(TimerKey::Snapshot(id));
}

/// Moves it along `transition`; false, with nothing changed, when there is no such way.
fn shift(state: &mut State, id: SnapshotId, transition: SnapshotTransition, cause: Option<Cause>) -> bool {
    let now = state.now;
    let Some(entry) = state.snapshots.entries.get_mut(&id) else { return false };
    let Some(next) = entry.snapshot.state.next(transition) else { return false };
    entry.snapshot.state = next;
    entry.snapshot.state_at = now;
    entry.snapshot.cause = cause.or(entry.snapshot.cause.take());
    let node = entry.snapshot.node.clone();
    state.snapshots.released.insert(id);
    if has_ended(next) {
        state.snapshots.ended.insert((now, id));
    }
    touch(state, id);
    if next == SnapshotState::Ready {
        if let Some(holder) = state.cluster.get_mut(&node) {
            holder.snapshots.insert(id);
        }
        // those that wait for it can be placed now
        state.cluster.wake(&node);
    } else if let Some(holder) = state.cluster.get_mut(&node) {
        holder.snapshots.remove(&id);
    }
    true
}

/// It cannot be used any more: so neither can those start that wait for it.
fn end(state: &mut State, id: SnapshotId, transition: SnapshotTransition, cause: Cause) {
    if !shift(state, id, transition, Some(cause.clone())) {
        return;
    }
    let Some(entry) = state.snapshots.get(id) else { return };
    let node = entry.snapshot.node.clone();
    let (reason, what) = match entry.snapshot.state {
        SnapshotState::Failed => (cause.reason, "failed"),
        _ => (Reason::SnapshotUnusable, "was lost"),
    };
    let message = format!("snapshot {id} {what}: {}", cause.message);
    let users: Vec<SandboxId> = entry.users.iter().copied().collect();
    for user in users {
        // one that has a node already: that node says what becomes of it
        if state.sandbox(user).is_some_and(|sandbox| sandbox.phase == Phase::Pending) {
            ending::finish(state, user, Ending::Failed(Cause::new(reason, message.clone())));
        }
    }
    send_drop(state, &node, id);
}

fn remove(state: &mut State, id: SnapshotId) {
    let Some(snapshot) = state.snapshots.remove(id) else { return };
    if let Some(holder) = state.cluster.get_mut(&snapshot.node) {
        holder.snapshots.remove(&id);
    }
    operations::let_go(state, Made::Snapshot(id));
    touch(state, id);
}

pub(crate) fn delete(
    state: &mut State,
    call: CallId,
    tenant: TenantId,
    request_id: RequestId,
    id: SnapshotId,
) {
    let key = (tenant, request_id);
    let same = |operation: &Operation| match operation {
        Operation::DeleteSnapshot(gone) if gone.id == id => Some(Reply::Snapshot(gone.clone())),
        _ => None,
    };
    let reply = operations::known(state, &key, same).unwrap_or_else(|| match may_delete(state, &key.0, id) {
        Ok(mut snapshot) => {
            snapshot.state = SnapshotState::Deleting;
            begin_delete(state, id);
            operations::remember(state, key, Operation::DeleteSnapshot(snapshot.clone()));
            Reply::Snapshot(snapshot)
        }
        Err(rejection) => Reply::Rejected(rejection),
    });
    state.outbox.answer(call, reply);
}

fn may_delete(state: &State, tenant: &TenantId, id: SnapshotId) -> Result<Box<Snapshot>, Rejection> {
    let entry = find(state, tenant, id)?;
    let users = entry.users.len();
    if users > 0 {
        let message = format!("{users} sandboxes are to start from snapshot {id} and have not yet");
        return Err(operations::reject(Reason::SnapshotInUse, message));
    }
    Ok(Box::new(entry.snapshot.clone()))
}

/// The snapshot, if it is the tenant's.
pub(crate) fn find<'a>(
    state: &'a State,
    tenant: &TenantId,
    id: SnapshotId,
) -> Result<&'a SnapshotEntry, Rejection> {
    let found = state.snapshots.get(id).filter(|entry| entry.snapshot.tenant == *tenant);
    found.ok_or_else(|| operations::reject(Reason::SnapshotNotFound, format!("there is no snapshot {id}")))
}

/// Tells the node to drop it. One that is over already is removed: nothing of it is waited for.
fn begin_delete(state: &mut State, id: SnapshotId) {
    let Some(snapshot) = state.snapshots.get(id).map(|entry| &entry.snapshot) else { return };
    let (node, before) = (snapshot.node.clone(), snapshot.state);
    match before {
        SnapshotState::Deleting => {}
        SnapshotState::Failed | SnapshotState::Lost => remove(state, id),
        SnapshotState::Creating | SnapshotState::Ready => {
            shift(state, id, SnapshotTransition::Delete, None);
        }
    }
    send_drop(state, &node, id);
}

/// When something about it is due next.
pub(crate) fn deadline(state: &State, id: SnapshotId) -> Option<Timestamp> {
    let snapshot = &state.snapshots.get(id)?.snapshot;
    match snapshot.state {
        SnapshotState::Creating => Some(snapshot.created_at.after(state.config.snapshot_timeout)),
        SnapshotState::Failed | SnapshotState::Lost => {
            Some(snapshot.state_at.after(state.config.ended_retention))
        }
        // the node's lists drive it on, and the node's silence ends it
        SnapshotState::Ready | SnapshotState::Deleting => None,
    }
}

pub(crate) fn due(state: &mut State, id: SnapshotId) {
    state.retime(TimerKey::Snapshot(id));
    if deadline(state, id).is_none_or(|at| at > state.now) {
        return;
    }
    match state.snapshots.get(id).map(|entry| entry.snapshot.state) {
        Some(SnapshotState::Creating) => {
            let message = format!("it was not ready within {} ms", state.config.snapshot_timeout.0);
            end(state, id, SnapshotTransition::Fail, Cause::new(Reason::SnapshotFailed, message));
        }
        Some(SnapshotState::Failed | SnapshotState::Lost) => remove(state, id),
        Some(SnapshotState::Ready | SnapshotState::Deleting) | None => {}
    }
}

/// Removes the oldest of those that failed or were lost beyond their bound.
pub(crate) fn trim(state: &mut State) {
    for _ in 0..state.config.work_per_step {
        if state.snapshots.ended.len() <= state.config.ended_snapshots {
            break;
        }
        let Some((_, oldest)) = state.snapshots.ended.first().copied() else { break };
        remove(state, oldest);
    }
}

/// Drops what was made for forks and has no users any more.
pub(crate) fn sweep(state: &mut State) {
    for id in std::mem::take(&mut state.snapshots.released) {
        let unused = |entry: &&SnapshotEntry| {
            let snapshot = &entry.snapshot;
            snapshot.ephemeral && entry.users.is_empty() && snapshot.state != SnapshotState::Deleting
        };
        if state.snapshots.get(id).filter(unused).is_some() {
            begin_delete(state, id);
        }
    }
}

/// Why a sandbox that waits for its snapshot waits in vain; `None` when it does not.
pub(crate) fn wanted_in_vain(state: &State, source: &Source) -> Option<Cause> {
    let Source::Snapshot(id) = source else { return None };
    let found = state.snapshots.get(*id).map(|entry| &entry.snapshot);
    if found.is_some_and(|snapshot| !snapshot.state.is_over()) {
        return None;
    }
    let what = found.map_or_else(|| "gone".to_owned(), |snapshot| snapshot.state.to_string());
    Some(Cause::new(Reason::SnapshotUnusable, format!("snapshot {id} is {what}")))
}

/// The snapshot that a sandbox in `phase` still needs.
pub(crate) fn needed(source: &Source, phase: Phase) -> Option<SnapshotId> {
    match (source, phase) {
        (Source::Snapshot(id), Phase::Pending | Phase::Assigned | Phase::Starting) => Some(*id),
        _ => None,
    }
}
