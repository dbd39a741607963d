//! `cargo xtask versions`: the tests on real servers, once for each version of PostgreSQL that this machine has.
//!
//! Tests and program take the newest version of the distribution's packages. Here each run has a mount namespace of its own, in which that
//! directory holds one version only: nothing has to be told to anybody, and nothing of the machine is changed.

use crate::packages;
use crate::step::run;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the distribution's packages put versions.
const PLACE: &str = "/usr/lib/postgresql";
/// Versions that are supported.
const SUPPORTED: [u32; 4] = [15, 16, 17, 18];

/// What is run for each version.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Also the server in this directory, which was installed by other means (repeatable)
    #[arg(long, value_name = "DIR")]
    pg_bin: Vec<PathBuf>,
    /// Only these versions
    #[arg(long, value_name = "N", value_delimiter = ',')]
    only: Vec<u32>,
    /// Only tests of the engine, which need a few minutes
    #[arg(long)]
    engine: bool,
}

/// A version: its number, and the directory above its programs.
type Version = (u32, PathBuf);

fn number(bin: &Path) -> Result<u32> {
    let shown = bin.join("postgres");
    let output = Command::new(&shown).arg("--version").output();
    let output = output.with_context(|| format!("{} can not be run", shown.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let digits = text.split_whitespace().nth(2).unwrap_or_default();
    let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("{} does not say its version: {text:?}", shown.display()))
}

fn found(options: &Options) -> Result<Vec<Version>> {
    let entries = std::fs::read_dir(PLACE).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut all = Vec::new();
    for bin in
        entries.map(|dir| dir.join("bin")).filter(|bin| bin.join("initdb").is_file()).chain(options.pg_bin.clone())
    {
        let above = bin.parent().context("--pg-bin names no directory with programs")?.to_owned();
        all.push((number(&bin)?, above));
    }
    all.sort();
    all.dedup_by_key(|(number, _)| *number);
    all.retain(|(number, _)| options.only.is_empty() || options.only.contains(number));
    Ok(all)
}

/// The commands for one version, as a shell runs them.
fn suite(root: &Path, options: &Options) -> Vec<(String, String)> {
    let cargo = |words: &str| format!("cd '{}' && cargo {words}", root.display());
    let mut all = vec![("engine".to_owned(), cargo("test --package mainstay-engine-postgres"))];
    if !options.engine {
        let tests = "--test local_cluster --test operated --test restored --test drilled";
        all.push(("commands".to_owned(), cargo(&format!("test --package mainstay {tests}"))));
        all.push(("take-overs".to_owned(), cargo("xtask bench failover --trials 3")));
        all.push(("chaos".to_owned(), cargo("xtask chaos --seed 2 --minutes 2")));
    }
    all
}

/// In a mount namespace in which there is this version only.
fn alone((number, above): &Version, script: &str) -> Command {
    let mut command = Command::new("unshare");
    let prepare = format!(
        "set -e; aside=$(mktemp -d); mount -t tmpfs -o mode=755 tmpfs $aside; mkdir $aside/{number}; mount --bind '{}' $aside/{number}; \
         mkdir -p {PLACE}; mount --rbind $aside {PLACE}; ({script}) && code=0 || code=$?; umount -l $aside; rmdir $aside; exit $code",
        above.display()
    );
    command.args(["--mount", "--propagation", "private", "sh", "-c", &prepare]);
    command
}

/// Runs everything for each version; every version is tried although one before it failed.
pub(crate) fn versions(root: &Path, options: &Options) -> Result<()> {
    if !packages::ensure_hosts()? {
        bail!("run this as root: each version is tried in a mount namespace of its own");
    }
    let found = found(options)?;
    if found.is_empty() {
        bail!("there is no PostgreSQL in {PLACE}; install some of {SUPPORTED:?}, or name one with --pg-bin DIR");
    }
    let mut lines = Vec::new();
    for version in &found {
        for (what, script) in suite(root, options) {
            let name = format!("PostgreSQL {}, {what}", version.0);
            let done = run(&name, &mut alone(version, &script));
            lines.push(format!("{name}: {}", if done.is_ok() { "passed" } else { "FAILED" }));
        }
    }
    let absent: Vec<String> = SUPPORTED
        .iter()
        .filter(|number| !found.iter().any(|(has, _)| has == *number))
        .map(ToString::to_string)
        .collect();
    println!();
    lines.iter().for_each(|line| println!("{line}"));
    if !absent.is_empty() {
        println!(
            "not tried, since they are not here: {} (apt-get install postgresql-N, where the packages have it)",
            absent.join(", ")
        );
    }
    if lines.iter().any(|line| line.ends_with("FAILED")) {
        bail!("not every version passed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_version_stands_alone_where_all_look_for_it() {
        let command = alone(&(17, "/opt/pg".into()), "true");
        let words: Vec<String> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let script = words.last().unwrap();
        assert!(script.contains("mount --bind '/opt/pg' $aside/17") && script.contains("(true) && code=0"), "{script}");
        assert!(words.contains(&"--mount".to_owned()) && words.contains(&"private".to_owned()));
    }
}
