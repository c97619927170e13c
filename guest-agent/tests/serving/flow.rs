//! Bounds: nobody's silence costs memory, or holds up another.

use crate::harness::{
    Exec, Frame, PATIENCE, connect, connect_with_socket, endless_stdin, is_running, run, shell, start, until,
};
use pinfold_proto::guest::v1::ExecRequest;
use pinfold_proto::guest::v1::exec_response::Frame as Answer;
use pinfold_proto::limits::FRAME_BYTES;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[tokio::test]
async fn a_caller_whose_connection_breaks_while_its_stdin_is_held_back_ends_its_process() {
    let (mut client, socket) = connect_with_socket().await;
    let first = ExecRequest { frame: Some(Frame::Start(start(&["sleep", "3456.75"]))) };
    let taken = Arc::new(AtomicU64::new(0));
    let mut answers = client.exec(endless_stdin(first, taken.clone())).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    let mut last = u64::MAX;
    until("the input is held back", || {
        let before = std::mem::replace(&mut last, taken.load(Ordering::Relaxed));
        before == last
    })
    .await;
    assert!(is_running("3456.75"));
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    until("the process ends", || !is_running("3456.75")).await;
}

#[tokio::test]
async fn many_stalled_streams_do_not_stop_another_on_their_connection() {
    let mut client = connect().await;
    let mut stalled = Vec::new();
    for _ in 0..40 {
        let first = ExecRequest { frame: Some(Frame::Start(start(&["sleep", "1000"]))) };
        let mut answers = client.exec(endless_stdin(first, Arc::default())).await.unwrap().into_inner();
        assert!(answers.message().await.unwrap().is_some());
        stalled.push(answers);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let exec = Exec::open(&mut client, start(&["wc", "-c"])).await;
    for _ in 0..64 {
        tokio::time::timeout(PATIENCE, exec.stdin(&[1; FRAME_BYTES])).await.expect("stdin flows");
    }
    exec.close_stdin().await;
    assert_eq!(exec.finish().await.unwrap().text().trim(), (64 * FRAME_BYTES).to_string());
}

#[tokio::test]
async fn all_output_arrives_however_slow_the_caller() {
    let mut exec = Exec::open(&mut connect().await, shell("head -c 3000000 /dev/zero")).await;
    let mut bytes = 0;
    loop {
        match exec.next().await {
            Some(Answer::Stdout(data)) => {
                assert!(data.len() <= FRAME_BYTES);
                bytes += data.len();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Some(Answer::Started(_)) => {}
            Some(Answer::Exited(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bytes, 3_000_000);
}

#[tokio::test]
async fn stdin_of_a_process_that_closed_it_is_thrown_away() {
    let exec = Exec::open(&mut connect().await, shell("exec <&-; sleep 0.3; echo done")).await;
    for _ in 0..100 {
        tokio::time::timeout(PATIENCE, exec.stdin(&[1; FRAME_BYTES])).await.expect("nothing blocks");
    }
    let done = exec.finish().await.unwrap();
    assert_eq!((done.text().as_str(), done.code()), ("done\n", Some(0)));
}

#[tokio::test]
async fn a_process_that_ends_before_its_stdin_does_is_still_answered() {
    let mut client = connect().await;
    let first = ExecRequest { frame: Some(Frame::Start(shell("echo early; exit 6"))) };
    let mut answers = client.exec(endless_stdin(first, Arc::default())).await.unwrap().into_inner();
    let mut exited = None;
    while let Some(answer) = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap().unwrap() {
        if let Some(Answer::Exited(end)) = answer.frame {
            exited = end.outcome;
        }
    }
    assert_eq!(exited, Some(pinfold_proto::guest::v1::exec_exited::Outcome::ExitCode(6)));
}

#[tokio::test]
async fn a_hundred_processes_in_a_row_leave_nothing() {
    for n in 0..100 {
        let code = n % 256;
        assert_eq!(run(shell(&format!("exit {code}"))).await.unwrap().code(), Some(code));
    }
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < 200, "{open} descriptors are open");
}
