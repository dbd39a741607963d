//! The network between nodes and to the store: cuts in each direction, loss, delay, repetition; and what an agent can see of a
//! peer: whether its link stands, and whether anybody listens on its ports.

use crate::event::{Happening, Node};
use crate::shape::{MS, Micros};
use crate::world::World;
use mainstay_decide::{Evidence, Input};
use mainstay_model::Message;

/// Most nodes a cluster has here, and the store's place beside them.
pub const STORE: usize = 5;

/// The state of the network.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// `cut[a][b]`: nothing passes from a to b before this moment.
    cut: [[Micros; STORE + 1]; STORE + 1],
    /// Since when the link a, b has been unusable, while it counts as up.
    broken_since: [[Option<Micros>; STORE]; STORE],
    /// `link[a][b]`: a's agent holds a connection with b's.
    pub link: [[bool; STORE]; STORE],
    /// Everything is slower by this factor until then.
    pub slow_until: Micros,
    /// Much is lost until then.
    pub lossy_until: Micros,
}

impl Network {
    /// Does anything pass from `from` to `to` now?
    #[must_use]
    pub fn passes(&self, now: Micros, from: usize, to: usize) -> bool {
        now >= self.cut[from][to]
    }

    /// Both ways?
    #[must_use]
    pub fn both(&self, now: Micros, one: usize, other: usize) -> bool {
        self.passes(now, one, other) && self.passes(now, other, one)
    }

    /// Nothing passes from `from` to `to` before `until`.
    pub fn cut(&mut self, from: usize, to: usize, until: Micros) {
        let held = &mut self.cut[from][to];
        *held = (*held).max(until);
    }

    /// Everything passes again.
    pub fn heal(&mut self) {
        self.cut = Default::default();
        (self.slow_until, self.lossy_until) = (0, 0);
    }
}

impl World {
    /// How long a packet between two nodes takes now.
    pub(crate) fn packet(&mut self) -> Micros {
        let most = if self.now < self.net.slow_until { 120 * MS } else { self.shape.peer_delay };
        self.rng.range(200, most)
    }

    /// A message between agents sets out.
    pub(crate) fn send_peer(&mut self, from: Node, to: Node, message: Message) {
        if from == to || !self.net.passes(self.now, from, to) || !self.net.link[from][to] {
            return;
        }
        let loss = if self.now < self.net.lossy_until { 4000 } else { self.weather(self.shape.peer_loss) };
        if self.rng.chance(loss) {
            return;
        }
        let mut delay = self.packet();
        if !self.healed && self.rng.chance(100) {
            delay += self.rng.range(0, 1_500 * MS);
        }
        if !self.healed && self.rng.chance(200) {
            let again = self.now + self.rng.range(0, 400 * MS);
            self.queue.push(again, Happening::Peer { to, from, message: Box::new(message.clone()) });
        }
        self.queue.push(self.now + delay, Happening::Peer { to, from, message: Box::new(message) });
    }

    /// A rate of trouble: none after the heal.
    pub(crate) fn weather(&self, rate: u64) -> u64 {
        if self.healed { 0 } else { rate }
    }

    /// Looks at all links between agents, every now and then.
    pub(crate) fn check_links(&mut self) {
        for from in 0..self.nodes.len() {
            for to in 0..self.nodes.len() {
                if from != to && self.nodes[from].mind.is_some() {
                    self.check_link(from, to);
                }
            }
        }
        let next = self.now + self.rng.range(80, 160) * MS;
        self.queue.push(next, Happening::Links);
    }

    fn check_link(&mut self, from: Node, to: Node) {
        let usable = self.net.both(self.now, from, to) && self.host_answers(from) && self.host_answers(to);
        if self.net.link[from][to] {
            let since = if usable { None } else { self.net.broken_since[from][to].or(Some(self.now)) };
            self.net.broken_since[from][to] = since;
            if since.is_some_and(|since| self.now >= since + 350 * MS) {
                self.link_fell(from, to, 0);
            }
        } else if usable && self.nodes[to].mind.is_some() {
            self.net.link[from][to] = true;
            self.net.broken_since[from][to] = None;
            let peer = self.names[to].clone();
            self.input_in(from, 500, Input::PeerLink(peer, true));
        }
    }

    /// The agent at `of` is gone: those who can be reached see the connection closed.
    pub(crate) fn agent_links_fall(&mut self, of: Node) {
        for other in 0..self.nodes.len() {
            self.net.link[of][other] = false;
            if other != of && self.net.link[other][of] && self.nodes[of].up && self.net.both(self.now, of, other) {
                let delay = self.rng.range(100, 4 * MS);
                self.link_fell(other, of, delay);
            }
        }
    }

    fn link_fell(&mut self, at: Node, peer: Node, delay: Micros) {
        self.net.link[at][peer] = false;
        self.net.broken_since[at][peer] = None;
        let name = self.names[peer].clone();
        self.input_in(at, delay, Input::PeerLink(name, false));
        let life = self.nodes[at].life;
        let first = self.now + delay + self.rng.range(300, 5 * MS);
        self.queue.push(first, Happening::Look { node: at, life, at: peer, looks: 0, told: 0 });
    }

    /// One look at a peer's ports.
    pub(crate) fn look(&mut self, node: Node, life: u32, at: Node, looks: u32, told: u8) {
        let gone = self.nodes[node].life != life || self.nodes[node].mind.is_none();
        if gone || self.net.link[node][at] || looks > 40 {
            return;
        }
        let mut told = told;
        if self.net.both(self.now, node, at) && self.host_answers(at) && self.agent_runs(node) {
            let agent = self.nodes[at].mind.is_none();
            let server = !self.nodes[at].server.process.runs();
            let (code, evidence) = match (agent, server) {
                (true, true) => (3, Some(Evidence::AllRefused)),
                (true, false) => (2, Some(Evidence::AgentRefused)),
                (false, true) => (1, Some(Evidence::ServerRefused)),
                (false, false) => (0, None),
            };
            if let Some(evidence) = evidence.filter(|_| code != told) {
                told = code;
                let name = self.names[at].clone();
                self.input_in(node, 300, Input::Evidence(name, evidence));
            }
            if code == 3 {
                return;
            }
        }
        let next = self.now + 40 * MS;
        self.queue.push(next, Happening::Look { node, life, at, looks: looks + 1, told });
    }
}
