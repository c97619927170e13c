//! The host's side of the socket device: what a guest can connect to.

use anyhow::{Context as _, Result};
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// As in the guest's `cases/sockets.rs` and `cases/neighbour.rs`.
pub const PORT_ECHO: u32 = 77;
pub const PORT_FLOOD: u32 = 78;
pub const PORT_SILENT: u32 = 79;

/// Connections that are held at most; the VMM lets fewer through.
const HELD_MAX: usize = 1024;
/// A sender that is held back for so long has been stopped.
const HELD_BACK: Duration = Duration::from_secs(1);

/// The listeners of one machine. Their threads end with the process.
#[derive(Clone, Default)]
pub struct Host {
    /// bytes that the flooded guest's VMM has taken from us
    pub flooded: Arc<AtomicU64>,
    /// connections to the silent port, ever
    pub accepted: Arc<AtomicU64>,
}

impl Host {
    /// Listens on every port that a hostile guest is given; `prefix` as in the machine's config.
    pub fn listen(prefix: &Path) -> Result<Self> {
        let host = Self::default();
        let silent = listener(prefix, PORT_SILENT)?;
        let accepted = Arc::clone(&host.accepted);
        std::thread::spawn(move || {
            let held = Mutex::new(Vec::new());
            for stream in silent.incoming().flatten() {
                accepted.fetch_add(1, Ordering::Relaxed);
                let mut held = held.lock().expect("nobody panics with it");
                if held.len() < HELD_MAX {
                    held.push(stream);
                }
            }
        });
        let flood = listener(prefix, PORT_FLOOD)?;
        let flooded = Arc::clone(&host.flooded);
        std::thread::spawn(move || {
            for mut stream in flood.incoming().flatten() {
                // an error is a sender held back, or an end
                let _ = send_all_it_takes(&mut stream, &flooded);
                // held open: the guest has not read it all
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_secs(120));
                    drop(stream);
                });
            }
        });
        Ok(host)
    }
}

fn send_all_it_takes(stream: &mut UnixStream, sent: &AtomicU64) -> std::io::Result<()> {
    stream.set_write_timeout(Some(HELD_BACK))?;
    let block = [b'f'; 4096];
    loop {
        let taken = stream.write(&block)?;
        sent.fetch_add(taken as u64, Ordering::Relaxed);
    }
}

/// The socket that stands for a port of the host.
pub fn listener(prefix: &Path, port: u32) -> Result<UnixListener> {
    let path = format!("{}_{port}", prefix.display());
    UnixListener::bind(&path).with_context(|| format!("listening on {path}"))
}
