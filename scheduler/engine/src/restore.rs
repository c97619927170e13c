//! From what was stored to an engine. What nodes know is not stored: they are awaited for `lost_after`, and until then
//! their sandboxes keep phase, node and room.

use crate::cluster::Cluster;
use crate::cluster::reservation::{Reservation, ReservationState};
use crate::config::EngineConfig;
use crate::event::StoredState;
use crate::operations::Operations;
use crate::outbox::Outbox;
use crate::placement::views::Views;
use crate::queue::Queue;
use crate::requests::Requests;
use crate::snapshots::Snapshots;
use crate::state::{Ending, Entry, State};
use crate::templates::Templates;
use crate::timers::{TimerKey, Timers};
use crate::{assignment, ending, operations, snapshots};
use pinfold_domain::{Cause, Millis, Phase, Reason, Revision, Sandbox, Snapshot, SnapshotState, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn restore(config: EngineConfig, now: Timestamp, stored: StoredState) -> State {
    let StoredState { sandboxes, requests, snapshots, templates, operations, revision } = stored;
    // an empty store is a new fleet, not one that is dialling back in
    let settled_at = match revision {
        Revision(0) => Timestamp::default(),
        _ => now.after(config.settle_after_restore),
    };
    let mut state = State {
        config,
        now,
        revision,
        sandboxes: BTreeMap::new(),
        by_request: BTreeMap::new(),
        ended: BTreeSet::new(),
        cluster: Cluster::default(),
        queue: Queue::default(),
        views: Views::default(),
        requests: Requests::default(),
        operations: Operations::default(),
        snapshots: Snapshots::default(),
        templates: Templates::default(),
        timers: Timers::default(),
        outbox: Outbox::default(),
        clock_ahead: Millis::default(),
        settled_at,
        timers_held_until: Timestamp::default(),
    };
    for record in requests {
        state.requests.insert(record);
    }
    state.retime(TimerKey::Requests);
    templates.into_iter().for_each(|template| state.templates.insert(template));
    // before the sandboxes, which may be their users
    snapshots.into_iter().for_each(|snapshot| restore_snapshot(&mut state, snapshot));
    for sandbox in sandboxes {
        restore_sandbox(&mut state, sandbox);
    }
    // after all that they may have made
    operations.into_iter().for_each(|record| operations::take_over(&mut state, record));
    state.settle_timers();
    state
}

fn restore_snapshot(state: &mut State, snapshot: Snapshot) {
    let node = snapshot.node.clone();
    let holder = state.cluster.entry(&node, state.now);
    if snapshot.state == SnapshotState::Ready {
        holder.snapshots.insert(snapshot.id);
    }
    state.retime(TimerKey::Node(node));
    state.retime(TimerKey::Snapshot(snapshot.id));
    state.snapshots.insert(snapshot);
}

fn restore_sandbox(state: &mut State, sandbox: Sandbox) {
    let (id, phase, now) = (sandbox.id, sandbox.phase, state.now);
    let (epoch, resources, node) = (sandbox.epoch, sandbox.held(), sandbox.node.clone());
    if let Some(snapshot) = snapshots::needed(&sandbox.spec.source, phase) {
        state.snapshots.use_by(snapshot, id);
    }
    state.revision = state.revision.max(sandbox.revision);
    state.by_request.insert((sandbox.tenant.clone(), sandbox.request_id.clone()), id);
    if phase.is_final() {
        state.ended.insert((sandbox.phase_at, id));
    }
    state.sandboxes.insert(id, Entry::new(sandbox));
    state.retime(TimerKey::Sandbox(id));
    if phase == Phase::Pending {
        let in_vain = state.sandbox(id).and_then(|s| snapshots::wanted_in_vain(state, &s.spec.source));
        match in_vain {
            Some(cause) => ending::finish(state, id, Ending::Failed(cause)),
            None => assignment::requeue(state, id),
        }
    } else if phase.holds_room() {
        let Some(node) = node else {
            let cause = Cause::new(Reason::Internal, format!("it was stored as {phase} without a node"));
            return ending::finish(state, id, Ending::Failed(cause));
        };
        let mut reservation = Reservation::new(epoch, resources, now);
        if phase != Phase::Assigned {
            reservation.state = ReservationState::Confirmed;
        }
        state.cluster.entry(&node, now).reserve(id, reservation);
        state.retime(TimerKey::Node(node));
    }
}
