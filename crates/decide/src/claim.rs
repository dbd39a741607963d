//! The claim: one write that makes the winner leader, and the promotion that follows it.

use crate::candidate::Candidacy;
use crate::failover::lossy;
use crate::io::Output;
use crate::mind::Mind;
use crate::plant::Plant;
use crate::reign::{Origin, Reign};
use crate::view::Intent;
use mainstay_model::{ClaimState, LogEnd, Moment, Order, Record, ServerState, Timeline};

/// So many timeline numbers are left to a store that this one's record does not know.
const FOREIGN_SKIP: u32 = 64;

impl Mind {
    /// The record that a claim would write.
    fn claim_record(&mut self, candidacy: &Candidacy, mine: &LogEnd) -> Option<Record> {
        let mut record = candidacy.record.clone();
        let copy = self.durable.copy?;
        if record.asynchronous || candidacy.forced {
            record.members.clear();
            record.quorum = 0;
        }
        if self.planted(Plant::KeepOnlyAnswers) {
            record.members.retain(|node, _| candidacy.answers.contains_key(node));
            let size = u32::try_from(record.members.len()).unwrap_or(0);
            record.quorum = size.saturating_sub(1 + self.config.sync_replicas);
        }
        record.members.insert(self.config.me.clone(), copy);
        record.state = ClaimState::Held;
        record.leader = Some(self.config.me.clone());
        record.wanted = None;
        record.held = None;
        self.grant(&mut record);
        // A timeline that this record never handed out is that of another store's primary, which this server has followed: that one hands
        // out the next numbers, too, and two logs under one number could not be told apart.
        let (handed_out, own) = (record.timeline.0, mine.position.timeline.0);
        record.timeline = Timeline(if own > handed_out { own + FOREIGN_SKIP } else { handed_out } + 1);
        if self.planted(Plant::LocalTimelines) {
            record.timeline = Timeline(mine.position.timeline.0 + 1);
        }
        record.lineage = mine.forked();
        if lossy(candidacy) {
            record.lossy = Some(record.timeline);
        }
        Some(record)
    }

    pub(crate) fn claim(&mut self) {
        let Some(candidacy) = self.candidacy.clone() else { return };
        let Some(mine) = candidacy.answers.get(&self.config.me).map(|answer| answer.end.clone()) else { return };
        let claimed = self.record().is_some_and(|record| {
            record.state == ClaimState::Held && record.term == candidacy.term && self.is_me(record.leader.as_ref())
        });
        if !self.can_write() {
            return;
        }
        if claimed {
            // My own claim, whose reply was lost, has landed: a renewal of mine makes it certain.
            let Some(mut record) = self.record().cloned() else { return };
            self.grant(&mut record);
            self.write(Intent::Claim, record);
        } else if let Some(record) = self.claim_record(&candidacy, &mine) {
            self.earlier_lease = self.lease_ends().map(|at| (at, self.granted_lease()));
            self.write(Intent::Claim, record);
        }
    }

    /// The claim is mine: promote.
    pub(crate) fn claimed(&mut self, deadline: Moment) {
        let Some(candidacy) = self.candidacy.take() else { return };
        let Some(record) = self.record().cloned() else { return };
        let Some(mine) = candidacy.answers.get(&self.config.me).map(|answer| answer.end.clone()) else { return };
        let ready = self.durable.promise == record.term
            && self.durable.upstream.is_none()
            && self.server.is(ServerState::Standby)
            && self.server.end.as_ref() == Some(&mine)
            && !self.orders.busy();
        let late = self.now > deadline && !self.planted(Plant::PromoteWithoutDeadline);
        if !ready || late {
            self.abdicate("the claim is written, but this server can not be promoted any more", None);
            return;
        }
        let setting = self.first_setting(&record, candidacy.record.members.contains_key(&self.config.me));
        let (term, timeline) = (record.term, record.timeline);
        self.tell("elected", format!("elected for term {term} from {} answers", candidacy.answers.len()));
        self.tell_at_risk(&candidacy, &mine);
        let mut reign = Reign::promoting(self.now, term, deadline, setting.clone(), self.config.lease);
        reign.origin = Origin {
            cause: record.reason.clone(),
            from: candidacy.record.leader.clone(),
            fork: Some(mine.position),
            at_risk: self.at_risk(&candidacy, &mine),
        };
        self.reign = Some(reign);
        self.out.push(Output::Deadline(term, deadline));
        self.server.forget_end();
        self.order(term, Order::Promote { setting, timeline, fork: mine.position });
    }

    // ---- plant 17 ----------------------------------------------------------------------------------------------------

    pub(crate) fn name_leader_early(&mut self) {
        if !self.can_write() {
            return;
        }
        let Some(mut record) = self.candidacy.as_ref().map(|candidacy| candidacy.record.clone()) else { return };
        let Some(copy) = self.durable.copy else { return };
        record.leader = Some(self.config.me.clone());
        record.members.insert(self.config.me.clone(), copy);
        self.grant(&mut record);
        self.write(Intent::Early, record);
    }

    pub(crate) fn early_done(&mut self) {
        let Some(record) = self.record().cloned() else { return };
        if let Some(candidacy) = self.candidacy.as_mut() {
            candidacy.early = true;
            candidacy.record = record;
        }
    }
}
