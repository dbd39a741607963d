//! What an operator may ask of one node's decisions.

use crate::{CopyId, Lineage, NodeId, SystemId, Timeline};
use serde::{Deserialize, Serialize};

/// An operator's command to one node. It is decided at once: accepted (and then carried out, with events), or refused with the reason,
/// nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// To the open primary: hand the role to this node, or to the best replica.
    Switchover {
        /// The wanted next primary.
        to: Option<NodeId>,
    },
    /// To a replica: stand now, whatever is heard of the primary. Recruits are collected as always.
    Failover {
        /// When too few members answer, go on all the same with the best of those that do, once the last lease has run out. What the
        /// others alone hold is lost, reported and kept.
        accept_data_loss: bool,
    },
    /// To any node: stop the server in order and start it again. A primary restarts only with `in_place`; otherwise switch over first.
    Restart {
        /// Restart a primary too, as primary of the same term: clients wait meanwhile.
        in_place: bool,
    },
    /// To a node that is not primary: give its copy up and clone anew. The old data are moved aside.
    Reinit,
    /// To the open primary: keep clients out for so long, for a restore in place; asked again and again while that is prepared. 0: let them
    /// in again.
    Hold {
        /// Milliseconds, bounded.
        for_ms: u64,
    },
    /// To the node where a restored copy lies ready: make it the cluster's data. Only the node's own agent asks for this, which knows that it
    /// does.
    Restore(Box<Restoration>),
}

/// A restored copy that lies ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restoration {
    /// It.
    pub copy: CopyId,
    /// The database's identity, as the copy says.
    pub system: SystemId,
    /// The timeline that it ended its recovery on.
    pub timeline: Timeline,
    /// The path to it: the last entry is the moment.
    pub lineage: Lineage,
    /// Which moment, in words.
    pub what: String,
}
