//! What a command ends with when it did not do what was asked: the text, a hint what to do next, and the exit status.

use crate::output;
use serde_json::json;
use std::fmt;

/// Exit status: it failed.
pub(crate) const FAILED: u8 = 1;
/// Exit status: the command line, or the file, is wrong; nothing was changed.
pub(crate) const USAGE: u8 = 2;
/// Exit status: not now; the reason is said, nothing was changed.
pub(crate) const NOT_NOW: u8 = 3;

/// How every command ends.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why a command did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit status.
    pub(crate) status: u8,
    /// What, where, why.
    pub(crate) error: String,
    /// What to do next.
    pub(crate) hint: Option<String>,
}

impl Failure {
    fn new(status: u8, error: impl Into<String>) -> Self {
        Self { status, error: visible(&error.into()), hint: None }
    }

    /// It failed.
    pub(crate) fn failed(error: impl Into<String>) -> Self {
        Self::new(FAILED, error)
    }

    /// It was asked wrongly.
    pub(crate) fn usage(error: impl Into<String>) -> Self {
        Self::new(USAGE, error)
    }

    /// It can not be done now.
    pub(crate) fn not_now(error: impl Into<String>) -> Self {
        Self::new(NOT_NOW, error)
    }

    /// It did what was asked, and what it said already ends with this status.
    pub(crate) fn said() -> Self {
        Self::new(FAILED, "")
    }

    /// Was everything said already?
    pub(crate) fn is_said(&self) -> bool {
        self.error.is_empty()
    }

    /// Adds what to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(visible(&hint.into()));
        self
    }

    /// The failure as the last line of `--json`.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        json!({ "error": self.error, "hint": self.hint })
    }

    /// Says it on standard error.
    pub(crate) fn print(&self) {
        let word = output::paint_error(output::Colour::Red, "error:");
        output::errline(&format!("{word} {}", indent(&self.error)));
        if let Some(hint) = &self.hint {
            output::errline(&format!("{} {}", output::paint_error(output::Colour::Cyan, "next:"), indent(hint)));
        }
    }
}

/// Names of files, and what others answer, may hold anything: no character of it commands the terminal. Lines stay lines.
pub(crate) fn visible(text: &str) -> String {
    let hidden = |c: char| c.is_control() && c != '\n';
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        if hidden(c) {
            shown.extend(c.escape_default())
        } else {
            shown.push(c)
        }
        shown
    })
}

/// Further lines stand under the first one.
fn indent(text: &str) -> String {
    text.trim_end().replace('\n', "\n       ")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        // Many errors say their cause themselves: it is not said twice.
        let mut text = String::new();
        for cause in error.chain().map(ToString::to_string) {
            if !text.contains(&cause) {
                let between = if text.is_empty() { "" } else { ": " };
                text = format!("{text}{between}{cause}");
            }
        }
        Self::failed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_said_commands_the_terminal() {
        let failure = Failure::usage("no \u{1b}[2Jfile\r\u{9b}m:\nline 2: größer").hint("rm a\u{7}b");
        assert_eq!(failure.error, "no \\u{1b}[2Jfile\\r\\u{9b}m:\nline 2: größer");
        assert_eq!(failure.hint.as_deref(), Some("rm a\\u{7}b"));
    }

    #[test]
    fn a_cause_is_not_said_twice() {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let listen = mainstay_net::NetError::Listen { address, source: std::io::Error::other("in use") };
        let failure = Failure::from(anyhow::Error::from(listen).context("start"));
        assert_eq!(failure.error, "start: listen on 127.0.0.1:1: in use; is another agent running there?");
        let plain = anyhow::anyhow!("cause").context("what");
        assert_eq!(Failure::from(plain).error, "what: cause");
    }
}
