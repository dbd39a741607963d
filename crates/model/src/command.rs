//! What an operator may ask of one node's decisions.

use crate::NodeId;
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
}
