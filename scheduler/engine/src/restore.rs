//! From what was stored to an engine. What nodes know is not stored: they are awaited for `lost_after`, and until then
//! their sandboxes keep phase, node and room.

use crate::cluster::Cluster;
use crate::cluster::reservation::{Reservation, ReservationState};
use crate::config::EngineConfig;
use crate::event::StoredState;
use crate::outbox::Outbox;
use crate::placement::views::Views;
use crate::queue::Queue;
use crate::requests::Requests;
use crate::state::{Ending, Entry, State};
use crate::timers::{TimerKey, Timers};
use crate::{assignment, ending};
use pinfold_domain::{Cause, Millis, Phase, Reason, Revision, Sandbox, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn restore(config: EngineConfig, now: Timestamp, stored: StoredState) -> State {
    let StoredState { sandboxes, requests, revision } = stored;
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
    for sandbox in sandboxes {
        restore_sandbox(&mut state, sandbox);
    }
    state.settle_timers();
    state
}

fn restore_sandbox(state: &mut State, sandbox: Sandbox) {
    let (id, phase, now) = (sandbox.id, sandbox.phase, state.now);
    let (epoch, resources, node) = (sandbox.epoch, sandbox.spec.resources, sandbox.node.clone());
    state.revision = state.revision.max(sandbox.revision);
    state.by_request.insert((sandbox.tenant.clone(), sandbox.request_id.clone()), id);
    if phase.is_final() {
        state.ended.insert((sandbox.phase_at, id));
    }
    state.sandboxes.insert(id, Entry::new(sandbox));
    state.retime(TimerKey::Sandbox(id));
    if phase == Phase::Pending {
        assignment::requeue(state, id);
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
