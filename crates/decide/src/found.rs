//! Founding: the cluster's first copy. Nothing can be lost before the record is held for the first time.

use crate::io::Output;
use crate::mind::Mind;
use crate::reign::{Phase, Reign};
use crate::view::Intent;
use mainstay_model::record::RecoveryEnd;
use mainstay_model::{
    ClaimState, CopyId, Durability, Lineage, Message, Moment, NodeId, Order, Record, ServerState, Span, SyncSetting,
    SystemId, Term, Timeline,
};
use std::collections::BTreeMap;

const STAGGER_MS: u64 = 150;
const AGAIN_MS: u64 = 1000;

impl Mind {
    pub(crate) fn plan_founding(&mut self) {
        let busy = self.reign.is_some() || self.leave.is_some() || self.candidacy.is_some() || self.orders.busy();
        let empty = self.durable.copy.is_none() && self.server.is(ServerState::Down);
        if busy || !empty || !self.has_data_role() || self.config.excluded.contains(&self.config.me) {
            return;
        }
        if self.another_founds() {
            return;
        }
        let at = match self.record() {
            None if self.view.absent => self.found_at(),
            Some(record) if record.state == ClaimState::Founding => self.found_again_at(&record.clone()),
            _ => None,
        };
        let Some(at) = at.map(|at| at.max(self.pause_until)) else { return };
        if self.now < at {
            self.until(at);
            return;
        }
        if self.can_write() {
            let record = self.founding_record();
            self.reason("found", format!("no copy of the data exists: making the first one, term {}", record.term));
            self.write(Intent::Found, record);
        }
    }

    /// Is the first copy to be another node's, however long that takes? An empty one beside an existing server's data would be a second
    /// truth, to which clients are led.
    fn another_founds(&mut self) -> bool {
        let Some(founder) = self.config.founder.clone().filter(|founder| *founder != self.config.me) else {
            return false;
        };
        if self.record().is_none_or(|record| record.state == ClaimState::Founding) {
            self.reason("found", format!("waiting for {founder}: the data of its existing server are the first copy"));
        }
        true
    }

    /// Data nodes before me in the file; none before whoever alone may found.
    fn place(&self) -> u64 {
        if self.is_me(self.config.founder.as_ref()) {
            return 0;
        }
        let mine = self.config.data_nodes.get(&self.config.me).copied().unwrap_or(u32::MAX);
        self.config.data_nodes.values().filter(|place| **place < mine).count() as u64
    }

    /// When this node may make the first copy: at once if it stands first in the file and nobody has data; never while somebody has.
    fn found_at(&mut self) -> Option<Moment> {
        if self.data.is_some() {
            self.reason("found", "data exist here and the store has no record: recover the cluster by hand");
            return None;
        }
        let others: Vec<NodeId> =
            self.config.data_nodes.keys().filter(|node| **node != self.config.me).cloned().collect();
        let presence = |node: &NodeId| self.peers.get(node).and_then(|peer| peer.presence.clone());
        if let Some(node) = others.iter().find(|node| presence(node).is_some_and(|presence| presence.copy.is_some())) {
            self.reason("found", format!("{node} has data and the store has no record: recover the cluster by hand"));
            return None;
        }
        let born = self.born.unwrap_or(self.now);
        let wait = Span(self.config.lease.0 * 3 * self.place());
        let all = others.iter().all(|node| presence(node).is_some());
        let quiet = Span(self.config.lease.0 * 3);
        let at = if all { born + wait } else { born + wait + quiet };
        if self.now < at {
            self.reason(
                "found",
                "waiting for the others to say whether they have data, and for those before me in the file",
            );
        }
        Some(at)
    }

    fn found_again_at(&self, record: &Record) -> Option<Moment> {
        let holder = record.holder.as_ref()?;
        if self.is_me(Some(holder)) {
            return Some(self.now);
        }
        // A holder that was removed meanwhile will not go on, however alive it is.
        let listed = self.config.data_nodes.contains_key(holder);
        let heard = self.peers.get(holder).and_then(|peer| peer.heard).filter(|_| listed);
        let heard = heard.unwrap_or(self.view.since).max(self.view.since);
        let lease = self.granted_lease();
        Some(heard + lease + self.margin_of(lease) + Span(STAGGER_MS * self.place()))
    }

    fn founding_record(&mut self) -> Record {
        let term = self.record().map_or(Term(1), |record| record.term.next());
        Record {
            term: term.max(self.durable.promise.next()),
            holder: Some(self.config.me.clone()),
            state: ClaimState::Founding,
            grant: self.next_grant(),
            leader: None,
            members: BTreeMap::new(),
            quorum: 0,
            timeline: Timeline(0),
            lineage: Lineage::default(),
            wanted: None,
            asynchronous: self.config.durability == Durability::Async,
            system: None,
            lease: Some(self.config.lease),
            lossy: None,
            restored: None,
            held: None,
            reason: "the first copy".to_owned(),
        }
    }

    pub(crate) fn founding_begun(&mut self, deadline: Moment) {
        let Some(term) = self.record().map(|record| record.term) else { return };
        if self.orders.busy() {
            // What was left of an earlier life is being ended. A founding without its order would be renewed for ever: it is begun anew, with a newer term.
            self.pause_until = self.now + Span(AGAIN_MS);
            self.reason("found", "something is still being ended here: the first copy is made in a newer term");
            return;
        }
        let Some(copy) = self.random.copy() else { return };
        self.promise(term);
        let need = if self.config.durability == Durability::Strict { self.config.sync_replicas } else { 0 };
        let setting = SyncSetting { need, copies: BTreeMap::new() };
        let mut reign = Reign::promoting(self.now, term, deadline, setting.clone(), self.config.lease);
        reign.phase = Phase::Founding;
        self.reign = Some(reign);
        self.out.push(Output::Deadline(term, deadline));
        self.order(term, Order::Bootstrap { copy, setting });
    }

    pub(crate) fn founded(&mut self, copy: CopyId, system: SystemId, end: RecoveryEnd) {
        self.server.set(self.now, ServerState::Primary);
        self.data = Some(system);
        self.unknown_data = false;
        let Some(reign) = self.reign.as_mut().filter(|reign| reign.phase == Phase::Founding) else { return };
        reign.phase = Phase::Founded;
        reign.end = Some(end);
        reign.confirmed = Some(end.lsn);
        reign.founding = Some((copy, system));
    }

    /// Writes that the first copy exists.
    pub(crate) fn write_founded(&mut self) {
        let Some((copy, system, end)) = self.reign.as_ref().and_then(|reign| {
            let (copy, system) = reign.founding?;
            Some((copy, system, reign.end?))
        }) else {
            return;
        };
        if !self.can_write() {
            return;
        }
        let Some(mut record) = self.record().cloned() else { return };
        record.state = ClaimState::Held;
        record.leader = Some(self.config.me.clone());
        record.members = BTreeMap::from([(self.config.me.clone(), copy)]);
        record.quorum = 0;
        record.timeline = end.timeline;
        record.system = Some(system);
        self.grant(&mut record);
        self.write(Intent::Founded, record);
    }

    pub(crate) fn founded_written(&mut self, sent: Moment, deadline: Moment) {
        let now = self.now;
        let Some(reign) = self.reign.as_mut().filter(|reign| reign.phase == Phase::Founded) else { return };
        let Some((copy, _)) = reign.founding else { return };
        reign.phase = Phase::Serving;
        reign.since = now;
        "the first copy".clone_into(&mut reign.origin.cause);
        let (term, timeline) = (reign.term, reign.end.map(|end| end.timeline));
        self.persist(|durable| durable.copy = Some(copy));
        self.renewed(sent, deadline);
        self.tell("founded", format!("the first copy exists: {copy}"));
        if let Some(timeline) = timeline {
            self.send_voters(&Message::Open { term, timeline });
        }
        self.presence_at = self.now;
    }

    /// The first copy was not made: end what runs, and try again after a while with a newer term.
    pub(crate) fn not_founded(&mut self) {
        if self.reign.as_ref().is_some_and(|reign| reign.phase == Phase::Founding) {
            self.reign = None;
            self.pause_until = self.now + Span(AGAIN_MS);
            self.order_kill();
        }
    }
}
