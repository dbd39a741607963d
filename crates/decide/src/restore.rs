//! A restore of the whole cluster in place (docs/adr/0031): clients are kept out while a node prepares the copy; one write of the record makes
//! everything void that lies behind the moment; then the copy takes the data's place, and its node is elected like any other.
//!
//! The write makes that copy the only member and its node the leader, on a timeline that is higher than every number handed out before. So
//! nobody else can be elected, no older log compares as better, and the rules for followers find every other log to be no prefix. Whatever is
//! interrupted after the write is gone on with from the record alone.

use crate::candidate::clip;
use crate::mind::Mind;
use crate::reign::Phase;
use crate::view::Intent;
use mainstay_model::record::{Durability, Restored};
use mainstay_model::{
    ClaimState, Moment, NodeId, Order, OrderFailure, Position, Record, Restoration, Revision, RouteState, ServerState,
    Span, Timeline,
};
use std::collections::BTreeMap;

/// For so long the write is tried.
const WRITE_MS: u64 = 10_000;
/// Clients are kept out for so long at most, unless it is asked again.
const HOLD_MAX_MS: u64 = 120_000;
const CLOSE_AGAIN_MS: u64 = 200;
const ADOPT_AGAIN_MS: u64 = 500;

/// A restore that is to be written.
#[derive(Clone, Debug)]
pub(crate) struct Restoring {
    wanted: Restoration,
    by: String,
    until: Moment,
    /// Over which version of the record the newest write went, and the newest that was not answered: until a later version is seen it may
    /// still come to be.
    over: (u64, Revision),
    unknown: Option<(u64, Revision)>,
    /// It is not written again; what became of it was told to be unknown.
    given_up: bool,
}

impl Mind {
    // ---- keeping clients out -----------------------------------------------------------------------------------------

    pub(crate) fn on_hold(&mut self, by: &str, for_ms: u64) -> Result<String, String> {
        let now = self.now;
        let Some(reign) = self.reign.as_mut().filter(|reign| reign.phase == Phase::Serving && reign.opened) else {
            return Err("this node is not an open primary".to_owned());
        };
        if reign.changing() {
            return Err("a switchover or a restart is under way: wait for how that ends".to_owned());
        }
        if for_ms == 0 {
            reign.held = reign.held.map(|_| now);
            return Ok("letting clients in again".to_owned());
        }
        let (first, term) = (reign.held.is_none(), reign.term);
        reign.held = Some(now + Span(for_ms.min(HOLD_MAX_MS)));
        if first {
            reign.shut = false;
            reign.shut_at = now;
            self.close_route(term);
            self.tell("held", format!("{by} has clients kept out while a restore in place is prepared"));
        }
        Ok("clients are kept out".to_owned())
    }

    /// Has clients put out, and lets them in again when nobody asks any more.
    pub(crate) fn plan_hold(&mut self) {
        let busy = self.orders.busy();
        let now = self.now;
        let Some(reign) = self.reign.as_mut() else { return };
        let Some(until) = reign.held else { return };
        if now >= until {
            if busy {
                return;
            }
            reign.held = None;
            // The rule for opening does the rest.
            reign.opened = false;
            self.tell("let-in", "no restore in place is prepared any more: clients are let in again");
            return;
        }
        let (term, shut, at) = (reign.term, reign.shut, reign.shut_at);
        self.until(until);
        if shut || busy {
            return;
        }
        if now < at {
            self.until(at);
            return;
        }
        self.order(term, Order::Close);
    }

    pub(crate) fn closed(&mut self, failure: Option<OrderFailure>) {
        let at = self.now + Span(CLOSE_AGAIN_MS);
        if let Some(reign) = self.reign.as_mut() {
            (reign.shut, reign.shut_at) = (failure.is_none(), at);
        }
    }

    // ---- the write ---------------------------------------------------------------------------------------------------

    pub(crate) fn on_restore(&mut self, by: &str, wanted: Restoration) -> Result<String, String> {
        if let Some(problem) = &self.problem {
            return Err(problem.clone());
        }
        let me = self.config.me.clone();
        let Some(record) = self.record() else { return Err("the record has not been read yet: try again".to_owned()) };
        self.refuse_restoration(record, &wanted)?;
        if record.term < self.durable.promise {
            return Err(format!("{me}'s view of the record is behind the store: try again"));
        }
        // One whose fate is unknown hinders nobody: should it be in force yet, this one's write or number is refused.
        if self.restoring.as_ref().is_some_and(|restoring| !restoring.given_up) {
            return Err("a restore is being written already".to_owned());
        }
        if self.candidacy.is_some() || self.leave.is_some() || self.failover.is_some() {
            return Err(format!("{me} is standing for primary: wait for how that ends"));
        }
        if self.reign.as_ref().is_some_and(crate::reign::Reign::changing) {
            return Err("a switchover or a restart is under way: wait for how that ends".to_owned());
        }
        let text = format!("everything after {} becomes void: {me} goes on from there", wanted.what);
        let (until, over) = (self.now + Span(WRITE_MS), (0, Revision(0)));
        self.restoring = Some(Restoring { wanted, by: clip(by), until, over, unknown: None, given_up: false });
        Ok(text)
    }

    /// Why the record can not be brought to this copy.
    fn refuse_restoration(&self, record: &Record, wanted: &Restoration) -> Result<(), String> {
        let me = &self.config.me;
        if record.state == ClaimState::Founding {
            return Err("the cluster's first copy is being made".to_owned());
        }
        if !self.has_data_role() || self.config.excluded.contains(me) {
            return Err(format!("{me} may not become primary"));
        }
        if record.system != Some(wanted.system) {
            return Err(format!("the copy is of the database {}, and the cluster's is another one", wanted.system));
        }
        if wanted.timeline <= record.timeline {
            return Err(format!(
                "timeline {} was handed out meanwhile ({} is the newest): prepare the copy again",
                wanted.timeline, record.timeline
            ));
        }
        if wanted.lineage.0.last().is_none_or(|left| left.timeline >= wanted.timeline) {
            return Err("the copy does not say where its timeline begins".to_owned());
        }
        Ok(())
    }

    pub(crate) fn plan_restoring(&mut self) {
        let Some(restoring) = self.restoring.clone() else { return };
        let Some(record) = self.record().cloned() else { return };
        if record.restored.as_ref().is_some_and(|restored| restored.copy == restoring.wanted.copy) {
            // A write of mine whose reply was lost.
            self.restored_written();
            return;
        }
        let seen = (record.term.incarnation(), self.revision());
        let unknown = restoring.unknown.is_some_and(|over| seen <= over);
        let refused = self.refuse_restoration(&record, &restoring.wanted).err();
        let late = (restoring.given_up || self.now >= restoring.until)
            .then(|| "the store did not take the write in time".to_owned());
        if let Some(why) = refused.or(late).filter(|_| self.view.cas.is_none()) {
            if unknown {
                self.given_up();
                return;
            }
            self.restoring = None;
            self.tell(
                "restore-refused",
                format!("the restore that {} ordered was not carried out: {why}", restoring.by),
            );
            return;
        }
        self.until(restoring.until);
        if !restoring.given_up && self.can_write() {
            if let Some(restoring) = self.restoring.as_mut() {
                restoring.over = seen;
            }
            let next = self.restored_record(&record, &restoring);
            self.write(Intent::Restore, next);
        }
    }

    /// Its write may have been taken, and may yet be: only a later version of the record tells.
    pub(crate) fn restore_unanswered(&mut self) {
        if let Some(restoring) = self.restoring.as_mut() {
            restoring.unknown = Some(restoring.over);
        }
    }

    fn given_up(&mut self) {
        let Some(restoring) = self.restoring.as_mut().filter(|restoring| !restoring.given_up) else { return };
        restoring.given_up = true;
        let text = format!(
            "whether the restore that {} ordered is carried out is not known: the store did not answer; the record will tell",
            restoring.by
        );
        self.tell("restore-unknown", text);
    }

    /// The record as if this node had been elected at the moment, and had released its term then.
    fn restored_record(&self, record: &Record, restoring: &Restoring) -> Record {
        let (me, wanted) = (self.config.me.clone(), &restoring.wanted);
        let lease = self.granted_lease();
        // Nobody's lease runs, or that of the server here, which is ended first.
        let earlier = self.earlier_lease.is_some_and(|(at, _)| at > self.now);
        let over = record.lease == Some(Span(0)) || (self.is_me(record.leader.as_ref()) && !earlier);
        let wait = if over { Span(0) } else { lease + self.margin_of(lease) };
        let what = clip(&format!("{}, ordered by {}", wanted.what, restoring.by));
        Record {
            term: record.term.max(self.durable.promise).next(),
            holder: None,
            state: ClaimState::Free,
            leader: Some(me.clone()),
            members: BTreeMap::from([(me.clone(), wanted.copy)]),
            quorum: 0,
            timeline: wanted.timeline,
            lineage: wanted.lineage.clone(),
            wanted: Some(me.clone()),
            asynchronous: self.config.durability == Durability::Async,
            lossy: Some(wanted.timeline),
            held: None,
            reason: clip(&format!("the cluster was restored to {what}")),
            restored: Some(Box::new(Restored {
                node: me,
                copy: wanted.copy,
                timeline: wanted.timeline,
                lineage: wanted.lineage.clone(),
                wait,
                what,
            })),
            ..record.clone()
        }
    }

    /// Everything behind the moment is void now.
    pub(crate) fn restored_written(&mut self) {
        let Some(restoring) = self.restoring.take() else { return };
        let Some(record) = self.record().cloned() else { return };
        let moment = record.restored.as_ref().and_then(|restored| restored.lineage.0.last().copied());
        let moment = moment.map_or(String::new(), |at| format!(" at {at}"));
        self.event_of(
            record.term,
            "restored",
            format!(
                "{} had the cluster restored to {}{moment}: what was committed later is void; {} goes on from there",
                restoring.by, restoring.wanted.what, self.config.me
            ),
        );
        self.loss.get_or_insert(self.now);
        self.fence("the cluster is restored to an earlier moment");
        self.candidacy = None;
        self.promise(record.term);
    }

    // ---- what follows from the record --------------------------------------------------------------------------------

    /// The restore that waits for this node.
    fn restore_here(&self) -> Option<&Restored> {
        self.record()?.restoring().filter(|restored| restored.node == self.config.me)
    }

    /// Another node's, which nobody may forestall.
    pub(crate) fn restore_elsewhere(&self) -> Option<NodeId> {
        let restored = self.record()?.restoring()?;
        (restored.node != self.config.me).then(|| restored.node.clone())
    }

    /// Does this node's log hold what a restore made void? Then it answers nobody, stands never, and is cloned anew.
    pub(crate) fn is_void(&self, end: Position) -> bool {
        self.record().and_then(|record| record.restored.as_ref()).is_some_and(|restored| restored.voids(end))
    }

    /// The restored copy waits, as a name for data that are not in their place yet: nothing else here is that copy.
    pub(crate) fn restore_waits(&self) -> bool {
        self.restore_here().is_some_and(|restored| self.durable.copy != Some(restored.copy))
    }

    /// Puts the restored copy into the data's place, once nobody can be open any more. Says whether the server is its business now.
    pub(crate) fn plan_adopt(&mut self) -> bool {
        if !self.restore_waits() {
            self.restore_seen = None;
            return false;
        }
        let Some(restored) = self.restore_here().cloned() else { return false };
        let term = self.record().map(|record| record.term).unwrap_or_default();
        let since = match self.restore_seen {
            Some((timeline, since)) if timeline == restored.timeline => since,
            _ => self.now,
        };
        self.restore_seen = Some((restored.timeline, since));
        if self.reign.is_some() || self.problem.is_some() || self.orders.busy() || self.server.state.is_none() {
            return true;
        }
        if term > self.durable.promise || self.durable.copy.is_some() || self.durable.upstream.is_some() {
            // What lies here is no member's copy any more.
            self.persist(|durable| {
                durable.promise = durable.promise.max(term);
                durable.copy = None;
                durable.upstream = None;
                durable.diverged = None;
            });
            self.server.forget_end();
            self.server.unstartable = None;
        }
        if !self.server.is(ServerState::Down) {
            self.reason("restore", "the restored copy waits: ending the server that runs on the old data");
            self.order_kill();
            return true;
        }
        let over = since + restored.wait;
        if self.now < over {
            self.reason("restore", "the restored copy waits until the last primary's lease has run out for certain");
            self.until(over);
        } else if self.may_retry() {
            self.reason("restore", format!("putting the restored copy {} into the data's place", restored.copy));
            self.order(self.durable.promise, Order::Adopt { copy: restored.copy, timeline: restored.timeline });
        }
        true
    }

    pub(crate) fn adopted_restored(
        &mut self,
        copy: mainstay_model::CopyId,
        timeline: Timeline,
        failure: Option<OrderFailure>,
    ) {
        self.server.set(self.now, ServerState::Down);
        let still = self.restore_here().is_some_and(|restored| restored.copy == copy && restored.timeline == timeline);
        if failure.is_some() || !still {
            self.server.retry_at = self.now + Span(ADOPT_AGAIN_MS);
            return;
        }
        self.tell(
            "restored-copy",
            format!("the restored copy {copy} is in its place; the old data are kept beside it"),
        );
        self.server.ordered = true;
        self.copy_made(Some(copy));
    }

    /// While clients are kept out no route leads here.
    pub(crate) fn held_route(&self, state: RouteState) -> RouteState {
        if self.reign.as_ref().is_some_and(|reign| reign.held.is_some()) { RouteState::Closed } else { state }
    }
}
