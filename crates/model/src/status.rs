//! What `status --json` shows. A contract with programs: fields are added, never renamed.

use crate::{Lsn, NodeId, Term, Timeline};
use serde::{Deserialize, Serialize};

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The cluster as a whole.
    pub cluster: ClusterStatus,
    /// Where clients connect, as `host:port`.
    pub routes: RouteAddresses,
    /// Base address of the API that answered.
    pub api: String,
    /// Every node of the spec.
    pub nodes: Vec<NodeStatus>,
    /// What is wrong now; empty when all is well.
    pub problems: Vec<Problem>,
}

/// The cluster as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// `postgres` …
    pub engine: String,
    /// The server's version, `15.18`; empty while unknown.
    pub version: String,
    /// The current term.
    pub term: Term,
    /// The open primary.
    pub primary: Option<NodeId>,
    /// `strict`, `available` or `async`.
    pub durability: String,
    /// A primary is open and has the confirmations that commits need.
    pub writable: bool,
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteAddresses {
    /// For writes, `host:port`.
    pub write: String,
    /// For reads.
    pub read: String,
    /// The address that goes with the primary, if there is to be one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<AddressStatus>,
}

/// The address that goes with the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressStatus {
    /// The address, `10.0.0.100/24`.
    pub address: String,
    /// The nodes whose hosts have it. One, when all is well.
    pub held_by: Vec<NodeId>,
}

/// What one node says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressStanding {
    /// The address, `10.0.0.100/24`.
    pub address: String,
    /// Its host has it.
    pub held: bool,
    /// On this interface.
    pub interface: Option<String>,
    /// Why it can not have it.
    pub problem: Option<String>,
    /// Its host has it by somebody else's hand.
    #[serde(default)]
    pub foreign: bool,
    /// It has it, and why it could not tell the network so.
    #[serde(default)]
    pub unannounced: Option<String>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: NodeId,
    /// Its host.
    pub host: String,
    /// `primary`, `replica`, `witness`, or `none` while it is neither.
    pub role: String,
    /// `running`, `streaming`, `starting`, `stopped`, `rewinding`, `cloning`, `unreachable` …
    pub state: String,
    /// It does what its role asks.
    pub healthy: bool,
    /// Its confirmation counts for commits.
    pub sync: bool,
    /// The timeline it runs on.
    pub timeline: Option<Timeline>,
    /// How far its log reaches.
    pub position: Option<Lsn>,
    /// Bytes behind the primary.
    pub lag_bytes: Option<u64>,
    /// Its agent.
    pub agent_pid: Option<u32>,
    /// Its guard.
    pub guard_pid: Option<u32>,
    /// Its database server.
    pub server_pid: Option<u32>,
    /// Where the data lie.
    pub data_dir: String,
    /// Since when it has this role and state, RFC 3339.
    pub since: Option<String>,
}

/// A condition, named by its evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable name: `node-unreachable`, `no-primary`, `replica-not-streaming`, `writes-blocked` … (all of them: `crates/agent/src/problems.rs`).
    pub name: String,
    /// `critical`, `warning` or `info`.
    pub severity: String,
    /// What was seen.
    pub evidence: String,
    /// What to do about it; empty when there is nothing to do.
    #[serde(default)]
    pub hint: String,
    /// Since when, RFC 3339.
    pub since: Option<String>,
}
