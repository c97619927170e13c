//! A simulated node agent that saves: pause, resume, snapshots, templates. An order is taken up once; what it leads to is
//! reported with its number. Room is counted as the engine counts it: a pause adds the memory as disk, a paused sandbox
//! holds disk only, a resumed one keeps its memory file.

use super::node::{Command, Instance, Message, Outcome, SimNode, SimTemplate, Step, Work};
use super::rng::Rng;
use pinfold_domain::{
    Cause, Epoch, Millis, Phase, Preparation, Reason, Resources, SandboxId, SnapshotId, SnapshotReport,
    SnapshotSizes, SnapshotState, TemplateId, TemplateReport,
};

fn failure() -> Cause {
    Cause::new(Reason::SnapshotFailed, "simulated")
}

fn snapshot_report(snapshot_id: SnapshotId, state: SnapshotState) -> SnapshotReport {
    let cause = (state == SnapshotState::Failed).then(failure);
    SnapshotReport { snapshot_id, state, cause, sizes: SnapshotSizes::default() }
}

fn template_report(template_id: TemplateId, preparation: Preparation) -> TemplateReport {
    let cause = (preparation == Preparation::Failed).then(failure);
    TemplateReport { template_id, preparation, cause, sizes: SnapshotSizes::default() }
}

impl SimNode {
    pub fn list_snapshots(&self) -> Vec<SnapshotReport> {
        self.snapshots.iter().map(|(id, state)| snapshot_report(*id, *state)).collect()
    }

    pub fn list_templates(&self) -> Vec<TemplateReport> {
        self.templates.iter().map(|(id, template)| template_report(*id, template.preparation)).collect()
    }

    pub(super) fn command_saved(&mut self, command: Command, rng: &mut Rng, outcome: &mut Outcome) {
        let good = !rng.percent(self.habits.save_fails);
        let after = Millis(rng.between(self.habits.save_ms));
        let nobody = SandboxId(uuid::Uuid::nil());
        match command {
            Command::Pause { sandbox_id, epoch, order } => {
                self.order(sandbox_id, epoch, order, Phase::Running, after, good, outcome);
            }
            Command::Resume { sandbox_id, epoch, order } => {
                self.order(sandbox_id, epoch, order, Phase::Paused, after, good, outcome);
            }
            Command::TakeSnapshot { snapshot_id, sandbox_id, epoch } => {
                let runs = self.runs(sandbox_id, epoch);
                let first = if runs { SnapshotState::Creating } else { SnapshotState::Failed };
                let state = *self.snapshots.entry(snapshot_id).or_insert(first);
                outcome.messages.push(Message::Snapshot(snapshot_report(snapshot_id, state)));
                let step = Step::SnapshotDone { snapshot_id, good };
                outcome.work.push((after, Work { sandbox_id, epoch, step }));
            }
            Command::DropSnapshot { snapshot_id } => drop(self.snapshots.remove(&snapshot_id)),
            Command::PrepareTemplate { template_id, resources } => {
                let preparation = self.begin_template(template_id, resources);
                outcome.messages.push(Message::Template(template_report(template_id, preparation)));
                let step = Step::TemplateDone { template_id, good };
                outcome.work.push((after, Work { sandbox_id: nobody, epoch: Epoch(0), step }));
            }
            Command::DropTemplate { template_id } => match self.templates.get_mut(&template_id) {
                Some(template) if template.preparation == Preparation::Preparing => template.unwanted = true,
                _ => drop(self.templates.remove(&template_id)),
            },
            Command::Assign { .. } | Command::Stop { .. } | Command::Forget { .. } => {}
        }
    }

    /// What is there, or is being made, stays; else a machine is up from now on, if there is room for it.
    fn begin_template(&mut self, id: TemplateId, resources: Resources) -> Preparation {
        let known = self.templates.get(&id).map(|template| template.preparation);
        if let Some(known) = known.filter(|known| *known != Preparation::Failed) {
            return known;
        }
        let with_it = self.used().checked_add(&resources).expect("a simulated node is small");
        let preparation = match with_it.first_excess(&self.allocatable) {
            Some(_) => Preparation::Failed,
            None => Preparation::Preparing,
        };
        self.out_of_room += u64::from(preparation == Preparation::Failed);
        self.templates.insert(id, SimTemplate { preparation, resources, unwanted: false });
        preparation
    }

    fn runs(&self, id: SandboxId, epoch: Epoch) -> bool {
        self.instances.get(&id).is_some_and(|i| i.epoch == epoch && i.phase == Phase::Running)
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one order")]
    fn order(
        &mut self,
        sandbox_id: SandboxId,
        epoch: Epoch,
        order: u64,
        from: Phase,
        after: Millis,
        good: bool,
        outcome: &mut Outcome,
    ) {
        let used = self.used();
        let Some(instance) = self.instances.get_mut(&sandbox_id).filter(|i| i.epoch == epoch) else { return };
        if order > instance.order && instance.phase == from {
            instance.order = order;
            let wanted = instance.room_for(from);
            let others = used.saturating_sub(&instance.held);
            let with_it = others.checked_add(&wanted).expect("a simulated node is small");
            if with_it.first_excess(&self.allocatable).is_some() {
                self.out_of_room += 1;
                instance.change(from, Some(Cause::new(Reason::HostResources, "no room")));
            } else {
                instance.held = wanted;
                let passing = if from == Phase::Running { Phase::Pausing } else { Phase::Resuming };
                instance.change(passing, None);
                let step = Step::OrderDone { order, good };
                outcome.work.push((after, Work { sandbox_id, epoch, step }));
            }
        }
        outcome.messages.push(Message::Report(instance.report(sandbox_id)));
    }

    pub(super) fn work_saved(&mut self, work: Work, outcome: &mut Outcome) {
        let Work { sandbox_id, epoch, step } = work;
        match step {
            Step::OrderDone { order, good } => {
                let found =
                    self.instances.get_mut(&sandbox_id).filter(|i| (i.epoch, i.order) == (epoch, order));
                let Some(instance) = found else { return };
                if instance.finish_order(good) {
                    outcome.messages.push(Message::Report(instance.report(sandbox_id)));
                }
            }
            Step::SnapshotDone { snapshot_id, good } => {
                // the machine that was to be saved may have ended or been paused meanwhile
                let good = good && self.runs(sandbox_id, epoch);
                let Some(state) = self.snapshots.get_mut(&snapshot_id) else { return };
                if *state == SnapshotState::Creating {
                    *state = if good { SnapshotState::Ready } else { SnapshotState::Failed };
                    outcome.messages.push(Message::Snapshot(snapshot_report(snapshot_id, *state)));
                }
            }
            Step::TemplateDone { template_id, good } => {
                let Some(template) = self.templates.get_mut(&template_id) else { return };
                if template.preparation != Preparation::Preparing {
                    return;
                }
                template.preparation = if good { Preparation::Prepared } else { Preparation::Failed };
                let report = template_report(template_id, template.preparation);
                if template.unwanted {
                    self.templates.remove(&template_id);
                } else {
                    outcome.messages.push(Message::Template(report));
                }
            }
            _ => {}
        }
    }
}

impl Instance {
    /// What it takes while an order from `phase` is carried out.
    fn room_for(&self, phase: Phase) -> Resources {
        let memory = self.resources.memory_bytes;
        match phase {
            Phase::Running => Resources { disk_bytes: self.held.disk_bytes + memory, ..self.held },
            _ => Resources { disk_bytes: self.held.disk_bytes, ..self.resources },
        }
    }

    /// True when there was something to finish.
    fn finish_order(&mut self, good: bool) -> bool {
        let Resources { disk_bytes, memory_bytes, .. } = self.resources;
        let saved = Resources { disk_bytes: disk_bytes + memory_bytes, ..Resources::default() };
        let (phase, held) = match (self.phase, good) {
            (Phase::Pausing, true) | (Phase::Resuming, false) => (Phase::Paused, saved),
            (Phase::Resuming, true) => (Phase::Running, self.held),
            (Phase::Pausing, false) => {
                let disk_bytes = self.held.disk_bytes - memory_bytes;
                (Phase::Running, Resources { disk_bytes, ..self.held })
            }
            _ => return false,
        };
        self.held = held;
        self.change(phase, (!good).then(failure));
        true
    }
}
