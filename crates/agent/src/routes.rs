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
    servers: Arc<Mutex<BTreeMap<NodeId, SocketAddr>>>,
    board: Arc<RouteBoard>,
    said: Arc<Mutex<Said>>,
}

/// This node's server is the primary that clients are led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serving {
    /// New work may come; else a planned change is near.
    pub open: bool,
    /// No longer than this.
    pub until: Moment,
}

#[derive(Default)]
struct Said {
    term: Term,
    state: RouteState,
    until: Moment,
    replicas: Vec<RouteMember>,
    /// How often the route was opened.
    openings: u64,
}

impl Routes {
    /// Nothing open yet. `servers`: where each node's database server listens.
    #[must_use]
    pub fn new(me: NodeId, servers: BTreeMap<NodeId, SocketAddr>, board: Arc<RouteBoard>) -> Self {
        Self { me, servers: Arc::new(Mutex::new(servers)), board, said: Arc::default() }
    }

    /// The nodes' servers listen here from now on. Replicas are named anew by the next probe.
    pub fn set_servers(&self, servers: BTreeMap<NodeId, SocketAddr>) {
        *self.servers.lock().unwrap_or_else(PoisonError::into_inner) = servers;
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.replicas.clear();
        self.publish(&said);
    }

    /// The board that proxies read.
    #[must_use]
    pub fn board(&self) -> Arc<RouteBoard> {
        Arc::clone(&self.board)
    }

    /// The decision's word: may clients write here, for which term, until when. True: a drain begins.
    pub fn say(&self, term: Term, state: RouteState, until: Moment) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if state == RouteState::Closed {
            said.replicas.clear();
        }
        let drains = state == RouteState::Draining && said.state != RouteState::Draining;
        said.openings += u64::from(said.state == RouteState::Closed && state != RouteState::Closed);
        (said.term, said.state, said.until) = (term, state, until);
        self.publish(&said);
        drains
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

    /// Until when this node's server is the primary that clients are led to; `None`: it is not.
    #[must_use]
    pub fn serving(&self, now: Moment) -> Option<Serving> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let open = said.state == RouteState::Open;
        (said.state != RouteState::Closed && now < said.until).then_some(Serving { open, until: said.until })
    }

    /// Which opening of the route this is, while this node's server is the primary that clients are led to.
    #[must_use]
    pub fn opening(&self, now: Moment) -> Option<u64> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        (said.state != RouteState::Closed && now < said.until).then_some(said.openings)
    }

    /// Where this node's own server listens.
    #[must_use]
    pub fn own_server(&self) -> Option<SocketAddr> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).get(&self.me).copied()
    }

    /// May clients write here now, by the route and by the deadline?
    #[must_use]
    pub fn open(&self, now: Moment) -> bool {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.state == RouteState::Open && now < said.until
    }

    fn member(&self, node: &NodeId, lag_bytes: Option<u64>) -> Option<RouteMember> {
        let address = *self.servers.lock().unwrap_or_else(PoisonError::into_inner).get(node)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::{CopyId, Lsn, Span, Walsender};
    use mainstay_ports::clock::boot_now;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn routes() -> (Routes, Arc<RouteBoard>) {
        let servers =
            [("db1", 1), ("db2", 2)].map(|(name, port)| (node(name), SocketAddr::from(([127, 0, 0, 1], port))));
        let board = Arc::new(RouteBoard::new(1 << 40));
        (Routes::new(node("db1"), servers.into(), Arc::clone(&board)), board)
    }

    fn primary_with_replica(end: u64, replay: u64, streaming: bool) -> ServerObservation {
        let copy = CopyId::new(7).unwrap();
        let (flush, replay) = (Lsn(end), Lsn(replay));
        let walsenders = vec![Walsender { node: node("db2"), copy, flush, replay, streaming }];
        ServerObservation { end: Some(Lsn(end)), walsenders, ..ServerObservation::default() }
    }

    #[test]
    fn only_an_open_route_with_a_deadline_ahead_is_open() {
        let (routes, board) = routes();
        let now = boot_now();
        assert!(!routes.open(now));
        routes.say(Term(3), RouteState::Open, now + Span(1000));
        assert!(routes.open(now));
        assert!(!routes.open(now + Span(1000)), "the deadline itself is too late");
        assert_eq!(routes.serving(now), Some(Serving { open: true, until: now + Span(1000) }));
        assert_eq!(routes.serving(now + Span(1000)), None);
        routes.say(Term(3), RouteState::Draining, now + Span(1000));
        assert!(routes.serving(now).is_some_and(|serving| !serving.open), "clients stay in a drain");
        routes.say(Term(3), RouteState::Open, now + Span(1000));
        assert_eq!(board.now().route.leader.map(|leader| leader.node), Some(node("db1")));
        routes.say(Term(3), RouteState::Closed, now + Span(1000));
        assert!(!routes.open(now));
        assert_eq!(board.now().route.leader, None);
    }

    #[test]
    fn replicas_that_stream_are_named_and_small_lag_changes_nothing() {
        let (routes, board) = routes();
        routes.say(Term(3), RouteState::Open, boot_now() + Span(5000));
        routes.observed(&primary_with_replica(10_000, 9_000, true));
        let version = board.now().version;
        assert_eq!(board.now().route.replicas.len(), 1);
        routes.observed(&primary_with_replica(20_000, 11_000, true));
        assert_eq!(board.now().version, version, "less than a step of lag is no news");
        routes.observed(&primary_with_replica(3 * LAG_STEP + 5, 5, true));
        assert_eq!(board.now().route.replicas[0].lag_bytes, Some(3 * LAG_STEP));
        routes.observed(&primary_with_replica(3 * LAG_STEP, 5, false));
        assert!(board.now().route.replicas.is_empty(), "one that does not stream is no address for reads");
    }

    #[test]
    fn what_a_closed_server_is_seen_to_do_is_not_told() {
        let (routes, board) = routes();
        routes.observed(&primary_with_replica(10_000, 9_000, true));
        assert!(board.now().route.replicas.is_empty());
    }
}
