//! The actor against a host whose every part can be made to fail. Time is tokio's, paused.

use super::*;
use crate::sandbox::Host;
use crate::sandbox::bringup::{Taken, TakenList};
use crate::sandbox::fake_host::{Fault, World, exit, host};
use crate::sandbox::record::tests::{ID, assignment};
use crate::sandbox::record::{Assignment, Changed, Ledger, Record};
use pinfold_domain::{Milestone, SandboxSpec, Source};
use pinfold_vmm_api::control::ExitReason;
use tokio::task::JoinHandle;

mod saving;

/// An actor that runs, and what a test looks at.
struct Bench {
    world: Arc<World>,
    host: Host,
    ledger: Arc<Ledger>,
    taken: TakenList,
    stop: watch::Sender<Option<Stop>>,
    orders: mpsc::Sender<Order>,
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
        Self::on(directory, world, host, change)
    }

    /// On a host that `prepare` has prepared before anything goes wrong.
    async fn prepared<Prepared: Future<Output = ()>>(
        faults: &[Fault],
        source: Source,
        prepare: impl FnOnce(Host) -> Prepared,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let world = World::with([]);
        let host = host(&world, directory.path());
        prepare(host.clone()).await;
        faults.iter().for_each(|fault| world.break_by(*fault));
        world.log.lock().unwrap().clear();
        Self::on(directory, world, host, |assignment| {
            assignment.template =
                matches!(source, Source::Template(_)).then(|| saving::SNAPSHOT.parse().unwrap());
            assignment.spec.source = source;
        })
    }

    fn on(
        directory: tempfile::TempDir,
        world: Arc<World>,
        host: Host,
        change: impl FnOnce(&mut Assignment),
    ) -> Self {
        let mut assignment = assignment(1);
        change(&mut assignment);
        let paths = host.state.sandbox(ID.parse().unwrap());
        let changed: Changed = Arc::new(|_| {});
        let ledger = Arc::new(Ledger::new(Record::new("boot", assignment), paths, changed));
        let (stop, stopped) = watch::channel(None);
        let (orders, receiver) = mpsc::channel(ORDERS);
        let (detach, taken) = (CancellationToken::new(), TakenList::default());
        let context = Context { host: host.clone(), ledger: Arc::clone(&ledger), taken: taken.clone() };
        let actor = Actor {
            context,
            begin: Begin::Assigned { after: None },
            stop: stopped,
            orders: receiver,
            detach: detach.clone(),
            ended: CancellationToken::new(),
        };
        #[allow(clippy::disallowed_methods, reason = "a test waits for its task itself")]
        let task = tokio::spawn(actor.run());
        Self { world, host, ledger, taken, stop, orders, detach, task, _directory: directory }
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
        for path in [paths.jail(), paths.control(), paths.vsock(), paths.disk(), paths.saved()] {
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
        bench.world.release("machine");
        bench.world.machine.end(exit(reason));
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
    bench.world.release("machine");
    bench.world.machine.end(exit(ExitReason::BadKernel));
    let (phase, reason, message) = bench.end().await;
    assert_eq!((phase, reason, message.as_str()), (Phase::Failed, Reason::KernelInvalid, "on purpose"));
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
