//! The distribution packages that the tests and the demonstration need, installed if they are missing (Debian and Ubuntu).
//!
//! The package `postgresql` normally makes and starts a server of its own; the packages' setting against that is written first.

use crate::step::{finish, step};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

const CREATE_CLUSTER: &str = "/etc/postgresql-common/createcluster.conf";

/// Where the servers of the distribution's packages are, newest first.
fn servers() -> Vec<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(version, bin)| *version >= 15 && ["postgres", "initdb", "psql"].iter().all(|p| bin.join(p).exists()))
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, bin)| bin).collect()
}

/// Makes sure that PostgreSQL 15 or newer is installed; says what it does.
pub(crate) fn ensure() -> Result<()> {
    if let Some(bin) = servers().first() {
        println!("── packages: PostgreSQL is in {}", bin.display());
        return Ok(());
    }
    let by_hand = format!(
        "apt-get update && apt-get install --no-install-recommends postgresql-common\n    \
         echo 'create_main_cluster = false' >> {CREATE_CLUSTER}   # so that the next package starts no server\n    \
         apt-get install --no-install-recommends postgresql"
    );
    if !is_root()? {
        bail!("PostgreSQL 15 or newer is not installed, and only root can install it. As root:\n    {by_hand}");
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "PostgreSQL 15 or newer is not installed, and this system has no apt-get: install it (server and client) by its own means"
        );
    }
    println!("PostgreSQL is missing. Now, as root:\n    {by_hand}");
    step("packages", install)?;
    let bin = servers().into_iter().next();
    let bin = bin.context("the packages are installed, but no server of version 15 or newer came with them")?;
    println!("── packages: PostgreSQL is in {}", bin.display());
    Ok(())
}

const SSHD: &str = "/usr/sbin/sshd";
/// A package asks it whether it may start its service.
const POLICY: &str = "/usr/sbin/policy-rc.d";
const OUR_POLICY: &str = "#!/bin/sh\n# Only while packages for Mainstay's tests are installed.\nexit 101\n";
/// The newest server's programs.
pub(crate) fn server() -> Option<PathBuf> {
    servers().into_iter().next()
}

/// Makes sure that a program of a package is installed; says what it does.
pub(crate) fn ensure_program(program: &str, package: &str) -> Result<()> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&paths).any(|dir| dir.join(program).is_file()) {
        return Ok(());
    }
    let by_hand = format!("apt-get install --no-install-recommends {package}");
    if !is_root()? || !Path::new("/usr/bin/apt-get").exists() {
        bail!("{program} is missing; on Debian or Ubuntu, as root: {by_hand}");
    }
    println!("{program} is missing. Now, as root:\n    {by_hand}");
    step("packages", || {
        apt(&["update"])?;
        apt(&["install", "-y", "--no-install-recommends", package])
    })
}

/// Makes sure that etcd is installed: the tests of the store start servers of their own. The package's own service is kept from starting.
pub(crate) fn ensure_etcd() -> Result<()> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| std::env::split_paths(&paths).any(|dir| dir.join(program).is_file());
    let tools = [("etcd", "etcd-server"), ("etcdctl", "etcd-client")];
    let missing: Vec<&str> = tools.iter().filter(|(program, _)| !there(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if !is_root()? || !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "etcd 3.4 or newer is not installed (etcd and etcdctl); on Debian or Ubuntu, as root: {by_hand}, then: systemctl disable --now etcd"
        );
    }
    println!("{} is missing. Now, as root:\n    {by_hand}", missing.join(" "));
    step("packages for etcd", || {
        apt(&["update"])?;
        without_services(|| apt(&[&["install", "-y", "--no-install-recommends"], missing.as_slice()].concat()))
    })?;
    // Nobody asked for an etcd on this machine; where no systemd is at work this fails, and there is nothing to switch off.
    let _ = Command::new("systemctl").args(["--quiet", "disable", "etcd.service"]).output();
    Ok(())
}

/// What virtual hosts are made with, and the package that brings it.
const HOST_TOOLS: [(&str, &str); 10] = [
    ("/usr/bin/ssh", "openssh-client"),
    (SSHD, "openssh-server"),
    ("/usr/bin/sudo", "sudo"),
    ("/sbin/ip", "iproute2"),
    ("/sbin/mkfs.ext4", "e2fsprogs"),
    ("/bin/mount", "mount"),
    ("/usr/bin/nsenter", "util-linux"),
    ("/usr/bin/unshare", "util-linux"),
    ("/sbin/fsfreeze", "util-linux"),
    ("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1", "libfaketime"),
];

/// Makes sure that virtual hosts can be made. Returns `false`, and says so, where only root could do that and this is not root.
pub(crate) fn ensure_hosts() -> Result<bool> {
    if !is_root()? {
        println!("── packages: virtual hosts need root; what needs them is left out");
        return Ok(false);
    }
    // One architecture's path of the library is asked for; on others it is looked for by name.
    let there = |path: &str| Path::new(path).exists() || (path.contains("faketime") && has_faketime());
    let mut missing: Vec<&str> =
        HOST_TOOLS.iter().filter(|(path, _)| !there(path)).map(|(_, package)| *package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(true);
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("virtual hosts need {}: install it by this system's means", missing.join(", "));
    }
    println!("{} is missing. Now, as root:\n    apt-get install --no-install-recommends {0}", missing.join(" "));
    step("packages for virtual hosts", || {
        apt(&["update"])?;
        without_services(|| apt(&[&["install", "-y", "--no-install-recommends"], missing.as_slice()].concat()))
    })?;
    if missing.contains(&"openssh-server") {
        // Virtual hosts start their own. Nobody asked for one on this machine, now or after its next start; where no systemd is at work this
        // fails, and there is nothing to switch off.
        let mut disable = Command::new("systemctl");
        let _ = disable.args(["--quiet", "disable", "ssh.service", "ssh.socket"]).output();
    }
    Ok(true)
}

/// Installs without letting packages start what they bring. A policy that the administrator has is left as it is.
fn without_services(install: impl FnOnce() -> Result<()>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let policy = Path::new(POLICY);
    // Ours, if an installation was interrupted; it would keep every package's service from starting for ever.
    let ours = std::fs::read_to_string(policy).is_ok_and(|text| text == OUR_POLICY);
    if policy.exists() && !ours {
        return install();
    }
    std::fs::write(policy, OUR_POLICY).with_context(|| format!("write {POLICY}"))?;
    let done = std::fs::set_permissions(policy, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {POLICY} runnable"))
        .and_then(|()| install());
    std::fs::remove_file(policy).with_context(|| format!("remove {POLICY}"))?;
    done
}

fn has_faketime() -> bool {
    let dirs = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    dirs.into_iter().any(|dir| dir.path().join("faketime/libfaketimeMT.so.1").exists())
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("/usr/bin/apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("UCF_FORCE_CONFFOLD", "1").arg("-q").args(arguments);
    finish(&mut command)
}

fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    Ok(uids.split_whitespace().nth(1) == Some("0"))
}

/// What the packages recommend is left out: a mail server and a scheduler are among it. The common package first: it brings the file with all its other settings, and no server. Then ours, then the server.
fn install() -> Result<()> {
    apt(&["update"])?;
    apt(&["install", "-y", "--no-install-recommends", "postgresql-common"])?;
    no_server_of_its_own(Path::new(CREATE_CLUSTER))?;
    apt(&["install", "-y", "--no-install-recommends", "postgresql"])
}

/// Writes `create_main_cluster = false`, unless the administrator has decided otherwise.
fn no_server_of_its_own(file: &Path) -> Result<()> {
    let mut text = std::fs::read_to_string(file).unwrap_or_default();
    let decided = text.lines().any(|line| line.trim_start().starts_with("create_main_cluster"));
    if decided {
        println!("{} already says whether a server is made; left as it is", file.display());
        return Ok(());
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str("# Mainstay makes its own servers.\ncreate_main_cluster = false\n");
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_is_added_once_and_a_decision_is_kept() {
        let dir = std::env::temp_dir().join(format!("xtask-packages-{}", std::process::id()));
        let file = dir.join("etc/createcluster.conf");
        no_server_of_its_own(&file).unwrap();
        no_server_of_its_own(&file).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text.matches("create_main_cluster = false").count(), 1);
        std::fs::write(&file, "#create_main_cluster = true").unwrap();
        no_server_of_its_own(&file).unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().contains("= true\n# Mainstay"));
        std::fs::write(&file, "create_main_cluster = true\n").unwrap();
        no_server_of_its_own(&file).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "create_main_cluster = true\n");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
