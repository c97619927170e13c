//! The traits of a host, each over the [`super::World`].

use super::{Fake, Fault, exit};
use crate::guest::{GuestError, Guests, HelloFuture};
use crate::host::clone::{Cloned, Method};
use crate::host::paths::{SandboxPaths, remove_file};
use crate::host::snapshots::SnapshotKey;
use crate::host::{CgroupLimits, Cgroups, Disks, HostError, ImageError, Images, Kernel};
use crate::machine::{ControlError, Exit, LaunchError, LaunchPlan, Machine, Machines, ProcessRecord, Start};
use crate::sandbox::record::tests::assignment;
use futures::future::BoxFuture;
use pinfold_domain::SandboxId;
use pinfold_proto::guest::v1::{ConfigureRequest, Hello, WakeRequest};
use pinfold_service::CancellationToken;
use pinfold_vmm_api::control::{ExitReason, MachineState, SnapshotTaken, Status};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The one that a test names, else any that is there and stays as it is.
fn any_file(named: &Mutex<Option<PathBuf>>) -> PathBuf {
    named.lock().unwrap().clone().unwrap_or_else(|| std::env::current_exe().unwrap())
}

impl Images for Fake {
    fn images(&self) -> BTreeSet<String> {
        ["base".to_owned()].into()
    }
    fn kernels(&self) -> BTreeSet<String> {
        ["stock".to_owned()].into()
    }
    fn root_image(&self, name: &str) -> Result<PathBuf, ImageError> {
        if name != "base" || self.0.has(Fault::Image) {
            return Err(ImageError::Unknown { kind: "image", name: name.into(), have: String::new() });
        }
        Ok(any_file(&self.0.image))
    }
    fn kernel(&self, _name: Option<&str>) -> Result<Kernel, ImageError> {
        Ok(Kernel {
            name: "stock".into(),
            file: any_file(&self.0.kernel),
            initrd: None,
            cmdline: String::new(),
            mmio_on_cmdline: false,
        })
    }
}

impl Disks for Fake {
    fn create<'a>(&'a self, _path: &'a Path, _bytes: u64) -> BoxFuture<'a, Result<(), HostError>> {
        // a failed act may still have done half of its work
        self.0.hold("disk");
        Box::pin(async { self.0.fail(Fault::Disk, ()) })
    }
    fn sync<'a>(&'a self, _path: &'a Path) -> BoxFuture<'a, Result<(), HostError>> {
        self.0.note("disk synced");
        Box::pin(async { Ok(()) })
    }
    fn copy<'a>(&'a self, _from: &'a Path, to: &'a Path) -> BoxFuture<'a, Result<Cloned, HostError>> {
        Box::pin(async move {
            self.0.fail(Fault::Copy, ())?;
            if to.file_name() == Some("disk".as_ref()) {
                self.0.note("disk saved");
            } else {
                self.0.hold("disk");
            }
            let size = assignment(1).spec.resources.disk_bytes;
            std::fs::File::create_new(to).unwrap().set_len(size).unwrap();
            Ok(Cloned { method: Method::Shared, copied_bytes: 0, took: Duration::ZERO })
        })
    }
    fn remove(&self, path: &Path) -> Result<(), HostError> {
        self.0.release("disk");
        remove_file(path)
    }
}

impl Cgroups for Fake {
    fn create(&self, _id: SandboxId, _limits: &CgroupLimits) -> Result<(), HostError> {
        self.0.hold("cgroup");
        self.0.fail(Fault::Cgroup, ())
    }
    fn path(&self, id: SandboxId) -> PathBuf {
        PathBuf::from("/cgroup").join(id.to_string())
    }
    fn kill(&self, _id: SandboxId) -> Result<(), HostError> {
        if self.0.held.lock().unwrap().contains("machine") {
            self.0.release("machine");
            self.0.machine.cancel();
        }
        Ok(())
    }
    fn remove(&self, _id: SandboxId) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async {
            let failed = {
                let mut failed = self.0.removals_failed.lock().unwrap();
                *failed += 1;
                *failed
            };
            if self.0.has(Fault::RemoveAlways) || (self.0.has(Fault::RemoveSome) && failed < 3) {
                return Err(HostError::new("remove the cgroup", std::io::Error::other("busy")));
            }
            self.0.release("cgroup");
            Ok(())
        })
    }
    fn oom_kills(&self, _id: SandboxId) -> u64 {
        0
    }
    fn list(&self) -> Result<BTreeSet<SandboxId>, HostError> {
        Ok(BTreeSet::new())
    }
}

impl Machines for Fake {
    fn launch(&self, plan: LaunchPlan) -> BoxFuture<'_, Result<Arc<dyn Machine>, LaunchError>> {
        Box::pin(async move {
            if self.0.has(Fault::Launch) {
                return Err(LaunchError::Jail("on purpose".into()));
            }
            *self.0.machine.gone.lock().unwrap() = CancellationToken::new();
            *self.0.machine.memory_mib.lock().unwrap() = Some(plan.memory_mib);
            self.0.hold("machine");
            if let Start::Restore(restore) = &plan.start {
                let what =
                    if restore.working_set.is_some() { "restored with its working set" } else { "restored" };
                self.0.note(what);
                assert!(restore.memory.is_file() && restore.state.is_file());
                if self.0.has(Fault::BadSnapshot) {
                    self.0.release("machine");
                    return Err(LaunchError::Ended(exit(ExitReason::BadSnapshot)));
                }
            }
            if self.0.has(Fault::LaunchHangs) {
                std::future::pending::<()>().await;
            }
            let machine: Arc<dyn Machine> = Arc::new(self.clone());
            Ok(machine)
        })
    }
    fn attach(
        &self,
        _id: SandboxId,
        _paths: &SandboxPaths,
        _process: ProcessRecord,
    ) -> Result<Option<Arc<dyn Machine>>, HostError> {
        let lives = self.0.held.lock().unwrap().contains("machine");
        Ok(lives.then(|| {
            let machine: Arc<dyn Machine> = Arc::new(self.clone());
            machine
        }))
    }
    fn ended(&self, _paths: &SandboxPaths) -> Exit {
        self.0.machine.exit.lock().unwrap().clone()
    }
}

impl Machine for Fake {
    fn process(&self) -> ProcessRecord {
        ProcessRecord { pid: 4_000_000, start_ticks: 1 }
    }
    fn has_user_namespace(&self) -> Option<bool> {
        Some(false)
    }
    fn status(&self) -> BoxFuture<'_, Result<Status, ControlError>> {
        Box::pin(async {
            if self.0.has(Fault::Status) {
                return Err(ControlError::Timeout(1));
            }
            Ok(Status {
                state: MachineState::Running,
                version: "0".into(),
                timing: Default::default(),
                memory: Default::default(),
                counters: Default::default(),
                events: Vec::new(),
                confinement: Default::default(),
            })
        })
    }
    fn pause(&self) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(async { self.0.control(Fault::Pause, "paused") })
    }
    fn resume(&self) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(async {
            if self.0.has(Fault::ResumeHangs) {
                std::future::pending::<()>().await;
            }
            if self.0.has(Fault::ResumeLate) {
                let mut late = self.0.resumes_late.lock().unwrap();
                *late += 1;
                if *late <= 3 {
                    return Err(ControlError::Timeout(1));
                }
            }
            self.0.control(Fault::Resume, "resumed")
        })
    }
    fn save<'a>(
        &'a self,
        mut state: &'a std::fs::File,
        memory: &'a std::fs::File,
        _key: &'a SnapshotKey,
    ) -> BoxFuture<'a, Result<SnapshotTaken, ControlError>> {
        Box::pin(async move {
            if self.0.has(Fault::SaveHangs) {
                std::future::pending::<()>().await;
            }
            std::io::Write::write_all(&mut state, b"state").unwrap();
            let memory_mib = *self.0.machine.memory_mib.lock().unwrap();
            let memory_bytes = memory_mib.map(|mib| mib << 20);
            memory.set_len(memory_bytes.unwrap_or(assignment(1).spec.resources.memory_bytes)).unwrap();
            self.0.control(Fault::Save, "saved")?;
            Ok(SnapshotTaken { state_bytes: 5, memory_data_bytes: 0, took_us: 1 })
        })
    }
    fn working_set<'a>(&'a self, mut file: &'a std::fs::File) -> BoxFuture<'a, Result<(), ControlError>> {
        Box::pin(async move {
            std::io::Write::write_all(&mut file, b"pages").unwrap();
            self.0.note("working set");
            Ok(())
        })
    }
    fn kill(&self) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(async {
            if *self.0.machine.obeys.lock().unwrap() {
                self.0.note("killed over control");
                self.0.release("machine");
                self.0.machine.cancel();
            }
            Ok(())
        })
    }
    fn exited(&self) -> BoxFuture<'_, Exit> {
        Box::pin(async {
            self.0.machine.gone().cancelled().await;
            self.0.machine.exit.lock().unwrap().clone()
        })
    }
}

impl Guests for Fake {
    fn listen(&self, _paths: &SandboxPaths, _uid: u32) -> Result<HelloFuture, HostError> {
        if self.0.has(Fault::NoHello) {
            return Ok(Box::pin(std::future::pending()));
        }
        let hello = Hello { agent_version: "0".into(), kernel_release: "6".into(), uptime_ms: 1 };
        Ok(Box::pin(async { Ok(hello) }))
    }
    fn configure<'a>(
        &'a self,
        _paths: &'a SandboxPaths,
        _request: ConfigureRequest,
    ) -> BoxFuture<'a, Result<(), GuestError>> {
        Box::pin(async {
            if self.0.has(Fault::Configure) { Err(GuestError::Link("on purpose".into())) } else { Ok(()) }
        })
    }
    fn suspend<'a>(&'a self, _paths: &'a SandboxPaths) -> BoxFuture<'a, Result<(), GuestError>> {
        Box::pin(async {
            if self.0.has(Fault::Suspend) {
                return Err(GuestError::Answer("on purpose".into()));
            }
            self.0.note("suspended");
            Ok(())
        })
    }
    fn wake<'a>(
        &'a self,
        _paths: &'a SandboxPaths,
        request: WakeRequest,
    ) -> BoxFuture<'a, Result<(), GuestError>> {
        Box::pin(async move {
            if self.0.has(Fault::WakeHangs) {
                std::future::pending::<()>().await;
            }
            if self.0.has(Fault::Wake) {
                return Err(GuestError::Timeout(1));
            }
            assert!(request.clock_ms > 0 && request.entropy.len() >= 32 && request.machine_id.len() == 32);
            self.0.note(if request.generation.is_empty() { "woken" } else { "woken anew" });
            Ok(())
        })
    }
    fn shutdown<'a>(
        &'a self,
        _paths: &'a SandboxPaths,
        grace: Duration,
    ) -> BoxFuture<'a, Result<(), GuestError>> {
        Box::pin(async move {
            if self.0.has(Fault::Shutdown) {
                tokio::time::sleep(grace).await;
                return Err(GuestError::Timeout(grace.as_millis()));
            }
            self.0.note("guest shut down");
            self.0.release("machine");
            self.0.machine.cancel();
            Ok(())
        })
    }
}
