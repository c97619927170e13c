//! What is known of a sandbox, in memory, on disk and towards the scheduler, changed in one place.
//!
//! Invariant: a change is in `record.json` before anybody hears of it, so the agent that comes after this one knows at
//! least what was said. The file is replaced as a whole; it need not survive a crash of the machine (no sandbox does), so
//! it is not synced.

use crate::clock::BootTime;
use crate::host::paths::{SandboxPaths, write_atomically};
use crate::machine::ProcessRecord;
use pinfold_domain::{Cause, Epoch, Milestone, Phase, SandboxId, SandboxSpec};
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
        }
    }

    pub fn report(&self) -> StatusReport {
        StatusReport {
            sandbox_id: self.assignment.id,
            epoch: self.assignment.epoch,
            sequence: self.sequence,
            phase: self.phase,
            cause: self.cause.clone(),
            milestones: self.milestones.clone(),
            order: 0,
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
}

impl Ledger {
    pub fn new(record: Record, paths: SandboxPaths, changed: Changed) -> Self {
        let report = watch::Sender::new(record.report());
        Self { record: Mutex::new(record), paths, report, changed }
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

    pub fn set_process(&self, process: ProcessRecord) {
        let mut record = self.lock();
        record.process = Some(process);
        self.store(&record);
    }

    /// `at`: when it was reached, `None` for now.
    pub fn reach(&self, milestone: Milestone, at: Option<BootTime>) {
        self.change(|record| {
            let at = at.unwrap_or_else(BootTime::now);
            let since = at.since(record.assignment.assigned_at);
            record.reach(milestone, u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
        });
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
        let text =
            serde_json::to_vec(record).expect("a record has only maps with string keys, so it is JSON");
        if let Err(error) = write_atomically(&self.paths.record(), &text, false) {
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
