//! Everything that the engine knows, and the few ways in which all of its rooms change it.

use crate::cluster::Cluster;
use crate::cluster::liveness;
use crate::config::EngineConfig;
use crate::event::{Answered, Change, Effect, Rejection, RequestRecord};
use crate::lifetimes;
use crate::operations::Operations;
use crate::outbox::{Message, Outbox, Reply};
use crate::placement::views::Views;
use crate::queue::Queue;
use crate::requests::{RequestKey, Requests};
use crate::snapshots::{self, Snapshots};
use crate::templates::Templates;
use crate::timers::{TimerKey, Timers};
use pinfold_domain::{
    Cause, Milestone, Millis, NodeId, Phase, Revision, Sandbox, SandboxId, TimelineEntry, Timestamp,
    Transition,
};
use std::collections::{BTreeMap, BTreeSet};

/// A sandbox with what is known of it but not stored.
#[derive(Debug)]
pub(crate) struct Entry {
    pub sandbox: Sandbox,
    /// nodes that refused it, and until when they are not asked again
    pub refused_by: BTreeMap<NodeId, Timestamp>,
    /// how gently it is to be stopped
    pub stop_grace: Option<Millis>,
}

impl Entry {
    pub fn new(sandbox: Sandbox) -> Self {
        Self { sandbox, refused_by: BTreeMap::new(), stop_grace: None }
    }

    /// It is stopped only to be removed.
    pub fn is_doomed(&self) -> bool {
        self.sandbox.phase == Phase::Stopping
            && self
                .sandbox
                .cause
                .as_ref()
                .is_some_and(|c| c.reason == pinfold_domain::Reason::DeleteRequested)
    }
}

/// How a sandbox came to its end.
#[derive(Debug, Clone)]
pub(crate) enum Ending {
    Stopped(Cause),
    Failed(Cause),
    Lost(Cause),
}

#[derive(Debug)]
pub(crate) struct State {
    pub config: EngineConfig,
    pub now: Timestamp,
    pub revision: Revision,
    pub sandboxes: BTreeMap<SandboxId, Entry>,
    pub by_request: BTreeMap<RequestKey, SandboxId>,
    /// sandboxes in a final phase, by the time of their end
    pub ended: BTreeSet<(Timestamp, SandboxId)>,
    pub cluster: Cluster,
    pub queue: Queue,
    pub views: Views,
    pub requests: Requests,
    pub operations: Operations,
    pub snapshots: Snapshots,
    pub templates: Templates,
    pub timers: Timers,
    pub outbox: Outbox,
    /// how far `now` is ahead of the caller's clock, which was set back
    pub clock_ahead: Millis,
    /// before this nothing is called unplaceable
    pub settled_at: Timestamp,
    /// before this no timer runs: see [`crate::lifetimes`]
    pub timers_held_until: Timestamp,
}

impl State {
    pub fn sandbox(&self, id: SandboxId) -> Option<&Sandbox> {
        self.sandboxes.get(&id).map(|entry| &entry.sandbox)
    }

    /// Marks a sandbox as changed: it is stored, and its time is set anew, at the end of the step.
    pub fn touch(&mut self, id: SandboxId) {
        self.outbox.touch(id);
        self.retime(TimerKey::Sandbox(id));
    }

    pub fn retime(&mut self, key: TimerKey) {
        self.outbox.retime.insert(key);
    }

    /// Moves a sandbox along `transition` and returns the phase that it left; `None`, with nothing changed, when the
    /// life cycle has no such way.
    pub fn shift(&mut self, id: SandboxId, transition: Transition) -> Option<Phase> {
        let now = self.now;
        let sandbox = &mut self.sandboxes.get_mut(&id)?.sandbox;
        let old = sandbox.phase;
        let next = old.next(transition).ok()?;
        if next != old {
            sandbox.phase = next;
            sandbox.phase_at = now;
            let needed = snapshots::needed(&sandbox.spec.source, old);
            if let Some(snapshot) = needed.filter(|_| snapshots::needed(&sandbox.spec.source, next).is_none())
            {
                self.snapshots.release(snapshot, id);
            }
        }
        self.touch(id);
        Some(old)
    }

    /// Adds a milestone unless it is there. No milestone lies in the future, whatever a node's clock says.
    pub fn reach(&mut self, id: SandboxId, milestone: Milestone, at: Timestamp) {
        let at = at.min(self.now);
        let Some(entry) = self.sandboxes.get_mut(&id) else { return };
        let timeline = &mut entry.sandbox.timeline;
        if timeline.iter().all(|reached| reached.milestone != milestone) {
            timeline.push(TimelineEntry { milestone, at });
            timeline.sort_by_key(|reached| (reached.at, reached.milestone));
            self.touch(id);
        }
    }

    /// The end of a step: what was decided becomes effects, changes first.
    pub fn flush(&mut self) -> Vec<Effect> {
        let mut outbox = std::mem::take(&mut self.outbox);
        let mut effects = Vec::new();
        let touched = std::mem::take(&mut outbox.touched);
        for id in touched.into_iter().filter(|id| outbox.touched_set.contains(id)) {
            let revision = self.next_revision();
            if let Some(entry) = self.sandboxes.get_mut(&id) {
                entry.sandbox.revision = revision;
                effects.push(Effect::Persist(Change::PutSandbox(Box::new(entry.sandbox.clone()))));
            }
        }
        let until = self.now.after(self.config.request_retention);
        let mut removed = std::mem::take(&mut outbox.removed);
        for sandbox in removed.values_mut() {
            sandbox.revision = self.next_revision();
            effects.push(Effect::Persist(Change::DeleteSandbox { sandbox: sandbox.clone() }));
            let record = RequestRecord { sandbox: sandbox.clone(), until };
            effects.push(Effect::Persist(Change::PutRequest(record.clone())));
            self.requests.insert(record);
            outbox.retime.insert(TimerKey::Requests);
        }
        effects.extend(outbox.records.drain(..).map(Effect::Persist));
        for id in std::mem::take(&mut outbox.snapshots) {
            effects.push(Effect::Persist(match self.snapshots.get(id) {
                Some(entry) => Change::PutSnapshot(Box::new(entry.snapshot.clone())),
                None => Change::DeleteSnapshot { id },
            }));
        }
        self.outbox.retime = std::mem::take(&mut outbox.retime);
        self.settle_timers();
        effects.extend(outbox.messages.into_iter().filter_map(|message| self.effect(message, &removed)));
        effects
    }

    /// Sets the times of all that asked for it.
    pub fn settle_timers(&mut self) {
        for key in std::mem::take(&mut self.outbox.retime) {
            let at = match &key {
                TimerKey::Sandbox(id) => lifetimes::deadline(self, *id),
                TimerKey::Node(id) => liveness::deadline(self, id),
                TimerKey::Snapshot(id) => snapshots::deadline(self, *id),
                TimerKey::Requests => self.requests.deadline(),
                TimerKey::Operations => self.operations.deadline(),
            };
            self.timers.set(key, at);
        }
    }

    fn next_revision(&mut self) -> Revision {
        self.revision = self.revision.next();
        self.revision
    }

    fn answered(
        &self,
        reply: Reply,
        removed: &BTreeMap<SandboxId, Box<Sandbox>>,
    ) -> Result<Answered, Rejection> {
        match reply {
            Reply::Given(sandbox) => Ok(Answered::Sandbox(sandbox)),
            Reply::Rejected(rejection) => Err(rejection),
            Reply::Sandbox(id) => {
                let kept = self.sandbox(id).map(|sandbox| Box::new(sandbox.clone()));
                let found = kept.or_else(|| removed.get(&id).cloned());
                let missing = || Rejection { cause: crate::admission::not_found(id), explanation: None };
                found.map(Answered::Sandbox).ok_or_else(missing)
            }
            Reply::Forks { ids, snapshot_id } => {
                let known =
                    |id: &SandboxId| self.sandbox(*id).or_else(|| self.requests.removed(*id)).cloned();
                Ok(Answered::Forks { sandboxes: ids.iter().filter_map(known).collect(), snapshot_id })
            }
            Reply::Snapshot(given) => {
                let kept = self.snapshots.get(given.id).map(|entry| Box::new(entry.snapshot.clone()));
                Ok(Answered::Snapshot(kept.unwrap_or(given)))
            }
            Reply::Template(template) => Ok(Answered::Template(template)),
        }
    }

    fn effect(&self, message: Message, removed: &BTreeMap<SandboxId, Box<Sandbox>>) -> Option<Effect> {
        match message {
            Message::Ready(effect) => Some(effect),
            Message::Answer { call, reply } => {
                Some(Effect::Answer { call, result: self.answered(reply, removed) })
            }
            Message::Assign { node, session, id, epoch } => {
                // decided earlier in this step: it may have been withdrawn since
                let sandbox = self.sandbox(id).filter(|s| s.phase == Phase::Assigned && s.epoch == epoch)?;
                let ttl_left = sandbox.expires_at.unwrap_or(Timestamp(u64::MAX)).since(self.now);
                Some(Effect::Assign { node, session, sandbox: Box::new(sandbox.clone()), ttl_left })
            }
        }
    }
}
