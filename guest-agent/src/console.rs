//! What the agent says on the guest's console. The host reads these lines, so their form is a contract:
//!
//! - `pinfold-guest: <text>`: for people
//! - `pinfold-guest: fatal: <code>: <why>`: the guest ends now; the codes are [`Fatal`]'s

use std::fmt;
use std::io::Write;

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

/// Writes one line. A console that cannot be written is no reason to stop.
pub fn say(text: impl fmt::Display) {
    let line = format!("pinfold-guest: {}\n", text.to_string().replace('\n', " "));
    drop(std::io::stderr().write_all(line.as_bytes()));
}

/// The last line of a guest that cannot go on.
pub fn fatal(fatal: &Fatal) {
    say(format_args!("fatal: {fatal}"));
}
