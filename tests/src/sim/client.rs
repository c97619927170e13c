//! Callers: each asks for one sandbox, may repeat itself, and may stop or delete what it got. A call that a crash swallowed
//! is made again, as a real caller would.

use super::rng::Rng;
use pinfold_domain::{
    Millis, Phase, Reason, RequestId, Resources, Sandbox, SandboxId, SandboxSpec, spec::defaults,
};
use pinfold_engine::{CallId, Event, Rejection};
use std::collections::BTreeMap;
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Create,
    /// the same request id with another spec
    Conflict,
    Stop,
    Delete,
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
}

#[derive(Debug, Default)]
pub struct Clients {
    pub all: Vec<Client>,
    /// calls without an answer
    pub open: BTreeMap<CallId, Op>,
    calls: u64,
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
        };
        self.open.insert(call, op);
        Some(event)
    }

    /// Checks an answer against what was asked. True when this client was accepted for the first time.
    pub fn answered(
        &mut self,
        call: CallId,
        result: &Result<Box<Sandbox>, Rejection>,
    ) -> Result<Option<usize>, String> {
        let op =
            self.open.remove(&call).ok_or_else(|| format!("{call:?} was answered twice, or never made"))?;
        let client = &mut self.all[op.client];
        match (op.act, result) {
            (Act::Create, Ok(sandbox)) => {
                if sandbox.spec != client.spec || sandbox.request_id != client.request_id {
                    return Err(format!("client {} got another's sandbox {}", op.client, sandbox.id));
                }
                let first = client.sandbox.is_none();
                if *client.sandbox.get_or_insert(sandbox.id) != sandbox.id {
                    return Err(format!("client {} got two sandboxes for one request", op.client));
                }
                return Ok(first.then_some(op.client));
            }
            (Act::Create, Err(rejection)) => match rejection.cause.reason {
                reason @ (Reason::QueueFull | Reason::Unplaceable | Reason::ImageUnknown)
                    if client.sandbox.is_none() =>
                {
                    client.rejected = Some(reason);
                }
                reason => return Err(format!("a create was rejected with {reason:?}")),
            },
            (Act::Conflict, Err(rejection)) if rejection.cause.reason == Reason::RequestIdConflict => {}
            (Act::Conflict, other) => return Err(format!("a conflict was answered with {other:?}")),
            (Act::Stop, Ok(sandbox)) => {
                if !sandbox.phase.is_final() && sandbox.phase != Phase::Stopping {
                    return Err(format!("after a stop {} is {}", sandbox.id, sandbox.phase));
                }
            }
            (Act::Stop, Err(rejection)) if rejection.cause.reason == Reason::SandboxNotFound => {}
            (Act::Delete, Ok(_)) => client.deleted = true,
            (act, Err(rejection)) => return Err(format!("{act:?} was rejected: {:?}", rejection.cause)),
        }
        Ok(None)
    }

    pub fn of(&self, id: SandboxId) -> Option<&Client> {
        self.all.iter().find(|client| client.sandbox == Some(id))
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
                source: pinfold_domain::Source::Image,
            },
            sandbox: None,
            rejected: None,
            asked_to_stop: false,
            asked_to_delete: false,
            deleted: false,
        }
    }
}
