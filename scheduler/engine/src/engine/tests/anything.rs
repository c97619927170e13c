//! Events in any order, true or not: a node may say anything, time may go anywhere. The invariants hold after every step
//! (the bench checks them), every call is answered once, and a restart at any point finds the same state.

mod act;

use super::*;
use crate::event::{ForkRequest, ForkSource};
use act::{Act, Of, Said, SavedSaid, acts};
use pinfold_domain::{Preparation, SnapshotReport, SnapshotState, Source, TemplateReport};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

struct Anything {
    bench: Bench,
    /// ids in the order in which they were accepted
    sandboxes: Vec<SandboxId>,
    snapshots: Vec<SnapshotId>,
    templates: Vec<TemplateId>,
}

impl Anything {
    /// One that was accepted, if there is any.
    fn known(&self, index: u8) -> SandboxId {
        let index = usize::from(index).checked_rem(self.sandboxes.len());
        index.map_or(SandboxId(uuid(u64::MAX)), |index| self.sandboxes[index])
    }

    fn snapshot(&self, index: u8) -> SnapshotId {
        self.snapshots.get(usize::from(index)).copied().unwrap_or(SnapshotId(uuid(u64::MAX)))
    }

    fn template(&self, index: u8) -> TemplateId {
        self.templates.get(usize::from(index)).copied().unwrap_or(TemplateId(uuid(u64::MAX)))
    }

    fn snapshot_report(&self, index: u8, state: SnapshotState) -> SnapshotReport {
        SnapshotReport { snapshot_id: self.snapshot(index), state, cause: None, sizes: Default::default() }
    }

    fn template_report(&self, index: u8, preparation: Preparation) -> TemplateReport {
        let (template_id, sizes) = (self.template(index), Default::default());
        TemplateReport { template_id, preparation, cause: None, sizes }
    }

    fn saved(&self, said: Vec<SavedSaid>) -> (Vec<SnapshotReport>, Vec<TemplateReport>) {
        let (mut snapshots, mut templates) = (Vec::new(), Vec::new());
        for said in said {
            match said {
                SavedSaid::Snapshot(id, state) => snapshots.push(self.snapshot_report(id, state)),
                SavedSaid::Template(id, preparation) => templates.push(self.template_report(id, preparation)),
            }
        }
        (snapshots, templates)
    }

    /// A list that carries every sandbox of the node one step further, as a node that works does.
    fn truth(&self, node: &NodeId) -> Vec<NodeReport> {
        let here =
            self.bench.engine.sandboxes().filter(|s| s.phase.holds_room() && s.node.as_ref() == Some(node));
        let next = |phase| match phase {
            Phase::Assigned => Phase::Starting,
            Phase::Pausing => Phase::Paused,
            Phase::Stopping => Phase::Stopped,
            Phase::Paused => Phase::Paused,
            _ => Phase::Running,
        };
        here.map(|sandbox| {
            status(sandbox, 10 + self.bench.now.0 + u64::from(sandbox.phase as u8), next(sandbox.phase))
        })
        .collect()
    }

    fn source(&self, of: Of) -> Source {
        match of {
            Of::Nothing | Of::Sandbox(_) => Source::Image,
            Of::Snapshot(index) => Source::Snapshot(self.snapshot(index)),
            Of::Template(name) => Source::Template(format!("t{name}")),
        }
    }

    /// Calls about saved machines.
    fn saving_call(&self, call: CallId, act: &Act) -> Option<Event> {
        let tenant = Default::default();
        // some are those of creates
        let prefix = |request: u8| if request < 4 { "r" } else { "s" };
        let id = |request: &u8| -> RequestId { format!("{}{request}", prefix(*request)).parse().unwrap() };
        Some(match act {
            Act::Pause { request, sandbox } => {
                Event::Pause { call, request_id: id(request), sandbox_id: self.known(*sandbox) }
            }
            Act::Resume { request, sandbox } => {
                Event::Resume { call, request_id: id(request), sandbox_id: self.known(*sandbox) }
            }
            Act::Fork { request, of, count } => {
                let source = match of {
                    Of::Snapshot(index) => ForkSource::Snapshot(self.snapshot(*index)),
                    Of::Sandbox(index) | Of::Template(index) => ForkSource::Sandbox(self.known(*index)),
                    Of::Nothing => ForkSource::Sandbox(self.known(0)),
                };
                let fork = ForkRequest {
                    tenant,
                    request_id: id(request),
                    source,
                    sandbox_ids: (0..u64::from(*count))
                        .map(|n| SandboxId(uuid(call.0 * 1_000 + n)))
                        .collect(),
                    snapshot_id: SnapshotId(uuid(call.0)),
                    name: String::new(),
                    labels: BTreeMap::new(),
                    ttl: None,
                };
                Event::Fork { call, fork: Box::new(fork) }
            }
            Act::Snapshot { request, sandbox } => Event::CreateSnapshot {
                call,
                tenant,
                request_id: id(request),
                snapshot_id: SnapshotId(uuid(call.0)),
                sandbox_id: self.known(*sandbox),
                name: String::new(),
            },
            Act::DropSnapshot { request, snapshot } => {
                let snapshot_id = self.snapshot(*snapshot);
                Event::DeleteSnapshot { call, tenant, request_id: id(request), snapshot_id }
            }
            Act::Template { request, name, size } => Event::CreateTemplate {
                call,
                template: Box::new(Template {
                    id: TemplateId(uuid(call.0)),
                    tenant,
                    request_id: id(request),
                    name: format!("t{name}"),
                    image: defaults::IMAGE.to_owned(),
                    kernel: None,
                    resources: room(*size),
                    environment: BTreeMap::new(),
                    created_at: Timestamp(0),
                }),
            },
            Act::DropTemplate { request, name } => {
                Event::DeleteTemplate { call, tenant, request_id: id(request), name: format!("t{name}") }
            }
            _ => return None,
        })
    }

    /// Remembers what there is to be spoken of.
    fn note(&mut self, answered: Result<Answered, Rejection>) {
        let (sandboxes, snapshot, template) = match answered {
            Ok(Answered::Sandbox(sandbox)) => (vec![sandbox.id], None, None),
            Ok(Answered::Forks { sandboxes, snapshot_id }) => {
                (sandboxes.iter().map(|sandbox| sandbox.id).collect(), Some(snapshot_id), None)
            }
            Ok(Answered::Snapshot(snapshot)) => (Vec::new(), Some(snapshot.id), None),
            Ok(Answered::Template(template)) => (Vec::new(), None, Some(template.id)),
            Err(_) => return,
        };
        let add = sandboxes.into_iter().filter(|id| !self.sandboxes.contains(id)).collect::<Vec<_>>();
        self.sandboxes.extend(add);
        self.snapshots.extend(snapshot.filter(|id| !self.snapshots.contains(id)));
        self.templates.extend(template.filter(|id| !self.templates.contains(id)));
    }

    fn id(&self, index: u8) -> SandboxId {
        self.sandboxes.get(usize::from(index)).copied().unwrap_or(SandboxId(uuid(u64::MAX)))
    }

    fn report(&self, said: Said) -> NodeReport {
        NodeReport {
            sandbox_id: self.id(said.sandbox),
            epoch: Epoch(said.epoch),
            sequence: said.sequence,
            phase: said.phase,
            cause: said.with_cause.then(|| Cause::new(Reason::GuestPanic, "so it says")),
            milestones: Milestone::ALL.map(|milestone| (milestone, said.since_us)).to_vec(),
            order: said.order,
        }
    }

    fn node(index: u8) -> NodeId {
        node_id(&format!("n{index}"))
    }

    fn event(&self, act: Act) -> Event {
        match act {
            Act::Join { node, session, size, list, saved } => {
                let mut registration = registration(&format!("n{node}"), session, room(size));
                registration.statuses = list.into_iter().map(|said| self.report(said)).collect();
                (registration.snapshots, registration.templates) = self.saved(saved);
                Event::NodeJoined { node: Box::new(registration) }
            }
            Act::Heartbeat { node, session, list, saved } => {
                let statuses = list.into_iter().map(|said| self.report(said)).collect();
                let (node, session) = (Self::node(node), SessionId(session));
                let (snapshots, templates) = self.saved(saved);
                Event::Heartbeat { node, session, statuses, snapshots, templates }
            }
            Act::Truth { node, session, saved } => {
                let (node, session) = (Self::node(node), SessionId(session));
                let session =
                    self.bench.engine.state.cluster.get(&node).and_then(|e| e.session).unwrap_or(session);
                let (snapshots, templates) = self.saved(saved);
                let statuses = self.truth(&node);
                Event::Heartbeat { node, session, statuses, snapshots, templates }
            }
            Act::Saved { node, session, said } => {
                let (node, session) = (Self::node(node), SessionId(session));
                match said {
                    SavedSaid::Snapshot(id, state) => {
                        Event::SnapshotReported { node, session, status: self.snapshot_report(id, state) }
                    }
                    SavedSaid::Template(id, preparation) => {
                        let status = self.template_report(id, preparation);
                        Event::TemplateReported { node, session, status }
                    }
                }
            }
            Act::Report { node, session, said } => {
                let status = self.report(said);
                Event::Report { node: Self::node(node), session: SessionId(session), status }
            }
            Act::Refuse { node, session, sandbox, epoch } => {
                let (node, session, sandbox_id) = (Self::node(node), SessionId(session), self.id(sandbox));
                let cause = Cause::new(Reason::HostResources, "so it says");
                Event::Refused { node, session, sandbox_id, epoch: Epoch(epoch), cause }
            }
            Act::Gone { node, session } => {
                Event::NodeGone { node: Self::node(node), session: SessionId(session) }
            }
            Act::FirstByte { sandbox, epoch } => {
                Event::FirstByte { sandbox_id: self.id(sandbox), epoch: Epoch(epoch) }
            }
            _ => Event::Tick,
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Create { request, size, ttl_secs, of } => {
                let (resources, ttl) = (room(size), Millis::from_secs(ttl_secs));
                let wanted = SandboxSpec { resources, ttl, source: self.source(of), ..spec() };
                if let Ok(sandbox) = self.bench.try_create(&format!("r{request}"), wanted)
                    && !self.sandboxes.contains(&sandbox.id)
                {
                    self.sandboxes.push(sandbox.id);
                }
            }
            Act::Stop(index) | Act::Delete(index) => {
                let (call, sandbox_id) = (self.bench.call(), self.id(index));
                let request_id = "r".parse().unwrap();
                let event = match act {
                    Act::Stop(_) => Event::Stop { call, request_id, sandbox_id, grace: Millis(7) },
                    _ => Event::Delete { call, request_id, sandbox_id },
                };
                self.bench.step(event);
                let _ = self.bench.answer(call);
            }
            Act::Advance(ms) => self.bench.advance(Millis(ms)),
            Act::Jump(ms) => {
                self.bench.now = Timestamp(self.bench.now.0.saturating_add_signed(ms));
                self.bench.step(Event::Tick);
            }
            Act::Restart => {
                self.bench.restart();
                let engine = &self.bench.engine;
                let stored: Vec<_> = self.bench.stored.values().cloned().collect();
                assert_eq!(engine.sandboxes().cloned().collect::<Vec<_>>(), stored);
            }
            other => {
                let call = self.bench.call();
                match self.saving_call(call, &other) {
                    Some(event) => {
                        self.bench.step(event);
                        let answered = self.bench.answered(call);
                        self.note(answered);
                    }
                    None => {
                        let event = self.event(other);
                        self.bench.step(event);
                    }
                }
            }
        }
    }
}

impl Anything {
    fn new() -> Self {
        let config = EngineConfig {
            queue_length: 4,
            ended_sandboxes: 3,
            remembered_requests: 2,
            snapshots: 4,
            ended_snapshots: 2,
            templates: 3,
            templates_per_node: 2,
            work_per_step: 4,
            lost_after: Millis::from_secs(60),
            ..EngineConfig::default()
        };
        let (sandboxes, snapshots, templates) = Default::default();
        Self { bench: Bench::with(config), sandboxes, snapshots, templates }
    }
}

proptest! {
    #[test]
    fn nothing_that_is_said_breaks_it(acts in acts()) {
        let mut anything = Anything::new();
        for act in acts {
            anything.act(act);
            let stored: Vec<_> = anything.bench.stored.values().cloned().collect();
            let held: Vec<_> = anything.bench.engine.sandboxes().cloned().collect();
            prop_assert_eq!(stored, held, "what is held is what is stored");
            let stored: Vec<_> = anything.bench.snapshots.values().cloned().collect();
            let held: Vec<_> = anything.bench.engine.snapshots().cloned().collect();
            prop_assert_eq!(stored, held, "of snapshots too");
        }
    }
}

/// What is never reached is not tested.
#[test]
fn what_is_said_reaches_every_phase_and_state() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut phases, mut states, mut prepared, mut forks) = (BTreeSet::new(), BTreeSet::new(), 0, 0);
    for _ in 0..200 {
        let mut anything = Anything::new();
        for act in acts().new_tree(&mut runner).expect("a list of acts").current() {
            let is_fork = matches!(act, Act::Fork { .. });
            let before = anything.sandboxes.len();
            anything.act(act);
            forks += if is_fork { anything.sandboxes.len() - before } else { 0 };
            let engine = &anything.bench.engine;
            phases.extend(engine.sandboxes().map(|sandbox| sandbox.phase));
            states.extend(engine.snapshots().map(|snapshot| snapshot.state));
            let of_fleet = engine.templates(&Default::default(), None, 9);
            prepared += of_fleet.iter().map(|status| status.prepared).sum::<u32>();
        }
    }
    assert_eq!(phases, BTreeSet::from(Phase::ALL));
    assert_eq!(states, BTreeSet::from(SnapshotState::ALL));
    assert!(prepared > 0 && forks > 0, "{prepared} prepared templates, {forks} forks");
}
