//! The store of one machine: a redb file.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | `schema`, `term`, `revision`, `compacted` |
//! | `sandboxes` | id, 16 bytes: in order of creation | record |
//! | `requests` | tenant, `/`, request id (a tenant holds no `/`) | record |
//! | `snapshots`, `templates` | id, 16 bytes | record |
//! | `operations` | tenant, `/`, request id | record |
//! | `history` | revision | record, with `deleted` |
//!
//! Schema 1 had no tables of snapshots, templates and operations. It is taken over as it is: a new table is empty.
//! One transaction is one commit; redb's default durability syncs the file before it returns.

use super::{HistoryEntry, Loaded, Store, StoreError, record};
use pinfold_domain::{RequestId, Revision, Sandbox, TenantId, Term};
use pinfold_engine::{Change, StoredState};
use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const SANDBOXES: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("sandboxes");
const REQUESTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("requests");
const SNAPSHOTS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("snapshots");
const TEMPLATES: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("templates");
const OPERATIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("operations");
const HISTORY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("history");

const SCHEMA: u64 = 2;
/// The oldest that is taken over.
const OLDEST_SCHEMA: u64 = 1;
const FILE_NAME: &str = "scheduler.redb";

pub struct EmbeddedStore {
    database: Database,
    history_entries: u64,
}

#[derive(Deserialize)]
struct HistoryRecord {
    sandbox: Sandbox,
    deleted: bool,
}

/// [`HistoryRecord`] as it is written, without a copy.
#[derive(Serialize)]
struct HistoryRecordRef<'a> {
    sandbox: &'a Sandbox,
    deleted: bool,
}

fn io(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Io(Box::new(error.into()))
}

impl EmbeddedStore {
    /// Opens or creates the store in `directory`. A second process that has it open makes this fail.
    pub fn open(directory: &Path, history_entries: u64, cache_bytes: usize) -> Result<Self, StoreError> {
        let path = directory.join(FILE_NAME);
        std::fs::create_dir_all(directory)
            .map_err(|source| StoreError::Directory { path: directory.to_owned(), source })?;
        let database = Database::builder()
            .set_cache_size(cache_bytes)
            .create(&path)
            .map_err(|error| StoreError::Open { path, source: Box::new(error.into()) })?;
        let mut store = Self { database, history_entries };
        store.prepare()?;
        Ok(store)
    }

    /// Makes the tables, and checks that this version can read them.
    fn prepare(&mut self) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(io)?;
        {
            let mut meta = transaction.open_table(META).map_err(io)?;
            let found = meta.get("schema").map_err(io)?.map(|value| value.value());
            match found {
                Some(SCHEMA) => {}
                Some(OLDEST_SCHEMA..SCHEMA) | None => drop(meta.insert("schema", SCHEMA).map_err(io)?),
                Some(found) => return Err(StoreError::Schema { found, known: SCHEMA }),
            }
            transaction.open_table(SANDBOXES).map_err(io)?;
            transaction.open_table(REQUESTS).map_err(io)?;
            transaction.open_table(SNAPSHOTS).map_err(io)?;
            transaction.open_table(TEMPLATES).map_err(io)?;
            transaction.open_table(OPERATIONS).map_err(io)?;
            transaction.open_table(HISTORY).map_err(io)?;
        }
        transaction.commit().map_err(io)
    }

    fn apply(transaction: &WriteTransaction, change: &Change) -> Result<Option<Revision>, StoreError> {
        match change {
            Change::PutSandbox(sandbox) => {
                let mut table = transaction.open_table(SANDBOXES).map_err(io)?;
                let bytes = record::encode("sandboxes", sandbox)?;
                table.insert(*sandbox.id.0.as_bytes(), bytes.as_slice()).map_err(io)?;
                Ok(Some(sandbox.revision))
            }
            Change::DeleteSandbox { sandbox } => {
                let mut table = transaction.open_table(SANDBOXES).map_err(io)?;
                table.remove(*sandbox.id.0.as_bytes()).map_err(io)?;
                Ok(Some(sandbox.revision))
            }
            Change::PutRequest(request) => {
                let mut table = transaction.open_table(REQUESTS).map_err(io)?;
                let key = request_key(&request.sandbox.tenant, &request.sandbox.request_id);
                table.insert(key.as_str(), record::encode("requests", request)?.as_slice()).map_err(io)?;
                Ok(None)
            }
            Change::DropRequest { tenant, request_id } => {
                let mut table = transaction.open_table(REQUESTS).map_err(io)?;
                table.remove(request_key(tenant, request_id).as_str()).map_err(io)?;
                Ok(None)
            }
            Change::PutSnapshot(_)
            | Change::DeleteSnapshot { .. }
            | Change::PutTemplate(_)
            | Change::DeleteTemplate { .. }
            | Change::PutOperation(_)
            | Change::DropOperation { .. } => Self::apply_object(transaction, change).map(|()| None),
        }
    }

    /// Changes of what has no revision beside requests.
    fn apply_object(transaction: &WriteTransaction, change: &Change) -> Result<(), StoreError> {
        match change {
            Change::PutSnapshot(snapshot) => {
                let mut table = transaction.open_table(SNAPSHOTS).map_err(io)?;
                let bytes = record::encode("snapshots", snapshot)?;
                table.insert(*snapshot.id.0.as_bytes(), bytes.as_slice()).map_err(io)?;
            }
            Change::DeleteSnapshot { id } => {
                let mut table = transaction.open_table(SNAPSHOTS).map_err(io)?;
                table.remove(*id.0.as_bytes()).map_err(io)?;
            }
            Change::PutTemplate(template) => {
                let mut table = transaction.open_table(TEMPLATES).map_err(io)?;
                let bytes = record::encode("templates", template)?;
                table.insert(*template.id.0.as_bytes(), bytes.as_slice()).map_err(io)?;
            }
            Change::DeleteTemplate { id } => {
                let mut table = transaction.open_table(TEMPLATES).map_err(io)?;
                table.remove(*id.0.as_bytes()).map_err(io)?;
            }
            Change::PutOperation(operation) => {
                let mut table = transaction.open_table(OPERATIONS).map_err(io)?;
                let key = request_key(&operation.tenant, &operation.request_id);
                let bytes = record::encode("operations", operation)?;
                table.insert(key.as_str(), bytes.as_slice()).map_err(io)?;
            }
            Change::DropOperation { tenant, request_id } => {
                let mut table = transaction.open_table(OPERATIONS).map_err(io)?;
                table.remove(request_key(tenant, request_id).as_str()).map_err(io)?;
            }
            Change::PutSandbox(_)
            | Change::DeleteSandbox { .. }
            | Change::PutRequest(_)
            | Change::DropRequest { .. } => {}
        }
        Ok(())
    }

    fn remember(transaction: &WriteTransaction, change: &Change) -> Result<(), StoreError> {
        let (sandbox, deleted) = match change {
            Change::PutSandbox(sandbox) => (sandbox, false),
            Change::DeleteSandbox { sandbox } => (sandbox, true),
            Change::PutRequest(_)
            | Change::DropRequest { .. }
            | Change::PutSnapshot(_)
            | Change::DeleteSnapshot { .. }
            | Change::PutTemplate(_)
            | Change::DeleteTemplate { .. }
            | Change::PutOperation(_)
            | Change::DropOperation { .. } => return Ok(()),
        };
        let bytes = record::encode("history", &HistoryRecordRef { sandbox, deleted })?;
        let mut table = transaction.open_table(HISTORY).map_err(io)?;
        table.insert(sandbox.revision.0, bytes.as_slice()).map_err(io)?;
        Ok(())
    }

    /// Drops the oldest history beyond the bound, and notes how far.
    fn compact(&self, transaction: &WriteTransaction) -> Result<(), StoreError> {
        let mut history = transaction.open_table(HISTORY).map_err(io)?;
        let mut compacted = None;
        while history.len().map_err(io)? > self.history_entries {
            match history.pop_first().map_err(io)? {
                Some((key, _)) => compacted = Some(key.value()),
                None => break,
            }
        }
        if let Some(compacted) = compacted {
            let mut meta = transaction.open_table(META).map_err(io)?;
            meta.insert("compacted", compacted).map_err(io)?;
        }
        Ok(())
    }
}

fn request_key(tenant: &TenantId, request_id: &RequestId) -> String {
    format!("{tenant}/{}", request_id.as_str())
}

impl Store for EmbeddedStore {
    fn begin_term(&mut self) -> Result<Term, StoreError> {
        let transaction = self.database.begin_write().map_err(io)?;
        let term = {
            let mut meta = transaction.open_table(META).map_err(io)?;
            let last = meta.get("term").map_err(io)?.map_or(0, |value| value.value());
            let term = Term(last).next();
            meta.insert("term", term.0).map_err(io)?;
            term
        };
        transaction.commit().map_err(io)?;
        Ok(term)
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        let transaction = self.database.begin_read().map_err(io)?;
        let meta = transaction.open_table(META).map_err(io)?;
        let number = |name| Ok(Revision(meta.get(name).map_err(io)?.map_or(0, |value| value.value())));
        let mut loaded = Loaded {
            state: StoredState { revision: number("revision")?, ..StoredState::default() },
            compacted: number("compacted")?,
            ..Loaded::default()
        };
        for row in transaction.open_table(SANDBOXES).map_err(io)?.iter().map_err(io)? {
            let (_, bytes) = row.map_err(io)?;
            loaded.state.sandboxes.push(record::decode("sandboxes", bytes.value())?);
        }
        for row in transaction.open_table(REQUESTS).map_err(io)?.iter().map_err(io)? {
            let (_, bytes) = row.map_err(io)?;
            loaded.state.requests.push(record::decode("requests", bytes.value())?);
        }
        for row in transaction.open_table(SNAPSHOTS).map_err(io)?.iter().map_err(io)? {
            let (_, bytes) = row.map_err(io)?;
            loaded.state.snapshots.push(record::decode("snapshots", bytes.value())?);
        }
        for row in transaction.open_table(TEMPLATES).map_err(io)?.iter().map_err(io)? {
            let (_, bytes) = row.map_err(io)?;
            loaded.state.templates.push(record::decode("templates", bytes.value())?);
        }
        for row in transaction.open_table(OPERATIONS).map_err(io)?.iter().map_err(io)? {
            let (_, bytes) = row.map_err(io)?;
            loaded.state.operations.push(record::decode("operations", bytes.value())?);
        }
        for row in transaction.open_table(HISTORY).map_err(io)?.iter().map_err(io)? {
            let (_, bytes) = row.map_err(io)?;
            let HistoryRecord { sandbox, deleted } = record::decode("history", bytes.value())?;
            loaded.history.push(HistoryEntry { sandbox: Arc::new(sandbox), deleted });
        }
        Ok(loaded)
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(io)?;
        let mut newest = None;
        for change in changes {
            newest = newest.max(Self::apply(&transaction, change)?);
            Self::remember(&transaction, change)?;
        }
        if let Some(revision) = newest {
            let mut meta = transaction.open_table(META).map_err(io)?;
            meta.insert("revision", revision.0).map_err(io)?;
        }
        self.compact(&transaction)?;
        transaction.commit().map_err(io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    const CACHE_BYTES: usize = 4 * 1024 * 1024;

    #[test]
    fn it_is_a_store() {
        conformance::check(|history_entries| {
            let directory = tempfile::tempdir().unwrap();
            move || EmbeddedStore::open(directory.path(), history_entries, CACHE_BYTES).unwrap()
        });
    }

    #[test]
    fn two_processes_cannot_share_it() {
        let directory = tempfile::tempdir().unwrap();
        let _first = EmbeddedStore::open(directory.path(), 10, CACHE_BYTES).unwrap();
        let error = EmbeddedStore::open(directory.path(), 10, CACHE_BYTES).err().unwrap();
        assert!(error.to_string().contains("cannot be opened"), "{error}");
    }

    /// A record as the version before snapshots wrote it.
    const SANDBOX_OF_SCHEMA_1: &str = concat!(
        r#"{"id":"00000000-0000-0000-0000-000000000001","tenant":"default","request_id":"r","spec":{"name":"","#,
        r#""image":"base","kernel":null,"resources":{"cpu_millis":1000,"memory_bytes":268435456,"#,
        r#""disk_bytes":1073741824,"pids":512},"labels":{},"environment":{},"ttl":3600000,"start_timeout":60000,"#,
        r#""node_labels":{},"io_bytes_per_second":null},"phase":"running","cause":null,"node":"n","epoch":1,"#,
        r#""revision":3,"created_at":1,"phase_at":2,"expires_at":3600001,"timeline":[],"explanation":"#,
        r#"{"verdict":"wait","nodes_considered":1,"filters":[]}}"#
    );

    #[test]
    fn a_store_of_schema_1_is_taken_over_with_what_it_holds() {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(directory.path(), 10, CACHE_BYTES).unwrap();
        let transaction = store.database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("schema", 1).unwrap();
        transaction.delete_table(SNAPSHOTS).unwrap();
        transaction.delete_table(TEMPLATES).unwrap();
        transaction.delete_table(OPERATIONS).unwrap();
        let record: Vec<u8> = std::iter::once(1).chain(SANDBOX_OF_SCHEMA_1.bytes()).collect();
        let key = *uuid::Uuid::from_u128(1).as_bytes();
        transaction.open_table(SANDBOXES).unwrap().insert(key, record.as_slice()).unwrap();
        transaction.commit().unwrap();
        drop(store);
        let mut store = EmbeddedStore::open(directory.path(), 10, CACHE_BYTES).unwrap();
        let loaded = store.load().unwrap();
        let sandbox = &loaded.state.sandboxes[0];
        assert_eq!((sandbox.held(), sandbox.order, &sandbox.origin), (sandbox.spec.resources, 0, &None));
        drop(store);
        EmbeddedStore::open(directory.path(), 10, CACHE_BYTES).unwrap();
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(directory.path(), 10, CACHE_BYTES).unwrap();
        let transaction = store.database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("schema", 3).unwrap();
        transaction.commit().unwrap();
        drop(store);
        let error = EmbeddedStore::open(directory.path(), 10, CACHE_BYTES).err().unwrap();
        assert_eq!(error.to_string(), "the store has schema 3, this version reads 2");
    }
}
