//! What nodes say against what is stored. A node's list is authoritative, and lost reports, restarts of the node agent and
//! restarts of the scheduler all come back together here.
//!
//! | the node lists | it is stored as | then |
//! |---|---|---|
//! | its live epoch | held by this node | the phase is taken over; Stopping here and not there: told again |
//! | its live epoch, before our last order | held by this node | its phase is old; Pausing, Resuming: told again |
//! | an ended one, live epoch | held by this node | it ends here too; forget |
//! | anything else that has ended | | forget |
//! | anything else that lives | | stop |
//! | nothing | Assigned, never accepted | at a new session: assigned again, same epoch; else its time-out decides |
//! | nothing for `forgotten_after` | Stopping | it has ended |
//! | nothing for `forgotten_after` | accepted before | failed with NodeForgot |
//!
//! One list never ends a sandbox by lacking it: it may have been made up a moment before the node accepted, and the first
//! list of a session may have been on its way for longer than the whole session after it.

use crate::event::{Effect, NodeReport, SessionId};
use crate::state::{Ending, State};
use crate::{assignment, ending, suspension};
use pinfold_domain::{
    Cause, Epoch, Milestone, Millis, NodeId, Phase, Reason, Sandbox, SandboxId, Timestamp, Transition,
};
use std::collections::BTreeSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// the list that begins a session
    Joined,
    Heartbeat,
}

/// One change of one sandbox.
pub(crate) fn report(state: &mut State, node: &NodeId, session: SessionId, status: NodeReport) {
    if !state.cluster.is_in_session(node, session) {
        return;
    }
    if is_live(state, node, &status) {
        take_over(state, node, status);
    } else {
        stray(state, node, &status);
    }
}

/// The full list of a node whose session was checked.
pub(crate) fn list(state: &mut State, node: &NodeId, statuses: Vec<NodeReport>, occasion: Occasion) {
    let mut seen = BTreeSet::new();
    for status in statuses {
        if !is_live(state, node, &status) {
            stray(state, node, &status);
            continue;
        }
        let (id, phase, order) = (status.sandbox_id, status.phase, status.order);
        seen.insert(id);
        take_over(state, node, status);
        if let Some(reservation) = state.cluster.reservation(node, id) {
            reservation.missing_since = None;
        }
        let ending_there = matches!(phase, Phase::Stopping | Phase::Stopped | Phase::Failed);
        match state.sandbox(id).map(|sandbox| (sandbox.phase, sandbox.order)) {
            Some((Phase::Stopping, _)) if !ending_there => ending::send_stop(state, id),
            Some((_, last)) if order < last && !ending_there => suspension::send(state, id),
            _ => {}
        }
    }
    let Some(entry) = state.cluster.get(node) else { return };
    let missing: Vec<SandboxId> =
        entry.reservations.keys().filter(|id| !seen.contains(id)).copied().collect();
    for id in missing {
        not_listed(state, node, id, occasion);
    }
}

/// The first byte of output passed the relay.
pub(crate) fn first_byte(state: &mut State, id: SandboxId, epoch: Epoch) {
    if state.sandbox(id).is_some_and(|sandbox| sandbox.epoch == epoch && sandbox.phase.holds_room()) {
        state.reach(id, Milestone::FirstByte, state.now);
    }
}

/// The node holds room for this sandbox under this very epoch.
fn is_live(state: &mut State, node: &NodeId, status: &NodeReport) -> bool {
    state.cluster.reservation(node, status.sandbox_id).is_some_and(|held| held.epoch == status.epoch)
}

fn take_over(state: &mut State, node: &NodeId, status: NodeReport) {
    let id = status.sandbox_id;
    let Some(reservation) = state.cluster.reservation(node, id) else { return };
    if reservation.sequence.is_some_and(|seen| status.sequence <= seen) {
        return;
    }
    let Some(before) = state.sandbox(id).map(|sandbox| sandbox.phase) else { return };
    // said before the node heard of our last order; its end is an end all the same
    let old = state.sandbox(id).is_some_and(|sandbox| sandbox.order != status.order);
    match status.phase {
        Phase::Stopping | Phase::Stopped | Phase::Failed => {}
        Phase::Starting | Phase::Running | Phase::Pausing | Phase::Paused | Phase::Resuming if !old => {}
        Phase::Starting | Phase::Running | Phase::Pausing | Phase::Paused | Phase::Resuming => return,
        // not a node's to say
        Phase::Pending | Phase::Assigned | Phase::Lost => return,
    }
    if let Some(reservation) = state.cluster.reservation(node, id) {
        reservation.sequence = Some(status.sequence);
        reservation.state = crate::cluster::reservation::ReservationState::Confirmed;
    }
    milestones(state, &status);
    match status.phase {
        Phase::Starting if before == Phase::Assigned => {
            state.shift(id, Transition::Accept);
        }
        Phase::Running => suspension::running(state, &status, before),
        Phase::Paused => suspension::paused(state, &status, before),
        Phase::Stopping if before != Phase::Stopping => {
            state.shift(id, Transition::Stop);
            if let Some(entry) = state.sandboxes.get_mut(&id) {
                entry.sandbox.cause = Some(status.cause.unwrap_or_else(no_cause));
            }
        }
        Phase::Stopped | Phase::Failed => ended(state, node, status),
        _ => {}
    }
}

/// The node says that nothing is left of it.
fn ended(state: &mut State, node: &NodeId, status: NodeReport) {
    let (id, epoch) = (status.sandbox_id, status.epoch);
    let Some(sandbox) = state.sandbox(id) else { return };
    let stopping = sandbox.cause.clone().filter(|_| sandbox.phase == Phase::Stopping);
    let ending = match (status.phase, stopping) {
        (Phase::Failed, None) => Ending::Failed(status.cause.unwrap_or_else(no_cause)),
        (Phase::Failed, Some(asked)) => Ending::Failed(status.cause.unwrap_or(asked)),
        (_, Some(asked)) => asked_end(asked),
        (_, None) => Ending::Stopped(status.cause.unwrap_or_else(no_cause)),
    };
    ending::finish(state, id, ending);
    forget(state, node, id, epoch);
}

/// The end of a sandbox that was in Stopping for `cause`.
fn asked_end(cause: Cause) -> Ending {
    match cause.reason {
        Reason::StartTimeout | Reason::SnapshotFailed => Ending::Failed(cause),
        _ => Ending::Stopped(cause),
    }
}

fn no_cause() -> Cause {
    Cause::new(Reason::Internal, "the node gave no cause")
}

/// Takes over what the node reached; its times count from the assignment.
fn milestones(state: &mut State, status: &NodeReport) {
    let Some(placed) = state.sandbox(status.sandbox_id).and_then(assignment::placed_at) else { return };
    for (milestone, since_us) in &status.milestones {
        match milestone {
            Milestone::Jailed
            | Milestone::Booted
            | Milestone::Restored
            | Milestone::Woken
            | Milestone::GuestReady
            | Milestone::Stopped => {
                state.reach(status.sandbox_id, *milestone, placed.after(Millis(since_us / 1000)));
            }
            Milestone::Accepted | Milestone::Placed | Milestone::FirstByte => {}
        }
    }
}

/// A status of something that this node should not hold.
fn stray(state: &mut State, node: &NodeId, status: &NodeReport) {
    let (id, epoch) = (status.sandbox_id, status.epoch);
    match status.phase {
        Phase::Stopped | Phase::Failed | Phase::Lost => forget(state, node, id, epoch),
        // it was told already
        Phase::Stopping => {}
        _ => {
            let cause = stray_cause(state.sandbox(id), epoch);
            let Some(session) = state.cluster.get(node).and_then(|entry| entry.session) else { return };
            let node = node.clone();
            let grace = Millis(0);
            state.outbox.send(Effect::StopOnNode { node, session, sandbox_id: id, epoch, cause, grace });
        }
    }
}

fn stray_cause(sandbox: Option<&Sandbox>, epoch: Epoch) -> Cause {
    match sandbox {
        None => Cause::new(Reason::DeleteRequested, "no such sandbox is stored"),
        Some(Sandbox { phase, cause: Some(cause), .. }) if phase.is_final() => cause.clone(),
        Some(sandbox) => {
            let message = format!("epoch {epoch} was withdrawn, the sandbox is at epoch {}", sandbox.epoch);
            Cause::new(Reason::NodeRefused, message)
        }
    }
}

fn forget(state: &mut State, node: &NodeId, sandbox_id: SandboxId, epoch: Epoch) {
    let Some(session) = state.cluster.get(node).and_then(|entry| entry.session) else { return };
    state.outbox.send(Effect::Forget { node: node.clone(), session, sandbox_id, epoch });
}

/// The node holds room for `id` and does not list it.
fn not_listed(state: &mut State, node: &NodeId, id: SandboxId, occasion: Occasion) {
    let (now, forgotten_after) = (state.now, state.config.forgotten_after);
    let Some(sandbox) = state.sandbox(id) else { return };
    let (phase, cause) = (sandbox.phase, sandbox.cause.clone());
    let Some(reservation) = state.cluster.reservation(node, id) else { return };
    if phase == Phase::Assigned && !reservation.is_confirmed() {
        if occasion == Occasion::Joined {
            assignment::send(state, id);
        }
        return;
    }
    let since: Timestamp = *reservation.missing_since.get_or_insert(now);
    if now.since(since) < forgotten_after {
        return;
    }
    let ending = match cause.filter(|_| phase == Phase::Stopping) {
        Some(cause) => asked_end(cause),
        None => Ending::Failed(Cause::new(Reason::NodeForgot, format!("node {node} no longer has it"))),
    };
    ending::finish(state, id, ending);
}
