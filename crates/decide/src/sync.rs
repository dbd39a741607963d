//! The sync set: what streams, and the next change of record or setting that is allowed.

use crate::mind::Mind;
use crate::plant::Plant;
use crate::quorum::{Bend, Members, Situation, Step};
use crate::reign::{Phase, Reign};
use crate::view::Intent;
use mainstay_model::{
    ClaimState, CopyId, Durability, Lsn, Moment, NodeId, Order, Record, ServerState, Span, SyncSetting,
};
use std::collections::{BTreeMap, BTreeSet};

const GRACE_MS: u64 = 700;
const RETRY_MS: u64 = 200;

impl Mind {
    /// Takes up what the newest probe of the running primary says about its replicas.
    pub(crate) fn note_streams(&mut self) {
        let Some(seen) = &self.server.seen else { return };
        let Some(reign) = self.reign.as_mut() else { return };
        if seen.state != ServerState::Primary || seen.silent > 0 || reign.phase == Phase::Adopting {
            return;
        }
        let now = self.now;
        reign.observed_at = Some(now);
        reign.flushed =
            seen.walsenders.iter().map(|sender| (sender.node.clone(), (sender.copy, sender.flush))).collect();
        let streaming = seen.walsenders.iter().filter(|sender| sender.streaming);
        reign.streams_now = streaming.map(|sender| (sender.node.clone(), sender.copy)).collect();
        for (node, copy) in &reign.streams_now {
            reign.streaming.insert(node.clone(), (*copy, now));
        }
        reign.streaming.retain(|_, (_, at)| now.since(*at).0 <= 60_000);
    }

    pub(crate) fn plan_sync(&mut self) {
        let Some(reign) = &self.reign else { return };
        if reign.phase != Phase::Serving || reign.draining() || reign.settings.is_empty() {
            return;
        }
        let (term, adopted, setting_at) = (reign.term, reign.adopted, reign.setting_at);
        let unconfirmed = reign.confirmed.is_none();
        if unconfirmed && !self.orders.busy() {
            if self.now < setting_at {
                self.until(setting_at);
            } else if self.own_record().is_some() {
                self.set_sync_again(term);
            }
        }
        if adopted {
            return; // which settings are in force is not known before the first confirmation
        }
        self.sync_step();
    }

    /// A setting that was given and not confirmed may be in force in some walsenders: it is given again until it is.
    fn set_sync_again(&mut self, term: mainstay_model::Term) {
        let setting = self.reign.as_ref().and_then(|reign| reign.settings.last().cloned());
        if let Some(setting) = setting {
            self.order(term, Order::SetSync { setting });
        }
    }

    fn sync_step(&mut self) {
        let Some(record) = self.own_record().cloned() else { return };
        if record.state != ClaimState::Held {
            return;
        }
        let asynchronous = self.config.durability == Durability::Async;
        if asynchronous && !record.asynchronous {
            self.write_flag(record, true);
            return;
        }
        let Some(step) = self.next_sync_step(&record) else {
            if record.asynchronous
                && !asynchronous
                && self.reign.as_ref().is_some_and(|reign| reign.confirmed.is_some())
            {
                self.write_flag(record, false);
            }
            return;
        };
        match step {
            Step::Record(members, quorum) => self.write_members(record, members, quorum),
            Step::Setting(setting) => self.change_setting(setting),
        }
    }

    fn write_flag(&mut self, mut record: Record, asynchronous: bool) {
        if self.can_write() {
            let text = if asynchronous {
                "asynchronous from now on: commits wait for nobody; a take-over may lose the newest, and also what was acknowledged before \
                 now that its winner has not got yet"
            } else {
                "commits wait for replicas again, and nothing acknowledged from now on is lost in a take-over"
            };
            self.tell("durability", text);
            record.asynchronous = asynchronous;
            self.grant(&mut record);
            self.write(Intent::Sync, record);
        }
    }

    fn write_members(&mut self, mut record: Record, members: Members, quorum: u32) {
        if self.can_write() {
            let names: Vec<&str> = members.keys().map(NodeId::as_str).collect();
            self.reason(
                "sync",
                format!("record: members {}, an election needs {} of them", names.join(", "), quorum + 1),
            );
            record.members = members;
            record.quorum = quorum;
            self.grant(&mut record);
            self.write(Intent::Sync, record);
        }
    }

    fn change_setting(&mut self, setting: SyncSetting) {
        if self.orders.busy() || self.view.cas.is_some() {
            return;
        }
        self.reason("sync", format!("setting: {setting}"));
        let Some(reign) = self.reign.as_mut() else { return };
        reign.settings.push(setting.clone());
        reign.confirmed = None;
        let term = reign.term;
        self.order(term, Order::SetSync { setting });
    }

    fn next_sync_step(&mut self, record: &Record) -> Option<Step> {
        let acting = self.acting(record);
        let broken = self.broken(record);
        let my_copy = self.durable.copy?;
        let end = self.server.seen.as_ref().and_then(|seen| seen.end);
        let reign = self.reign.as_ref()?;
        let position = reign.confirmed.or(end)?;
        let strict = self.config.durability == Durability::Strict;
        let situation = Situation {
            me: &self.config.me,
            my_copy,
            members: &record.members,
            quorum: record.quorum,
            settings: &reign.settings,
            confirmed: reign.confirmed.is_some(),
            position,
            flush: &reign.flushed,
            acting: &acting,
            broken: &broken,
            strict,
            wanted: self.wanted_need(),
            bend: Bend {
                all_listed: self.planted(Plant::AllListedOrder),
                remove_early: self.planted(Plant::RemoveWithoutCaughtUp),
                degrade_server_first: self.planted(Plant::DegradeServerFirst) && !strict,
            },
        };
        situation.next_step()
    }

    /// Replicas that count as streaming: seen in the grace time before the newest observation; members shortly after a start.
    fn acting(&mut self, record: &Record) -> Members {
        let mut acting = Members::new();
        if self.config.durability == Durability::Async {
            return acting;
        }
        let Some(reign) = &self.reign else { return acting };
        let observed = reign.observed_at.unwrap_or(reign.since);
        let young = self.now.since(reign.since).0 < GRACE_MS;
        let counts = |node: &NodeId| {
            *node != self.config.me && self.config.data_nodes.contains_key(node) && !self.config.excluded.contains(node)
        };
        let mut again: Vec<Moment> = young.then_some(reign.since + Span(GRACE_MS)).into_iter().collect();
        if young || reign.observed_at.is_none() {
            acting.extend(
                record.members.iter().filter(|(node, _)| counts(node)).map(|(node, copy)| (node.clone(), *copy)),
            );
        }
        for (node, (copy, at)) in &reign.streaming {
            // Within the grace time one whose copy is known to be gone does not count: else it would be struck and taken back, over and over.
            if counts(node) && observed.since(*at).0 < GRACE_MS && !self.copy_is_gone(reign, node, *copy) {
                acting.insert(node.clone(), self.copy_in_record(record, node, *copy));
                if reign.streams_now.get(node) != Some(copy) {
                    again.push(*at + Span(GRACE_MS));
                }
            }
        }
        for at in again {
            self.until(at);
        }
        acting
    }

    fn copy_in_record(&self, record: &Record, node: &NodeId, copy: CopyId) -> CopyId {
        let old = record.members.get(node).copied();
        if self.planted(Plant::BrokenKeepsPlace) { old.unwrap_or(copy) } else { copy }
    }

    /// Does this node stream as another copy, or say that it has another one, or none that is whole?
    fn copy_is_gone(&self, reign: &Reign, node: &NodeId, copy: CopyId) -> bool {
        let says = self.peers.get(node).and_then(|peer| peer.presence.as_ref()).map(|presence| presence.copy);
        match reign.streams_now.get(node) {
            Some(streams) => *streams != copy,
            None => self.heard_within(node, self.config.suspicion) && says.is_some_and(|says| says != Some(copy)),
        }
    }

    /// Members whose node has another copy than the record says, or none that is whole.
    fn broken(&self, record: &Record) -> BTreeSet<NodeId> {
        let Some(reign) = &self.reign else { return BTreeSet::new() };
        if self.planted(Plant::BrokenKeepsPlace) {
            return BTreeSet::new();
        }
        let others = record.members.iter().filter(|(node, _)| **node != self.config.me);
        others.filter(|(node, copy)| self.copy_is_gone(reign, node, **copy)).map(|(node, _)| node.clone()).collect()
    }

    pub(crate) fn setting_confirmed(&mut self, setting: SyncSetting, at: Lsn) {
        let wanted = self.wanted_need();
        let asynchronous = self.config.durability == Durability::Async;
        let Some(reign) = self.reign.as_mut().filter(|reign| reign.settings.last() == Some(&setting)) else { return };
        reign.settings = vec![setting.clone()];
        reign.confirmed = Some(at);
        reign.adopted = false;
        let degraded = setting.need < wanted && !asynchronous;
        if degraded != reign.degraded {
            reign.degraded = degraded;
            if degraded {
                self.tell(
                    "degraded",
                    format!("commits wait for {} of {wanted} replicas: too few stream", setting.need),
                );
            } else {
                self.tell("restored", format!("commits wait for {wanted} replicas again: {setting}"));
            }
        }
    }

    pub(crate) fn setting_failed(&mut self) {
        let at = self.now + Span(RETRY_MS);
        if let Some(reign) = self.reign.as_mut() {
            reign.setting_at = at;
        }
    }

    /// Tells who joined and who left the members.
    pub(crate) fn tell_members(&mut self) {
        let Some(now) = self.record().map(|record| record.members.clone()) else { return };
        let Some(reign) = self.reign.as_mut() else { return };
        let old: BTreeMap<NodeId, CopyId> = reign.told_members.replace(now.clone()).unwrap_or_else(|| now.clone());
        for node in now.keys().filter(|node| old.get(*node) != now.get(*node)) {
            self.event("member-added", format!("{node} counts for commits"));
        }
        for node in old.keys().filter(|node| !now.contains_key(*node)) {
            self.event("member-removed", format!("{node} counts no longer for commits"));
        }
    }
}
