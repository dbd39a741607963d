//! What this agent tells proxies: where writes go while its own server is the open primary, and which replicas stream from it.

use mainstay_model::route::RouteMember;
use mainstay_model::{Moment, NodeId, Route, RouteState, ServerObservation, Term};
use mainstay_ports::route_board::RouteBoard;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Lag is told in steps of this many bytes, so that a replica that keeps up does not change the route all the time.
const LAG_STEP: u64 = 1024 * 1024;

/// The route this agent speaks for. Clones share it.
#[derive(Clone)]
pub struct Routes {
    me: NodeId,
    servers: Arc<BTreeMap<NodeId, SocketAddr>>,
    board: Arc<RouteBoard>,
    said: Arc<Mutex<Said>>,
}

#[derive(Default)]
struct Said {
    term: Term,
    state: RouteState,
    until: Moment,
    replicas: Vec<RouteMember>,
}

impl Routes {
    /// Nothing open yet. `servers`: where each node's database server listens.
    #[must_use]
    pub fn new(me: NodeId, servers: BTreeMap<NodeId, SocketAddr>, board: Arc<RouteBoard>) -> Self {
        Self { me, servers: Arc::new(servers), board, said: Arc::default() }
    }

    /// The decision's word: may clients write here, for which term, until when.
    pub fn say(&self, term: Term, state: RouteState, until: Moment) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if state == RouteState::Closed {
            said.replicas.clear();
        }
        (said.term, said.state, said.until) = (term, state, until);
        self.publish(&said);
    }

    /// The primary's replicas as a probe saw them.
    pub fn observed(&self, observation: &ServerObservation) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.state == RouteState::Closed {
            return;
        }
        let replicas: Vec<RouteMember> = observation
            .walsenders
            .iter()
            .filter(|sender| sender.streaming)
            .filter_map(|sender| {
                let lag = observation.end.map(|end| end.0.saturating_sub(sender.replay.0) / LAG_STEP * LAG_STEP);
                self.member(&sender.node, lag)
            })
            .collect();
        if replicas != said.replicas {
            said.replicas = replicas;
            self.publish(&said);
        }
    }

    /// May clients write here now, by the route and by the deadline?
    #[must_use]
    pub fn open(&self, now: Moment) -> bool {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.state == RouteState::Open && now < said.until
    }

    fn member(&self, node: &NodeId, lag_bytes: Option<u64>) -> Option<RouteMember> {
        let address = *self.servers.get(node)?;
        Some(RouteMember { node: node.clone(), address, lag_bytes })
    }

    fn publish(&self, said: &Said) {
        let open = said.state != RouteState::Closed;
        let route = Route {
            epoch: said.term,
            leader: if open { self.member(&self.me, Some(0)) } else { None },
            replicas: said.replicas.clone(),
            state: said.state,
            valid_ms: 0,
        };
        self.board.publish(route, said.until);
    }
}
