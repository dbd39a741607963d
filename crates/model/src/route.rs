//! Where clients are to go now.

use crate::{NodeId, Term};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// May clients write, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteState {
    /// Work passes.
    Open,
    /// A planned change is near: new work is held, open transactions finish.
    Draining,
    /// Nobody may write.
    #[default]
    Closed,
}

/// A server that clients may be sent to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteMember {
    /// The node.
    pub node: NodeId,
    /// Its server's address.
    pub address: SocketAddr,
    /// Bytes of log it has not replayed yet, against the primary's end; `None` = unknown.
    pub lag_bytes: Option<u64>,
}

/// What one agent says about the route. Only the primary's own agent says `Open` or `Draining`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The term this holds for. A proxy never goes back to a lower one.
    pub epoch: Term,
    /// Where writes go; `None` unless the state is open or draining.
    pub leader: Option<RouteMember>,
    /// Replicas that stream from that leader now.
    pub replicas: Vec<RouteMember>,
    /// May clients write.
    pub state: RouteState,
    /// For how many milliseconds after it was said this holds, at most: what is left of the lease.
    pub valid_ms: u64,
}
