//! A cluster on virtual hosts: a switch, a host per node, and a client's host with a proxy.

use super::command::output_later;
use super::etcd;
use super::files::{self, CONFIG, Secrets};
use super::host::{Blueprint, Host};
use super::init::Order;
use super::network::Switch;
use super::shared;
use super::sweep::RunDir;
use super::versions::{self, Versions};
use crate::cluster::{primary, program, until_healed};
use anyhow::{Context as _, Result, bail};
use mainstay_model::spec::StoreKind;
use mainstay_model::status::Status;
use mainstay_model::{Durability, Event, NodeId};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a new cluster may take until every node does its part.
const UP: Duration = Duration::from_secs(90);
/// The longest that one question to the cluster may take.
const QUESTION: Duration = Duration::from_secs(10);

/// Which hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Nodes with data.
    pub data: u8,
    /// Nodes that only vote.
    pub witnesses: u8,
    /// How commits are protected.
    pub durability: Durability,
    /// Size of a node's volume. Its image is sparse: what is not written takes no room. Each take-over keeps the old primary's diverged log.
    pub volume_mb: u32,
    /// Who holds the cluster's store: the nodes, or an etcd of three members on hosts of its own.
    pub store: StoreKind,
    /// An address that goes with the primary, and a proxy on each node.
    pub address: bool,
}

impl Shape {
    /// Three data nodes.
    pub const THREE: Shape = Shape {
        data: 3,
        witnesses: 0,
        durability: Durability::Strict,
        volume_mb: 1500,
        store: StoreKind::Raft,
        address: false,
    };
    /// Two data nodes and a witness.
    pub const WITNESS: Shape = Shape { data: 2, witnesses: 1, ..Shape::THREE };
    /// Five data nodes.
    pub const FIVE: Shape = Shape { data: 5, ..Shape::THREE };

    /// The same with its store there. Where an etcd votes, witnesses have no part.
    #[must_use]
    pub fn on(self, store: StoreKind) -> Shape {
        match store {
            StoreKind::Raft => Shape { store, ..self },
            StoreKind::Etcd => Shape { store, witnesses: 0, ..self },
        }
    }

    /// In words.
    #[must_use]
    pub fn words(self) -> String {
        let witness = if self.witnesses > 0 { " and a witness" } else { "" };
        let etcd = if self.store == StoreKind::Etcd { " on an etcd" } else { "" };
        format!("{} data nodes{witness}{etcd}, {}", self.data, self.durability.as_str())
    }
}

/// What a cluster is made with, besides its hosts.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Added to the environment of agents and proxy.
    pub environment: Vec<(String, String)>,
    /// Every host begins with this program instead of the one that was built: an earlier version. Each can be given the other one later.
    pub previous: Option<PathBuf>,
    /// The log is archived, to a repository that all hosts have mounted.
    pub repository: bool,
}

/// A running cluster. Everything of it ends when it is dropped.
pub struct HostCluster {
    /// The nodes' hosts.
    pub hosts: BTreeMap<NodeId, Host>,
    /// The hosts of the etcd that is the store; none where the nodes hold it.
    pub stores: BTreeMap<NodeId, Host>,
    /// Where clients and the proxy run.
    pub client: Host,
    /// The cables.
    pub switch: Switch,
    /// What it was made from.
    pub shape: Shape,
    /// How long it took until it was whole.
    pub up_took: Duration,
    program: PathBuf,
    /// Where each host has a program of its own.
    pub(super) versions: Option<Versions>,
    /// Added to the environment of agents and proxy.
    environment: Vec<(String, String)>,
    secrets: Secrets,
    // Removed last.
    dir: RunDir,
}

/// This program's command `host-init`: `TESTKIT_BIN`, or the program `testkit` in the build's directory.
fn init_program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TESTKIT_BIN") {
        return Ok(PathBuf::from(path));
    }
    let this = std::env::current_exe().context("this program's own path")?;
    let mut beside = this.ancestors().skip(1).take(2).map(|dir| dir.join("testkit"));
    beside.find(|path| path.is_file()).context("there is no program `testkit` in the build's directory")
}

/// What makes a program see the clock of `inject::CLOCK_FILE`, if the library for it is installed. Monotonic clocks stay right.
///
/// # Errors
/// When the library is missing.
pub(super) fn clock_environment() -> Result<Vec<(String, String)>> {
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
    if !Path::new(library).exists() {
        bail!("the library that sets a host's clock is missing: install the package libfaketime");
    }
    let pairs = [
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", super::inject::CLOCK_FILE),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ];
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
}

impl HostCluster {
    /// Makes the hosts and waits until the cluster is whole.
    ///
    /// # Errors
    /// When this is not root, a program is missing, or the cluster does not come up.
    pub async fn up(shape: Shape) -> Result<HostCluster> {
        HostCluster::up_with(shape, &Setup::default()).await
    }

    /// The same with more than its hosts said.
    ///
    /// # Errors
    /// When this is not root, a program is missing, or the cluster does not come up.
    pub async fn up_with(shape: Shape, setup: &Setup) -> Result<HostCluster> {
        if !rustix::process::geteuid().is_root() {
            bail!("virtual hosts need root: run this as root");
        }
        let dir = RunDir::new()?;
        let begun = Instant::now();
        let (spec, secrets) = files::plan(shape, setup.repository)?;
        let (built, init) = (std::path::absolute(program()?)?, init_program()?);
        let versions = setup.previous.as_deref().map(|previous| Versions::new(previous, &built)).transpose()?;
        let program = if versions.is_some() { PathBuf::from(versions::PLACE) } else { built };
        let switch = Switch::start()?;
        let blueprint = |name: &str, address: Ipv4Addr, volume_mb| Blueprint {
            name: name.to_owned(),
            address,
            dir: dir.path().join(name),
            volume_mb,
            program: init.clone(),
        };
        let mut hosts = BTreeMap::new();
        for node in &spec.nodes {
            let host = Host::start(&blueprint(node.name.as_str(), node.host.parse()?, shape.volume_mb))?;
            switch.plug(&host)?;
            hosts.insert(node.name.clone(), host);
        }
        let mut stores = BTreeMap::new();
        for (name, address) in etcd::members().into_iter().filter(|_| shape.store == StoreKind::Etcd) {
            let host = Host::start(&blueprint(name.as_str(), address, etcd::VOLUME_MB))?;
            switch.plug(&host)?;
            etcd::serve(&host, "new")?;
            stores.insert(name, host);
        }
        let client = Host::start(&blueprint("client", files::CLIENT, 0))?;
        switch.plug(&client)?;
        if setup.repository {
            shared::mount(&client, hosts.values(), dir.path())?;
        }
        let up_took = Duration::ZERO;
        let environment = setup.environment.clone();
        let mut cluster =
            HostCluster { hosts, stores, client, switch, shape, up_took, program, versions, environment, secrets, dir };
        versions::begin(&cluster)?;
        files::lay_out(&cluster.hosts, &cluster.client, &spec, &cluster.secrets)?;
        cluster.start_services()?;
        let whole = cluster.healed(UP).await;
        if whole.is_err() {
            cluster.show_logs();
        }
        whole?;
        cluster.up_took = begun.elapsed();
        Ok(cluster)
    }

    fn start_services(&self) -> Result<()> {
        for node in self.hosts.keys() {
            self.start_agent(node, &[])?;
        }
        self.client.serve("proxy", &[&self.program(), "proxy", "--config", CONFIG], &self.environment)
    }

    /// Starts a node's agent and keeps it running.
    ///
    /// # Errors
    /// When its host is gone.
    pub fn start_agent(&self, node: &NodeId, environment: &[(String, String)]) -> Result<()> {
        let words = [&self.program(), "agent", "--config", CONFIG, "--node", node.as_str()];
        let environment: Vec<_> = self.environment.iter().chain(environment).cloned().collect();
        self.host(node)?.serve("agent", &words, &environment)
    }

    fn program(&self) -> String {
        self.program.display().to_string()
    }

    /// The host of a node, or of a member of the etcd.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn host(&self, node: &NodeId) -> Result<&Host> {
        self.hosts.get(node).or_else(|| self.stores.get(node)).with_context(|| format!("there is no host {node}"))
    }

    /// Hosts of the other nodes.
    pub fn others<'a>(&'a self, node: &'a NodeId) -> impl Iterator<Item = (&'a NodeId, &'a Host)> {
        self.hosts.iter().filter(move |(name, _)| *name != node)
    }

    /// Nodes with data.
    pub fn data_nodes(&self) -> impl Iterator<Item = (&NodeId, &Host)> {
        self.hosts.iter().filter(|(name, _)| !files::is_witness(name))
    }

    /// Where logs lie.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Lets a node's services be started again when they die, or not; a node that was off comes back.
    ///
    /// # Errors
    /// When its host is gone.
    pub fn keep(&self, node: &NodeId, keep: bool) -> Result<()> {
        self.host(node)?.order(&Order::Keep(keep))
    }

    /// Runs a command of the program on the client's host.
    ///
    /// # Errors
    /// When it fails, or takes too long.
    pub async fn run(&self, words: &[&str], patience: Duration) -> Result<String> {
        let program = self.program();
        let mut all: Vec<&str> = vec![&program];
        all.extend_from_slice(words);
        all.extend_from_slice(&["--config", CONFIG]);
        let command = self.client.command(&all);
        tokio::time::timeout(patience, output_later(command)).await.with_context(|| format!("{words:?}: no end"))?
    }

    /// How it is.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn status(&self) -> Result<Status> {
        last_object(&self.run(&["status", "--json"], QUESTION).await?)
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
        Ok(last_object::<History>(&self.run(&["history", "--json"], QUESTION).await?)?.events)
    }

    /// The application's address for writes.
    #[must_use]
    pub fn uri(&self) -> String {
        self.secrets.uri(files::CLIENT, 6432)
    }

    /// The application's address for writes at the address that goes with the primary.
    #[must_use]
    pub fn virtual_uri(&self) -> String {
        self.secrets.uri(files::ADDRESS.0, 6432)
    }

    /// The application's address at one node's own server.
    #[must_use]
    pub fn server_uri(&self, host: &Host) -> String {
        self.secrets.uri(host.address(), 5432)
    }

    /// Gives a node an empty volume and new certificates under its old name. Nothing may run there.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn wipe(&self, node: &NodeId) -> Result<()> {
        self.host(node)?.wipe(self.shape.volume_mb)?;
        files::lay_out_node(self.host(node)?, node, &self.secrets)
    }

    /// Waits until there is one open primary, and every other node, and every member of the etcd, does its part.
    ///
    /// # Errors
    /// When it is not so in time; what is missing is in the error.
    pub async fn healed(&self, patience: Duration) -> Result<Status> {
        etcd::whole(self, patience).await?;
        until_healed(patience, || self.status()).await
    }

    /// The primary of a status and its host.
    ///
    /// # Errors
    /// When there is none.
    pub fn primary(&self, status: &Status) -> Result<(NodeId, &Host)> {
        let name = primary(status)?.name.clone();
        let host = self.host(&name)?;
        Ok((name, host))
    }

    /// Copies every log of every host to this directory.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn keep_logs(&self, dir: &Path) -> Result<()> {
        for (name, path) in self.logs().into_iter().filter(|(_, path)| path.exists()) {
            std::fs::copy(&path, dir.join(&name)).with_context(|| format!("copy {}", path.display()))?;
        }
        Ok(())
    }

    fn logs(&self) -> Vec<(String, PathBuf)> {
        let of = |host: &Host| {
            let inner = ["guard.log", "server.log"].map(|log| host.path(&files::log(log)));
            let all = ["agent.log", "proxy.log", "etcd.log"].map(|log| host.dir().join(log)).into_iter().chain(inner);
            let name =
                |path: &PathBuf| format!("{}-{}", host.name(), path.file_name().unwrap_or_default().to_string_lossy());
            all.map(|path| (name(&path), path)).collect::<Vec<_>>()
        };
        self.hosts.values().chain(self.stores.values()).chain([&self.client]).flat_map(of).collect()
    }

    /// The end of every log, for a test that failed. Everything is copied to `TESTKIT_LOGS`, if that names a directory.
    pub fn show_logs(&self) {
        for (name, path) in self.logs() {
            let Ok(text) = std::fs::read(&path) else { continue };
            if let Some(place) = std::env::var_os("TESTKIT_LOGS") {
                let _ = std::fs::write(PathBuf::from(place).join(&name), &text);
            }
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- the end of {name}");
            lines.iter().skip(lines.len().saturating_sub(30)).for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Drop for HostCluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
    }
}

/// The object on the last line.
fn last_object<T: for<'de> Deserialize<'de>>(output: &str) -> Result<T> {
    let line = output.lines().last().context("nothing was printed")?;
    serde_json::from_str(line).with_context(|| format!("not the object that was expected: {line}"))
}
