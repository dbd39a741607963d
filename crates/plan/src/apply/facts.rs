//! What is wanted, and what the hosts and the cluster show.

use super::adopt::Adopt;
use mainstay_model::spec::Spec;
use mainstay_model::stored_spec::{FileState, StoredSpec};
use mainstay_model::{NodeId, SystemId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// What the file says.
    pub spec: &'a Spec,
    /// The file itself: hosts get it as it stands.
    pub text: &'a str,
    /// The hash of the program that hosts are to have.
    pub program: &'a str,
    /// The agent's unit.
    pub unit: &'a str,
    /// The fingerprint of the authority on this machine, if it is made.
    pub authority: Option<&'a str>,
    /// Seconds since 1970.
    pub now: i64,
    /// Missing packages may be installed.
    pub packages: bool,
    /// Nodes that are gone from the file may be taken out.
    pub remove: bool,
    /// An earlier generation may come back.
    pub back: bool,
}

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Each node of the file, and each that is in force and not in the file: what its host shows, or why nothing is known of it.
    pub hosts: BTreeMap<NodeId, Result<Host, Unseen>>,
    /// The specification in force, if agents told it.
    pub in_force: Option<StoredSpec>,
    /// How each agent that answers finds its file.
    pub files: BTreeMap<NodeId, FileState>,
    /// Nodes whose agent answers, and whose part of the store is a member or waits to be one.
    pub voters: Vec<NodeId>,
    /// The primary.
    pub primary: Option<NodeId>,
    /// Nodes with server parameters that wait for a restart.
    pub waiting: BTreeMap<NodeId, Vec<String>>,
}

impl Inventory {
    /// What a node's host shows.
    #[must_use]
    pub fn host(&self, node: &NodeId) -> Option<&Host> {
        self.hosts.get(node)?.as_ref().ok()
    }
}

/// Why nothing is known of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unseen {
    /// What went wrong.
    pub error: String,
    /// What to do about it.
    pub hint: String,
}

/// What one host shows of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The hash of the program that is installed.
    pub program: Option<String>,
    /// The cluster's file there.
    pub config: Option<String>,
    /// The name of the cluster that it describes; `None` if there is none or it can not be read.
    pub config_of: Option<String>,
    /// Which node the agent's settings name.
    pub named: Option<String>,
    /// Is there systemd?
    pub systemd: bool,
    /// The agent's unit there.
    pub unit: Option<String>,
    /// Does the agent come back when the host starts, as far as can be told?
    pub enabled: bool,
    /// Is the agent kept running by somebody?
    pub kept: bool,
    /// The agent, if it runs.
    pub agent: Option<Agent>,
    /// The node's certificates.
    pub papers: Papers,
    /// Has the node ever seen a specification in force: was it one of the cluster's?
    pub store: bool,
    /// It was taken out of the cluster.
    pub removed: bool,
    /// The major version of the server's programs; `None` if there are none, or for a witness.
    pub server: Option<u64>,
    /// What lies in the data directory: empty, or in words.
    pub data: Option<String>,
    /// The identity of the cluster's data, if this node has seen that there are any.
    #[serde(default)]
    pub identity: Option<SystemId>,
    /// The server that the file names for this node, if it names one.
    pub adopt: Option<Adopt>,
    /// Libraries that the file lets servers load and that are not there.
    pub libraries: Vec<String>,
    /// Free bytes where the node's data lie or will lie.
    pub free: Option<u64>,
    /// What a doctor says of the host.
    pub findings: Vec<Said>,
}

/// A running agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its process.
    pub pid: u32,
    /// It runs the program that is installed.
    pub current: bool,
    /// It was started from another place than where the program is installed: beginning anew does not bring it there.
    pub elsewhere: bool,
    /// It was started before its unit granted what an address that goes with the primary needs: beginning anew does not give it that.
    pub addressless: bool,
}

/// A node's certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Papers {
    /// There are none.
    #[default]
    None,
    /// There are some, and not all that are needed: an interrupted join.
    Some(String),
    /// All are there.
    Whole {
        /// The fingerprint of their authority.
        authority: String,
        /// For which node.
        node: String,
        /// Until when, seconds since 1970.
        until: i64,
        /// Under which names clients may reach the server; empty for a witness.
        names: Vec<String>,
    },
}

/// A doctor's finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Its name.
    pub check: String,
    /// It must be mended.
    pub problem: bool,
    /// What was found.
    pub found: String,
    /// What mends it.
    pub mend: Vec<String>,
}
