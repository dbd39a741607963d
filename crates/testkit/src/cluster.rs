//! A cluster on this machine, made, asked and ended with the program's own commands.

use anyhow::{Context as _, Result, bail};
use mainstay_model::Event;
use mainstay_model::status::{NodeStatus, Status};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

/// The program under test: `MAINSTAY_BIN`, or beside this one in the build's directory.
///
/// # Errors
/// When there is none.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MAINSTAY_BIN") {
        return Ok(PathBuf::from(path));
    }
    let this = std::env::current_exe().context("this program's own path")?;
    let beside = this.ancestors().skip(1).take(2).map(|dir| dir.join("mainstay"));
    beside.into_iter().find(|path| path.is_file()).context(
        "there is no program `mainstay` beside this one: run `cargo build -p mainstay` in the same profile, or set MAINSTAY_BIN",
    )
}

/// How `up` is asked for a cluster.
#[derive(Clone, Debug)]
pub enum Place {
    /// In this directory.
    Dir(PathBuf),
    /// Under this name, where clusters of this machine lie by default.
    Name(String),
}

/// A running cluster. Ended and removed when dropped, unless kept.
pub struct Cluster {
    program: PathBuf,
    dir: PathBuf,
    kept: bool,
    /// How long `up` took.
    pub up_took: Duration,
    // Removed last, after `down --destroy` has emptied it.
    _temporary: Option<tempfile::TempDir>,
}

/// What `up --json` ends with, as far as it matters here.
#[derive(Deserialize)]
struct Up {
    dir: PathBuf,
}

impl Cluster {
    /// Three nodes in a temporary directory.
    ///
    /// # Errors
    /// When `up` fails.
    pub async fn temporary() -> Result<Cluster> {
        use std::os::unix::fs::PermissionsExt as _;
        let temporary = tempfile::Builder::new().prefix("mainstay-test-").tempdir()?;
        // The server's user must be able to pass.
        std::fs::set_permissions(temporary.path(), std::fs::Permissions::from_mode(0o711))?;
        let dir = temporary.path().join("cluster");
        let mut cluster = Cluster::up(&Place::Dir(dir)).await?;
        cluster._temporary = Some(temporary);
        Ok(cluster)
    }

    /// The same, with a proxy that shares server connections by transaction.
    ///
    /// # Errors
    /// When `up` fails.
    pub async fn pooled() -> Result<Cluster> {
        Cluster::pooled_with(&[]).await
    }

    /// The same with these settings besides.
    ///
    /// # Errors
    /// When `up` fails.
    pub async fn pooled_with(settings: &[&str]) -> Result<Cluster> {
        let cluster = Cluster::temporary().await?;
        // A proxy takes its mode when it starts, from the newest generation that its node has kept; an edited file does not count beside that.
        cluster.run(&[&["set", "proxy.mode=transaction", "--yes"], settings].concat()).await?;
        cluster.run(&["down", "--yes"]).await?;
        cluster.up_again().await?;
        Ok(cluster)
    }

    /// Makes or starts a cluster.
    ///
    /// # Errors
    /// When `up` fails; its words are in the error.
    pub async fn up(place: &Place) -> Result<Cluster> {
        let program = program()?;
        let mut arguments = vec!["up".to_owned(), "--yes".to_owned(), "--json".to_owned()];
        match place {
            Place::Dir(dir) => arguments.extend(["--dir".to_owned(), dir.display().to_string()]),
            Place::Name(name) => arguments.extend(["--name".to_owned(), name.clone()]),
        }
        let begun = Instant::now();
        let output = run(&program, &arguments).await;
        let up_took = begun.elapsed();
        let up = output.and_then(|output| object::<Up>(&output));
        if let (Err(_), Place::Dir(dir)) = (&up, place) {
            // What a failed start left running must not outlive the test.
            let down = ["down", "--yes", "--dir", &dir.display().to_string()].map(str::to_owned);
            let _ = run(&program, &down).await;
        }
        let dir = std::fs::canonicalize(up?.dir)?;
        Ok(Cluster { program, dir, kept: false, up_took, _temporary: None })
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leaves it up when this handle is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Runs a command on this cluster and returns its standard output.
    ///
    /// # Errors
    /// When it fails; its words are in the error.
    pub async fn run(&self, words: &[&str]) -> Result<String> {
        let mut arguments: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        arguments.extend(["--dir".to_owned(), self.dir.display().to_string()]);
        run(&self.program, &arguments).await
    }

    /// How it is.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn status(&self) -> Result<Status> {
        object(&self.run(&["status", "--json"]).await?)
    }

    /// What happened, oldest first.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn history(&self) -> Result<Vec<Event>> {
        #[derive(Deserialize)]
        struct History {
            events: Vec<Event>,
        }
        Ok(object::<History>(&self.run(&["history", "--json"]).await?)?.events)
    }

    /// The application's address for writes.
    ///
    /// # Errors
    /// When it can not be had.
    pub async fn uri(&self) -> Result<String> {
        Ok(self.run(&["connect", "--uri"]).await?.trim().to_owned())
    }

    /// Waits until there is one open primary, and every other node streams from it.
    ///
    /// # Errors
    /// When it is not so in time; what is missing is in the error.
    pub async fn healed(&self, patience: Duration) -> Result<Status> {
        until_healed(patience, || self.status()).await
    }

    /// Starts it again in the same directory.
    ///
    /// # Errors
    /// When `up` fails.
    pub async fn up_again(&self) -> Result<()> {
        let arguments = ["up", "--yes", "--dir", &self.dir.display().to_string()].map(str::to_owned);
        run(&self.program, &arguments).await.map(drop)
    }
}

/// Asks for the status again and again until nothing is missing.
pub(crate) async fn until_healed<F>(patience: Duration, mut status: impl FnMut() -> F) -> Result<Status>
where
    F: Future<Output = Result<Status>>,
{
    let begun = Instant::now();
    loop {
        let missing = match status().await {
            Ok(status) => match unhealed(&status) {
                None => return Ok(status),
                Some(missing) => missing,
            },
            Err(error) => format!("{error:#}"),
        };
        if begun.elapsed() > patience {
            bail!("not healed after {} s: {missing}", patience.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        if self.kept || (std::thread::panicking() && std::env::var_os("TESTKIT_KEEP").is_some()) {
            eprintln!("the cluster in {} is left as it is", self.dir.display());
            if let Some(temporary) = self._temporary.take() {
                let _ = temporary.keep();
            }
            return;
        }
        let mut down = std::process::Command::new(&self.program);
        down.args(["down", "--destroy", "--yes", "--dir"]).arg(&self.dir);
        match down.stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {}
            other => eprintln!("down: {other:?}"),
        }
    }
}

impl Cluster {
    /// The end of every log, for a test that failed.
    fn show_logs(&self) {
        let nodes = std::fs::read_dir(self.dir.join("nodes")).into_iter().flatten().flatten();
        for node in nodes {
            for log in ["agent.log", "guard.log", "server.log"] {
                let path = node.path().join("log").join(log);
                let text = std::fs::read(&path).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- the end of {}", path.display());
                lines.iter().skip(lines.len().saturating_sub(40)).for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

/// What is missing until the cluster is whole; `None`: nothing.
#[must_use]
pub fn unhealed(status: &Status) -> Option<String> {
    let primaries = status.nodes.iter().filter(|node| node.role == "primary").count();
    if primaries != 1 || status.cluster.primary.is_none() || !status.cluster.writable {
        return Some(format!("{primaries} primaries, writable: {}; {:?}", status.cluster.writable, status.problems));
    }
    let does_its_part = |node: &NodeStatus| {
        matches!((node.role.as_str(), node.state.as_str()), ("primary" | "witness", _) | ("replica", "streaming"))
    };
    let lame = status.nodes.iter().find(|node| !does_its_part(node));
    let lame = lame.or_else(|| status.nodes.iter().find(|node| !node.healthy));
    lame.map(|node| format!("{} is {} and {}, healthy: {}", node.name, node.role, node.state, node.healthy))
}

/// The primary's line of a status.
///
/// # Errors
/// When there is none.
pub fn primary(status: &Status) -> Result<&NodeStatus> {
    status.nodes.iter().find(|node| Some(&node.name) == status.cluster.primary.as_ref()).context("there is no primary")
}

async fn run(program: &Path, arguments: &[String]) -> Result<String> {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        bail!("`mainstay {}` {}: {}", arguments.join(" "), output.status, said(&output));
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn said(output: &Output) -> String {
    let text = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
    text.trim().to_owned()
}

/// The object on the last line.
fn object<T: for<'de> Deserialize<'de>>(output: &str) -> Result<T> {
    let line = output.lines().last().context("nothing was printed")?;
    serde_json::from_str(line).with_context(|| format!("not the object that was expected: {line}"))
}
