//! What every store must do. A store's own test calls [`check`] with a way to open it again and again.

use super::{Loaded, Store};
use pinfold_domain::{
    Cause, Epoch, Millis, Phase, Reason, RequestId, Resources, Revision, Sandbox, SandboxId, SandboxSpec,
    Snapshot, SnapshotId, SnapshotSizes, SnapshotState, Template, TemplateId, TenantId, Term, Timestamp,
};
use pinfold_engine::{Change, Operation, OperationRecord, RequestRecord};
use std::collections::BTreeMap;
use uuid::Uuid;

/// `fresh(history_entries)` makes an empty store and returns what opens it; each call of that opens the same store
/// after the one before was dropped.
pub fn check<S: Store, Open: Fn() -> S>(fresh: impl Fn(u64) -> Open) {
    an_empty_store_is_empty(&fresh(10));
    terms_only_grow(&fresh(10));
    what_was_committed_is_there_after_opening_again(&fresh(10));
    removals_and_requests(&fresh(10));
    snapshots_templates_and_operations(&fresh(10));
    history_is_bounded_and_says_so(&fresh(3));
    an_empty_commit_changes_nothing(&fresh(10));
}

fn an_empty_store_is_empty<S: Store>(open: &impl Fn() -> S) {
    assert_eq!(open().load().unwrap(), Loaded::default());
}

fn terms_only_grow<S: Store>(open: &impl Fn() -> S) {
    assert_eq!(open().begin_term().unwrap(), Term(1));
    let mut store = open();
    assert_eq!(store.begin_term().unwrap(), Term(2));
    assert_eq!(store.begin_term().unwrap(), Term(3));
}

fn what_was_committed_is_there_after_opening_again<S: Store>(open: &impl Fn() -> S) {
    let (mut first, second) = (sandbox(1, 1), sandbox(2, 2));
    open().commit(&[put(&first), put(&second)]).unwrap();
    first.phase = Phase::Stopping;
    first.cause = Some(Cause::new(Reason::StopRequested, "by a caller"));
    first.revision = Revision(3);
    open().commit(&[put(&first)]).unwrap();
    let loaded = open().load().unwrap();
    assert_eq!(loaded.state.sandboxes, [first, second]);
    assert_eq!(loaded.state.revision, Revision(3));
    assert_eq!(revisions(&loaded), [1, 2, 3]);
    assert_eq!(loaded.compacted, Revision(0));
}

fn removals_and_requests<S: Store>(open: &impl Fn() -> S) {
    let mut gone = sandbox(1, 1);
    open().commit(&[put(&gone)]).unwrap();
    gone.revision = Revision(2);
    let request = RequestRecord { sandbox: Box::new(gone.clone()), until: Timestamp(99) };
    let removal = Change::DeleteSandbox { sandbox: Box::new(gone.clone()) };
    open().commit(&[removal, Change::PutRequest(request.clone())]).unwrap();
    let loaded = open().load().unwrap();
    assert!(loaded.state.sandboxes.is_empty());
    assert_eq!(loaded.state.requests, [request]);
    assert_eq!(loaded.state.revision, Revision(2), "a removal counts too");
    assert_eq!(loaded.history.iter().map(|entry| entry.deleted).collect::<Vec<_>>(), [false, true]);
    let forgotten = Change::DropRequest { tenant: gone.tenant, request_id: gone.request_id };
    open().commit(&[forgotten]).unwrap();
    assert!(open().load().unwrap().state.requests.is_empty());
}

fn snapshots_templates_and_operations<S: Store>(open: &impl Fn() -> S) {
    let (snapshot, template) = (snapshot(7), template(8));
    let operation = OperationRecord {
        tenant: TenantId::default(),
        request_id: "once".parse().unwrap(),
        operation: Operation::CreateSnapshot(Box::new(snapshot.clone())),
        until: Timestamp(9),
    };
    let puts = [
        Change::PutSnapshot(Box::new(snapshot.clone())),
        Change::PutTemplate(Box::new(template.clone())),
        Change::PutOperation(Box::new(operation.clone())),
    ];
    open().commit(&puts).unwrap();
    let loaded = open().load().unwrap();
    assert_eq!(loaded.state.snapshots, std::slice::from_ref(&snapshot));
    assert_eq!(loaded.state.templates, std::slice::from_ref(&template));
    assert_eq!(loaded.state.operations, std::slice::from_ref(&operation));
    assert!(loaded.history.is_empty(), "they have no revision");
    let drops = [
        Change::DeleteSnapshot { id: snapshot.id },
        Change::DeleteTemplate { id: template.id },
        Change::DropOperation { tenant: operation.tenant, request_id: operation.request_id },
    ];
    open().commit(&drops).unwrap();
    assert_eq!(open().load().unwrap(), Loaded::default());
}

fn history_is_bounded_and_says_so<S: Store>(open: &impl Fn() -> S) {
    for revision in 1..=5 {
        open().commit(&[put(&sandbox(1, revision))]).unwrap();
    }
    let loaded = open().load().unwrap();
    assert_eq!(revisions(&loaded), [3, 4, 5]);
    assert_eq!(loaded.compacted, Revision(2));
    // a commit larger than the bound
    let changes: Vec<_> = (6..=12).map(|revision| put(&sandbox(2, revision))).collect();
    open().commit(&changes).unwrap();
    let loaded = open().load().unwrap();
    assert_eq!(revisions(&loaded), [10, 11, 12]);
    assert_eq!(loaded.compacted, Revision(9));
    assert_eq!(loaded.state.sandboxes.len(), 2);
}

fn an_empty_commit_changes_nothing<S: Store>(open: &impl Fn() -> S) {
    open().commit(&[put(&sandbox(1, 7))]).unwrap();
    let before = open().load().unwrap();
    open().commit(&[]).unwrap();
    assert_eq!(open().load().unwrap(), before);
}

fn revisions(loaded: &Loaded) -> Vec<u64> {
    loaded.history.iter().map(|entry| entry.revision().0).collect()
}

fn put(sandbox: &Sandbox) -> Change {
    Change::PutSandbox(Box::new(sandbox.clone()))
}

/// A sandbox whose id sorts by `number`.
pub fn sandbox(number: u128, revision: u64) -> Sandbox {
    let request_id: RequestId = format!("request-{number}").parse().unwrap();
    Sandbox {
        id: SandboxId(Uuid::from_u128(number)),
        tenant: TenantId::default(),
        request_id,
        spec: spec(),
        phase: Phase::Pending,
        cause: None,
        node: None,
        epoch: Epoch(0),
        revision: Revision(revision),
        created_at: Timestamp(1),
        phase_at: Timestamp(1),
        expires_at: Some(Timestamp(60_000)),
        timeline: Vec::new(),
        explanation: None,
        origin: None,
        order: 0,
        held: None,
        refused_for_room: 0,
    }
}

/// A snapshot whose id sorts by `number`.
pub fn snapshot(number: u128) -> Snapshot {
    Snapshot {
        id: SnapshotId(Uuid::from_u128(number)),
        tenant: TenantId::default(),
        request_id: format!("request-{number}").parse().unwrap(),
        name: "saved".into(),
        sandbox: SandboxId(Uuid::from_u128(1)),
        spec: spec(),
        node: "node-1".parse().unwrap(),
        ephemeral: false,
        state: SnapshotState::Creating,
        cause: None,
        sizes: SnapshotSizes::default(),
        created_at: Timestamp(1),
        state_at: Timestamp(1),
    }
}

fn template(number: u128) -> Template {
    Template {
        id: TemplateId(Uuid::from_u128(number)),
        tenant: TenantId::default(),
        request_id: "template".parse().unwrap(),
        name: "python".into(),
        image: "base".into(),
        kernel: None,
        resources: spec().resources,
        environment: BTreeMap::from([("A".into(), "1".into())]),
        created_at: Timestamp(1),
    }
}

fn spec() -> SandboxSpec {
    SandboxSpec {
        name: "unit".into(),
        image: "base".into(),
        kernel: None,
        resources: Resources { cpu_millis: 1000, memory_bytes: 1 << 28, disk_bytes: 1 << 30, pids: 512 },
        labels: BTreeMap::from([("team".into(), "blue".into())]),
        environment: BTreeMap::new(),
        ttl: Millis::from_secs(60),
        start_timeout: Millis::from_secs(60),
        node_labels: BTreeMap::new(),
        io_bytes_per_second: None,
        source: pinfold_domain::Source::Image,
    }
}
