//! The clean stop. In a process of its own: an agent that was stopped serves no more.
#![allow(clippy::unwrap_used, reason = "all of it is test code, also what is not in a test function")]

#[path = "serving/harness.rs"]
#[allow(dead_code)]
mod harness;

use harness::{Exec, connect, is_running, run, shell, start, until};
use pinfold_proto::guest::v1::{ConfigureRequest, ShutdownRequest};
use pinfold_proto::reasons;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_stop_ends_the_workload_politely_then_by_force_and_refuses_what_comes_after() {
    let mut client = connect().await;
    let settings = ConfigureRequest { pids_max: 0, ..Default::default() };
    assert_eq!(client.configure(settings).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    run(shell("setsid sleep 6543.25 >/dev/null 2>&1 &")).await.unwrap();
    let polite = shell("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done");
    let mut polite = Exec::open(&mut client, polite).await;
    polite.read_until("ready").await;
    let stubborn = shell("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    let mut stubborn = Exec::open(&mut client, stubborn).await;
    stubborn.read_until("ready").await;

    let begun = Instant::now();
    let mut other = client.clone();
    let stop = tokio::spawn(async move { other.shutdown(ShutdownRequest { grace_ms: 700 }).await });
    let done = polite.finish().await.unwrap();
    assert_eq!((done.text().as_str(), done.code()), ("bye\n", Some(0)));
    let refused = Exec::open(&mut client, start(&["true"])).await.finish().await.unwrap_err();
    assert_eq!(reasons::cause(&refused).reason.as_str(), "SandboxEnded");
    assert_eq!(stubborn.finish().await.unwrap().signal(), Some(9));
    stop.await.unwrap().unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(700));
    until("nothing is left", || !is_running("6543.25")).await;
}
