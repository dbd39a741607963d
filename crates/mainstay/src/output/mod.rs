//! What people and programs see: tables, colours only on a terminal, progress on standard error, one object per line for `--json`.
//!
//! A closed pipe (`mainstay status | head -1`) is no error: what can not be written is dropped. Any other trouble with standard output is
//! remembered, and makes the command fail at its end ([`unwritten`]).

pub(crate) mod file;
pub(crate) mod lines;
pub(crate) mod progress;
pub(crate) mod table;

use crate::failure::{Failure, Outcome};
use std::io::{BufRead as _, ErrorKind, IsTerminal as _, Write};
use std::sync::OnceLock;

/// The first trouble with standard output.
static UNWRITTEN: OnceLock<String> = OnceLock::new();

/// The few colours in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    /// Wrong.
    Red,
    /// Well.
    Green,
    /// To watch.
    Yellow,
    /// To notice.
    Cyan,
    /// Less important.
    Faint,
}

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Colour::Red => "31",
            Colour::Green => "32",
            Colour::Yellow => "33",
            Colour::Cyan => "36",
            Colour::Faint => "2",
        }
    }
}

fn wants_colour(terminal: bool) -> bool {
    terminal
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn paint_if(on: bool, colour: Colour, text: &str) -> String {
    if on { format!("\x1b[{}m{text}\x1b[0m", colour.code()) } else { text.to_owned() }
}

/// The text in a colour, if standard output is a terminal.
pub(crate) fn paint(colour: Colour, text: &str) -> String {
    paint_if(wants_colour(std::io::stdout().is_terminal()), colour, text)
}

/// The text in a colour, if standard error is a terminal.
pub(crate) fn paint_error(colour: Colour, text: &str) -> String {
    paint_if(wants_colour(std::io::stderr().is_terminal()), colour, text)
}

/// A line on standard output.
pub(crate) fn line(text: &str) {
    put(std::io::stdout().lock(), format!("{text}\n").as_bytes());
}

/// Bytes on standard output, as they are.
pub(crate) fn bytes(bytes: &[u8]) {
    put(std::io::stdout().lock(), bytes);
}

fn put(mut to: impl Write, bytes: &[u8]) {
    remember(to.write_all(bytes));
}

/// Keeps trouble with standard output for [`unwritten`].
pub(crate) fn remember(done: std::io::Result<()>) {
    if let Err(error) = done
        && error.kind() != ErrorKind::BrokenPipe
    {
        let _ = UNWRITTEN.set(error.to_string());
    }
}

/// Why standard output did not take everything, if so: what was asked may be done, but nobody was told.
pub(crate) fn unwritten() -> Option<&'static str> {
    remember(std::io::stdout().lock().flush());
    UNWRITTEN.get().map(String::as_str)
}

/// A line on standard error.
pub(crate) fn errline(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// An object on one line of standard output.
pub(crate) fn object<T: serde::Serialize>(value: &T) {
    if let Ok(text) = serde_json::to_string(value) {
        line(&text);
    }
}

/// How wide a table may be: the terminal's width, 80 without one.
pub(crate) fn width() -> u16 {
    let columns =
        std::io::stdout().is_terminal().then(|| rustix::termios::tcgetwinsize(std::io::stdout()).ok()).flatten();
    columns.map_or(80, |size| if size.ws_col < 40 { 80 } else { size.ws_col })
}

/// Asks before a change. `yes` answers beforehand.
///
/// # Errors
/// When the answer is no (not now), or nobody can be asked (usage).
pub(crate) fn confirm(yes: bool, question: &str) -> Outcome {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!("not confirmed: {question}"))
            .hint("there is no terminal to ask on: add --yes to go ahead"));
    }
    let _ = write!(std::io::stderr().lock(), "{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::failed(format!("the answer can not be read: {error}")))?;
    if ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()) {
        return Ok(());
    }
    Err(Failure::not_now("not confirmed: nothing was changed"))
}

#[cfg(test)]
mod tests {
    use super::{Colour, paint_if};

    #[test]
    fn colour_only_where_wanted() {
        assert_eq!(paint_if(false, Colour::Red, "x"), "x");
        assert_eq!(paint_if(true, Colour::Red, "x"), "\x1b[31mx\x1b[0m");
    }
}
