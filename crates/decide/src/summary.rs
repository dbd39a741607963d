//! What the machine thinks now, for status pages and for people. Nothing decides from it.

use crate::candidate::Stage;
use crate::mind::Mind;
use crate::reign::Phase;
use mainstay_model::{
    ClaimState, CopyId, Durability, Moment, NodeId, Position, Presence, Reason, Record, Revision, RouteState,
    ServerState, Span, SyncSetting, Term, record::Upstream,
};
use std::collections::BTreeMap;

/// What this node is doing about its role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Reads the record first; acts on nothing.
    #[default]
    Starting,
    /// Votes and holds no data.
    Witness,
    /// Makes the cluster's first copy.
    Founding,
    /// Its server is primary, by a successful write of its own.
    Primary,
    /// Collects recruits.
    Candidate,
    /// Claimed; its server is being promoted or waits for confirmations.
    Promoting,
    /// Streams from a primary, or is getting there.
    Replica,
    /// Runs without upstream, or not at all.
    Detached,
}

/// One peer as last heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSummary {
    /// Its last presence.
    pub presence: Option<Presence>,
    /// How long ago it was heard; `None` = never.
    pub age: Option<Span>,
    /// Is its connection up?
    pub link: bool,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// What this node is doing.
    pub role: Role,
    /// Its promise.
    pub promise: Term,
    /// Its copy; `None` = none, or not whole.
    pub copy: Option<CopyId>,
    /// Where its standby streams from.
    pub upstream: Option<Upstream>,
    /// The newest record it has seen.
    pub record: Option<(Revision, Record)>,
    /// Its own successful write of this life says it is primary of this term, and the deadline lies ahead.
    pub primary_of: Option<Term>,
    /// The guard's deadline.
    pub deadline: Option<Moment>,
    /// What clients may do here.
    pub route: RouteState,
    /// Clients may enter.
    pub open: bool,
    /// They have been put out for a restore in place, and none is left.
    pub shut: bool,
    /// The server, as last observed.
    pub server: ServerState,
    /// How far its log reached then.
    pub position: Option<Position>,
    /// The order that runs (its kind), and since when.
    pub order: Option<(&'static str, Moment)>,
    /// The synchronous setting in force, if it is known.
    pub setting: Option<SyncSetting>,
    /// Every walsender confirmed that setting.
    pub setting_confirmed: bool,
    /// Commits are acknowledged with fewer replicas than wanted.
    pub degraded: bool,
    /// Commits block: strict, and too few members confirm.
    pub blocked: bool,
    /// Why this node stays out altogether (wrong data …).
    pub problem: Option<String>,
    /// Peers, by name.
    pub peers: BTreeMap<NodeId, PeerSummary>,
    /// The last reasons, oldest first.
    pub reasons: Vec<Reason>,
}

impl Summary {
    /// The term of which this node is the primary now, open to clients.
    #[must_use]
    pub fn reigns(&self) -> Option<Term> {
        self.primary_of.filter(|_| self.open)
    }
}

impl Mind {
    /// What the machine thinks now.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let reign = self.reign.as_ref();
        let serving = reign.filter(|reign| reign.phase == Phase::Serving);
        let setting = reign.and_then(|reign| reign.settings.last().cloned());
        let streams =
            |node: &NodeId, copy: &CopyId| serving.is_some_and(|reign| reign.streams_now.get(node) == Some(copy));
        let confirming = setting
            .as_ref()
            .map_or(0, |setting| setting.copies.iter().filter(|(node, copy)| streams(node, copy)).count());
        let need = setting.as_ref().map_or(0, |setting| setting.need);
        Summary {
            role: self.role(),
            promise: self.durable.promise,
            copy: self.durable.copy,
            upstream: self.durable.upstream.clone(),
            record: self.view.newest.clone(),
            primary_of: self.primary_of(),
            deadline: reign.and_then(|reign| reign.deadline),
            route: self.route.map_or(RouteState::Closed, |(_, state, _)| state),
            open: reign.is_some_and(|reign| reign.opened),
            shut: reign.is_some_and(|reign| reign.holding() && reign.shut),
            server: self.server.state.unwrap_or_default(),
            position: self.position_hint(),
            order: self.orders.kind(),
            setting_confirmed: reign.is_some_and(|reign| reign.confirmed.is_some()),
            degraded: serving.is_some() && need < self.wanted_need() && self.config.durability != Durability::Async,
            blocked: serving.is_some() && confirming < need as usize,
            setting,
            problem: self.problem.clone(),
            peers: self.peer_summaries(),
            reasons: self.explain.recent.iter().cloned().collect(),
        }
    }

    fn peer_summaries(&self) -> BTreeMap<NodeId, PeerSummary> {
        let summarize = |peer: &crate::peers::Peer| PeerSummary {
            presence: peer.presence.clone(),
            age: peer.heard.map(|heard| self.now.since(heard)),
            link: peer.link != Some(false) && peer.heard.is_some(),
        };
        self.peers.iter().map(|(node, peer)| (node.clone(), summarize(peer))).collect()
    }

    fn role(&self) -> Role {
        if !self.has_data_role() {
            return Role::Witness;
        }
        if self.lost || (self.server.state.is_none() && self.reign.is_none()) {
            return Role::Starting;
        }
        if let Some(reign) = &self.reign {
            return match reign.phase {
                Phase::Founding | Phase::Founded => Role::Founding,
                Phase::Serving if reign.opened => Role::Primary,
                Phase::Serving | Phase::Promoting | Phase::Restarting => Role::Promoting,
                Phase::Stopping => Role::Primary,
                Phase::Adopting => Role::Starting,
                Phase::Crashed => Role::Detached,
            };
        }
        match &self.candidacy {
            Some(candidacy) if candidacy.stage != Stage::Raising => Role::Candidate,
            _ if self.durable.upstream.is_some() && self.server.is(ServerState::Standby) => Role::Replica,
            _ => Role::Detached,
        }
    }

    /// How often the server should be probed now: closely while something waits for what a probe shows.
    #[must_use]
    pub fn probe_interval(&self) -> Span {
        let record = self.record();
        let reign = self.reign.as_ref();
        let waits = reign.is_some_and(|reign| {
            reign.phase == Phase::Promoting
                || reign.phase == Phase::Adopting
                || (reign.phase == Phase::Serving && (!reign.opened || reign.draining()))
        });
        let catching =
            self.candidacy.as_ref().is_some_and(|candidacy| matches!(candidacy.stage, Stage::Catching { .. }));
        let unknown = self.server.state.is_none_or(|state| state == ServerState::Starting);
        if waits || catching || unknown {
            return if self.waits_long() { Span(50) } else { Span(5) };
        }
        let settling = reign.is_some_and(|reign| self.unsettled(reign))
            || record.is_some_and(|record| record.state != ClaimState::Held);
        if settling { Span(50) } else { Span(250) }
    }

    /// Waiting for more than two seconds: no need to hurry any more.
    fn waits_long(&self) -> bool {
        let since = self.reign.as_ref().map_or(self.born.unwrap_or(self.now), |reign| reign.since);
        self.candidacy.is_none() && self.now.since(since).0 > 2000
    }

    /// The members or the setting are not yet what is aimed at.
    fn unsettled(&self, reign: &crate::reign::Reign) -> bool {
        let others = self.config.data_nodes.len().saturating_sub(1);
        reign.confirmed.is_none()
            || reign.streams_now.len() < others
            || self.record().is_some_and(|record| record.members.len() <= others)
    }
}
