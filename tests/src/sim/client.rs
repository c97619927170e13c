//! Callers: each asks for one sandbox, may repeat itself, and may stop or delete what it got. A call that a crash swallowed
//! is made again, as a real caller would.

use super::rng::Rng;
use pinfold_domain::{
    Millis, Phase, Reason, RequestId, Resources, SandboxId, SandboxSpec, SnapshotId, Source, spec::defaults,
};
use pinfold_engine::{Answered, CallId, Event, Rejection};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Create,
    /// the same request id with another spec
    Conflict,
    Stop,
    Delete,
    /// numbered: the same number is the same request
    Pause(u64),
    Resume(u64),
    Snapshot(u64),
    Fork(u64),
    DropSnapshot(SnapshotId),
    StopFork(SandboxId),
    Template(u64),
    DropTemplate(u64),
}

#[derive(Debug, Clone, Copy)]
pub struct Op {
    pub client: usize,
    pub act: Act,
}

#[derive(Debug)]
pub struct Client {
    pub request_id: RequestId,
    pub spec: SandboxSpec,
    pub sandbox: Option<SandboxId>,
    pub rejected: Option<Reason>,
    pub asked_to_stop: bool,
    pub asked_to_delete: bool,
    /// the delete was acknowledged
    pub deleted: bool,
    pub snapshots: BTreeSet<SnapshotId>,
    /// what each fork was answered with
    pub forks: BTreeMap<u64, Vec<SandboxId>>,
}

#[derive(Debug, Default)]
pub struct Clients {
    pub all: Vec<Client>,
    /// calls without an answer
    pub open: BTreeMap<CallId, Op>,
    pub(super) calls: u64,
    /// forks that somebody asked to stop
    pub stopped_forks: BTreeSet<SandboxId>,
}

/// Templates that clients make and use.
pub const TEMPLATES: u64 = 3;

pub fn template_name(number: u64) -> String {
    format!("t{}", number % TEMPLATES)
}

pub const UNIT: Resources =
    Resources { cpu_millis: 500, memory_bytes: 128 << 20, disk_bytes: 256 << 20, pids: 64 };

/// `count` times [`UNIT`].
pub fn units(count: u64) -> Resources {
    Resources {
        cpu_millis: UNIT.cpu_millis * count,
        memory_bytes: UNIT.memory_bytes * count,
        disk_bytes: UNIT.disk_bytes * count,
        pids: UNIT.pids * count,
    }
}

impl Clients {
    /// `count` clients; `largest` is the size of the largest node in units.
    pub fn new(count: usize, largest: u64, rng: &mut Rng) -> Self {
        let all = (0..count).map(|index| Client::new(index, largest, rng)).collect();
        Self { all, ..Self::default() }
    }

    /// The event of `op`; `None` when it has become pointless.
    pub fn call(&mut self, op: Op) -> Option<Event> {
        self.calls += 1;
        let call = CallId(self.calls);
        let client = self.all.get_mut(op.client)?;
        let request_id = client.request_id.clone();
        let grace = Millis(1_000);
        let event = match op.act {
            Act::Create | Act::Conflict => {
                // ids rise with time, as UUIDs of version 7 do
                let sandbox_id = SandboxId(Uuid::from_u128(u128::from(self.calls)));
                let mut spec = Box::new(client.spec.clone());
                if op.act == Act::Conflict {
                    spec.name = "other".to_owned();
                }
                Event::Create { call, tenant: Default::default(), request_id, sandbox_id, spec }
            }
            Act::Stop => {
                client.asked_to_stop = true;
                Event::Stop { call, request_id, sandbox_id: client.sandbox?, grace }
            }
            Act::Delete => {
                client.asked_to_delete = true;
                Event::Delete { call, request_id, sandbox_id: client.sandbox? }
            }
            saving => self.saving_event(call, op.client, saving)?,
        };
        self.open.insert(call, op);
        Some(event)
    }

    /// Checks an answer against what was asked. True when this client was accepted for the first time.
    pub fn answered(
        &mut self,
        call: CallId,
        result: &Result<Answered, Rejection>,
    ) -> Result<Option<usize>, String> {
        let op =
            self.open.remove(&call).ok_or_else(|| format!("{call:?} was answered twice, or never made"))?;
        if let Act::Pause(_)
        | Act::Resume(_)
        | Act::Snapshot(_)
        | Act::Fork(_)
        | Act::DropSnapshot(_)
        | Act::Template(_)
        | Act::DropTemplate(_) = op.act
        {
            return self.saving_answer(op.client, op.act, result).map(|()| None);
        }
        let client = &mut self.all[op.client];
        match (op.act, result) {
            (Act::Create, Ok(Answered::Sandbox(sandbox))) => {
                if !sandbox.spec.is_same_request(&client.spec) || sandbox.request_id != client.request_id {
                    return Err(format!("client {} got another's sandbox {}", op.client, sandbox.id));
                }
                let first = client.sandbox.is_none();
                if *client.sandbox.get_or_insert(sandbox.id) != sandbox.id {
                    return Err(format!("client {} got two sandboxes for one request", op.client));
                }
                return Ok(first.then_some(op.client));
            }
            (Act::Create, Err(rejection)) => match rejection.cause.reason {
                reason @ (Reason::QueueFull
                | Reason::Unplaceable
                | Reason::ImageUnknown
                | Reason::TemplateNotFound)
                    if client.sandbox.is_none() =>
                {
                    client.rejected = Some(reason);
                }
                reason => return Err(format!("a create was rejected with {reason:?}")),
            },
            (Act::Conflict, Err(rejection)) if rejection.cause.reason == Reason::RequestIdConflict => {}
            (Act::Conflict, other) => return Err(format!("a conflict was answered with {other:?}")),
            (Act::Stop | Act::StopFork(_), Ok(Answered::Sandbox(sandbox))) => {
                if !sandbox.phase.is_final() && sandbox.phase != Phase::Stopping {
                    return Err(format!("after a stop {} is {}", sandbox.id, sandbox.phase));
                }
            }
            (Act::Stop | Act::StopFork(_), Err(rejection))
                if rejection.cause.reason == Reason::SandboxNotFound => {}
            (Act::Delete, Ok(_)) => client.deleted = true,
            (act, other) => return Err(format!("{act:?} was answered with {other:?}")),
        }
        Ok(None)
    }

    pub fn of(&self, id: SandboxId) -> Option<&Client> {
        self.all.iter().find(|client| client.sandbox == Some(id))
    }

    /// All that was ever forked.
    pub fn forks(&self) -> impl Iterator<Item = SandboxId> {
        self.all.iter().flat_map(|client| client.forks.values().flatten().copied())
    }
}

impl Client {
    fn new(index: usize, largest: u64, rng: &mut Rng) -> Self {
        let size = if rng.percent(5) { largest + 1 } else { rng.between((1, largest.min(3))) };
        let ttl = if rng.percent(30) { rng.between((5, 120)) } else { 3_600 };
        let image = if rng.percent(15) { "rare" } else { defaults::IMAGE };
        Self {
            request_id: format!("client-{index}").parse().expect("printable ASCII without space"),
            spec: SandboxSpec {
                name: String::new(),
                image: image.to_owned(),
                kernel: None,
                resources: units(size),
                labels: BTreeMap::new(),
                environment: BTreeMap::new(),
                ttl: Millis::from_secs(ttl),
                start_timeout: Millis::from_secs(5),
                node_labels: BTreeMap::new(),
                io_bytes_per_second: None,
                source: match rng.percent(20) {
                    true => Source::Template(template_name(rng.below(TEMPLATES))),
                    false => Source::Image,
                },
            },
            sandbox: None,
            rejected: None,
            asked_to_stop: false,
            asked_to_delete: false,
            deleted: false,
            snapshots: BTreeSet::new(),
            forks: BTreeMap::new(),
        }
    }
}
