//! The engine told by hand, event by event. The clock moves only when a test says so, and every deadline on the way is
//! ticked, as the driver does it.

use super::*;
use crate::config::PlacementPolicy;
use crate::event::{
    Answered, CallId, Change, NodeRegistration, NodeReport, OperationRecord, Rejection, RequestRecord,
    SessionId,
};
use pinfold_domain::{
    Cause, Epoch, Milestone, Millis, NodeState, Phase, Reason, RequestId, Resources, SandboxSpec, Template,
    TemplateId, spec::defaults,
};
use std::collections::{BTreeMap, BTreeSet};

mod anything;
mod assign;
mod bounds;
mod create;
mod fork;
mod liveness;
mod restore;
mod snapshots;
mod stop;
mod suspension;
mod templates;

const GIB: u64 = 1 << 30;

/// Room for `sandboxes` default sandboxes.
fn room(sandboxes: u64) -> Resources {
    let Resources { cpu_millis, memory_bytes, disk_bytes, pids } = defaults::RESOURCES;
    Resources {
        cpu_millis: cpu_millis * sandboxes,
        memory_bytes: memory_bytes * sandboxes,
        disk_bytes: disk_bytes * sandboxes,
        pids: pids * sandboxes,
    }
}

fn spec() -> SandboxSpec {
    SandboxSpec {
        name: String::new(),
        image: defaults::IMAGE.to_owned(),
        kernel: None,
        resources: defaults::RESOURCES,
        labels: BTreeMap::new(),
        environment: BTreeMap::new(),
        ttl: defaults::TTL,
        start_timeout: defaults::START_TIMEOUT,
        node_labels: BTreeMap::new(),
        io_bytes_per_second: None,
        source: pinfold_domain::Source::Image,
    }
}

fn node_id(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn registration(name: &str, session: u64, allocatable: Resources) -> NodeRegistration {
    NodeRegistration {
        id: node_id(name),
        session: SessionId(session),
        version: "test".to_owned(),
        allocatable,
        labels: BTreeMap::new(),
        zone: String::new(),
        images: BTreeSet::from([defaults::IMAGE.to_owned()]),
        kernels: BTreeSet::new(),
        statuses: Vec::new(),
        snapshots: Vec::new(),
        templates: Vec::new(),
    }
}

fn status(sandbox: &Sandbox, sequence: u64, phase: Phase) -> NodeReport {
    NodeReport {
        sandbox_id: sandbox.id,
        epoch: sandbox.epoch,
        sequence,
        phase,
        cause: None,
        milestones: Vec::new(),
        order: sandbox.order,
    }
}

struct Bench {
    engine: Engine,
    config: EngineConfig,
    now: Timestamp,
    /// effects of the last act, all steps of it
    effects: Vec<Effect>,
    calls: u64,
    /// what a store would hold
    stored: BTreeMap<SandboxId, Sandbox>,
    requests: BTreeMap<(String, String), RequestRecord>,
    operations: BTreeMap<(String, String), OperationRecord>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    templates: BTreeMap<TemplateId, Template>,
}

impl Bench {
    fn new() -> Self {
        Self::with(EngineConfig::default())
    }

    fn with(config: EngineConfig) -> Self {
        config.validate().unwrap();
        let config = EngineConfig { check_invariants: true, ..config };
        Self {
            engine: Engine::new(config.clone()),
            config,
            now: Timestamp(1_000_000),
            effects: Vec::new(),
            calls: 0,
            stored: BTreeMap::new(),
            requests: BTreeMap::new(),
            operations: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            templates: BTreeMap::new(),
        }
    }

    /// A fleet of nodes `n0`, `n1`... in sessions 1, 2..., each with room for so many default sandboxes.
    fn fleet(sizes: &[u64]) -> Self {
        let mut bench = Self::new();
        bench.join_all(sizes);
        bench
    }

    fn join_all(&mut self, sizes: &[u64]) {
        for (index, size) in sizes.iter().enumerate() {
            self.join(registration(&format!("n{index}"), index as u64 + 1, room(*size)));
        }
    }

    fn step(&mut self, event: Event) -> &[Effect] {
        self.effects.clear();
        self.step_on(event);
        &self.effects
    }

    fn step_on(&mut self, event: Event) {
        let effects = self.engine.step(self.now, event);
        let first_other =
            effects.iter().position(|e| !matches!(e, Effect::Persist(_))).unwrap_or(effects.len());
        assert!(
            effects[first_other..].iter().all(|e| !matches!(e, Effect::Persist(_))),
            "changes come first"
        );
        for effect in &effects {
            if let Effect::Persist(change) = effect {
                self.store(change.clone());
            }
        }
        self.effects.extend(effects);
    }

    fn store(&mut self, change: Change) {
        let key = |s: &Sandbox| (s.tenant.to_string(), s.request_id.as_str().to_owned());
        match change {
            Change::PutSandbox(sandbox) => {
                self.stored.insert(sandbox.id, *sandbox);
            }
            Change::DeleteSandbox { sandbox } => {
                assert!(self.stored.remove(&sandbox.id).is_some());
            }
            Change::PutRequest(record) => {
                self.requests.insert(key(&record.sandbox), record);
            }
            Change::DropRequest { tenant, request_id } => {
                assert!(
                    self.requests.remove(&(tenant.to_string(), request_id.as_str().to_owned())).is_some()
                );
            }
            Change::PutSnapshot(snapshot) => drop(self.snapshots.insert(snapshot.id, *snapshot)),
            Change::DeleteSnapshot { id } => drop(self.snapshots.remove(&id)),
            Change::PutTemplate(template) => drop(self.templates.insert(template.id, *template)),
            Change::DeleteTemplate { id } => drop(self.templates.remove(&id)),
            Change::PutOperation(record) => {
                let key = (record.tenant.to_string(), record.request_id.as_str().to_owned());
                self.operations.insert(key, *record);
            }
            Change::DropOperation { tenant, request_id } => {
                let key = (tenant.to_string(), request_id.as_str().to_owned());
                assert!(self.operations.remove(&key).is_some());
            }
        }
        assert!(self.stored.values().all(|sandbox| sandbox.revision <= self.engine.revision()));
    }

    /// A new engine from what was stored.
    fn restart(&mut self) {
        let stored = StoredState {
            sandboxes: self.stored.values().cloned().collect(),
            requests: self.requests.values().cloned().collect(),
            operations: self.operations.values().cloned().collect(),
            snapshots: self.snapshots.values().cloned().collect(),
            templates: self.templates.values().cloned().collect(),
            revision: self.engine.revision(),
        };
        self.engine = Engine::restore(self.config.clone(), self.now, stored);
    }

    /// Moves the clock, ticking at each deadline on the way.
    fn advance(&mut self, span: Millis) {
        self.effects.clear();
        let end = self.now.after(span);
        for _ in 0..10_000 {
            match self.engine.next_deadline().filter(|due| *due <= end) {
                Some(due) => {
                    self.now = self.now.max(due);
                    self.step_on(Event::Tick);
                }
                None => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("the engine is always due: {:?}", self.engine.next_deadline());
    }

    /// Moves the clock while the nodes send the same lists over and over.
    fn advance_with_heartbeats(&mut self, span: Millis, lists: &[(&str, u64, Vec<NodeReport>)]) {
        let end = self.now.after(span);
        while self.now < end {
            self.advance(Millis(end.since(self.now).0.min(3_000)));
            for (node, session, statuses) in lists {
                self.heartbeat(node, *session, statuses.clone());
            }
        }
    }

    fn join(&mut self, node: NodeRegistration) -> &[Effect] {
        self.step(Event::NodeJoined { node: Box::new(node) })
    }

    fn heartbeat(&mut self, node: &str, session: u64, statuses: Vec<NodeReport>) -> &[Effect] {
        let (node, session) = (node_id(node), SessionId(session));
        let (snapshots, templates) = (Vec::new(), Vec::new());
        self.step(Event::Heartbeat { node, session, statuses, snapshots, templates })
    }

    fn report(&mut self, node: &str, session: u64, status: NodeReport) -> &[Effect] {
        self.step(Event::Report { node: node_id(node), session: SessionId(session), status })
    }

    /// A refusal that counts as an attempt.
    fn refuse(&mut self, node: &str, session: u64, sandbox: &Sandbox, message: &str) -> &[Effect] {
        self.refuse_for(Reason::ImageUnknown, node, session, sandbox, message)
    }

    fn refuse_for(
        &mut self,
        reason: Reason,
        node: &str,
        session: u64,
        sandbox: &Sandbox,
        message: &str,
    ) -> &[Effect] {
        let cause = Cause::new(reason, message);
        let (node, session) = (node_id(node), SessionId(session));
        self.step(Event::Refused { node, session, sandbox_id: sandbox.id, epoch: sandbox.epoch, cause })
    }

    fn call(&mut self) -> CallId {
        self.calls += 1;
        CallId(self.calls)
    }

    fn answer(&self, wanted: CallId) -> Result<Sandbox, Rejection> {
        self.answered(wanted).map(|answered| match answered {
            Answered::Sandbox(sandbox) => *sandbox,
            other => panic!("not a sandbox: {other:?}"),
        })
    }

    fn answered(&self, wanted: CallId) -> Result<Answered, Rejection> {
        let mut answers = self.effects.iter().filter_map(|effect| match effect {
            Effect::Answer { call, result } => Some((call, result)),
            _ => None,
        });
        let (call, result) = answers.next().expect("an answer");
        assert_eq!((*call, answers.next()), (wanted, None));
        result.clone()
    }

    fn try_create(&mut self, request: &str, spec: SandboxSpec) -> Result<Sandbox, Rejection> {
        let call = self.call();
        let sandbox_id = SandboxId(uuid(self.calls));
        let request_id: RequestId = request.parse().unwrap();
        let spec = Box::new(spec);
        self.step(Event::Create { call, tenant: Default::default(), request_id, sandbox_id, spec });
        self.answer(call)
    }

    fn create(&mut self, request: &str) -> Sandbox {
        self.try_create(request, spec()).unwrap()
    }

    fn stop(&mut self, sandbox: &Sandbox) -> Result<Sandbox, Rejection> {
        let (call, request_id, sandbox_id) = (self.call(), "r".parse().unwrap(), sandbox.id);
        self.step(Event::Stop { call, request_id, sandbox_id, grace: Millis(1_500) });
        self.answer(call)
    }

    fn delete(&mut self, sandbox: &Sandbox) -> Result<Sandbox, Rejection> {
        let (call, request_id, sandbox_id) = (self.call(), "r".parse().unwrap(), sandbox.id);
        self.step(Event::Delete { call, request_id, sandbox_id });
        self.answer(call)
    }

    /// A sandbox that runs on the first node that takes it.
    fn running(&mut self, request: &str) -> Sandbox {
        let sandbox = self.create(request);
        let node = sandbox.node.clone().expect("placed at once");
        let session = self.session(&node);
        self.report(node.as_str(), session, status(&sandbox, 1, Phase::Starting));
        self.report(node.as_str(), session, status(&sandbox, 2, Phase::Running));
        self.get(&sandbox)
    }

    fn session(&self, node: &NodeId) -> u64 {
        self.engine.state.cluster.get(node).and_then(|entry| entry.session).expect("a session").0
    }

    fn get(&self, sandbox: &Sandbox) -> Sandbox {
        self.engine.sandbox(sandbox.id).expect("kept").clone()
    }

    fn phase(&self, sandbox: &Sandbox) -> Phase {
        self.get(sandbox).phase
    }

    fn reason(&self, sandbox: &Sandbox) -> Reason {
        self.get(sandbox).cause.expect("a cause").reason
    }

    fn state(&self, node: &str) -> NodeState {
        self.engine.node(&node_id(node)).expect("known").state
    }

    fn writes(&self) -> usize {
        self.effects.iter().filter(|e| matches!(e, Effect::Persist(_))).count()
    }

    fn stops(&self) -> Vec<(SandboxId, Epoch, Reason, Millis)> {
        let stop = |effect: &Effect| match effect {
            Effect::StopOnNode { sandbox_id, epoch, cause, grace, .. } => {
                Some((*sandbox_id, *epoch, cause.reason, *grace))
            }
            _ => None,
        };
        self.effects.iter().filter_map(stop).collect()
    }

    fn assigns(&self) -> Vec<(String, u64, Sandbox)> {
        let assign = |effect: &Effect| match effect {
            Effect::Assign { node, session, sandbox, .. } => {
                Some((node.to_string(), session.0, (**sandbox).clone()))
            }
            _ => None,
        };
        self.effects.iter().filter_map(assign).collect()
    }

    fn forgets(&self) -> Vec<(SandboxId, Epoch)> {
        let forget = |effect: &Effect| match effect {
            Effect::Forget { sandbox_id, epoch, .. } => Some((*sandbox_id, *epoch)),
            _ => None,
        };
        self.effects.iter().filter_map(forget).collect()
    }

    fn closed(&self) -> Vec<u64> {
        let closed = |effect: &Effect| match effect {
            Effect::CloseSession { session, .. } => Some(session.0),
            _ => None,
        };
        self.effects.iter().filter_map(closed).collect()
    }
}

/// Ids that sort by `number`, as UUIDs of version 7 sort by time.
fn uuid(number: u64) -> uuid::Uuid {
    uuid::Uuid::from_u128(u128::from(number))
}
