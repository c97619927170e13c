//! The agent in this process, on a Unix socket, as an ordinary process: no PID 1, no machine of its own.
//!
//! One agent serves all tests of a process, because reaping is a thing of the whole process.

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use pinfold_guest_agent::agent::{Agent, Role};
use pinfold_guest_agent::cgroup::Workload;
use pinfold_guest_agent::server;
use pinfold_proto::guest::v1::exec_exited::Outcome;
use pinfold_proto::guest::v1::exec_response::Frame as Answer;
use pinfold_proto::guest::v1::guest_service_client::GuestServiceClient;
use pinfold_proto::guest::v1::{CloseStdin, ExecExited, ExecRequest, ExecResponse, ExecStart, exec_request};
use pinfold_proto::limits::FRAME_BYTES;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status, Streaming};

pub use exec_request::Frame;

pub type Client = GuestServiceClient<Channel>;

/// No step of a test takes longer.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A connection of its own to the agent.
pub async fn connect() -> Client {
    connect_with_socket().await.0
}

/// The connection's socket too, to break it.
pub async fn connect_with_socket() -> (Client, std::os::unix::net::UnixStream) {
    let stream = std::os::unix::net::UnixStream::connect_addr(&address(agent_socket())).unwrap();
    stream.set_nonblocking(true).unwrap();
    let socket = stream.try_clone().unwrap();
    let mut stream = Some(UnixStream::from_std(stream).map(TokioIo::new));
    let channel = Endpoint::from_static("http://guest.invalid")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let stream = stream.take().expect("it connects once");
            async move { stream }
        }))
        .await
        .unwrap();
    (GuestServiceClient::new(channel), socket)
}

/// In the abstract namespace: nothing is left in the file system.
fn address(name: &str) -> SocketAddr {
    SocketAddr::from_abstract_name(name).unwrap()
}

fn agent_socket() -> &'static str {
    static SOCKET: OnceLock<String> = OnceLock::new();
    SOCKET.get_or_init(|| {
        let name = format!("pinfold-guest-test-{}", std::process::id());
        let (ready, served) = std::sync::mpsc::channel();
        let listener = std::os::unix::net::UnixListener::bind_addr(&address(&name)).unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let agent = Agent::new(Role::Plain, workload(), 1 << 30, None).unwrap();
                let listener = UnixListener::from_std(listener).unwrap();
                ready.send(()).unwrap();
                server::serve(agent, UnixListenerStream::new(listener)).await.unwrap();
            });
        });
        served.recv_timeout(PATIENCE).unwrap();
        name
    })
}

/// That of the agent's workload, where it has one; known after the first connection.
pub static CGROUP: OnceLock<PathBuf> = OnceLock::new();

/// In a cgroup where this machine has a v2 hierarchy that may be written, else in process groups.
fn workload() -> Workload {
    let own = cgroup2_mount().map(|root| root.join(format!("pinfold-guest-test-{}", std::process::id())));
    let Some(own) = own.filter(|own| std::fs::create_dir(own).is_ok()) else {
        return Workload::in_process_groups();
    };
    CGROUP.set(own.clone()).unwrap();
    // SAFETY: `remove_cgroup` takes nothing, returns, and does not panic.
    assert_eq!(unsafe { libc::atexit(remove_cgroup) }, 0);
    Workload::in_cgroup(own)
}

fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    line.split(' ').nth(1).map(PathBuf::from)
}

/// A process of tests leaves nothing, also where a test failed half way.
extern "C" fn remove_cgroup() {
    let Some(own) = CGROUP.get() else { return };
    let _ = std::fs::write(own.join("cgroup.kill"), "1");
    for _ in 0..100 {
        for child in std::fs::read_dir(own).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(child.path());
        }
        if std::fs::remove_dir(own).is_ok() {
            return;
        }
        // the kernel ends the processes meanwhile
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn start(command: &[&str]) -> ExecStart {
    ExecStart { command: command.iter().map(|&word| word.to_owned()).collect(), ..Default::default() }
}

pub fn shell(script: &str) -> ExecStart {
    start(&["sh", "-c", script])
}

/// A running conversation. Dropped, it is a caller that goes away.
pub struct Exec {
    frames: Option<mpsc::Sender<ExecRequest>>,
    pub answers: Streaming<ExecResponse>,
}

/// All that came of a process.
#[derive(Debug, Default)]
pub struct Outcomes {
    pub pid: u32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exited: Option<ExecExited>,
}

impl Outcomes {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn code(&self) -> Option<u32> {
        match self.exited.as_ref()?.outcome? {
            Outcome::ExitCode(code) => Some(code),
            Outcome::Signal(_) => None,
        }
    }

    pub fn signal(&self) -> Option<u32> {
        match self.exited.as_ref()?.outcome? {
            Outcome::Signal(number) => Some(number),
            Outcome::ExitCode(_) => None,
        }
    }
}

impl Exec {
    pub async fn open(client: &mut Client, start: ExecStart) -> Self {
        let (frames, receiver) = mpsc::channel(4);
        let first = ExecRequest { frame: Some(Frame::Start(start)) };
        frames.send(first).await.unwrap();
        let request = Request::new(ReceiverStream::new(receiver));
        let answers = client.exec(request).await.unwrap().into_inner();
        Self { frames: Some(frames), answers }
    }

    pub async fn send(&self, frame: Frame) {
        let frames = self.frames.as_ref().expect("frames are still being sent");
        frames.send(ExecRequest { frame: Some(frame) }).await.unwrap();
    }

    pub async fn stdin(&self, data: &[u8]) {
        self.send(Frame::Stdin(Bytes::copy_from_slice(data))).await;
    }

    pub async fn close_stdin(&self) {
        self.send(Frame::CloseStdin(CloseStdin {})).await;
    }

    /// Ends the caller's side of the stream.
    pub fn half_close(&mut self) {
        self.frames = None;
    }

    pub async fn next(&mut self) -> Option<Answer> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("an answer in time");
        answer.unwrap().map(|answer| answer.frame.expect("an answer has a frame"))
    }

    /// Reads to the end.
    pub async fn finish(mut self) -> Result<Outcomes, Status> {
        let mut outcomes = Outcomes::default();
        loop {
            let answer =
                tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("an end in time");
            match answer? {
                None => return Ok(outcomes),
                Some(answer) => match answer.frame.expect("an answer has a frame") {
                    Answer::Started(started) => outcomes.pid = started.pid,
                    Answer::Stdout(data) => outcomes.stdout.extend_from_slice(&data),
                    Answer::Stderr(data) => outcomes.stderr.extend_from_slice(&data),
                    Answer::Exited(exited) => {
                        assert!(outcomes.exited.replace(exited).is_none(), "one end");
                    }
                },
            }
        }
    }

    /// Reads output until it contains `text`.
    pub async fn read_until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.next().await {
                Some(Answer::Stdout(data)) => seen.push_str(&String::from_utf8_lossy(&data)),
                Some(Answer::Started(_) | Answer::Stderr(_)) => {}
                other => panic!("{other:?} after {seen:?}, before {text:?}"),
            }
        }
        seen
    }
}

/// Runs `start` without input to its end.
pub async fn run(start: ExecStart) -> Result<Outcomes, Status> {
    let mut exec = Exec::open(&mut connect().await, start).await;
    exec.half_close();
    exec.finish().await
}

/// Whether a process with this command line word runs, zombies aside.
pub fn is_running(word: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .any(|line| line.split(|&byte| byte == 0).any(|w| w == word.as_bytes()))
}

/// Waits until `condition` holds. There is no event for what other processes do.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Frames of stdin without end, counted as they are taken.
pub fn endless_stdin(
    first: ExecRequest,
    taken: Arc<AtomicU64>,
) -> impl tokio_stream::Stream<Item = ExecRequest> + Send + 'static {
    let piece = Bytes::from(vec![7; FRAME_BYTES]);
    tokio_stream::once(first).chain(tokio_stream::iter(std::iter::repeat_with(move || {
        taken.fetch_add(FRAME_BYTES as u64, Ordering::Relaxed);
        ExecRequest { frame: Some(Frame::Stdin(piece.clone())) }
    })))
}
