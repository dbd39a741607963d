//! When to stand: a holder in doubt, asking the others first, and who goes first.

use crate::io::Evidence;
use crate::mind::Mind;
use crate::plant::Plant;
use crate::server::UNSTARTABLE_MS;
use mainstay_model::{ClaimState, Message, Moment, NodeId, Position, Record, ServerState, Span, Term};
use std::collections::BTreeMap;

const ASK_AGAIN_MS: u64 = 200;
const TOLD_VALID_MS: u64 = 1000;
const HOLD_BACK_MS: u64 = 400;
const STAGGER_MS: u64 = 150;
/// So long the holder's server may take to come up before the term is given to somebody whose server runs.
const IDLE_MS: u64 = 10_000;
/// The same where a take-over may lose what only this log holds.
const IDLE_ASYNCHRONOUS_MS: u64 = 300_000;

/// A holder in doubt.
#[derive(Clone, Debug)]
pub(crate) struct Suspect {
    pub(crate) holder: NodeId,
    pub(crate) term: Term,
    since: Moment,
    ask_at: Moment,
    told: BTreeMap<NodeId, (bool, bool, Moment)>,
}

/// A holder beside a server that does not run.
struct Idle {
    since: Moment,
    patience: Span,
    why: &'static str,
    /// What the server said.
    known: String,
}

impl Mind {
    pub(crate) fn on_ask(&mut self, from: &NodeId, term: Term) {
        let Some(record) = self.record() else { return };
        let holder = record.holder.clone();
        let same = record.term == term;
        let hears = same
            && holder
                .as_ref()
                .is_some_and(|holder| self.is_me(Some(holder)) || (self.hears(holder) && !self.gave_way(holder)));
        let newer = record.term > term || self.durable.promise > term;
        // A node that the configuration no longer lists answers too, as long as it has its copy: the record may count it.
        let void = self.position_hint().is_some_and(|end| self.is_void(end));
        let would_answer =
            !newer && !void && self.durable.copy.is_some() && self.problem.is_none() && !self.orders.doomed();
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

    /// From when on a removed node that raised the term, and did not claim it, holds nobody back, however alive its agent is: it may
    /// have stopped its server, and may no longer reach the store to give the term back.
    fn removed_gives_way(&self, holder: &NodeId) -> Option<Moment> {
        let electing = self.record().is_some_and(|record| record.state == ClaimState::Electing);
        let lease = self.granted_lease();
        (electing && !self.config.data_nodes.contains_key(holder))
            .then(|| self.view.holder_since.max(self.born.unwrap_or(self.now)) + lease + self.margin_of(lease))
    }

    /// Has that moment passed?
    pub(crate) fn gave_way(&self, holder: &NodeId) -> bool {
        self.removed_gives_way(holder).is_some_and(|at| self.now >= at)
    }

    /// From when on the holder counts as silent.
    fn silent_at(&self, holder: &NodeId) -> Moment {
        let heard_on = self.heard_silent_at(holder);
        self.removed_gives_way(holder).map_or(heard_on, |at| at.min(heard_on))
    }

    fn heard_silent_at(&self, holder: &NodeId) -> Moment {
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
        // The best log of all may be that of a node that was just removed: invited, it stands, and then hands over. Once its server is
        // stopped for good it can not, and must not sit on the invitation.
        let stopped = self.server.is(ServerState::Down)
            && self.record().is_some_and(|record| !record.members.contains_key(&self.config.me));
        let invited = !stopped && self.record().is_some_and(|record| self.is_me(record.wanted.as_ref()));
        (self.has_data_role() || invited || self.holds_the_only_copy())
            && !self.config.excluded.contains(&self.config.me)
            && self.durable.copy.is_some()
            && self.problem.is_none()
            && !self.position_hint().is_some_and(|end| self.is_void(end))
    }

    /// A removed node that is still a member, while every data node is heard and says that it has no whole copy.
    fn holds_the_only_copy(&self) -> bool {
        let member = self.record().is_some_and(|record| record.members.contains_key(&self.config.me));
        let bare = |node: &NodeId| {
            let presence = self.peers.get(node).and_then(|peer| peer.presence.as_ref());
            self.hears(node) && presence.is_some_and(|presence| presence.copy.is_none())
        };
        member && !self.config.data_nodes.is_empty() && self.config.data_nodes.keys().all(bare)
    }

    /// Looks whether this node should raise the term.
    pub(crate) fn plan_stand(&mut self) {
        if self.reign.is_some() || self.leave.is_some() || self.candidacy.is_some() {
            self.idle_since = None;
            return;
        }
        let Some(record) = self.record().cloned() else { return };
        if record.term < self.durable.promise {
            return; // this view is behind the store: a newer record comes, or is read
        }
        let mine = self.is_me(record.holder.as_ref());
        let idle = mine && !self.config.paused && !self.server.is(ServerState::Standby);
        self.idle_since = idle.then(|| self.idle_since.unwrap_or(self.now));
        if !self.may_ever_stand() {
            self.failover_failed("this node can not become primary any more");
            if mine && matches!(record.state, ClaimState::Held | ClaimState::Electing) {
                self.give_back("can not become primary");
            }
            return;
        }
        if let Some(node) = self.restore_elsewhere() {
            self.suspect = None;
            self.reason(
                "hold-back",
                format!("the cluster is restored to an earlier moment on {node}: only that copy can be primary"),
            );
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
            (_, Some(_)) if self.idle_since.is_some() => self.give_back_idle(&record),
            (_, Some(_)) if mine => {
                let why = self.fenced.as_ref().filter(|(term, _)| *term == record.term).map(|(_, why)| why.as_str());
                let why = why.unwrap_or("its agent or server was restarted");
                let cause = format!("{me} held the term and was no longer primary ({why})");
                self.stand("this node holds the term and is not primary", &cause);
            }
            (_, Some(holder)) => self.stand_when_silent(&record, &holder.clone()),
        }
    }

    /// A term that this node holds while its server does not run. Its agent lives, so that nobody doubts it, and it would hold the term for as long
    /// as that lasts: for ever on a full disk.
    fn give_back_idle(&mut self, record: &Record) {
        let Some(idle) = self.idleness(record) else { return };
        if self.now < idle.since + idle.patience {
            self.until(idle.since + idle.patience);
            return;
        }
        if let Some(text) = self.nobody_instead(record) {
            // Where nobody could become primary, term after term would be raised and given back; and a recovery would be ended for nothing.
            let why = idle.why;
            self.reason("hold-back", format!("this node holds the term and {why}; it keeps the term: {text}"));
            return;
        }
        if self.planted(Plant::IdleHolderStays) || self.is_superseded() || self.orders.killing() {
            return;
        }
        let lost = if record.asynchronous { "; what only its log holds may be lost" } else { "" };
        let text =
            format!("this node holds the term and {} for {}{}{lost}", idle.why, self.now.since(idle.since), idle.known);
        let cause = format!("{} held the term and {}", self.config.me, idle.why);
        self.abdicate_idle(&text, &cause);
    }

    /// Since when the holder's server does not run, for how long that may be so, and what is the matter.
    fn idleness(&self, record: &Record) -> Option<Idle> {
        let leads = self.is_me(record.leader.as_ref());
        // One more try may just be reading its log.
        let tries = self.orders.at_work() || self.server.is(ServerState::Starting);
        if let Some((since, known)) = self.server.unstartable.clone().filter(|_| !tries) {
            // What it led with may be more than what others have, and one failure to start proves little: that is tried for a while.
            let patience = Span(if leads { UNSTARTABLE_MS } else { 0 });
            return Some(Idle { since, patience, why: "its copy can not be started", known: format!(" ({known})") });
        }
        let patience = Span(if record.asynchronous && leads { IDLE_ASYNCHRONOUS_MS } else { IDLE_MS });
        let since = self.idle_since?;
        Some(Idle { since, patience, why: "its server has not come up", known: String::new() })
    }

    /// Why nobody else could become primary, if so.
    fn nobody_instead(&self, record: &Record) -> Option<String> {
        let serves = |node: &NodeId| self.serves_as_standby(record, node);
        let count = record.members.keys().filter(|node| serves(node)).count();
        if !record.asynchronous && !enough(record, count, serves) {
            let need = need(record);
            return Some(format!(
                "too few others are heard whose copies count and whose servers run: {count} of {need}"
            ));
        }
        let may = |node: &NodeId| !self.config.excluded.contains(node) && self.standby_copy(node).is_some();
        let somebody = self.config.data_nodes.keys().any(may);
        (!somebody).then(|| "nobody who may become primary is heard with a server that runs".to_owned())
    }

    /// Is this another node that is heard, with the copy that the record counts and a server that runs?
    fn serves_as_standby(&self, record: &Record, node: &NodeId) -> bool {
        let shown = self.standby_copy(node);
        shown.is_some() && shown == record.members.get(node).copied()
    }

    /// The copy of another node that is heard and whose server runs as a standby.
    fn standby_copy(&self, node: &NodeId) -> Option<mainstay_model::CopyId> {
        let presence = self.peers.get(node).and_then(|peer| peer.presence.as_ref())?;
        let runs = presence.server == ServerState::Standby && self.hears(node);
        presence.copy.filter(|_| runs && !self.is_me(Some(node)))
    }

    /// A term that this node holds and can not use.
    fn give_back(&mut self, why: &str) {
        if !self.is_superseded() && !self.orders.busy() {
            let cause = format!("{} held the term and {why}", self.config.me);
            self.abdicate_because(&format!("this node holds the term and {why}"), None, &cause);
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
            let seen = if self.gave_way(holder) { "was removed and did not claim it" } else { "is not heard" };
            self.reason("suspect", format!("{holder}, holder of term {}, {seen}: asking the others", record.term));
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
        if self.gave_way(holder) {
            return format!("{holder} was removed while it stood for primary");
        }
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
}

/// How many answers of members an election needs.
fn need(record: &Record) -> usize {
    record.quorum as usize + 1
}

fn enough(record: &Record, count: usize, answers: impl Fn(&NodeId) -> bool) -> bool {
    count >= need(record)
        || record.leader.as_ref().is_some_and(|leader| record.members.contains_key(leader) && answers(leader))
}
