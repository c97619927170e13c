//! What a second agent makes of what the first one left: the records are real files, the host is the actor tests' fake.

use super::*;
use crate::catalog::Origin;
use crate::host::snapshots::draft::Subject;
use crate::host::snapshots::{Draft, FileIdentity, KernelIdentity, Mapped};
use crate::machine::{Made, ProcessRecord};
use crate::registry::Registry;
use crate::sandbox::fake_host::{Fault, World, host};
use crate::sandbox::record::Assignment;
use crate::sandbox::record::tests::{ID, assignment};
use pinfold_domain::{Epoch, Resources};
use pinfold_proto::convert::sandbox::StatusReport;
use pinfold_service::{CancellationToken, Tasks};
use pinfold_vmm_api::control::{ExitReason, ExitRecord};

struct Left {
    world: Arc<World>,
    host: Host,
    _directory: tempfile::TempDir,
}

/// A node on which `held` exists and the record is as `change` makes it.
fn left(held: &[&str], change: impl FnOnce(&mut Record)) -> Left {
    let directory = tempfile::tempdir().unwrap();
    let world = World::with([]);
    held.iter().for_each(|what| world.hold(what));
    let host = host(&world, directory.path());
    let mut record = Record::new("boot", assignment(3));
    record.uid = Some(rustix::process::geteuid().as_raw());
    record.process = Some(ProcessRecord { pid: 4_000_000, start_ticks: 1 });
    record.phase = Phase::Running;
    change(&mut record);
    let paths = host.state.sandbox(ID.parse().unwrap());
    paths.create().unwrap();
    Ledger::new(record, paths, Arc::new(|_| {})).save();
    Left { world, host, _directory: directory }
}

const ALL: [&str; 3] = ["cgroup", "disk", "machine"];

impl Left {
    async fn recovered(&self) -> Arc<Registry> {
        let room = Resources { cpu_millis: 4000, memory_bytes: 1 << 30, disk_bytes: 1 << 32, pids: 10_000 };
        let registry = Registry::new(self.host.clone(), room, Tasks::default(), CancellationToken::new());
        for found in run(&self.host, &registry.changed()).await.unwrap() {
            registry.adopt(found);
        }
        Arc::new(registry)
    }

    /// The report once it is of `phase`; `None` when no such sandbox is known.
    async fn report(&self, registry: &Registry, phase: Phase) -> Option<StatusReport> {
        let ledger = registry.ledger(ID.parse().unwrap())?;
        let mut reports = ledger.reports();
        let reached =
            tokio::time::timeout(Duration::from_secs(600), reports.wait_for(|report| report.phase == phase));
        Some(reached.await.expect("the phase comes").unwrap().clone())
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.world.held(), [] as [&str; 0]);
        assert_eq!(self.host.uids.taken(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_lives_goes_on_under_the_new_agent() {
    let left = left(&ALL, |_| {});
    let registry = left.recovered().await;
    let before = left.report(&registry, Phase::Running).await.unwrap();
    assert_eq!((before.epoch, before.sequence), (Epoch(3), 1), "nothing has changed");
    assert_eq!(left.world.held(), ALL);
    assert_eq!(left.host.uids.take(), None, "its uid is not given to another");
    // and it can be ended
    let stop = Stop { cause: Cause::new(Reason::StopRequested, "asked"), grace: Duration::from_secs(1) };
    assert!(registry.stop(ID.parse().unwrap(), Epoch(3), stop));
    left.report(&registry, Phase::Stopped).await.unwrap();
    left.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_was_booting_becomes_ready() {
    let left = left(&ALL, |record| record.phase = Phase::Starting);
    let registry = left.recovered().await;
    left.report(&registry, Phase::Running).await.unwrap();
    assert_eq!(left.world.held(), ALL);
}

#[tokio::test(start_paused = true)]
async fn what_had_no_machine_yet_is_begun_anew() {
    let left = left(&["disk"], |record| {
        record.phase = Phase::Starting;
        record.process = None;
    });
    let registry = left.recovered().await;
    left.report(&registry, Phase::Running).await.unwrap();
    let log = left.world.log.lock().unwrap().join(" ");
    assert_eq!(log, "+disk -disk +disk +cgroup +machine");
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_gone_fails_with_its_own_reason() {
    let left = left(&ALL[..2], |_| {});
    let record = ExitRecord::without_cost(ExitReason::GuestReset, "triple fault");
    left.world.machine.end(Exit { record: Some(record), signal: None });
    let registry = left.recovered().await;
    let report = left.report(&registry, Phase::Failed).await.unwrap();
    assert_eq!(report.cause.unwrap(), Cause::new(Reason::GuestReset, "triple fault"));
    left.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_was_under_way_is_carried_out() {
    for held in [&ALL[..], &ALL[..2]] {
        let left = left(held, |record| {
            record.phase = Phase::Stopping;
            record.cause = Some(Cause::new(Reason::DeleteRequested, "asked"));
        });
        let registry = left.recovered().await;
        let report = left.report(&registry, Phase::Stopped).await.unwrap();
        assert_eq!(report.cause.unwrap().reason, Reason::DeleteRequested);
        left.nothing_is_left();
    }
}

#[tokio::test(start_paused = true)]
async fn another_boot_has_no_machine_of_this_one() {
    // the pid of the record may be anybody's now
    let left = left(&ALL, |record| record.boot_id = "earlier".into());
    let registry = left.recovered().await;
    let cause = left.report(&registry, Phase::Failed).await.unwrap().cause.unwrap();
    assert_eq!((cause.reason, cause.message.contains("booted again")), (Reason::VmmFailed, true));
}

#[tokio::test(start_paused = true)]
async fn an_end_that_was_not_forgotten_is_told_again() {
    let left = left(&[], |record| {
        record.phase = Phase::Stopped;
        record.cause = Some(Cause::new(Reason::TtlExpired, "over"));
    });
    let registry = left.recovered().await;
    assert_eq!(registry.reports().len(), 1);
    assert_eq!(registry.reports()[0].phase, Phase::Stopped);
    registry.forget(ID.parse().unwrap(), Epoch(3));
    assert!(registry.reports().is_empty() && left.host.state.list().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_removed() {
    let other: Assignment = Assignment { id: ID.replace("0001", "0002").parse().unwrap(), ..assignment(1) };
    let foreign = serde_json::to_string(&Record::new("boot", other)).unwrap();
    for text in ["", "{", &foreign] {
        let left = left(&ALL, |_| {});
        std::fs::write(left.host.state.sandbox(ID.parse().unwrap()).record(), text).unwrap();
        let registry = left.recovered().await;
        assert!(registry.reports().is_empty());
        // the disk is a file of the directory that goes as a whole
        assert_eq!(left.world.held(), ["disk"]);
        assert!(left.host.state.list().unwrap().is_empty());
    }
}

/// A sandbox of another phase than Running, whose machine is saved if `saved`.
fn saving(held: &[&str], phase: Phase, saved: bool, change: impl FnOnce(&mut Record)) -> Left {
    let left = left(held, |record| {
        record.phase = phase;
        record.saving.saved = saved;
        record.order = 7;
        record.saving.generation = Some("a generation".into());
        record.saving.expires_ms = Some(crate::guest::clock_ms() + 1_000_000);
        change(record);
    });
    if saved {
        let paths = left.host.state.sandbox(ID.parse().unwrap());
        let spec = assignment(3).spec;
        let draft = Draft::begin(paths.saved(), false).unwrap();
        let (mut state, memory) = draft.files().unwrap();
        std::io::Write::write_all(&mut state, b"state").unwrap();
        memory.set_len(spec.resources.memory_bytes).unwrap();
        let image = FileIdentity::of("base", &left.host.images.root_image("base").unwrap()).unwrap();
        let kernel = left.host.images.kernel(None).unwrap();
        let kernel = KernelIdentity::of(None, &kernel).unwrap();
        let made = Made::default();
        let subject = Subject { tenant: "default".into(), source: ID.into(), spec, image, kernel, made };
        draft.publish(&subject, || true).unwrap();
    }
    left
}

impl Left {
    async fn ends(&self, registry: &Registry) {
        let stop = Stop { cause: Cause::new(Reason::DeleteRequested, "asked"), grace: Duration::ZERO };
        assert!(registry.stop(ID.parse().unwrap(), Epoch(3), stop));
        self.report(registry, Phase::Stopped).await.unwrap();
        self.nothing_is_left();
        assert!(!self.host.state.sandbox(ID.parse().unwrap()).saved().exists());
    }

    fn log(&self) -> String {
        self.world.log.lock().unwrap().join(" ")
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_sandbox_is_taken_up_without_a_process_and_resumed() {
    let left = saving(&["disk"], Phase::Paused, true, |record| record.process = None);
    let saved = left.host.state.sandbox(ID.parse().unwrap()).saved();
    let halves = ["new", "going-1-2"].map(|suffix| saved.with_extension(suffix));
    halves.iter().for_each(|half| std::fs::create_dir(half).unwrap());
    let registry = left.recovered().await;
    assert!(!halves.iter().any(|half| half.exists()) && saved.exists());
    let report = left.report(&registry, Phase::Paused).await.unwrap();
    assert_eq!((report.epoch, report.order), (Epoch(3), 7));
    assert!(registry.resume(ID.parse().unwrap(), Epoch(3), 8));
    left.report(&registry, Phase::Running).await.unwrap();
    assert!(left.log().ends_with("+cgroup +machine restored resumed woken anew"), "{}", left.log());
    left.ends(&registry).await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_finished_by_the_next_agent() {
    // all was on the disk, and the machine had not ended yet
    let left = saving(&ALL, Phase::Pausing, true, |_| {});
    let registry = left.recovered().await;
    left.report(&registry, Phase::Paused).await.unwrap();
    assert_eq!(left.world.held(), ["disk"]);
    left.ends(&registry).await;
    // the machine stood still and nothing was on the disk: it is saved anew
    let left = saving(&ALL, Phase::Pausing, false, |record| record.saving.suspended = true);
    let registry = left.recovered().await;
    left.report(&registry, Phase::Paused).await.unwrap();
    assert!(left.log().contains("resumed suspended paused disk synced saved"), "{}", left.log());
    left.ends(&registry).await;
    // the machine is gone and nothing was on the disk
    let left = saving(&ALL[..2], Phase::Pausing, false, |_| {});
    let registry = left.recovered().await;
    left.report(&registry, Phase::Failed).await.unwrap();
    left.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_resume_is_finished_by_the_next_agent() {
    // no guest has run: from the beginning
    let left = saving(&["disk", "cgroup"], Phase::Resuming, true, |record| record.process = None);
    let registry = left.recovered().await;
    left.report(&registry, Phase::Running).await.unwrap();
    assert!(left.log().ends_with("-cgroup +cgroup +machine restored resumed woken anew"), "{}", left.log());
    left.ends(&registry).await;
    // the machine was lost before a guest ran in it: what was saved is whole, so from the beginning too
    let left = saving(&["disk", "cgroup"], Phase::Resuming, true, |_| {});
    let registry = left.recovered().await;
    left.report(&registry, Phase::Running).await.unwrap();
    left.ends(&registry).await;
    // the machine is there: its guest is woken, as the same one
    let left = saving(&ALL, Phase::Resuming, true, |record| {
        // its start limit was over long before it was resumed
        record.assignment.assigned_at = crate::clock::BootTime(0);
    });
    let registry = left.recovered().await;
    left.report(&registry, Phase::Running).await.unwrap();
    assert!(left.log().ends_with("resumed woken anew"), "{}", left.log());
    left.ends(&registry).await;
    // it has run, and is gone: its files are of an older instant
    let left = saving(&ALL[..2], Phase::Resuming, false, |_| {});
    let registry = left.recovered().await;
    left.report(&registry, Phase::Failed).await.unwrap();
    left.nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_an_earlier_agent_left_standing_still_is_woken() {
    let left = left(&ALL, |record| record.saving.suspended = true);
    let registry = left.recovered().await;
    while !left.log().contains("resumed woken") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    left.report(&registry, Phase::Running).await.unwrap();
    left.ends(&registry).await;
}

#[tokio::test(start_paused = true)]
async fn a_vmm_that_is_late_to_go_on_is_asked_again_and_one_that_does_not_answer_is_given_up() {
    // a large save of the earlier agent is not over yet
    for phase in [Phase::Running, Phase::Pausing] {
        let left = left(&ALL, |record| {
            record.phase = phase;
            record.saving.suspended = true;
        });
        left.world.break_by(Fault::ResumeLate);
        let registry = left.recovered().await;
        let woken = async {
            while !left.log().contains("resumed woken") {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(600), woken).await.expect("it goes on");
        let report = left.report(&registry, Phase::Running).await.unwrap();
        // the pause has failed, the sandbox has not
        assert_eq!(report.cause.is_some(), phase == Phase::Pausing, "{report:?}");
        left.ends(&registry).await;
    }
    let left = left(&ALL, |record| record.saving.suspended = true);
    left.world.break_by(Fault::ResumeLate);
    left.world.break_by(Fault::Status);
    let registry = left.recovered().await;
    let report = left.report(&registry, Phase::Failed).await.unwrap();
    assert_eq!(report.cause.unwrap().reason, Reason::GuestUnresponsive);
}

#[tokio::test(start_paused = true)]
async fn a_paused_sandbox_outlives_the_boot_with_the_time_that_is_left() {
    let left = saving(&["disk"], Phase::Paused, true, |record| {
        record.boot_id = "earlier".into();
        record.saving.expires_ms = Some(crate::guest::clock_ms() + 500_000);
    });
    let registry = left.recovered().await;
    left.report(&registry, Phase::Paused).await.unwrap();
    let expires = registry.ledger(ID.parse().unwrap()).unwrap().assignment().expires_at.remaining();
    assert!((490..=500).contains(&expires.as_secs()), "{expires:?}");
    left.ends(&registry).await;
}

#[tokio::test(start_paused = true)]
async fn what_an_adopted_machine_maps_is_charged_until_it_has_ended() {
    let origin = Origin::Snapshot(ID.parse().unwrap());
    let mapped = Mapped { inode: 1, bytes: 5 << 20 };
    let left = left(&ALL, |record| record.saving.maps = Some((origin, mapped)));
    let registry = left.recovered().await;
    let watched = Arc::downgrade(&left.host.catalog.adopt(origin, mapped));
    assert_eq!(watched.strong_count(), 1, "its sandbox has it");
    left.ends(&registry).await;
    assert_eq!(watched.strong_count(), 0);
    assert_eq!(registry.ledger(ID.parse().unwrap()).unwrap().saving().maps, None);
}

#[tokio::test(start_paused = true)]
async fn what_was_booted_for_a_template_goes() {
    let left = left(&ALL, |record| record.saving.builds = Some(ID.parse().unwrap()));
    let registry = left.recovered().await;
    assert!(registry.reports().is_empty() && left.host.state.list().unwrap().is_empty());
    assert_eq!(left.world.held(), ["disk"], "a file of the directory that goes as a whole");
}
