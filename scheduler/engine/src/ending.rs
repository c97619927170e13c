//! How sandboxes end: asked to stop, ended, removed. Each way to an end passes here, so room is given back once and the
//! cause is the first true one.

use crate::event::Effect;
use crate::operations::{self, Made};
use crate::state::{Ending, Entry, State};
use crate::timers::TimerKey;
use pinfold_domain::{Cause, Milestone, Millis, Phase, SandboxId, Transition};

/// Moves a sandbox that a node holds to Stopping and tells the node.
pub(crate) fn begin_stop(state: &mut State, id: SandboxId, cause: Cause, grace: Option<Millis>) {
    if state.sandbox(id).is_none_or(|sandbox| sandbox.phase == Phase::Pending) {
        debug_assert!(false, "{id} waits for a node: there is nothing to stop");
        return;
    }
    if state.shift(id, Transition::Stop).is_none() {
        return;
    }
    if let Some(entry) = state.sandboxes.get_mut(&id) {
        entry.sandbox.cause = Some(cause);
        entry.stop_grace = grace;
    }
    send_stop(state, id);
}

/// Tells the node of a sandbox in Stopping to end it, if the node is there; its next list brings us back here if not.
pub(crate) fn send_stop(state: &mut State, id: SandboxId) {
    let Some(entry) = state.sandboxes.get(&id) else { return };
    let Entry { sandbox, stop_grace, .. } = entry;
    let (Some(node), Some(cause)) = (&sandbox.node, &sandbox.cause) else { return };
    let Some(session) = state.cluster.get(node).and_then(|node| node.session) else { return };
    let effect = Effect::StopOnNode {
        node: node.clone(),
        session,
        sandbox_id: id,
        epoch: sandbox.epoch,
        cause: cause.clone(),
        grace: stop_grace.unwrap_or(state.config.stop_grace),
    };
    state.outbox.send(effect);
}

/// Brings a sandbox to its final phase and gives its room back. Nothing happens to one that has ended already.
pub(crate) fn finish(state: &mut State, id: SandboxId, ending: Ending) {
    let Some(entry) = state.sandboxes.get(&id) else { return };
    let doomed = entry.is_doomed();
    let node = entry.sandbox.node.clone();
    let (transition, cause) = match ending {
        Ending::Stopped(cause) => (Transition::End, cause),
        Ending::Failed(cause) => (Transition::Fail, cause),
        Ending::Lost(cause) => (Transition::Lose, cause),
    };
    if state.shift(id, transition).is_none() {
        return;
    }
    let now = state.now;
    if let Some(entry) = state.sandboxes.get_mut(&id) {
        entry.sandbox.cause = Some(cause);
        entry.sandbox.held = None;
        entry.refused_by.clear();
        state.ended.insert((entry.sandbox.phase_at, id));
    }
    if transition != Transition::Lose {
        state.reach(id, Milestone::Stopped, now);
    }
    state.queue.remove(id);
    if let Some(node) = node {
        state.cluster.release(&node, id);
    }
    if doomed {
        remove(state, id);
    }
}

/// Removes a sandbox that has ended; its request id stays remembered for a while.
pub(crate) fn remove(state: &mut State, id: SandboxId) {
    let Some(entry) = state.sandboxes.remove(&id) else { return };
    let sandbox = entry.sandbox;
    debug_assert!(sandbox.phase.is_final(), "{id} is removed while {}", sandbox.phase);
    state.ended.remove(&(sandbox.phase_at, id));
    state.by_request.remove(&(sandbox.tenant.clone(), sandbox.request_id.clone()));
    state.outbox.remove(Box::new(sandbox));
    operations::let_go(state, Made::Sandbox(id));
    state.retime(TimerKey::Sandbox(id));
}
