//! What must hold after every step. Checked in tests and debug builds; reads the whole state.

use crate::placement::filter;
use crate::state::State;
use crate::timers::TimerKey;
use pinfold_domain::{NodeState, Phase, Resources, Revision};
use std::collections::BTreeSet;

/// The first invariant that does not hold, in words. `before` is the revision before the step.
pub(crate) fn check(state: &State, before: Revision) -> Result<(), String> {
    if state.revision < before {
        return Err(format!("the revision went back from {before} to {}", state.revision));
    }
    rooms(state)?;
    sandboxes(state)?;
    queue(state)?;
    indexes(state)
}

/// A node's account is the sum of its reservations, and placement never went beyond its room.
fn rooms(state: &State) -> Result<(), String> {
    for entry in state.cluster.all() {
        let id = &entry.node.id;
        let mut sum = Resources::default();
        for (sandbox, held) in &entry.reservations {
            sum = sum.checked_add(&held.resources).ok_or_else(|| format!("{id}: the sum overflows"))?;
            let matches = state.sandbox(*sandbox).is_some_and(|s| {
                s.phase.holds_room() && s.node.as_ref() == Some(id) && s.epoch == held.epoch
            });
            if !matches {
                return Err(format!(
                    "{id} holds room for {sandbox} at epoch {}, which is not there",
                    held.epoch
                ));
            }
        }
        if sum != entry.node.reserved || entry.node.sandboxes != entry.reservations.len() as u64 {
            return Err(format!("{id}: reserved is {:?}, its sandboxes take {sum:?}", entry.node.reserved));
        }
        let over = |room: &Resources| sum.first_excess(room);
        if let Some(dimension) = over(&entry.node.allocatable)
            && entry.registered
            && over(&entry.reserved_at_join).is_some()
        {
            return Err(format!("{id} is over-committed in {}: {sum:?}", dimension.name()));
        }
        if entry.node.state == NodeState::Lost && !entry.reservations.is_empty() {
            return Err(format!("{id} is lost and still holds room"));
        }
        let speaks = matches!(entry.node.state, NodeState::Disconnected | NodeState::Lost);
        if speaks && entry.session.is_some() {
            return Err(format!("{id} is {} and has a session", entry.node.state.as_str()));
        }
    }
    Ok(())
}

/// Phase, node, epoch, cause and timeline agree.
fn sandboxes(state: &State) -> Result<(), String> {
    for (id, entry) in &state.sandboxes {
        let sandbox = &entry.sandbox;
        let phase = sandbox.phase;
        let held = sandbox.node.as_ref().and_then(|node| state.cluster.get(node));
        let held = held.is_some_and(|node| node.reservations.contains_key(id));
        if phase.holds_room() != held {
            return Err(format!("{id} is {phase}, and a node holding room for it is {held}"));
        }
        if phase.holds_room() && sandbox.epoch.0 == 0 {
            return Err(format!("{id} is {phase} without an epoch"));
        }
        let needs_cause = phase.is_final() || phase == Phase::Stopping;
        if needs_cause && sandbox.cause.is_none() {
            return Err(format!("{id} is {phase} without a cause"));
        }
        if phase == Phase::Pending && sandbox.node.is_some() {
            return Err(format!("{id} waits and has a node"));
        }
        if phase.is_final() != state.ended.contains(&(sandbox.phase_at, *id)) {
            return Err(format!("{id} is {phase}, the list of the ended differs"));
        }
        let milestones: BTreeSet<_> = sandbox.timeline.iter().map(|reached| reached.milestone).collect();
        let in_order = sandbox.timeline.is_sorted_by_key(|reached| reached.at);
        if milestones.len() != sandbox.timeline.len() || !in_order {
            return Err(format!("{id}: its timeline is out of order: {:?}", sandbox.timeline));
        }
        let key = (sandbox.tenant.clone(), sandbox.request_id.clone());
        if state.by_request.get(&key) != Some(id) || state.requests.get(&key).is_some() {
            return Err(format!("{id} is not found by its request id"));
        }
        let timed = state.timers.get(&TimerKey::Sandbox(*id)).is_some();
        if !timed && phase != Phase::Stopping {
            return Err(format!("{id} is {phase} and nothing is due for it"));
        }
    }
    Ok(())
}

/// What waits is in the queue once, and nothing waits for room that is there.
fn queue(state: &State) -> Result<(), String> {
    let waiting: Vec<_> = state.sandboxes.values().filter(|e| e.sandbox.phase == Phase::Pending).collect();
    if let Some(entry) = waiting.iter().find(|entry| !state.queue.contains(entry.sandbox.id)) {
        return Err(format!("{} waits and is not in the queue", entry.sandbox.id));
    }
    let (queued, in_classes) = (state.queue.len(), state.queue.waiting_in_classes());
    if queued != waiting.len() || in_classes != queued {
        return Err(format!("{} wait, {queued} are queued, {in_classes} are in classes", waiting.len()));
    }
    if state.queue.unfinished {
        return Ok(());
    }
    for requirement in state.queue.blocked() {
        let fits = |entry| filter::first_rejection(entry, requirement).is_none();
        if let Some(entry) = state.cluster.registered().find(|entry| fits(entry)) {
            return Err(format!("{} has room for what waits: {requirement:?}", entry.node.id));
        }
    }
    Ok(())
}

/// The indexes hold nothing that is gone, and bounds hold.
fn indexes(state: &State) -> Result<(), String> {
    if state.by_request.len() != state.sandboxes.len() {
        return Err(format!(
            "{} request ids for {} sandboxes",
            state.by_request.len(),
            state.sandboxes.len()
        ));
    }
    let ended = state.sandboxes.values().filter(|entry| entry.sandbox.phase.is_final()).count();
    if state.ended.len() != ended {
        return Err(format!("{ended} have ended, the list holds {}", state.ended.len()));
    }
    let most = state.sandboxes.len() + state.cluster.all().count() + 1;
    if state.timers.len() > most {
        return Err(format!("{} timers for at most {most} things", state.timers.len()));
    }
    if state.requests.deadline().is_some() != state.timers.get(&TimerKey::Requests).is_some() {
        return Err(format!("{} requests are remembered and not timed", state.requests.len()));
    }
    Ok(())
}
