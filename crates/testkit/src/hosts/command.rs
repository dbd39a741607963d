//! Small commands of the system, run to their end; their words are in the error.

use anyhow::{Context as _, Result, bail};
use std::process::{Command, Output, Stdio};

/// Runs a command and returns what it printed.
///
/// # Errors
/// When it can not be started, or fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {shown}"))?;
    printed(&shown, output)
}

/// The same without blocking the runtime; the command is ended if nobody waits any more.
///
/// # Errors
/// When it can not be started, or fails.
pub(crate) async fn output_later(command: Command) -> Result<String> {
    let shown = shown(&command);
    let mut command = tokio::process::Command::from(command);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    printed(&shown, output.with_context(|| format!("cannot run {shown}"))?)
}

fn printed(shown: &str, output: Output) -> Result<String> {
    if !output.status.success() {
        let said = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
        bail!("`{shown}` {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// A command from its words.
pub(crate) fn words(words: &[&str]) -> Command {
    let (program, arguments) = words.split_first().unwrap_or((&"true", &[]));
    let mut command = Command::new(program);
    command.args(arguments);
    command
}
