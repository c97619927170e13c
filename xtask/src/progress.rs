//! What a person sees of a long step.
//!
//! On a terminal: a spinner with the time and the last line of output, then one line with the result. Elsewhere (CI, a
//! pipe): plain lines, and every [`HEARTBEAT`] a line that says that the step is still at work.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Between two signs of life where there is no terminal.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// Longest piece of a command's output that is shown, in characters.
const NOTE_CHARS: usize = 70;

/// One step. Dropping it without [`Step::done`] marks it as failed.
pub struct Step {
    title: String,
    started: Instant,
    bar: Option<ProgressBar>,
    last_note: Arc<Mutex<String>>,
    heartbeat: Option<Sender<()>>,
    finished: bool,
}

impl Step {
    /// Says `title: why` and starts the clock.
    pub fn begin(title: &str, why: &str) -> Self {
        println!("\u{2022} {title}: {why}");
        let on_terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let last_note = Arc::new(Mutex::new(String::new()));
        let mut step = Self {
            title: title.to_owned(),
            started: Instant::now(),
            bar: None,
            last_note,
            heartbeat: None,
            finished: false,
        };
        if on_terminal {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {elapsed} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            step.bar = Some(bar);
        } else {
            step.heartbeat = Some(beat(step.title.clone(), step.started, Arc::clone(&step.last_note)));
        }
        step
    }

    /// The latest line of the work's own output.
    pub fn note(&self, text: &str) {
        let text: String = text.trim().chars().filter(|c| !c.is_control()).take(NOTE_CHARS).collect();
        if text.is_empty() {
            return;
        }
        if let Some(bar) = &self.bar {
            bar.set_message(text);
        } else if let Ok(mut last) = self.last_note.lock() {
            *last = text;
        }
    }

    /// Ends the step well.
    pub fn done(mut self, result: &str) {
        self.end("\u{2713}", result);
    }

    fn end(&mut self, mark: &str, result: &str) {
        self.finished = true;
        self.heartbeat = None;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        println!("  {mark} {}: {result} ({:.1} s)", self.title, self.started.elapsed().as_secs_f64());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            self.end("\u{2717}", "failed");
        }
    }
}

/// Prints a sign of life until the sender is dropped.
fn beat(title: String, started: Instant, last_note: Arc<Mutex<String>>) -> Sender<()> {
    let (stop, stopped) = mpsc::channel();
    std::thread::spawn(move || {
        while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
            let note = last_note.lock().map(|note| note.clone()).unwrap_or_default();
            println!("    {title}: at work for {} s ({note})", started.elapsed().as_secs());
        }
    });
    stop
}

/// Bytes as a person reads them.
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_cut_and_cleaned() {
        let step = Step::begin("a", "b");
        step.note(&format!("\u{1b}[1m{}", "x".repeat(200)));
        assert_eq!(step.last_note.lock().expect("no panic before").chars().count(), NOTE_CHARS);
        step.note("   ");
        assert!(step.last_note.lock().expect("no panic before").starts_with("[1mxx"));
        step.done("c");
    }

    #[test]
    fn megabytes_are_decimal() {
        assert_eq!(megabytes(1_550_000), "1.6 MB");
    }
}
