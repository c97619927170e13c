//! What the agent says on the guest's console. The host reads these lines, so their form is a contract:
//!
//! - `pinfold-guest: <text>`: for people
//! - `pinfold-guest: fatal: <code>: <why>`: the guest ends now; the codes are [`Fatal`]'s

use nix::sys::termios::tcdrain;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

/// Why a guest cannot go on. Its code tells the host whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// the root image is missing, damaged, or of no known kind
    #[error("root-image: {0}")]
    RootImage(String),
    /// the sandbox's own disk is missing or cannot be mounted
    #[error("disk: {0}")]
    Disk(String),
    /// a fault of Pinfold, or a kernel without something that the agent needs
    #[error("internal: {0}")]
    Internal(String),
}

impl Fatal {
    /// For `map_err`: an act of the agent failed with `error`.
    pub fn internal<E: fmt::Display>(act: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Internal(format!("{act}: {error}"))
    }
}

/// Makes `/dev/console` this process's stdout and stderr, and nothing its stdin. Writes do not wait: the workload may have
/// stopped the terminal, and the agent must not stop with it.
pub fn attach() {
    if let Ok(console) =
        OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open("/dev/console")
    {
        // a console that cannot be had is no reason to stop
        let _ = dup2_stdout(&console);
        let _ = dup2_stderr(&console);
    }
    if let Ok(nothing) = File::open("/dev/null") {
        let _ = dup2_stdin(&nothing);
    }
}

/// Writes one line. A console that cannot be written is no reason to stop.
pub fn say(text: impl fmt::Display) {
    let line = format!("pinfold-guest: {}\n", text.to_string().replace('\n', " "));
    drop(std::io::stderr().write_all(line.as_bytes()));
}

/// Puts a line with the time into the kernel's log (`dmesg`). Not on the console of a kernel that is told to be quiet, where
/// each byte would cost time.
pub fn note(text: impl fmt::Display) {
    // 6: KERN_INFO, and 1 << 3: a message of a user's program (dmesg(1), `LOG_USER`)
    // without its end of line the kernel keeps it back, to join it with the next
    let line = format!("<14>pinfold-guest: {text}\n");
    // for who looks at a start's times; nothing else needs it
    drop(OpenOptions::new().write(true).open("/dev/kmsg").and_then(|mut log| log.write_all(line.as_bytes())));
}

/// The last line of a guest that cannot go on. Waits until it has left the machine: a reset would swallow it.
pub fn fatal(fatal: &Fatal) {
    say(format_args!("fatal: {fatal}"));
    // where the console is no terminal, there is nothing to wait for
    let _ = tcdrain(std::io::stderr());
}
