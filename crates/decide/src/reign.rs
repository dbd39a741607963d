//! Being primary: renewing, promoting, opening, standing down, and what a crash of the server leads to.

use crate::candidate::clip;
use crate::io::Output;
use crate::mind::Mind;
use crate::plant::Plant;
use crate::quorum;
use crate::switchover::Switch;
use crate::view::Intent;
use mainstay_model::record::RecoveryEnd;
use mainstay_model::{
    ClaimState, CopyId, Durability, Lsn, Moment, NodeId, Position, Record, RouteState, ServerState, Span, SyncSetting,
    Term,
};
use std::collections::BTreeMap;

const PROMOTE_MAX_MS: u64 = 15_000;
const RESTART_MAX_MS: u64 = 120_000;

/// What the holder of the term is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The server ran as primary when this process life began; not believed until a write of this life succeeded.
    Adopting,
    /// The first copy is being made.
    Founding,
    /// The first copy exists; the record is to say so.
    Founded,
    /// The server is being promoted.
    Promoting,
    /// The server runs as primary.
    Serving,
    /// The server died; orphans are killed, then it is handed over or started again.
    Crashed,
    /// The server is being started again in place.
    Restarting,
    /// The server is being stopped for a switchover.
    Stopping,
}

/// How the right to be primary came here, for the history.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    pub(crate) cause: String,
    pub(crate) from: Option<NodeId>,
    pub(crate) fork: Option<Position>,
    pub(crate) at_risk: Option<u64>,
}

/// A restart in place that an operator ordered.
#[derive(Clone, Debug)]
pub(crate) struct Restart {
    pub(crate) by: String,
    pub(crate) since: Moment,
}

/// One term as its holder.
#[derive(Clone, Debug)]
pub(crate) struct Reign {
    pub(crate) term: Term,
    pub(crate) phase: Phase,
    /// What clients may not see before enough members hold it.
    pub(crate) end: Option<RecoveryEnd>,
    pub(crate) deadline: Option<Moment>,
    pub(crate) renew_at: Moment,
    /// Settings that may be in force; the last one is the newest.
    pub(crate) settings: Vec<SyncSetting>,
    /// The log's end when the only setting in force was confirmed, or the end of a later crash recovery if that is further.
    pub(crate) confirmed: Option<Lsn>,
    /// What was in force before this life is not known until a setting of this life is confirmed.
    pub(crate) adopted: bool,
    pub(crate) setting_at: Moment,
    pub(crate) opened: bool,
    pub(crate) open_at: Moment,
    /// Since when the server runs in this phase.
    pub(crate) since: Moment,
    /// Replicas that streamed, with their copy and when that was seen last.
    pub(crate) streaming: BTreeMap<NodeId, (CopyId, Moment)>,
    /// What they had flushed, by the last observation.
    pub(crate) flushed: BTreeMap<NodeId, (CopyId, Lsn)>,
    /// Who streamed in the newest observation, and when that was.
    pub(crate) streams_now: quorum::Members,
    pub(crate) observed_at: Option<Moment>,
    /// Members as last told in events.
    pub(crate) told_members: Option<quorum::Members>,
    pub(crate) degraded: bool,
    pub(crate) switch: Option<Switch>,
    pub(crate) restart: Option<Restart>,
    /// Proxies that the drain under way waits for, once something is known of them.
    pub(crate) proxies: Option<Vec<String>>,
    /// Clients are kept out until then, for a restore in place that is being prepared.
    pub(crate) held: Option<Moment>,
    /// They have been put out; if not, when that is tried.
    pub(crate) shut: bool,
    pub(crate) shut_at: Moment,
    pub(crate) origin: Origin,
    /// Why the server died last.
    pub(crate) death: String,
    /// No hand-over by itself before this.
    pub(crate) hand_at: Moment,
    pub(crate) restarts: u32,
    pub(crate) restart_at: Moment,
    /// A renewal sent at this moment or later is fresh enough for a restart in place.
    pub(crate) fresh_from: Option<Moment>,
    pub(crate) fresh: bool,
    pub(crate) founding: Option<(CopyId, mainstay_model::SystemId)>,
}

impl Reign {
    pub(crate) fn new(now: Moment, term: Term, phase: Phase) -> Reign {
        Reign {
            term,
            phase,
            end: None,
            deadline: None,
            renew_at: now,
            settings: Vec::new(),
            confirmed: None,
            adopted: false,
            setting_at: now,
            opened: false,
            open_at: now,
            since: now,
            streaming: BTreeMap::new(),
            flushed: BTreeMap::new(),
            streams_now: BTreeMap::new(),
            observed_at: None,
            told_members: None,
            degraded: false,
            switch: None,
            restart: None,
            proxies: None,
            held: None,
            shut: false,
            shut_at: now,
            origin: Origin::default(),
            death: String::new(),
            hand_at: now,
            restarts: 0,
            restart_at: now,
            fresh_from: None,
            fresh: false,
            founding: None,
        }
    }

    pub(crate) fn promoting(now: Moment, term: Term, deadline: Moment, setting: SyncSetting, lease: Span) -> Reign {
        let mut reign = Reign::new(now, term, Phase::Promoting);
        reign.deadline = Some(deadline);
        reign.renew_at = now + Span(lease.0 / 6);
        reign.settings = vec![setting];
        reign
    }

    /// New work is held: a planned change is near.
    pub(crate) fn draining(&self) -> bool {
        self.switch.as_ref().is_some_and(Switch::holds) || self.restart.is_some()
    }

    /// An operator's change is under way, whether or not new work is held already.
    pub(crate) fn changing(&self) -> bool {
        self.switch.is_some() || self.restart.is_some()
    }

    /// Clients are kept out for a restore in place.
    pub(crate) fn holding(&self) -> bool {
        self.held.is_some()
    }
}

/// A term to be given back as soon as the server is known not to be primary.
#[derive(Clone, Debug)]
pub(crate) struct Leave {
    pub(crate) term: Term,
    pub(crate) wanted: Option<NodeId>,
    /// For the history.
    cause: String,
    /// Since when new work was held before the server was stopped, if it was.
    held: Option<Moment>,
    /// Only because the server does not come up: one that does comes first.
    idle: bool,
}

impl Mind {
    // ---- standing down -----------------------------------------------------------------------------------------------

    /// Ends this reign because another one has the right, or this one's has lapsed. Nothing is released.
    pub(crate) fn fence(&mut self, why: &str) {
        let Some(reign) = self.reign.take() else { return };
        self.tell("fenced", format!("standing down from term {}: {why}", reign.term));
        self.fenced = Some((reign.term, clip(why)));
        // Somebody's order, or a candidate from before the pause, took the role: this server comes back as a standby all the same.
        self.server.ordered |=
            self.durable.promise > reign.term || self.record().is_some_and(|record| record.term > reign.term);
        self.close_route(reign.term);
        self.server.forget_end();
        if !self.server.is(ServerState::Down) || self.orders.at_work() {
            self.order_kill();
        }
    }

    /// Ends this reign or candidacy and gives the term back.
    pub(crate) fn abdicate(&mut self, why: &str, wanted: Option<NodeId>) {
        self.abdicate_because(why, wanted, why);
    }

    /// The same; `cause` is what the history says.
    pub(crate) fn abdicate_because(&mut self, why: &str, wanted: Option<NodeId>, cause: &str) {
        // While paused nobody stands uninvited: whoever was to be primary tries again.
        let again = self.config.paused && self.may_ever_stand();
        let wanted = wanted.or_else(|| again.then(|| self.config.me.clone()));
        let cause = clip(cause);
        let term = self.record().map_or(self.durable.promise, |record| record.term);
        let text = wanted.as_ref().map_or_else(String::new, |node| format!(", in favour of {node}"));
        self.tell("released", format!("giving term {term} back{text}: {why}"));
        let held = self.reign.as_ref().and_then(|reign| reign.switch.as_ref()).and_then(Switch::held);
        if let Some(reign) = self.reign.take() {
            self.close_route(reign.term);
            if reign.phase != Phase::Stopping {
                self.server.forget_end();
            }
            if self.server.is(ServerState::Primary) || self.orders.at_work() {
                self.order_kill();
            }
            self.loss.get_or_insert(self.now);
        }
        self.candidacy = None;
        let pause = self.random.between(100, 400);
        self.pause_until = self.pause_until.max(self.now + Span(pause));
        if !self.planted(Plant::NeverRelease) {
            self.leave = Some(Leave { term, wanted, cause, held, idle: false });
        }
    }

    /// Gives the term back because the server does not come up. Whatever of it runs is ended first: it may be a primary's recovery from before this
    /// life, or a primary that nobody has seen yet.
    pub(crate) fn abdicate_idle(&mut self, why: &str, cause: &str) {
        self.abdicate_because(why, None, cause);
        if let Some(leave) = self.leave.as_mut() {
            leave.idle = true;
        }
        self.server.forget_end();
        self.order_kill();
    }

    /// Writes the release once the server is known not to be primary.
    pub(crate) fn plan_leave(&mut self) {
        let Some(leave) = self.leave.clone() else { return };
        let mine = self.record().is_some_and(|record| {
            record.term == leave.term
                && self.is_me(record.holder.as_ref())
                && matches!(record.state, ClaimState::Held | ClaimState::Electing)
        });
        if !mine && self.view.cas.is_none() {
            self.leave = None;
            return;
        }
        if leave.idle && self.server.is(ServerState::Standby) && self.view.cas.is_none() && !self.orders.killing() {
            self.reason("stand", "the server came up before the term was given back: standing with it");
            self.leave = None;
            return;
        }
        if self.server.is(ServerState::Starting) && self.reign.is_none() && !self.orders.killing() && self.can_write() {
            // While it reads its log, which may take long, nobody else could take the term.
            self.server.forget_end();
            self.order_kill();
            return;
        }
        let stopped = matches!(self.server.state, Some(ServerState::Down | ServerState::Standby));
        let ended = (stopped && !self.orders.killing()) || self.planted(Plant::ReleaseBeforeDoom);
        if !ended || self.reign.is_some() || !self.can_write() {
            return;
        }
        let Some(mut record) = self.record().cloned() else { return };
        if record.state == ClaimState::Held {
            // What a candidate that gives up says is no cause: the one that made it stand goes on counting.
            record.reason = leave.cause;
            if self.is_me(record.leader.as_ref()) {
                // The server here is stopped. That of the leader before may be open yet, cut off from everybody.
                let earlier = self.earlier_lease.filter(|(at, _)| *at > self.now).map(|(_, lease)| lease);
                record.lease = match earlier {
                    Some(lease) => Some(record.lease.map_or(lease, |own| own.max(lease))),
                    None => Some(Span(0)),
                };
            }
        }
        record.held = leave.held.map(|held| self.now.since(held));
        record.state = ClaimState::Free;
        record.holder = None;
        record.wanted = leave.wanted.filter(|node| !self.config.excluded.contains(node));
        self.write(Intent::Release, record);
    }

    pub(crate) fn released(&mut self) {
        self.leave = None;
    }

    /// The rules that end service: a newer term, another holder, a deadline that passed.
    pub(crate) fn plan_standing_down(&mut self) {
        let Some(reign) = &self.reign else { return };
        let (term, adopting) = (reign.term, reign.phase == Phase::Adopting);
        let founding = matches!(reign.phase, Phase::Founding | Phase::Founded);
        if self.durable.promise > term && !self.planted(Plant::AnswerWhilePrimary) && !adopting {
            self.fence("a newer term was promised");
            return;
        }
        if !adopting {
            let deadline = reign.deadline;
            if let Some(text) = self.record().and_then(|record| self.lost_claim(record, term, founding)) {
                self.fence(&text);
                return;
            }
            if let Some(deadline) = deadline {
                self.check_deadline(deadline);
            }
        }
    }

    fn lost_claim(&self, record: &Record, term: Term, founding: bool) -> Option<String> {
        let state = record.state == ClaimState::Held || (founding && record.state == ClaimState::Founding);
        if record.term > term {
            return Some(format!("the record says term {}", record.term));
        }
        (!self.is_me(record.holder.as_ref()) || !state).then(|| "the record no longer names this node".to_owned())
    }

    fn check_deadline(&mut self, deadline: Moment) {
        let Some(reign) = &self.reign else { return };
        // Without a running server nothing serves: a renewal may still succeed, and a restart needs a fresh one anyway.
        let serverless = reign.phase == Phase::Crashed
            || (reign.phase == Phase::Promoting && self.planted(Plant::PromoteWithoutDeadline));
        if self.now <= deadline {
            self.until(deadline + Span(1));
        } else if !serverless {
            self.fence("the lease ran out: no renewal succeeded in time");
        } else if self.now > deadline + self.config.lease {
            self.fence("the claim could not be renewed");
        }
    }

    pub(crate) fn close_route(&mut self, term: Term) {
        let now = self.now;
        self.set_route(term, RouteState::Closed, now);
    }

    pub(crate) fn set_route(&mut self, term: Term, state: RouteState, until: Moment) {
        let closed_before = self.route.is_none_or(|(_, known, _)| known == RouteState::Closed);
        let state = self.held_route(state);
        if (state == RouteState::Closed && closed_before) || self.route == Some((term, state, until)) {
            return;
        }
        self.route = Some((term, state, until));
        self.out.push(Output::Route(term, state, until));
    }

    /// The term of which my own write of this life says that I am primary, with the deadline ahead and the server running.
    pub(crate) fn primary_of(&self) -> Option<Term> {
        let reign = self.reign.as_ref()?;
        let runs = self.server.is(ServerState::Primary) && matches!(reign.phase, Phase::Serving);
        (runs && reign.deadline.is_some_and(|deadline| self.now < deadline)).then_some(reign.term)
    }

    // ---- renewing ----------------------------------------------------------------------------------------------------

    pub(crate) fn plan_reign(&mut self) {
        if self.reign.is_none() {
            return;
        }
        self.plan_adoption();
        self.plan_renewal();
        let Some(phase) = self.reign.as_ref().map(|reign| reign.phase.clone()) else { return };
        match phase {
            Phase::Serving => {
                self.check_server();
                self.plan_hold();
                self.plan_removed_primary();
                self.plan_switchover();
                self.plan_restart();
                self.plan_open();
                self.plan_sync();
            }
            Phase::Crashed => self.plan_crashed(),
            Phase::Stopping => self.watch_stopping(),
            Phase::Promoting => self.watch_order(PROMOTE_MAX_MS, "the promotion does not end"),
            Phase::Restarting => self.watch_order(RESTART_MAX_MS, "the restart in place does not end"),
            _ => {}
        }
    }

    /// An order that never ends must not keep the term for ever.
    fn watch_order(&mut self, limit_ms: u64, why: &str) {
        let Some((_, since)) = self.orders.kind() else { return };
        if self.now.since(since).0 > limit_ms && !self.orders.killing() {
            self.abdicate(why, None);
        } else {
            self.until(since + Span(limit_ms + 1));
        }
    }

    pub(crate) fn plan_renewal(&mut self) {
        let Some(reign) = &self.reign else { return };
        let at = reign.renew_at;
        if matches!(reign.phase, Phase::Founded) {
            self.write_founded();
            return;
        }
        if reign.phase == Phase::Adopting && !self.may_adopt() {
            return;
        }
        // It can not be started again for now: the claim is not held back from others.
        if reign.phase == Phase::Crashed && self.orders.doomed() && !self.config.paused {
            return;
        }
        if self.now < at {
            self.until(at);
            return;
        }
        if !self.can_write() {
            return;
        }
        let Some(mut record) = self.record().cloned() else { return };
        self.grant(&mut record);
        let next = self.now + Span(self.config.lease.0 / 6);
        if let Some(reign) = self.reign.as_mut() {
            reign.renew_at = next;
        }
        self.until(next);
        self.write(Intent::Renew, record);
    }

    /// A write of mine succeeded: the deadline counts from its sending.
    pub(crate) fn renewed(&mut self, sent: Moment, deadline: Moment) {
        let next = sent + Span(self.config.lease.0 / 6);
        let Some(reign) = self.reign.as_mut() else { return };
        let deadline = reign.deadline.map_or(deadline, |known| known.max(deadline));
        reign.deadline = Some(deadline);
        reign.renew_at = next;
        if reign.fresh_from.is_some_and(|from| sent >= from) {
            reign.fresh = true;
        }
        let term = reign.term;
        let state = match (reign.draining(), reign.opened) {
            (_, false) => None,
            (true, true) => Some(RouteState::Draining),
            (false, true) => Some(RouteState::Open),
        };
        let adopting = reign.phase == Phase::Adopting;
        self.out.push(Output::Deadline(term, deadline));
        if adopting {
            self.adopted();
        } else if let Some(state) = state {
            self.set_route(term, state, deadline);
        }
    }

    /// The record shows a grant that an attempt of this life wrote, though no reply said so: it renewed from the moment when that attempt
    /// was sent. Deadline and route move; what a successful write alone allows (planning, opening, a restart in place) does not follow.
    pub(crate) fn seen_renewed(&mut self, sent: Moment, deadline: Moment) {
        let Some(reign) = self.reign.as_mut() else { return };
        let fits = !matches!(reign.phase, Phase::Adopting | Phase::Founding | Phase::Founded);
        if !fits || reign.deadline.is_none_or(|known| known >= deadline) || deadline <= self.now {
            return;
        }
        reign.deadline = Some(deadline);
        let (term, opened, draining) = (reign.term, reign.opened, reign.draining());
        let ago = self.now.since(sent);
        self.reason("renewed", format!("the store's answer is missing, but its record shows my renewal of {ago} ago"));
        self.out.push(Output::Deadline(term, deadline));
        if opened {
            self.set_route(term, if draining { RouteState::Draining } else { RouteState::Open }, deadline);
        }
    }

    pub(crate) fn not_renewed(&mut self) {
        let at = self.now;
        if let Some(reign) = self.reign.as_mut() {
            reign.renew_at = at;
        }
        if self.planted(Plant::PauseStopsFencing) && self.config.paused {
            let deadline = self.deadline_of(at, None);
            if let Some(reign) = self.reign.as_mut() {
                reign.deadline = reign.deadline.max(Some(deadline));
                let term = reign.term;
                self.out.push(Output::Deadline(term, deadline));
            }
        }
    }

    // ---- adopting a server that ran before this life -------------------------------------------------------------------

    pub(crate) fn adopt_primary(&mut self) {
        if self.reign.is_none() {
            self.reason("adopt", "a primary runs here from before this process: it is believed after a renewal");
            self.reign = Some(Reign::new(self.now, self.durable.promise, Phase::Adopting));
        }
    }

    /// Before the first write: does a linearizable read say that this node may try?
    fn may_adopt(&self) -> bool {
        self.view.read_once || (self.planted(Plant::PlanFromReadRecord) && self.record().is_some())
    }

    fn plan_adoption(&mut self) {
        if self.reign.as_ref().is_none_or(|reign| reign.phase != Phase::Adopting) || !self.may_adopt() {
            return;
        }
        let claim = self.record().is_some_and(|record| {
            record.state == ClaimState::Held
                && self.is_me(record.holder.as_ref())
                && self.is_me(record.leader.as_ref())
                && record.term == self.durable.promise
                && record.members.get(&self.config.me).is_some_and(|copy| Some(*copy) == self.durable.copy)
        });
        if !claim {
            self.fence("a primary runs here, and the record does not give it the term");
            return;
        }
        if self.planted(Plant::PlanFromReadRecord) && self.reign.as_ref().is_some_and(|reign| reign.deadline.is_none())
        {
            self.adopted();
        }
    }

    /// The renewal succeeded: the server is mine, if it runs on the timeline that the record reserved.
    fn adopted(&mut self) {
        let Some(record) = self.record().cloned() else { return };
        let seen = self.server.seen.clone().unwrap_or_default();
        if seen.timeline.is_some_and(|timeline| timeline != record.timeline) {
            self.abdicate("the server that ran before this process is on another timeline than the record's", None);
            return;
        }
        let mut setting = self.first_setting(&record, true);
        if self.config.durability == Durability::Available {
            // What the record covers is enough: a degraded primary must not block because its agent was restarted.
            let size = u32::try_from(record.members.len()).unwrap_or(u32::MAX);
            setting.need = size.saturating_sub(1 + record.quorum);
        }
        let now = self.now;
        let Some(reign) = self.reign.as_mut() else { return };
        reign.term = record.term;
        reign.phase = Phase::Serving;
        reign.origin.cause.clone_from(&record.reason);
        reign.origin.fork = record.lineage.0.last().copied();
        reign.origin.at_risk = (record.lossy == Some(record.timeline)).then_some(0);
        reign.since = now;
        reign.adopted = true;
        reign.settings = vec![setting];
        reign.end = seen.end.map(|lsn| RecoveryEnd { timeline: record.timeline, lsn });
        reign.opened = seen.open;
        let route = reign.opened.then_some(reign.deadline).flatten();
        self.tell("adopted", format!("adopted the running primary of term {}", record.term));
        if let Some(deadline) = route {
            self.set_route(record.term, RouteState::Open, deadline);
        }
        self.note_streams();
    }
}
