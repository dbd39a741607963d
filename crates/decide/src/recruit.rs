//! Being recruited: promise, cut, read, and only then answer.

use crate::mind::Mind;
use crate::plant::Plant;
use mainstay_model::{Answer, LogEnd, Message, NodeId, Position, ServerState, Term};

impl Mind {
    pub(crate) fn on_recruit(&mut self, from: &NodeId, term: Term) {
        self.note_incarnation(from, term);
        let holds_data = self.has_data_role() || self.durable.copy.is_some();
        if self.lost || self.problem.is_some() || self.is_superseded() || !holds_data || term < self.durable.promise {
            return;
        }
        if self.planted(Plant::AnswerWhilePrimary) && self.answer_while_primary(from, term) {
            return;
        }
        if term > self.durable.promise {
            self.promise(term);
            self.reason("recruit", format!("recruited by {from} for term {term}"));
        }
        let follows = self.durable.upstream.as_ref().is_some_and(|upstream| upstream.term == term);
        if follows || self.reign.is_some() {
            return;
        }
        self.asked = Some((from.clone(), term));
    }

    /// Promises a newer term: everything of older ones ends here, and the stream is cut.
    pub(crate) fn promise(&mut self, term: Term) {
        if term <= self.durable.promise {
            return;
        }
        let upstream = self.durable.upstream.is_some();
        self.persist(|durable| {
            durable.promise = term;
            durable.upstream = None;
        });
        if upstream {
            self.server.forget_end();
        }
        self.server.retry_at = self.now;
        if self.candidacy.as_ref().is_some_and(|candidacy| candidacy.term < term) {
            self.candidacy = None;
        }
        if self.reign.as_ref().is_some_and(|reign| reign.term < term) {
            self.fence("recruited for a newer term");
        }
        if self.asked.as_ref().is_some_and(|(_, asked)| *asked < term) {
            self.asked = None;
        }
    }

    /// What I would answer for this term; `None` while any part of it does not hold.
    pub(crate) fn my_answer(&self, term: Term) -> Option<Answer> {
        let cut = self.durable.upstream.is_none();
        let quiet = self.reign.is_none() && !self.orders.hides_probes() && !self.server.is(ServerState::Primary);
        if self.durable.promise != term || !cut || !quiet || self.problem.is_some() || self.is_superseded() {
            return None;
        }
        let end = self.server.end.clone().filter(|end| !self.is_void(end.position))?;
        Some(Answer { term, copy: self.durable.copy?, end })
    }

    /// Answers the candidate that asked, as soon as that is true.
    pub(crate) fn answer_recruit(&mut self) {
        let Some((candidate, term)) = self.asked.clone() else { return };
        if let Some(answer) = self.my_answer(term) {
            self.asked = None;
            self.reason(
                "recruit",
                format!("answered {candidate} for term {term}: the log ends at {}", answer.end.position),
            );
            self.send(candidate, Message::Answer(answer));
        }
    }

    /// Plant 25.
    fn answer_while_primary(&mut self, from: &NodeId, term: Term) -> bool {
        let (Some(copy), Some(seen), Some(record)) = (self.durable.copy, &self.server.seen, self.record()) else {
            return false;
        };
        let (Some(timeline), Some(lsn), true) = (seen.timeline, seen.end, self.reign.is_some()) else { return false };
        let lineage = record.lineage.clone();
        let end = LogEnd { position: Position { timeline, lsn }, lineage };
        self.persist(|durable| durable.promise = term);
        self.send(from.clone(), Message::Answer(Answer { term, copy, end }));
        true
    }
}
