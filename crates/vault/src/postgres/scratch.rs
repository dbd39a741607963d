//! A recovered copy beside the cluster: reachable through a Unix socket only, archiving nothing, subscribing to nothing.

use crate::postgres::backup::Session;
use crate::postgres::restore::Plan;
use crate::repository::VaultError;
use mainstay_model::Lsn;
use std::fmt::Write;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio_postgres::Config;

/// A running copy; it ends with this.
pub struct Scratch {
    child: tokio::process::Child,
    socket: PathBuf,
    log: PathBuf,
    /// Recovery took so long.
    pub recovery: Duration,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
    }
}

/// What an error says when the log ended before the target was met.
pub const NOTHING_LATER: &str =
    "; nothing later than the target is archived yet: wait for it, or restore the latest moment";

fn quoted(value: &str) -> String {
    value.replace('\'', "''")
}

fn config(plan: &Plan, data: &Path, socket: &Path) -> String {
    let mut all: Vec<(String, String)> = vec![
        ("listen_addresses".into(), String::new()),
        ("port".into(), "5432".into()),
        ("unix_socket_directories".into(), socket.display().to_string()),
        ("hba_file".into(), data.join("mainstay_scratch_hba.conf").display().to_string()),
        ("ident_file".into(), "/dev/null".into()),
        // A copy must not reach out: it archives nothing, and its subscriptions do not run.
        ("archive_mode".into(), "off".into()),
        ("max_logical_replication_workers".into(), "0".into()),
        ("shared_buffers".into(), "64MB".into()),
        ("hot_standby".into(), "on".into()),
        ("logging_collector".into(), "off".into()),
        ("log_destination".into(), "stderr".into()),
    ];
    all.extend(plan.base.server.settings.clone());
    all.extend(plan.settings(data));
    all.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name} = '{}'", quoted(value));
        text
    })
}

/// What the server said why it ended.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let says = |line: &&str| {
        ["FATAL", "PANIC", "last completed transaction", "invalid value"].iter().any(|w| line.contains(w))
    };
    let lines: Vec<&str> = text.lines().filter(says).collect();
    let mut said = lines.iter().rev().take(4).rev().copied().collect::<Vec<_>>().join("; ");
    if said.contains("recovery ended before configured recovery target") {
        // Whether a commit before the target is missing can not be told before a later one is archived.
        said.push_str(NOTHING_LATER);
    }
    said
}

impl Scratch {
    /// Starts the server on a restored directory and waits until it has recovered and opened.
    /// `user`: as whom it runs, its operating-system name and numbers.
    pub async fn start(
        bin: &Path,
        plan: &Plan,
        data: &Path,
        user: Option<(u32, u32)>,
        patience: Duration,
    ) -> Result<Scratch, VaultError> {
        let socket = data.join("mainstay_run");
        let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&socket);
        made.map_err(|e| VaultError::file(&socket, e))?;
        let written = [
            ("mainstay_scratch.conf", config(plan, data, &socket)),
            ("mainstay_scratch_hba.conf", "local all all trust\n".to_owned()),
            ("mainstay_scratch.log", String::new()),
        ];
        for (name, text) in written {
            let path = data.join(name);
            std::fs::write(&path, text).map_err(|e| VaultError::file(&path, e))?;
            if let Some((uid, gid)) = user {
                chown(&path, Some(uid), Some(gid)).map_err(|e| VaultError::file(&path, e))?;
                chown(&socket, Some(uid), Some(gid)).map_err(|e| VaultError::file(&socket, e))?;
            }
        }
        let log = data.join("mainstay_scratch.log");
        let out = std::fs::OpenOptions::new().append(true).open(&log).map_err(|e| VaultError::file(&log, e))?;
        let mut command = tokio::process::Command::new(bin.join("postgres"));
        command
            .arg("-D")
            .arg(data)
            .arg("-c")
            .arg(format!("config_file={}", data.join("mainstay_scratch.conf").display()));
        command.current_dir(data).env_clear().env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        command.stdout(out.try_clone().map_err(|e| VaultError::file(&log, e))?).stderr(out);
        if let Some((uid, gid)) = user {
            command.uid(uid).gid(gid);
        }
        let begun = Instant::now();
        let child = command.spawn().map_err(|e| VaultError::Server(format!("{}/postgres: {e}", bin.display())))?;
        let mut scratch = Scratch { child, socket, log, recovery: Duration::ZERO };
        scratch.recovered(begun, patience).await?;
        scratch.recovery = begun.elapsed();
        Ok(scratch)
    }

    /// How to reach it, as the superuser.
    #[must_use]
    pub fn connect(&self) -> Config {
        let mut config = Config::new();
        config.host_path(&self.socket).port(5432).user("postgres").dbname("postgres");
        config
    }

    async fn recovered(&mut self, begun: Instant, patience: Duration) -> Result<(), VaultError> {
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                let says = tail(&self.log);
                return Err(VaultError::Impossible(format!("the copy did not reach the target ({status}): {says}")));
            }
            if let Ok(session) = Session::open(&self.connect()).await
                && let Ok(row) = session.row("SELECT pg_is_in_recovery()").await
                && row.first().and_then(Option::as_deref) == Some("f")
            {
                return Ok(());
            }
            if begun.elapsed() > patience {
                let says = format!("the copy has not recovered within {} s: {}", patience.as_secs(), tail(&self.log));
                return Err(VaultError::Server(says));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Up to where the log was recovered.
    pub async fn reached(&self) -> Result<Lsn, VaultError> {
        let row = Session::open(&self.connect()).await?.row("SELECT pg_last_wal_replay_lsn()").await?;
        let text = row.first().and_then(Option::as_deref).unwrap_or_default();
        text.parse().map_err(|_| VaultError::Server(format!("the copy does not say how far it recovered: {text:?}")))
    }

    /// What a query shows in one of its databases.
    pub async fn ask(&self, database: &str, query: &str) -> Result<Vec<Vec<Option<String>>>, VaultError> {
        let mut config = self.connect();
        config.dbname(database);
        Session::open(&config).await?.rows(query).await
    }

    /// Ends the copy in order.
    pub async fn stop(mut self) -> Result<(), VaultError> {
        let pid = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        let ended = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await;
        let slow = |_| VaultError::Server("the copy does not stop within 60 s".into());
        ended.map_err(slow)?.map(drop).map_err(|e| VaultError::Server(e.to_string()))
    }
}
