//! The bound on processes. In a process of its own: it takes all places.
#![allow(clippy::unwrap_used, reason = "all of it is test code, also what is not in a test function")]

#[path = "serving/harness.rs"]
#[allow(dead_code)]
mod harness;

use harness::{Exec, connect, run, start};
use pinfold_proto::reasons;
use std::time::{Duration, Instant};
use tonic::Code;

#[tokio::test]
async fn processes_beyond_the_bound_are_refused_with_their_reason() {
    let mut client = connect().await;
    let mut running = Vec::new();
    let refused = loop {
        let mut exec = Exec::open(&mut client, start(&["sleep", "1000"])).await;
        match exec.answers.message().await {
            Ok(_) => running.push(exec),
            Err(status) => break status,
        }
        assert!(running.len() <= 64);
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(reasons::cause(&refused).reason.as_str(), "TooManyStreams");
    drop(running);
    // the places come back
    let deadline = Instant::now() + harness::PATIENCE;
    while run(start(&["true"])).await.is_err() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
