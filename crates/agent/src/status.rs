//! What one node knows of itself, and how the answers of all nodes become one status.

use crate::certificates::CertificateEnd;
use crate::mind_loop::Snapshot;
use crate::problems::{self, Beside};
use mainstay_decide::summary::{Role, Summary};
use mainstay_model::api::StoreStanding;
use mainstay_model::record::Durability;
use mainstay_model::spec::{Node, Spec};
use mainstay_model::status::{AddressStanding, AddressStatus, ClusterStatus, NodeStatus, RouteAddresses, Status};
use mainstay_model::stored_spec::{FileState, Paused};
use mainstay_model::{ClaimState, NodeId, Reason, RouteState, ServerObservation, ServerState, Term};
use mainstay_ports::clock::wall_now_ms;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Role and state of a node, in the words of `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// `primary`, `replica`, `witness` or `none`.
    pub role: String,
    /// `running`, `streaming`, `starting`, `stopped` …
    pub state: String,
}

impl Standing {
    /// What a node does by its decision's summary and the last probe.
    #[must_use]
    pub fn of(summary: &Summary, observed: &ServerObservation) -> Self {
        let role = match summary.role {
            Role::Primary if summary.open => "primary",
            Role::Witness => "witness",
            Role::Replica => "replica",
            _ => "none",
        };
        let order = summary.order.map(|(kind, _)| kind.to_lowercase()).unwrap_or_default();
        let state = if summary.problem.is_some() {
            "stays-out"
        } else if role == "witness" {
            "running"
        } else if order.contains("rewind") {
            "rewinding"
        } else if order.contains("clone") {
            "cloning"
        } else if order.contains("bootstrap") {
            "founding"
        } else if observed.silent > 1000 {
            "silent"
        } else {
            Self::server_state(summary, observed)
        };
        Self { role: role.to_owned(), state: state.to_owned() }
    }

    fn server_state(summary: &Summary, observed: &ServerObservation) -> &'static str {
        match (observed.state, summary.role) {
            (ServerState::Down, _) => "stopped",
            (ServerState::Starting, _) => "starting",
            (ServerState::Standby, Role::Candidate | Role::Promoting) | (ServerState::Primary, Role::Promoting) => {
                "promoting"
            }
            (ServerState::Standby, _) if observed.receiving => "streaming",
            (ServerState::Standby, _) => "detached",
            (ServerState::Primary, Role::Primary) if summary.open => "running",
            (ServerState::Primary, _) => "waiting",
        }
    }

    pub(crate) fn healthy(&self) -> bool {
        matches!(self.state.as_str(), "running" | "streaming")
    }
}

/// What one agent says of its node. A contract between agents of different versions: fields are added, never renamed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LocalStatus {
    /// Who.
    pub node: NodeId,
    /// Its agent's process.
    pub agent_pid: u32,
    /// Its guard's.
    pub guard_pid: Option<u32>,
    /// Its server's.
    pub server_pid: Option<u32>,
    /// The server's version.
    pub version: String,
    /// What it does.
    pub standing: Standing,
    /// Since when, milliseconds since 1970.
    pub since_ms: u64,
    /// The newest term it has seen.
    pub term: Term,
    /// It is primary of this term and its deadline lies ahead.
    pub primary_of: Option<Term>,
    /// Clients may write there now.
    pub open: bool,
    /// Commits block for want of replicas.
    pub blocked: bool,
    /// Commits are acknowledged with fewer replicas than wanted.
    pub degraded: bool,
    /// Replicas whose confirmation counts, by the setting in force.
    pub sync: BTreeSet<NodeId>,
    /// The record as it knows it, in words: state and holder.
    pub claim: Option<(ClaimState, Option<NodeId>)>,
    /// The last probe.
    pub observed: ServerObservation,
    /// Why it stays out altogether.
    pub problem: Option<String>,
    /// Who leads the embedded store, as it knows.
    pub store_leader: Option<NodeId>,
    /// Its wall clock when it answered, milliseconds since 1970; 0: it did not say.
    #[serde(default)]
    pub wall_ms: u64,
    /// How far its wall clock is off the asking agent's, beyond the round trip. Worked out by the one that asks.
    #[serde(skip)]
    pub clock_off_ms: i64,
    /// The generation of the specification that it goes by.
    #[serde(default)]
    pub generation: u64,
    /// How its file relates to that.
    #[serde(default)]
    pub file: Option<FileState>,
    /// Server parameters that wait for a restart.
    #[serde(default)]
    pub pending_restart: Vec<String>,
    /// The cluster is paused, as it knows.
    #[serde(default)]
    pub paused: Option<Paused>,
    /// Its part of the store.
    #[serde(default)]
    pub store: Option<StoreStanding>,
    /// Until when its certificates are valid.
    #[serde(default)]
    pub certificates: Vec<CertificateEnd>,
    /// Proxies that are connected to it, and until when what they showed is valid.
    #[serde(default)]
    pub proxies: Vec<CertificateEnd>,
    /// Why changed certificate files of its agent are not taken up, if so.
    #[serde(default)]
    pub not_taken: Option<String>,
    /// Why its proxy does not stay up, if so.
    #[serde(default)]
    pub proxy_down: Option<String>,
    /// Proxies that ask it for the route and say that somebody at their console holds all work back.
    #[serde(default)]
    pub proxies_paused: Vec<String>,
    /// Directories in which the data of before a restore in place are kept.
    #[serde(default)]
    pub kept: Vec<String>,
    /// How it stands with the virtual address, if there is one.
    #[serde(default)]
    pub address: Option<AddressStanding>,
}

/// What the parts of the agent that follow the specification and the store tell; empty until they do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Following {
    /// The generation that this node goes by.
    pub generation: u64,
    /// How its file relates to that.
    pub file: Option<FileState>,
    /// Server parameters that wait for a restart.
    pub pending_restart: Vec<String>,
    /// The cluster is paused.
    pub paused: Option<Paused>,
    /// This node's part of the store.
    pub store: Option<StoreStanding>,
}

/// What else an agent adds to its own status.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// The guard's process.
    pub guard_pid: Option<u32>,
    /// The server's.
    pub server_pid: Option<u32>,
    /// The server's version.
    pub version: String,
    /// The store's leader.
    pub store_leader: Option<NodeId>,
    /// What follows the specification and the store.
    pub following: Following,
    /// Until when this node's certificates are valid.
    pub certificates: Vec<CertificateEnd>,
    /// Proxies that are connected to it, and until when what they showed is valid.
    pub proxies: Vec<CertificateEnd>,
    /// Why changed certificate files are not taken up, if so.
    pub not_taken: Option<String>,
    /// Why this node's proxy does not stay up, if so.
    pub proxy_down: Option<String>,
    /// Proxies that ask it for the route and say that somebody at their console holds all work back.
    pub proxies_paused: Vec<String>,
    /// Directories in which the data of before a restore in place are kept.
    pub kept: Vec<String>,
    /// How it stands with the virtual address, if there is one.
    pub address: Option<AddressStanding>,
}

/// One node's own status.
#[must_use]
pub fn local(node: NodeId, snapshot: &Snapshot, observed: ServerObservation, extras: Extras) -> LocalStatus {
    let summary = &snapshot.summary;
    let record = summary.record.as_ref().map(|(_, record)| record);
    LocalStatus {
        node,
        agent_pid: std::process::id(),
        guard_pid: extras.guard_pid,
        server_pid: extras.server_pid,
        version: extras.version,
        standing: Standing::of(summary, &observed),
        since_ms: snapshot.since_ms,
        term: record.map_or(summary.promise, |record| record.term),
        primary_of: summary.primary_of,
        open: summary.open && summary.route == RouteState::Open,
        blocked: summary.blocked,
        degraded: summary.degraded,
        sync: summary.setting.as_ref().map(|setting| setting.copies.keys().cloned().collect()).unwrap_or_default(),
        claim: record.map(|record| (record.state, record.holder.clone())),
        observed,
        problem: summary.problem.clone(),
        store_leader: extras.store_leader,
        wall_ms: wall_now_ms(),
        clock_off_ms: 0,
        generation: extras.following.generation,
        file: extras.following.file,
        pending_restart: extras.following.pending_restart,
        paused: extras.following.paused,
        store: extras.following.store,
        certificates: extras.certificates,
        proxies: extras.proxies,
        not_taken: extras.not_taken,
        proxy_down: extras.proxy_down,
        proxies_paused: extras.proxies_paused,
        kept: extras.kept,
        address: extras.address,
    }
}

/// Reasons of one node, for `why`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReasons {
    /// Who decided.
    pub node: NodeId,
    /// Its reasons, oldest first.
    pub reasons: Vec<DatedReason>,
}

/// A reason with the wall time at which it came.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DatedReason {
    /// Milliseconds since 1970, by that host's clock.
    pub wall_ms: u64,
    /// The reason.
    #[serde(flatten)]
    pub reason: Reason,
}

/// Milliseconds since 1970 as RFC 3339 in UTC.
#[must_use]
pub fn rfc3339(wall_ms: u64) -> String {
    let seconds = i64::try_from(wall_ms / 1000).unwrap_or(0);
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from days since 1970 (H. Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest % 3600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", wall_ms % 1000)
}

/// Merges the answers of all nodes (those missing did not answer) into one status.
#[must_use]
pub fn merge(spec: &Spec, api: String, answers: &BTreeMap<NodeId, LocalStatus>, beside: &Beside) -> Status {
    let term = answers.values().map(|answer| answer.term).max().unwrap_or_default();
    // One whose term was overtaken can not renew any more: it must not be shown, nor verified, as the primary of the newer term.
    let primary = answers.values().find(|answer| answer.open && answer.primary_of.is_some_and(|of| of >= term));
    let version =
        answers.values().map(|answer| answer.version.clone()).find(|text| !text.is_empty()).unwrap_or_default();
    let address = address(spec, answers);
    // Where the holder's proxy does not run, another node's own address leads in.
    let leads_in = |answer: &LocalStatus| answer.proxy_down.is_none() && has_address(answer);
    let held = spec.proxy.address.filter(|_| answers.values().any(leads_in));
    let own = || spec.proxy.host.clone().or_else(|| entry(spec, answers).map(|node| node.host.clone()));
    let write_host = held.map(|held| held.address.to_string()).or_else(own).unwrap_or_default();
    Status {
        cluster: ClusterStatus {
            name: spec.cluster.name.to_string(),
            engine: "postgres".to_owned(),
            version,
            term,
            primary: primary.map(|answer| answer.node.clone()),
            durability: durability_name(spec.cluster.durability).to_owned(),
            writable: primary.is_some_and(|answer| !answer.blocked),
        },
        routes: RouteAddresses {
            write: format!("{write_host}:{}", spec.proxy.write_port),
            read: format!("{write_host}:{}", spec.proxy.read_port),
            address,
        },
        api,
        nodes: spec.nodes.iter().map(|node| node_status(spec, node, answers.get(&node.name), primary)).collect(),
        problems: problems::find(spec, answers, primary, beside),
    }
}

fn has_address(answer: &LocalStatus) -> bool {
    answer.address.as_ref().is_some_and(|address| address.held)
}

/// Who has the virtual address.
fn address(spec: &Spec, answers: &BTreeMap<NodeId, LocalStatus>) -> Option<AddressStatus> {
    let held_by = answers.values().filter(|answer| has_address(answer)).map(|answer| answer.node.clone()).collect();
    spec.proxy.address.map(|address| AddressStatus { address: address.to_string(), held_by })
}

/// The node whose proxy is named: the first that answers, whose proxy runs.
fn entry<'a>(spec: &'a Spec, answers: &BTreeMap<NodeId, LocalStatus>) -> Option<&'a Node> {
    let works = |node: &&Node| answers.get(&node.name).is_some_and(|answer| answer.proxy_down.is_none());
    spec.nodes.iter().find(works).or(spec.nodes.first())
}

fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Strict => "strict",
        Durability::Available => "available",
        Durability::Async => "async",
    }
}

fn node_status(spec: &Spec, node: &Node, answer: Option<&LocalStatus>, primary: Option<&LocalStatus>) -> NodeStatus {
    let data_dir = spec.node_dir(node).join("data").display().to_string();
    let data_dir = if node.witness { String::new() } else { data_dir };
    let mut status = NodeStatus {
        name: node.name.clone(),
        host: node.host.clone(),
        role: "none".to_owned(),
        state: "unreachable".to_owned(),
        healthy: false,
        sync: false,
        timeline: None,
        position: None,
        lag_bytes: None,
        agent_pid: None,
        guard_pid: None,
        server_pid: None,
        data_dir,
        since: None,
    };
    let Some(answer) = answer else { return status };
    let sender = primary.and_then(|primary| primary.observed.walsenders.iter().find(|sender| sender.node == node.name));
    status.role.clone_from(&answer.standing.role);
    status.state.clone_from(&answer.standing.state);
    status.healthy = answer.standing.healthy();
    status.sync = primary.is_some_and(|primary| primary.sync.contains(&node.name))
        && sender.is_some_and(|sender| sender.streaming);
    status.timeline = answer.observed.timeline;
    status.position = answer.observed.end;
    status.lag_bytes = match (primary.and_then(|primary| primary.observed.end), sender) {
        _ if answer.primary_of.is_some() => Some(0),
        (Some(end), Some(sender)) => Some(end.0.saturating_sub(sender.flush.0)),
        _ => None,
    };
    status.agent_pid = Some(answer.agent_pid);
    status.guard_pid = answer.guard_pid;
    status.server_pid = answer.server_pid;
    status.since = Some(rfc3339(answer.since_ms));
    status
}

#[cfg(test)]
#[path = "status_tests.rs"]
pub(crate) mod tests;
