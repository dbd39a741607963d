//! A failover that an operator orders: stand at once, whatever is heard of the holder; and, if the operator accepts the loss, go on
//! with too few answers once the last lease has run out.

use crate::candidate::Candidacy;
use crate::mind::Mind;
use crate::plant::Plant;
use mainstay_model::{ClaimState, LogEnd, Moment, NodeId, Position, Record, ServerState, Span, Term};

/// For so long the raise is tried.
const RAISE_MS: u64 = 2_000;
/// For so long answers are awaited.
const ANSWERS_MS: u64 = 2_000;
/// After the lease, for what then remains to be done.
const SLACK_MS: u64 = 500;

/// An operator's order.
#[derive(Clone, Debug)]
pub(crate) struct Ordered {
    by: String,
    pub(crate) accept_data_loss: bool,
    /// The term in force when it was given.
    against: Term,
    until: Moment,
}

impl Mind {
    pub(crate) fn on_failover(&mut self, by: &str, accept_data_loss: bool) -> Result<String, String> {
        self.fit_to_stand()?;
        let Some(record) = self.record() else { return Err("the record has not been read yet: try again".to_owned()) };
        let against = record.term;
        let until = self.now + Span(RAISE_MS);
        self.tell(
            "failover-begun",
            format!(
                "{by} ordered a failover to {}{}",
                self.config.me,
                if accept_data_loss { ", accepting a loss" } else { "" }
            ),
        );
        self.failover = Some(Ordered { by: by.to_owned(), accept_data_loss, against, until });
        self.pause_until = self.now;
        Ok(if accept_data_loss {
            "standing now; if too few members answer, going on without them once the last lease has run out".to_owned()
        } else {
            "standing now, as soon as enough members answer".to_owned()
        })
    }

    /// Why this node can not stand on request, if so.
    fn fit_to_stand(&self) -> Result<(), String> {
        let me = &self.config.me;
        let refuse = |why: &str| Err(format!("{me} {why}"));
        if let Some(problem) = &self.problem {
            return Err(problem.clone());
        }
        let Some(record) = self.record() else { return Err("the record has not been read yet: try again".to_owned()) };
        if self.lost || record.term < self.durable.promise {
            return Err(format!("{me}'s view of the record is behind the store: try again"));
        }
        if self.reign.is_some() {
            return refuse("is primary, or about to be");
        }
        if self.candidacy.is_some() || self.failover.is_some() || self.leave.is_some() {
            return refuse("is standing already: wait for how that ends");
        }
        if record.state == ClaimState::Founding {
            return Err("the cluster's first copy is being made".to_owned());
        }
        if !self.has_data_role() {
            return refuse("is no data node");
        }
        if self.config.excluded.contains(me) {
            return refuse("is not allowed to become primary");
        }
        if self.durable.copy.is_none() {
            return refuse("has no whole copy of the data");
        }
        if let Some(node) = self.restore_elsewhere() {
            return Err(format!("the cluster is restored on {node}: nobody else can be primary before"));
        }
        if self.position_hint().is_some_and(|end| self.is_void(end)) {
            return refuse("holds data of before the cluster was restored to an earlier moment");
        }
        if !self.server.is(ServerState::Standby) || self.orders.killing() {
            return refuse("does not run as a standby: choose another node, or start it first");
        }
        Ok(())
    }

    pub(crate) fn stand_by_order(&mut self, record: &Record) {
        let Some(ordered) = self.failover.clone() else { return };
        if record.state == ClaimState::Held && record.term > ordered.against {
            self.failover_failed("another node became primary meanwhile");
            return;
        }
        if self.now > ordered.until {
            self.failover_failed("the term could not be raised: the store did not take the write in time");
            return;
        }
        self.until(ordered.until + Span(1));
        let cause = format!("failover to {}, ordered by {}", self.config.me, ordered.by);
        self.stand("an operator ordered it", &cause);
    }

    /// How long an ordered candidacy may take.
    pub(crate) fn patience(&self, ordered: &Ordered) -> Span {
        let asynchronous = self.record().is_some_and(|record| record.asynchronous);
        let waits = ordered.accept_data_loss || asynchronous;
        let lease = self.lease_ends().filter(|_| waits).map_or(Span(0), |at| at.since(self.now));
        Span(ANSWERS_MS.max(lease.0) + if waits { SLACK_MS } else { 0 })
    }

    /// Too few answers, and the operator accepted that: not before a bounded time, and never while the last lease may run.
    pub(crate) fn enough_by_order(&mut self, candidacy: &Candidacy) -> bool {
        if !candidacy.ordered.as_ref().is_some_and(|ordered| ordered.accept_data_loss) {
            return false;
        }
        let answers = candidacy.since + Span(ANSWERS_MS);
        let lease = self.lease_ends().filter(|_| !self.planted(Plant::ForcedWithoutLeaseWait));
        let at = lease.map_or(answers, |lease| lease.max(answers));
        if self.now < at {
            self.until(at);
        }
        self.now >= at
    }

    /// An ordered failover ends without a primary: says who did not answer.
    pub(crate) fn failover_failed(&mut self, why: &str) {
        let waiting = self.failover.take();
        let candidacy = self.candidacy.as_ref().filter(|candidacy| candidacy.ordered.is_some());
        let Some(ordered) = waiting.or_else(|| candidacy.and_then(|candidacy| candidacy.ordered.clone())) else {
            return;
        };
        let silent = candidacy.map_or_else(String::new, |candidacy| {
            let names: Vec<String> = unanswered(candidacy).iter().map(ToString::to_string).collect();
            if names.is_empty() { String::new() } else { format!("; no answer came from {}", names.join(", ")) }
        });
        self.tell("failover-failed", format!("the failover that {} ordered: {why}{silent}", ordered.by));
    }

    /// After my claim: how many bytes of the last leader's log beyond this end were heard of; `None`: nothing acknowledged can be missing.
    pub(crate) fn at_risk(&self, candidacy: &Candidacy, mine: &LogEnd) -> Option<u64> {
        // As the claim was written: an answer that came later was not compared with.
        if self.record().is_none_or(|record| record.lossy != Some(record.timeline)) {
            return None;
        }
        let leader = candidacy.record.leader.as_ref()?;
        let heard =
            self.peers.get(leader).and_then(|peer| peer.presence.as_ref()).and_then(|presence| presence.position);
        let heard = heard.filter(|at| !mine.lineage.contains(*at, mine.position.timeline, mine.position.lsn));
        Some(heard.map_or(0, |at| at.lsn.0.saturating_sub(mine.position.lsn.0)))
    }

    /// Says what could be missing after a claim that could not ask everybody.
    pub(crate) fn tell_at_risk(&mut self, candidacy: &Candidacy, mine: &LogEnd) {
        let Some(bytes) = self.at_risk(candidacy, mine) else { return };
        let leader = candidacy.record.leader.as_ref();
        let heard = leader.and_then(|leader| self.peers.get(leader)?.presence.as_ref()?.position);
        let mine_alone = self.is_me(leader);
        let leader = leader.map_or("the last leader".to_owned(), ToString::to_string);
        let names: Vec<String> = unanswered(candidacy).iter().map(ToString::to_string).collect();
        let at = mine.position;
        let text = if names.is_empty() {
            // Everybody who counts has answered: it is those of the lost store, who do not count any more, that are not known of.
            let within = |at: &Position| mine.lineage.contains(*at, mine.position.timeline, mine.position.lsn);
            let known = match heard {
                _ if mine_alone => "this node was the last leader itself".to_owned(),
                None => format!("the position of {leader}, the last leader, was never heard here"),
                Some(heard) if within(&heard) => {
                    format!("{leader}, the last leader, was last heard at {heard}, and this log holds that")
                }
                Some(heard) => {
                    format!("{leader}, the last leader, was last heard at {heard}, {bytes} bytes beyond this log")
                }
            };
            format!(
                "took over at {at} after a rebuilt store, or a claim without enough answers that never opened: whether others \
                 acknowledged what this log lacks can not be known; {known}"
            )
        } else {
            let heard =
                heard.map_or("its position was never heard here".to_owned(), |at| format!("last heard at {at}"));
            format!(
                "took over at {at} without an answer of {}: what {leader} alone acknowledged may be missing ({heard}, at most \
                 {bytes} bytes of it were heard of)",
                names.join(", ")
            )
        };
        let kind = match (candidacy.forced, candidacy.record.asynchronous) {
            (true, _) => "forced",
            (false, true) => "asynchronous-take-over",
            (false, false) => "loss-possible",
        };
        self.tell(kind, text);
    }
}

/// May something acknowledged be missing in what this candidate claims with?
pub(crate) fn lossy(candidacy: &Candidacy) -> bool {
    let record = &candidacy.record;
    let answered = record.leader.as_ref().is_none_or(|leader| good(candidacy, leader));
    // A claim of that kind which never became a timeline of its own was not told either.
    let mine =
        record.holder.as_ref().and_then(|me| candidacy.answers.get(me)).map(|answer| answer.end.position.timeline);
    let untold = record.lossy == Some(record.timeline) && mine.is_some_and(|mine| mine < record.timeline);
    candidacy.forced || (record.asynchronous && !answered) || untold
}

fn good(candidacy: &Candidacy, node: &NodeId) -> bool {
    candidacy.answers.get(node).is_some_and(|answer| candidacy.record.members.get(node) == Some(&answer.copy))
}

/// Members that did not answer with the copy that counts.
fn unanswered(candidacy: &Candidacy) -> Vec<NodeId> {
    candidacy.record.members.keys().filter(|node| !good(candidacy, node)).cloned().collect()
}
