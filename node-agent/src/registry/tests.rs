//! Room, epochs and the list, with the fakes of the actor's tests beneath.

use super::*;
use crate::sandbox::actor::tests::{Fault, World, host};
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
    // the fake's machine is one and stays gone, so the second fails at its start; that it began after the first is the point
    bench.until_ended(ID).await;
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
