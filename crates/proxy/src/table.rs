//! The table: what the agents said, merged into where connections may go and which may stay. Pure: time is given.
//!
//! Rules. (1) The epoch never falls; a report of a lower one is nothing. (2) An epoch has one leader: the first whose *own*
//! agent said `Open` or `Draining`. (3) Its word holds until `sent + valid_ms`; then nothing is known and nobody may stay.
//! (4) A higher epoch, whoever tells it, ends the older leader at once. (5) Replicas are those that the leader lists.
//! Absent: sockets, clocks, choice between replicas.

use crate::feed::TimedReport;
use mainstay_model::route::RouteMember;
use mainstay_model::{Moment, NodeId, Route, RouteState, Span, Term};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

/// Nodes that the table remembers, at most.
pub const NODES_MAX: usize = 64;
/// A validity longer than this is taken as this.
pub const VALID_MAX: Span = Span::seconds(600);

/// A server in its role of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The epoch of the leader that it is, or follows.
    pub epoch: Term,
    /// The node.
    pub node: NodeId,
    /// Its server's address.
    pub address: SocketAddr,
}

/// Why new connections to the primary are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// They are not.
    No,
    /// No agent said anything yet.
    Silence,
    /// The newest epoch has no open primary.
    NoPrimary,
    /// The primary is about to change.
    Draining,
    /// The primary's agent closed it.
    Closed,
    /// The primary's last word has run out: its claim has ended, or this proxy does not hear it any more. The two look the same from here.
    Stale,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Held::No => "the primary's server does not accept connections",
            Held::Silence => "no agent has told the route yet",
            Held::NoPrimary => "the cluster has no primary now",
            Held::Draining => "the primary is being changed",
            Held::Closed => "the primary is closed",
            Held::Stale => {
                "the primary's right to serve has run out: it could not renew its claim, or the proxy has lost touch with its agent"
            }
        })
    }
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    /// It counts.
    Taken,
    /// It is of a lower epoch, or older than what the same agent said last.
    Older,
    /// It claims an epoch that has another leader. Refused; somebody must look at it.
    Conflict,
    /// An agent claims the route for another node, or there are too many nodes. Refused.
    Refused,
}

/// Where connections may go and stay, until the next change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The highest epoch heard of.
    pub epoch: Term,
    /// New connections to the primary go here.
    pub write: Option<Target>,
    /// Established connections to the primary may stay only here.
    pub keep: Option<Target>,
    /// Why `write` is empty.
    pub held: Held,
    /// New read connections go to one of these.
    pub reads: Vec<Target>,
    /// Established read connections to replicas may stay only here.
    pub keep_reads: BTreeMap<NodeId, SocketAddr>,
}

#[derive(Clone, Debug)]
struct Leader {
    target: Target,
    state: RouteState,
    until: Moment,
}

#[derive(Clone, Debug)]
struct Replica {
    address: SocketAddr,
    lag_bytes: Option<u64>,
    /// When the leader stopped listing it.
    left: Option<Moment>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct RouteTable {
    max_lag_bytes: u64,
    read_grace: Span,
    epoch: Term,
    leader: Option<Leader>,
    heard: BTreeMap<NodeId, Moment>,
    replicas: BTreeMap<NodeId, Replica>,
    /// Until when the last leader's word on replicas holds.
    vouched: Moment,
}

impl RouteTable {
    /// Knows nothing yet: everything is held.
    #[must_use]
    pub fn new(max_lag_bytes: u64, read_grace: Span) -> Self {
        Self {
            max_lag_bytes,
            read_grace,
            epoch: Term(0),
            leader: None,
            heard: BTreeMap::new(),
            replicas: BTreeMap::new(),
            vouched: Moment(0),
        }
    }

    /// A replica gets new readers while it is at most so far behind.
    pub fn set_max_lag(&mut self, bytes: u64) {
        self.max_lag_bytes = bytes;
    }

    /// Merges a report that was heard `now`.
    pub fn hear(&mut self, timed: TimedReport, now: Moment) -> Hearing {
        let TimedReport { report, sent } = timed;
        let sent = sent.min(now);
        match self.heard.get(&report.from) {
            Some(last) if *last > sent => return Hearing::Older,
            None if self.heard.len() >= NODES_MAX => return Hearing::Refused,
            _ => self.heard.insert(report.from.clone(), sent),
        };
        let stale = self.leader.is_some() && mainstay_ports::sabotage::on("stale-route");
        if report.route.epoch < self.epoch || stale && report.route.epoch > self.epoch {
            return Hearing::Older;
        }
        self.raise(report.route.epoch, now);
        if report.route.state == RouteState::Closed {
            self.close(&report.from);
            return Hearing::Taken;
        }
        self.claim(&report.from, report.route, sent, now)
    }

    /// A higher epoch ends the leader of the older one.
    fn raise(&mut self, epoch: Term, now: Moment) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.leader = None;
            self.vouched = self.vouched.min(now);
        }
    }

    /// Only new connections are held: those established are safe until the end of what was promised before.
    fn close(&mut self, from: &NodeId) {
        if let Some(leader) = self.leader.as_mut().filter(|leader| leader.target.node == *from) {
            leader.state = RouteState::Closed;
        }
    }

    fn claim(&mut self, from: &NodeId, route: Route, sent: Moment, now: Moment) -> Hearing {
        let Some(member) = route.leader.filter(|member| member.node == *from) else { return Hearing::Refused };
        if self.leader.as_ref().is_some_and(|leader| leader.target.node != *from) {
            return Hearing::Conflict;
        }
        let until = sent + Span(route.valid_ms).min(VALID_MAX);
        let target = Target { epoch: route.epoch, node: member.node, address: member.address };
        self.leader = Some(Leader { target, state: route.state, until });
        if until > now {
            self.list(from, route.replicas, now);
            self.vouched = until;
        }
        Hearing::Taken
    }

    /// Takes over the leader's list of replicas.
    fn list(&mut self, leader: &NodeId, listed: Vec<RouteMember>, now: Moment) {
        for replica in self.replicas.values_mut() {
            replica.left = replica.left.or(Some(now));
        }
        for RouteMember { node, address, lag_bytes } in listed.into_iter().take(NODES_MAX) {
            let room = self.replicas.len() < 2 * NODES_MAX || self.replicas.contains_key(&node);
            if node != *leader && room {
                self.replicas.insert(node, Replica { address, lag_bytes, left: None });
            }
        }
        let grace = self.read_grace;
        self.replicas.retain(|node, replica| node != leader && replica.left.is_none_or(|left| now < left + grace));
    }

    /// What holds at this moment.
    #[must_use]
    pub fn view(&self, now: Moment) -> View {
        let current = self.leader.as_ref().filter(|leader| now < leader.until);
        let keep = current.map(|leader| leader.target.clone());
        let write = current.filter(|leader| leader.state == RouteState::Open).map(|leader| leader.target.clone());
        let held = match (&self.leader, current) {
            (None, _) if self.heard.is_empty() => Held::Silence,
            (None, _) => Held::NoPrimary,
            (Some(_), None) => Held::Stale,
            (_, Some(leader)) => match leader.state {
                RouteState::Open => Held::No,
                RouteState::Draining => Held::Draining,
                RouteState::Closed => Held::Closed,
            },
        };
        View { epoch: self.epoch, write, keep, held, reads: self.reads(now), keep_reads: self.keep_reads(now) }
    }

    fn reads(&self, now: Moment) -> Vec<Target> {
        if now >= self.vouched + self.read_grace {
            return Vec::new();
        }
        let fit = |replica: &Replica| {
            replica.left.is_none() && replica.lag_bytes.is_some_and(|lag_bytes| lag_bytes <= self.max_lag_bytes)
        };
        let fit = self.replicas.iter().filter(|(_, replica)| fit(replica));
        fit.map(|(node, replica)| Target { epoch: self.epoch, node: node.clone(), address: replica.address }).collect()
    }

    fn keep_reads(&self, now: Moment) -> BTreeMap<NodeId, SocketAddr> {
        let stay = |replica: &Replica| replica.left.is_none_or(|left| now < left + self.read_grace);
        let staying = self.replicas.iter().filter(|(_, replica)| stay(replica));
        staying.map(|(node, replica)| (node.clone(), replica.address)).collect()
    }

    /// Until when established connections to the primary are safe, as far as is known; 0 = they are not.
    #[must_use]
    pub fn until(&self) -> Moment {
        self.leader.as_ref().map_or(Moment(0), |leader| leader.until)
    }

    /// The next moment at which time alone changes the view.
    #[must_use]
    pub fn next_change(&self, now: Moment) -> Option<Moment> {
        let lefts = self.replicas.values().filter_map(|replica| replica.left).map(|left| left + self.read_grace);
        lefts.chain([self.until(), self.vouched + self.read_grace]).filter(|moment| *moment > now).min()
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
