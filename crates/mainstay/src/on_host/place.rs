//! Program, packages, file, settings and unit: each in its place whole, or not at all.

use super::{
    CONFIG, PROGRAM, SETTINGS, STAGED, Task, UNIT_ADDRESS, UNIT_ADDRESS_TEXT, UNIT_FILE, UNIT_TEXT, systemd, unit_text,
    unit_wanted,
};
use crate::failure::{Failure, Outcome};
use crate::local::{engine, node_dir};
use mainstay_net::write_file;
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// How long the package manager may take.
const PACKAGES: Duration = Duration::from_secs(900);
const CREATE_CLUSTER: &str = "/etc/postgresql-common/createcluster.conf";

/// Moves this program, which was put beside its place, into it.
///
/// # Errors
/// When it is not there, or the disk refuses.
pub(crate) fn install() -> Outcome<Value> {
    let wrong = |what: &str, error: std::io::Error| Failure::failed(format!("{what} {STAGED}: {error}"));
    File::open(STAGED).and_then(|file| file.sync_all()).map_err(|error| wrong("make durable", error))?;
    std::fs::rename(STAGED, PROGRAM).map_err(|error| wrong("move into place", error))?;
    let dir = Path::new(PROGRAM).parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| wrong("make the place durable of", error))?;
    Ok(json!({ "installed": PROGRAM }))
}

/// Writes whatever differs.
///
/// # Errors
/// When the disk refuses.
pub(crate) async fn configure(task: &Task) -> Outcome<Value> {
    let spec = super::target(&task.file)?.spec;
    let dir = Path::new(CONFIG).parent().unwrap_or(Path::new("/"));
    if !dir.is_dir() {
        node_dir::make_dir(dir, 0o755, None)?;
    }
    let mut written = Vec::new();
    let mut put = |path: &'static str, text: &str| -> Outcome {
        if std::fs::read(path).is_ok_and(|there| there == text.as_bytes()) {
            return Ok(());
        }
        write_file(Path::new(path), text.as_bytes(), 0o644, None, true).map_err(crate::local::keys::net)?;
        written.push(path);
        Ok(())
    };
    put(CONFIG, &task.file)?;
    put(SETTINGS, &format!("MAINSTAY_NODE={}\n", task.node))?;
    if systemd() {
        if unit_text().as_deref() != Some(UNIT_TEXT) {
            put(UNIT_FILE, &unit_wanted())?;
        }
        if spec.proxy.address.is_some() {
            let beside = Path::new(UNIT_ADDRESS).parent().unwrap_or(Path::new("/"));
            if !beside.is_dir() {
                node_dir::make_dir(beside, 0o755, None)?;
            }
            put(UNIT_ADDRESS, UNIT_ADDRESS_TEXT)?;
        } else if std::fs::read(UNIT_ADDRESS).is_ok_and(|there| there == UNIT_ADDRESS_TEXT.as_bytes()) {
            // Nobody may do more than it has to.
            std::fs::remove_file(UNIT_ADDRESS)
                .map_err(|error| Failure::failed(format!("remove {UNIT_ADDRESS}: {error}")))?;
        }
        super::service::systemctl(&["daemon-reload"]).await?;
    }
    Ok(json!({ "written": written }))
}

/// Installs PostgreSQL, told first not to make a server of its own. What the packages recommend is left out.
///
/// # Errors
/// When there is no apt-get, or it fails.
pub(crate) async fn packages() -> Outcome<Value> {
    if engine::find(None).is_ok() {
        return Ok(json!({ "installed": [] }));
    }
    apt(&["update"]).await?;
    // It brings the file with all its other settings, and no server.
    apt(&["install", "-y", "--no-install-recommends", "postgresql-common"]).await?;
    let mut text = std::fs::read_to_string(CREATE_CLUSTER).unwrap_or_default();
    if !text.lines().any(|line| line.trim_start().starts_with("create_main_cluster")) {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str("# Mainstay makes its own servers.\ncreate_main_cluster = false\n");
        write_file(Path::new(CREATE_CLUSTER), text.as_bytes(), 0o644, None, true).map_err(crate::local::keys::net)?;
    }
    apt(&["install", "-y", "--no-install-recommends", "postgresql"]).await?;
    engine::find(None)?;
    Ok(json!({ "installed": ["postgresql-common", "postgresql"] }))
}

async fn apt(arguments: &[&str]) -> Outcome {
    let shown = format!("apt-get {}", arguments.join(" "));
    let mut command = tokio::process::Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("UCF_FORCE_CONFFOLD", "1").arg("-q").args(arguments);
    let ended = command.stdin(Stdio::null()).output();
    let output = match tokio::time::timeout(PACKAGES, ended).await {
        Ok(output) => output.map_err(|error| {
            Failure::failed(format!("{shown}: {error}"))
                .hint("--packages knows Debian and Ubuntu; install PostgreSQL 15 or newer by the host's own means")
        })?,
        Err(_) => return Err(Failure::failed(format!("{shown} has not ended after {} min", PACKAGES.as_secs() / 60))),
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said.lines().rev().take(3).collect();
    Err(Failure::failed(format!("{shown}: {}", last.into_iter().rev().collect::<Vec<_>>().join("\n"))))
}
