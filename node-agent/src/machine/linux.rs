//! The real [`Machines`].

use super::control::Patience;
use super::launch::{self, Programs};
use super::process::Process;
use super::{ControlError, Exit, LaunchError, LaunchPlan, Machine, Machines, ProcessRecord, control, events};
use crate::host::paths::SandboxPaths;
use crate::host::snapshots::SnapshotKey;
use crate::host::{Act, HostError};
use futures::future::BoxFuture;
use pinfold_domain::SandboxId;
use pinfold_service::Tasks;
use pinfold_vmm_api::RateLimit;
use pinfold_vmm_api::control::{
    ExitRecord, Request, Response, SnapshotKind, SnapshotRequest, SnapshotTaken, Status,
};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longest exit record that is read: a message and some counters.
const MAX_EXIT_BYTES: u64 = 64 * 1024;
/// A VMM answers when it has loaded its kernel, which takes seconds on a loaded machine. The start limit ends the wait
/// for one that never does.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3600);
/// A kill needs nothing but a thread that listens.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// All of guest memory goes to the disk, at the rate that the sandbox's limits leave.
const SAVE_TIMEOUT: Duration = Duration::from_secs(1800);
/// For a pause or a resume. Requests that are under way are finished first: those of the disk, and a save that an earlier agent
/// had asked for, or that this one did not wait for.
const TURN: Patience = Patience { idle: Duration::from_secs(30), limit: SAVE_TIMEOUT };
/// One look at the page tables.
const WORKING_SET_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct LinuxMachines {
    programs: Programs,
    /// of each disk of each machine
    disk_rate: RateLimit,
    tasks: Tasks,
}

impl LinuxMachines {
    pub fn new(programs: Programs, disk_rate: RateLimit, tasks: Tasks) -> Self {
        Self { programs, disk_rate, tasks }
    }
}

impl Machines for LinuxMachines {
    fn launch(&self, plan: LaunchPlan) -> BoxFuture<'_, Result<Arc<dyn Machine>, LaunchError>> {
        Box::pin(async move {
            let pid = launch::start(&self.programs, &plan, self.disk_rate).await?;
            let opened = Process::open_new(pid, &plan.cgroup).act(|| format!("watch process {pid}"))?;
            let process = opened.ok_or_else(|| LaunchError::Ended(self.ended(&plan.paths)))?;
            events::follow(&self.tasks, plan.id, plan.paths.control());
            let machine: Arc<dyn Machine> = Arc::new(LinuxMachine { process, paths: plan.paths });
            Ok(machine)
        })
    }

    fn attach(
        &self,
        id: SandboxId,
        paths: &SandboxPaths,
        process: ProcessRecord,
    ) -> Result<Option<Arc<dyn Machine>>, HostError> {
        let process = Process::open_known(process).act(|| format!("watch the VMM of {id}"))?;
        Ok(process.map(|process| {
            events::follow(&self.tasks, id, paths.control());
            let machine: Arc<dyn Machine> = Arc::new(LinuxMachine { process, paths: paths.clone() });
            machine
        }))
    }

    fn ended(&self, paths: &SandboxPaths) -> Exit {
        Exit { record: exit_record(&paths.exit()), signal: None }
    }
}

#[derive(Debug)]
struct LinuxMachine {
    process: Process,
    paths: SandboxPaths,
}

impl LinuxMachine {
    /// A request whose answer is that it was done.
    async fn order(
        &self,
        request: &Request,
        files: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), ControlError> {
        done(request, control::ask(&self.paths.control(), request, files, limit).await?)
    }

    /// The same of one that may have to wait.
    async fn order_in_turn(&self, request: Request) -> Result<(), ControlError> {
        let work = || self.process.work();
        done(&request, control::ask_at_work(&self.paths.control(), &request, TURN, work).await?)
    }
}

impl Machine for LinuxMachine {
    fn process(&self) -> ProcessRecord {
        self.process.record()
    }

    fn has_user_namespace(&self) -> Option<bool> {
        self.process.has_user_namespace()
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, ControlError>> {
        Box::pin(async move {
            match control::ask(&self.paths.control(), &Request::Status, &[], STATUS_TIMEOUT).await? {
                Response::Status(status) => Ok(status),
                other => Err(ControlError::Protocol(format!("{other:?} to a request for the status"))),
            }
        })
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(self.order_in_turn(Request::Pause))
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(self.order_in_turn(Request::Resume))
    }

    fn save<'a>(
        &'a self,
        state: &'a File,
        memory: &'a File,
        key: &'a SnapshotKey,
    ) -> BoxFuture<'a, Result<SnapshotTaken, ControlError>> {
        Box::pin(async move {
            let request =
                Request::Snapshot(SnapshotRequest { kind: SnapshotKind::Full, key: key.digits().to_owned() });
            let files = [state.as_fd(), memory.as_fd()];
            match control::ask(&self.paths.control(), &request, &files, SAVE_TIMEOUT).await? {
                Response::Snapshot(taken) => Ok(taken),
                other => Err(ControlError::Protocol(format!("{other:?} to a request for a snapshot"))),
            }
        })
    }

    fn working_set<'a>(&'a self, file: &'a File) -> BoxFuture<'a, Result<(), ControlError>> {
        Box::pin(async move { self.order(&Request::WorkingSet, &[file.as_fd()], WORKING_SET_TIMEOUT).await })
    }

    fn kill(&self) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(async move {
            match control::ask(&self.paths.control(), &Request::Kill, &[], KILL_TIMEOUT).await? {
                Response::Killed => Ok(()),
                other => Err(ControlError::Protocol(format!("{other:?} to a kill"))),
            }
        })
    }

    fn exited(&self) -> BoxFuture<'_, Exit> {
        Box::pin(async move {
            let signal = self.process.exited().await;
            Exit { record: exit_record(&self.paths.exit()), signal }
        })
    }
}

fn done(request: &Request, response: Response) -> Result<(), ControlError> {
    match response {
        Response::Done => Ok(()),
        other => Err(ControlError::Protocol(format!("{other:?} to {request:?}"))),
    }
}

/// The VMM writes it as one line; a file that does not begin with a whole one is no record. What follows is of a longer
/// record that another thread of the VMM wrote before.
fn exit_record(path: &Path) -> Option<ExitRecord> {
    let mut line = Vec::new();
    BufReader::new(File::open(path).ok()?.take(MAX_EXIT_BYTES)).read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice(&line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_vmm_api::control::ExitReason;

    #[test]
    fn a_record_that_was_written_over_a_longer_one_is_read() {
        let record = |reason, message: &str| {
            let record = ExitRecord::without_cost(reason, message);
            serde_json::to_string(&record).unwrap() + "\n"
        };
        let long = record(ExitReason::Internal, &"long ".repeat(50));
        let short = record(ExitReason::PageFaultHandler, "short");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{short}{}", &long[short.len()..])).unwrap();
        assert_eq!(exit_record(file.path()).map(|record| record.reason), Some(ExitReason::PageFaultHandler));
        std::fs::write(file.path(), &short[..20]).unwrap();
        assert_eq!(exit_record(file.path()), None);
    }
}
