//! The actor against a host whose every part can be made to fail. Fakes stand at the traits; time is tokio's, paused.

use super::*;
use crate::guest::{GuestError, Guests, HelloFuture};
use crate::host::paths::{SandboxPaths, StateDirectory, remove_file};
use crate::host::uids::UidPool;
use crate::host::{CgroupLimits, Cgroups, Disks, HostError, ImageError, Images, Kernel};
use crate::machine::{ControlError, Exit, LaunchError, LaunchPlan, Machines, ProcessRecord};
use crate::sandbox::Host;
use crate::sandbox::bringup::{Taken, TakenList};
use crate::sandbox::record::tests::{ID, assignment};
use crate::sandbox::record::{Assignment, Changed, Ledger, Record};
use futures::future::BoxFuture;
use pinfold_domain::Milestone;
use pinfold_domain::{SandboxId, SandboxSpec};
use pinfold_proto::guest::v1::{ConfigureRequest, Hello};
use pinfold_vmm_api::control::{ExitReason, ExitRecord, MachineState, Status};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tokio::task::JoinHandle;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Image,
    Disk,
    Cgroup,
    Launch,
    LaunchHangs,
    Status,
    NoHello,
    Configure,
    /// the guest does not answer a shutdown
    Shutdown,
    /// the VMM does not obey a kill over its control socket
    Kill,
    /// the cgroup cannot be removed for some tries
    RemoveSome,
    RemoveAlways,
}

/// Every part of a host in one place: what it holds for sandboxes, and what goes wrong.
#[derive(Debug, Default)]
pub struct World {
    faults: Mutex<BTreeSet<Fault>>,
    /// what exists now
    held: Mutex<BTreeSet<String>>,
    /// what has happened, in order
    pub log: Mutex<Vec<String>>,
    removals_failed: Mutex<u32>,
    pub machine: FakeMachine,
}

#[derive(Debug, Clone, Default)]
pub struct FakeMachine {
    gone: CancellationToken,
    exit: Arc<Mutex<Exit>>,
    obeys: Arc<Mutex<bool>>,
}

impl FakeMachine {
    pub fn end(&self, exit: Exit) {
        *self.exit.lock().unwrap() = exit;
        self.gone.cancel();
    }
}

impl World {
    pub fn with(faults: impl IntoIterator<Item = Fault>) -> Arc<Self> {
        let world = Self { faults: Mutex::new(faults.into_iter().collect()), ..Self::default() };
        *world.machine.obeys.lock().unwrap() = !world.has(Fault::Kill);
        Arc::new(world)
    }

    fn has(&self, fault: Fault) -> bool {
        self.faults.lock().unwrap().contains(&fault)
    }

    fn note(&self, what: &str) {
        self.log.lock().unwrap().push(what.to_owned());
    }

    pub fn hold(&self, what: &str) {
        self.note(&format!("+{what}"));
        self.held.lock().unwrap().insert(what.to_owned());
    }

    fn release(&self, what: &str) {
        if self.held.lock().unwrap().remove(what) {
            self.note(&format!("-{what}"));
        }
    }

    pub fn held(&self) -> Vec<String> {
        self.held.lock().unwrap().iter().cloned().collect()
    }

    fn fail<T>(&self, fault: Fault, value: T) -> Result<T, HostError> {
        if self.has(fault) {
            return Err(HostError::new(format!("do {fault:?}"), std::io::Error::other("on purpose")));
        }
        Ok(value)
    }
}

#[derive(Clone)]
pub struct Fake(pub Arc<World>);

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
        Ok(PathBuf::from("/images/base/rootfs.erofs"))
    }
    fn kernel(&self, _name: Option<&str>) -> Result<Kernel, ImageError> {
        Ok(Kernel {
            name: "stock".into(),
            file: "/images/vmlinuz".into(),
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
            self.0.machine.gone.cancel();
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
    fn launch(&self, _plan: LaunchPlan) -> BoxFuture<'_, Result<Arc<dyn Machine>, LaunchError>> {
        Box::pin(async {
            if self.0.has(Fault::Launch) {
                return Err(LaunchError::Jail("on purpose".into()));
            }
            self.0.hold("machine");
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
            })
        })
    }
    fn kill(&self) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(async {
            if *self.0.machine.obeys.lock().unwrap() {
                self.0.note("killed over control");
                self.0.release("machine");
                self.0.machine.gone.cancel();
            }
            Ok(())
        })
    }
    fn exited(&self) -> BoxFuture<'_, Exit> {
        Box::pin(async {
            self.0.machine.gone.cancelled().await;
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
            self.0.machine.gone.cancel();
            Ok(())
        })
    }
}

pub fn host(world: &Arc<World>, directory: &Path) -> Host {
    let fake = Fake(Arc::clone(world));
    // uid of this process: a test need not be root
    let uid = rustix::process::geteuid().as_raw();
    Host {
        images: Arc::new(fake.clone()),
        disks: Arc::new(fake.clone()),
        cgroups: Arc::new(fake.clone()),
        machines: Arc::new(fake.clone()),
        guests: Arc::new(fake),
        uids: Arc::new(UidPool::new(uid, 1)),
        state: StateDirectory::open(directory).unwrap(),
        boot_id: "boot".into(),
    }
}

/// An actor that runs, and what a test looks at.
struct Bench {
    world: Arc<World>,
    host: Host,
    ledger: Arc<Ledger>,
    taken: TakenList,
    stop: watch::Sender<Option<Stop>>,
    detach: CancellationToken,
    task: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn start(faults: impl IntoIterator<Item = Fault>) -> Self {
        Self::with(faults, |_| {})
    }

    fn with(faults: impl IntoIterator<Item = Fault>, change: impl FnOnce(&mut Assignment)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let world = World::with(faults);
        let host = host(&world, directory.path());
        let mut assignment = assignment(1);
        change(&mut assignment);
        let paths = host.state.sandbox(ID.parse().unwrap());
        let changed: Changed = Arc::new(|_| {});
        let ledger = Arc::new(Ledger::new(Record::new("boot", assignment), paths, changed));
        let (stop, orders) = watch::channel(None);
        let (detach, taken) = (CancellationToken::new(), TakenList::default());
        let context = Context { host: host.clone(), ledger: Arc::clone(&ledger), taken: taken.clone() };
        let actor = Actor {
            context,
            begin: Begin::Assigned { after: None },
            stop: orders,
            detach: detach.clone(),
            ended: CancellationToken::new(),
        };
        #[allow(clippy::disallowed_methods, reason = "a test waits for its task itself")]
        let task = tokio::spawn(actor.run());
        Self { world, host, ledger, taken, stop, detach, task, _directory: directory }
    }

    async fn until(&self, phase: Phase) {
        let mut reports = self.ledger.reports();
        let reached = reports.wait_for(|report| report.phase == phase);
        tokio::time::timeout(Duration::from_secs(7200), reached).await.expect("the phase comes").unwrap();
    }

    fn order(&self, reason: Reason, grace: Duration) {
        self.stop.send_replace(Some(Stop { cause: Cause::new(reason, "asked"), grace }));
    }

    /// The last phase and reason, after everything is gone.
    async fn end(self) -> (Phase, Reason, String) {
        tokio::time::timeout(Duration::from_secs(7200), self.task).await.expect("it ends").unwrap();
        assert_eq!(self.world.held(), [] as [&str; 0], "{:?}", self.world.log.lock().unwrap());
        assert_eq!(self.taken.last(), None);
        assert_eq!(self.host.uids.taken(), 0);
        let paths = self.ledger.paths();
        for path in [paths.jail(), paths.control(), paths.vsock(), paths.disk()] {
            assert!(!path.exists(), "{}", path.display());
        }
        let report = self.ledger.reports().borrow().clone();
        assert_eq!(report.milestones.last().map(|(milestone, _)| *milestone), Some(Milestone::Stopped));
        let cause = report.cause.expect("an end has a cause");
        (report.phase, cause.reason, cause.message)
    }
}

#[tokio::test(start_paused = true)]
async fn the_whole_life_in_order() {
    let bench = Bench::start([]);
    bench.until(Phase::Running).await;
    let milestones: Vec<_> =
        bench.ledger.record().milestones.iter().map(|(milestone, _)| *milestone).collect();
    assert_eq!(milestones, [Milestone::Jailed, Milestone::Booted, Milestone::GuestReady]);
    bench.order(Reason::StopRequested, Duration::from_secs(5));
    let world = Arc::clone(&bench.world);
    let (phase, reason, message) = bench.end().await;
    assert_eq!((phase, reason, message.as_str()), (Phase::Stopped, Reason::StopRequested, "asked"));
    let log = world.log.lock().unwrap().join(" ");
    assert_eq!(log, "+disk +cgroup +machine guest shut down -machine -cgroup -disk");
}

#[tokio::test(start_paused = true)]
async fn a_failure_at_any_step_is_undone_and_named() {
    for (fault, expected) in [
        (Fault::Image, Reason::ImageUnknown),
        (Fault::Disk, Reason::HostResources),
        (Fault::Cgroup, Reason::HostResources),
        (Fault::Launch, Reason::JailFailed),
        (Fault::Status, Reason::VmmFailed),
        (Fault::Configure, Reason::GuestUnresponsive),
    ] {
        let (phase, reason, message) = Bench::start([fault]).end().await;
        assert_eq!((phase, reason), (Phase::Failed, expected), "{fault:?}: {message}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_start_limit_holds_wherever_it_hangs() {
    for (fault, reached) in [(Fault::LaunchHangs, "assigned"), (Fault::NoHello, "booted")] {
        let (phase, reason, message) = Bench::start([fault]).end().await;
        assert_eq!((phase, reason), (Phase::Failed, Reason::StartTimeout), "{fault:?}");
        assert!(message.contains(reached) && message.contains("60000 ms"), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_it_starts_ends_it_at_once() {
    for fault in [Fault::LaunchHangs, Fault::NoHello] {
        let bench = Bench::start([fault]);
        while !bench.world.held().contains(&"machine".to_owned()) {
            tokio::task::yield_now().await;
        }
        bench.order(Reason::DeleteRequested, Duration::from_secs(5));
        let (phase, reason, _) = bench.end().await;
        assert_eq!((phase, reason), (Phase::Stopped, Reason::DeleteRequested), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_to_live_is_kept_here() {
    let soon = |assignment: &mut Assignment| {
        assignment.expires_at = assignment.assigned_at.after(Duration::from_secs(100));
    };
    let bench = Bench::with([], soon);
    let (phase, reason, _) = bench.end().await;
    assert_eq!((phase, reason), (Phase::Stopped, Reason::TtlExpired));
    // also while it starts
    let (phase, reason, _) = Bench::with([Fault::NoHello], |assignment| {
        assignment.expires_at = assignment.assigned_at.after(Duration::from_secs(10));
    })
    .end()
    .await;
    assert_eq!((phase, reason), (Phase::Stopped, Reason::TtlExpired));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_stop_is_ended() {
    let bench = Bench::start([Fault::Shutdown]);
    bench.until(Phase::Running).await;
    bench.order(Reason::StopRequested, Duration::from_secs(5));
    let world = Arc::clone(&bench.world);
    assert_eq!(bench.end().await.1, Reason::StopRequested);
    assert!(world.log.lock().unwrap().contains(&"killed over control".to_owned()));
    // and a VMM that does not obey either falls with its cgroup
    let bench = Bench::start([Fault::Shutdown, Fault::Kill]);
    bench.until(Phase::Running).await;
    bench.order(Reason::StopRequested, Duration::from_secs(5));
    let world = Arc::clone(&bench.world);
    assert_eq!(bench.end().await.1, Reason::StopRequested);
    assert!(!world.log.lock().unwrap().contains(&"killed over control".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_end_that_nobody_asked_for_has_its_true_reason() {
    for (reason, phase, expected) in [
        (ExitReason::GuestPowerOff, Phase::Stopped, Reason::GuestPowerOff),
        (ExitReason::GuestReset, Phase::Failed, Reason::GuestReset),
        (ExitReason::Internal, Phase::Failed, Reason::VmmFailed),
    ] {
        let bench = Bench::start([]);
        bench.until(Phase::Running).await;
        let record = ExitRecord {
            reason,
            message: String::new(),
            memory: Default::default(),
            counters: Default::default(),
            events: Vec::new(),
        };
        bench.world.release("machine");
        bench.world.machine.end(Exit { record: Some(record), signal: None });
        let (ended, found, _) = bench.end().await;
        assert_eq!((ended, found), (phase, expected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_ends_while_it_starts_fails_with_its_own_reason() {
    let bench = Bench::start([Fault::NoHello]);
    while bench.ledger.record().milestones.len() < 2 {
        tokio::task::yield_now().await;
    }
    let record = ExitRecord {
        reason: ExitReason::BadKernel,
        message: "no bzImage".into(),
        memory: Default::default(),
        counters: Default::default(),
        events: Vec::new(),
    };
    bench.world.release("machine");
    bench.world.machine.end(Exit { record: Some(record), signal: None });
    let (phase, reason, message) = bench.end().await;
    assert_eq!((phase, reason, message.as_str()), (Phase::Failed, Reason::KernelInvalid, "no bzImage"));
}

#[tokio::test(start_paused = true)]
async fn an_undo_is_repeated_and_what_stays_is_named() {
    let bench = Bench::start([Fault::RemoveSome]);
    bench.until(Phase::Running).await;
    bench.order(Reason::StopRequested, Duration::ZERO);
    assert_eq!(bench.end().await.1, Reason::StopRequested);

    let bench = Bench::start([Fault::RemoveAlways]);
    bench.until(Phase::Running).await;
    bench.order(Reason::StopRequested, Duration::ZERO);
    bench.task.await.unwrap();
    let cause = bench.ledger.record().cause.unwrap();
    assert!(cause.message.contains("left behind: Cgroup"), "{}", cause.message);
    // what is beneath it stays too, and nobody else gets the uid
    assert_eq!(bench.taken.last(), Some(Taken::Cgroup));
    assert_eq!(bench.host.uids.take(), None);
}

#[tokio::test(start_paused = true)]
async fn when_the_agent_ends_the_sandbox_goes_on() {
    let bench = Bench::start([]);
    bench.until(Phase::Running).await;
    bench.detach.cancel();
    bench.task.await.unwrap();
    assert_eq!(bench.world.held(), ["cgroup", "disk", "machine"]);
    assert_eq!(bench.ledger.record().phase, Phase::Running);
    let text = std::fs::read(bench.ledger.paths().record()).unwrap();
    assert_eq!(serde_json::from_slice::<Record>(&text).unwrap(), bench.ledger.record());
}

#[test]
fn specs_of_tests_are_valid() {
    let spec: SandboxSpec = assignment(1).spec;
    spec.validate().unwrap();
}
