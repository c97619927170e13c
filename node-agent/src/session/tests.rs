//! The session against a scheduler that the test plays, over real gRPC; the host beneath is the actor tests' fake.

use super::*;
use crate::fake_scheduler::{Bench, SessionCall};
use crate::sandbox::record::tests::{ID, assignment};
use pinfold_domain::{Reason, SandboxSpec};
use pinfold_proto::api::v1 as api;

fn assign(epoch: u64, change: impl FnOnce(&mut SandboxSpec)) -> Order {
    let mut assigned = assignment(epoch).spec;
    change(&mut assigned);
    Order::Assign(wire::Assign {
        sandbox_id: ID.into(),
        epoch,
        spec: Some(spec::to_wire(&assigned)),
        template_id: String::new(),
        tenant: "default".into(),
        ttl_ms: 3_600_000,
    })
}

fn stop(epoch: u64) -> Order {
    let cause = Cause::new(Reason::StopRequested, "asked");
    let cause = Some(cause_to_wire(&cause));
    Order::Stop(wire::Stop { sandbox_id: ID.into(), epoch, cause, grace_ms: 1000 })
}

async fn status(session: &mut SessionCall, phase: api::Phase) -> wire::SandboxStatus {
    session
        .next_that(|said| match said {
            Say::Status(status) if status.phase == i32::from(phase) => Some(status),
            _ => None,
        })
        .await
}

async fn full_list(session: &mut SessionCall) -> Vec<wire::SandboxStatus> {
    let heartbeat =
        |said| if let Say::Heartbeat(heartbeat) = said { Some(heartbeat.sandboxes) } else { None };
    session.next_that(heartbeat).await
}

async fn refusal(session: &mut SessionCall) -> api::Cause {
    let refuse = |said| if let Say::Refuse(refuse) = said { refuse.cause } else { None };
    session.next_that(refuse).await
}

#[tokio::test]
async fn an_assignment_from_order_to_forget() {
    let mut bench = Bench::start([]).await;
    let mut session = bench.session().await;
    let register = session.welcome(1, 100).await;
    assert_eq!((register.node_id.as_str(), register.zone.as_str()), ("node-1", "a"));
    assert_eq!((register.images, register.kernels), (vec!["base".to_owned()], vec!["stock".to_owned()]));
    assert_eq!(register.allocatable.unwrap().memory_bytes, 600 << 20);
    session.order(1, assign(1, |_| {})).await;
    let running = status(&mut session, api::Phase::Running).await;
    assert_eq!((running.sandbox_id.as_str(), running.epoch, running.milestones.len()), (ID, 1, 3));
    session.order(1, stop(1)).await;
    let stopped = status(&mut session, api::Phase::Stopped).await;
    assert!(stopped.sequence > running.sequence);
    assert_eq!(stopped.cause.unwrap().reason, "StopRequested");
    // it is repeated until the scheduler has it
    assert!(full_list(&mut session).await.iter().any(|status| status.sandbox_id == ID));
    session.order(1, Order::Forget(wire::Forget { sandbox_id: ID.into(), epoch: 1 })).await;
    session
        .next_that(|said| matches!(said, Say::Heartbeat(list) if list.sandboxes.is_empty()).then_some(()))
        .await;
    assert_eq!(bench.world.held(), [] as [&str; 0]);
}

#[tokio::test]
async fn what_cannot_be_taken_is_refused_with_its_cause() {
    let mut bench = Bench::start([]).await;
    let mut session = bench.session().await;
    session.welcome(1, 60_000).await;
    session.order(1, assign(1, |spec| spec.resources.memory_bytes = 700 << 20)).await;
    let cause = refusal(&mut session).await;
    assert_eq!(cause.reason, "HostResources");
    assert!(cause.message.contains("memory asked 734003200"), "{}", cause.message);
    session.order(1, assign(1, |spec| spec.image = "python".into())).await;
    assert_eq!(refusal(&mut session).await.reason, "ImageUnknown");
    session.order(1, assign(1, |spec| spec.resources.pids = 0)).await;
    assert_eq!(refusal(&mut session).await.reason, "InvalidArgument");
    assert!(bench.registry.reports().is_empty());
}

#[tokio::test]
async fn a_stop_for_what_is_not_here_is_answered_with_the_full_list() {
    let mut bench = Bench::start([]).await;
    let mut session = bench.session().await;
    session.welcome(1, 60_000).await;
    full_list(&mut session).await;
    // the next heartbeat by the clock is a minute away
    session.order(1, stop(1)).await;
    assert!(full_list(&mut session).await.is_empty());
}

#[tokio::test]
async fn a_session_that_breaks_is_followed_by_one_with_everything() {
    let mut bench = Bench::start([]).await;
    let mut session = bench.session().await;
    session.welcome(1, 100).await;
    session.order(1, assign(1, |_| {})).await;
    status(&mut session, api::Phase::Running).await;
    drop(session);
    let mut session = bench.session().await;
    let register = session.welcome(1, 100).await;
    assert_eq!((register.sandboxes.len(), register.highest_term), (1, 1));
    assert_eq!(register.sandboxes[0].phase, i32::from(api::Phase::Running));
    // and it goes on from there
    session.order(1, stop(1)).await;
    status(&mut session, api::Phase::Stopped).await;
}

#[tokio::test]
async fn a_deposed_leader_is_not_obeyed() {
    let mut bench = Bench::start([]).await;
    let mut session = bench.session().await;
    session.welcome(5, 100).await;
    // within a session
    session.order(4, assign(1, |_| {})).await;
    session.ends().await;
    assert!(bench.registry.reports().is_empty());
    // and at the start of one
    let mut session = bench.session().await;
    assert_eq!(session.welcome(3, 100).await.highest_term, 5);
    session.ends().await;
    // a newer one is, and is kept before it is obeyed
    let mut session = bench.session().await;
    session.welcome(6, 100).await;
    full_list(&mut session).await;
    assert_eq!(std::fs::read_to_string(bench.path().join("term")).unwrap(), "6\n");
}
