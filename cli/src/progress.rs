//! Progress of what takes long: a spinner on a terminal, plain lines everywhere else. Always on stderr.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// One step at a time.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    step: Option<(String, Instant)>,
    /// print the steps on a stderr that is no terminal
    plain: bool,
}

impl Progress {
    /// Steps are told everywhere.
    pub fn told() -> Self {
        Self::new(true)
    }

    /// Steps are told on a terminal only: a script sees the result alone.
    pub fn quiet() -> Self {
        Self::new(false)
    }

    fn new(plain: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { bar: terminal.then(spinner), step: None, plain }
    }

    /// A line that stays.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None if self.plain => eprintln!("{text}"),
            None => {}
        }
    }

    /// Ends the step before and begins one.
    pub fn begin(&mut self, text: impl Into<String>) {
        self.done("");
        let text = text.into();
        match &self.bar {
            Some(bar) => bar.set_message(text.clone()),
            None if self.plain => eprintln!("- {text}"),
            None => {}
        }
        self.step = Some((text, Instant::now()));
    }

    /// What the present step is at.
    pub fn detail(&self, detail: &str) {
        if let (Some(bar), Some((text, _))) = (&self.bar, &self.step) {
            bar.set_message(format!("{text}: {detail}"));
        }
    }

    /// Ends the present step; `result` is added to its line.
    pub fn done(&mut self, result: &str) {
        let Some((text, began)) = self.step.take() else { return };
        let seconds = began.elapsed().as_secs_f64();
        let result = if result.is_empty() { String::new() } else { format!(": {result}") };
        match &self.bar {
            Some(bar) if self.plain => bar.suspend(|| eprintln!("✓ {text}{result} ({seconds:.1} s)")),
            None if self.plain && !result.is_empty() => eprintln!("  {}", &result[2..]),
            _ => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::default_spinner());
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
