//! The local terminal in raw mode, and back again on every way out.
//!
//! The settings are kept in one place for the process: the guard's drop, [`restore`] at the end of `main`, and an
//! unwinding panic all put the same settings back, once.

use anyhow::{Context, Result};
use pinfold_sdk::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::IsTerminal;
use std::sync::Mutex;

static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode while it lives.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// `None` when stdin is not a terminal.
    pub fn enter() -> Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let saved = tcgetattr(&stdin).context("cannot read the terminal's settings")?;
        let mut raw = saved.clone();
        raw.make_raw();
        *SAVED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(saved);
        tcsetattr(&stdin, OptionalActions::Drain, &raw).context("cannot put the terminal into raw mode")?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back. Nothing happens when it was not changed.
pub fn restore() {
    let saved = SAVED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some(saved) = saved {
        // the terminal may be gone by now
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &saved);
    }
}

/// Of the terminal on stdout or stdin; 24 x 80 when there is none.
pub fn size() -> TerminalSize {
    let size = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin()));
    match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
            TerminalSize { rows: size.ws_row, columns: size.ws_col }
        }
        _ => TerminalSize { rows: 24, columns: 80 },
    }
}
