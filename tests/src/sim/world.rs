//! The world: what happens next, in virtual time.

use super::check::{self, Ledger};
use super::client::{Act, Clients, Op, units};
use super::driver::Driver;
use super::network::{Direction, Link};
use super::node::{Command, Habits, Message, Outcome, SimNode, Work};
use super::rng::Rng;
use super::trace::{Happening, Trace};
use pinfold_domain::{Millis, NodeId, Phase, Reason, Resources, Timestamp};
use pinfold_engine::{Answered, Effect, EngineConfig, Event, NodeRegistration, PlacementPolicy, SessionId};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

mod calls;
mod faults;

/// How hard life is in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// no fault at all: nothing may fail or be refused
    Calm,
    Stormy,
}

/// What a run has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    pub steps: u64,
    pub accepted: usize,
    pub rejected: usize,
    pub faults: u64,
    pub ends: BTreeMap<Reason, u64>,
    /// how often a sandbox was stored in each phase
    pub phases: BTreeMap<Phase, u64>,
    /// sandboxes that came from forks
    pub forks: usize,
    pub digest: Option<u64>,
}

#[derive(Debug)]
enum Next {
    Register { session: SessionId, registration: Box<NodeRegistration> },
    ToScheduler { session: SessionId, message: Message },
    ToNode { session: SessionId, command: Command },
    SchedulerHearsEnd { session: SessionId },
    NodeHearsEnd { session: SessionId },
    Beat { node: usize, session: SessionId },
    Dial { node: usize },
    Boot { node: usize },
    Work { node: usize, life: u64, work: Work },
    Call(Op),
    Commit { life: u64 },
    SchedulerStarts,
    Fault,
}

#[derive(Debug)]
struct Host {
    sim: SimNode,
    up: bool,
    /// counts boots: work of an earlier life is not done
    life: u64,
    session: Option<SessionId>,
    cut_until: Timestamp,
    /// when the engine heard of it, or started to wait for it
    heard: Vec<Timestamp>,
    /// the newest session that registered: what older ones say is not heard
    registered: Option<SessionId>,
}

impl Host {
    fn new(index: usize, size: u64, stormy: bool, rng: &mut Rng) -> Self {
        let mut images = BTreeSet::from(["base".to_owned()]);
        if rng.percent(50) {
            images.insert("rare".to_owned());
        }
        let id = format!("n{index}").parse().expect("a DNS label");
        let habits = if stormy { faults::habits(rng) } else { faults::GOOD_HABITS };
        Self {
            sim: SimNode::new(id, with_room_to_save(units(size)), images, habits),
            up: true,
            life: 1,
            session: None,
            cut_until: START,
            heard: vec![START],
            registered: None,
        }
    }
}

/// Half as much disk again: some pauses find no room.
fn with_room_to_save(resources: Resources) -> Resources {
    Resources { disk_bytes: resources.disk_bytes / 2 * 3, ..resources }
}

pub(super) struct World {
    rng: Rng,
    now: Timestamp,
    queue: BTreeMap<(Timestamp, u64), Next>,
    sequence: u64,
    driver: Driver,
    config: EngineConfig,
    hosts: Vec<Host>,
    links: BTreeMap<SessionId, Link>,
    sessions: u64,
    clients: Clients,
    ledger: Ledger,
    trace: Trace,
    outlook: Outlook,
    /// faults may happen
    stormy: bool,
    faults: u64,
    fault_every_ms: u64,
    /// the scheduler's process stands still until then
    stalled_until: Timestamp,
}

const START: Timestamp = Timestamp(1_000_000);
const STORM: Millis = Millis::from_secs(240);
const HEAL: Millis = Millis::from_secs(120);
const REST: Millis = Millis::from_secs(240);
const HEARTBEAT_MS: u64 = 3_000;

/// One run. The error names the seed and ends with what happened last.
pub fn run(seed: u64, outlook: Outlook, digest: bool) -> Result<Summary, String> {
    let mut world = World::new(seed, outlook);
    if digest {
        world.trace = Trace::with_digest();
    }
    // an invariant of the engine that breaks is a panic: the trace is wanted all the same
    let outcome = catch_unwind(AssertUnwindSafe(|| world.live()));
    let failure = match outcome {
        Ok(Ok(())) => return Ok(world.summary()),
        Ok(Err(failure)) => failure,
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".to_owned()),
    };
    Err(format!("{}\nseed {seed}, {outlook:?}, at {}: {failure}", world.trace, world.now.0))
}

impl World {
    fn new(seed: u64, outlook: Outlook) -> Self {
        let mut rng = Rng::new(seed);
        let stormy = outlook == Outlook::Stormy;
        let config = EngineConfig {
            placement: if rng.percent(50) { PlacementPolicy::Pack } else { PlacementPolicy::Spread },
            queue_length: rng.between((4, 64)) as usize,
            assignment_timeout: Millis::from_secs(rng.between((4, 10))),
            start_margin: Millis::from_secs(3),
            lost_after: Millis::from_secs(60),
            lost_node_retention: Millis::from_secs(rng.between((1, 100))),
            ended_retention: Millis::from_secs(rng.between((20, 400))),
            ended_sandboxes: rng.between((3, 40)) as usize,
            request_retention: Millis::from_secs(3_600),
            settle_after_restore: Millis::from_secs(10),
            work_per_step: rng.between((1, 20)) as usize,
            check_invariants: true,
            ..EngineConfig::default()
        };
        let sizes: Vec<u64> = (0..rng.between((1, 5))).map(|_| rng.between((2, 8))).collect();
        let hosts =
            sizes.iter().enumerate().map(|(index, size)| Host::new(index, *size, stormy, &mut rng)).collect();
        let largest = sizes.iter().copied().max().unwrap_or(1);
        let count = rng.between((5, 40)) as usize;
        let clients = Clients::new(count, largest, &mut rng);
        Self {
            now: START,
            queue: BTreeMap::new(),
            sequence: 0,
            driver: Driver::new(config.clone(), START),
            config,
            hosts,
            links: BTreeMap::new(),
            sessions: 0,
            clients,
            ledger: Ledger::default(),
            trace: Trace::default(),
            outlook,
            stormy,
            faults: 0,
            fault_every_ms: rng.between((2_000, 40_000)),
            stalled_until: START,
            rng,
        }
    }

    fn live(&mut self) -> Result<(), String> {
        for node in 0..self.hosts.len() {
            let after = self.rng.between((0, 2_000));
            self.after(after, Next::Dial { node });
        }
        for client in 0..self.clients.all.len() {
            let after = self.rng.between((3_000, STORM.0));
            self.after(after, Next::Call(Op { client, act: Act::Create }));
        }
        if self.stormy {
            self.after(1_000, Next::Fault);
        }
        self.run_until(START.after(STORM))?;
        self.heal()?;
        self.run_until(START.after(Millis(STORM.0 + HEAL.0)))?;
        self.expect_service()?;
        for client in 0..self.clients.all.len() {
            if self.clients.all[client].sandbox.is_some() {
                self.after(0, Next::Call(Op { client, act: Act::Stop }));
            }
        }
        self.end_saved();
        self.run_until(START.after(Millis(STORM.0 + HEAL.0 + REST.0)))?;
        let nodes = self.hosts.iter().map(|host| &host.sim);
        check::at_rest(&self.driver, &self.clients, nodes, self.now)
    }

    /// After the storm what waits must be placed wherever it fits, and what was placed must run.
    fn expect_service(&self) -> Result<(), String> {
        let engine = self.driver.engine.as_ref().ok_or("the scheduler is down")?;
        let passing = [Phase::Assigned, Phase::Starting, Phase::Pausing, Phase::Resuming];
        if let Some(sandbox) = engine.sandboxes().find(|s| passing.contains(&s.phase)) {
            let since = self.now.since(sandbox.phase_at);
            if since > Millis::from_secs(30) {
                return Err(format!(
                    "{} is {} since {} ms in calm weather",
                    sandbox.id, sandbox.phase, since.0
                ));
            }
        }
        if self.outlook == Outlook::Calm {
            if let Some(host) = self.hosts.iter().find(|host| host.sim.out_of_room > 0) {
                return Err(format!("{} had to refuse for want of room", host.sim.id));
            }
            if let Some(host) = self.hosts.iter().find(|host| host.sim.without_snapshot > 0) {
                return Err(format!("{} was to restore a snapshot that it does not have", host.sim.id));
            }
            // what was to be saved may end before it is
            let calm =
                [Reason::StopRequested, Reason::DeleteRequested, Reason::TtlExpired, Reason::SnapshotFailed];
            if let Some((id, reason)) = self.ledger.ends.iter().find(|(_, reason)| !calm.contains(reason)) {
                return Err(format!("{id} ended for {reason:?} in calm weather"));
            }
        }
        Ok(())
    }

    fn summary(&self) -> Summary {
        let mut ends = BTreeMap::new();
        for reason in self.ledger.ends.values() {
            *ends.entry(*reason).or_insert(0) += 1;
        }
        Summary {
            steps: self.driver.steps,
            accepted: self.clients.all.iter().filter(|client| client.sandbox.is_some()).count(),
            rejected: self.clients.all.iter().filter(|client| client.rejected.is_some()).count(),
            faults: self.faults,
            ends,
            phases: self.ledger.phases.clone(),
            forks: self.clients.forks().count(),
            digest: self.trace.digest,
        }
    }

    fn at(&mut self, at: Timestamp, next: Next) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), next);
    }

    fn after(&mut self, ms: u64, next: Next) {
        self.at(self.now.after(Millis(ms)), next);
    }

    fn run_until(&mut self, end: Timestamp) -> Result<(), String> {
        let mut ticks_at_once = 0;
        loop {
            let next = self.queue.first_key_value().map(|((at, _), _)| *at);
            let due = self.driver.deadline().map(|due| due.max(self.now).max(self.stalled_until));
            match (next, due) {
                (next, Some(due)) if due < end && next.is_none_or(|next| due < next) => {
                    ticks_at_once = if due == self.now { ticks_at_once + 1 } else { 0 };
                    if ticks_at_once > 1_000 {
                        return Err("the engine is always due".to_owned());
                    }
                    self.now = due;
                    self.step(Event::Tick);
                }
                (Some(next), _) if next < end => {
                    self.now = self.now.max(next);
                    if let Some((_, next)) = self.queue.pop_first() {
                        self.happen(next)?;
                    }
                }
                _ => {
                    self.now = end;
                    return Ok(());
                }
            }
        }
    }

    fn step(&mut self, event: Event) {
        self.trace.add(self.now, Happening::Event(event.clone()));
        if self.driver.step(self.now, event) {
            self.start_commit();
        }
    }

    fn start_commit(&mut self) {
        let life = self.driver.life;
        let ms = self.rng.between((1, 8));
        self.after(ms, Next::Commit { life });
    }

    fn happen(&mut self, next: Next) -> Result<(), String> {
        let for_scheduler = matches!(
            next,
            Next::Register { .. }
                | Next::ToScheduler { .. }
                | Next::SchedulerHearsEnd { .. }
                | Next::Call(_)
                | Next::Commit { .. }
        );
        if for_scheduler && self.now < self.stalled_until {
            self.at(self.stalled_until, next);
            return Ok(());
        }
        match next {
            Next::Register { session, registration } => self.registers(session, registration),
            Next::ToScheduler { session, message } => self.reaches_scheduler(session, message),
            Next::ToNode { session, command } => return self.reaches_node(session, command),
            Next::SchedulerHearsEnd { session } => {
                if let Some(link) = self.links.remove(&session) {
                    let node = self.hosts[link.node].sim.id.clone();
                    self.step(Event::NodeGone { node, session });
                }
            }
            Next::NodeHearsEnd { session } => self.node_hears_end(session),
            Next::Beat { node, session } => self.beat(node, session),
            Next::Dial { node } => self.dial(node),
            Next::Boot { node } => {
                self.hosts[node].up = true;
                self.dial(node);
            }
            Next::Work { node, life, work } => {
                let host = &mut self.hosts[node];
                if host.up && host.life == life {
                    let outcome = host.sim.work(self.now, work, &mut self.rng);
                    self.outcome(node, outcome);
                }
            }
            Next::Call(op) => self.call(op),
            Next::Commit { life } if life == self.driver.life && self.driver.engine.is_some() => {
                return self.committed();
            }
            Next::Commit { .. } => {}
            Next::SchedulerStarts => self.scheduler_starts(),
            Next::Fault => return self.fault(),
        }
        Ok(())
    }

    fn committed(&mut self) -> Result<(), String> {
        let (effects, more) = self.driver.committed()?;
        self.check_stored()?;
        if let Some(engine) = &self.driver.engine {
            check::agreement(engine.sandboxes(), self.hosts.iter().map(|host| &host.sim))?;
        }
        if more {
            self.start_commit();
        }
        for effect in effects {
            self.trace.add(self.now, Happening::Effect(effect.clone()));
            self.carry_out(effect)?;
        }
        Ok(())
    }

    fn check_stored(&mut self) -> Result<(), String> {
        for sandbox in self.driver.store.take_fresh() {
            let host = self.hosts.iter().find(|host| Some(&host.sim.id) == sandbox.node.as_ref());
            let before = |heard: &&Timestamp| **heard <= sandbox.phase_at;
            let heard = host.and_then(|host| host.heard.iter().rfind(before)).copied().unwrap_or(START);
            let silent = sandbox.phase_at.since(heard) >= self.config.lost_after;
            self.ledger.stored(&sandbox, &self.clients, &self.config, silent)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Persist(_) => return Err("a change was let out after its commit".to_owned()),
            Effect::Answer { call, result } => {
                match &result {
                    Ok(Answered::Sandbox(sandbox)) => check::answered(&self.driver, sandbox)?,
                    Ok(Answered::Forks { sandboxes, .. }) => {
                        sandboxes.iter().try_for_each(|sandbox| check::answered(&self.driver, sandbox))?;
                    }
                    _ => {}
                }
                if let Some(client) = self.clients.answered(call, &result)? {
                    self.plan(client);
                }
            }
            Effect::Assign { session, sandbox, ttl_left, node } => {
                let index = self.host(&node)?;
                self.ledger.assigned(&self.driver, index, &sandbox)?;
                self.send(session, Command::Assign { sandbox, ttl_left });
            }
            Effect::StopOnNode { session, sandbox_id, epoch, cause, grace, .. } => {
                self.send(session, Command::Stop { sandbox_id, epoch, cause, grace });
            }
            Effect::Forget { session, sandbox_id, epoch, .. } => {
                self.send(session, Command::Forget { sandbox_id, epoch });
            }
            Effect::PauseOnNode { session, sandbox_id, epoch, order, .. } => {
                self.send(session, Command::Pause { sandbox_id, epoch, order });
            }
            Effect::ResumeOnNode { session, sandbox_id, epoch, order, .. } => {
                self.send(session, Command::Resume { sandbox_id, epoch, order });
            }
            Effect::TakeSnapshot { session, snapshot_id, sandbox_id, epoch, .. } => {
                self.send(session, Command::TakeSnapshot { snapshot_id, sandbox_id, epoch });
            }
            Effect::DropSnapshot { session, snapshot_id, .. } => {
                self.send(session, Command::DropSnapshot { snapshot_id });
            }
            Effect::PrepareTemplate { session, template, .. } => {
                let (template_id, resources) = (template.id, template.resources);
                self.send(session, Command::PrepareTemplate { template_id, resources });
            }
            Effect::DropTemplate { session, template_id, .. } => {
                self.send(session, Command::DropTemplate { template_id });
            }
            Effect::CloseSession { session, .. } => self.break_session(session, false),
        }
        Ok(())
    }

    fn host(&self, node: &NodeId) -> Result<usize, String> {
        self.hosts
            .iter()
            .position(|host| host.sim.id == *node)
            .ok_or_else(|| format!("there is no node {node}"))
    }
}
