//! What becomes due: a sandbox's time to live, its start, an assignment that nobody accepted, the end of its retention;
//! a node's silence.
//!
//! **A driver that stood still judges nobody.** As long as anything can become due the engine asks to be stepped once a
//! [`PULSE`]. If it was not, for [`STALL`] longer than that (a suspended machine, a starved process), then the heartbeats
//! and reports of that time may still wait in the driver's inbox. All timers are then held for as long as a node may be
//! silent. Times to live are kept by the nodes too, so nothing outlives its time by this.

use crate::cluster::liveness;
use crate::state::{Ending, State};
use crate::timers::TimerKey;
use crate::{assignment, ending, operations, snapshots};
use pinfold_domain::{Cause, Millis, Phase, Reason, SandboxId, Timestamp};

/// The engine is stepped at least so often while anything can become due.
const PULSE: Millis = Millis::from_secs(1);
/// A pulse that is late by more than this shows that the driver stood still.
const STALL: Millis = Millis::from_secs(2);

/// A caller's clock that goes back by more than this was set; less is the trembling of many threads.
const SET_BACK: Millis = Millis::from_secs(1);

/// When the engine wants to be stepped next, by the caller's clock.
pub(crate) fn next_step(state: &State) -> Option<Timestamp> {
    let at = match state.queue.unfinished {
        true => state.now,
        false => state.timers.first()?.max(state.timers_held_until).min(state.now.after(PULSE)),
    };
    Some(Timestamp(at.0.saturating_sub(state.clock_ahead.0)))
}

/// Takes the time of a step, before its event, and holds the timers if the driver stood still. When the caller's clock was
/// set back, the engine's goes on from where it was, and stays ahead by as much until the next restart: otherwise nothing
/// would be due until the caller's clock is where it was before.
pub(crate) fn pass_time(state: &mut State, callers_now: Timestamp) {
    let set_back = state.now.since(callers_now.after(state.clock_ahead));
    if set_back > SET_BACK {
        state.clock_ahead = Millis(state.clock_ahead.0.saturating_add(set_back.0));
    }
    let now = callers_now.after(state.clock_ahead);
    let stood_still = now.since(state.now).0 > PULSE.0 + STALL.0;
    state.now = state.now.max(now);
    if stood_still && state.timers.first().is_some() {
        state.timers_held_until = state.now.after(state.config.suspect_after);
    }
}

/// Runs what is due, at most `work_per_step` of it.
pub(crate) fn run_due(state: &mut State) {
    if state.now < state.timers_held_until {
        return;
    }
    for _ in 0..state.config.work_per_step {
        match state.timers.pop_due(state.now) {
            Some(TimerKey::Sandbox(id)) => sandbox_due(state, id),
            Some(TimerKey::Node(id)) => liveness::judge(state, &id),
            Some(TimerKey::Snapshot(id)) => snapshots::due(state, id),
            Some(TimerKey::Operations) => state.retime(TimerKey::Operations),
            Some(TimerKey::Requests) => state.retime(TimerKey::Requests),
            None => break,
        }
    }
}

/// When something about sandbox `id` is due next.
pub(crate) fn deadline(state: &State, id: SandboxId) -> Option<Timestamp> {
    let entry = state.sandboxes.get(&id)?;
    let sandbox = &entry.sandbox;
    let expiry = sandbox.expires_at;
    let sooner = |other: Option<Timestamp>| expiry.into_iter().chain(other).min();
    match sandbox.phase {
        Phase::Pending => sooner(entry.refused_by.values().copied().filter(|until| *until > state.now).min()),
        Phase::Assigned => sooner(assignment::deadline(state, id)),
        Phase::Starting => sooner(start_deadline(state, id)),
        Phase::Pausing | Phase::Resuming => sooner(order_deadline(state, id)),
        Phase::Running | Phase::Paused => expiry,
        // the node's lists drive it on, and the node's silence ends it
        Phase::Stopping => None,
        Phase::Stopped | Phase::Failed | Phase::Lost => {
            Some(sandbox.phase_at.after(state.config.ended_retention))
        }
    }
}

fn start_deadline(state: &State, id: SandboxId) -> Option<Timestamp> {
    let sandbox = state.sandbox(id)?;
    let placed = assignment::placed_at(sandbox)?;
    Some(placed.after(sandbox.spec.start_timeout).after(state.config.start_margin))
}

/// A resume has the time that a start has, a pause `pause_timeout`, each in one session of its node. While the node is away
/// nothing is known of it, and its end would take what was saved along: then the node's silence is judged instead.
fn order_deadline(state: &State, id: SandboxId) -> Option<Timestamp> {
    let sandbox = state.sandbox(id)?;
    let node = state.cluster.get(sandbox.node.as_ref()?)?;
    node.session?;
    let begun = sandbox.phase_at.max(node.session_since);
    Some(match sandbox.phase {
        Phase::Pausing => begun.after(state.config.pause_timeout),
        _ => begun.after(sandbox.spec.start_timeout).after(state.config.start_margin),
    })
}

fn sandbox_due(state: &mut State, id: SandboxId) {
    state.retime(TimerKey::Sandbox(id));
    let Some(sandbox) = state.sandbox(id) else { return };
    let now = state.now;
    let phase = sandbox.phase;
    let is_over = |deadline: Option<Timestamp>| deadline.is_some_and(|at| at <= now);
    if phase.is_final() {
        if is_over(Some(sandbox.phase_at.after(state.config.ended_retention))) {
            ending::remove(state, id);
        }
    } else if phase == Phase::Stopping {
        // nothing is due: see `deadline`
    } else if is_over(sandbox.expires_at) {
        let cause = Cause::new(Reason::TtlExpired, format!("its {} ms are over", sandbox.spec.ttl.0));
        if phase == Phase::Pending {
            ending::finish(state, id, Ending::Stopped(cause));
        } else {
            ending::begin_stop(state, id, cause, None);
        }
    } else if phase == Phase::Pending {
        assignment::requeue(state, id);
    } else if phase == Phase::Assigned && is_over(assignment::deadline(state, id)) {
        assignment::expire(state, id);
    } else if (phase == Phase::Starting && is_over(start_deadline(state, id)))
        || (phase == Phase::Resuming && is_over(order_deadline(state, id)))
    {
        let limit = sandbox.spec.start_timeout.0;
        let cause = Cause::new(Reason::StartTimeout, format!("not ready within {limit} ms"));
        ending::begin_stop(state, id, cause, Some(Millis(0)));
    } else if phase == Phase::Pausing && is_over(order_deadline(state, id)) {
        let limit = state.config.pause_timeout.0;
        let cause = Cause::new(Reason::SnapshotFailed, format!("it was not saved within {limit} ms"));
        ending::begin_stop(state, id, cause, Some(Millis(0)));
    }
}

/// Removes what is kept beyond its bound: ended sandboxes and snapshots, and remembered requests.
pub(crate) fn trim(state: &mut State) {
    for _ in 0..state.config.work_per_step {
        if state.ended.len() <= state.config.ended_sandboxes {
            break;
        }
        let Some((_, oldest)) = state.ended.first().copied() else { break };
        ending::remove(state, oldest);
    }
    for _ in 0..state.config.work_per_step {
        let Some((tenant, request_id)) = state.requests.pop(state.now, state.config.remembered_requests)
        else {
            break;
        };
        state.outbox.records.push(crate::event::Change::DropRequest { tenant, request_id });
        state.retime(TimerKey::Requests);
    }
    snapshots::trim(state);
    operations::trim(state);
}
