//! Pause, resume, snapshots, and what is made from them.

use super::*;
use crate::catalog::Held;
use crate::host::snapshots::Unusable;
use crate::machine::Made;
use crate::machine::confinement::tests::Captured;
use crate::sandbox::template;
use pinfold_domain::{SnapshotId, Source, TemplateId};

pub const SNAPSHOT: &str = "0190b3f0-5a00-7000-8000-00000000000b";

fn snapshot() -> SnapshotId {
    SNAPSHOT.parse().unwrap()
}

fn template() -> TemplateId {
    SNAPSHOT.parse().unwrap()
}

impl Bench {
    /// As the registry gives it: the phase changes first.
    fn pause(&self, order: u64) {
        assert_eq!(self.ledger.take_up(order, Phase::Running, Phase::Pausing), Some(true));
        self.orders.try_send(Order::Pause).unwrap();
    }

    fn resume(&self, order: u64) {
        assert_eq!(self.ledger.take_up(order, Phase::Paused, Phase::Resuming), Some(true));
        self.orders.try_send(Order::Resume).unwrap();
    }

    fn take_snapshot(&self) {
        self.host.catalog.snapshots.begin(snapshot(), 1).unwrap().unwrap();
        self.orders.try_send(Order::Snapshot(snapshot())).unwrap();
    }

    async fn snapshot_made(&self) -> Held {
        loop {
            match self.host.catalog.snapshots.get(snapshot()) {
                Some(Held::Making) => tokio::time::sleep(Duration::from_millis(1)).await,
                held => return held.expect("it is listed"),
            }
        }
    }

    fn log(&self) -> String {
        self.world.log.lock().unwrap().join(" ")
    }

    fn clear_log(&self) {
        self.world.log.lock().unwrap().clear();
    }
}

async fn paused() -> Bench {
    let bench = Bench::start([]);
    bench.until(Phase::Running).await;
    bench.clear_log();
    bench.pause(1);
    bench.until(Phase::Paused).await;
    bench
}

#[tokio::test(start_paused = true)]
async fn a_pause_gives_all_back_but_the_disk_and_a_resume_takes_it_again() {
    let bench = paused().await;
    assert_eq!(bench.log(), "suspended paused disk synced saved killed over control -machine -cgroup");
    assert_eq!(bench.world.held(), ["disk"]);
    let record = bench.ledger.record();
    assert_eq!((record.process, record.order, record.saving.saved), (None, 1, true));
    assert!(!bench.ledger.paths().jail().exists() && bench.ledger.paths().saved().join("memory").exists());
    bench.clear_log();
    bench.resume(2);
    bench.until(Phase::Running).await;
    assert_eq!(bench.log(), "+cgroup +machine restored resumed woken anew");
    let record = bench.ledger.record();
    assert!(record.process.is_some() && !record.saving.saved && record.cause.is_none());
    // and once more, which replaces what was saved
    bench.pause(3);
    bench.until(Phase::Paused).await;
    bench.resume(4);
    bench.until(Phase::Running).await;
    bench.order(Reason::StopRequested, Duration::from_secs(1));
    assert_eq!(bench.end().await.1, Reason::StopRequested);
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_fails_leaves_it_running_and_says_why() {
    for (fault, step) in [
        (Fault::Suspend, "the guest does not stand still"),
        (Fault::Pause, "cannot be paused"),
        (Fault::Save, "the machine"),
    ] {
        let bench = Bench::start([fault]);
        bench.until(Phase::Running).await;
        bench.pause(1);
        bench.until(Phase::Pausing).await;
        bench.until(Phase::Running).await;
        let report = bench.ledger.reports().borrow().clone();
        let cause = report.cause.expect("why");
        assert_eq!((cause.reason, report.order), (Reason::SnapshotFailed, 1), "{fault:?}");
        assert!(cause.message.contains(step), "{fault:?}: {}", cause.message);
        assert!(bench.log().ends_with("resumed woken"), "{}", bench.log());
        assert!(!bench.ledger.saving().suspended && !bench.ledger.paths().saved().exists());
        assert_eq!(bench.world.held(), ["cgroup", "disk", "machine"]);
        // the next one may work
        bench.world.mend(fault);
        bench.pause(2);
        bench.until(Phase::Paused).await;
        bench.order(Reason::DeleteRequested, Duration::ZERO);
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_does_not_go_on_after_a_failed_pause_has_failed() {
    let bench = Bench::start([Fault::Save, Fault::Wake]);
    bench.until(Phase::Running).await;
    bench.pause(1);
    let (phase, reason, message) = bench.end().await;
    assert_eq!((phase, reason), (Phase::Failed, Reason::GuestUnresponsive), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_save_that_does_not_end_is_given_up_in_time_and_the_sandbox_goes_on() {
    let bench = Bench::with([Fault::SaveHangs], |assignment| {
        assignment.expires_at = assignment.assigned_at.after(Duration::from_secs(30_000));
    });
    bench.until(Phase::Running).await;
    bench.pause(1);
    bench.until(Phase::Pausing).await;
    let begun = Instant::now();
    bench.until(Phase::Running).await;
    assert!((600..610).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let cause = bench.ledger.record().cause.expect("why");
    assert_eq!(cause, Cause::new(Reason::SnapshotFailed, "it was not saved within 600 s"));
    bench.take_snapshot();
    let Held::Failed(cause) = bench.snapshot_made().await else { panic!("it was made") };
    assert_eq!(cause.reason, Reason::SnapshotFailed);
    // a machine that does not go on after it does not hold up its end
    bench.pause(2);
    bench.until(Phase::Pausing).await;
    bench.world.break_by(Fault::ResumeHangs);
    tokio::time::sleep(Duration::from_secs(700)).await;
    assert_eq!(bench.ledger.record().phase, Phase::Pausing);
    let begun = Instant::now();
    bench.order(Reason::StopRequested, Duration::from_secs(3));
    assert_eq!(bench.end().await.1, Reason::StopRequested);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_resume_that_never_ran_leaves_it_paused_and_says_why() {
    for fault in [Fault::Cgroup, Fault::Launch, Fault::Status] {
        let bench = paused().await;
        bench.world.break_by(fault);
        bench.resume(2);
        bench.until(Phase::Resuming).await;
        bench.until(Phase::Paused).await;
        let report = bench.ledger.reports().borrow().clone();
        assert!(report.cause.is_some() && report.order == 2, "{fault:?}: {report:?}");
        assert_eq!(bench.world.held(), ["disk"], "{fault:?}");
        bench.world.mend(fault);
        bench.resume(3);
        bench.until(Phase::Running).await;
        bench.order(Reason::StopRequested, Duration::ZERO);
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_resume_that_ran_and_failed_has_failed() {
    for (fault, expected) in [
        (Fault::Resume, Reason::RestoreFailed),
        (Fault::Wake, Reason::RestoreFailed),
        (Fault::WakeHangs, Reason::RestoreFailed),
        (Fault::BadSnapshot, Reason::SnapshotInvalid),
    ] {
        let bench = paused().await;
        bench.world.break_by(fault);
        bench.resume(2);
        let (phase, reason, message) = bench.end().await;
        assert_eq!((phase, reason), (Phase::Failed, expected), "{fault:?}: {message}");
    }
    // files that are not whole any more
    let bench = paused().await;
    std::fs::remove_file(bench.ledger.paths().saved().join("memory")).unwrap();
    bench.resume(2);
    assert_eq!(bench.end().await.1, Reason::SnapshotInvalid);
}

#[tokio::test(start_paused = true)]
async fn a_stop_and_the_time_to_live_end_it_on_the_way_to_the_disk_and_back() {
    // while it is saved
    let bench = Bench::start([Fault::SaveHangs]);
    bench.until(Phase::Running).await;
    bench.pause(1);
    while !bench.log().contains("paused") {
        tokio::task::yield_now().await;
    }
    bench.order(Reason::StopRequested, Duration::from_secs(1));
    let world = Arc::clone(&bench.world);
    assert_eq!(bench.end().await.1, Reason::StopRequested);
    assert!(world.log.lock().unwrap().join(" ").contains("resumed guest shut down"), "a clean end");
    // while it is on the disk
    let bench = paused().await;
    bench.order(Reason::DeleteRequested, Duration::from_secs(1));
    let (phase, reason, _) = bench.end().await;
    assert_eq!((phase, reason), (Phase::Stopped, Reason::DeleteRequested));
    assert_eq!(paused().await.end().await.1, Reason::TtlExpired);
    // while it comes back
    let bench = paused().await;
    bench.world.break_by(Fault::WakeHangs);
    bench.resume(2);
    bench.until(Phase::Resuming).await;
    bench.order(Reason::StopRequested, Duration::from_secs(1));
    assert_eq!(bench.end().await.1, Reason::StopRequested);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_of_one_instant_and_the_sandbox_goes_on() {
    let bench = Bench::start([]);
    bench.until(Phase::Running).await;
    bench.clear_log();
    bench.take_snapshot();
    let Held::Ready(saved) = bench.snapshot_made().await else { panic!("it was not made") };
    // the disk is copied while the machine stands still
    assert_eq!(bench.log(), "suspended paused disk saved saved resumed woken");
    assert!(saved.disk().exists());
    assert_eq!(bench.ledger.record().phase, Phase::Running);
    // one that fails is listed with its reason, and the sandbox goes on too
    bench.host.catalog.snapshots.remove(snapshot()).await;
    bench.world.break_by(Fault::Copy);
    bench.take_snapshot();
    let Held::Failed(cause) = bench.snapshot_made().await else { panic!("it was made") };
    assert!(cause.reason == Reason::SnapshotFailed && cause.message.contains("the disk"), "{cause:?}");
    assert!(bench.log().ends_with("resumed woken"));
    bench.order(Reason::StopRequested, Duration::ZERO);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_a_sandbox_that_ends_has_failed() {
    let bench = Bench::start([Fault::SaveHangs]);
    bench.until(Phase::Running).await;
    bench.take_snapshot();
    while !bench.log().contains("paused") {
        tokio::task::yield_now().await;
    }
    let catalog = Arc::clone(&bench.host.catalog);
    bench.order(Reason::StopRequested, Duration::ZERO);
    bench.end().await;
    let Some(Held::Failed(cause)) = catalog.snapshots.get(snapshot()) else { panic!("it was made") };
    assert_eq!(cause.reason, Reason::SnapshotFailed);
}

/// A prepared template on the host of a new sandbox that is to be made from it.
async fn from_template(faults: &[Fault], source: Source) -> Bench {
    Bench::prepared(faults, source, |host| async move {
        host.catalog.templates.begin(template(), 1).unwrap().unwrap();
        let draft = host.catalog.templates.draft(template()).await.unwrap();
        let saved = template::prepare(&host, template(), assignment(1).spec, draft, CancellationToken::new())
            .await
            .unwrap();
        host.catalog.templates.finish(template(), Ok(saved)).await;
        host.catalog.snapshots.begin(snapshot(), 1).unwrap().unwrap();
        let draft = host.catalog.snapshots.draft(snapshot()).await.unwrap();
        let saved = template::prepare(&host, template(), assignment(1).spec, draft, CancellationToken::new())
            .await
            .unwrap();
        host.catalog.snapshots.finish(snapshot(), Ok(saved)).await;
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn what_is_made_from_a_template_is_restored() {
    let logged = Captured::begin();
    let bench = from_template(&[], Source::Template("python".into())).await;
    bench.until(Phase::Running).await;
    while !bench.log().contains("working set") {
        tokio::task::yield_now().await;
    }
    // the template, the snapshot and the restored one: whichever way a VMM was started, what holds it is told
    assert_eq!(logged.lines("what holds the VMM").len(), 3);
    let missing = logged.lines("missing=\"seccomp, landlock, user namespace\"");
    assert_eq!(missing.len(), 3, "a fake has none");
    drop(logged);
    assert_eq!(bench.log(), "+disk +cgroup +machine restored woken anew working set");
    let reached: Vec<_> = bench.ledger.record().milestones.iter().map(|(milestone, _)| *milestone).collect();
    assert_eq!(reached, [Milestone::Jailed, Milestone::Woken, Milestone::GuestReady, Milestone::Restored]);
    let Some(Held::Ready(saved)) = bench.host.catalog.templates.get(template()) else { panic!("prepared") };
    assert!(saved.working_set().is_some(), "the next one is faster");
    // its memory file is charged for as long as it runs, also when the template goes
    let users = Arc::strong_count(saved.mapped());
    let ledger = Arc::clone(&bench.ledger);
    assert_eq!(ledger.saving().maps.map(|(_, mapped)| mapped), Some(**saved.mapped()));
    bench.order(Reason::StopRequested, Duration::ZERO);
    bench.end().await;
    assert_eq!((ledger.saving().maps, Arc::strong_count(saved.mapped())), (None, users - 1));
}

#[tokio::test(start_paused = true)]
async fn a_template_that_cannot_be_restored_is_booted() {
    for fault in [Fault::Wake, Fault::WakeHangs, Fault::BadSnapshot] {
        let bench = from_template(&[fault], Source::Template("python".into())).await;
        bench.until(Phase::Running).await;
        let reached: Vec<_> =
            bench.ledger.record().milestones.iter().map(|(milestone, _)| *milestone).collect();
        assert_eq!(reached, [Milestone::Jailed, Milestone::Booted, Milestone::GuestReady], "{fault:?}");
        assert_eq!(bench.host.catalog.note_fallback(), 2, "it was counted");
        // one that is damaged is told of, and never used again
        let failed = matches!(bench.host.catalog.templates.get(template()), Some(Held::Failed(_)));
        assert_eq!(failed, fault == Fault::BadSnapshot);
        bench.order(Reason::StopRequested, Duration::ZERO);
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_template_of_another_image_kernel_or_machine_is_booted_and_made_anew() {
    // nor is one that an agent made which gave no balloon, and its next one has one
    let bench = from_template(&[], Source::Snapshot(snapshot())).await;
    bench.until(Phase::Running).await;
    let Some(Held::Ready(saved)) = bench.host.catalog.templates.get(template()) else { panic!("prepared") };
    assert_eq!(saved.manifest.made(), Made { mmio_on_cmdline: false, balloon: true });
    let mut old = (*saved).clone();
    old.manifest.balloon = false;
    assert!(matches!(old.outdated(&*bench.host.images), Some(Unusable::NoBalloon)));
    // a machine of such an agent is saved as it was made
    bench.ledger.set_made(Made::default());
    bench.host.catalog.snapshots.remove(snapshot()).await;
    bench.take_snapshot();
    let Held::Ready(saved) = bench.snapshot_made().await else { panic!("it was not made") };
    assert!(!saved.manifest.balloon);
    bench.order(Reason::StopRequested, Duration::ZERO);
    bench.end().await;

    let replace = |world: &World, is_kernel: bool, path: &std::path::Path| {
        std::fs::write(path, "another").unwrap();
        let replaced = if is_kernel { &world.kernel } else { &world.image };
        *replaced.lock().unwrap() = Some(path.to_owned());
    };
    for is_kernel in [false, true] {
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join("replaced");
        // while it is used
        let bench = from_template(&[], Source::Template("python".into())).await;
        replace(&bench.world, is_kernel, &path);
        bench.until(Phase::Running).await;
        assert!(!bench.log().contains("restored"), "{}", bench.log());
        let Some(Held::Failed(cause)) = bench.host.catalog.templates.get(template()) else {
            panic!("it is kept")
        };
        let expected =
            if is_kernel { "the kernel stock was replaced" } else { "the image base was replaced" };
        assert_eq!(cause.reason, Reason::SnapshotInvalid);
        assert!(cause.message.starts_with(expected), "{}", cause.message);
        assert_eq!(std::fs::read_dir(bench.host.state.below("templates")).unwrap().count(), 0);
        assert!(bench.host.catalog.templates.begin(template(), 1).unwrap().is_ok(), "it can be made anew");
        bench.order(Reason::StopRequested, Duration::ZERO);
        bench.end().await;
        // while no agent ran
        let bench = from_template(&[], Source::Snapshot(snapshot())).await;
        bench.until(Phase::Running).await;
        assert_eq!(bench.host.catalog.outdate_templates(&*bench.host.images).await, 0);
        replace(&bench.world, is_kernel, &path);
        assert_eq!(bench.host.catalog.outdate_templates(&*bench.host.images).await, 1);
        let reports = bench.host.catalog.template_reports();
        assert_eq!(reports[0].cause.as_ref().map(|cause| cause.reason), Some(Reason::SnapshotInvalid));
        // a snapshot is the caller's, and has its kernel with it
        assert!(matches!(bench.host.catalog.snapshots.get(snapshot()), Some(Held::Ready(_))));
        bench.order(Reason::StopRequested, Duration::ZERO);
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_cannot_be_restored_is_the_end() {
    let bench = from_template(&[Fault::Wake], Source::Snapshot(snapshot())).await;
    assert_eq!(bench.end().await.1, Reason::RestoreFailed);
    let bench = from_template(&[Fault::BadSnapshot], Source::Snapshot(snapshot())).await;
    assert_eq!(bench.end().await.1, Reason::SnapshotInvalid);
    let unknown = Source::Snapshot(ID.parse().unwrap());
    let (_, reason, message) = from_template(&[], unknown).await.end().await;
    assert_eq!(reason, Reason::RestoreFailed);
    assert!(message.contains("does not hold snapshot"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_template_leaves_nothing_but_its_files() {
    let bench = from_template(&[], Source::Image).await;
    bench.until(Phase::Running).await;
    bench.order(Reason::StopRequested, Duration::ZERO);
    bench.world.log.lock().unwrap().clear();
    bench.end().await;
    // one that fails too
    let directory = tempfile::tempdir().unwrap();
    let world = World::with([Fault::Save]);
    let host = host(&world, directory.path());
    host.catalog.templates.begin(template(), 1).unwrap().unwrap();
    let draft = host.catalog.templates.draft(template()).await.unwrap();
    let cause = template::prepare(&host, template(), assignment(1).spec, draft, CancellationToken::new())
        .await
        .unwrap_err();
    assert_eq!(cause.reason, Reason::SnapshotFailed, "{cause:?}");
    assert_eq!((world.held(), host.uids.taken()), (Vec::new(), 0));
    assert!(host.state.list().unwrap().is_empty());
    // its files are removed beside the runtime
    while std::fs::read_dir(host.state.below("templates")).unwrap().count() > 0 {
        tokio::task::yield_now().await;
    }
}
