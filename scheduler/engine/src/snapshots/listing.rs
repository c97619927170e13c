//! What nodes say of snapshots against what is stored; it moves them along as it moves sandboxes.
//!
//! | the node lists | it is stored as | then |
//! |---|---|---|
//! | it | unknown, on another node, or over | the node is told to drop it |
//! | Ready, Failed | Creating | Ready; Failed |
//! | Failed | Ready | Lost: what was whole is no longer |
//! | nothing | Creating | at a new session: told again; for `forgotten_after`: Failed |
//! | nothing for `forgotten_after` | Ready | Lost |
//! | nothing | Deleting | removed |
//!
//! One list never ends a snapshot by lacking it: it may have been made up a moment before the node heard of it.

use super::{end, remove, send_drop, send_take, shift};
use crate::event::SessionId;
use crate::reconcile::Occasion;
use crate::state::State;
use pinfold_domain::{Cause, NodeId, Reason, SnapshotId, SnapshotReport, SnapshotState, SnapshotTransition};
use std::collections::BTreeSet;

/// One change of one snapshot.
pub(crate) fn report(state: &mut State, node: &NodeId, session: SessionId, status: SnapshotReport) {
    if state.cluster.is_in_session(node, session) {
        take_over(state, node, status);
    }
}

/// True when the node ought to have it.
fn take_over(state: &mut State, node: &NodeId, status: SnapshotReport) -> bool {
    let id = status.snapshot_id;
    let here = state.snapshots.entries.get_mut(&id).filter(|entry| entry.snapshot.node == *node);
    let Some(entry) = here.filter(|entry| !entry.snapshot.state.is_over()) else {
        send_drop(state, node, id);
        return false;
    };
    entry.missing_since = None;
    let no_cause = || Cause::new(Reason::SnapshotFailed, "the node gave no cause");
    match (entry.snapshot.state, status.state) {
        (SnapshotState::Creating, SnapshotState::Ready) => {
            entry.snapshot.sizes = status.sizes;
            shift(state, id, SnapshotTransition::Ready, None);
        }
        (SnapshotState::Creating, SnapshotState::Failed) => {
            end(state, id, SnapshotTransition::Fail, status.cause.unwrap_or_else(no_cause));
        }
        (SnapshotState::Ready, SnapshotState::Failed) => {
            end(state, id, SnapshotTransition::Lose, status.cause.unwrap_or_else(no_cause));
        }
        _ => {}
    }
    true
}

/// The full list of a node whose session was checked.
pub(crate) fn list(state: &mut State, node: &NodeId, reports: Vec<SnapshotReport>, occasion: Occasion) {
    let mut seen = BTreeSet::new();
    for report in reports {
        seen.insert(report.snapshot_id);
        take_over(state, node, report);
    }
    let missing: Vec<SnapshotId> = state.snapshots.on_node(node).filter(|id| !seen.contains(id)).collect();
    for id in missing {
        not_listed(state, node, id, occasion);
    }
}

fn not_listed(state: &mut State, node: &NodeId, id: SnapshotId, occasion: Occasion) {
    let (now, forgotten_after) = (state.now, state.config.forgotten_after);
    let Some(entry) = state.snapshots.entries.get_mut(&id) else { return };
    let (before, since) = (entry.snapshot.state, *entry.missing_since.get_or_insert(now));
    let forgotten = now.since(since) >= forgotten_after;
    let cause = |reason| Cause::new(reason, format!("node {node} no longer has it"));
    match before {
        SnapshotState::Creating if occasion == Occasion::Joined => send_take(state, id),
        SnapshotState::Creating if forgotten => {
            end(state, id, SnapshotTransition::Fail, cause(Reason::SnapshotFailed));
        }
        SnapshotState::Ready if forgotten => {
            end(state, id, SnapshotTransition::Lose, cause(Reason::NodeForgot));
        }
        SnapshotState::Deleting => remove(state, id),
        SnapshotState::Creating | SnapshotState::Ready | SnapshotState::Failed | SnapshotState::Lost => {}
    }
}

/// The node was given up, and all that lies on it with it.
pub(crate) fn node_lost(state: &mut State, node: &NodeId, cause: &Cause) {
    let here: Vec<SnapshotId> = state.snapshots.on_node(node).collect();
    for id in here {
        match state.snapshots.get(id).map(|entry| entry.snapshot.state) {
            Some(SnapshotState::Deleting) => remove(state, id),
            Some(_) => end(state, id, SnapshotTransition::Lose, cause.clone()),
            None => {}
        }
    }
}
