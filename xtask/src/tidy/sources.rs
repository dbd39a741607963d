//! What every source file and manifest must look like.

use super::packages::Metadata;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 600;

/// Files that are longer for a reason.
const LONGER: [(&str, &str); 0] = [];

/// Crates that state the workspace's lints themselves, for a reason that their manifest gives.
const OWN_LINTS: [&str; 1] = ["mainstay-guard"];

/// What must stand in no file. Split here, so that this file does not name them.
const NOWHERE: [(&str, &str, &str); 4] = [
    ("todo", "!(", "finish it or leave it out"),
    ("unimplemented", "!(", "finish it or leave it out"),
    ("dbg", "!(", "use tracing"),
    ("#[igno", "re", "a test that does not run proves nothing"),
];

/// What must not stand in a pure room.
const NOT_IN_PURE: [(&str, &str); 9] = [
    ("HashMap", "its order differs from run to run; use BTreeMap"),
    ("HashSet", "its order differs from run to run; use BTreeSet"),
    ("Instant::now", "time comes in from outside"),
    ("SystemTime", "time comes in from outside"),
    ("std::fs", "no I/O"),
    ("TcpStream", "no I/O"),
    ("TcpListener", "no I/O"),
    ("UdpSocket", "no I/O"),
    ("std::thread", "no threads"),
];

/// Rooms to which that applies.
const PURE: [&str; 5] =
    ["crates/model/src", "crates/decide/src", "crates/plan/src", "crates/wire/src", "crates/sim/src"];

/// Parts of the simulator that stand outside a schedule: they spread seeds over the processors and say how long it took.
const HOST_PARTS: [&str; 2] = ["crates/sim/src/main.rs", "crates/sim/src/hunt.rs"];

/// How many files were read, and every breach.
pub(super) fn breaches(root: &Path, metadata: &Metadata) -> Result<(usize, Vec<String>)> {
    let mut files = Vec::new();
    for dir in ["crates", "xtask"] {
        collect(&root.join(dir), &mut files)?;
    }
    files.sort();
    let mut breaches = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let shown = file.strip_prefix(root).unwrap_or(file).display().to_string();
        breaches.extend(in_file(&shown, &text));
    }
    for package in metadata.ours().filter(|package| !OWN_LINTS.contains(&package.name.as_str())) {
        let manifest = std::fs::read_to_string(&package.manifest_path)?;
        if !manifest.contains("[lints]\nworkspace = true") {
            breaches.push(format!("{}: it does not take the workspace's lints", package.manifest_path));
        }
    }
    Ok((files.len(), breaches))
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && entry.file_name() != "target" {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn in_file(shown: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    if !text.starts_with("//!") {
        breaches.push(format!("{shown}: it does not open with a //! line that says what it is for"));
    }
    let lines = text.lines().count();
    if lines > LINES_MAX && !LONGER.iter().any(|(longer, _)| *longer == shown) {
        breaches.push(format!("{shown}: {lines} lines; {LINES_MAX} are allowed"));
    }
    let pure = PURE.iter().any(|room| shown.starts_with(room)) && !HOST_PARTS.contains(&shown);
    for (number, line) in text.lines().enumerate() {
        let at = || format!("{shown}:{}", number + 1);
        for (start, end, why) in NOWHERE {
            if line.contains(&format!("{start}{end}")) {
                breaches.push(format!("{}: {start}{end}: {why}", at()));
            }
        }
        let code = line.split("//").next().unwrap_or_default();
        for (word, why) in NOT_IN_PURE.iter().filter(|_| pure) {
            if code.contains(word) {
                breaches.push(format!("{}: {word} in a pure room: {why}", at()));
            }
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_file_passes_and_each_breach_is_named_with_its_line() {
        let clean = "//! Purpose.\n// HashMap is only spoken of\nfn f() {}\n";
        assert_eq!(in_file("crates/decide/src/a.rs", clean), Vec::<String>::new());
        let unclean = format!("fn f() {{ {}{}) }}\nuse std::collections::HashMap;\n", "todo", "!(");
        let breaches = in_file("crates/decide/src/a.rs", &unclean);
        assert_eq!(breaches.len(), 3, "{breaches:?}");
        assert!(breaches[1].starts_with("crates/decide/src/a.rs:1:"), "{breaches:?}");
        assert!(breaches[2].starts_with("crates/decide/src/a.rs:2:"), "{breaches:?}");
        assert_eq!(in_file("crates/net/src/a.rs", &unclean).len(), 2, "impure rooms may use HashMap");
        assert_eq!(in_file("crates/net/src/a.rs", &format!("//!\n{}", "\n".repeat(600))).len(), 1);
    }
}
