//! Peers: their presence, what is heard of them, and the messages that pass.

use crate::io::{Evidence, Output};
use crate::mind::Mind;
use crate::plant::Plant;
use mainstay_model::{Message, Moment, NodeId, Presence, Span, Term};
use std::collections::BTreeSet;

/// Presence is sent to data nodes and whoever else was heard, at most this many.
const PEERS_MAX: usize = 64;
/// Later than this no message arrives.
const LATE_MS: u64 = 3_000;
/// A node that is neither listed nor a member is forgotten after this silence.
const FORGET_MS: u64 = 10_000;

/// One peer as last heard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    pub(crate) presence: Option<Presence>,
    pub(crate) heard: Option<Moment>,
    pub(crate) link: Option<bool>,
    /// What connecting to its ports showed, since it was last heard.
    pub(crate) evidence: Option<Evidence>,
    /// The term of which it said that its server runs as primary.
    pub(crate) primary_of: Option<Term>,
}

impl Peer {
    /// Was this overtaken on its way by a newer presence of its sender, maybe of a later life of its agent? A sender that was silent
    /// for long may have a clock that began anew.
    fn overtaken(&self, now: Moment, presence: &Presence) -> bool {
        let recent = self.heard.is_some_and(|heard| now.since(heard).0 < LATE_MS);
        recent && self.presence.as_ref().is_some_and(|last| presence.sent < last.sent)
    }
}

impl Mind {
    pub(crate) fn on_message(&mut self, from: &NodeId, message: Message) {
        if *from == self.config.me {
            return;
        }
        match message {
            Message::Presence(presence) => self.on_presence(from, presence),
            Message::Ask { term } => self.on_ask(from, term),
            Message::Told { term, hears, would_answer } => self.on_told(from, term, hears, would_answer),
            Message::Recruit { term } => self.on_recruit(from, term),
            Message::Answer(answer) => self.on_answer(from, answer),
            Message::Open { term, timeline } => {
                let fits = self.record().is_none_or(|record| record.term != term || record.timeline == timeline);
                if let Some(peer) = self.peers.get_mut(from).filter(|_| fits) {
                    peer.primary_of = peer.primary_of.max(Some(term));
                }
            }
        }
    }

    fn on_presence(&mut self, from: &NodeId, presence: Presence) {
        if !self.peers.contains_key(from) && self.peers.len() >= PEERS_MAX {
            return;
        }
        self.note_incarnation(from, presence.promise);
        let now = self.now;
        let peer = self.peers.entry(from.clone()).or_default();
        // What a node said before it died, or was wiped, says nothing about it now: above all not that it is an open primary.
        if peer.overtaken(now, &presence) {
            return;
        }
        peer.heard = Some(now);
        peer.evidence = None;
        peer.primary_of = presence.primary_of;
        peer.presence = Some(presence);
        let doubted = self.suspect.as_ref().is_some_and(|suspect| suspect.holder == *from);
        if doubted && !self.gave_way(from) {
            self.suspect = None;
            self.loss = None;
            self.reason("heard", format!("{from} is heard again"));
        }
    }

    pub(crate) fn on_link(&mut self, node: &NodeId, up: bool) {
        if let Some(peer) = self.peers.get_mut(node) {
            peer.link = Some(up);
            // Open or not: whoever comes back says so again.
            if let Some(presence) = peer.presence.as_mut() {
                presence.open = false;
            }
        }
    }

    pub(crate) fn on_evidence(&mut self, node: &NodeId, evidence: Evidence) {
        let text = match evidence {
            Evidence::ServerRefused => "its server is dead, its agent lives and will hand over",
            Evidence::AgentRefused => "only its agent is dead: its server is kept until the lease ends",
            Evidence::AllRefused => "its agent and its server are dead",
        };
        if let Some(peer) = self.peers.get_mut(node) {
            peer.evidence = Some(evidence);
            self.reason("evidence", format!("{node}: {text}"));
        }
    }

    pub(crate) fn heard_within(&self, node: &NodeId, span: Span) -> bool {
        self.peers.get(node).and_then(|peer| peer.heard).is_some_and(|heard| self.now.since(heard) <= span)
    }

    /// Did this node say what it said last after it had read words of this node from within this time? For what can not be taken back: words that
    /// waited while a host or the network stood still are read late, and say what was true when they were sent.
    pub(crate) fn answers_within(&self, node: &NodeId, span: Span) -> bool {
        let presence = self.peers.get(node).and_then(|peer| peer.presence.as_ref());
        // One that lies ahead is of a clock that began anew.
        let echo = presence.and_then(|presence| presence.echo).filter(|echo| *echo <= self.now);
        echo.is_some_and(|echo| self.now.since(echo) <= span)
    }

    /// Is this node heard now, as far as nothing says otherwise?
    pub(crate) fn hears(&self, node: &NodeId) -> bool {
        let Some(peer) = self.peers.get(node) else { return false };
        let dead = matches!(peer.evidence, Some(Evidence::AllRefused));
        self.heard_within(node, self.config.suspicion) && peer.link != Some(false) && !dead
    }

    pub(crate) fn send(&mut self, to: NodeId, message: Message) {
        if to != self.config.me {
            self.out.push(Output::Send(to, message));
        }
    }

    /// Data nodes, and members of the record that the configuration does not list (any more, or yet).
    pub(crate) fn voters(&self) -> BTreeSet<NodeId> {
        let mut voters: BTreeSet<NodeId> = self.config.data_nodes.keys().cloned().collect();
        if let Some(record) = self.record() {
            voters.extend(record.members.keys().cloned());
        }
        voters
    }

    /// Does what this node says count here?
    pub(crate) fn counts(&self, node: &NodeId) -> bool {
        self.config.data_nodes.contains_key(node)
            || self.record().is_some_and(|record| record.members.contains_key(node))
    }

    pub(crate) fn send_voters(&mut self, message: &Message) {
        for node in self.voters() {
            self.send(node, message.clone());
        }
    }

    /// The configuration changed: who is new is talked to; who is neither listed, nor a member, nor heard is forgotten.
    pub(crate) fn update_peers(&mut self) {
        let voters = self.voters();
        let (me, now) = (self.config.me.clone(), self.now);
        let recent = |peer: &Peer| peer.heard.is_some_and(|heard| now.since(heard).0 < FORGET_MS);
        self.peers.retain(|node, peer| voters.contains(node) || recent(peer));
        for node in voters.into_iter().filter(|node| *node != me) {
            self.peers.entry(node).or_default();
        }
    }

    // ---- a rebuilt store ---------------------------------------------------------------------------------------------

    /// A peer knows terms of this incarnation.
    pub(crate) fn note_incarnation(&mut self, from: &NodeId, term: Term) {
        let incarnation = term.incarnation();
        if incarnation > self.superseded {
            self.superseded = incarnation;
            self.reason(
                "incarnation",
                format!("{from} follows term {term} of a rebuilt store (incarnation {incarnation})"),
            );
        }
    }

    /// Was the store rebuilt without this node, as far as it knows? Ends when its own record reaches that incarnation.
    pub(crate) fn is_superseded(&self) -> bool {
        let own = self.record().map(|record| record.term.incarnation());
        own.is_some_and(|own| own < self.superseded) && !self.planted(Plant::SupersededStandsOn)
    }

    /// A primary runs here from before this process, the record can not be read yet, and this node never promised anything to the
    /// store that others follow: whoever served there would have.
    fn serves_an_older_store(&self) -> bool {
        let promise = self.durable.promise;
        self.record().is_none() && self.reign.is_some() && promise > Term(0) && promise.incarnation() < self.superseded
    }

    /// Stands down, from whatever it is.
    pub(crate) fn plan_superseded(&mut self) {
        if !self.is_superseded() && !self.serves_an_older_store() {
            return;
        }
        self.fence("the cluster's store was rebuilt without this node");
        self.failover_failed("the cluster's store was rebuilt without this node");
        if self.candidacy.is_some() {
            self.end_candidacy();
        }
    }

    pub(crate) fn plan_presence(&mut self) {
        if self.now < self.presence_at {
            let at = self.presence_at;
            self.until(at);
            return;
        }
        self.presence_at = self.now + self.config.ping;
        let at = self.presence_at;
        self.until(at);
        let presence = self.presence();
        let peers: Vec<NodeId> = self.peers.keys().cloned().collect();
        for peer in peers {
            let read = self.peers.get(&peer).and_then(|peer| peer.presence.as_ref());
            let echo = read.map(|presence| presence.sent);
            self.send(peer, Message::Presence(Presence { echo, ..presence.clone() }));
        }
    }

    fn presence(&self) -> Presence {
        let holder = self.record().and_then(|record| record.holder.clone());
        let heard = holder
            .and_then(|holder| if holder == self.config.me { Some(self.now) } else { self.peers.get(&holder)?.heard });
        Presence {
            life: self.life,
            promise: self.durable.promise,
            revision: self.revision(),
            copy: self.durable.copy,
            server: self.server.state.unwrap_or_default(),
            primary_of: self.primary_of(),
            open: self.reign.as_ref().is_some_and(|reign| reign.opened),
            position: self.position_hint(),
            holder_heard: heard.map(|at| self.now.since(at)),
            sent: self.now,
            echo: None,
        }
    }
}
