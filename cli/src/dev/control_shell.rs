//! The control shell of a virtual node: commands in the node, over its second serial port.
//!
//! ```text
//!   request   <id> <command>LF
//!   answer    <output> 0x1e <id> SPACE <exit code> LF
//! ```
//!
//! One connection serves one command: QEMU has one client at a time, and others may want to look at the node too.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest command; the shell in the node reads a line of up to 4,000 bytes.
pub const MAX_COMMAND_BYTES: usize = 4000;
/// Most output of one command that is kept.
pub const MAX_OUTPUT_BYTES: usize = 1024 * 1024;
const END_OF_OUTPUT: u8 = 0x1e;

/// What a command in the node gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 143: it ran longer than the node allows (120 s)
    pub code: i32,
    /// both streams
    pub output: String,
}

#[derive(Debug, Clone)]
pub struct ControlShell {
    socket: PathBuf,
}

impl ControlShell {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Runs one line of shell in the node. The error after `limit` says that the node was silent.
    pub async fn run(&self, command: &str, limit: Duration) -> Result<Answer> {
        ensure!(!command.contains('\n'), "a command of the control shell is one line");
        ensure!(
            command.len() <= MAX_COMMAND_BYTES,
            "a command of the control shell has {} bytes, the limit is {MAX_COMMAND_BYTES}",
            command.len()
        );
        match tokio::time::timeout(limit, self.exchange(command)).await {
            Ok(answer) => answer.with_context(|| format!("control shell {}", self.socket.display())),
            Err(_) => bail!(
                "the node was silent for {} s (control shell {}, command {command:?})",
                limit.as_secs_f32(),
                self.socket.display()
            ),
        }
    }

    async fn exchange(&self, command: &str) -> Result<Answer> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // another process may have used small numbers on this node
        let id = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut stream = connect(&self.socket).await?;
        let mut received = Vec::new();
        for attempt in 0_u32.. {
            // an empty line first, should an earlier client have left half of one; then a request that does nothing:
            // what is left of the answers to others ends before its own. Just after the node's start nobody may read
            // yet, so it is sent again; whoever called has set a limit.
            let marker = format!("{id}-{attempt}");
            stream.write_all(format!("\n{marker} :\n").as_bytes()).await?;
            let answered = until(&mut stream, Vec::new(), &marker);
            if let Ok(answered) = tokio::time::timeout(Duration::from_secs(2), answered).await {
                received = answered?.1;
                break;
            }
        }
        stream.write_all(format!("{id} {command}\n").as_bytes()).await?;
        Ok(until(&mut stream, received, &id).await?.0)
    }
}

/// A path that is too long for `sockaddr_un` is reached through a descriptor of its directory.
async fn connect(socket: &Path) -> Result<UnixStream> {
    const SUN_PATH_BYTES: usize = 107;
    if socket.as_os_str().len() <= SUN_PATH_BYTES {
        return Ok(UnixStream::connect(socket).await?);
    }
    let directory = socket.parent().context("a socket has a directory")?;
    let name = socket.file_name().context("a socket has a name")?;
    let directory = std::fs::File::open(directory)?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&directory);
    let short = Path::new("/proc/self/fd").join(number.to_string()).join(name);
    Ok(UnixStream::connect(short).await?)
}

/// Reads up to the end marker of `id`; the answer, and what came behind it.
async fn until(stream: &mut UnixStream, mut received: Vec<u8>, id: &str) -> Result<(Answer, Vec<u8>)> {
    let marker = [&[END_OF_OUTPUT], id.as_bytes(), b" "].concat();
    let mut searched: usize = 0;
    loop {
        let from = searched.saturating_sub(marker.len());
        if let Some(at) = find(&received[from..], &marker).map(|at| at + from) {
            let code_at = at + marker.len();
            if let Some(end) = find(&received[code_at..], b"\n").map(|end| end + code_at) {
                let code = std::str::from_utf8(&received[code_at..end])?.trim();
                let code = code.parse().with_context(|| format!("{code:?} is not an exit code"))?;
                let output = String::from_utf8_lossy(&received[..at]).into_owned();
                return Ok((Answer { code, output }, received.split_off(end + 1)));
            }
        } else {
            searched = received.len();
        }
        ensure!(received.len() <= MAX_OUTPUT_BYTES, "more than {MAX_OUTPUT_BYTES} bytes of output");
        let count = stream.read_buf(&mut received).await?;
        ensure!(count > 0, "the node ended");
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixListener;

    /// A shell that answers each request with what `answer` makes of its id and command.
    async fn serve(listener: UnixListener, answer: impl Fn(&str, &str) -> Vec<u8>) {
        let (stream, _) = listener.accept().await.unwrap();
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some((id, command)) = line.split_once(' ') {
                writer.write_all(&answer(id, command)).await.unwrap();
            }
        }
    }

    async fn exchange(answer: impl Fn(&str, &str) -> Vec<u8>) -> Result<Answer> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let shell = ControlShell::new(socket);
        let client = shell.run("cat /proc/loadavg", Duration::from_millis(500));
        tokio::select! {
            answer = client => answer,
            () = serve(listener, answer) => panic!("the server ended first"),
        }
    }

    #[tokio::test]
    async fn output_without_a_line_feed_and_left_overs_of_others() {
        let answer = exchange(|id, command| {
            if command == ":" {
                return format!("half an answer\x1eother 0\n\x1e{id} 0\n").into_bytes();
            }
            format!("0.10 0.02\x1e{id} 3\n").into_bytes()
        });
        assert_eq!(answer.await.unwrap(), Answer { code: 3, output: "0.10 0.02".into() });
    }

    #[tokio::test]
    async fn silence_is_an_error_that_says_so() {
        let error = exchange(|_, _| Vec::new()).await.unwrap_err().to_string();
        assert!(error.starts_with("the node was silent for 0.5 s"), "{error}");
    }

    #[tokio::test]
    async fn output_is_bounded() {
        let error = exchange(|_, _| vec![b'x'; 64 * 1024 * 20]).await.unwrap_err();
        assert!(format!("{error:#}").contains("more than 1048576 bytes of output"), "{error:#}");
    }

    #[tokio::test]
    async fn two_lines_are_refused() {
        let shell = ControlShell::new("/nowhere".into());
        assert!(shell.run("a\nb", Duration::from_secs(1)).await.is_err());
    }
}
