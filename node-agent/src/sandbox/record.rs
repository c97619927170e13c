//! What is known of a sandbox, in memory, on disk and towards the scheduler, changed in one place.
//!
//! Invariant: a change is in `record.json` before anybody hears of it, so the agent that comes after this one knows at
//! least what was said. The file is replaced as a whole. Only a paused sandbox survives a crash of the machine, so only its
//! record is synced.

use crate::catalog::Origin;
use crate::clock::BootTime;
use crate::host::paths::{SandboxPaths, write_atomically};
use crate::host::snapshots::Mapped;
use crate::machine::{Made, ProcessRecord};
use pinfold_domain::{Cause, Epoch, Milestone, Phase, Resources, SandboxId, SandboxSpec, TemplateId};
use pinfold_proto::convert::sandbox::StatusReport;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// What the scheduler has ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    pub id: SandboxId,
    pub epoch: Epoch,
    pub tenant: String,
    pub spec: SandboxSpec,
    /// when the order reached this node
    pub assigned_at: BootTime,
    /// when its time to live ends
    pub expires_at: BootTime,
    /// of a create from a template
    #[serde(default)]
    pub template: Option<TemplateId>,
}

/// `record.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// times and processes mean nothing in another boot
    pub boot_id: String,
    pub assignment: Assignment,
    pub uid: Option<u32>,
    pub process: Option<ProcessRecord>,
    pub sequence: u64,
    pub phase: Phase,
    pub cause: Option<Cause>,
    /// microseconds since the assignment
    pub milestones: Vec<(Milestone, u64)>,
    /// of the machine; none before it is started, and in records of earlier agents
    #[serde(default)]
    pub made: Option<Made>,
    /// the highest order of a Pause or Resume that was taken up
    #[serde(default)]
    pub order: u64,
    #[serde(default)]
    pub saving: Saving,
}

/// How far it is between a machine that runs and one that is saved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saving {
    /// The guest was told to stand still, or its machine was stopped, and has not been woken since.
    pub suspended: bool,
    /// The machine came from saved state. What its guest is told when it is woken: the same each time, so that a wake
    /// may be repeated.
    pub generation: Option<String>,
    /// Its own directory holds the machine whole, and no guest has run since: it can be resumed.
    pub saved: bool,
    /// It was paused once, so its memory has a file on the disk.
    pub has_memory_file: bool,
    /// milliseconds since the Unix epoch: when its time to live ends, for a pause that outlives the boot
    pub expires_ms: Option<u64>,
    /// it is booted for this template and not for a caller
    pub builds: Option<TemplateId>,
    /// The memory file that its machine maps, which is that of a snapshot or template.
    #[serde(default)]
    pub maps: Option<(Origin, Mapped)>,
}

impl Record {
    pub fn new(boot_id: &str, assignment: Assignment) -> Self {
        Self {
            boot_id: boot_id.to_owned(),
            assignment,
            uid: None,
            process: None,
            sequence: 1,
            phase: Phase::Starting,
            cause: None,
            milestones: Vec::new(),
            made: None,
            order: 0,
            saving: Saving::default(),
        }
    }

    /// What it takes of its node. Its memory is in a file on the disk from its first pause on: paused it takes disk alone.
    pub fn held(&self) -> Resources {
        let Resources { memory_bytes, disk_bytes, .. } = self.assignment.spec.resources;
        let with_file = disk_bytes.saturating_add(memory_bytes);
        match self.phase {
            // the file that its machine maps, and the new one, until the machine has ended
            Phase::Pausing if self.saving.has_memory_file => {
                let disk_bytes = with_file.saturating_add(memory_bytes);
                Resources { disk_bytes, ..self.assignment.spec.resources }
            }
            Phase::Paused => Resources { disk_bytes: with_file, ..Resources::default() },
            // it comes to have one while it is paused for the first time
            phase if self.saving.has_memory_file || phase == Phase::Pausing => {
                Resources { disk_bytes: with_file, ..self.assignment.spec.resources }
            }
            _ => self.assignment.spec.resources,
        }
    }

    /// Whether the guest's agent has ever answered.
    pub fn was_ready(&self) -> bool {
        self.milestones.iter().any(|(milestone, _)| *milestone == Milestone::GuestReady)
    }

    pub fn report(&self) -> StatusReport {
        StatusReport {
            sandbox_id: self.assignment.id,
            epoch: self.assignment.epoch,
            sequence: self.sequence,
            phase: self.phase,
            cause: self.cause.clone(),
            milestones: self.milestones.clone(),
            order: self.order,
        }
    }

    /// Notes a point in its life, once.
    fn reach(&mut self, milestone: Milestone, since_assignment_us: u64) -> bool {
        if self.milestones.iter().any(|(reached, _)| *reached == milestone) {
            return false;
        }
        self.milestones.push((milestone, since_assignment_us));
        true
    }
}

/// Told the id of a sandbox whose report has changed.
pub type Changed = Arc<dyn Fn(SandboxId) + Send + Sync>;

/// The one owner of a record. Shared by the actor, which drives it, and the relay, which notes the first byte.
pub struct Ledger {
    record: Mutex<Record>,
    paths: SandboxPaths,
    report: watch::Sender<StatusReport>,
    changed: Changed,
    /// of `maps`: for as long as it is here the file is charged
    mapped: Mutex<Option<Arc<Mapped>>>,
}

impl Ledger {
    pub fn new(record: Record, paths: SandboxPaths, changed: Changed) -> Self {
        let report = watch::Sender::new(record.report());
        Self { record: Mutex::new(record), paths, report, changed, mapped: Mutex::default() }
    }

    /// Its machine maps the memory file of a saved one from now on.
    pub fn map(&self, origin: Origin, mapped: Arc<Mapped>) {
        self.note(false, |saving| saving.maps = Some((origin, *mapped)));
        *self.mapped.lock().unwrap_or_else(PoisonError::into_inner) = Some(mapped);
    }

    /// No process of it is left.
    pub fn unmap(&self) {
        self.note(false, |saving| saving.maps = None);
        *self.mapped.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub fn paths(&self) -> &SandboxPaths {
        &self.paths
    }

    pub fn assignment(&self) -> Assignment {
        self.lock().assignment.clone()
    }

    pub fn record(&self) -> Record {
        self.lock().clone()
    }

    /// The last report, and each one after it.
    pub fn reports(&self) -> watch::Receiver<StatusReport> {
        self.report.subscribe()
    }

    /// Writes the record as it is.
    pub fn save(&self) {
        self.store(&self.lock());
    }

    pub fn set_uid(&self, uid: u32) {
        let mut record = self.lock();
        record.uid = Some(uid);
        self.store(&record);
    }

    pub fn set_made(&self, made: Made) {
        let mut record = self.lock();
        record.made = Some(made);
        self.store(&record);
    }

    pub fn set_process(&self, process: ProcessRecord) {
        let mut record = self.lock();
        record.process = Some(process);
        self.store(&record);
    }

    /// A change that nobody else hears of. `durable`: it has reached the disk when this returns.
    pub fn note(&self, durable: bool, act: impl FnOnce(&mut Saving)) {
        let mut record = self.lock();
        let before = record.saving.clone();
        act(&mut record.saving);
        if record.saving != before || durable {
            self.write(&record, durable);
        }
    }

    pub fn saving(&self) -> Saving {
        self.lock().saving.clone()
    }

    /// The process of the record is gone.
    pub fn clear_process(&self) {
        let mut record = self.lock();
        record.process = None;
        self.store(&record);
    }

    /// Takes up an order: from `from` it goes to `to`; in another phase it stays as it is, which is told.
    /// `None`: the order is not newer than the last one.
    pub fn take_up(&self, order: u64, from: Phase, to: Phase) -> Option<bool> {
        let mut taken = None;
        self.change(|record| {
            if order <= record.order {
                return false;
            }
            record.order = order;
            taken = Some(record.phase == from);
            if record.phase == from {
                record.phase = to;
                record.cause = None;
            }
            true
        });
        taken
    }

    /// Takes up `order` and does nothing but say why.
    pub fn decline(&self, order: u64, cause: Cause) {
        self.change(|record| {
            if order <= record.order {
                return false;
            }
            record.order = order;
            if !record.phase.is_final() && record.phase != Phase::Stopping {
                record.cause = Some(cause);
            }
            true
        });
    }

    /// From `from` to `to`, with what is to be said about it. Nothing, in another phase.
    pub fn go_on(&self, from: Phase, to: Phase, cause: Option<Cause>) {
        self.change(|record| {
            if record.phase != from {
                return false;
            }
            record.phase = to;
            record.cause = cause;
            true
        });
    }

    /// `at`: when it was reached, `None` for now.
    pub fn reach(&self, milestone: Milestone, at: Option<BootTime>) {
        self.change(|record| {
            let at = at.unwrap_or_else(BootTime::now);
            let since = at.since(record.assignment.assigned_at);
            record.reach(milestone, u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
        });
    }

    /// The guest that was restored goes on, and serves.
    pub fn woken(&self) {
        self.change(|record| {
            let since = BootTime::now().since(record.assignment.assigned_at);
            let since = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
            let woken = record.reach(Milestone::Woken, since);
            record.reach(Milestone::GuestReady, since) || woken
        });
    }

    /// What was reached on a way that was given up.
    pub fn unreach(&self, milestones: &[Milestone]) {
        self.lock().milestones.retain(|(reached, _)| !milestones.contains(reached));
    }

    /// The last report: nothing is left. One change, so that nobody sees half of it.
    pub fn end(&self, phase: Phase, cause: Cause) {
        self.change(|record| {
            let since = BootTime::now().since(record.assignment.assigned_at);
            record.reach(Milestone::Stopped, u64::try_from(since.as_micros()).unwrap_or(u64::MAX));
            record.phase = phase;
            record.cause = Some(cause);
            true
        });
    }

    /// A phase that is final stays as it is.
    pub fn set_phase(&self, phase: Phase, cause: Option<Cause>) {
        self.change(|record| {
            if record.phase.is_final() || (record.phase == phase && record.cause == cause) {
                return false;
            }
            record.phase = phase;
            record.cause = cause.or(record.cause.take());
            true
        });
    }

    fn change(&self, act: impl FnOnce(&mut Record) -> bool) {
        let mut record = self.lock();
        if !act(&mut record) {
            return;
        }
        record.sequence += 1;
        self.store(&record);
        let report = record.report();
        let (id, phase) = (report.sandbox_id, report.phase);
        tracing::info!(sandbox = %id, epoch = %report.epoch, sequence = report.sequence, %phase,
            cause = report.cause.as_ref().map(|cause| format!("{}: {}", cause.reason.as_str(), cause.message)),
            milestone = report.milestones.last().map(|(milestone, us)| format!("{} {us} us", milestone.as_str())),
            "sandbox changed");
        self.report.send_replace(report);
        drop(record);
        (self.changed)(id);
    }

    /// A record that cannot be written (a full disk) must not stop a sandbox: the next agent will not find it and ends
    /// it by its cgroup.
    fn store(&self, record: &Record) {
        self.write(record, false);
    }

    fn write(&self, record: &Record, durable: bool) {
        let text =
            serde_json::to_vec(record).expect("a record has only maps with string keys, so it is JSON");
        if let Err(error) = write_atomically(&self.paths.record(), &text, durable) {
            tracing::error!(sandbox = %record.assignment.id, error = error.sentence(), "a record was not written");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::host::paths::StateDirectory;
    use crate::sandbox::policy::tests::spec;
    use pinfold_domain::Reason;
    use std::time::Duration;

    pub const ID: &str = "0190b3f0-5a00-7000-8000-000000000001";

    pub fn assignment(epoch: u64) -> Assignment {
        let now = BootTime::now();
        Assignment {
            id: ID.parse().unwrap(),
            epoch: Epoch(epoch),
            tenant: "default".into(),
            spec: spec(),
            assigned_at: now,
            expires_at: now.after(Duration::from_secs(3600)),
            template: None,
        }
    }

    #[test]
    fn a_change_is_on_disk_before_it_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let paths = StateDirectory::open(directory.path()).unwrap().sandbox(ID.parse().unwrap());
        paths.create().unwrap();
        let file = paths.record();
        let on_disk = move || -> Record { serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap() };
        let read = on_disk.clone();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&seen);
        let changed: Changed = Arc::new(move |_| told.lock().unwrap().push(read().sequence));
        let ledger = Ledger::new(Record::new("boot", assignment(1)), paths, changed);
        ledger.save();
        ledger.reach(Milestone::Jailed, None);
        ledger.reach(Milestone::Jailed, None);
        ledger.set_phase(Phase::Running, None);
        ledger.set_phase(Phase::Failed, Some(Cause::new(Reason::GuestPanic, "x")));
        ledger.set_phase(Phase::Stopped, None);
        assert_eq!(*seen.lock().unwrap(), [2, 3, 4]);
        assert_eq!(on_disk(), ledger.record());
        let report = ledger.reports().borrow().clone();
        assert_eq!((report.phase, report.sequence, report.milestones.len()), (Phase::Failed, 4, 1));
        assert_eq!(report.cause.unwrap().reason, Reason::GuestPanic);
    }
}
