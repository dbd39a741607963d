//! Standing: raising the term, collecting recruits, and who wins. When to stand is in `doubt`.

use crate::failover::Ordered;
use crate::mind::Mind;
use crate::plant::Plant;
use crate::view::Intent;
use mainstay_model::{
    Answer, ClaimState, LogEnd, Message, Moment, NodeId, Order, Position, Record, ServerState, Span, Term,
};
use std::collections::BTreeMap;

const GIVE_UP_MS: u64 = 900;
const REPEAT_MS: u64 = 100;
const ASYNC_SETTLE_MS: u64 = 300;
const CAUSE_MAX: usize = 200;

/// How far a candidacy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The raise is being written.
    Raising,
    /// Answers come in.
    Recruiting,
    /// Streaming from the best answer, up to its end.
    Catching { from: NodeId, end: Position, follow: bool },
    /// The claim is being written, or is to be.
    Claiming,
}

/// One try to become primary.
#[derive(Clone, Debug)]
pub(crate) struct Candidacy {
    pub(crate) term: Term,
    pub(crate) stage: Stage,
    give_up: Moment,
    pub(crate) since: Moment,
    recruit_at: Moment,
    pub(crate) answers: BTreeMap<NodeId, Answer>,
    counted: u32,
    /// The record that my raise wrote.
    pub(crate) record: Record,
    caught_up: bool,
    pub(crate) early: bool,
    /// An operator's order stands behind it.
    pub(crate) ordered: Option<Ordered>,
    /// Goes on with too few answers: the operator accepted the loss, and the last lease has run out.
    pub(crate) forced: bool,
}

impl Mind {
    // ---- raising -----------------------------------------------------------------------------------------------------

    /// Raises the term. `cause` is kept for the history, unless an earlier one still waits for a primary to open.
    pub(crate) fn stand(&mut self, why: &str, cause: &str) {
        if self.now < self.pause_until {
            let at = self.pause_until;
            self.until(at);
            return;
        }
        let standby = self.server.is(ServerState::Standby) && !self.orders.hides_probes();
        if !standby || !self.can_write() {
            return;
        }
        let Some(mut record) = self.record().cloned() else { return };
        record.term = record.term.next();
        record.holder = Some(self.config.me.clone());
        let fresh = record.state == ClaimState::Held || record.reason.is_empty() || self.failover.is_some();
        if fresh && !cause.is_empty() {
            record.reason = clip(cause);
        }
        record.state = ClaimState::Electing;
        self.reason("stand", format!("{why}: raising the term to {}", record.term));
        self.candidacy = Some(Candidacy {
            term: record.term,
            stage: Stage::Raising,
            give_up: self.now + Span(GIVE_UP_MS * 2),
            since: self.now,
            recruit_at: self.now,
            answers: BTreeMap::new(),
            counted: 0,
            record: record.clone(),
            caught_up: false,
            early: false,
            ordered: self.failover.clone(),
            forced: false,
        });
        self.write(Intent::Raise, record);
    }

    pub(crate) fn raised(&mut self) {
        let now = self.now;
        let Some(candidacy) = self.candidacy.as_mut().filter(|candidacy| candidacy.stage == Stage::Raising) else {
            return;
        };
        candidacy.stage = Stage::Recruiting;
        candidacy.since = now;
        candidacy.give_up = now + Span(GIVE_UP_MS);
        let term = candidacy.term;
        let ordered = candidacy.ordered.clone();
        self.failover = None;
        if let Some(ordered) = ordered {
            let patience = self.patience(&ordered);
            if let Some(candidacy) = self.candidacy.as_mut() {
                candidacy.give_up = now + patience;
            }
        }
        self.suspect = None;
        self.event_of(term, "stood", format!("raised the term to {term} and asks for recruits"));
        self.promise(term);
        // A server that is cut and read already answers at once; others are cut by the rule for servers.
    }

    pub(crate) fn not_raised(&mut self, refused: bool) {
        self.candidacy = None;
        let high = if refused { 60 } else { 250 };
        let pause = self.random.between(10, high);
        self.pause_until = self.now + Span(pause);
        // A rule of its own: while the store is away both are said in turn, and neither would be known as said already.
        self.reason("not-raised", "the term was not raised: somebody else was first, or the store did not answer");
    }

    // ---- collecting --------------------------------------------------------------------------------------------------

    pub(crate) fn on_answer(&mut self, from: &NodeId, answer: Answer) {
        let old = self.planted(Plant::OldAnswers);
        let known = self.counts(from);
        let Some(candidacy) = self.candidacy.as_mut() else { return };
        // An answer that comes while the claim is written was not compared with, and must not look as if it had been.
        let open = !matches!(candidacy.stage, Stage::Raising | Stage::Claiming);
        if (answer.term == candidacy.term || old) && open && known {
            candidacy.counted += 1;
            candidacy.answers.insert(from.clone(), answer);
        }
    }

    pub(crate) fn plan_candidate(&mut self) {
        let Some(candidacy) = &self.candidacy else { return };
        let (term, give_up) = (candidacy.term, candidacy.give_up);
        let current = self.record().is_some_and(|record| record.term == term && self.is_me(record.holder.as_ref()));
        let stage = candidacy.stage.clone();
        let raising = stage == Stage::Raising;
        if self.is_superseded() {
            self.end_candidacy();
            return;
        }
        if !raising && (!current || self.durable.promise > term) {
            self.reason("stand", "a newer term is known: this candidacy ends");
            self.failover_failed("a newer term was raised meanwhile");
            self.end_candidacy();
            return;
        }
        if self.now >= give_up && !raising {
            let why = self.too_late(&stage);
            self.give_up(&why, None);
            return;
        }
        self.until(give_up);
        match stage {
            Stage::Raising => {}
            Stage::Recruiting => self.recruit_more(),
            Stage::Catching { from, end, follow } => self.catch_up(&from, end, follow),
            Stage::Claiming => self.claim(),
        }
    }

    /// What did not come in time.
    fn too_late(&self, stage: &Stage) -> String {
        let Stage::Catching { from, .. } = stage else { return "too few recruits answered in time".to_owned() };
        let gone = self.server.seen.as_ref().is_some_and(|seen| seen.log_gone);
        let gone = if gone { ": it has removed log that this copy needs" } else { "" };
        format!("{from}'s log reaches further, and did not come in time{gone}")
    }

    /// Ends the candidacy without a release: somebody else has a newer term.
    pub(crate) fn end_candidacy(&mut self) {
        let catching =
            self.candidacy.as_ref().is_some_and(|candidacy| matches!(candidacy.stage, Stage::Catching { .. }));
        self.candidacy = None;
        if catching && self.durable.upstream.is_some() {
            self.persist(|durable| durable.upstream = None);
            self.server.forget_end();
        }
        let pause = self.random.between(50, 250);
        self.pause_until = self.now + Span(pause);
    }

    fn give_up(&mut self, why: &str, wanted: Option<NodeId>) {
        self.failover_failed(why);
        self.end_candidacy();
        let pause = self.random.between(100, 500);
        self.pause_until = self.now + Span(pause);
        self.abdicate(why, wanted);
    }

    fn recruit_more(&mut self) {
        self.answer_myself();
        let now = self.now;
        let Some(candidacy) = self.candidacy.as_mut() else { return };
        if candidacy.recruit_at <= now {
            candidacy.recruit_at = now + Span(REPEAT_MS);
            let message = Message::Recruit { term: candidacy.term };
            let answered: Vec<NodeId> = candidacy.answers.keys().cloned().collect();
            let ask: Vec<NodeId> = self.voters().into_iter().filter(|node| !answered.contains(node)).collect();
            for node in ask {
                self.send(node, message.clone());
            }
        }
        if let Some(at) = self.candidacy.as_ref().map(|candidacy| candidacy.recruit_at) {
            self.until(at);
        }
        self.elect();
    }

    fn answer_myself(&mut self) {
        let Some(term) = self.candidacy.as_ref().map(|candidacy| candidacy.term) else { return };
        if let Some(answer) = self.my_answer(term) {
            let me = self.config.me.clone();
            let Some(candidacy) = self.candidacy.as_mut() else { return };
            if candidacy.answers.insert(me, answer).is_none() {
                candidacy.counted += 1;
            }
        }
    }

    fn elect(&mut self) {
        let Some(candidacy) = self.candidacy.clone() else { return };
        let Some(mine) = candidacy.answers.get(&self.config.me).map(|answer| answer.end.clone()) else { return };
        let enough = self.enough_answers(&candidacy);
        if !enough && !self.enough_by_order(&candidacy) {
            return;
        }
        if let Some(candidacy) = self.candidacy.as_mut() {
            candidacy.forced = !enough;
        }
        let best = candidacy.answers.iter().max_by(|left, right| self.compare(&left.1.end, &right.1.end));
        let Some((node, best)) = best else { return };
        let jump = self.planted(Plant::SwitchoverWithoutRecruit) && self.is_me(candidacy.record.wanted.as_ref());
        if self.compare(&mine, &best.end).is_ge() || jump || self.planted(Plant::NoFastForward) {
            self.set_stage(Stage::Claiming);
            self.claim();
        } else if self.planted(Plant::LeaderBeforeFastForward) && !candidacy.early {
            self.name_leader_early();
        } else if best.end.lineage.contains(mine.position, best.end.position.timeline, best.end.position.lsn)
            && !candidacy.caught_up
        {
            self.reason("fast-forward", format!("{node}'s log reaches further: streaming up to its end first"));
            let (from, end) = (node.clone(), best.end.position);
            self.set_upstream(from.clone(), candidacy.term);
            self.set_stage(Stage::Catching { from, end, follow: true });
            self.extend_give_up();
        } else {
            let node = node.clone();
            self.give_up("another log reaches further and is to stand next", Some(node));
        }
    }

    fn extend_give_up(&mut self) {
        let at = self.now + Span(GIVE_UP_MS);
        if let Some(candidacy) = self.candidacy.as_mut() {
            candidacy.give_up = at;
        }
    }

    fn set_stage(&mut self, stage: Stage) {
        if let Some(candidacy) = self.candidacy.as_mut() {
            candidacy.stage = stage;
        }
    }

    fn compare(&self, left: &LogEnd, right: &LogEnd) -> std::cmp::Ordering {
        if self.planted(Plant::LsnOnly) {
            return left.position.lsn.cmp(&right.position.lsn);
        }
        left.position.cmp(&right.position)
    }

    fn enough_answers(&mut self, candidacy: &Candidacy) -> bool {
        let record = &candidacy.record;
        let good: Vec<&NodeId> = candidacy
            .answers
            .iter()
            .filter(|(node, answer)| record.members.get(*node) == Some(&answer.copy))
            .map(|(node, _)| node)
            .collect();
        let leader = record.leader.as_ref().is_some_and(|leader| good.contains(&leader));
        if self.planted(Plant::SwitchoverWithoutRecruit) && self.is_me(record.wanted.as_ref()) {
            return true;
        }
        if record.asynchronous {
            return self.enough_asynchronous(candidacy, leader);
        }
        let mut count = good.len() as u64;
        if self.planted(Plant::AnswersNotNodes) {
            count = u64::from(candidacy.counted);
        }
        let quorum = u64::from(record.quorum);
        let voters = (record.members.len() as u64).saturating_sub(1);
        let wanted = if self.planted(Plant::EnoughVotersMinusQuorum) {
            voters.saturating_sub(quorum)
        } else if self.planted(Plant::EnoughQuorum) {
            quorum
        } else if self.planted(Plant::RemovedNotCounted) {
            let removed = record.members.keys().filter(|node| !self.config.data_nodes.contains_key(*node)).count();
            (quorum + 1).saturating_sub(removed as u64)
        } else {
            quorum + 1
        };
        leader || count >= wanted || (self.planted(Plant::LeaseReplacesRecruits) && self.lease_over())
    }

    /// Asynchronous: the leader's own log, or after its lease the best of whoever answers within a moment.
    fn enough_asynchronous(&mut self, candidacy: &Candidacy, leader: bool) -> bool {
        if leader {
            return true;
        }
        if let Some(at) = self.lease_ends()
            && !self.planted(Plant::AsyncWithoutLeaseWait)
        {
            self.until(at);
            return false;
        }
        let missing = self.voters().iter().any(|node| !candidacy.answers.contains_key(node) && self.hears(node));
        let settled = candidacy.since + Span(ASYNC_SETTLE_MS);
        if missing && self.now < settled {
            self.until(settled);
            return false;
        }
        true
    }

    fn catch_up(&mut self, from: &NodeId, end: Position, follow: bool) {
        let Some(term) = self.candidacy.as_ref().map(|candidacy| candidacy.term) else { return };
        if self.orders.busy() {
            return;
        }
        if follow {
            self.set_stage(Stage::Catching { from: from.clone(), end, follow: false });
            self.order(term, Order::Follow { upstream: from.clone() });
            return;
        }
        let Some(seen) = self.server.seen.as_ref() else { return };
        let same = seen.timeline.is_none_or(|timeline| timeline == end.timeline);
        if same && seen.end.is_some_and(|at| at >= end.lsn) {
            self.persist(|durable| durable.upstream = None);
            self.server.forget_end();
            let me = self.config.me.clone();
            if let Some(candidacy) = self.candidacy.as_mut() {
                candidacy.answers.remove(&me);
                candidacy.caught_up = true;
            }
            self.set_stage(Stage::Recruiting);
            self.order(term, Order::Recruit);
        }
    }
}

/// Bounded text for the record.
pub(crate) fn clip(text: &str) -> String {
    text.chars().take(CAUSE_MAX).collect()
}
