//! Standing: when to raise the term, asking first, collecting recruits, and the claim.

use crate::failover::Ordered;
use crate::io::Evidence;
use crate::mind::Mind;
use crate::plant::Plant;
use crate::view::Intent;
use mainstay_model::{
    Answer, ClaimState, LogEnd, Message, Moment, NodeId, Order, Position, Record, ServerState, Span, Term,
};
use std::collections::BTreeMap;

const GIVE_UP_MS: u64 = 900;
const REPEAT_MS: u64 = 100;
const ASK_AGAIN_MS: u64 = 200;
const TOLD_VALID_MS: u64 = 1000;
const HOLD_BACK_MS: u64 = 400;
const STAGGER_MS: u64 = 150;
const ASYNC_SETTLE_MS: u64 = 300;
const CAUSE_MAX: usize = 200;

/// A holder in doubt.
#[derive(Clone, Debug)]
pub(crate) struct Suspect {
    pub(crate) holder: NodeId,
    pub(crate) term: Term,
    since: Moment,
    ask_at: Moment,
    told: BTreeMap<NodeId, (bool, bool, Moment)>,
}

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
    // ---- in doubt ----------------------------------------------------------------------------------------------------

    pub(crate) fn on_ask(&mut self, from: &NodeId, term: Term) {
        let Some(record) = self.record() else { return };
        let holder = record.holder.clone();
        let same = record.term == term;
        let hears = same && holder.as_ref().is_some_and(|holder| self.is_me(Some(holder)) || self.hears(holder));
        let newer = record.term > term || self.durable.promise > term;
        // A node that the configuration no longer lists answers too, as long as it has its copy: the record may count it.
        let would_answer = !newer && self.durable.copy.is_some() && self.problem.is_none();
        let newer = newer || self.is_superseded();
        // A holder that is not primary any more does not hold others back.
        let idle = self.is_me(holder.as_ref()) && self.reign.is_none() && self.candidacy.is_none();
        self.send(from.clone(), Message::Told { term, hears: (hears && !idle) || newer, would_answer });
    }

    pub(crate) fn on_told(&mut self, from: &NodeId, term: Term, hears: bool, would_answer: bool) {
        let now = self.now;
        let known = self.counts(from);
        if let Some(suspect) = self.suspect.as_mut().filter(|suspect| known && suspect.term == term) {
            suspect.told.insert(from.clone(), (hears, would_answer, now));
        }
    }

    /// From when on the holder counts as silent.
    fn silent_at(&self, holder: &NodeId) -> Moment {
        let peer = self.peers.get(holder);
        let heard = peer.and_then(|peer| peer.heard);
        let since =
            heard.unwrap_or(self.view.holder_since).max(self.view.holder_since).max(self.born.unwrap_or(self.now));
        match peer.and_then(|peer| peer.evidence) {
            Some(Evidence::AllRefused) => self.now,
            Some(Evidence::AgentRefused) => since + self.granted_lease(),
            _ => since + self.config.suspicion,
        }
    }

    pub(crate) fn may_ever_stand(&self) -> bool {
        self.has_data_role()
            && !self.config.excluded.contains(&self.config.me)
            && self.durable.copy.is_some()
            && self.problem.is_none()
    }

    /// Looks whether this node should raise the term.
    pub(crate) fn plan_stand(&mut self) {
        if self.reign.is_some() || self.leave.is_some() || self.candidacy.is_some() {
            return;
        }
        let Some(record) = self.record().cloned() else { return };
        if record.term < self.durable.promise {
            return; // this view is behind the store: a newer record comes, or is read
        }
        let mine = self.is_me(record.holder.as_ref());
        if !self.may_ever_stand() {
            self.failover_failed("this node can not become primary any more");
            if mine
                && !self.is_superseded()
                && matches!(record.state, ClaimState::Held | ClaimState::Electing)
                && !self.orders.busy()
            {
                self.abdicate("this node holds the term and can not become primary", None);
            }
            return;
        }
        if self.failover.is_some() {
            self.stand_by_order(&record);
            return;
        }
        let invited = record.state == ClaimState::Free && self.is_me(record.wanted.as_ref());
        if self.config.paused && !invited {
            self.suspect = None;
            let holds = record.holder.as_ref().is_some_and(|holder| self.is_me(Some(holder)) || self.hears(holder));
            if !holds {
                self.reason(
                    "paused",
                    "no primary is heard, and the cluster is paused: not standing; resume, or order a failover",
                );
            }
            return;
        }
        let me = self.config.me.clone();
        match (&record.state, &record.holder) {
            (ClaimState::Founding, _) => {}
            (ClaimState::Free, _) => self.stand_when_free(&record),
            (_, None) => self.stand("the record names no holder", "the record named no holder"),
            (_, Some(_)) if mine => {
                let cause = format!("{me} held the term and was no longer primary (its agent or server was restarted)");
                self.stand("this node holds the term and is not primary", &cause);
            }
            (_, Some(holder)) => self.stand_when_silent(&record, &holder.clone()),
        }
    }

    fn stand_when_free(&mut self, record: &Record) {
        if self.is_me(record.wanted.as_ref()) {
            self.stand("the last holder stepped down in favour of this node", "");
            return;
        }
        let mut at = self.view.since + Span(STAGGER_MS * self.rank(record));
        if let Some(other) = &record.wanted {
            self.reason("hold-back", format!("{other} is to stand next"));
            at = at + Span(HOLD_BACK_MS);
        }
        if self.now < at {
            self.until(at);
            return;
        }
        let answering = |node: &NodeId| self.is_me(Some(node)) || self.hears(node);
        if !enough(record, record.members.keys().filter(|node| answering(node)).count(), |node| answering(node)) {
            self.reason(
                "hold-back",
                format!("too few members are heard: {} of {}", self.heard_members(record), need(record)),
            );
            return;
        }
        self.stand("nobody holds the term", "nobody held the term");
    }

    fn heard_members(&self, record: &Record) -> usize {
        record.members.keys().filter(|node| self.is_me(Some(node)) || self.hears(node)).count()
    }

    fn stand_when_silent(&mut self, record: &Record, holder: &NodeId) {
        let silent_at = self.silent_at(holder);
        if self.now < silent_at {
            self.suspect = None;
            self.until(silent_at);
            return;
        }
        if self.suspect.is_none() {
            self.reason(
                "suspect",
                format!("{holder}, holder of term {}, is not heard: asking the others", record.term),
            );
            self.loss.get_or_insert(self.now);
            self.suspect = Some(Suspect {
                holder: holder.clone(),
                term: record.term,
                since: self.now,
                ask_at: self.now,
                told: BTreeMap::new(),
            });
        }
        self.ask();
        if self.told_enough(record) {
            self.stand_after_lease(record);
        }
    }

    fn ask(&mut self) {
        let now = self.now;
        let Some(suspect) = self.suspect.as_mut() else { return };
        if suspect.ask_at <= now {
            suspect.ask_at = now + Span(ASK_AGAIN_MS);
            let message = Message::Ask { term: suspect.term };
            self.send_voters(&message);
        }
        if let Some(at) = self.suspect.as_ref().map(|suspect| suspect.ask_at) {
            self.until(at);
        }
    }

    /// Would q + 1 members answer (or the leader itself), and does none of them hear the holder?
    fn told_enough(&mut self, record: &Record) -> bool {
        let Some(suspect) = self.suspect.as_ref() else { return false };
        let fresh = |at: Moment| self.now.since(at).0 <= TOLD_VALID_MS;
        let hearing =
            suspect.told.iter().find(|(_, (hears, _, at))| *hears && fresh(*at)).map(|(node, _)| node.clone());
        if let Some(node) = hearing {
            self.reason("hold-back", format!("{node} hears the holder, or knows a newer term"));
            return false;
        }
        let answers = |node: &NodeId| {
            self.is_me(Some(node)) || suspect.told.get(node).is_some_and(|(_, would, at)| *would && fresh(*at))
        };
        let count = record.members.keys().filter(|node| answers(node)).count();
        let allowed = enough(record, count, answers) || record.asynchronous;
        let (since, rank) = (suspect.since, self.rank(record));
        if !allowed {
            self.reason("hold-back", format!("too few members would answer: {count} of {}", need(record)));
            return false;
        }
        let at = since + Span(STAGGER_MS * rank);
        if self.now < at {
            self.until(at);
            return false;
        }
        true
    }

    fn stand_after_lease(&mut self, record: &Record) {
        let waits = record.asynchronous && record.state == ClaimState::Held;
        if waits
            && let Some(at) = self.lease_ends()
            && !self.planted(Plant::AsyncWithoutLeaseWait)
        {
            self.until(at);
            self.reason("hold-back", "asynchronous mode: waiting until the lease has run out");
            return;
        }
        let cause = self.silence(record);
        self.stand("the holder is silent and enough members would answer", &cause);
    }

    /// What is known of a holder that is not heard, for the history.
    fn silence(&self, record: &Record) -> String {
        let Some(holder) = &record.holder else { return String::new() };
        let peer = self.peers.get(holder);
        let heard = peer.and_then(|peer| peer.heard).map(|at| self.now.since(at));
        let silent = heard.map_or("never heard here".to_owned(), |span| format!("not heard for {span}"));
        match peer.and_then(|peer| peer.evidence) {
            Some(Evidence::AllRefused) => format!("{holder} {silent}: its agent and its server were dead"),
            Some(Evidence::AgentRefused) => format!("{holder} {silent}: its agent was dead"),
            Some(Evidence::ServerRefused) => format!("{holder} {silent}: its server was dead"),
            None => format!("{holder} {silent}"),
        }
    }

    /// My place among those who may stand: members first, by the position last heard, then by the file.
    fn rank(&self, record: &Record) -> u64 {
        let key = |node: &NodeId, position: Option<Position>| {
            let place = self.config.data_nodes.get(node).copied().unwrap_or(u32::MAX);
            (!record.members.contains_key(node), std::cmp::Reverse(position), place)
        };
        let mine = key(&self.config.me, self.position_hint());
        let before = self.config.data_nodes.keys().filter(|node| **node != self.config.me).filter(|node| {
            let presence = self.peers.get(*node).and_then(|peer| peer.presence.as_ref());
            let able =
                presence.is_some_and(|presence| presence.copy.is_some()) && !self.config.excluded.contains(*node);
            able && self.hears(node) && key(node, presence.and_then(|presence| presence.position)) < mine
        });
        before.count() as u64
    }

    // ---- raising -----------------------------------------------------------------------------------------------------

    /// Raises the term. `cause` is kept for the history, unless an earlier one still waits for a primary to open.
    pub(crate) fn stand(&mut self, why: &str, cause: &str) {
        if self.now < self.pause_until {
            let at = self.pause_until;
            self.until(at);
            return;
        }
        let standby = self.server.is(ServerState::Standby) && !self.orders.killing();
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
        self.reason("stand", "the term was not raised: somebody else was first, or the store did not answer");
    }

    // ---- collecting --------------------------------------------------------------------------------------------------

    pub(crate) fn on_answer(&mut self, from: &NodeId, answer: Answer) {
        let old = self.planted(Plant::OldAnswers);
        let known = self.counts(from);
        let Some(candidacy) = self.candidacy.as_mut() else { return };
        if (answer.term == candidacy.term || old) && candidacy.stage != Stage::Raising && known {
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
            self.give_up("too few recruits answered in time", None);
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

/// How many answers of members an election needs.
fn need(record: &Record) -> usize {
    record.quorum as usize + 1
}

fn enough(record: &Record, count: usize, answers: impl Fn(&NodeId) -> bool) -> bool {
    count >= need(record)
        || record.leader.as_ref().is_some_and(|leader| record.members.contains_key(leader) && answers(leader))
}
