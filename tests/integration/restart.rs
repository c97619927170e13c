//! The scheduler ends, in order or not, and comes back: what was accepted is there.

use super::*;
use pinfold_sdk::ExecOptions;
use pinfold_sdk::domain::{Phase, Revision};
use pinfold_tests::harness::soon;

#[tokio::test]
async fn what_was_accepted_survives_an_orderly_end() {
    let scheduler = Scheduler::start(|_| {}).await;
    let client = scheduler.client().await;
    let mut accepted = Vec::new();
    for n in 0..5 {
        accepted.push(client.create(with_request_id(&format!("r{n}"))).await.unwrap());
    }
    let scheduler = scheduler.restart().await;
    let client = scheduler.client().await;
    let (mut listed, revision) = client.list_all(Default::default()).await.unwrap();
    assert_eq!(revision, Revision(5));
    for (before, after) in accepted.iter_mut().zip(&mut listed) {
        // the explanation is of the fleet of the moment
        (before.explanation, after.explanation) = (None, None);
        assert_eq!(before, after);
    }
    assert_eq!(client.create(with_request_id("r3")).await.unwrap().id, accepted[3].id);
}

#[tokio::test]
async fn a_running_sandbox_survives_a_crash_of_the_scheduler() {
    let fleet = Fleet::new().await;
    let sandbox = fleet.running().await;
    let scheduler = fleet.scheduler.crash().await;
    fleet.agent.registered(2).await;
    let client = scheduler.client().await;
    let found = client.get(sandbox.id).await.unwrap();
    assert_eq!((found.phase, found.epoch), (Phase::Running, sandbox.epoch));
    assert_eq!(fleet.agent.stats().borrow().assigned, 1, "it was not started again");
    let output = client.exec(sandbox.id, ExecOptions::command(["echo", "alive"])).await.unwrap();
    assert_eq!(soon("an end", output.output(1024)).await.unwrap().stdout, b"alive\n");
    let node = &client.nodes().await.unwrap()[0];
    assert_eq!((node.sandboxes, node.reserved.cpu_millis), (1, 1000), "its room is still taken");
}

#[tokio::test]
async fn whatever_was_answered_before_a_crash_is_there_after_it() {
    let scheduler = Scheduler::start(|_| {}).await;
    let client = scheduler.client().await.with_call_timeout(std::time::Duration::from_secs(2));
    let calls: Vec<_> = (0..200)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.create(with_request_id(&format!("r{n}"))).await })
        })
        .collect();
    // in the middle of the burst
    let mut watch = client.watch(Revision(0));
    for _ in 0..20 {
        soon("a change", watch.next()).await.unwrap();
    }
    let scheduler = scheduler.crash().await;
    let mut answered = Vec::new();
    for call in calls {
        if let Ok(created) = call.await.unwrap() {
            answered.push(created.id);
        }
    }
    assert!(answered.len() >= 20, "only {} calls were answered", answered.len());
    let (listed, _) = scheduler.client().await.list_all(Default::default()).await.unwrap();
    let listed: std::collections::BTreeSet<_> = listed.into_iter().map(|sandbox| sandbox.id).collect();
    for id in answered {
        assert!(listed.contains(&id), "{id} was acknowledged and is lost");
    }
}

#[tokio::test]
async fn a_watch_goes_on_over_a_restart() {
    let scheduler = Scheduler::start(|_| {}).await;
    let client = scheduler.client().await;
    let mut watch = client.watch(Revision(0));
    let first = client.create(with_request_id("a")).await.unwrap();
    assert_eq!(soon("a change", watch.next()).await.unwrap().sandbox.id, first.id);
    let scheduler = scheduler.restart().await;
    let second = scheduler.client().await.create(with_request_id("b")).await.unwrap();
    let event = soon("a change", watch.next()).await.unwrap();
    assert_eq!((event.sandbox.id, event.revision), (second.id, Revision(2)), "nothing twice, nothing missed");
}

#[tokio::test]
async fn a_stop_that_was_asked_for_before_a_crash_is_carried_out_after_it() {
    let fleet = Fleet::new().await;
    let sandbox = fleet.running().await;
    let (endpoint, scheduler) = (fleet.scheduler.endpoint(), fleet.scheduler);
    drop(fleet.agent);
    let client = Client::connect(&endpoint).await.unwrap();
    client.stop(sandbox.id, None).await.unwrap();
    let scheduler = scheduler.crash().await;
    let _agent = FakeAgent::join(&endpoint, "node-1").await;
    let ended = scheduler.client().await.wait_ended(sandbox.id, LIMIT).await.unwrap();
    assert!(ended.phase.is_final());
}
