//! Order of commit and answer, with stores that are slow or broken.

use super::*;
use crate::nodes::sessions::Sessions;
use crate::store::conformance::sandbox;
use crate::store::{Loaded, Store, StoreError};
use crate::view::View;
use pinfold_domain::{Resources, Sandbox, Term};
use pinfold_engine::{EngineConfig, NodeRegistration, StoredState};
use pinfold_proto::node::v1::session_response::Message;
use pinfold_proto::node::v1::{Registered, SessionResponse};
use std::sync::Mutex;
use std::sync::mpsc as std_mpsc;

/// Every commit waits for a word: `true` stores it, `false` breaks.
struct GatedStore {
    gate: Mutex<std_mpsc::Receiver<bool>>,
}

impl Store for GatedStore {
    fn begin_term(&mut self) -> Result<Term, StoreError> {
        Ok(Term(1))
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        Ok(Loaded::default())
    }

    fn commit(&mut self, _: &[Change]) -> Result<(), StoreError> {
        match self.gate.lock().unwrap().recv() {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(StoreError::Gone),
        }
    }
}

struct Rig {
    handle: DriverHandle,
    view: Arc<View>,
    sessions: Arc<Sessions>,
    gate: std_mpsc::Sender<bool>,
    stop: CancellationToken,
    run: tokio::task::JoinHandle<anyhow::Result<()>>,
}

#[allow(clippy::disallowed_methods, reason = "a test's task ends with its runtime")]
fn rig(inbox: usize) -> Rig {
    let (gate, receiver) = std_mpsc::channel();
    let (writer, _closed) = Writer::start(GatedStore { gate: Mutex::new(receiver) }).unwrap();
    let view = Arc::new(View::new(&Loaded::default(), 100));
    let sessions = Arc::new(Sessions::new(Term(1), 16));
    let engine = Engine::restore(EngineConfig::default(), now(), StoredState::default());
    let config = DriverConfig { inbox, batch: 8, inbox_wait_ms: 50 };
    let executor = Executor::new(Arc::clone(&view), Arc::clone(&sessions));
    let (driver, handle) = Driver::new(engine, &config, writer, executor);
    let stop = CancellationToken::new();
    let run = tokio::spawn(driver.run(stop.clone()));
    Rig { handle, view, sessions, gate, stop, run }
}

impl Rig {
    #[allow(clippy::disallowed_methods, reason = "a test's task ends with its runtime")]
    fn create(&self, request_id: &str) -> tokio::task::JoinHandle<Result<Box<Sandbox>, Rejection>> {
        let (handle, request_id) = (self.handle.clone(), request_id.parse().unwrap());
        tokio::spawn(async move { handle.create(TenantId::default(), request_id, sandbox(1, 0).spec).await })
    }

    /// A node with room, and what it is told.
    async fn join(&self) -> mpsc::Receiver<SessionResponse> {
        let id: NodeId = "node-1".parse().unwrap();
        let session = self.sessions.next_id();
        let (_, commands) = self.sessions.begin(&id, session, Message::Registered(Registered::default()));
        let node = NodeRegistration {
            id,
            session,
            version: String::new(),
            allocatable: Resources {
                cpu_millis: 8000,
                memory_bytes: 1 << 34,
                disk_bytes: 1 << 36,
                pids: 1 << 16,
            },
            labels: Default::default(),
            zone: String::new(),
            images: ["base".to_owned()].into(),
            kernels: Default::default(),
            statuses: Vec::new(),
            snapshots: Vec::new(),
            templates: Vec::new(),
        };
        self.handle.tell(Event::NodeJoined { node: Box::new(node) }).await.unwrap();
        commands
    }
}

/// Long enough for a wrong answer to show, short enough for a test.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

fn assigns(commands: &mut mpsc::Receiver<SessionResponse>) -> usize {
    let said = std::iter::from_fn(|| commands.try_recv().ok());
    said.filter(|response| matches!(response.message, Some(Message::Assign(_)))).count()
}

#[tokio::test]
async fn nothing_is_answered_shown_or_sent_before_it_is_stored() {
    let rig = rig(16);
    let mut commands = rig.join().await;
    let create = rig.create("r1");
    a_moment().await;
    assert!(!create.is_finished(), "it was answered before the commit");
    assert_eq!(rig.view.revision().0, 0, "it was shown before the commit");
    assert_eq!(assigns(&mut commands), 0, "a node was told before the commit");
    rig.gate.send(true).unwrap();
    let created = create.await.unwrap().unwrap();
    assert_eq!(rig.view.get(created.id).unwrap().id, created.id);
    // the assignment may take a step and a commit of its own
    let _ = rig.gate.send(true);
    a_moment().await;
    assert_eq!(assigns(&mut commands), 1);
}

#[tokio::test]
async fn what_waits_during_a_commit_shares_the_next_one() {
    let rig = rig(16);
    let first = rig.create("r0");
    a_moment().await;
    let rest: Vec<_> = (1..8).map(|n| rig.create(&format!("r{n}"))).collect();
    a_moment().await;
    rig.gate.send(true).unwrap();
    first.await.unwrap().unwrap();
    rig.gate.send(true).unwrap();
    for create in rest {
        create.await.unwrap().unwrap();
    }
    assert_eq!(rig.view.revision().0, 8, "eight creates in two commits");
}

#[tokio::test]
async fn a_failed_commit_is_told_to_its_callers_and_ends_the_driver() {
    let rig = rig(16);
    let create = rig.create("r1");
    rig.gate.send(false).unwrap();
    let rejection = create.await.unwrap().unwrap_err();
    assert_eq!(rejection.cause.reason, Reason::StoreUnavailable);
    assert_eq!(rig.view.revision().0, 0);
    let error = rig.run.await.unwrap().unwrap_err();
    assert!(format!("{error:#}").contains("a commit failed"), "{error:#}");
    let after = rig.handle.create(TenantId::default(), "r2".parse().unwrap(), sandbox(1, 0).spec).await;
    assert_eq!(after.unwrap_err().cause.reason, Reason::StoreUnavailable);
}

#[tokio::test]
async fn a_full_inbox_sheds_with_its_bound() {
    let rig = rig(2);
    let stuck = rig.create("r0");
    a_moment().await;
    let waiting = [rig.create("r1"), rig.create("r2")];
    a_moment().await;
    let shed = rig.create("r3").await.unwrap().unwrap_err();
    assert_eq!(shed.cause.reason, Reason::QueueFull);
    assert!(shed.cause.message.starts_with("2 calls wait"), "{}", shed.cause.message);
    rig.gate.send(true).unwrap();
    rig.gate.send(true).unwrap();
    stuck.await.unwrap().unwrap();
    for create in waiting {
        create.await.unwrap().expect("what was taken in is done");
    }
}

#[tokio::test]
async fn a_stop_finishes_what_was_taken_in() {
    let rig = rig(16);
    let create = rig.create("r1");
    a_moment().await;
    let late = rig.create("r2");
    a_moment().await;
    rig.stop.cancel();
    rig.gate.send(true).unwrap();
    rig.gate.send(true).unwrap();
    create.await.unwrap().unwrap();
    late.await.unwrap().unwrap();
    rig.run.await.unwrap().unwrap();
}
