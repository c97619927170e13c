//! The engine with a store beside it. Steps gather in a batch; a batch becomes durable after a while, and only then are
//! its other effects let out. A crash loses what was not durable, and of a batch under way nobody knows.

use super::rng::Rng;
use pinfold_domain::{
    RequestId, Revision, Sandbox, SandboxId, Snapshot, SnapshotId, Template, TemplateId, TenantId, Timestamp,
};
use pinfold_engine::{
    Change, Effect, Engine, EngineConfig, Event, OperationRecord, RequestRecord, StoredState,
};
use std::collections::BTreeMap;

/// What survives a crash.
#[derive(Debug, Default)]
pub struct Store {
    pub sandboxes: BTreeMap<SandboxId, Sandbox>,
    pub requests: BTreeMap<(TenantId, RequestId), RequestRecord>,
    /// sandboxes that were stored once and are removed
    pub removed: BTreeMap<SandboxId, Revision>,
    pub snapshots: BTreeMap<SnapshotId, Snapshot>,
    pub templates: BTreeMap<TemplateId, Template>,
    pub operations: BTreeMap<(TenantId, RequestId), OperationRecord>,
    pub revision: Revision,
    /// stored and not looked at by the checks yet
    fresh: Vec<Sandbox>,
}

impl Store {
    fn apply(&mut self, change: Change) -> Result<(), String> {
        match change {
            Change::PutSandbox(sandbox) => {
                self.next(sandbox.revision)?;
                if let Some(old) = self.sandboxes.get(&sandbox.id)
                    && (old.epoch > sandbox.epoch || (old.phase.is_final() && old.phase != sandbox.phase))
                {
                    return Err(format!("{} went from {} back to {}", sandbox.id, old.phase, sandbox.phase));
                }
                self.fresh.push((*sandbox).clone());
                self.sandboxes.insert(sandbox.id, *sandbox);
            }
            Change::DeleteSandbox { sandbox } => {
                self.next(sandbox.revision)?;
                self.removed.insert(sandbox.id, sandbox.revision);
                self.fresh.push((*sandbox).clone());
                self.sandboxes.remove(&sandbox.id).ok_or(format!("{} was removed twice", sandbox.id))?;
            }
            Change::PutRequest(record) => {
                let key = (record.sandbox.tenant.clone(), record.sandbox.request_id.clone());
                self.requests.insert(key, record);
            }
            Change::DropRequest { tenant, request_id } => {
                self.requests.remove(&(tenant, request_id)).ok_or("a request was dropped twice")?;
            }
            Change::PutSnapshot(snapshot) => self.put_snapshot(*snapshot)?,
            Change::DeleteSnapshot { id } => drop(self.snapshots.remove(&id)),
            Change::PutTemplate(template) => drop(self.templates.insert(template.id, *template)),
            Change::DeleteTemplate { id } => {
                self.templates.remove(&id).ok_or("a template was removed twice")?;
            }
            Change::PutOperation(record) => {
                self.operations.insert((record.tenant.clone(), record.request_id.clone()), *record);
            }
            Change::DropOperation { tenant, request_id } => {
                self.operations.remove(&(tenant, request_id)).ok_or("an operation was dropped twice")?;
            }
        }
        Ok(())
    }

    fn put_snapshot(&mut self, snapshot: Snapshot) -> Result<(), String> {
        if let Some(old) = self.snapshots.get(&snapshot.id)
            && (old.state.is_over() && !snapshot.state.is_over())
        {
            return Err(format!("snapshot {} went from {} back to {}", old.id, old.state, snapshot.state));
        }
        self.snapshots.insert(snapshot.id, snapshot);
        Ok(())
    }

    fn next(&mut self, revision: Revision) -> Result<(), String> {
        if revision != self.revision.next() {
            return Err(format!("revision {revision} was stored after {}", self.revision));
        }
        self.revision = revision;
        Ok(())
    }

    /// What was stored since this was last asked.
    pub fn take_fresh(&mut self) -> Vec<Sandbox> {
        std::mem::take(&mut self.fresh)
    }

    fn read(&self) -> StoredState {
        StoredState {
            sandboxes: self.sandboxes.values().cloned().collect(),
            requests: self.requests.values().cloned().collect(),
            snapshots: self.snapshots.values().cloned().collect(),
            templates: self.templates.values().cloned().collect(),
            operations: self.operations.values().cloned().collect(),
            revision: self.revision,
        }
    }
}

#[derive(Debug)]
pub struct Driver {
    config: EngineConfig,
    /// `None` while the scheduler is down
    pub engine: Option<Engine>,
    pub store: Store,
    gathering: Vec<Effect>,
    committing: Vec<Effect>,
    /// counts starts: a commit of an earlier life says nothing
    pub life: u64,
    pub steps: u64,
}

impl Driver {
    pub fn new(config: EngineConfig, now: Timestamp) -> Self {
        let engine = Some(Engine::restore(config.clone(), now, StoredState::default()));
        let store = Store::default();
        Self { config, engine, store, gathering: Vec::new(), committing: Vec::new(), life: 1, steps: 0 }
    }

    /// Steps the engine; true when a commit has to be started.
    pub fn step(&mut self, now: Timestamp, event: Event) -> bool {
        let Some(engine) = &mut self.engine else { return false };
        self.steps += 1;
        self.gathering.extend(engine.step(now, event));
        self.start_commit()
    }

    fn start_commit(&mut self) -> bool {
        if !self.committing.is_empty() || self.gathering.is_empty() {
            return false;
        }
        self.committing = std::mem::take(&mut self.gathering);
        true
    }

    /// The batch is durable: what is to be done now, and whether the next commit has to be started.
    pub fn committed(&mut self) -> Result<(Vec<Effect>, bool), String> {
        let mut others = Vec::new();
        for effect in std::mem::take(&mut self.committing) {
            match effect {
                Effect::Persist(change) => self.store.apply(change)?,
                other => others.push(other),
            }
        }
        Ok((others, self.start_commit()))
    }

    /// The process dies. Whether the batch under way was stored is a matter of chance.
    pub fn crash(&mut self, rng: &mut Rng) -> Result<(), String> {
        self.engine = None;
        self.gathering.clear();
        let committing = std::mem::take(&mut self.committing);
        if rng.percent(50) {
            for effect in committing {
                if let Effect::Persist(change) = effect {
                    self.store.apply(change)?;
                }
            }
        }
        Ok(())
    }

    pub fn start(&mut self, now: Timestamp) {
        self.life += 1;
        self.engine = Some(Engine::restore(self.config.clone(), now, self.store.read()));
    }

    pub fn deadline(&self) -> Option<Timestamp> {
        self.engine.as_ref()?.next_deadline()
    }
}
