//! What must hold after every step. Checked in tests and debug builds; reads the whole state.

use crate::placement::filter;
use crate::snapshots;
use crate::state::State;
use crate::timers::TimerKey;
use pinfold_domain::resources::Dimension;
use pinfold_domain::{NodeState, Phase, Resources, Revision, SnapshotState};
use std::collections::BTreeSet;

/// The first invariant that does not hold, in words. `before` is the revision before the step.
pub(crate) fn check(state: &State, before: Revision) -> Result<(), String> {
    if state.revision < before {
        return Err(format!("the revision went back from {before} to {}", state.revision));
    }
    rooms(state)?;
    sandboxes(state)?;
    snapshots(state)?;
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
                s.phase.holds_room()
                    && s.node.as_ref() == Some(id)
                    && s.epoch == held.epoch
                    && s.held() == held.resources
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
        let at_work = entry.templates.values().filter(|here| here.stage.is_at_work());
        let preparing = at_work.map(|here| here.resources).try_fold(Resources::default(), |sum, next| {
            sum.checked_add(&next).ok_or_else(|| format!("{id}: the sum of its preparations overflows"))
        })?;
        if preparing != entry.preparing {
            return Err(format!("{id}: templates take {:?}, they add up to {preparing:?}", entry.preparing));
        }
        // a node that came back smaller may have more than it gives, and no more than it had
        let is_over = |dimension: &Dimension| {
            [&entry.node.allocatable, &entry.reserved_at_join]
                .into_iter()
                .all(|room| sum.get(*dimension) > room.get(*dimension))
        };
        if let Some(dimension) = Dimension::ALL.into_iter().find(is_over)
            && entry.registered
        {
            return Err(format!("{id} is over-committed in {}: {sum:?}", dimension.name()));
        }
        let holds_room = !entry.reservations.is_empty() || preparing != Resources::default();
        if entry.node.state == NodeState::Lost && holds_room {
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

/// Whoever needs a snapshot is known to it, and what was made for forks does not outlive them.
fn snapshots(state: &State) -> Result<(), String> {
    let ended = state.snapshots.all().filter(|entry| snapshots::has_ended(entry.snapshot.state)).count();
    if ended != state.snapshots.ended() {
        return Err(format!("{ended} snapshots have ended, the list holds {}", state.snapshots.ended()));
    }
    for entry in state.snapshots.all() {
        let (id, snapshot) = (entry.snapshot.id, &entry.snapshot);
        let ready = snapshot.state == SnapshotState::Ready;
        let held = state.cluster.get(&snapshot.node).is_some_and(|node| node.snapshots.contains(&id));
        if ready != held {
            return Err(format!("snapshot {id} is {}, its node holding it is {held}", snapshot.state));
        }
        let needs = |user| state.sandbox(user).and_then(|s| snapshots::needed(&s.spec.source, s.phase));
        if let Some(user) = entry.users.iter().find(|user| needs(**user) != Some(id)) {
            return Err(format!("{user} does not need snapshot {id}"));
        }
        let over = matches!(snapshot.state, SnapshotState::Failed | SnapshotState::Lost);
        if over && snapshot.cause.is_none() {
            return Err(format!("snapshot {id} is {} without a cause", snapshot.state));
        }
        if snapshot.ephemeral && entry.users.is_empty() && snapshot.state != SnapshotState::Deleting {
            return Err(format!("snapshot {id} was made for forks, has none and is {}", snapshot.state));
        }
        let timed = state.timers.get(&TimerKey::Snapshot(id)).is_some();
        if timed == matches!(snapshot.state, SnapshotState::Ready | SnapshotState::Deleting) {
            return Err(format!("snapshot {id} is {}, that something is due is {timed}", snapshot.state));
        }
    }
    for entry in state.sandboxes.values() {
        let sandbox = &entry.sandbox;
        if let Some(id) = snapshots::needed(&sandbox.spec.source, sandbox.phase) {
            let known = state.snapshots.get(id).map(|held| held.users.contains(&sandbox.id));
            let over = state.snapshots.get(id).is_none_or(|held| held.snapshot.state.is_over());
            if known == Some(false) || (over && sandbox.phase == Phase::Pending) {
                return Err(format!("{} waits for snapshot {id}: known {known:?}, over {over}", sandbox.id));
            }
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
    let things = state.sandboxes.len() + state.snapshots.len() + state.cluster.all().count();
    let most = things + 2;
    if state.timers.len() > most {
        return Err(format!("{} timers for at most {most} things", state.timers.len()));
    }
    if state.requests.deadline().is_some() != state.timers.get(&TimerKey::Requests).is_some() {
        return Err(format!("{} requests are remembered and not timed", state.requests.len()));
    }
    if let Some(made) = state.operations.made().find(|made| !made.is_kept(state)) {
        return Err(format!("an operation is held for {made:?}, which is gone"));
    }
    if state.operations.deadline().is_some() != state.timers.get(&TimerKey::Operations).is_some() {
        return Err(format!("{} operations are remembered and not timed", state.operations.len()));
    }
    Ok(())
}
