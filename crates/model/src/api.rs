//! The bodies of the agents' API (`/v1/...`, JSON over mutual TLS). A contract with programs: fields are added, never renamed.
//!
//! | Call | Role | Body → answer |
//! |---|---|---|
//! | `GET /v1/status` `/v1/history` `/v1/why` | read | – |
//! | `GET /v1/spec` | read | – → [`SpecAnswer`] |
//! | `GET /v1/archive` | read | – → [`crate::vault::ArchiveAnswer`] |
//! | `POST /v1/archive` | operate | – → [`crate::vault::SegmentEnded`]: the primary ends its open segment of the log |
//! | `POST /v1/backup` | operate | [`crate::vault::BackupWish`] → [`crate::vault::BackupBegun`] |
//! | `GET /v1/drill` | read | – → [`crate::drill::DrillsAnswer`] |
//! | `POST /v1/drill` | admin | [`crate::drill::DrillWish`] → [`Accepted`] |
//! | `GET /v1/standing` | read | – → [`Standing`]; answers without the store too |
//! | `POST /v1/command` | operate; [`Command::Reinit`] and a failover that accepts loss: admin | [`CommandWish`] → [`Accepted`] |
//! | `POST /v1/pause` | operate | [`PauseWish`] → [`SpecAnswer`] |
//! | `POST /v1/runbook` | operate | [`RunbookWish`] → [`Accepted`] |
//! | `POST /v1/spec` | admin | [`SpecWish`] → [`SpecAnswer`] |
//! | `POST /v1/replace` | admin | [`ReplaceWish`] → [`Accepted`] |
//! | `POST /v1/recover` | admin | [`RecoverWish`] → [`Accepted`] |
//!
//! Errors: status 400 (asked wrongly), 403 (the certificate's role does not allow it), 409 (not now), 413 (too large), 503 (no store), each
//! with `{"error": "...", "hint": "..."}`.

use crate::command::Command;
use crate::spec::Spec;
use crate::stored_spec::{FileState, StoredSpec};
use crate::{CopyId, NodeId, Position, Record, Revision, ServerState, Term};
use serde::{Deserialize, Serialize};

/// A command to the node that is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandWish {
    /// What.
    pub command: Command,
    /// Who asks, as that person is called on their own machine. The certificate's name stands beside it in the audit.
    #[serde(default)]
    pub by: String,
}

/// The wish was taken up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The node that took it up.
    pub node: NodeId,
    /// The term it knew then.
    pub term: Term,
    /// What it will do, in words.
    pub text: String,
}

/// Switches automatic take-over, restart and rejoin off or on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PauseWish {
    /// Off (`true`) or on again.
    pub paused: bool,
    /// Who asks.
    #[serde(default)]
    pub by: String,
    /// Why.
    #[serde(default)]
    pub note: String,
}

/// A runbook was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunbookWish {
    /// From this generation; `None`: nobody keeps a copy any more.
    pub generation: Option<u64>,
    /// Who made it.
    #[serde(default)]
    pub by: String,
}

/// A new generation of the specification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecWish {
    /// The generation that was read: refused if there is a newer one.
    pub parent: u64,
    /// The whole new specification.
    pub spec: Spec,
    /// Who asks.
    #[serde(default)]
    pub by: String,
    /// What is changed, in words.
    #[serde(default)]
    pub change: String,
}

/// The specification in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpecAnswer {
    /// As the store keeps it.
    pub stored: StoredSpec,
    /// How this node's own file relates to it.
    pub file: FileState,
    /// Server parameters that wait for a restart of the node that answers.
    #[serde(default)]
    pub pending_restart: Vec<String>,
}

/// This node's host is a new one under the old name: its vote in the store is taken back and given anew, its copy counts as lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplaceWish {
    /// The node.
    pub node: NodeId,
    /// Who asks.
    #[serde(default)]
    pub by: String,
}

/// The store has lost its majority for ever: rebuild it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoverWish {
    /// From this node's data and its knowledge of the store. Another node that is asked gives its part of the old store up (it is moved aside)
    /// and joins the new one.
    pub from: NodeId,
    /// Something acknowledged may be missing in that node's copy, and the operator accepts it: the history says so.
    #[serde(default)]
    pub lossy: bool,
    /// The first term of the new incarnation: above every promise and every record that any reachable node knows.
    pub term: Term,
    /// Who asks.
    #[serde(default)]
    pub by: String,
}

/// What one node knows by itself, without asking the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Who.
    pub node: NodeId,
    /// Its promise.
    pub promise: Term,
    /// Its copy, if whole; `None` on a witness.
    pub copy: Option<CopyId>,
    /// How far its log reaches, as last observed.
    pub position: Option<Position>,
    /// What its server does.
    pub server: ServerState,
    /// The newest record it has seen.
    pub record: Option<(Revision, Record)>,
    /// Its part of the store.
    pub store: StoreStanding,
    /// The generation of the specification that it goes by.
    pub generation: u64,
    /// It is the primary, and clients have been put out for a restore in place.
    #[serde(default)]
    pub shut: bool,
    /// Its wall clock when it answered, milliseconds since 1970; 0: an older agent, which does not tell it.
    #[serde(default)]
    pub wall_ms: u64,
    /// The C library of its host (`glibc 2.36`), which decides how texts are sorted; `None`: not known.
    #[serde(default)]
    pub libc: Option<String>,
}

/// One node's view of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStanding {
    /// Which store: 0 is the one the cluster began with; another number was drawn by `recover`.
    pub group: u64,
    /// Who leads it, as far as this member knows; `None`: nobody, or it is not known.
    pub leader: Option<NodeId>,
    /// Voting members as this one knows them.
    pub voters: Vec<NodeId>,
    /// Members that do not vote yet.
    pub learners: Vec<NodeId>,
    /// It waits to be taken in: its directory is empty and a store exists elsewhere.
    pub joining: bool,
    /// Why it does not work any more, if so.
    pub failure: Option<String>,
    /// The etcd that is the store; `None`: the nodes themselves are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<crate::etcd::EtcdStanding>,
}
