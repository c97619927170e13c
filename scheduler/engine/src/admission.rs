//! What callers ask for: create, stop, delete. Each is answered in its own step, and each may be repeated.

use crate::event::{CallId, Rejection};
use crate::outbox::Reply;
use crate::placement::{self, Decision, Requirement};
use crate::state::{Ending, Entry, State};
use crate::{assignment, ending, operations, origin};
use pinfold_domain::{
    Cause, Epoch, Explanation, Milestone, Millis, Origin, Phase, Reason, RequestId, Revision, Sandbox,
    SandboxId, SandboxSpec, Source, TenantId, Verdict,
};
use std::collections::BTreeSet;

/// A create as the caller sent it.
pub(crate) struct Wanted {
    pub tenant: TenantId,
    pub request_id: RequestId,
    pub sandbox_id: SandboxId,
    pub spec: SandboxSpec,
}

pub(crate) fn create(state: &mut State, call: CallId, wanted: Wanted) {
    let reply = known_request(state, &wanted).unwrap_or_else(|| match admit(state, wanted) {
        Ok(id) => Reply::Sandbox(id),
        Err(rejection) => Reply::Rejected(rejection),
    });
    state.outbox.answer(call, reply);
}

/// The answer to a request id that was seen before.
fn known_request(state: &State, wanted: &Wanted) -> Option<Reply> {
    let key = (wanted.tenant.clone(), wanted.request_id.clone());
    if state.operations.get(&key).is_some() {
        return Some(operations::conflict(&key));
    }
    let live = state.by_request.get(&key).and_then(|id| state.sandbox(*id));
    let before = match live {
        Some(sandbox) => sandbox,
        None => &state.requests.get(&key)?.sandbox,
    };
    if !before.spec.is_same_request(&wanted.spec) {
        return Some(operations::conflict(&key));
    }
    Some(if live.is_some() { Reply::Sandbox(before.id) } else { Reply::Given(Box::new(before.clone())) })
}

/// Stores a new sandbox and gives it a node or a place in the queue.
fn admit(state: &mut State, mut wanted: Wanted) -> Result<SandboxId, Rejection> {
    let id = wanted.sandbox_id;
    if state.sandboxes.contains_key(&id) || state.requests.removed(id).is_some() {
        let message = format!("sandbox id {id} is taken");
        return Err(rejection(Reason::Internal, message, None));
    }
    let origin = origin::resolve(state, &wanted.tenant, &mut wanted.spec)?;
    origin::check(&wanted.spec, origin.as_ref())?;
    let template = origin.as_ref().and_then(|origin| origin.template);
    let requirement = Requirement::new(&wanted.spec, template, BTreeSet::new());
    let mut decision = placement::decide(state, &requirement);
    // those of its kind that wait already go first
    if state.queue.has_class(&requirement) {
        decision.node = None;
        decision.explanation.verdict = Verdict::Wait;
    }
    if decision.node.is_none() {
        may_wait(state, &requirement, &decision)?;
    }
    insert(state, wanted, origin);
    match decision.node {
        Some(node) => assignment::assign(state, id, &node, decision.explanation),
        None => {
            let now = state.now;
            let explanation = origin::with_note(state, id, None, decision.explanation);
            if let Some(entry) = state.sandboxes.get_mut(&id) {
                entry.sandbox.explanation = Some(explanation);
            }
            state.queue.push((now, id), requirement, true);
        }
    }
    Ok(id)
}

fn may_wait(state: &State, requirement: &Requirement, decision: &Decision) -> Result<(), Rejection> {
    // a snapshot comes from a node that held what it was taken of
    if requirement.snapshot.is_none()
        && !decision.possible
        && state.now >= state.settled_at
        && let Some((reason, explanation)) = placement::never(&state.cluster, requirement)
    {
        let message = match reason {
            Reason::ImageUnknown => unknown_image(state, requirement),
            _ => format!("no node could hold it, even when empty: {}", explanation.sentence()),
        };
        return Err(rejection(reason, message, Some(explanation)));
    }
    let (length, limit) = (state.queue.len(), state.config.queue_length);
    if length >= limit {
        let now = &decision.explanation;
        let message = format!("{length} sandboxes wait already, the limit is {limit}; {}", now.sentence());
        return Err(rejection(Reason::QueueFull, message, Some(now.clone())));
    }
    Ok(())
}

fn unknown_image(state: &State, requirement: &Requirement) -> String {
    let image_is_known =
        state.cluster.not_lost().any(|entry| placement::filter::has_image(entry, requirement));
    let (kind, name) = match &requirement.kernel {
        Some(kernel) if image_is_known => ("kernel", kernel),
        _ => ("image", &requirement.image),
    };
    format!("no node holds {kind} {name:?}")
}

/// Stores it. It is Pending, and the caller gives it a node or a place in the queue.
pub(crate) fn insert(state: &mut State, wanted: Wanted, origin: Option<Origin>) {
    let Wanted { tenant, request_id, sandbox_id: id, spec } = wanted;
    let now = state.now;
    state.by_request.insert((tenant.clone(), request_id.clone()), id);
    if let Source::Snapshot(snapshot) = spec.source {
        state.snapshots.use_by(snapshot, id);
    }
    let expires_at = Some(now.after(spec.ttl));
    let sandbox = Sandbox {
        id,
        tenant,
        request_id,
        spec,
        phase: Phase::Pending,
        cause: None,
        node: None,
        epoch: Epoch::default(),
        revision: Revision::default(),
        created_at: now,
        phase_at: now,
        expires_at,
        timeline: Vec::new(),
        explanation: None,
        origin,
        order: 0,
        held: None,
        refused_for_room: 0,
    };
    state.sandboxes.insert(id, Entry::new(sandbox));
    state.reach(id, Milestone::Accepted, now);
}

pub(crate) fn stop(state: &mut State, call: CallId, id: SandboxId, grace: Millis) {
    let Some(phase) = state.sandbox(id).map(|sandbox| sandbox.phase) else {
        let rejection = Rejection { cause: not_found(id), explanation: None };
        return state.outbox.answer(call, Reply::Rejected(rejection));
    };
    let cause = Cause::new(Reason::StopRequested, "a caller stopped it");
    match phase {
        Phase::Stopped | Phase::Failed | Phase::Lost => {}
        Phase::Pending => ending::finish(state, id, Ending::Stopped(cause)),
        Phase::Stopping => hurry(state, id, grace),
        Phase::Assigned
        | Phase::Starting
        | Phase::Running
        | Phase::Pausing
        | Phase::Paused
        | Phase::Resuming => ending::begin_stop(state, id, cause, Some(grace)),
    }
    state.outbox.answer(call, Reply::Sandbox(id));
}

/// A second stop may be less patient than the first.
fn hurry(state: &mut State, id: SandboxId, grace: Millis) {
    let default = state.config.stop_grace;
    let Some(entry) = state.sandboxes.get_mut(&id) else { return };
    if grace < entry.stop_grace.unwrap_or(default) {
        entry.stop_grace = Some(grace);
        ending::send_stop(state, id);
    }
}

pub(crate) fn delete(state: &mut State, call: CallId, id: SandboxId) {
    let Some(phase) = state.sandbox(id).map(|sandbox| sandbox.phase) else {
        let reply = match state.requests.removed(id) {
            Some(sandbox) => Reply::Given(Box::new(sandbox.clone())),
            None => Reply::Rejected(Rejection { cause: not_found(id), explanation: None }),
        };
        return state.outbox.answer(call, reply);
    };
    let cause = Cause::new(Reason::DeleteRequested, "a caller deleted it");
    match phase {
        Phase::Stopped | Phase::Failed | Phase::Lost => ending::remove(state, id),
        Phase::Pending => {
            ending::finish(state, id, Ending::Stopped(cause));
            ending::remove(state, id);
        }
        // already asked to stop: from now on its end is its removal
        Phase::Stopping => {
            if let Some(entry) = state.sandboxes.get_mut(&id)
                && !entry.is_doomed()
            {
                entry.sandbox.cause = Some(cause);
                state.touch(id);
            }
        }
        Phase::Assigned
        | Phase::Starting
        | Phase::Running
        | Phase::Pausing
        | Phase::Paused
        | Phase::Resuming => ending::begin_stop(state, id, cause, None),
    }
    state.outbox.answer(call, Reply::Sandbox(id));
}

pub(crate) fn not_found(id: SandboxId) -> Cause {
    Cause::new(Reason::SandboxNotFound, format!("there is no sandbox {id}"))
}

fn rejection(reason: Reason, message: String, explanation: Option<Explanation>) -> Rejection {
    Rejection { cause: Cause::new(reason, message), explanation }
}
