//! What the machine thinks now, for status pages and for people. Nothing decides from it.

use mainstay_model::{
    CopyId, Moment, NodeId, Position, Presence, Reason, Record, Revision, RouteState, ServerState, Span, SyncSetting,
    Term, record::Upstream,
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
