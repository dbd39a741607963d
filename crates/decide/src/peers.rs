//! Peers: their presence, what is heard of them, and the messages that pass.

use crate::io::{Evidence, Output};
use crate::mind::Mind;
use mainstay_model::{Message, Moment, NodeId, Presence, Span, Term};

/// Presence is sent to data nodes and whoever else was heard, at most this many.
const PEERS_MAX: usize = 64;

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
        let now = self.now;
        let peer = self.peers.entry(from.clone()).or_default();
        peer.heard = Some(now);
        peer.evidence = None;
        peer.primary_of = presence.primary_of;
        peer.presence = Some(presence);
        if self.suspect.as_ref().is_some_and(|suspect| suspect.holder == *from) {
            self.suspect = None;
            self.loss = None;
            self.reason("heard", format!("{from} is heard again"));
        }
    }

    pub(crate) fn on_link(&mut self, node: &NodeId, up: bool) {
        if let Some(peer) = self.peers.get_mut(node) {
            peer.link = Some(up);
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

    pub(crate) fn send_data_nodes(&mut self, message: &Message) {
        let nodes: Vec<NodeId> = self.config.data_nodes.keys().cloned().collect();
        for node in nodes {
            self.send(node, message.clone());
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
            self.send(peer, Message::Presence(presence.clone()));
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
        }
    }
}
