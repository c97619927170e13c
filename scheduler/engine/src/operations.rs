//! Request ids of operations: pauses, resumes, forks, and what is done to snapshots and templates. Remembered from their
//! acceptance on, so that a repetition does nothing twice.
//!
//! ```text
//!              made nothing, or all of it is gone                   request_retention, or too many
//!   accepted ------------------------------------> (by its age) -------------------------------------> forgotten
//!      |                                                ^
//!      +---> held, while anything that it made is kept -+
//! ```
//!
//! What is held is bounded by what is kept: each sandbox, snapshot and template was made by one request.

use crate::event::{Change, Operation, OperationRecord, Rejection};
use crate::outbox::Reply;
use crate::requests::RequestKey;
use crate::state::State;
use crate::timers::TimerKey;
use pinfold_domain::{Cause, Reason, RequestId, SandboxId, SnapshotId, TemplateId, TenantId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// What an operation has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Made {
    Sandbox(SandboxId),
    Snapshot(SnapshotId),
    Template(TemplateId),
}

impl Made {
    /// Everything that was made when `operation` was accepted.
    fn by(operation: &Operation) -> Vec<Self> {
        match operation {
            Operation::Fork(fork) => fork.sandbox_ids.iter().copied().map(Self::Sandbox).collect(),
            Operation::CreateSnapshot(snapshot) => vec![Self::Snapshot(snapshot.id)],
            Operation::CreateTemplate(template) => vec![Self::Template(template.id)],
            Operation::Pause { .. }
            | Operation::Resume { .. }
            | Operation::DeleteSnapshot(_)
            | Operation::DeleteTemplate(_) => Vec::new(),
        }
    }

    pub fn is_kept(self, state: &State) -> bool {
        match self {
            Self::Sandbox(id) => state.sandboxes.contains_key(&id),
            Self::Snapshot(id) => state.snapshots.get(id).is_some(),
            Self::Template(id) => state.templates.get(id).is_some(),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Operations {
    records: BTreeMap<RequestKey, OperationRecord>,
    /// those of which nothing is kept
    by_age: BTreeSet<(Timestamp, RequestKey)>,
    /// what is kept of the others
    made: BTreeMap<Made, RequestKey>,
    /// and how much of each
    held: BTreeMap<RequestKey, usize>,
}

impl Operations {
    pub fn get(&self, key: &RequestKey) -> Option<&Operation> {
        self.records.get(key).map(|record| &record.operation)
    }

    /// `kept`: what is kept of that which it made.
    fn insert(&mut self, record: OperationRecord, kept: Vec<Made>) {
        let key = (record.tenant.clone(), record.request_id.clone());
        debug_assert!(!self.records.contains_key(&key), "a request id is accepted once");
        if kept.is_empty() {
            self.by_age.insert((record.until, key.clone()));
        } else {
            self.held.insert(key.clone(), kept.len());
        }
        self.made.extend(kept.into_iter().map(|made| (made, key.clone())));
        self.records.insert(key, record);
    }

    /// Something that was made is no longer kept. The record, if that was the last of it: it is forgotten after `until`.
    fn let_go(&mut self, made: Made, until: Timestamp) -> Option<&OperationRecord> {
        let key = self.made.remove(&made)?;
        let left = self.held.get_mut(&key)?;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        self.held.remove(&key);
        self.by_age.insert((until, key.clone()));
        let record = self.records.get_mut(&key)?;
        record.until = until;
        Some(record)
    }

    /// Takes out the oldest record of which nothing is kept, if its time is over or if there are more than `limit`.
    fn pop(&mut self, now: Timestamp, limit: usize) -> Option<RequestKey> {
        let (until, _) = self.by_age.first()?;
        if *until > now && self.by_age.len() <= limit {
            return None;
        }
        let (_, key) = self.by_age.pop_first()?;
        self.records.remove(&key);
        Some(key)
    }

    /// What is thought to be kept.
    pub fn made(&self) -> impl Iterator<Item = Made> {
        self.made.keys().copied()
    }

    /// When the oldest record is due.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.by_age.first().map(|(until, _)| *until)
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }
}

/// The answer to a request id that was seen before: `same` gives it when the operation is the one that is asked for now.
pub(crate) fn known(
    state: &State,
    key: &RequestKey,
    same: impl FnOnce(&Operation) -> Option<Reply>,
) -> Option<Reply> {
    let used_by_create = state.by_request.contains_key(key) || state.requests.get(key).is_some();
    match state.operations.get(key) {
        Some(operation) => Some(same(operation).unwrap_or_else(|| conflict(key))),
        None => used_by_create.then(|| conflict(key)),
    }
}

pub(crate) fn conflict((_, request_id): &RequestKey) -> Reply {
    let message = format!("request id {} was used before, for something else", request_id.as_str());
    Reply::Rejected(reject(Reason::RequestIdConflict, message))
}

pub(crate) fn reject(reason: Reason, message: impl Into<String>) -> Rejection {
    Rejection { cause: Cause::new(reason, message), explanation: None }
}

/// Remembers what was accepted.
pub(crate) fn remember(state: &mut State, (tenant, request_id): RequestKey, operation: Operation) {
    let until = state.now.after(state.config.request_retention);
    let record = OperationRecord { tenant, request_id, operation, until };
    state.outbox.records.push(Change::PutOperation(Box::new(record.clone())));
    take_over(state, record);
}

/// Takes over a record that is stored. What it made is there already.
pub(crate) fn take_over(state: &mut State, record: OperationRecord) {
    let made = Made::by(&record.operation).into_iter();
    let kept = made.filter(|made| made.is_kept(state)).collect();
    state.operations.insert(record, kept);
    state.retime(TimerKey::Operations);
}

/// `made` is no longer kept.
pub(crate) fn let_go(state: &mut State, made: Made) {
    let until = state.now.after(state.config.request_retention);
    if let Some(record) = state.operations.let_go(made, until) {
        state.outbox.records.push(Change::PutOperation(Box::new(record.clone())));
        state.retime(TimerKey::Operations);
    }
}

/// Drops what is kept beyond its bound.
pub(crate) fn trim(state: &mut State) {
    for _ in 0..state.config.work_per_step {
        let oldest: Option<(TenantId, RequestId)> =
            state.operations.pop(state.now, state.config.remembered_requests);
        let Some((tenant, request_id)) = oldest else { break };
        state.outbox.records.push(Change::DropOperation { tenant, request_id });
        state.retime(TimerKey::Operations);
    }
}
