//! The engine's programs on this machine, and the server parameters it keeps for itself.

use crate::failure::{Failure, Outcome};
use std::path::{Path, PathBuf};

/// The oldest version that is supported.
const OLDEST: u32 = 15;

/// The database role as which replicas stream; their certificates carry its name.
pub(crate) use mainstay_engine_postgres::REPLICATOR as REPLICATION_ROLE;

/// Server parameters that a file may not set.
pub(crate) fn owned_parameters() -> &'static [&'static str] {
    mainstay_engine_postgres::owned_parameters()
}

/// Where the server's programs are, and their major version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Programs {
    /// The directory with `postgres` and `initdb`.
    pub(crate) bin_dir: PathBuf,
    /// `15`, `17` …
    pub(crate) major: u32,
}

/// The programs in this directory, or else the newest of the distribution's.
///
/// # Errors
/// When there are none, or they are too old; says which package to install.
pub(crate) fn find(wanted: Option<&Path>) -> Outcome<Programs> {
    if let Some(dir) = wanted {
        let bin_dir = crate::target::absolute(dir)?;
        return check(&bin_dir);
    }
    let mut candidates: Vec<(u32, PathBuf)> = [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")]
        .iter()
        .flat_map(|(root, prefix)| versions(Path::new(root), prefix))
        .filter(|(_, dir)| dir.join("postgres").is_file() && dir.join("initdb").is_file())
        .collect();
    candidates.sort();
    match candidates.pop() {
        Some((_, dir)) => check(&dir),
        None => Err(Failure::failed("no PostgreSQL server was found in /usr/lib/postgresql or /usr/pgsql-*")
            .hint("install it (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf install postgresql-server), or say --bin-dir DIR")),
    }
}

/// Directories `<root>/<prefix><number>/bin`.
fn versions(root: &Path, prefix: &str) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
    entries
        .flatten()
        .take(1000)
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path().join("bin")))
        })
        .collect()
}

fn check(bin_dir: &Path) -> Outcome<Programs> {
    let shown = bin_dir.display();
    for program in ["postgres", "initdb", "pg_basebackup", "pg_rewind"] {
        if !bin_dir.join(program).is_file() {
            return Err(Failure::failed(format!("there is no {program} in {shown}"))
                .hint("name the directory that holds postgres, initdb, pg_basebackup and pg_rewind with --bin-dir"));
        }
    }
    let output = std::process::Command::new(bin_dir.join("postgres"))
        .arg("--version")
        .output()
        .map_err(|error| Failure::failed(format!("{shown}/postgres can not be run: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let major = major_of(&text).ok_or_else(|| {
        Failure::failed(format!("{shown}/postgres does not say its version (it said {:?})", text.trim()))
    })?;
    if major < OLDEST {
        return Err(Failure::failed(format!(
            "{shown} holds PostgreSQL {major}; {OLDEST} is the oldest that is supported"
        ))
        .hint("install a newer one, or name its directory with --bin-dir"));
    }
    Ok(Programs { bin_dir: bin_dir.to_owned(), major })
}

/// `postgres (PostgreSQL) 15.14 (Debian …)` → 15.
fn major_of(text: &str) -> Option<u32> {
    let version = text.split_whitespace().nth(2)?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::major_of;

    #[test]
    fn versions_are_read() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(major_of("nonsense"), None);
    }
}
