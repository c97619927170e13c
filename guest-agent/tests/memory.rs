//! Nobody's silence costs memory. In a process of its own, one at a time: it is the memory of the process that is measured,
//! the agent's and the caller's together.
#![allow(clippy::unwrap_used, reason = "all of it is test code, also what is not in a test function")]

#[path = "serving/harness.rs"]
#[allow(dead_code)]
mod harness;

use harness::{Exec, Frame, connect, endless_stdin, shell, start};
use pinfold_proto::guest::v1::ExecRequest;
use pinfold_proto::guest::v1::exec_response::Frame as Answer;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

const MIB: u64 = 1 << 20;

/// Anonymous memory of this process, the agent and the caller together.
fn memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn endless_stdin_for_a_process_that_does_not_read_is_held_back() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut client = connect().await;
    let taken = Arc::new(AtomicU64::new(0));
    let first = ExecRequest { frame: Some(Frame::Start(start(&["sleep", "1000"]))) };
    let before = memory_bytes();
    let mut answers = client.exec(endless_stdin(first, taken.clone())).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    let mut last = u64::MAX;
    // steady for half a second: all buffers are full
    while last != taken.load(Ordering::Relaxed) {
        last = taken.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(last == u64::MAX || last < 16 * MIB, "{last} bytes were taken");
    }
    assert!(memory_bytes() < before + 16 * MIB);
    // the same connection still serves another
    let done = Exec::open(&mut client, shell("echo well")).await.finish().await.unwrap();
    assert_eq!(done.text(), "well\n");
}

#[tokio::test]
async fn endless_output_to_a_caller_that_does_not_read_is_held_back() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut client = connect().await;
    let mut exec = Exec::open(&mut client, start(&["yes"])).await;
    assert!(matches!(exec.next().await, Some(Answer::Started(_))));
    let before = memory_bytes();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let grown = memory_bytes().saturating_sub(before);
    assert!(grown < 16 * MIB, "{grown} bytes for a caller that does not read");
    let done = Exec::open(&mut client, shell("echo well")).await.finish().await.unwrap();
    assert_eq!(done.text(), "well\n");
}
