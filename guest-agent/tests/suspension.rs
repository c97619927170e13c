//! Standing still and going on. In a process of its own: it stops the whole workload.
#![allow(clippy::unwrap_used, reason = "all of it is test code, also what is not in a test function")]

#[path = "serving/harness.rs"]
#[allow(dead_code)]
mod harness;

use harness::{CGROUP, Exec, connect, connect_with_socket, run, shell, start, until};
use pinfold_proto::guest::v1::{ReadFileRequest, SuspendRequest, WakeRequest};
use pinfold_proto::reasons;
use std::net::Shutdown;
use std::path::Path;
use std::time::Duration;

/// Long enough for a process that runs to show it.
const A_MOMENT: Duration = Duration::from_millis(300);

/// Whether the agent's workload is in a cgroup, without which nothing here can be seen.
fn can_be_frozen() -> bool {
    let can = CGROUP.get().is_some();
    if !can {
        assert!(
            std::env::var_os("CI").is_none(),
            "this test needs a writable cgroup v2, and CI must have it"
        );
        eprintln!("SKIPPED: this test needs a cgroup v2 that it may write");
    }
    can
}

fn restored(generation: &str) -> WakeRequest {
    WakeRequest { generation: generation.into(), entropy: vec![7; 32].into(), ..Default::default() }
}

/// A process that changes `file` all the time and prints a lot.
async fn busy(file: &Path) -> (Exec, std::os::unix::net::UnixStream) {
    let script = format!(
        "echo ready; while :; do date +%N > {0}; head -c 9999 /dev/zero; sleep 0.01; done",
        file.display()
    );
    let (mut client, socket) = connect_with_socket().await;
    let mut exec = Exec::open(&mut client, shell(&script)).await;
    exec.read_until("ready").await;
    (exec, socket)
}

async fn changes(file: &Path) -> bool {
    let before = std::fs::read(file).unwrap();
    tokio::time::sleep(A_MOMENT).await;
    std::fs::read(file).unwrap() != before
}

/// One test after the other in one: they share the workload.
#[tokio::test]
async fn the_workload_stands_still_until_it_is_woken() {
    let mut client = connect().await;
    run(start(&["true"])).await.unwrap();
    if !can_be_frozen() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("now");
    let (process, socket) = busy(&file).await;
    until("the file is there", || file.exists()).await;

    client.suspend(SuspendRequest {}).await.unwrap();
    client.suspend(SuspendRequest {}).await.unwrap();
    assert!(!changes(&file).await, "the workload runs on");
    // calls wait for the wake
    let early = tokio::spawn(run(start(&["echo", "woken"])));
    let mut reader = client.clone();
    let early_read = tokio::spawn(async move {
        let request = ReadFileRequest { path: "/etc/passwd".into(), user: "root".into() };
        reader.read_file(request).await.unwrap().into_inner().message().await
    });
    tokio::time::sleep(A_MOMENT).await;
    assert!(!early.is_finished() && !early_read.is_finished());
    client.wake(WakeRequest::default()).await.unwrap();
    assert_eq!(early.await.unwrap().unwrap().text(), "woken\n");
    assert!(early_read.await.unwrap().unwrap().is_some());
    assert!(changes(&file).await, "the workload stands still after the wake");

    // a restore cuts the caller off, and its process goes on without it, whatever it prints
    client.suspend(SuspendRequest {}).await.unwrap();
    socket.shutdown(Shutdown::Both).unwrap();
    let refused =
        client.wake(WakeRequest { entropy: vec![0; 3].into(), ..restored("one") }).await.unwrap_err();
    assert_eq!(reasons::cause(&refused).reason.as_str(), "InvalidArgument");
    assert!(!changes(&file).await, "a wake that was refused has woken it");
    client.wake(restored("one")).await.unwrap();
    client.wake(restored("one")).await.unwrap();
    drop(process);
    for _ in 0..3 {
        assert!(changes(&file).await, "a process ended because its caller was cut off");
    }

    // the same without a restore is a caller that goes away
    let other = directory.path().join("other");
    let (process, socket) = busy(&other).await;
    until("the file is there", || other.exists()).await;
    socket.shutdown(Shutdown::Both).unwrap();
    drop(process);
    let mut ended = false;
    for _ in 0..100 {
        ended = ended || !changes(&other).await;
        if ended {
            break;
        }
    }
    assert!(ended, "a process goes on although its caller went away");
    run(shell(&format!("pkill -f {}; true", directory.path().display()))).await.unwrap();
}
