//! Sandbox to node, one epoch at a time.
//!
//! ```text
//!              the node reports it
//!   Issued ---------------------------> Accepted
//!     |  |   the node refuses
//!     |  +----------------------------> Refused ---+
//!     |      assignment_timeout                    +--> back to the queue, without this node for a while;
//!     +-------------------------------> Expired ---+    after `assignment_attempts`: failed with NodeRefused
//! ```
//!
//! A refusal for want of room is no failed attempt: the node takes room for something that is not in our account yet, or
//! is no longer in it, and that passes. It has a bound of its own, `room_refusals`, and a wait that grows.
//!
//! Each assignment has its own epoch, one more than the last. What a node says of another epoch is never believed; what
//! runs under another epoch is stopped. The epoch is stored, so it also counts the attempts across restarts.

use crate::cluster::reservation::Reservation;
use crate::event::{Effect, SessionId};
use crate::outbox::Message;
use crate::placement::{self, Requirement};
use crate::queue::Order;
use crate::state::{Ending, State};
use crate::timers::TimerKey;
use crate::{ending, origin, snapshots};
use pinfold_domain::{
    Cause, Epoch, Explanation, Milestone, Millis, NodeId, Phase, Reason, Sandbox, SandboxId, Timestamp,
    Transition,
};

/// Of the wait before a node that had no room is asked again.
const MAX_DOUBLINGS: u64 = 4;

/// When the last assignment was made.
pub(crate) fn placed_at(sandbox: &Sandbox) -> Option<Timestamp> {
    sandbox.timeline.iter().find(|reached| reached.milestone == Milestone::Placed).map(|reached| reached.at)
}

/// When an assignment that the node has not accepted expires.
pub(crate) fn deadline(state: &State, id: SandboxId) -> Option<Timestamp> {
    let node = state.sandbox(id)?.node.as_ref()?;
    let reservation = state.cluster.get(node)?.reservations.get(&id)?;
    Some(reservation.since.after(state.config.assignment_timeout))
}

pub(crate) fn requirement(state: &State, id: SandboxId) -> Option<Requirement> {
    let entry = state.sandboxes.get(&id)?;
    let refused = entry.refused_by.iter().filter(|(_, until)| **until > state.now);
    let template = origin::template_of(&entry.sandbox);
    Some(Requirement::new(&entry.sandbox.spec, template, refused.map(|(node, _)| node.clone()).collect()))
}

/// Puts a pending sandbox in its place in the queue, as nodes that refused it are seen now.
pub(crate) fn requeue(state: &mut State, id: SandboxId) {
    let (Some(requirement), Some(sandbox)) = (requirement(state, id), state.sandbox(id)) else { return };
    let order: Order = (sandbox.created_at, id);
    state.queue.remove(id);
    state.queue.push(order, requirement, false);
    state.retime(TimerKey::Sandbox(id));
}

/// Gives a pending sandbox to `node`, under a new epoch.
pub(crate) fn assign(state: &mut State, id: SandboxId, node: &NodeId, explanation: Explanation) {
    if state.shift(id, Transition::Place).is_none() {
        return;
    }
    let now = state.now;
    state.queue.remove(id);
    let explanation = origin::with_note(state, id, Some(node), explanation);
    let Some(entry) = state.sandboxes.get_mut(&id) else { return };
    let sandbox = &mut entry.sandbox;
    sandbox.epoch = sandbox.epoch.next();
    sandbox.node = Some(node.clone());
    sandbox.explanation = Some(explanation);
    sandbox.held = None;
    sandbox.cause = None;
    // what an earlier assignment reached is not part of this life
    sandbox.timeline.retain(|reached| reached.milestone == Milestone::Accepted);
    let (epoch, resources) = (sandbox.epoch, sandbox.spec.resources);
    state.cluster.reserve(node, id, Reservation::new(epoch, resources, now));
    state.reach(id, Milestone::Placed, now);
    send(state, id);
}

/// Tells the node of an assigned sandbox, if the node is there, and waits for its answer from now on.
pub(crate) fn send(state: &mut State, id: SandboxId) {
    let now = state.now;
    let Some(sandbox) = state.sandbox(id) else { return };
    let (Some(node), epoch) = (sandbox.node.clone(), sandbox.epoch) else { return };
    if let Some(reservation) = state.cluster.reservation(&node, id) {
        reservation.since = now;
        state.retime(TimerKey::Sandbox(id));
    }
    if let Some(session) = state.cluster.get(&node).and_then(|entry| entry.session) {
        state.outbox.messages.push(Message::Assign { node, session, id, epoch });
    }
}

/// The node will not take it.
pub(crate) fn refused(
    state: &mut State,
    node: &NodeId,
    session: SessionId,
    id: SandboxId,
    epoch: Epoch,
    cause: Cause,
) {
    if !state.cluster.is_in_session(node, session) {
        return;
    }
    let live = state.cluster.reservation(node, id).is_some_and(|r| r.epoch == epoch && !r.is_confirmed());
    let Some(sandbox) = state.sandbox(id).filter(|_| live) else { return };
    match (sandbox.phase, sandbox.cause.clone()) {
        (Phase::Assigned, _) => withdraw(state, id, node, cause),
        // asked to stop before the node took it: it never ran
        (Phase::Stopping, Some(cause)) => ending::finish(state, id, Ending::Stopped(cause)),
        _ => {}
    }
}

/// The node has not accepted in time. Should it have taken the sandbox all the same, it is told to end that epoch.
pub(crate) fn expire(state: &mut State, id: SandboxId) {
    let Some(sandbox) = state.sandbox(id) else { return };
    let (Some(node), epoch) = (sandbox.node.clone(), sandbox.epoch) else { return };
    let message = format!("it did not accept epoch {epoch} within {} ms", state.config.assignment_timeout.0);
    if let Some(session) = state.cluster.get(&node).and_then(|entry| entry.session) {
        let cause = Cause::new(Reason::NodeRefused, message.clone());
        let (node, grace) = (node.clone(), Millis(0));
        state.outbox.send(Effect::StopOnNode { node, session, sandbox_id: id, epoch, cause, grace });
    }
    withdraw(state, id, &node, Cause::new(Reason::NodeRefused, message));
}

/// Takes an assignment back: the next node, or the end after too many.
fn withdraw(state: &mut State, id: SandboxId, node: &NodeId, cause: Cause) {
    let for_room = cause.reason == Reason::HostResources;
    if let Some(entry) = state.sandboxes.get_mut(&id) {
        entry.sandbox.refused_for_room += u64::from(for_room);
    }
    let counts = |sandbox: &Sandbox| (sandbox.epoch.0, sandbox.refused_for_room);
    let (assignments, refused_for_room) = state.sandbox(id).map_or((0, 0), counts);
    let attempts = assignments.saturating_sub(refused_for_room);
    if attempts >= state.config.assignment_attempts || refused_for_room > state.config.room_refusals {
        let last = format!("{assignments} assignments, the last one to {node}: {}", cause.message);
        ending::finish(state, id, Ending::Failed(Cause::new(Reason::NodeRefused, last)));
        return;
    }
    let in_vain = state.sandbox(id).and_then(|s| snapshots::wanted_in_vain(state, &s.spec.source));
    if let Some(cause) = in_vain {
        return ending::finish(state, id, Ending::Failed(cause));
    }
    if state.shift(id, Transition::Refuse).is_none() {
        return;
    }
    state.cluster.release(node, id);
    let doublings = if for_room { refused_for_room.saturating_sub(1).min(MAX_DOUBLINGS) } else { 0 };
    let until = state.now.after(Millis(state.config.refusal_backoff.0.saturating_mul(1 << doublings)));
    if let Some(entry) = state.sandboxes.get_mut(&id) {
        entry.sandbox.node = None;
        entry.refused_by.insert(node.clone(), until);
    }
    requeue(state, id);
}

/// Places what waits and fits by now, the oldest first, at most `work_per_step` of them.
pub(crate) fn drain(state: &mut State) {
    state.queue.unfinished = false;
    let woke = !state.cluster.woken().is_empty();
    if !woke && !state.queue.has_fresh() {
        return;
    }
    let mut runnable = state.queue.runnable(woke);
    let mut budget = state.config.work_per_step;
    while let Some((_, class)) = runnable.pop_first() {
        if budget == 0 {
            state.queue.unfinished = true;
            return;
        }
        let (Some((requirement, fresh)), Some((_, id))) = (state.queue.class(class), state.queue.head(class))
        else {
            continue;
        };
        if !fresh && !placement::fits_on_any(&state.cluster, state.cluster.woken(), requirement) {
            continue;
        }
        let requirement = requirement.clone();
        let decision = placement::decide(state, &requirement);
        match decision.node {
            None => state.queue.block(class),
            Some(node) => {
                budget -= 1;
                assign(state, id, &node, decision.explanation);
                runnable.extend(state.queue.head(class).map(|order| (order, class)));
            }
        }
    }
    state.cluster.clear_woken();
}
