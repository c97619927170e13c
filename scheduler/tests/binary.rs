//! The binary itself: its flags, its signals, and its end by `kill -9`.
#![allow(clippy::unwrap_used, reason = "all of it is test code, also what is not in a test function")]

use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::sandbox_service_client::SandboxServiceClient;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

const LIMIT: Duration = Duration::from_secs(10);

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pinfold-scheduler"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> Output {
    binary().args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A process of the binary; killed when dropped.
struct Scheduler {
    child: Child,
    address: String,
}

impl Scheduler {
    fn start(directory: &Path) -> Self {
        let ready = directory.join("ready");
        let _ = std::fs::remove_file(&ready);
        let child = binary()
            .args(["--listen", "127.0.0.1:0", "--data-dir"])
            .arg(directory.join("data"))
            .arg("--ready-file")
            .arg(&ready)
            .spawn()
            .unwrap();
        let mut scheduler = Self { child, address: String::new() };
        scheduler.address = scheduler.wait_for(&ready);
        scheduler
    }

    /// The file appears by rename, so that it is whole when it is there; nothing tells of it.
    fn wait_for(&mut self, ready: &PathBuf) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Ok(address) = std::fs::read_to_string(ready) {
                return address.trim().to_owned();
            }
            assert!(Instant::now() < deadline, "it was not ready in time");
            assert_eq!(self.child.try_wait().unwrap(), None, "it ended before it was ready");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    async fn client(&self) -> SandboxServiceClient<Channel> {
        SandboxServiceClient::connect(format!("http://{}", self.address)).await.unwrap()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Exit code, and what it wrote to standard error.
    fn wait(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + LIMIT;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it did not end in time");
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = self.child.wait().unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut text).unwrap();
        (status.code(), text)
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // it may have ended already
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn create(client: &mut SandboxServiceClient<Channel>, request_id: &str) -> wire::Sandbox {
    let spec = Some(wire::SandboxSpec::default());
    let request = wire::CreateSandboxRequest { request_id: request_id.to_owned(), spec };
    client.create_sandbox(request).await.unwrap().into_inner().sandbox.unwrap()
}

#[test]
fn beyond_loopback_it_does_not_listen_unless_told() {
    let refused = run(&["--listen", "0.0.0.0:0"]);
    assert_eq!(refused.status.code(), Some(1));
    let text = stderr(&refused);
    assert!(
        text.contains("0.0.0.0:0") && text.contains("no TLS") && text.contains("--insecure-listen"),
        "{text}"
    );
    assert_eq!(text.matches("no TLS").count(), 1, "said once: {text}");
    let told = run(&["--listen", "0.0.0.0:0", "--insecure-listen", "--check-config"]);
    assert!(told.status.success(), "{}", stderr(&told));
}

#[test]
fn a_configuration_is_checked_and_shown_without_running() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("scheduler.toml");
    std::fs::write(&file, "listen = \"127.0.0.1:7999\"\n[engine]\nplacement = \"spread\"\n").unwrap();
    let file = file.to_str().unwrap();
    let shown = run(&["--config", file, "--dump-config"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(
        text.contains("listen = \"127.0.0.1:7999\"") && text.contains("placement = \"spread\""),
        "{text}"
    );
    assert!(run(&["--config", file, "--check-config"]).status.success());
    std::fs::write(file, "listne = \"127.0.0.1:7999\"\n").unwrap();
    let refused = run(&["--config", file, "--check-config"]);
    assert!(stderr(&refused).contains("listne"), "{}", stderr(&refused));
    let refused = run(&["--placement", "random"]);
    assert!(stderr(&refused).contains("pack or spread"), "{}", stderr(&refused));
    let from_environment =
        binary().env("PINFOLD_SCHEDULER_LOG__FORMAT", "json").arg("--dump-config").output().unwrap();
    assert!(String::from_utf8(from_environment.stdout).unwrap().contains("format = \"json\""));
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let scheduler = Scheduler::start(directory.path());
    let mut client = scheduler.client().await;
    let mut accepted = Vec::new();
    for n in 0..20 {
        accepted.push(create(&mut client, &format!("r{n}")).await.id);
    }
    scheduler.signal("KILL");
    let (code, _) = scheduler.wait();
    assert_eq!(code, None, "ended by a signal");
    let scheduler = Scheduler::start(directory.path());
    let mut client = scheduler.client().await;
    let listed = client.list_sandboxes(wire::ListSandboxesRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.sandboxes.into_iter().map(|sandbox| sandbox.id).collect::<Vec<_>>(), accepted);
    assert_eq!(create(&mut client, "r7").await.id, accepted[7], "the same request id, the same sandbox");
}

#[tokio::test]
async fn sigterm_ends_it_in_order_although_a_stream_is_open() {
    let directory = tempfile::tempdir().unwrap();
    let scheduler = Scheduler::start(directory.path());
    let mut client = scheduler.client().await;
    let mut watch =
        client.watch_sandboxes(wire::WatchSandboxesRequest::default()).await.unwrap().into_inner();
    scheduler.signal("TERM");
    let status = watch.message().await.unwrap_err();
    assert!(status.message().contains("shutting down"), "{status}");
    let (code, log) = scheduler.wait();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("ended"), "{log}");
    assert!(!directory.path().join("ready").exists(), "it is not ready any more");
}

#[test]
fn a_store_in_use_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let _first = Scheduler::start(directory.path());
    let data = directory.path().join("data");
    let second = run(&["--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains(data.to_str().unwrap()), "{}", stderr(&second));
}
