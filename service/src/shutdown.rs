//! The orderly end: SIGTERM and SIGINT cancel a token; a second signal ends the process at once.

use crate::tasks::Tasks;
use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code after a second signal: 128 + SIGINT, as shells show it.
const IMPATIENT_EXIT_CODE: i32 = 130;

/// Cancels the token of `tasks` at the first SIGTERM or SIGINT. The handlers are in place when this returns.
pub fn on_signals(tasks: &Tasks) -> io::Result<()> {
    let signals =
        Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    tasks.signals(watch(signals, tasks.shutdown()));
    Ok(())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn watch(mut signals: Signals, shutdown: CancellationToken) {
    let name = signals.next().await;
    tracing::info!(signal = name, "shutting down; a second signal ends at once");
    shutdown.cancel();
    let name = signals.next().await;
    tracing::warn!(signal = name, "ended by a second signal");
    std::process::exit(IMPATIENT_EXIT_CODE);
}
