//! Whether a node is there, judged by its silence.
//!
//! ```text
//!   register           suspect_after,          disconnected_after     lost_after
//!  ----------> Ready ------------------> Suspect ----------> Disconnected ------> Lost
//!                ^     or stream ended      |                     |                 |
//!                |        heartbeat         |                     |                 |
//!                +--------------------------+                     |                 |
//!                +------------------------ register --------------+-----------------+
//! ```
//!
//! Suspect: nothing new is placed there. Disconnected: its session is closed, so that it dials again. Lost: its
//! sandboxes are lost and their room is given up; whatever of them still runs there is stopped when it comes back.
//! Nodes are given up one after the other, a small part of the fleet a minute: when all fall silent at once it is most
//! likely the scheduler that is cut off, and what was given up cannot be taken back.

use crate::event::{Effect, NodeRegistration, NodeReport, SessionId};
use crate::reconcile::Occasion;
use crate::state::{Ending, State};
use crate::timers::TimerKey;
use crate::{ending, reconcile, snapshots, templates};
use pinfold_domain::{
    Cause, Millis, NodeId, NodeState, Reason, SandboxId, SnapshotReport, TemplateReport, Timestamp,
};

const MINUTE: Millis = Millis::from_secs(60);

/// Everything that is on a node.
pub(crate) struct NodeList {
    pub statuses: Vec<NodeReport>,
    pub snapshots: Vec<SnapshotReport>,
    pub templates: Vec<TemplateReport>,
}

/// A session began. It replaces the one before, and its list is authoritative.
pub(crate) fn joined(state: &mut State, mut registration: NodeRegistration) {
    let (id, session) = (registration.id.clone(), registration.session);
    let known = state.cluster.get(&id).is_some();
    let (count, limit) = (state.cluster.all().count(), state.config.nodes);
    if !known && count >= limit {
        let why = format!("the fleet has {count} nodes already, the limit is {limit}");
        state.outbox.send(Effect::CloseSession { node: id, session, why });
        return;
    }
    if let Some(newer) = state.cluster.get(&id).and_then(|entry| entry.session).filter(|held| *held > session)
    {
        let why = format!("session {} of this node is newer", newer.0);
        state.outbox.send(Effect::CloseSession { node: id, session, why });
        return;
    }
    let now = state.now;
    let list = NodeList {
        statuses: std::mem::take(&mut registration.statuses),
        snapshots: std::mem::take(&mut registration.snapshots),
        templates: std::mem::take(&mut registration.templates),
    };
    let entry = state.cluster.entry(&id, now);
    if let Some(old) = entry.session.replace(session).filter(|old| *old != session) {
        let why = "a newer session of this node took over".to_owned();
        state.outbox.send(Effect::CloseSession { node: id.clone(), session: old, why });
    }
    entry.register(registration, now);
    // a restarted node counts its reports from the beginning
    entry.reservations.values_mut().for_each(|reservation| reservation.sequence = None);
    let held: Vec<SandboxId> = entry.reservations.keys().copied().collect();
    // what is resumed there has its time in this session
    held.into_iter().for_each(|sandbox| state.retime(TimerKey::Sandbox(sandbox)));
    state.retime(TimerKey::Node(id.clone()));
    state.cluster.wake(&id);
    listed(state, &id, list, Occasion::Joined);
}

/// A full list came in time, or late: either way the node is there.
pub(crate) fn heartbeat(state: &mut State, id: &NodeId, session: SessionId, list: NodeList) {
    let now = state.now;
    let Some(entry) = state.cluster.in_session(id, session) else {
        let why = "this session is not the node's current one: register again".to_owned();
        state.outbox.send(Effect::CloseSession { node: id.clone(), session, why });
        return;
    };
    entry.node.last_heartbeat = now;
    if entry.node.state == NodeState::Suspect {
        entry.node.state = NodeState::Ready;
        state.cluster.wake(id);
    }
    state.retime(TimerKey::Node(id.clone()));
    listed(state, id, list, Occasion::Heartbeat);
}

/// A full list against what is stored.
fn listed(state: &mut State, id: &NodeId, list: NodeList, occasion: Occasion) {
    reconcile::list(state, id, list.statuses, occasion);
    snapshots::list(state, id, list.snapshots, occasion);
    templates::list(state, id, list.templates, occasion);
}

/// The stream of a session ended. The node may be back in a moment, so nothing on it is given up.
pub(crate) fn gone(state: &mut State, id: &NodeId, session: SessionId) {
    let Some(entry) = state.cluster.in_session(id, session) else { return };
    entry.session = None;
    if entry.node.state == NodeState::Ready {
        entry.node.state = NodeState::Suspect;
    }
    state.retime(TimerKey::Node(id.clone()));
}

/// When the silence of `id` is to be judged next.
pub(crate) fn deadline(state: &State, id: &NodeId) -> Option<Timestamp> {
    let node = &state.cluster.get(id)?.node;
    let config = &state.config;
    let span = match node.state {
        NodeState::Joining | NodeState::Ready | NodeState::Draining | NodeState::Quarantined => {
            config.suspect_after
        }
        NodeState::Suspect => config.disconnected_after,
        NodeState::Disconnected => {
            let silent_too_long = node.last_heartbeat.after(config.lost_after);
            return Some(silent_too_long.max(may_lose_at(state)));
        }
        NodeState::Lost => Millis(config.lost_after.0.saturating_add(config.lost_node_retention.0)),
    };
    Some(node.last_heartbeat.after(span))
}

/// Judges the silence of `id`.
pub(crate) fn judge(state: &mut State, id: &NodeId) {
    let silence = match state.cluster.get(id) {
        Some(entry) => state.now.since(entry.node.last_heartbeat),
        None => return,
    };
    let config = &state.config;
    let (suspect, disconnected, lost) = (config.suspect_after, config.disconnected_after, config.lost_after);
    let forget = lost.0.saturating_add(config.lost_node_retention.0);
    let is_lost = state.cluster.get(id).is_some_and(|entry| entry.node.state == NodeState::Lost);
    if is_lost {
        if silence.0 >= forget {
            state.cluster.remove(id);
        }
    } else if silence >= lost && may_lose_at(state) <= state.now {
        lose(state, id);
    } else if silence >= disconnected {
        disconnect(state, id);
    } else if silence >= suspect
        && let Some(entry) = state.cluster.get_mut(id)
        && entry.node.state == NodeState::Ready
    {
        entry.node.state = NodeState::Suspect;
    }
    state.retime(TimerKey::Node(id.clone()));
}

/// When the next node may be given up.
fn may_lose_at(state: &State) -> Timestamp {
    let fleet = state.cluster.all().count() as u64;
    let limit = (fleet.saturating_mul(state.config.lost_percent_per_minute) / 100).max(1);
    let losses = state.cluster.losses();
    match losses.len().checked_sub(usize::try_from(limit).unwrap_or(usize::MAX)) {
        // the one that must be a minute ago before there may be one more
        Some(index) => losses.get(index).map_or(state.now, |at| at.after(MINUTE)),
        None => Timestamp::default(),
    }
}

fn disconnect(state: &mut State, id: &NodeId) {
    let Some(entry) = state.cluster.get_mut(id) else { return };
    entry.node.state = NodeState::Disconnected;
    if let Some(session) = entry.session.take() {
        let why = format!("no heartbeat for {} ms", state.config.disconnected_after.0);
        state.outbox.send(Effect::CloseSession { node: id.clone(), session, why });
    }
}

fn lose(state: &mut State, id: &NodeId) {
    let now = state.now;
    state.cluster.note_loss(now, MINUTE);
    disconnect(state, id);
    let Some(entry) = state.cluster.get_mut(id) else { return };
    entry.node.state = NodeState::Lost;
    let sandboxes: Vec<SandboxId> = entry.reservations.keys().copied().collect();
    let registered = entry.registered;
    let message = format!("node {id} was silent for {} ms", state.config.lost_after.0);
    for sandbox in sandboxes {
        ending::finish(state, sandbox, Ending::Lost(Cause::new(Reason::NodeLost, message.clone())));
    }
    snapshots::node_lost(state, id, &Cause::new(Reason::NodeLost, message));
    templates::node_lost(state, id);
    if !registered {
        state.cluster.remove(id);
    }
}
