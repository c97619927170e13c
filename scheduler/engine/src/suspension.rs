//! Pause and resume. Each is an order with a number of its own: what a node says from before it heard of the last order
//! tells of an old state and moves nothing, and a list from before it makes us say the order again.
//!
//! ```text
//!   room held:   Running            Pausing            Paused           Resuming            Running
//!                as the spec says   and its memory     disk and memory  and all that the    the same: its memory
//!                                   as disk            as disk          spec says           is mapped from the file
//! ```
//!
//! So a pause can be refused for want of disk, and a resume for want of everything else: neither waits.

use crate::event::{CallId, Effect, NodeReport, Operation, Rejection};
use crate::operations::{self, reject};
use crate::outbox::Reply;
use crate::state::State;
use pinfold_domain::resources::Dimension;
use pinfold_domain::{Cause, NodeId, Phase, Reason, RequestId, Resources, SandboxId, Transition};

pub(crate) fn pause(state: &mut State, call: CallId, request_id: RequestId, id: SandboxId) {
    let asked = Operation::Pause { sandbox_id: id };
    let reply = ordered(state, request_id, id, asked, try_pause);
    state.outbox.answer(call, reply);
}

pub(crate) fn resume(state: &mut State, call: CallId, request_id: RequestId, id: SandboxId) {
    let asked = Operation::Resume { sandbox_id: id };
    let reply = ordered(state, request_id, id, asked, try_resume);
    state.outbox.answer(call, reply);
}

fn ordered(
    state: &mut State,
    request_id: RequestId,
    id: SandboxId,
    asked: Operation,
    act: fn(&mut State, SandboxId) -> Result<(), Rejection>,
) -> Reply {
    let Some(tenant) = state.sandbox(id).map(|sandbox| sandbox.tenant.clone()) else {
        return Reply::Rejected(not_found(id));
    };
    let key = (tenant, request_id);
    let same = |before: &Operation| (*before == asked).then_some(Reply::Sandbox(id));
    if let Some(reply) = operations::known(state, &key, same) {
        return reply;
    }
    match act(state, id) {
        Ok(()) => {
            operations::remember(state, key, asked);
            Reply::Sandbox(id)
        }
        Err(rejection) => Reply::Rejected(rejection),
    }
}

pub(crate) fn not_found(id: SandboxId) -> Rejection {
    reject(Reason::SandboxNotFound, format!("there is no sandbox {id}"))
}

/// The node of a sandbox that runs and can be told something now.
pub(crate) fn running_on(state: &State, id: SandboxId) -> Result<NodeId, Rejection> {
    let Some(sandbox) = state.sandbox(id) else { return Err(not_found(id)) };
    let reason = match sandbox.phase {
        Phase::Running => return reachable(state, id),
        Phase::Pending | Phase::Assigned | Phase::Starting => Reason::SandboxStarting,
        Phase::Pausing | Phase::Paused | Phase::Resuming => Reason::WrongPhase,
        Phase::Stopping | Phase::Stopped | Phase::Failed | Phase::Lost => Reason::SandboxEnded,
    };
    Err(reject(reason, format!("sandbox {id} is {}: it must be running", sandbox.phase)))
}

fn reachable(state: &State, id: SandboxId) -> Result<NodeId, Rejection> {
    let node = state.sandbox(id).and_then(|sandbox| sandbox.node.clone());
    let Some(node) = node else {
        return Err(reject(Reason::Internal, format!("sandbox {id} is on no node")));
    };
    match state.cluster.get(&node).and_then(|entry| entry.session) {
        Some(_) => Ok(node),
        None => Err(reject(Reason::NodeUnreachable, format!("node {node} of sandbox {id} is not connected"))),
    }
}

fn try_pause(state: &mut State, id: SandboxId) -> Result<(), Rejection> {
    if state.sandbox(id).is_some_and(|s| matches!(s.phase, Phase::Pausing | Phase::Paused)) {
        return Ok(());
    }
    let node = running_on(state, id)?;
    let Some(sandbox) = state.sandbox(id) else { return Err(not_found(id)) };
    let held = sandbox.held();
    let memory_file = sandbox.spec.resources.memory_bytes;
    let wanted = Resources { disk_bytes: held.disk_bytes.saturating_add(memory_file), ..held };
    has_room(state, &node, &held, &wanted)?;
    order(state, id, Transition::Pause, wanted);
    Ok(())
}

fn try_resume(state: &mut State, id: SandboxId) -> Result<(), Rejection> {
    let Some(sandbox) = state.sandbox(id) else { return Err(not_found(id)) };
    let phase = sandbox.phase;
    let reason = match phase {
        Phase::Running | Phase::Resuming => return Ok(()),
        Phase::Paused => None,
        Phase::Pending | Phase::Assigned | Phase::Starting => Some(Reason::SandboxStarting),
        Phase::Pausing => Some(Reason::WrongPhase),
        Phase::Stopping | Phase::Stopped | Phase::Failed | Phase::Lost => Some(Reason::SandboxEnded),
    };
    if let Some(reason) = reason {
        return Err(reject(reason, format!("sandbox {id} is {phase}: it must be paused")));
    }
    let (held, spec) = (sandbox.held(), sandbox.spec.resources);
    let wanted = Resources { disk_bytes: held.disk_bytes, ..spec };
    let node = reachable(state, id)?;
    has_room(state, &node, &held, &wanted)?;
    order(state, id, Transition::Resume, wanted);
    Ok(())
}

/// The node has room for `wanted` in place of `held`; if not, what is missing.
fn has_room(state: &State, node: &NodeId, held: &Resources, wanted: &Resources) -> Result<(), Rejection> {
    let Some(entry) = state.cluster.get(node) else { return Ok(()) };
    let (free, more) = (entry.free(), wanted.saturating_sub(held));
    let Some(dimension) = more.first_excess(&free) else { return Ok(()) };
    let unit = match dimension {
        Dimension::Cpu => "thousandths of a CPU",
        Dimension::Memory | Dimension::Disk => "bytes",
        Dimension::Pids => "processes",
    };
    let (more, free) = (more.get(dimension), free.get(dimension));
    let message = format!(
        "node {node} has {free} of {more} {unit} of {} free: stop or pause other sandboxes of this node",
        dimension.name()
    );
    Err(reject(Reason::NoRoom, message))
}

/// Gives the next order and takes the room that it needs.
fn order(state: &mut State, id: SandboxId, transition: Transition, held: Resources) {
    if state.shift(id, transition).is_none() {
        return;
    }
    if let Some(entry) = state.sandboxes.get_mut(&id) {
        entry.sandbox.order += 1;
        entry.sandbox.cause = None;
    }
    hold(state, id, held);
    send(state, id);
}

/// Changes what a sandbox holds on its node.
fn hold(state: &mut State, id: SandboxId, held: Resources) {
    let Some(entry) = state.sandboxes.get_mut(&id) else { return };
    entry.sandbox.held = Some(held);
    if let Some(node) = entry.sandbox.node.clone() {
        state.cluster.resize(&node, id, held);
    }
    state.touch(id);
}

/// Says the last order to the node, if the node is there; its next list brings us back here if not.
pub(crate) fn send(state: &mut State, sandbox_id: SandboxId) {
    let Some(sandbox) = state.sandbox(sandbox_id) else { return };
    let (epoch, order, phase) = (sandbox.epoch, sandbox.order, sandbox.phase);
    let Some(node) = sandbox.node.clone() else { return };
    let Some(session) = state.cluster.get(&node).and_then(|entry| entry.session) else { return };
    match phase {
        Phase::Pausing => {
            state.outbox.send(Effect::PauseOnNode { node, session, sandbox_id, epoch, order });
        }
        Phase::Resuming => {
            state.outbox.send(Effect::ResumeOnNode { node, session, sandbox_id, epoch, order });
        }
        _ => {}
    }
}

/// The node says Running under the last order: it came back, or it could not be saved and goes on.
pub(crate) fn running(state: &mut State, status: &NodeReport, before: Phase) {
    let id = status.sandbox_id;
    if state.shift(id, Transition::Ready).is_none() {
        return;
    }
    if before == Phase::Pausing
        && let Some(sandbox) = state.sandbox(id)
    {
        // the memory file of this pause is gone again
        let held = sandbox.held();
        let disk_bytes = held.disk_bytes.saturating_sub(sandbox.spec.resources.memory_bytes);
        hold(state, id, Resources { disk_bytes, ..held });
        note(state, status, Reason::SnapshotFailed, "the node could not save it");
    }
}

/// The node says Paused under the last order: it is saved, or it could not be brought back and still is.
pub(crate) fn paused(state: &mut State, status: &NodeReport, before: Phase) {
    let id = status.sandbox_id;
    if state.shift(id, Transition::Paused).is_none() {
        return;
    }
    let Some(sandbox) = state.sandbox(id) else { return };
    let Resources { disk_bytes, memory_bytes, .. } = sandbox.spec.resources;
    let disk_bytes = disk_bytes.saturating_add(memory_bytes);
    hold(state, id, Resources { disk_bytes, ..Resources::default() });
    if before == Phase::Resuming {
        note(state, status, Reason::RestoreFailed, "the node could not bring it back");
    }
}

/// Keeps why an order was not carried out.
fn note(state: &mut State, status: &NodeReport, reason: Reason, otherwise: &str) {
    if let Some(entry) = state.sandboxes.get_mut(&status.sandbox_id) {
        let cause = status.cause.clone().unwrap_or_else(|| Cause::new(reason, otherwise));
        entry.sandbox.cause = Some(cause);
    }
}
