//! `cargo xtask deb`: the program as a Debian package, with units, manual pages, completions and the book.
//!
//! The package starts nothing and asks nothing: what runs where is said by `join` and `systemctl enable`. An update replaces the
//! file; a running agent takes it up when it is told to, one host after the other.

use crate::step::{finish, step};
use crate::tidy;
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const NAME: &str = "mainstay";

/// Where each shell looks for completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/mainstay"),
    ("zsh", "usr/share/zsh/vendor-completions/_mainstay"),
    ("fish", "usr/share/fish/vendor_completions.d/mainstay.fish"),
];

const AFTER: &str = r#"#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
    if [ -n "$2" ]; then
        for unit in mainstay-agent mainstay-proxy; do
            if systemctl is-active --quiet $unit; then
                case $unit in
                    mainstay-agent) how="systemctl reload $unit (its database server goes on)" ;;
                    *) how="systemctl restart $unit (its clients are cut)" ;;
                esac
                echo "mainstay: $unit still runs the old program. One host after the other: $how"
            fi
        done
    fi
fi
"#;

const BEFORE_REMOVAL: &str = r#"#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    # In order: a primary hands its role over before its server ends.
    systemctl stop mainstay-agent.service mainstay-proxy.service || true
fi
"#;

const AFTER_REMOVAL: &str = r#"#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
if [ "$1" = purge ]; then
    rm -f /etc/systemd/system/multi-user.target.wants/mainstay-agent.service
    rm -f /etc/systemd/system/multi-user.target.wants/mainstay-proxy.service
    for left in /etc/mainstay /var/lib/mainstay; do
        if [ -d $left ] && ! rmdir $left 2>/dev/null; then
            echo "mainstay: $left holds data or keys and was left as it is"
        fi
    done
fi
"#;

/// Builds the program and packs it. Returns the package.
///
/// # Errors
/// What is missing, or went wrong.
pub(crate) fn run(root: &Path) -> Result<PathBuf> {
    let package = step("package", || pack(root))?;
    println!("{}", package.display());
    Ok(package)
}

/// Packs the program that `target/release` holds, and looks at what came of it.
pub(crate) fn pack(root: &Path) -> Result<PathBuf> {
    let metadata = tidy::metadata(root)?;
    let target = Path::new(&metadata.target_directory);
    let program = target.join("release").join(NAME);
    let known = metadata.packages.iter().find(|package| package.name == NAME);
    let version = version(root, &known.context("there is no package of the program")?.version);
    let tree = target.join("debian/tree");
    if tree.exists() {
        std::fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
    }
    fill(root, &tree, &program)?;
    let architecture = said(Command::new("dpkg").arg("--print-architecture")).context("is this a Debian or Ubuntu?")?;
    let control = control(&version, architecture.trim(), &c_library(&program)?, size(&tree)?);
    let inside = tree.join("DEBIAN");
    put(&inside.join("control"), &control, 0o644)?;
    let scripts = [("postinst", AFTER), ("prerm", BEFORE_REMOVAL), ("postrm", AFTER_REMOVAL)];
    scripts.iter().try_for_each(|(name, text)| put(&inside.join(name), text, 0o755))?;
    set_mode(&inside, 0o755)?;
    let package = target.join(format!("debian/{NAME}_{version}_{}.deb", architecture.trim()));
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "--build"]).arg(&tree).arg(&package).stdout(Stdio::null());
    // The same sources give the same package.
    if let Ok(date) = said(Command::new("git").current_dir(root).args(["log", "-1", "--format=%ct"])) {
        build.env("SOURCE_DATE_EPOCH", date.trim());
    }
    finish(&mut build)?;
    check(&package, &target.join("debian/unpacked"))?;
    Ok(package)
}

/// The version of the manifest, which has not been released yet: a build of a commit sorts before it.
fn version(root: &Path, released: &str) -> String {
    let git = |arguments: &[&str]| said(Command::new("git").current_dir(root).args(arguments)).ok();
    let tagged =
        git(&["tag", "--points-at", "HEAD"]).is_some_and(|tags| tags.lines().any(|tag| tag == format!("v{released}")));
    let commit = git(&["log", "-1", "--date=format:%Y%m%d%H%M", "--format=%cd.%h"]);
    match commit {
        Some(commit) if !tagged => format!("{released}~git{}", commit.trim()),
        _ => released.to_owned(),
    }
}

fn fill(root: &Path, tree: &Path, program: &Path) -> Result<()> {
    let binary = tree.join("usr/bin").join(NAME);
    copy(program, &binary, 0o755)?;
    finish(Command::new("strip").arg("--strip-unneeded").arg(&binary))?;
    for unit in ["mainstay-agent.service", "mainstay-proxy.service"] {
        let text = read(&root.join("packaging").join(unit))?.replace("/usr/local/bin/", "/usr/bin/");
        put(&tree.join("usr/lib/systemd/system").join(unit), &text, 0o644)?;
    }
    let beside = "mainstay-agent-address.conf";
    copy(&root.join("packaging").join(beside), &tree.join("usr/share/doc").join(NAME).join(beside), 0o644)?;
    for (shell, place) in COMPLETIONS {
        put(&tree.join(place), &said(Command::new(program).args(["completions", shell]))?, 0o644)?;
    }
    let manual = tree.join("usr/share/man/man1");
    std::fs::create_dir_all(&manual).context("make the directory of the manual pages")?;
    finish(Command::new(program).args(["manual", "--to"]).arg(&manual))?;
    let doc = tree.join("usr/share/doc").join(NAME);
    for (from, to) in [("docs", doc.clone()), ("docs/adr", doc.join("adr"))] {
        for page in files(&root.join(from))?.iter().filter(|page| page.extension().is_some_and(|end| end == "md")) {
            copy(page, &to.join(page.file_name().unwrap_or_default()), 0o644)?;
        }
    }
    copy(&root.join("CHANGELOG.md"), &doc.join("changelog"), 0o644)?;
    put(&doc.join("copyright"), COPYRIGHT, 0o644)?;
    let mut gzip = Command::new("gzip");
    gzip.args(["-9n"]).args(files(&manual)?).arg(doc.join("changelog"));
    finish(&mut gzip)?;
    for kept in ["etc/mainstay", "var/lib/mainstay"] {
        std::fs::create_dir_all(tree.join(kept)).with_context(|| format!("make {kept}"))?;
    }
    modes(tree)
}

const COPYRIGHT: &str = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: mainstay\n\n\
    Files: *\nCopyright: The Mainstay authors\nLicense: Apache-2.0\n On Debian systems the text of the Apache License, version 2.0, is in\n \
    /usr/share/common-licenses/Apache-2.0.\n";

fn control(version: &str, architecture: &str, c_library: &str, kibibytes: u64) -> String {
    let mut text = String::new();
    let _ = write!(
        text,
        "Package: {NAME}\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: The Mainstay authors <mainstay@localhost>\n\
         Installed-Size: {kibibytes}\nDepends: libc6 (>= {c_library}), libgcc-s1\nSuggests: postgresql (>= 15)\nSection: database\n\
         Priority: optional\nDescription: keeps a PostgreSQL cluster up\n \
         One program that starts the servers of a cluster, replicates, elects and\n fences the primary, leads clients to it, makes backups and watches it all,\n \
         from one file that describes the cluster.\n .\n \
         Nothing is started when this is installed. A host that holds data also needs\n PostgreSQL: see /usr/share/doc/mainstay/install.md first, so that its package\n \
         makes no server of its own.\n"
    );
    text
}

/// The oldest C library that has every symbol of the program.
fn c_library(program: &Path) -> Result<String> {
    let symbols = said(Command::new("objdump").arg("-T").arg(program)).context("objdump comes with binutils")?;
    newest(&symbols).context("the program asks for no symbol of the C library: is it whole?")
}

/// The newest `GLIBC_x.y` that is named.
fn newest(symbols: &str) -> Option<String> {
    let named = symbols.split("GLIBC_").skip(1);
    let versions = named.filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (major, minor) = rest[..end].split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.split('.').next()?.parse::<u32>().ok()?))
    });
    versions.max().map(|(major, minor)| format!("{major}.{minor}"))
}

/// What was packed is what a host gets: unpacked, it runs, and nothing is missing.
fn check(package: &Path, unpacked: &Path) -> Result<()> {
    if unpacked.exists() {
        std::fs::remove_dir_all(unpacked).context("remove what was unpacked before")?;
    }
    finish(Command::new("dpkg-deb").arg("--extract").arg(package).arg(unpacked))?;
    let runs = said(Command::new(unpacked.join("usr/bin").join(NAME)).arg("--version"))?;
    let wanted =
        ["usr/lib/systemd/system/mainstay-agent.service", "usr/share/man/man1/mainstay-node-add.1.gz", "etc/mainstay"];
    let missing =
        wanted.iter().chain(COMPLETIONS.iter().map(|(_, place)| place)).find(|path| !unpacked.join(path).exists());
    if let Some(path) = missing {
        bail!("the package has no {path}");
    }
    let unit = read(&unpacked.join(wanted[0]))?;
    if !runs.starts_with(NAME) || unit.contains("/usr/local/") || !unit.contains("ExecStart=/usr/bin/mainstay agent") {
        bail!("the package's unit or program is not what it should be: {runs}{unit}");
    }
    Ok(())
}

/// What a program prints.
fn said(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("{shown} can not be started"))?;
    if !output.status.success() {
        bail!("{shown} ended with {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("what {shown} printed is no text"))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn put(path: &Path, text: &str, mode: u32) -> Result<()> {
    let dir = path.parent().context("a file without a directory")?;
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    set_mode(path, mode)
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let dir = to.parent().context("a file without a directory")?;
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    std::fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    set_mode(to, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    let wrong = || format!("set the mode of {}", path.display());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).with_context(wrong)
}

/// The files of a directory, in order.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    found.sort();
    Ok(found)
}

/// Directories are open to be read whatever this user's mask is; so are files that came from a program.
fn modes(dir: &Path) -> Result<()> {
    set_mode(dir, 0o755)?;
    for entry in std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            modes(&path)?;
        } else if !path.parent().is_some_and(|parent| parent.ends_with("usr/bin")) {
            set_mode(&path, 0o644)?;
        }
    }
    Ok(())
}

/// In KiB, as the package's field has it.
fn size(dir: &Path) -> Result<u64> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?.flatten();
    entries.map(|entry| entry.path()).try_fold(0, |sum, path| {
        let more = if path.is_dir() { size(&path)? } else { path.metadata().map_or(0, |is| is.len().div_ceil(1024)) };
        Ok(sum + more)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_symbol_says_which_c_library_is_needed() {
        let symbols =
            "DF *UND* (GLIBC_2.2.5) read\nDF *UND* (GLIBC_2.34) dlsym\nDF *UND* (GLIBC_2.9) x\nGLIBC_PRIVATE y";
        assert_eq!(newest(symbols).as_deref(), Some("2.34"));
        assert_eq!(newest("nothing"), None);
    }

    #[test]
    fn the_description_is_one_that_dpkg_takes() {
        let text = control("0.1.0~git1", "amd64", "2.34", 12);
        assert!(text.lines().all(|line| !line.is_empty() && line.len() < 120), "{text}");
        assert!(text.contains("Depends: libc6 (>= 2.34), libgcc-s1\n") && text.ends_with('\n'));
    }
}
