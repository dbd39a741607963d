//! `cargo xtask mixed`: a cluster that begins with an earlier version of the program, and changes to this one and back while clients write.
//!
//! The earlier version is a program, a directory with its sources, or a commit, whose sources are taken out of the repository and built beside
//! this build. Nothing of the working tree changes.

use crate::step::{finish, run as run_step, step};
use crate::{suite, tidy};
use anyhow::{Context as _, Result, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What is asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The earlier version: a program, a directory with its sources, or a commit [default: the newest tag]
    #[arg(long, value_name = "COMMIT|DIR|PROGRAM")]
    previous: Option<String>,
    /// Passed on: `--seed N`, `--store etcd`, `--shape three|witness|five`, `--json`, `--out DIR`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// What a command prints, trimmed.
fn said(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("{shown} can not be started"))?;
    if !output.status.success() {
        bail!("{shown} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn git(root: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(root).args(words);
    command
}

/// A commit's sources in a directory of their own. What was taken out once is not taken out again.
fn sources_of(root: &Path, commit: &str, target: &Path) -> Result<PathBuf> {
    let name = said(&mut git(root, &["rev-parse", "--short=12", "--verify", &format!("{commit}^{{commit}}")]))
        .with_context(|| format!("{commit} is no program, no directory and no commit"))?;
    let dir = target.join("previous").join(&name);
    if !dir.join("Cargo.toml").exists() {
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let script = "git -C \"$1\" archive \"$2\" | tar -x -C \"$3\"";
        let mut unpack = Command::new("sh");
        unpack.args(["-c", script, "sources"]).arg(root).arg(&name).arg(&dir);
        step(&format!("sources of {name}"), || finish(&mut unpack))?;
    }
    Ok(dir)
}

/// The earlier program, built if it has to be.
fn program(root: &Path, previous: &str) -> Result<PathBuf> {
    let named = Path::new(previous);
    if named.is_file() {
        return Ok(std::path::absolute(named)?);
    }
    let target = PathBuf::from(tidy::metadata(root)?.target_directory);
    let sources = if named.is_dir() { std::path::absolute(named)? } else { sources_of(root, previous, &target)? };
    let build = target.join("previous").join("build");
    let mut command = crate::step::cargo(&sources, &["build", "--release", "--package", "mainstay", "--target-dir"]);
    command.arg(&build);
    run_step("build of the previous version", &mut command)?;
    // The next build of an earlier version would lie in the same place.
    let kept = build.join(format!("mainstay-{}", sources.file_name().unwrap_or_default().to_string_lossy()));
    std::fs::copy(build.join("release/mainstay"), &kept).with_context(|| format!("copy to {}", kept.display()))?;
    Ok(kept)
}

/// Runs it; the exit status is that of `chaos`.
pub(crate) fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    let previous = match &options.previous {
        Some(previous) => previous.clone(),
        None => said(&mut git(root, &["describe", "--tags", "--abbrev=0"]))
            .context("there is no tag to take for the previous version: name a commit with --previous")?,
    };
    let mut arguments = vec![OsString::from("--previous"), program(root, &previous)?.into()];
    arguments.extend(options.arguments.iter().cloned());
    suite::testkit(root, "chaos", &arguments)
}
