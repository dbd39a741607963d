//! What the operator wants: `mainstay.toml` as values.

use crate::repositories::Repositories;
use crate::requirements::Requirements;
use crate::virtual_address::VirtualAddress;
use crate::{ClusterName, Durability, NodeId, Span};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The cluster as a whole.
    pub cluster: Cluster,
    /// The nodes, in the order of the file.
    #[serde(rename = "node")]
    pub nodes: Vec<Node>,
    /// Times of the take-over.
    #[serde(default)]
    pub failover: Failover,
    /// Where the claim, the specification and the history are kept.
    #[serde(default, skip_serializing_if = "Store::is_default")]
    pub store: Store,
    /// The proxies.
    #[serde(default)]
    pub proxy: Proxy,
    /// PostgreSQL's own settings.
    #[serde(default)]
    pub postgres: Postgres,
    /// Where the log and backups are kept.
    #[serde(default, skip_serializing_if = "Vault::is_default")]
    pub vault: Vault,
    /// What the cluster is for and what is asked of it; read by plans only.
    #[serde(default, skip_serializing_if = "Requirements::is_default")]
    pub requirements: Requirements,
}

/// The cluster as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Its name.
    pub name: ClusterName,
    /// Which engine.
    #[serde(default)]
    pub engine: EngineKind,
    /// How commits are protected.
    #[serde(default)]
    pub durability: Durability,
}

/// The engines Mainstay knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// PostgreSQL.
    #[default]
    Postgres,
}

impl EngineKind {
    /// The engine's name, as the file writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
        }
    }
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub name: NodeId,
    /// An IP address (or a name that resolves to one).
    pub host: String,
    /// The failure zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Votes and holds no data.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub witness: bool,
    /// The database server's port.
    #[serde(default = "default_server_port")]
    pub port: u16,
    /// The agent's port: peers, API (mutual TLS).
    #[serde(default = "default_agent_port")]
    pub agent_port: u16,
    /// The health endpoints' port (plain HTTP, no secrets).
    #[serde(default = "default_health_port")]
    pub health_port: u16,
    /// The interface that takes the proxies' virtual address; default: the one with this node's own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Where this node keeps its files; default `/var/lib/mainstay/<cluster>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// The data directory of a server that exists on this host: its data become the cluster's first copy (`mainstay apply`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopt: Option<PathBuf>,
    /// The data directory of a standby, on this host, of the server that is adopted: its data become this node's copy, without a clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopt_standby: Option<PathBuf>,
}

impl Node {
    /// The data directory of the server of before whose data this node is to take, as a primary's or a standby's.
    #[must_use]
    pub fn taken_over(&self) -> Option<&PathBuf> {
        self.adopt.as_ref().or(self.adopt_standby.as_ref())
    }
}

fn default_server_port() -> u16 {
    5432
}
fn default_agent_port() -> u16 {
    7420
}
fn default_health_port() -> u16 {
    7421
}

/// Times of the take-over. All in milliseconds; each has a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Failover {
    /// How often agents tell each other that they live.
    pub ping_ms: u64,
    /// Silence after which a holder is suspected.
    pub suspicion_ms: u64,
    /// How long a claim lets its holder serve without renewing it.
    pub lease_ms: u64,
    /// Part of the lease, in hundredths, that the guard keeps back for clock drift and its own delays.
    pub margin_percent: u64,
    /// How many replicas a commit waits for; default: half of the data nodes, rounded down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_replicas: Option<u32>,
}

impl Default for Failover {
    fn default() -> Self {
        Self { ping_ms: 250, suspicion_ms: 1000, lease_ms: 3000, margin_percent: 20, sync_replicas: None }
    }
}

impl Failover {
    /// The lease.
    #[must_use]
    pub fn lease(&self) -> Span {
        Span(self.lease_ms)
    }
}

/// Where the claim, the specification and the history are kept: on the nodes themselves, or in an etcd that is there already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// Which.
    pub kind: StoreKind,
    /// etcd's members, `https://HOST:PORT` each ([`crate::etcd::Endpoint`]).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// All keys of the cluster stand under this and the cluster's name.
    pub prefix: String,
    /// The authority of etcd's certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The certificate that is shown to etcd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// As whom to log in to etcd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A file that holds the password, which its owner alone can read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

/// The kinds of stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// Each node holds a part.
    #[default]
    Raft,
    /// An etcd that others run.
    Etcd,
}

impl std::fmt::Display for StoreKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raft => "raft",
            Self::Etcd => "etcd",
        })
    }
}

/// Where the keys of all clusters stand if nobody said.
pub const STORE_PREFIX: &str = "/mainstay";

impl Default for Store {
    fn default() -> Self {
        Self {
            kind: StoreKind::Raft,
            endpoints: Vec::new(),
            prefix: STORE_PREFIX.to_owned(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            user: None,
            password_file: None,
        }
    }
}

impl Store {
    /// Is it an etcd?
    #[must_use]
    pub fn is_etcd(&self) -> bool {
        self.kind == StoreKind::Etcd
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The proxies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Proxy {
    /// Does each node run a proxy on its own host?
    pub on_nodes: bool,
    /// Host on which a proxy of its own listens (`mainstay up` uses it); `None`: nodes only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Port for writes.
    pub write_port: u16,
    /// Port for reads.
    pub read_port: u16,
    /// A replica further behind than this gets no reads. Bytes.
    pub max_lag_bytes: u64,
    /// For how long a new connection is held while there is no primary.
    pub hold_ms: u64,
    /// How many connections may be held, or open, at once.
    pub max_connections: u32,
    /// Does a client have a server connection for its session, or for each transaction?
    pub mode: ProxyMode,
    /// Server connections for each user, database and address. Mode `transaction` only, as what follows.
    pub pool_size: u32,
    /// So many more when a request has waited for five seconds.
    #[serde(skip_serializing_if = "none")]
    pub pool_reserve: u32,
    /// How long a request waits for one of them.
    pub queue_ms: u64,
    /// Is it looked up what became of a commit whose answer was lost with its server?
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub commit_outcome: bool,
    /// Threads.
    pub threads: u32,
    /// An address that the node with the open primary has besides its own, and at which every node's proxy listens; `None`: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<VirtualAddress>,
    /// Where the proxy tells its numbers (plain HTTP, no secrets); `None`: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_port: Option<u16>,
}

/// What clients share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyMode {
    /// Nothing: whole connections pass.
    #[default]
    Session,
    /// Server connections, one transaction at a time.
    Transaction,
}

impl std::fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ProxyMode::Session => "\"session\"",
            ProxyMode::Transaction => "\"transaction\"",
        })
    }
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            on_nodes: true,
            host: None,
            write_port: 6432,
            read_port: 6433,
            max_lag_bytes: 16 * 1024 * 1024,
            hold_ms: 15_000,
            max_connections: 2000,
            mode: ProxyMode::Session,
            pool_size: 20,
            pool_reserve: 0,
            queue_ms: 30_000,
            commit_outcome: false,
            threads: 1,
            address: None,
            metrics_port: None,
        }
    }
}

/// Where the log and backups are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vault {
    /// Where: a folder that every data node reaches under this path, the address of a bucket (`s3://…`, `azure://…`), or tables of several.
    #[serde(skip_serializing_if = "Repositories::is_none")]
    pub repository: Repositories,
    /// The key of an encrypted repository, a file on every data node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Seconds after which a segment of the log is ended and archived although it is not full; 0: never.
    pub switch_s: u64,
    /// So many of the newest backups are kept.
    pub keep: u64,
    /// Also those with which every moment of the last so many days can be restored; 0: none for that reason.
    pub keep_days: u64,
    /// A backup reads at most so many megabytes a second; 0: no limit.
    pub backup_mb_s: u64,
    /// When a full backup is made, as [`crate::cron::Cron`] reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_at: Option<String>,
    /// When an incremental one is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incremental_at: Option<String>,
    /// When a restore drill is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill_at: Option<String>,
    /// A drill is ended after so many minutes. As it came later than others, an agent that does not know it yet must find it only where it is set.
    #[serde(skip_serializing_if = "usual_minutes")]
    pub drill_minutes: u64,
    /// What a drill asks the copy: the first column of the first row must be true, or a number above 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill_query: Option<String>,
    /// In which database. Left out as the minutes are.
    #[serde(skip_serializing_if = "usual_database")]
    pub drill_database: String,
    /// New copies are made of the newest backup where that can serve, instead of the running primary. Left out as the minutes are.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub clone_nodes: bool,
}

const DRILL_MINUTES: u64 = 240;
const DRILL_DATABASE: &str = "app";

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn usual_minutes(minutes: &u64) -> bool {
    *minutes == DRILL_MINUTES
}

fn usual_database(name: &str) -> bool {
    name == DRILL_DATABASE
}

impl Default for Vault {
    fn default() -> Self {
        Self {
            repository: Repositories::None,
            key_file: None,
            switch_s: 60,
            keep: 14,
            keep_days: 0,
            backup_mb_s: 0,
            full_at: None,
            incremental_at: None,
            drill_at: None,
            drill_minutes: DRILL_MINUTES,
            drill_query: None,
            drill_database: DRILL_DATABASE.to_owned(),
            clone_nodes: false,
        }
    }
}

impl Vault {
    /// The repository's address, if it is a bucket and not a folder.
    #[must_use]
    pub fn bucket(&self) -> Option<&str> {
        self.place().filter(|place| crate::bucket::is_bucket(place))?.to_str()
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// PostgreSQL's own settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Postgres {
    /// Where `postgres` and `initdb` are; default: the newest of the distribution's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bin_dir: Option<PathBuf>,
    /// Server parameters; the names that Mainstay owns are refused.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "plain_values")]
    pub parameters: BTreeMap<String, String>,
    /// Lines added to `pg_hba.conf`, before the default ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hba: Vec<String>,
    /// What the server runs for each finished segment of its log (docs/adr/0049). As it came later than others, an agent that does not know it yet must
    /// find it only where it is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive_command: Option<String>,
}

/// `max_connections = 200` and `jit = false` mean what they say: numbers and booleans are taken as text.
fn plain_values<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a server parameter is a text, a number or a boolean")]
    enum Plain {
        Boolean(bool),
        Whole(i64),
        Fraction(f64),
        Text(String),
    }
    let values = BTreeMap::<String, Plain>::deserialize(deserializer)?;
    let text = |value: Plain| match value {
        Plain::Boolean(true) => "on".to_owned(),
        Plain::Boolean(false) => "off".to_owned(),
        Plain::Whole(number) => number.to_string(),
        Plain::Fraction(number) => number.to_string(),
        Plain::Text(text) => text,
    };
    Ok(values.into_iter().map(|(name, value)| (name, text(value))).collect())
}

impl Spec {
    /// The node of this name.
    #[must_use]
    pub fn node(&self, name: &NodeId) -> Option<&Node> {
        self.nodes.iter().find(|node| &node.name == name)
    }
    /// The names under which clients reach the proxies, and so a server through them: every certificate of a server or a proxy names them.
    #[must_use]
    pub fn client_hosts(&self) -> Vec<String> {
        let nodes = self.nodes.iter().map(|node| node.host.clone());
        let moving = self.proxy.address.map(|address| address.address.to_string());
        nodes.chain(self.proxy.host.clone()).chain(moving).collect()
    }

    /// Where this node keeps its files: as the file says, else `/var/lib/mainstay/<cluster>`.
    #[must_use]
    pub fn node_dir(&self, node: &Node) -> PathBuf {
        let standard = || PathBuf::from("/var/lib/mainstay").join(self.cluster.name.as_str());
        node.dir.clone().unwrap_or_else(standard)
    }
    /// Nodes that hold data, in order.
    pub fn data_nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| !node.witness)
    }
    /// The same wishes, with another's way to the store. How an etcd is reached is each file's own affair, since no node could learn it from
    /// an etcd. A store of another kind stays: that is a difference.
    #[must_use]
    pub fn with_store_of(&self, other: &Self) -> Self {
        let mut spec = self.clone();
        if spec.store.kind == other.store.kind {
            spec.store.clone_from(&other.store);
        }
        spec
    }

    /// The node that alone may make the first copy: the one whose existing server is adopted.
    #[must_use]
    pub fn founder(&self) -> Option<&NodeId> {
        self.data_nodes().find(|node| node.adopt.is_some()).map(|node| &node.name)
    }
    /// n: how many replicas a commit waits for, before the mode is applied. Default ⌊data nodes / 2⌋.
    #[must_use]
    pub fn sync_replicas(&self) -> u32 {
        let data = u32::try_from(self.data_nodes().count()).unwrap_or(u32::MAX);
        self.failover.sync_replicas.unwrap_or(data / 2).min(data.saturating_sub(1))
    }
}

/// Older agents refuse a key that they do not know: a number that is not set is not written.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn none(number: &u32) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_older_agents_do_not_know_is_written_only_where_it_is_set() {
        let vault = Vault { repository: "/srv/vault".into(), ..Vault::default() };
        let text = serde_json::to_string(&vault).unwrap();
        assert!(!text.contains("drill") && !text.contains("clone_nodes"), "{text}");
        assert_eq!(serde_json::from_str::<Vault>(&text).unwrap(), vault);
        let text = serde_json::to_string(&Proxy::default()).unwrap();
        assert!(!text.contains("metrics_port") && !text.contains("pool_reserve"), "{text}");
        assert!(!serde_json::to_string(&Postgres::default()).unwrap().contains("archive_command"));
        assert_eq!(serde_json::from_str::<Proxy>(&text).unwrap(), Proxy::default());
        let other = Vault { drill_minutes: 5, drill_database: "orders".into(), clone_nodes: true, ..vault };
        let text = serde_json::to_string(&other).unwrap();
        assert_eq!(serde_json::from_str::<Vault>(&text).unwrap(), other);
    }
}
