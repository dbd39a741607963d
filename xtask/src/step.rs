//! Running one step: announced, timed, its output shown as it comes and, where wanted, kept for counting.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// The workspace's root.
pub(crate) fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_owned).context("xtask's directory has no parent")
}

/// The `cargo` that started us, in the workspace.
pub(crate) fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(arguments);
    command
}

/// Does this program run at all?
pub(crate) fn answers(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A step that is a piece of our own code.
pub(crate) fn step<T>(name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("── {name}");
    let began = Instant::now();
    let result = run().with_context(|| format!("{name} failed"));
    let how = if result.is_ok() { "done" } else { "failed" };
    println!("── {name}: {how} in {:.1} s", began.elapsed().as_secs_f64());
    result
}

/// A step that is a program; its output is shown.
pub(crate) fn run(name: &str, command: &mut Command) -> Result<()> {
    step(name, || finish(command))
}

/// Runs a program to its end, without announcement.
pub(crate) fn finish(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("{shown} can not be started"))?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}

/// Runs a program to its end and hands its exit status on: its own words say what it means.
pub(crate) fn pass(command: &mut Command) -> Result<ExitCode> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("{shown} can not be started"))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// A step that is a program; its output is shown, and returned for counting.
pub(crate) fn run_kept(name: &str, command: &mut Command) -> Result<String> {
    step(name, || {
        let shown = format!("{command:?}");
        let started = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = started.with_context(|| format!("{shown} can not be started"))?;
        let errors = child.stderr.take().map(|stderr| std::thread::spawn(move || tee(stderr, std::io::stderr())));
        let mut kept = child.stdout.take().map(|stdout| tee(stdout, std::io::stdout())).unwrap_or_default();
        if let Some(Ok(errors)) = errors.map(std::thread::JoinHandle::join) {
            kept.push_str(&errors);
        }
        let status = child.wait()?;
        if !status.success() {
            bail!("{shown} ended with {status}");
        }
        Ok(kept)
    })
}

/// Shows what comes and keeps it. A broken pipe to our own output is no reason to stop the tests.
fn tee(from: impl Read, mut shown: impl Write) -> String {
    let mut kept = String::new();
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
        let _ = shown.write_all(&line);
        kept.push_str(&String::from_utf8_lossy(&line));
        line.clear();
    }
    kept
}
