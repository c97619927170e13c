//! Events in any order, true or not: a node may say anything, time may go anywhere. The invariants hold after every step
//! (the bench checks them), every call is answered once, and a restart at any point finds the same state.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Act {
    Create { request: u8, size: u64, ttl_secs: u64 },
    Stop(u8),
    Delete(u8),
    Join { node: u8, session: u64, size: u64, list: Vec<Said> },
    Heartbeat { node: u8, session: u64, list: Vec<Said> },
    Report { node: u8, session: u64, said: Said },
    Refuse { node: u8, session: u64, sandbox: u8, epoch: u64 },
    Gone { node: u8, session: u64 },
    FirstByte { sandbox: u8, epoch: u64 },
    Advance(u64),
    Jump(i64),
    Restart,
}

/// What a node says of the sandbox that was created as the so-manieth.
#[derive(Debug, Clone)]
struct Said {
    sandbox: u8,
    epoch: u64,
    sequence: u64,
    phase: Phase,
    with_cause: bool,
    since_us: u64,
}

fn said() -> impl Strategy<Value = Said> {
    let since = prop_oneof![0..2_000_000_u64, Just(u64::MAX)];
    let phase = prop::sample::select(Phase::ALL.to_vec());
    let sequence = prop_oneof![0..6_u64, Just(u64::MAX)];
    let epoch = prop_oneof![5 => 0..4_u64, 1 => Just(u64::MAX)];
    (0..12_u8, epoch, sequence, phase, any::<bool>(), since).prop_map(
        |(sandbox, epoch, sequence, phase, with_cause, since_us)| Said {
            sandbox,
            epoch,
            sequence,
            phase,
            with_cause,
            since_us,
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    let (node, session) = (0..3_u8, 0..6_u64);
    let list = || prop::collection::vec(said(), 0..5);
    let size = prop_oneof![8 => 0..5_u64, 1 => Just(1_000_000)];
    prop_oneof![
        6 => (0..8_u8, 1..4_u64, prop_oneof![Just(3_600), 1..60_u64])
            .prop_map(|(request, size, ttl_secs)| Act::Create { request, size, ttl_secs }),
        2 => (0..12_u8).prop_map(Act::Stop),
        2 => (0..12_u8).prop_map(Act::Delete),
        3 => (node.clone(), session.clone(), size, list())
            .prop_map(|(node, session, size, list)| Act::Join { node, session, size, list }),
        4 => (node.clone(), session.clone(), list())
            .prop_map(|(node, session, list)| Act::Heartbeat { node, session, list }),
        8 => (node.clone(), session.clone(), said())
            .prop_map(|(node, session, said)| Act::Report { node, session, said }),
        2 => (node.clone(), session.clone(), 0..12_u8, 0..4_u64)
            .prop_map(|(node, session, sandbox, epoch)| Act::Refuse { node, session, sandbox, epoch }),
        1 => (node, session).prop_map(|(node, session)| Act::Gone { node, session }),
        1 => (0..12_u8, 0..4_u64).prop_map(|(sandbox, epoch)| Act::FirstByte { sandbox, epoch }),
        3 => (0..400_000_u64).prop_map(Act::Advance),
        1 => (-100_000..1_000_000_i64).prop_map(Act::Jump),
        1 => Just(Act::Restart),
    ]
}

struct Anything {
    bench: Bench,
    /// ids in the order in which they were accepted
    sandboxes: Vec<SandboxId>,
}

impl Anything {
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
            order: 0,
        }
    }

    fn node(index: u8) -> NodeId {
        node_id(&format!("n{index}"))
    }

    fn event(&self, act: Act) -> Event {
        match act {
            Act::Join { node, session, size, list } => {
                let mut registration = registration(&format!("n{node}"), session, room(size));
                registration.statuses = list.into_iter().map(|said| self.report(said)).collect();
                Event::NodeJoined { node: Box::new(registration) }
            }
            Act::Heartbeat { node, session, list } => {
                let statuses = list.into_iter().map(|said| self.report(said)).collect();
                Event::Heartbeat {
                    node: Self::node(node),
                    session: SessionId(session),
                    statuses,
                    snapshots: Vec::new(),
                    templates: Vec::new(),
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
            Act::Create { request, size, ttl_secs } => {
                let wanted =
                    SandboxSpec { resources: room(size), ttl: Millis::from_secs(ttl_secs), ..spec() };
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
                let event = self.event(other);
                self.bench.step(event);
            }
        }
    }
}

proptest! {
    #[test]
    fn nothing_that_is_said_breaks_it(acts in prop::collection::vec(act(), 0..120)) {
        let config = EngineConfig {
            queue_length: 4,
            ended_sandboxes: 3,
            remembered_requests: 2,
            work_per_step: 4,
            lost_after: Millis::from_secs(60),
            ..EngineConfig::default()
        };
        let mut anything = Anything { bench: Bench::with(config), sandboxes: Vec::new() };
        for act in acts {
            anything.act(act);
            let stored: Vec<_> = anything.bench.stored.values().cloned().collect();
            let held: Vec<_> = anything.bench.engine.sandboxes().cloned().collect();
            prop_assert_eq!(stored, held, "what is held is what is stored");
        }
    }
}
