//! Pause, resume, snapshots, forks, templates: over real gRPC, with nodes that save nothing but keep to the protocol.

use super::*;
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::sandbox_service_client::SandboxServiceClient;
use pinfold_sdk::domain::{Epoch, Phase, SnapshotId, SnapshotState, Source};
use pinfold_sdk::{Error, ForkOf, ForkOptions, NewTemplate};
use pinfold_tests::fake_agent::{AgentConfig, OnSave};
use pinfold_tests::harness::soon;

/// A fleet of one node that fails whatever it is to save.
async fn failing() -> Fleet {
    let scheduler = Scheduler::start(|_| {}).await;
    let cause = wire::Cause { reason: "SnapshotFailed".into(), message: "no space left".into() };
    let config = AgentConfig { on_save: OnSave::Fail(cause), ..AgentConfig::new("node-1") };
    let agent = FakeAgent::start(&scheduler.endpoint(), config);
    agent.registered(1).await;
    let client = scheduler.client().await;
    Fleet { scheduler, agent, client }
}

fn from(source: Source) -> NewSandbox {
    NewSandbox { source, ..NewSandbox::default() }
}

async fn reserved(client: &Client) -> Resources {
    client.nodes().await.unwrap()[0].reserved
}

/// Asks over and over until `done` is true of the answer.
async fn until<T, F: Future<Output = T>>(what: &str, ask: impl Fn() -> F, done: impl Fn(&T) -> bool) -> T {
    let asked = async {
        loop {
            let answer = ask().await;
            if done(&answer) {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    soon(what, asked).await
}

#[tokio::test]
async fn a_paused_sandbox_gives_its_memory_and_cpu_back_and_resumes() {
    let fleet = Fleet::new().await;
    let sandbox = fleet.running().await;
    let before = reserved(&fleet.client).await;
    let pausing = fleet.client.pause(sandbox.id).await.unwrap();
    assert!(matches!(pausing.phase, Phase::Pausing | Phase::Paused), "{}", pausing.phase);
    let paused = fleet.client.wait_paused(sandbox.id, LIMIT).await.unwrap();
    let held = reserved(&fleet.client).await;
    assert_eq!((held.cpu_millis, held.memory_bytes), (0, 0));
    assert_eq!(held.disk_bytes, before.disk_bytes + before.memory_bytes);
    assert_eq!((paused.held, paused.epoch), (Some(held), Epoch(1)));
    let refused = fleet.client.read_file(sandbox.id, "/etc/hostname", None).await.err().unwrap();
    assert_eq!(refused.cause().reason, Reason::WrongPhase);
    fleet.client.resume(sandbox.id).await.unwrap();
    let resumed = fleet.client.wait_resumed(sandbox.id, LIMIT).await.unwrap();
    assert_eq!((resumed.phase, resumed.epoch, resumed.cause), (Phase::Running, Epoch(1), None));
    fleet.client.pause(sandbox.id).await.unwrap();
    fleet.client.wait_paused(sandbox.id, LIMIT).await.unwrap();
    fleet.client.delete(sandbox.id).await.unwrap();
    fleet.client.wait_gone(sandbox.id, LIMIT).await.unwrap();
    assert_eq!(reserved(&fleet.client).await, Resources::default());
}

#[tokio::test]
async fn a_resume_without_room_says_what_is_missing() {
    let fleet = Fleet::new().await;
    let large = fleet.client.create(with_cpu_millis(6_000)).await.unwrap();
    fleet.client.wait_running(large.id, LIMIT).await.unwrap();
    fleet.client.pause(large.id).await.unwrap();
    fleet.client.wait_paused(large.id, LIMIT).await.unwrap();
    let other = fleet.client.create(with_cpu_millis(6_000)).await.unwrap();
    fleet.client.wait_running(other.id, LIMIT).await.unwrap();
    let error = fleet.client.resume(large.id).await.unwrap_err();
    assert_eq!((error.cause().reason, error.retryable()), (Reason::NoRoom, true));
    let text = error.to_string();
    assert!(
        text.contains("node-1 has 2000 of 6000 thousandths of a CPU of cpu free: stop or pause"),
        "{text}"
    );
    assert_eq!(fleet.client.get(large.id).await.unwrap().phase, Phase::Paused);
}

#[tokio::test]
async fn a_pause_that_fails_leaves_the_sandbox_running_with_the_reason() {
    let fleet = failing().await;
    let sandbox = fleet.running().await;
    fleet.client.pause(sandbox.id).await.unwrap();
    let error = fleet.client.wait_paused(sandbox.id, LIMIT).await.unwrap_err();
    assert!(matches!(error, Error::Ended { phase: Phase::Running, .. }), "{error:?}");
    assert_eq!(error.cause().reason, Reason::SnapshotFailed);
    assert_eq!(reserved(&fleet.client).await, sandbox.spec.resources);
}

#[tokio::test]
async fn a_repeated_pause_does_not_pause_again() {
    let fleet = Fleet::new().await;
    let sandbox = fleet.running().await;
    let mut raw = SandboxServiceClient::new(fleet.scheduler.channel().await);
    let pause = || wire::PauseSandboxRequest { request_id: "p".into(), sandbox_id: sandbox.id.to_string() };
    raw.pause_sandbox(pause()).await.unwrap();
    fleet.client.wait_paused(sandbox.id, LIMIT).await.unwrap();
    fleet.client.resume(sandbox.id).await.unwrap();
    fleet.client.wait_resumed(sandbox.id, LIMIT).await.unwrap();
    let late = raw.pause_sandbox(pause()).await.unwrap().into_inner().sandbox.unwrap();
    assert_eq!(late.phase, i32::from(wire::Phase::Running));
    let resume = wire::ResumeSandboxRequest { request_id: "p".into(), sandbox_id: sandbox.id.to_string() };
    let status = raw.resume_sandbox(resume).await.unwrap_err();
    assert_eq!(pinfold_proto::reasons::cause(&status).reason, Reason::RequestIdConflict);
}

#[tokio::test]
async fn a_snapshot_is_taken_listed_used_and_deleted() {
    let fleet = Fleet::new().await;
    let sandbox = fleet.running().await;
    let taken = fleet.client.create_snapshot(sandbox.id, "clean", Some("once".into())).await.unwrap();
    let again = fleet.client.create_snapshot(sandbox.id, "clean", Some("once".into())).await.unwrap();
    assert_eq!(again.id, taken.id);
    let ready = fleet.client.wait_snapshot(taken.id, LIMIT).await.unwrap();
    assert_eq!((ready.node.as_str(), ready.sizes.memory_bytes), ("node-1", 64 << 20));
    assert_eq!(fleet.client.snapshots(Some(sandbox.id)).await.unwrap(), [ready]);
    assert!(fleet.client.snapshots(Some(nobody())).await.unwrap().is_empty());
    let made = fleet.client.create(from(Source::Snapshot(taken.id))).await.unwrap();
    let made = fleet.client.wait_running(made.id, LIMIT).await.unwrap();
    assert_eq!(made.spec.resources, sandbox.spec.resources);
    assert_eq!(fleet.client.get(sandbox.id).await.unwrap().phase, Phase::Running, "it goes on");
    assert_eq!(fleet.client.delete_snapshot(taken.id).await.unwrap().state, SnapshotState::Deleting);
    until("its removal", || fleet.client.snapshots(None), |all| all.as_ref().unwrap().is_empty())
        .await
        .unwrap();
    assert!(fleet.agent.snapshots().is_empty());
    assert_eq!(reason(fleet.client.get_snapshot(taken.id).await), Reason::SnapshotNotFound);
    assert_eq!(reason(fleet.client.create(from(Source::Snapshot(taken.id))).await), Reason::SnapshotNotFound);
}

#[tokio::test]
async fn a_snapshot_that_fails_says_why() {
    let fleet = failing().await;
    let sandbox = fleet.running().await;
    let taken = fleet.client.create_snapshot(sandbox.id, "", None).await.unwrap();
    let error = fleet.client.wait_snapshot(taken.id, LIMIT).await.unwrap_err();
    assert_eq!(
        (error.cause().reason, error.to_string()),
        (Reason::SnapshotFailed, "no space left".to_owned())
    );
    let refused = fleet.client.fork(ForkOf::Snapshot(taken.id), 2, ForkOptions::default()).await;
    assert_eq!(reason(refused), Reason::SnapshotUnusable);
}

#[tokio::test]
async fn forks_run_where_their_source_is_and_leave_no_snapshot() {
    let fleet = Fleet::new().await;
    let _other = FakeAgent::join(&fleet.scheduler.endpoint(), "node-2").await;
    let sandbox = fleet.running().await;
    let options =
        ForkOptions { name: Some("fork".into()), request_id: Some("f".into()), ..Default::default() };
    let (forks, snapshot) = fleet.client.fork(ForkOf::Sandbox(sandbox.id), 4, options.clone()).await.unwrap();
    assert_eq!(forks.len(), 4);
    for fork in &forks {
        let fork = fleet.client.wait_running(fork.id, LIMIT).await.unwrap();
        assert_eq!((fork.node, fork.spec.name.as_str()), (sandbox.node.clone(), "fork"));
        assert_eq!(fork.spec.source, Source::Snapshot(snapshot));
    }
    let (again, _) = fleet.client.fork(ForkOf::Sandbox(sandbox.id), 4, options).await.unwrap();
    let ids = |all: &[Sandbox]| all.iter().map(|sandbox| sandbox.id).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&forks));
    until("its removal", || fleet.client.snapshots(None), |all| all.as_ref().unwrap().is_empty())
        .await
        .unwrap();
    assert_eq!(fleet.client.list_all(Default::default()).await.unwrap().0.len(), 5);
}

#[tokio::test]
async fn a_fork_out_of_bounds_is_refused_with_field_value_and_limit() {
    let fleet = Fleet::new().await;
    let sandbox = fleet.running().await;
    let of = ForkOf::Sandbox(sandbox.id);
    let error = fleet.client.fork(of, 65, ForkOptions::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "count is 65, outside 1 to 64");
    let gone: SnapshotId = "0190b3f0-5a00-7000-8000-00000000000a".parse().unwrap();
    let refused = fleet.client.fork(ForkOf::Snapshot(gone), 1, ForkOptions::default()).await;
    assert_eq!(reason(refused), Reason::SnapshotNotFound);
    assert_eq!(fleet.client.list_all(Default::default()).await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn a_create_from_a_template_is_a_restore_where_it_is_prepared() {
    let fleet = Fleet::new().await;
    let environment = [("A".to_owned(), "1".to_owned())].into();
    let new = NewTemplate { name: "python".into(), environment, ..NewTemplate::default() };
    fleet.client.create_template(new.clone()).await.unwrap();
    assert_eq!(reason(fleet.client.create_template(new).await), Reason::TemplateExists);
    let get = || async { fleet.client.get_template("python").await.unwrap() };
    let template = until("its preparation", get, |template| template.nodes_prepared == 1).await;
    assert_eq!((template.nodes_eligible, template.nodes_failed), (1, 0));
    let made = fleet.client.create(from(Source::Template("python".into()))).await.unwrap();
    let made = fleet.client.wait_running(made.id, LIMIT).await.unwrap();
    assert_eq!(made.spec.source, Source::Template("python".into()));
    assert_eq!(fleet.agent.stats().borrow().restored, 1);
    fleet.client.delete_template("python").await.unwrap();
    until("its drop", || async { fleet.agent.templates() }, Vec::is_empty).await;
    assert!(fleet.client.templates().await.unwrap().is_empty());
    assert_eq!(
        reason(fleet.client.create(from(Source::Template("python".into()))).await),
        Reason::TemplateNotFound
    );
    assert_eq!(fleet.client.get(made.id).await.unwrap().phase, Phase::Running);
}

#[tokio::test]
async fn a_template_that_no_node_can_prepare_boots_all_the_same_and_says_so() {
    let fleet = failing().await;
    let new = NewTemplate { name: "python".into(), ..NewTemplate::default() };
    fleet.client.create_template(new).await.unwrap();
    let get = || async { fleet.client.get_template("python").await.unwrap() };
    let template = until("its failure", get, |template| template.nodes_failed == 1).await;
    assert_eq!(template.last_failure.unwrap().message, "no space left");
    let made = fleet.client.create(from(Source::Template("python".into()))).await.unwrap();
    let made = fleet.client.wait_running(made.id, LIMIT).await.unwrap();
    let sentence = made.explanation.unwrap().sentence;
    assert_eq!(
        sentence,
        "1 of 1 nodes fit; template python is not prepared on node-1, where it boots instead"
    );
}

#[tokio::test]
async fn what_is_saved_survives_a_restart_of_the_scheduler() {
    let fleet = Fleet::new().await;
    let sandbox = fleet.running().await;
    let snapshot = fleet.client.create_snapshot(sandbox.id, "", None).await.unwrap();
    fleet.client.wait_snapshot(snapshot.id, LIMIT).await.unwrap();
    fleet.client.create_template(NewTemplate { name: "t".into(), ..Default::default() }).await.unwrap();
    fleet.client.pause(sandbox.id).await.unwrap();
    fleet.client.wait_paused(sandbox.id, LIMIT).await.unwrap();
    let scheduler = fleet.scheduler.restart().await;
    let client = scheduler.client().await;
    assert_eq!(client.get(sandbox.id).await.unwrap().phase, Phase::Paused);
    assert_eq!(client.get_snapshot(snapshot.id).await.unwrap().state, SnapshotState::Ready);
    assert_eq!(client.templates().await.unwrap().len(), 1);
}
