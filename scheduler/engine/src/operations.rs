//! Request ids of operations: pauses, resumes, forks, and what is done to snapshots and templates. Remembered from their
//! acceptance on, for a bounded time and in bounded number, so that a repetition does nothing twice.

use crate::event::{Change, Operation, OperationRecord, Rejection};
use crate::outbox::Reply;
use crate::requests::RequestKey;
use crate::state::State;
use crate::timers::TimerKey;
use pinfold_domain::{Cause, Reason, RequestId, TenantId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(crate) struct Operations {
    records: BTreeMap<RequestKey, OperationRecord>,
    by_age: BTreeSet<(Timestamp, RequestKey)>,
}

impl Operations {
    pub fn get(&self, key: &RequestKey) -> Option<&Operation> {
        self.records.get(key).map(|record| &record.operation)
    }

    pub fn insert(&mut self, record: OperationRecord) {
        let key = (record.tenant.clone(), record.request_id.clone());
        self.forget(&key);
        self.by_age.insert((record.until, key.clone()));
        self.records.insert(key, record);
    }

    fn forget(&mut self, key: &RequestKey) {
        if let Some(old) = self.records.remove(key) {
            self.by_age.remove(&(old.until, key.clone()));
        }
    }

    /// Takes out the oldest record if its time is over or if there are more than `limit`.
    fn pop(&mut self, now: Timestamp, limit: usize) -> Option<RequestKey> {
        let (until, key) = self.by_age.first()?;
        if *until > now && self.records.len() <= limit {
            return None;
        }
        let key = key.clone();
        self.forget(&key);
        Some(key)
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

fn conflict((_, request_id): &RequestKey) -> Reply {
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
    state.operations.insert(record);
    state.retime(TimerKey::Operations);
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
