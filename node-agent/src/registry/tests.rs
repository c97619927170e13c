//! Room, epochs and the list, with the fakes of the actor's tests beneath.

use super::*;
use crate::sandbox::fake_host::{Fault, World, host};
use crate::sandbox::record::tests::{ID, assignment};
use pinfold_domain::Phase;
use std::time::Duration;

const OTHER: &str = "0190b3f0-5a00-7000-8000-000000000002";
const MIB: u64 = 1024 * 1024;

struct Bench {
    registry: Arc<Registry>,
    world: Arc<World>,
    detach: CancellationToken,
    _directory: tempfile::TempDir,
}

fn bench(faults: impl IntoIterator<Item = Fault>) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let world = World::with(faults);
    let allocatable =
        Resources { cpu_millis: 4000, memory_bytes: 600 * MIB, disk_bytes: 4096 * MIB, pids: 10_000 };
    let detach = CancellationToken::new();
    let registry =
        Registry::new(host(&world, directory.path()), allocatable, Tasks::default(), detach.clone());
    Bench { registry: Arc::new(registry), world, detach, _directory: directory }
}

impl Bench {
    async fn until(&self, id: &str, phase: Phase) {
        let ledger = self.registry.ledger(id.parse().unwrap()).expect("it is here");
        let mut reports = ledger.reports();
        tokio::time::timeout(Duration::from_secs(600), reports.wait_for(|report| report.phase == phase))
            .await
            .expect("the phase comes")
            .unwrap();
    }

    /// After its teardown, which is a moment after its last report.
    async fn until_ended(&self, id: &str) {
        let ended = lock(&self.registry.entries).get(&id.parse().unwrap()).unwrap().ended.clone();
        tokio::time::timeout(Duration::from_secs(600), ended.cancelled()).await.expect("it ends");
    }
}

fn stop(grace: u64) -> Stop {
    Stop { cause: Cause::new(Reason::StopRequested, "asked"), grace: Duration::from_secs(grace) }
}

fn other(epoch: u64) -> Assignment {
    Assignment { id: OTHER.parse().unwrap(), ..assignment(epoch) }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_refused_with_numbers() {
    let bench = bench([]);
    let mut large = assignment(1);
    large.spec.resources.memory_bytes = 500 * MIB;
    bench.registry.assign(large).unwrap();
    let cause = bench.registry.assign(other(1)).unwrap_err();
    assert_eq!(cause.reason, Reason::HostResources);
    let expected = format!("memory asked {}, free {} of {}", 256 * MIB, 100 * MIB, 600 * MIB);
    assert!(cause.message.contains(&expected), "{}", cause.message);
    assert_eq!(bench.registry.reports().len(), 1);
    // what has ended has no room any more
    bench.until(ID, Phase::Running).await;
    assert!(bench.registry.stop(ID.parse().unwrap(), Epoch(1), stop(1)));
    bench.until_ended(ID).await;
    bench.registry.assign(other(1)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unknown_image_is_refused() {
    let bench = bench([]);
    let mut unknown = assignment(1);
    unknown.spec.image = "python".into();
    assert_eq!(bench.registry.assign(unknown).unwrap_err().reason, Reason::ImageUnknown);
    assert!(bench.registry.reports().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_newer_epoch_waits_for_the_end_of_the_older_one() {
    let bench = bench([]);
    bench.registry.assign(assignment(2)).unwrap();
    bench.until(ID, Phase::Running).await;
    // the same again and an older one change nothing
    bench.registry.assign(assignment(2)).unwrap();
    bench.registry.assign(assignment(1)).unwrap();
    assert_eq!(bench.registry.reports()[0].epoch, Epoch(2));
    assert_eq!(bench.registry.reports()[0].phase, Phase::Running);

    bench.registry.assign(assignment(3)).unwrap();
    assert_eq!(bench.registry.reports()[0].epoch, Epoch(3));
    // an order for the epoch that was replaced is not for the new one
    assert!(!bench.registry.stop(ID.parse().unwrap(), Epoch(2), stop(0)));
    let log = bench.world.log.lock().unwrap().clone();
    assert_eq!(log, ["+disk", "+cgroup", "+machine"], "the second has taken nothing yet");
    bench.until(ID, Phase::Running).await;
    let log = bench.world.log.lock().unwrap().join(" ");
    let first = log.find("-disk").expect("the first is undone");
    let second = log.rfind("+disk").expect("the second began");
    assert!(first < second, "{log}");
}

#[tokio::test(start_paused = true)]
async fn forget_takes_only_what_has_ended() {
    let bench = bench([]);
    bench.registry.assign(assignment(1)).unwrap();
    bench.until(ID, Phase::Running).await;
    let id = ID.parse().unwrap();
    let directory = bench.registry.ledger(id).unwrap().paths().clone();
    bench.registry.forget(id, Epoch(1));
    assert_eq!(bench.registry.reports().len(), 1, "it lives");
    bench.registry.stop(id, Epoch(1), stop(1));
    bench.until_ended(ID).await;
    assert!(directory.record().exists(), "the console and the record stay until they are forgotten");
    bench.registry.forget(id, Epoch(1));
    bench.registry.forget(id, Epoch(1));
    assert!(bench.registry.reports().is_empty() && !directory.record().exists());
}

#[tokio::test(start_paused = true)]
async fn each_change_is_told_once() {
    let bench = bench([]);
    bench.registry.assign(assignment(1)).unwrap();
    bench.until(ID, Phase::Running).await;
    let changes = bench.registry.next_changes().await;
    assert_eq!((changes.len(), changes[0].phase), (1, Phase::Running));
    let quiet = tokio::time::timeout(Duration::from_secs(60), bench.registry.next_changes()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    bench.registry.stop_all(&stop(1)).await;
    assert_eq!(bench.registry.next_changes().await[0].phase, Phase::Stopped);
    bench.registry.forget_ended();
    assert!(bench.registry.reports().is_empty());
    assert!(!bench.detach.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_later_order_may_leave_less_time() {
    let bench = bench([Fault::Shutdown]);
    bench.registry.assign(assignment(1)).unwrap();
    bench.until(ID, Phase::Running).await;
    let id = ID.parse().unwrap();
    let begun = tokio::time::Instant::now();
    bench.registry.stop(id, Epoch(1), stop(200));
    bench.until(ID, Phase::Stopping).await;
    bench.registry.stop(id, Epoch(1), stop(300));
    bench.registry.stop(id, Epoch(1), stop(7));
    bench.until_ended(ID).await;
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(7) && took < Duration::from_secs(15), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_first_order_to_end_is_the_cause() {
    let bench = bench([Fault::Shutdown]);
    bench.registry.assign(assignment(1)).unwrap();
    bench.until(ID, Phase::Running).await;
    let id = ID.parse().unwrap();
    bench.registry.stop(id, Epoch(1), stop(5));
    let second = Stop { cause: Cause::new(Reason::DeleteRequested, "again"), grace: Duration::ZERO };
    bench.registry.stop(id, Epoch(1), second);
    bench.until_ended(ID).await;
    assert_eq!(
        bench.registry.reports()[0].cause.as_ref().map(|cause| cause.reason),
        Some(Reason::StopRequested)
    );
}

fn parsed<Id: std::str::FromStr<Err = pinfold_domain::IdError>>(id: &str) -> Id {
    id.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_paused_sandbox_leaves_its_room_to_others_and_comes_back_when_there_is_some() {
    let bench = bench([]);
    let half = |mut assignment: Assignment| {
        assignment.spec.resources.memory_bytes = 400 * MIB;
        assignment
    };
    let (id, epoch) = (parsed(ID), Epoch(1));
    bench.registry.assign(half(assignment(1))).unwrap();
    bench.until(ID, Phase::Running).await;
    assert!(bench.registry.assign(half(other(1))).is_err());
    assert!(bench.registry.pause(id, epoch, 1));
    bench.until(ID, Phase::Paused).await;
    // a template takes what it left
    let spec = half(other(1)).spec;
    bench.registry.room_to_prepare(parsed(OTHER), &spec).unwrap();
    // no room for it now: it stays as it is, and why is told
    assert!(bench.registry.resume(id, epoch, 2));
    let report = &bench.registry.reports()[0];
    let cause = report.cause.as_ref().expect("why");
    assert_eq!((report.phase, report.order, cause.reason), (Phase::Paused, 2, Reason::NoRoom));
    assert!(cause.message.contains("memory asked"), "{}", cause.message);
    lock(&bench.registry.preparing).clear();
    // an order that was taken up is answered, and not obeyed again
    assert!(bench.registry.resume(id, epoch, 2));
    assert_eq!(bench.registry.reports()[0].phase, Phase::Paused);
    assert!(bench.registry.resume(id, epoch, 3));
    assert_eq!(bench.registry.reports()[0].phase, Phase::Resuming, "the room is taken at once");
    bench.until(ID, Phase::Running).await;
    assert_eq!(bench.registry.reports()[0].cause, None);
    // its memory has a file now, beside its disk
    let held = bench.registry.ledger(id).unwrap().record().held();
    assert_eq!(held.disk_bytes, assignment(1).spec.resources.disk_bytes + 400 * MIB);
    assert!(!bench.registry.pause(id, Epoch(2), 4), "no such epoch");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_what_does_not_run_is_refused_in_the_list() {
    let bench = bench([Fault::NoHello]);
    let catalog = Arc::clone(&bench.registry.host().catalog);
    bench.registry.take_snapshot(parsed(OTHER), parsed(ID), Epoch(1));
    bench.registry.assign(assignment(1)).unwrap();
    bench.registry.take_snapshot(parsed(ID), parsed(ID), Epoch(1));
    let reports = catalog.snapshot_reports();
    let messages: Vec<_> = reports.into_iter().map(|report| report.cause.unwrap().message).collect();
    assert!(messages[0].contains("is starting, not running"), "{messages:?}");
    assert!(messages[1].contains("is not on this node"), "{messages:?}");
}

#[tokio::test(start_paused = true)]
async fn templates_are_prepared_in_the_room_that_is_there() {
    let bench = bench([]);
    let catalog = Arc::clone(&bench.registry.host().catalog);
    let template = |id: &str| parsed::<TemplateId>(id);
    let prepared = async |id: &str| loop {
        let reports = catalog.template_reports();
        let report = reports.iter().find(|report| report.template_id == template(id)).unwrap();
        if report.preparation != pinfold_domain::Preparation::Preparing {
            return report.cause.as_ref().map(|cause| cause.reason);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let spec = assignment(1).spec;
    bench.registry.prepare_template(template(ID), spec.clone());
    assert_eq!(prepared(ID).await, None);
    assert!(bench.registry.reports().is_empty() && bench.world.held().is_empty());
    let mut large = assignment(1);
    large.spec.resources.memory_bytes = 500 * MIB;
    bench.registry.assign(large).unwrap();
    bench.until(ID, Phase::Running).await;
    bench.registry.prepare_template(template(OTHER), spec.clone());
    assert_eq!(prepared(OTHER).await, Some(Reason::NoRoom));
    let mut unknown = spec;
    unknown.image = "python".into();
    bench.registry.prepare_template(template(OTHER), unknown);
    assert_eq!(prepared(OTHER).await, Some(Reason::ImageUnknown));
    bench.registry.drop_template(template(ID));
    while catalog.template_reports().len() > 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_for_which_there_is_no_place_is_refused_with_the_limit() {
    let bench = bench([Fault::SaveHangs]);
    let catalog = Arc::clone(&bench.registry.host().catalog);
    bench.registry.assign(assignment(1)).unwrap();
    bench.until(ID, Phase::Running).await;
    bench.registry.take_snapshot(parsed(ID), parsed(ID), Epoch(1));
    while !bench.world.log.lock().unwrap().contains(&"paused".to_owned()) {
        tokio::task::yield_now().await;
    }
    let filled = lock(&bench.registry.entries).get(&parsed(ID)).unwrap().orders.clone();
    while filled.try_send(Order::Resume).is_ok() {}
    bench.registry.take_snapshot(parsed(OTHER), parsed(ID), Epoch(1));
    assert!(bench.registry.pause(parsed(ID), Epoch(1), 1));
    let reports = catalog.snapshot_reports();
    let refused = reports.iter().find_map(|report| report.cause.clone()).expect("it is refused");
    for cause in [refused, bench.registry.reports()[0].cause.clone().expect("why")] {
        assert_eq!(
            cause,
            Cause::new(Reason::LimitReached, "8 orders wait for this sandbox, which is the limit")
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_template_that_is_dropped_while_it_is_made_is_listed_until_nothing_is_left() {
    for fault in [Fault::NoHello, Fault::SaveHangs] {
        let bench = bench([fault]);
        let catalog = Arc::clone(&bench.registry.host().catalog);
        bench.registry.prepare_template(parsed(ID), assignment(1).spec);
        while !bench.world.held().contains(&"machine".to_owned()) {
            tokio::task::yield_now().await;
        }
        // a second one waits for its turn
        bench.registry.prepare_template(parsed(OTHER), assignment(1).spec);
        assert_eq!(catalog.template_reports().len(), 2);
        let begun = tokio::time::Instant::now();
        for id in [OTHER, ID] {
            bench.registry.drop_template(parsed(id));
            while catalog.template_reports().iter().any(|report| report.template_id == parsed(id)) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        // an unlisted one has left nothing
        assert!(bench.world.held().is_empty() && lock(&bench.registry.preparing).is_empty(), "{fault:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
}
