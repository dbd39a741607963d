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

/// A commit's sources in a directory of their own. What was taken out once is not taken out again: a directory of that name is whole.
fn sources_of(root: &Path, commit: &str, target: &Path) -> Result<PathBuf> {
    let name = said(&mut git(root, &["rev-parse", "--short=12", "--verify", &format!("{commit}^{{commit}}")]))
        .with_context(|| format!("{commit} is no program, no directory and no commit"))?;
    let dir = target.join("previous").join(&name);
    if !dir.exists() {
        let half = dir.with_extension("half");
        if half.exists() {
            std::fs::remove_dir_all(&half).with_context(|| format!("remove {}", half.display()))?;
        }
        std::fs::create_dir_all(&half).with_context(|| format!("make {}", half.display()))?;
        // Two commands: of two that are joined by a pipe only the second one's failure is seen.
        let archive = dir.with_extension("tar");
        let mut pack = git(root, &["archive", "--format=tar", "-o"]);
        pack.arg(&archive).arg(&name);
        let mut unpack = Command::new("tar");
        unpack.arg("-xf").arg(&archive).arg("-C").arg(&half);
        step(&format!("sources of {name}"), || finish(&mut pack).and_then(|()| finish(&mut unpack)))?;
        std::fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
        std::fs::rename(&half, &dir).with_context(|| format!("rename {}", half.display()))?;
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

/// What is passed on does not name the previous version once more: that one would be taken, and not built.
fn passed_on(arguments: &[OsString]) -> Result<()> {
    let again = |word: &&OsString| {
        let word = word.to_string_lossy();
        word == "--previous" || word.starts_with("--previous=")
    };
    if arguments.iter().any(|word| again(&word)) {
        bail!("--previous comes before everything that is passed on: cargo xtask mixed --previous COMMIT --seed N …");
    }
    Ok(())
}

/// Runs it; the exit status is that of `chaos`.
pub(crate) fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    passed_on(&options.arguments)?;
    let previous = match &options.previous {
        Some(previous) => previous.clone(),
        None => said(&mut git(root, &["describe", "--tags", "--abbrev=0"]))
            .context("there is no tag to take for the previous version: name a commit with --previous")?,
    };
    let mut arguments = vec![OsString::from("--previous"), program(root, &previous)?.into()];
    arguments.extend(options.arguments.iter().cloned());
    suite::testkit(root, "chaos", &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_previous_version_is_named_once() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert!(passed_on(&words(&["--seed", "4", "--store", "etcd"])).is_ok());
        assert!(passed_on(&words(&["--seed", "4", "--previous", "abc"])).is_err());
        assert!(passed_on(&words(&["--previous=abc"])).is_err());
    }

    #[test]
    fn sources_that_were_unpacked_half_are_unpacked_anew() {
        let home = std::env::temp_dir().join(format!("xtask-mixed-{}", std::process::id()));
        let (root, target) = (home.join("repository"), home.join("target"));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join("Cargo.toml"), "one").unwrap();
        std::fs::write(root.join("other"), "two").unwrap();
        for words in [
            &["init", "-q"][..],
            &["add", "."],
            &[
                "-c",
                "user.name=t",
                "-c",
                "user.email=t@localhost",
                "-c",
                "commit.gpgsign=false",
                "commit",
                "-q",
                "-m",
                "t",
            ],
        ] {
            said(&mut git(&root, words)).unwrap();
        }
        // Everything of an interrupted run but its end.
        let name = said(&mut git(&root, &["rev-parse", "--short=12", "HEAD"])).unwrap();
        let half = target.join("previous").join(format!("{name}.half"));
        std::fs::create_dir_all(&half).unwrap();
        std::fs::write(half.join("stale"), "").unwrap();
        let dir = sources_of(&root, "HEAD", &target).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("other")).unwrap(), "two");
        assert!(!dir.join("stale").exists() && !half.exists());
        assert_eq!(sources_of(&root, "HEAD", &target).unwrap(), dir);
        assert!(sources_of(&root, "no-such-commit", &target).is_err());
        std::fs::remove_dir_all(&home).unwrap();
    }
}
