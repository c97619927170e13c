//! A simulated node agent: what `pinfold.node.v1` carries goes in and out, what a node does takes virtual time. It has no
//! clock and no network of its own, so it fits behind any transport.
//!
//! It keeps the rules of a real one: its own account of room with the last word, one instance per sandbox, an epoch that
//! is repeated is no new assignment, an end is kept until it is acknowledged, a time to live is enforced by itself.

use super::rng::Rng;
use pinfold_domain::{
    Cause, Epoch, Milestone, Millis, NodeId, Phase, Preparation, Reason, Resources, Sandbox, SandboxId,
    SnapshotId, SnapshotReport, SnapshotState, Source, TemplateId, TemplateReport, Timestamp,
};
use pinfold_engine::{NodeRegistration, NodeReport, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// From the scheduler.
#[derive(Debug, Clone)]
pub enum Command {
    Assign { sandbox: Box<Sandbox>, ttl_left: Millis },
    Stop { sandbox_id: SandboxId, epoch: Epoch, cause: Cause, grace: Millis },
    Forget { sandbox_id: SandboxId, epoch: Epoch },
    Pause { sandbox_id: SandboxId, epoch: Epoch, order: u64 },
    Resume { sandbox_id: SandboxId, epoch: Epoch, order: u64 },
    TakeSnapshot { snapshot_id: SnapshotId, sandbox_id: SandboxId, epoch: Epoch },
    DropSnapshot { snapshot_id: SnapshotId },
    PrepareTemplate { template_id: TemplateId, resources: Resources },
    DropTemplate { template_id: TemplateId },
}

/// To the scheduler.
#[derive(Debug, Clone)]
pub enum Message {
    Heartbeat(Vec<NodeReport>, Vec<SnapshotReport>, Vec<TemplateReport>),
    Snapshot(SnapshotReport),
    Template(TemplateReport),
    Report(NodeReport),
    Refused { sandbox_id: SandboxId, epoch: Epoch, cause: Cause },
}

/// How a node tends to behave; chances in percent, times in milliseconds from and to.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    pub refuse: u64,
    pub start_fails: u64,
    pub start_hangs: u64,
    pub powers_off: u64,
    /// a newer epoch takes the place of an older one that is still here, else it is refused
    pub replaces: bool,
    pub start_ms: (u64, u64),
    pub stop_ms: (u64, u64),
    /// a pause, a resume, a snapshot, a preparation goes wrong
    pub save_fails: u64,
    pub save_ms: (u64, u64),
}

/// Something that comes to pass on the node by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Ready,
    StartFails,
    StartTimesOut,
    PowersOff,
    TtlExpires,
    Ends,
    /// the pause or resume of this order is done, or failed
    OrderDone {
        order: u64,
        good: bool,
    },
    SnapshotDone {
        snapshot_id: SnapshotId,
        good: bool,
    },
    TemplateDone {
        template_id: TemplateId,
        good: bool,
    },
}

#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub sandbox_id: SandboxId,
    pub epoch: Epoch,
    pub step: Step,
}

/// What a command or a piece of work leads to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub messages: Vec<Message>,
    /// to be done after so long, unless the machine crashes before
    pub work: Vec<(Millis, Work)>,
}

#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) epoch: Epoch,
    pub(super) phase: Phase,
    cause: Option<Cause>,
    sequence: u64,
    milestones: Vec<(Milestone, u64)>,
    pub(super) resources: Resources,
    /// what it takes now: see [`super::saved`]
    pub(super) held: Resources,
    since: Timestamp,
    /// the highest that was taken up
    pub(super) order: u64,
}

/// What a node has of a template.
#[derive(Debug, Clone, Copy)]
pub(super) struct SimTemplate {
    pub preparation: Preparation,
    /// of the machine that is up while it is prepared
    pub resources: Resources,
    /// dropped while its machine is up: it is listed until that has ended
    pub unwanted: bool,
}

#[derive(Debug)]
pub struct SimNode {
    pub id: NodeId,
    pub allocatable: Resources,
    pub images: BTreeSet<String>,
    pub habits: Habits,
    pub(super) instances: BTreeMap<SandboxId, Instance>,
    pub(super) snapshots: BTreeMap<SnapshotId, SnapshotState>,
    pub(super) templates: BTreeMap<TemplateId, SimTemplate>,
    /// refusals for want of room
    pub out_of_room: u64,
    /// sandboxes that were to start from a snapshot that is not here
    pub without_snapshot: u64,
}

impl SimNode {
    pub fn new(id: NodeId, allocatable: Resources, images: BTreeSet<String>, habits: Habits) -> Self {
        Self {
            id,
            allocatable,
            images,
            habits,
            instances: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            templates: BTreeMap::new(),
            out_of_room: 0,
            without_snapshot: 0,
        }
    }

    pub fn registration(&self, session: SessionId) -> NodeRegistration {
        NodeRegistration {
            id: self.id.clone(),
            session,
            version: "simulated".to_owned(),
            allocatable: self.allocatable,
            labels: BTreeMap::new(),
            zone: String::new(),
            images: self.images.clone(),
            kernels: BTreeSet::new(),
            statuses: self.list(),
            snapshots: self.list_snapshots(),
            templates: self.list_templates(),
        }
    }

    /// The full list, also of what has ended and was not acknowledged.
    pub fn list(&self) -> Vec<NodeReport> {
        self.instances.iter().map(|(id, instance)| instance.report(*id)).collect()
    }

    /// Sandboxes that take room, with their epochs.
    pub fn live(&self) -> impl Iterator<Item = (SandboxId, Epoch)> {
        self.instances.iter().filter(|(_, i)| i.is_live()).map(|(id, i)| (*id, i.epoch))
    }

    /// Phase, last order and room of what lives here under this epoch.
    pub fn instance(&self, id: SandboxId, epoch: Epoch) -> Option<(Phase, u64, Resources)> {
        let instance = self.instances.get(&id).filter(|i| i.epoch == epoch && i.is_live())?;
        Some((instance.phase, instance.order, instance.held))
    }

    pub fn records(&self) -> usize {
        self.instances.len()
    }

    /// What live instances really take.
    pub fn used(&self) -> Resources {
        let live = self.instances.values().filter(|instance| instance.is_live());
        let preparing = self.templates.values().filter(|t| t.preparation == Preparation::Preparing);
        let taken = live.map(|instance| instance.held).chain(preparing.map(|template| template.resources));
        taken.fold(Resources::default(), |sum, held| {
            sum.checked_add(&held).expect("a simulated node is small")
        })
    }

    /// Power was cut: nothing of it is left, not even the records.
    pub fn crash(&mut self) {
        self.instances.clear();
        self.snapshots.clear();
        self.templates.clear();
    }

    /// The agent was replaced. Its sandboxes live on; reports are counted anew.
    pub fn restart_agent(&mut self) {
        self.instances.values_mut().for_each(|instance| instance.sequence = 1);
        // the machine of a preparation goes with the agent that booted it
        self.templates.retain(|_, template| template.preparation != Preparation::Preparing);
    }

    pub fn command(&mut self, now: Timestamp, command: Command, rng: &mut Rng) -> Outcome {
        let mut outcome = Outcome::default();
        match command {
            Command::Assign { sandbox, ttl_left } => self.assign(now, &sandbox, ttl_left, rng, &mut outcome),
            Command::Stop { sandbox_id, epoch, cause, grace } => {
                let stop_ms = rng.between(self.habits.stop_ms).min(grace.0.max(1));
                self.stop(sandbox_id, epoch, cause, Millis(stop_ms), &mut outcome);
            }
            Command::Forget { sandbox_id, epoch } => {
                if self.instances.get(&sandbox_id).is_some_and(|i| i.epoch == epoch && !i.is_live()) {
                    self.instances.remove(&sandbox_id);
                }
            }
            saved => self.command_saved(saved, rng, &mut outcome),
        }
        outcome
    }

    fn assign(
        &mut self,
        now: Timestamp,
        sandbox: &Sandbox,
        ttl_left: Millis,
        rng: &mut Rng,
        outcome: &mut Outcome,
    ) {
        let (sandbox_id, epoch, resources) = (sandbox.id, sandbox.epoch, sandbox.spec.resources);
        let mut refuse = |reason, why: &str| {
            let cause = Cause::new(reason, why);
            outcome.messages.push(Message::Refused { sandbox_id, epoch, cause });
        };
        let mut used = self.used();
        if let Some(instance) = self.instances.get(&sandbox_id) {
            if instance.epoch >= epoch {
                return outcome.messages.push(Message::Report(instance.report(sandbox_id)));
            }
            if !self.habits.replaces {
                return refuse(Reason::HostResources, "another epoch of it is still here");
            }
            if instance.is_live() {
                used = used.saturating_sub(&instance.held);
            }
        }
        let with_it = used.checked_add(&resources).expect("a simulated node is small");
        if with_it.first_excess(&self.allocatable).is_some() {
            self.out_of_room += 1;
            return refuse(Reason::HostResources, "no room");
        }
        if let Source::Snapshot(id) = sandbox.spec.source
            && self.snapshots.get(&id) != Some(&SnapshotState::Ready)
        {
            self.without_snapshot += 1;
            return refuse(Reason::SnapshotUnusable, "the snapshot is not here");
        }
        if rng.percent(self.habits.refuse) {
            return refuse(Reason::ImageUnknown, "its image was taken away");
        }
        let instance = Instance {
            epoch,
            phase: Phase::Starting,
            cause: None,
            sequence: 1,
            milestones: vec![(Milestone::Jailed, 900)],
            resources,
            held: resources,
            since: now,
            order: 0,
        };
        outcome.messages.push(Message::Report(instance.report(sandbox_id)));
        self.instances.insert(sandbox_id, instance);
        let mut later = |after: Millis, step| outcome.work.push((after, Work { sandbox_id, epoch, step }));
        later(ttl_left, Step::TtlExpires);
        let ready = Millis(rng.between(self.habits.start_ms));
        if rng.percent(self.habits.start_hangs) {
            later(sandbox.spec.start_timeout, Step::StartTimesOut);
        } else if rng.percent(self.habits.start_fails) {
            later(ready, Step::StartFails);
        } else {
            later(ready, Step::Ready);
            if rng.percent(self.habits.powers_off) {
                later(Millis(ready.0 + rng.between((1, 60_000))), Step::PowersOff);
            }
        }
    }

    fn stop(
        &mut self,
        sandbox_id: SandboxId,
        epoch: Epoch,
        cause: Cause,
        after: Millis,
        outcome: &mut Outcome,
    ) {
        let Some(instance) = self.instances.get_mut(&sandbox_id).filter(|i| i.epoch == epoch) else { return };
        match instance.phase {
            Phase::Starting | Phase::Running | Phase::Pausing | Phase::Paused | Phase::Resuming => {
                instance.change(Phase::Stopping, Some(cause));
                outcome.work.push((after, Work { sandbox_id, epoch, step: Step::Ends }));
            }
            // a stop already under way may be hurried
            Phase::Stopping => outcome.work.push((after, Work { sandbox_id, epoch, step: Step::Ends })),
            _ => {}
        }
        outcome.messages.push(Message::Report(instance.report(sandbox_id)));
    }

    /// Does a piece of work, unless its instance is gone or in another phase by now.
    pub fn work(&mut self, now: Timestamp, work: Work, rng: &mut Rng) -> Outcome {
        let mut outcome = Outcome::default();
        let Work { sandbox_id, epoch, step } = work;
        if let Step::OrderDone { .. } | Step::SnapshotDone { .. } | Step::TemplateDone { .. } = step {
            self.work_saved(work, &mut outcome);
            return outcome;
        }
        let stop_ms = Millis(rng.between(self.habits.stop_ms));
        let Some(instance) = self.instances.get_mut(&sandbox_id).filter(|i| i.epoch == epoch) else {
            return outcome;
        };
        let since_us = now.since(instance.since).0 * 1000;
        match (step, instance.phase) {
            (Step::Ready, Phase::Starting) => {
                instance.milestones.push((Milestone::Booted, since_us / 2));
                instance.milestones.push((Milestone::GuestReady, since_us));
                instance.change(Phase::Running, None);
            }
            (Step::StartFails, Phase::Starting) => {
                instance.change(Phase::Failed, Some(Cause::new(Reason::JailFailed, "simulated")));
            }
            (Step::StartTimesOut, Phase::Starting) => {
                instance.change(Phase::Failed, Some(Cause::new(Reason::StartTimeout, "simulated")));
            }
            (Step::PowersOff, Phase::Running) => {
                instance.change(Phase::Stopped, Some(Cause::new(Reason::GuestPowerOff, "simulated")));
            }
            (
                Step::TtlExpires,
                Phase::Starting | Phase::Running | Phase::Pausing | Phase::Paused | Phase::Resuming,
            ) => {
                let cause = Cause::new(Reason::TtlExpired, "by the node's clock");
                self.stop(sandbox_id, epoch, cause, stop_ms, &mut outcome);
                return outcome;
            }
            (Step::Ends, Phase::Stopping) => {
                instance.milestones.push((Milestone::Stopped, since_us));
                let cause = instance.cause.clone();
                instance.change(Phase::Stopped, cause);
            }
            _ => return outcome,
        }
        outcome.messages.push(Message::Report(instance.report(sandbox_id)));
        outcome
    }
}

impl Instance {
    pub(super) fn is_live(&self) -> bool {
        !matches!(self.phase, Phase::Stopped | Phase::Failed)
    }

    pub(super) fn change(&mut self, phase: Phase, cause: Option<Cause>) {
        self.phase = phase;
        self.cause = cause;
        self.sequence += 1;
    }

    pub(super) fn report(&self, sandbox_id: SandboxId) -> NodeReport {
        NodeReport {
            sandbox_id,
            epoch: self.epoch,
            sequence: self.sequence,
            phase: self.phase,
            cause: self.cause.clone(),
            milestones: self.milestones.clone(),
            order: self.order,
        }
    }
}
