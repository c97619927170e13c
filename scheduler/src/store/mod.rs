//! What must survive: the stored state, its history for watchers, and the term.
//!
//! Invariant: [`Store::commit`] returns after its changes are durable, all of them or none.

pub mod embedded;
mod record;
pub mod writer;

#[cfg(test)]
pub(crate) mod conformance;

use pinfold_domain::{Revision, Sandbox, Term};
use pinfold_engine::{Change, StoredState};
use std::path::PathBuf;
use std::sync::Arc;

/// One change of a sandbox, as a watcher sees it. `sandbox.revision` is its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// after the change; its last state when it was deleted
    pub sandbox: Arc<Sandbox>,
    pub deleted: bool,
}

impl HistoryEntry {
    /// What `change` adds to the history; changes without a revision add nothing.
    pub fn of(change: &Change) -> Option<Self> {
        match change {
            Change::PutSandbox(sandbox) => {
                Some(Self { sandbox: Arc::new(Sandbox::clone(sandbox)), deleted: false })
            }
            Change::DeleteSandbox { sandbox } => {
                Some(Self { sandbox: Arc::new(Sandbox::clone(sandbox)), deleted: true })
            }
            Change::PutRequest(_)
            | Change::DropRequest { .. }
            | Change::PutSnapshot(_)
            | Change::DeleteSnapshot { .. }
            | Change::PutTemplate(_)
            | Change::DeleteTemplate { .. }
            | Change::PutOperation(_)
            | Change::DropOperation { .. } => None,
        }
    }

    pub fn revision(&self) -> Revision {
        self.sandbox.revision
    }
}

/// Everything that a store holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    pub state: StoredState,
    /// the newest changes, oldest first
    pub history: Vec<HistoryEntry>,
    /// the newest change that is no longer in `history`; 0 when all are there
    pub compacted: Revision,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store {} cannot be opened", path.display())]
    Open { path: PathBuf, source: Box<redb::Error> },
    #[error("the store {} cannot be opened", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("the store has schema {found}, this version reads {known}")]
    Schema { found: u64, known: u64 },
    #[error("a record of the table {table} has version {found}, this version reads {known}")]
    RecordVersion { table: &'static str, found: u8, known: u8 },
    #[error("a record of the table {table} is damaged")]
    Record { table: &'static str, source: serde_json::Error },
    #[error("a record of the table {table} is empty")]
    EmptyRecord { table: &'static str },
    #[error("the store cannot be read or written")]
    Io(#[source] Box<redb::Error>),
    #[error("the thread of the store is gone")]
    Gone,
}

/// A durable store. Blocking: it is used from its own thread.
pub trait Store: Send + 'static {
    /// Begins a leadership: the term is higher than any before, and stored when this returns.
    fn begin_term(&mut self) -> Result<Term, StoreError>;

    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Stores `changes` in their order, all or nothing, durable on return. History beyond the bound goes, oldest first.
    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError>;
}
