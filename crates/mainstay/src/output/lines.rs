//! A line of progress for each of several hosts, side by side: spinners on a terminal, elsewhere a line when something ends.

use super::{Colour, paint_error};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use mainstay_model::Moment;
use mainstay_ports::clock::boot_now;
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

/// The lines, by name.
pub(crate) struct Lines {
    bars: Option<(MultiProgress, BTreeMap<String, ProgressBar>)>,
    width: usize,
}

impl Lines {
    /// A line for each of these.
    pub(crate) fn new(names: &[String]) -> Lines {
        let width = names.iter().map(String::len).max().unwrap_or(0);
        let bars = std::io::stderr().is_terminal().then(|| {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
            let style = ProgressStyle::with_template("{spinner} {prefix} {wide_msg}").ok();
            let bar = |name: &String| {
                let bar = all.add(ProgressBar::new_spinner());
                if let Some(style) = &style {
                    bar.set_style(style.clone());
                }
                bar.set_prefix(format!("{name:width$}"));
                (name.clone(), bar)
            };
            let bars = names.iter().map(bar).collect();
            (all, bars)
        });
        Lines { bars, width }
    }

    fn bar(&self, name: &str) -> Option<&ProgressBar> {
        self.bars.as_ref().and_then(|(_, bars)| bars.get(name))
    }

    /// Something begins there.
    pub(crate) fn begin(&self, name: &str, what: &str) -> Moment {
        if let Some(bar) = self.bar(name) {
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        boot_now()
    }

    /// It has ended well.
    pub(crate) fn done(&self, name: &str, what: &str, since: Moment) {
        let took = boot_now().since(since);
        let time = if took.0 >= 50 { paint_error(Colour::Faint, &format!(" ({took})")) } else { String::new() };
        self.say(name, &paint_error(Colour::Green, "✓"), &format!("{what}{time}"));
        if let Some(bar) = self.bar(name) {
            bar.set_message("");
        }
    }

    /// It has failed.
    pub(crate) fn failed(&self, name: &str, what: &str) {
        self.say(name, &paint_error(Colour::Red, "✗"), what);
        if let Some(bar) = self.bar(name) {
            bar.finish_and_clear();
        }
    }

    fn say(&self, name: &str, mark: &str, text: &str) {
        let line = format!("{mark} {name:width$} {text}", width = self.width);
        match &self.bars {
            Some((all, _)) => all.suspend(|| super::errline(&line)),
            None => super::errline(&line),
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if let Some((all, _)) = &self.bars {
            // It fails where the terminal is gone, which is no matter.
            let _ = all.clear();
        }
    }
}
