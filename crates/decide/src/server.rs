//! What is known about the local server, and the rules for a server that is not primary: start it, cut it, read its log's end,
//! let it follow, rewind it, clone it.

use crate::mind::Mind;
use crate::plant::Plant;
use crate::restart::Needed;
use mainstay_model::record::Upstream;
use mainstay_model::{LogEnd, Moment, NodeId, Order, ServerObservation, ServerState, Span, Term};

const STALLED_MS: u64 = 15_000;
const STALLS_MAX: u32 = 3;
const REWINDS_MAX: u32 = 4;
const STARTING_MAX_MS: u64 = 600_000;
const BACK_OFF_MAX_MS: u64 = 5_000;
/// So long a new life waits for the record, which tells whether the data here are this cluster's, before it starts a server without it.
const RECORD_WAIT_MS: u64 = 3_000;
const CLONE_AGAIN_MS: u64 = 500;
const CLONE_AGAIN_MAX_MS: u64 = 30_000;
/// A copy that can not be started waits so long for a primary that is not open yet, before it is given up.
pub(crate) const UNSTARTABLE_MS: u64 = 3_000;

/// The local server as this machine knows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Server {
    /// `None` until the first observation of this life.
    pub(crate) state: Option<ServerState>,
    pub(crate) seen: Option<ServerObservation>,
    /// What runs here is known: it was seen doing something definite, or ordered.
    known: bool,
    /// Observations sent before this are older than the last order.
    changed: Moment,
    /// The stream is known to be cut, in the running server too.
    cut: bool,
    /// The exact end of the log; known only while the stream is cut.
    pub(crate) end: Option<LogEnd>,
    pub(crate) retry_at: Moment,
    /// Before this a dead primary's recovery does not begin: the take-over may share its disk.
    pub(crate) make_way: Moment,
    pub(crate) failures: u32,
    /// This life has seen, or made, the running server stream from the durable upstream.
    pub(crate) pointed: bool,
    starting_since: Option<Moment>,
    stalled_since: Option<Moment>,
    stalls: u32,
    rewinds: u32,
    /// The copy that is being rewound: it gets its name back when the rewind is verified.
    pub(crate) rewinding: Option<mainstay_model::CopyId>,
    pub(crate) cloning: Option<mainstay_model::CopyId>,
    /// From whom it was cloned last, and how often in a row that failed.
    clones: (Option<(NodeId, Term)>, u32),
    /// The copy can not be started: since when, and why.
    pub(crate) unstartable: Option<(Moment, String)>,
    /// An operator's order stands behind the next start or clone: it is carried out while paused, too.
    pub(crate) ordered: bool,
    /// An operator ordered a restart, and waits to hear of its end.
    pub(crate) restarting: bool,
}

impl Server {
    pub(crate) fn is(&self, state: ServerState) -> bool {
        self.state == Some(state)
    }
    /// An order changed the server: it is now in this state, and older observations no longer count.
    pub(crate) fn set(&mut self, now: Moment, state: ServerState) {
        self.changed = now;
        self.known = true;
        self.state = Some(state);
        self.starting_since = None;
        self.stalled_since = None;
        if state != ServerState::Primary {
            self.seen = None;
        }
    }
    /// The log may grow from now on, or is another one.
    pub(crate) fn forget_end(&mut self) {
        self.end = None;
        self.cut = false;
        self.pointed = false;
    }
    pub(crate) fn ended(&mut self, end: LogEnd) {
        self.cut = true;
        self.end = Some(end);
        self.failures = 0;
    }
    /// Started without upstream.
    pub(crate) fn is_cut(&mut self) {
        self.cut = true;
    }
}

impl Mind {
    pub(crate) fn on_observed(&mut self, seen: ServerObservation) {
        if seen.at < self.server.changed || self.orders.hides_probes() {
            return;
        }
        let first = !self.server.known && seen.state != ServerState::Starting;
        let busy = self.orders.busy();
        if !busy {
            // While an order runs, its outcome says what the state is; probes give positions only.
            self.server.state = Some(seen.state);
            self.server.known |= first;
            if matches!(seen.state, ServerState::Standby | ServerState::Primary) {
                // It came up after all, from an attempt that was said not to have ended.
                self.server.unstartable = None;
            }
        }
        match seen.state {
            ServerState::Starting if !busy => {
                self.server.starting_since.get_or_insert(self.now);
            }
            _ => self.server.starting_since = None,
        }
        let silent = seen.silent;
        self.server.seen = Some(seen);
        if first && !busy && self.server.is(ServerState::Primary) {
            self.adopt_primary();
        }
        self.note_streams();
        if silent >= self.config.hang.0 && !busy {
            self.on_silent();
        }
    }

    /// The local server gives no sign of life: it is ended, so that what it holds up can go on.
    fn on_silent(&mut self) {
        let symptom = self.server.seen.as_ref().and_then(|seen| seen.symptom.clone());
        let symptom = symptom.unwrap_or_else(|| "the server gives no sign of life".to_owned());
        if self.config.paused {
            self.reason("paused-server", format!("{symptom}: left alone, the cluster is paused"));
        } else if self.reign.is_some() {
            self.on_exit(&symptom);
        } else if !self.server.is(ServerState::Down) && self.server.state.is_some() && self.may_retry() {
            self.back_off(500);
            self.reason("hung", format!("{symptom}: ending the server and starting it again"));
            self.order_kill();
        }
    }

    /// The position that a probe saw last; a hint.
    pub(crate) fn position_hint(&self) -> Option<mainstay_model::Position> {
        if let Some(end) = &self.server.end {
            return Some(end.position);
        }
        let seen = self.server.seen.as_ref()?;
        Some(mainstay_model::Position { timeline: seen.timeline?, lsn: seen.end? })
    }

    pub(crate) fn back_off(&mut self, step: u64) {
        self.server.failures = self.server.failures.saturating_add(1);
        let wait = step.saturating_mul(1 << self.server.failures.min(6)).min(BACK_OFF_MAX_MS.max(step)) / 2;
        self.server.retry_at = self.now + Span(wait.max(step));
    }

    /// Pauses between attempts to clone from one primary grow: what hinders it (no room, say) seldom goes by itself.
    pub(crate) fn clone_back_off(&mut self) -> Span {
        let failed = self.server.clones.1;
        self.server.clones.1 = failed.saturating_add(1);
        let wait = Span(CLONE_AGAIN_MS.saturating_mul(1 << failed.min(6)).min(CLONE_AGAIN_MAX_MS));
        self.server.retry_at = self.now + wait;
        wait
    }

    /// Another primary, or one that runs again, is tried at once.
    fn note_clone_source(&mut self, source: Option<(NodeId, Term)>) {
        if self.server.clones.0 != source {
            if self.server.clones.1 > 0 {
                self.server.retry_at = self.now;
            }
            self.server.clones = (source, 0);
        }
    }

    /// A dead primary's recovery waits for the take-over, whose answers others give.
    fn makes_way(&mut self) -> bool {
        let at = self.server.make_way;
        let waits = self.now < at;
        if waits {
            self.until(at);
            self.reason("make-way", "the server is down: its recovery waits a moment for the take-over by others");
        }
        waits
    }

    pub(crate) fn may_retry(&mut self) -> bool {
        if self.now < self.server.retry_at {
            let at = self.server.retry_at;
            self.until(at);
            return false;
        }
        true
    }

    /// The rules for a server that this node does not hold as primary.
    pub(crate) fn plan_server(&mut self) {
        if self.reign.is_some() || self.orders.busy() || self.problem.is_some() {
            return;
        }
        let member = self.record().is_some_and(|record| record.members.contains_key(&self.config.me));
        if !self.has_data_role() && !member {
            self.plan_removed();
            return;
        }
        match self.server.state {
            None => {}
            Some(ServerState::Primary) => {
                self.reason("fence", "the server runs as primary without a claim of this node: ending it");
                self.server.forget_end();
                self.order_kill();
            }
            Some(ServerState::Starting) => self.plan_starting(),
            Some(ServerState::Down) => self.plan_down(),
            Some(ServerState::Standby) => self.plan_standby(),
        }
    }

    fn plan_starting(&mut self) {
        let since = self.server.starting_since.unwrap_or(self.now);
        if self.now.since(since).0 > STARTING_MAX_MS && !self.config.paused {
            self.reason("hung", "the server has been starting for ten minutes: ending it");
            self.order_kill();
        } else {
            self.until(since + Span(STARTING_MAX_MS));
        }
    }

    /// While paused, only what an operator ordered is started, rewound or cloned.
    fn held_by_pause(&mut self, what: &str) -> bool {
        let held = self.config.paused && !self.server.ordered;
        if held {
            self.reason(
                "paused-server",
                format!("{what}, and the cluster is paused: left as it is until it is resumed"),
            );
        }
        held
    }

    fn plan_down(&mut self) {
        if self.held_by_pause("the server is down") {
            return;
        }
        if self.durable.copy.is_none() {
            self.plan_clone();
            return;
        }
        if self.plan_unstartable() || self.makes_way() || !self.may_retry() {
            return;
        }
        let diverged = self.durable.diverged.map(|(term, _)| term);
        if diverged.is_some() && self.record().map(|record| record.term) == diverged && self.plan_rewind() {
            return;
        }
        if self.waits_for_the_record() {
            return;
        }
        self.follow_known_end();
        if self.durable.upstream.as_ref().is_some_and(|upstream| upstream.term != self.durable.promise) {
            self.persist(|durable| durable.upstream = None);
        }
        self.reason("start", "the server is down: starting it as a standby");
        self.order(self.durable.promise, Order::StartStandby);
    }

    /// A node that has never seen which data are the cluster's waits for the record. A store without a leader may stay silent, and one that
    /// has just begun may show no record yet: the server is started all the same, a little later.
    fn waits_for_the_record(&mut self) -> bool {
        let until = self.born.unwrap_or(self.now) + Span(RECORD_WAIT_MS);
        let known = self.durable.system.is_some() && self.durable.system == self.data;
        let waits = self.record().is_none() && !known && self.now < until;
        if waits {
            self.reason(
                "start",
                "the server is down: waiting for the record, which tells whether these data are this cluster's",
            );
            self.until(until);
        }
        waits
    }

    /// A copy that can not be started is given up, unless it could be the last one. Says whether that was done.
    fn plan_unstartable(&mut self) -> bool {
        let Some((since, why)) = self.server.unstartable.clone() else { return false };
        if !self.planted(Plant::UnstartableGivenUp)
            && let Err(needed) = self.copy_spare()
        {
            // A primary that waits for confirmations can not open before this node has a copy that streams. It was elected, so its log has
            // everything acknowledged; this copy can confirm nothing, and a clone moves its files aside.
            let waits = matches!(needed, Needed::NotOpen(_)) && self.now.since(since).0 >= UNSTARTABLE_MS;
            if !waits {
                let at = since + Span(UNSTARTABLE_MS);
                if self.now < at {
                    self.until(at);
                }
                let kept = needed.why();
                self.reason("start", format!("this copy can not be started ({why}), and is kept: {kept}"));
                return false;
            }
        }
        self.give_up_copy(&format!("it can not be started ({why})"));
        self.server.retry_at = self.now;
        self.plan_clone();
        true
    }

    /// A stopped server whose log's end is known, and a prefix, starts with its upstream at once.
    fn follow_known_end(&mut self) {
        let Some((leader, term)) = self.other_leader() else { return };
        let prefix = self.end_is_prefix();
        if self.durable.upstream.is_none() && term >= self.durable.promise && prefix == Some(true) {
            self.set_upstream(leader, term);
        }
    }

    /// Is the known end of my log a prefix of the log of the record's leader? `None`: not known.
    fn end_is_prefix(&self) -> Option<bool> {
        let record = self.record()?;
        let end = self.server.end.as_ref()?;
        Some(record.lineage.contains(end.position, record.timeline, mainstay_model::Lsn(u64::MAX)))
    }

    pub(crate) fn set_upstream(&mut self, node: NodeId, term: Term) {
        let keep = self.planted(Plant::FollowWithoutPersist);
        self.persist(|durable| {
            if !keep {
                durable.promise = durable.promise.max(term);
            }
            durable.upstream = Some(Upstream { node, term });
            durable.diverged = None;
        });
        self.server.forget_end();
    }

    fn plan_standby(&mut self) {
        if self.durable.copy.is_none() {
            self.plan_clone();
            return;
        }
        if self.durable.upstream.is_none() && self.server.end.is_none() {
            if self.may_retry() {
                let order = if self.server.cut { Order::ReadEnd } else { Order::Recruit };
                self.order(self.durable.promise, order);
            }
            return;
        }
        if self.candidacy.is_none() {
            self.plan_follow();
        }
    }

    /// Follow the record's leader as soon as that is known to be possible.
    fn plan_follow(&mut self) {
        let Some((leader, term)) = self.other_leader() else { return };
        if term < self.durable.promise {
            return;
        }
        let wanted = Upstream { node: leader.clone(), term };
        if self.durable.upstream.as_ref() == Some(&wanted) {
            let receiving = self.server.seen.as_ref().map(|seen| seen.receiving);
            if !self.server.pointed && receiving == Some(false) && self.may_retry() {
                // The last life may have died between making the upstream durable (after its test) and giving the order.
                self.order(term, Order::Follow { upstream: leader });
                return;
            }
            self.server.pointed |= receiving == Some(true);
            self.watch_stream(&leader, term);
            return;
        }
        if !self.may_retry() {
            return;
        }
        match self.end_is_prefix() {
            None => {
                self.reason("follow", format!("{leader} leads term {term}: cutting the old stream first"));
                self.persist(|durable| {
                    durable.promise = term;
                    durable.upstream = None;
                });
                self.server.forget_end();
                self.order(term, Order::Recruit);
            }
            Some(true) => {
                self.reason("follow", format!("this log is a prefix of {leader}'s: following it in term {term}"));
                self.set_upstream(leader.clone(), term);
                self.order(term, Order::Follow { upstream: leader });
            }
            Some(false) => self.found_diverged(term),
        }
    }

    fn found_diverged(&mut self, term: Term) {
        let position = self.server.end.as_ref().map(|end| end.position).unwrap_or_default();
        if self.durable.diverged != Some((term, position)) {
            self.event("diverged", format!("this log ends at {position} and is no prefix of the leader's: rewind"));
            self.persist(|durable| {
                durable.promise = term;
                durable.upstream = None;
                durable.diverged = Some((term, position));
            });
        }
        self.plan_rewind();
    }

    /// Rewinds if a source runs as primary of the promised term. Says whether an order was given.
    fn plan_rewind(&mut self) -> bool {
        if self.held_by_pause("this log diverged") {
            return false;
        }
        let Some((source, term)) = self.running_leader() else {
            self.reason("rewind", "this log diverged; waiting for a running primary to rewind from");
            return false;
        };
        if !self.server.is(ServerState::Down) {
            self.reason("rewind", "this log diverged: stopping the server before the rewind");
            self.order_kill();
            return true;
        }
        if self.durable.diverged.is_some_and(|(_, end)| self.is_void(end)) {
            // What was restored is another copy, block by block: the old one may be what the restore was to get rid of.
            self.give_up_copy("the cluster was restored to an earlier moment, and this log goes beyond it");
            self.server.retry_at = self.now;
            return self.plan_clone();
        }
        if self.server.rewinds >= REWINDS_MAX {
            self.give_up_copy("the rewind did not succeed");
            return self.plan_clone();
        }
        self.server.rewinds += 1;
        self.server.rewinding = self.durable.copy;
        let keep = self.planted(Plant::HalfRewoundAnswers);
        self.persist(|durable| {
            durable.promise = term;
            durable.upstream = None;
            if !keep {
                durable.copy = None;
            }
        });
        self.server.forget_end();
        self.reason("rewind", format!("rewinding from {source}, primary of term {term}"));
        self.order(term, Order::Rewind { source });
        true
    }

    pub(crate) fn give_up_copy(&mut self, why: &str) {
        self.tell("copy-given-up", format!("{why}: this copy is not whole and will be cloned anew"));
        self.server.unstartable = None;
        self.server.rewinding = None;
        self.server.rewinds = 0;
        let keep = self.planted(Plant::HalfRewoundAnswers);
        self.persist(|durable| {
            if !keep {
                durable.copy = None;
            }
            durable.upstream = None;
        });
        self.server.forget_end();
    }

    /// Clones if a source runs as primary of a term that this node may follow. Says whether an order was given.
    fn plan_clone(&mut self) -> bool {
        if self.held_by_pause("this node has no whole copy") || !self.has_data_role() {
            return false;
        }
        let system = self.record().and_then(|record| record.system);
        let source = self.running_leader();
        self.note_clone_source(source.clone());
        let (Some((source, term)), Some(_)) = (source, system) else {
            self.reason("clone", "this node has no whole copy; waiting for a running primary to clone from");
            return false;
        };
        if !self.may_retry() {
            return false;
        }
        if !self.server.is(ServerState::Down) {
            self.order_kill();
            return true;
        }
        let Some(mut copy) = self.random.copy() else { return false };
        if self.planted(Plant::WipedCopyAnswers) {
            let old = self.record().and_then(|record| record.members.get(&self.config.me).copied());
            copy = old.unwrap_or(copy);
        }
        self.persist(|durable| {
            durable.promise = term;
            durable.upstream = None;
            durable.copy = None;
        });
        self.server.cloning = Some(copy);
        self.reason("clone", format!("cloning from {source}, primary of term {term}"));
        self.order(term, Order::Clone { source, copy });
        true
    }

    /// The record's leader, if it is another node that is heard to run as primary of that very term.
    pub(crate) fn running_leader(&self) -> Option<(NodeId, Term)> {
        let (leader, term) = self.other_leader()?;
        let runs = self.peers.get(&leader).is_some_and(|peer| peer.primary_of == Some(term));
        (term >= self.durable.promise && runs && self.heard_within(&leader, Span(self.config.lease.0 * 2)))
            .then_some((leader, term))
    }

    /// A stream that does not come up although its source runs: check where the log ends, in the end clone.
    fn watch_stream(&mut self, leader: &NodeId, term: Term) {
        let receiving = self.server.seen.as_ref().is_none_or(|seen| seen.receiving);
        if receiving {
            if self.server.seen.is_some() {
                self.server.stalls = 0;
                self.server.rewinds = 0;
                self.server.failures = 0;
            }
            self.server.stalled_since = None;
            return;
        }
        if self.running_leader().is_none() || self.config.paused {
            self.server.stalled_since = None;
            return;
        }
        if self.server.seen.as_ref().is_some_and(|seen| seen.log_gone) {
            self.server.stalled_since = None;
            self.give_up_copy(&format!("{leader} has removed log that this copy needs"));
            return;
        }
        let since = *self.server.stalled_since.get_or_insert(self.now);
        if self.now.since(since).0 < STALLED_MS {
            self.until(since + Span(STALLED_MS));
            return;
        }
        self.server.stalled_since = None;
        self.server.stalls += 1;
        if self.server.stalls >= STALLS_MAX {
            self.server.stalls = 0;
            self.give_up_copy("the log that this copy needs can not be had from the primary");
            return;
        }
        self.reason("follow", format!("no stream from {leader} although it runs: checking where this log ends"));
        self.persist(|durable| durable.upstream = None);
        self.server.forget_end();
        self.order(term, Order::Recruit);
    }

    /// After a rewind or clone: the copy is whole, its end is to be read.
    pub(crate) fn copy_made(&mut self, copy: Option<mainstay_model::CopyId>) {
        self.persist(|durable| {
            durable.copy = copy;
            durable.upstream = None;
            durable.diverged = None;
        });
        self.data = self.record().and_then(|record| record.system).or(self.data);
        self.unknown_data = false;
        self.server.rewinding = None;
        self.server.cloning = None;
        self.server.unstartable = None;
        self.server.clones = (None, 0);
        self.server.failures = 0;
        self.server.retry_at = self.now;
        self.server.forget_end();
    }
}
