//! Progress on standard error: a spinner on a terminal, plain lines elsewhere. Standard output stays for results.

use super::{Colour, paint_error};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mainstay_model::Moment;
use mainstay_ports::clock::boot_now;
use std::io::IsTerminal as _;
use std::time::Duration;

/// One line of progress at a time.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    step: Option<(String, Moment)>,
}

impl Progress {
    /// Nothing shown yet.
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, step: None }
    }

    /// Begins a step; the one before is done.
    pub(crate) fn step(&mut self, text: &str) {
        self.finish("");
        self.step = Some((text.to_owned(), boot_now()));
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
        }
    }

    /// More about the present step (a terminal shows it, a log would only grow).
    pub(crate) fn detail(&self, text: &str) {
        if let (Some(bar), Some((step, _))) = (&self.bar, &self.step) {
            bar.set_message(format!("{step}: {text}"));
        }
    }

    /// Ends the present step, with what came of it.
    pub(crate) fn finish(&mut self, result: &str) {
        let Some((step, since)) = self.step.take() else { return };
        let took = boot_now().since(since);
        let result = if result.is_empty() { String::new() } else { format!(": {result}") };
        let time = if took.0 >= 50 { paint_error(Colour::Faint, &format!(" ({took})")) } else { String::new() };
        let text = format!("{} {step}{result}{time}", paint_error(Colour::Green, "✓"));
        self.say(&text);
    }

    /// Ends the present step as failed.
    pub(crate) fn fail(&mut self) {
        if let Some((step, _)) = self.step.take() {
            self.say(&format!("{} {step}", paint_error(Colour::Red, "✗")));
        }
        self.clear();
    }

    /// A line of its own.
    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| super::errline(text)),
            None => super::errline(text),
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
