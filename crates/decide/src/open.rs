//! Promoting and opening: the first setting, and when clients may enter.

use crate::mind::Mind;
use crate::plant::Plant;
use crate::quorum;
use crate::reign::Phase;
use mainstay_model::record::RecoveryEnd;
use mainstay_model::{
    Change, Durability, Message, Order, OrderFailure, Record, RouteState, ServerState, Span, SyncSetting,
};

const RETRY_MS: u64 = 50;

impl Mind {
    /// `ANY max(|M| − q − 1, n)` of the other members, in force before the promotion.
    pub(crate) fn first_setting(&self, record: &Record, member: bool) -> SyncSetting {
        let mut copies = record.members.clone();
        copies.remove(&self.config.me);
        if record.asynchronous {
            return SyncSetting::default();
        }
        let size = u32::try_from(record.members.len()).unwrap_or(u32::MAX);
        let mut need = size.saturating_sub(1 + record.quorum);
        if self.planted(Plant::OutsiderSmallNeed) && !member {
            need = need.saturating_sub(1);
        } else {
            need = need.max(self.wanted_need());
        }
        if self.planted(Plant::FirstSettingAnyOne) {
            need = 1;
        }
        SyncSetting { need, copies }
    }

    /// n as configured, for the mode.
    pub(crate) fn wanted_need(&self) -> u32 {
        if self.config.durability == Durability::Async { 0 } else { self.config.sync_replicas }
    }

    pub(crate) fn promoted(&mut self, end: RecoveryEnd) {
        self.server.set(self.now, ServerState::Primary);
        let reserved = self.record().map(|record| record.timeline);
        let now = self.now;
        let Some(reign) = self.reign.as_mut().filter(|reign| reign.phase == Phase::Promoting) else { return };
        if Some(end.timeline) != reserved {
            self.abdicate("the server came up on another timeline than the reserved one", None);
            return;
        }
        reign.phase = Phase::Serving;
        reign.end = Some(end);
        reign.confirmed = Some(end.lsn);
        reign.since = now;
        let term = reign.term;
        self.tell(
            "promoted",
            format!("primary of term {term} on timeline {}; recovery ended at {}", end.timeline, end.lsn),
        );
        self.send_voters(&Message::Open { term, timeline: end.timeline });
        self.presence_at = self.now;
    }

    pub(crate) fn not_promoted(&mut self, failure: Option<OrderFailure>) {
        if self.reign.as_ref().is_some_and(|reign| reign.phase == Phase::Promoting) {
            let text = failure.map_or_else(|| "unexpected outcome".to_owned(), |failure| format!("{failure:?}"));
            self.server.state = Some(ServerState::Primary); // perhaps half-way: end it
            self.abdicate(&format!("the promotion did not succeed: {text}"), None);
        }
    }

    /// How many members must hold the end of recovery before clients enter.
    fn open_need(&self, record: &Record) -> u32 {
        let size = u32::try_from(record.members.len()).unwrap_or(u32::MAX);
        let strict = self.config.durability == Durability::Strict;
        let least = if strict { self.config.sync_replicas + 1 } else { 1 };
        size.saturating_sub(record.quorum).max(least)
    }

    pub(crate) fn plan_open(&mut self) {
        let Some(reign) = &self.reign else { return };
        if reign.opened || reign.draining() || reign.holding() || self.orders.busy() {
            return;
        }
        let (term, open_at, flushed) = (reign.term, reign.open_at, reign.flushed.clone());
        let Some(end) = reign.end.or_else(|| self.end_now()) else { return };
        if self.now < open_at {
            self.until(open_at);
            return;
        }
        let Some(record) = self.own_record() else { return };
        let (need, held) =
            (self.open_need(record), quorum::holders(&record.members, &self.config.me, end.lsn, &flushed));
        if held >= need || self.planted(Plant::OpenWithoutConfirmation) {
            self.order(term, Order::Open);
        } else {
            self.reason(
                "open",
                format!("clients wait: {held} of {need} members hold the end of recovery at {}", end.lsn),
            );
        }
    }

    fn end_now(&self) -> Option<RecoveryEnd> {
        let seen = self.server.seen.as_ref()?;
        Some(RecoveryEnd { timeline: seen.timeline?, lsn: seen.end? })
    }

    pub(crate) fn opened(&mut self) {
        let Some(reign) = self.reign.as_mut().filter(|reign| reign.phase == Phase::Serving) else { return };
        reign.opened = true;
        let (term, deadline) = (reign.term, reign.deadline);
        if let Some(deadline) = deadline {
            self.set_route(term, RouteState::Open, deadline);
        }
        let change = self.change();
        self.loss = None;
        let gap = change.gap.map_or_else(String::new, |gap| format!(", {gap} after the loss was seen"));
        let text = format!("{} serves as primary of term {term}{gap}", self.config.me);
        self.reason("primary-opened", text.clone());
        self.event_with(term, "primary-opened", text, Some(change), None);
    }

    /// What the history says of this change of primary.
    fn change(&self) -> Change {
        let origin = self.reign.as_ref().map(|reign| reign.origin.clone()).unwrap_or_default();
        let end = self.reign.as_ref().and_then(|reign| reign.end);
        Change {
            cause: origin.cause,
            from: origin.from,
            to: self.config.me.clone(),
            timeline: end
                .map(|end| end.timeline)
                .or_else(|| self.record().map(|record| record.timeline))
                .unwrap_or_default(),
            fork: origin.fork,
            end: end.map(|end| end.lsn).unwrap_or_default(),
            gap: self.loss.map(|at| self.now.since(at)),
            at_risk_bytes: origin.at_risk,
        }
    }

    pub(crate) fn open_failed(&mut self) {
        let at = self.now + Span(RETRY_MS);
        if let Some(reign) = self.reign.as_mut() {
            reign.open_at = at;
        }
        self.until(at);
    }
}
