//! Request ids of sandboxes that were removed, remembered for a bounded time and in bounded number.
//!
//! The request id of a sandbox that still exists needs no record: the sandbox is its record.

use crate::event::RequestRecord;
use pinfold_domain::{RequestId, Sandbox, SandboxId, TenantId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) type RequestKey = (TenantId, RequestId);

#[derive(Debug, Default)]
pub(crate) struct Requests {
    records: BTreeMap<RequestKey, RequestRecord>,
    by_age: BTreeSet<(Timestamp, RequestKey)>,
    by_sandbox: BTreeMap<SandboxId, RequestKey>,
}

impl Requests {
    pub fn get(&self, key: &RequestKey) -> Option<&RequestRecord> {
        self.records.get(key)
    }

    /// The last state of a removed sandbox.
    pub fn removed(&self, id: SandboxId) -> Option<&Sandbox> {
        let key = self.by_sandbox.get(&id)?;
        self.records.get(key).map(|record| &*record.sandbox)
    }

    pub fn insert(&mut self, record: RequestRecord) {
        let key = (record.sandbox.tenant.clone(), record.sandbox.request_id.clone());
        self.forget(&key);
        self.by_age.insert((record.until, key.clone()));
        self.by_sandbox.insert(record.sandbox.id, key.clone());
        self.records.insert(key, record);
    }

    fn forget(&mut self, key: &RequestKey) {
        if let Some(old) = self.records.remove(key) {
            self.by_age.remove(&(old.until, key.clone()));
            self.by_sandbox.remove(&old.sandbox.id);
        }
    }

    /// Takes out the oldest record if its time is over or if there are more than `limit`.
    pub fn pop(&mut self, now: Timestamp, limit: usize) -> Option<RequestKey> {
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
