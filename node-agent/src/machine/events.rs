//! What VMMs tell of their guests: one watching connection for each VMM, into the log and a count for each sandbox.
//!
//! Nothing polls: a VMM whose guest behaves sends nothing. What comes is data of a process that a guest may have taken over:
//! lines, kinds and devices are bounded, and text is escaped before it is logged.

use pinfold_domain::SandboxId;
use pinfold_service::{CancellationToken, Tasks};
use pinfold_vmm_api::control::{Event, EventKind, MAX_LINE_BYTES, Request, Response};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::Instant;

/// Pairs of kind and device that are told apart; a machine has fewer than half as many devices.
const MAX_PAIRS: usize = 64;
/// Bytes of a device's name and of a message that reach the log.
const MAX_DEVICE_BYTES: usize = 32;
const MAX_MESSAGE_BYTES: usize = 200;
/// Each pair is logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Follows the VMM at `socket` until it is gone or the agent ends.
pub fn follow(tasks: &Tasks, id: SandboxId, socket: PathBuf) {
    let shutdown = tasks.shutdown();
    drop(tasks.background("vmm-events", async move {
        let mut counts = Counts::default();
        if let Err(error) = watch(id, socket, &mut counts, shutdown).await {
            tracing::debug!(sandbox = %id, %error, "the VMM is not watched any more");
        }
        if !counts.pairs.is_empty() {
            tracing::info!(sandbox = %id, seen = counts.text(), "what the guest did, as its VMM told it");
        }
    }));
}

async fn watch(
    id: SandboxId,
    socket: PathBuf,
    counts: &mut Counts,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut request = serde_json::to_vec(&Request::Watch).map_err(io::Error::other)?;
    request.push(b'\n');
    stream.write_all(&request).await?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut reader).take(MAX_LINE_BYTES as u64 + 1);
        let read = tokio::select! {
            read = bounded.read_until(b'\n', &mut line) => read?,
            () = shutdown.cancelled() => return Ok(()),
        };
        if read == 0 {
            return Ok(());
        }
        if read > MAX_LINE_BYTES {
            return Err(io::Error::other(format!("a line of more than {MAX_LINE_BYTES} bytes")));
        }
        match serde_json::from_slice(&line).map_err(io::Error::other)? {
            Response::Event(event) => {
                if counts.add(&event, Instant::now()) {
                    log(id, &event);
                }
            }
            Response::Done => {}
            other => return Err(io::Error::other(format!("{} is no event", cut(&format!("{other:?}"), 40)))),
        }
    }
}

fn log(id: SandboxId, event: &Event) {
    let (kind, count) = (event.kind.as_str(), event.count);
    let device = cut(&event.device, MAX_DEVICE_BYTES);
    let message = cut(&event.message, MAX_MESSAGE_BYTES);
    tracing::warn!(sandbox = %id, kind, device, count, message, "the VMM tells of its guest");
}

/// At most `bytes` of printable ASCII.
fn cut(text: &str, bytes: usize) -> String {
    text.escape_debug().filter(char::is_ascii).take(bytes).collect()
}

/// How often each pair was seen, by the VMM's own count, which is exact where events were passed over.
#[derive(Debug, Default)]
struct Counts {
    pairs: BTreeMap<(EventKind, String), Pair>,
}

#[derive(Debug)]
struct Pair {
    count: u64,
    logged_at: Instant,
}

impl Counts {
    /// True when the event is to be logged.
    fn add(&mut self, event: &Event, now: Instant) -> bool {
        let key = (event.kind, cut(&event.device, MAX_DEVICE_BYTES));
        if let Some(pair) = self.pairs.get_mut(&key) {
            pair.count = pair.count.max(event.count);
            let due = now.duration_since(pair.logged_at) >= LOG_INTERVAL;
            if due {
                pair.logged_at = now;
            }
            return due;
        }
        let room = self.pairs.len() < MAX_PAIRS;
        if room {
            self.pairs.insert(key, Pair { count: event.count, logged_at: now });
        }
        room
    }

    fn text(&self) -> String {
        let words = self
            .pairs
            .iter()
            .map(|((kind, device), pair)| format!("{} of {device}: {}", kind.as_str(), pair.count));
        words.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    fn event(device: &str, count: u64) -> Event {
        let message = "\u{1b}[31mred\n".to_owned() + &"x".repeat(500);
        Event { kind: EventKind::GuestFault, device: device.into(), count, message }
    }

    async fn told(lines: Vec<u8>) -> (io::Result<()>, Counts, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut asked = String::new();
            stream.read_line(&mut asked).await.unwrap();
            // a watcher that has seen enough may close first
            let _ = stream.write_all(&lines).await;
            asked
        };
        let mut counts = Counts::default();
        let id = "3f2504e0-4f89-41d3-9a0c-0305e82c3301".parse().unwrap();
        let (asked, result) =
            tokio::join!(server, watch(id, path.clone(), &mut counts, CancellationToken::new()));
        (result, counts, asked)
    }

    fn line(response: &Response) -> Vec<u8> {
        let mut line = serde_json::to_vec(response).unwrap();
        line.push(b'\n');
        line
    }

    #[tokio::test]
    async fn events_are_counted_by_kind_and_device_until_the_vmm_is_gone() {
        let mut lines = line(&Response::Done);
        for (device, count) in [("disk0", 3), ("vsock", 1), ("disk0", 900)] {
            lines.extend(line(&Response::Event(event(device, count))));
        }
        let (result, counts, asked) = told(lines).await;
        result.unwrap();
        assert_eq!(asked, "{\"request\":\"watch\"}\n");
        assert_eq!(counts.text(), "guest_fault of disk0: 900, guest_fault of vsock: 1");
    }

    #[tokio::test]
    async fn a_vmm_that_says_something_else_is_not_listened_to() {
        for lines in [b"nonsense\n".to_vec(), vec![b'x'; MAX_LINE_BYTES + 10], line(&Response::Killed)] {
            let (result, counts, _) = told(lines).await;
            result.unwrap_err();
            assert!(counts.pairs.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_counted_and_logged_once_in_ten_seconds() {
        let mut counts = Counts::default();
        let began = Instant::now();
        let logged = (0..10_000u64)
            .filter(|ms| counts.add(&event("disk0", ms + 1), began + Duration::from_millis(*ms)))
            .count();
        assert_eq!(logged, 1);
        assert!(counts.add(&event("disk0", 10_001), began + LOG_INTERVAL));
        assert_eq!(counts.text(), "guest_fault of disk0: 10001");
    }

    #[test]
    fn names_that_a_vmm_makes_up_are_bounded_and_harmless() {
        let mut counts = Counts::default();
        let now = Instant::now();
        let logged =
            (0..1000).filter(|n| counts.add(&event(&format!("\u{1b}]0;{n}\u{7}{}", "y".repeat(99)), 1), now));
        assert_eq!(logged.count(), MAX_PAIRS);
        assert_eq!(counts.pairs.len(), MAX_PAIRS);
        assert!(counts.text().bytes().all(|byte| (32..127).contains(&byte)), "{}", counts.text());
        assert_eq!(cut(&event("d", 1).message, MAX_MESSAGE_BYTES).len(), MAX_MESSAGE_BYTES);
    }
}
