//! Each part of the agent goes by the newest specification while it runs: decisions, connections, ports to look at, the servers that
//! routes name, slots, the server's own settings. Host names are looked up again now and then, and soon while a node is away.

use crate::evidence::Ports;
use crate::generations::Generations;
use crate::mind_loop::{self, Question};
use crate::routes::Routes;
use anyhow::{Context, Result};
use mainstay_decide::Plant;
use mainstay_decide::io::{Config, Input};
use mainstay_model::spec::Spec;
use mainstay_model::stored_spec::StoredSpec;
use mainstay_model::{Durability, NodeId, ServerObservation, ServerState, Span};
use mainstay_net::{Credentials, Mesh};
use mainstay_ports::engine::{Configured, Engine, EngineError, EngineSettings};
use mainstay_ports::peer::Peers as _;
use mainstay_ports::sabotage;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

/// One look-up of a host's name.
const LOOKUP: Duration = Duration::from_secs(2);
/// Names are looked up again after this, sooner while one of their nodes is away.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
const LOOK_SOON: Duration = Duration::from_secs(2);
/// The server's settings are given again after this when it could not take them.
const CONFIGURE_AGAIN: Duration = Duration::from_secs(2);
const CONFIGURE_LATER: Duration = Duration::from_secs(30);
/// How often it is looked whether the server's certificate was renewed.
const LOOK_CERTIFICATE: Duration = Duration::from_secs(10);

/// The first address of a host.
///
/// # Errors
/// When it has none.
pub async fn resolve(host: &str, port: u16) -> Result<SocketAddr> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, port));
    }
    let found = timeout(LOOKUP, lookup_host((host, port))).await.with_context(|| format!("look up host {host:?}"))?;
    let mut found = found.with_context(|| format!("look up host {host:?}"))?;
    found.next().with_context(|| format!("host {host:?} has no address"))
}

/// Addresses of the nodes, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Their agents'.
    pub agents: BTreeMap<NodeId, SocketAddr>,
    /// Their servers'; witnesses have none.
    pub servers: BTreeMap<NodeId, SocketAddr>,
}

impl Addresses {
    /// Looks every node up; those that can not be found keep the address that they had.
    pub async fn of(spec: &Spec, before: &Addresses) -> Self {
        let mut addresses = Self::default();
        for node in &spec.nodes {
            let (agent, server) = match resolve(&node.host, node.agent_port).await {
                Ok(agent) => (Some(agent), Some(SocketAddr::new(agent.ip(), node.port))),
                Err(problem) => {
                    warn!(node = %node.name, "{problem:#}");
                    (before.agents.get(&node.name).copied(), before.servers.get(&node.name).copied())
                }
            };
            addresses.agents.extend(agent.map(|agent| (node.name.clone(), agent)));
            if !node.witness {
                addresses.servers.extend(server.map(|server| (node.name.clone(), server)));
            }
        }
        addresses
    }

    /// Where to look for evidence about every other node.
    #[must_use]
    pub fn ports(&self, me: &NodeId) -> BTreeMap<NodeId, Ports> {
        let others = self.agents.iter().filter(|(node, _)| *node != me);
        others
            .map(|(node, agent)| (node.clone(), Ports { agent: *agent, server: self.servers.get(node).copied() }))
            .collect()
    }
}

/// What the decision must know of a specification.
#[must_use]
pub fn decision_config(me: &NodeId, stored: &StoredSpec, seed: u64) -> Config {
    let spec = &stored.spec;
    let lease = spec.failover.lease();
    let data_nodes = spec.data_nodes().map(|node| node.name.clone());
    Config {
        me: me.clone(),
        data_nodes: data_nodes.zip(0..).collect(),
        excluded: Default::default(),
        founder: spec.founder().cloned(),
        durability: if sabotage::on("durability-forgotten") { Durability::Async } else { spec.cluster.durability },
        sync_replicas: spec.sync_replicas(),
        lease,
        margin: lease.percent(spec.failover.margin_percent),
        suspicion: Span(spec.failover.suspicion_ms),
        ping: Span(spec.failover.ping_ms),
        hang: Span(spec.failover.suspicion_ms * 2),
        seed,
        paused: stored.paused.is_some(),
        plants: sabotaged(),
    }
}

/// Rules of deciding that can be broken on purpose, by the names of their switches.
const SWITCHES: [(&str, Plant); 4] = [
    ("no-lease-wait", Plant::AsyncWithoutLeaseWait),
    ("promote-early", Plant::EnoughQuorum),
    ("lease-for-recruits", Plant::LeaseReplacesRecruits),
    ("no-fast-forward", Plant::NoFastForward),
];

/// Rules of deciding that are broken on purpose; none in an ordinary build.
fn sabotaged() -> std::collections::BTreeSet<Plant> {
    SWITCHES.into_iter().filter(|(switch, _)| sabotage::on(switch)).map(|(_, plant)| plant).collect()
}

/// What the engine must know of it.
#[must_use]
pub fn engine_settings(spec: &Spec) -> EngineSettings {
    let command = spec.postgres.archive_command.clone();
    let archived = spec.vault.archives() || command.is_some();
    let mut parameters = spec.postgres.parameters.clone();
    let set = parameters.keys().any(|name| name.eq_ignore_ascii_case("archive_timeout"));
    if archived && !set {
        parameters.insert("archive_timeout".to_owned(), format!("{}s", spec.vault.switch_s));
    }
    EngineSettings {
        peers: spec.data_nodes().map(|peer| (peer.name.clone(), (peer.host.clone(), peer.port))).collect(),
        parameters,
        hba: spec.postgres.hba.clone(),
        archived,
        archive_command: command,
    }
}

/// What follows the specification.
pub struct Follow {
    /// Who.
    pub me: NodeId,
    /// What the operator wants.
    pub generations: Arc<Generations>,
    /// The connections.
    pub mesh: Arc<Mesh>,
    /// The decision.
    pub inputs: mpsc::Sender<Input>,
    /// What proxies are told.
    pub routes: Routes,
    /// Where evidence is looked for.
    pub ports: watch::Sender<BTreeMap<NodeId, Ports>>,
    /// The addresses that are in use.
    pub addresses: Addresses,
}

impl Follow {
    /// Runs for ever.
    pub async fn run(mut self) {
        let mut news = self.generations.watch();
        let mut decided = news.borrow().clone();
        loop {
            let stored = news.borrow_and_update().clone();
            if stored != decided {
                let config = decision_config(&self.me, &stored, 0);
                if self.inputs.send(Input::Configured(Box::new(config))).await.is_err() {
                    return;
                }
                decided = Arc::clone(&stored);
            }
            self.connect(&stored.spec).await;
            let pause = self.next_look(&stored.spec);
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                () = sleep(pause) => {}
            }
        }
    }

    async fn connect(&mut self, spec: &Spec) {
        let addresses = Addresses::of(spec, &self.addresses).await;
        if addresses == self.addresses {
            return;
        }
        info!(agents = ?addresses.agents, "addresses of the nodes");
        self.mesh.set_peers(addresses.agents.clone());
        self.routes.set_servers(addresses.servers.clone());
        self.ports.send_replace(addresses.ports(&self.me));
        self.addresses = addresses;
    }

    fn next_look(&self, spec: &Spec) -> Duration {
        let named = |host: &str| host.parse::<IpAddr>().is_err();
        let away =
            spec.nodes.iter().any(|node| node.name != self.me && named(&node.host) && !self.mesh.connected(&node.name));
        if away { LOOK_SOON } else { LOOK_AGAIN }
    }
}

/// Gives the server's settings to the engine whenever they change, until it has taken them; and again once a server has started, since
/// what waited for that is in force then, and once its certificate was renewed, which it reads with its settings.
pub struct Configure {
    /// The server's certificate, and the authority beside it.
    pub certificate: (PathBuf, PathBuf),
    /// What the agent itself trusts: a server is not told to read another authority's files.
    pub credentials: Arc<Credentials>,
    /// What the operator wants.
    pub generations: Arc<Generations>,
    /// Whom to tell.
    pub engine: Arc<dyn Engine>,
    /// The last probe.
    pub observed: watch::Receiver<ServerObservation>,
    /// Questions to the loop: is an order running?
    pub questions: mpsc::Sender<Question>,
    /// Told whenever an order begins: orders come first.
    pub order_begins: Arc<Notify>,
    /// What came of it.
    pub shown: watch::Sender<Configured>,
}

impl Configure {
    /// Runs for ever.
    pub async fn keep(mut self) {
        let mut news = self.generations.watch();
        let (mut given, mut ran): (Option<EngineSettings>, bool) = (None, false);
        let mut due = Instant::now();
        let mut shown = self.stamp().await;
        let mut look = interval(LOOK_CERTIFICATE);
        loop {
            let settings = engine_settings(&news.borrow_and_update().spec);
            let wanted = given.as_ref() != Some(&settings);
            if wanted && due <= Instant::now() {
                // What fails half-way leaves neither the settings before it nor these in force, so going back to those is a change as well.
                given = None;
                match self.give(&settings).await {
                    None => given = Some(settings),
                    Some(pause) => due = Instant::now() + pause,
                }
                continue;
            }
            tokio::select! {
                changed = news.changed() => match changed {
                    Ok(()) => due = Instant::now(),
                    Err(_) => return,
                },
                changed = self.observed.changed() => if changed.is_err() { return },
                () = sleep_until(due), if wanted => {}
                _ = look.tick() => {
                    let stamp = self.stamp().await;
                    if stamp.is_some() && stamp != shown && self.of_our_authority().await {
                        info!(certificate = %self.certificate.0.display(), "the server's certificate was renewed: having the server read it");
                        (shown, given, due) = (stamp, None, Instant::now());
                    }
                }
            }
            let runs = matches!(self.observed.borrow_and_update().state, ServerState::Standby | ServerState::Primary);
            if runs && !ran {
                (given, due) = (None, Instant::now());
            }
            ran = runs;
        }
    }

    /// Which file it is now: `join --again` puts another in its place.
    async fn stamp(&self) -> Option<(u64, i64)> {
        let metadata = tokio::fs::metadata(&self.certificate.0).await.ok()?;
        Some((metadata.ino(), metadata.mtime()))
    }

    async fn of_our_authority(&self) -> bool {
        let authority = tokio::fs::read_to_string(&self.certificate.1).await;
        authority.is_ok_and(|authority| self.credentials.trusts(&authority))
    }

    /// `None`: taken. Else: after how long to try again.
    async fn give(&self, settings: &EngineSettings) -> Option<Duration> {
        let snapshot = mind_loop::ask(&self.questions, mind_loop::ANSWER).await;
        if snapshot.is_none_or(|snapshot| snapshot.summary.order.is_some()) {
            return Some(CONFIGURE_AGAIN);
        }
        let result = tokio::select! {
            result = self.engine.configure(settings) => result,
            () = self.order_begins.notified() => return Some(CONFIGURE_AGAIN),
        };
        match result {
            Ok(configured) => {
                if configured != Configured::default() {
                    info!(pending = ?configured.pending_restart, refused = ?configured.refused, "server settings");
                }
                self.shown.send_replace(configured);
                None
            }
            Err(EngineError::NotYet(why)) => {
                debug!(%why, "the server takes its settings later");
                Some(CONFIGURE_AGAIN)
            }
            Err(problem) => {
                warn!(%problem, "the server does not take its settings");
                Some(CONFIGURE_LATER)
            }
        }
    }
}
