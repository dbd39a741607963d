//! The store's model: one linearizable register with compare-and-set, read and watch; requests and replies are lost, late or
//! repeated, watches are old or late, and it can be away altogether.

use crate::event::{Happening, Node};
use crate::network::STORE;
use crate::shape::{MS, Micros};
use crate::world::World;
use mainstay_decide::{CasResult, Input, Plant};
use mainstay_model::{Record, Revision};

/// A request on its way.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asks.
    pub node: Node,
    /// In which life of its agent.
    pub life: u32,
    /// To which store: 0 is the first one, 1 the rebuilt one.
    pub group: u32,
    /// Which of its requests.
    pub id: u64,
    /// When it was sent.
    pub sent: Micros,
    /// Another one like it is under way.
    pub repeated: bool,
    /// What to write, if it is at this revision; `None`: a read.
    pub write: Option<(Option<Revision>, Record)>,
}

/// An answer on its way.
#[derive(Clone, Debug)]
pub enum Reply {
    /// To a write.
    Cas(u64, CasResult),
    /// To a read.
    Read(u64, Option<(Revision, Record)>),
}

/// The register with its past.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// Every version, oldest first.
    pub versions: Vec<(Revision, Record)>,
    /// Nobody can use it before this moment.
    pub away_until: Micros,
    /// Slow until then.
    pub slow_until: Micros,
    /// The newest version each node's watch has shown.
    pub shown: [usize; STORE],
    /// A node's watch shows nothing before this moment.
    pub watch_frozen: [Micros; STORE],
}

impl Store {
    /// The newest version.
    #[must_use]
    pub fn newest(&self) -> Option<&(Revision, Record)> {
        self.versions.last()
    }
}

impl World {
    /// The store of which this node's agent is a member.
    #[must_use]
    pub(crate) fn store_of(&self, node: Node) -> &Store {
        if self.nodes[node].group == self.group { &self.store } else { &self.lost_store }
    }

    fn store_of_mut(&mut self, node: Node) -> &mut Store {
        if self.nodes[node].group == self.group { &mut self.store } else { &mut self.lost_store }
    }

    fn store_delay(&mut self) -> Micros {
        if !self.healed && self.rng.chance(self.shape.store_late) {
            return self.rng.range(20 * MS, 3_000 * MS);
        }
        if self.shape.store_slow && !self.healed {
            return self.rng.range(self.shape.store_timeout / 4, self.shape.store_timeout);
        }
        let most = if self.now < self.store.slow_until { 350 * MS } else { 6 * MS };
        self.rng.range(300, most)
    }

    /// An agent asks the store.
    pub(crate) fn ask_store(&mut self, node: Node, id: u64, write: Option<(Option<Revision>, Record)>) {
        let (life, sent) = (self.nodes[node].life, self.now);
        let read = write.is_none();
        let open = if read { &mut self.nodes[node].read_open } else { &mut self.nodes[node].cas_open };
        *open = Some(id);
        self.queue.push(self.now + self.shape.store_timeout, Happening::Timeout(node, life, id, read));
        let loss = self.weather(self.shape.store_loss);
        if !self.net.passes(self.now, node, STORE) || self.rng.chance(loss) {
            return;
        }
        let repeated = !self.healed && self.rng.chance(200);
        let group = self.nodes[node].group;
        let request = Box::new(Request { node, life, group, id, sent, repeated, write });
        if repeated {
            let delay = self.store_delay() + self.rng.range(0, 200 * MS);
            self.queue.push(self.now + delay, Happening::Request(request.clone()));
        }
        let delay = self.store_delay();
        self.queue.push(self.now + delay, Happening::Request(request));
    }

    /// A request reached the store.
    pub(crate) fn serve(&mut self, request: Request) {
        let (node, life, id) = (request.node, request.life, request.id);
        if request.group != self.nodes[node].group {
            return; // the node has left that store
        }
        if self.now < self.store_of(node).away_until {
            // Known not to happen, or no answer at all.
            if !request.repeated && request.write.is_some() && self.rng.chance(5000) {
                self.reply(node, life, Reply::Cas(id, CasResult::Unavailable));
            }
            return;
        }
        let reply = match request.write {
            None => Reply::Read(id, self.store_of(node).newest().cloned()),
            Some((expected, wanted)) => Reply::Cas(id, self.compare_and_set(node, request.sent, expected, wanted)),
        };
        self.reply(node, life, reply);
    }

    fn reply(&mut self, node: Node, life: u32, reply: Reply) {
        let loss = self.weather(self.shape.store_loss);
        if !self.net.passes(self.now, STORE, node) || self.rng.chance(loss) {
            return;
        }
        let delay = self.store_delay();
        self.queue.push(self.now + delay, Happening::Reply(node, life, Box::new(reply)));
    }

    fn compare_and_set(&mut self, node: Node, sent: Micros, expected: Option<Revision>, wanted: Record) -> CasResult {
        let current = self.store_of(node).newest().cloned();
        let wanted = if current.as_ref().map(|(revision, _)| *revision) == expected {
            wanted
        } else {
            match self.two_keys(node, expected, &wanted) {
                Some(merged) => merged,
                None => return CasResult::Conflict(current),
            }
        };
        let revision = Revision(current.as_ref().map_or(0, |(revision, _)| revision.0) + 1);
        self.record_written(node, sent, current.as_ref().map(|(_, record)| record), &wanted);
        let store = self.store_of_mut(node);
        store.versions.push((revision, wanted));
        let version = store.versions.len() - 1;
        let group = self.nodes[node].group;
        for watcher in (0..self.nodes.len()).filter(|watcher| self.nodes[*watcher].group == group).collect::<Vec<_>>() {
            let late = self.weather(self.shape.watch_late);
            let delay = if self.rng.chance(late) { self.rng.range(0, 3_000 * MS) } else { self.rng.range(500, 9 * MS) };
            self.queue.push(self.now + delay, Happening::Watch(watcher, version));
        }
        CasResult::Done(revision)
    }

    /// Planted: claim and members as two keys, each with its own revision.
    fn two_keys(&self, node: Node, expected: Option<Revision>, wanted: &Record) -> Option<Record> {
        let late_sync = self.plants.contains(&Plant::TwoKeys);
        let early_read = self.plants.contains(&Plant::SyncReadBeforeRaise);
        if !late_sync && !early_read {
            return None;
        }
        let store = self.store_of(node);
        let base = &store.versions.iter().rev().find(|(revision, _)| Some(*revision) == expected)?.1;
        let current = &store.newest()?.1;
        let same_members = |one: &Record, other: &Record| one.members == other.members && one.quorum == other.quorum;
        let same_claim = |one: &Record, other: &Record| one.term == other.term && one.state == other.state;
        if late_sync && same_claim(base, wanted) && same_members(base, current) && !same_members(base, wanted) {
            return Some(Record { members: wanted.members.clone(), quorum: wanted.quorum, ..current.clone() });
        }
        if early_read && wanted.term > base.term && same_claim(base, current) && same_members(base, wanted) {
            return Some(Record { members: current.members.clone(), quorum: current.quorum, ..wanted.clone() });
        }
        None
    }

    /// A reply reached the agent.
    pub(crate) fn replied(&mut self, node: Node, life: u32, reply: Reply) {
        if self.nodes[node].life != life {
            return;
        }
        match reply {
            Reply::Cas(id, result) if self.nodes[node].cas_open == Some(id) => {
                self.nodes[node].cas_open = None;
                self.input(node, Input::Cas(id, result));
            }
            Reply::Read(id, value) if self.nodes[node].read_open == Some(id) => {
                self.nodes[node].read_open = None;
                self.input(node, Input::Read(id, Some(value)));
            }
            _ => {}
        }
    }

    /// No answer came in time.
    pub(crate) fn timed_out(&mut self, node: Node, life: u32, id: u64, read: bool) {
        if self.nodes[node].life != life {
            return;
        }
        if read && self.nodes[node].read_open == Some(id) {
            self.nodes[node].read_open = None;
            self.input(node, Input::Read(id, None));
        }
        if !read && self.nodes[node].cas_open == Some(id) {
            self.nodes[node].cas_open = None;
            self.input(node, Input::Cas(id, CasResult::Unknown));
        }
    }

    /// The watch shows a version.
    pub(crate) fn watch_shows(&mut self, node: Node, version: usize) {
        let store = self.store_of(node);
        let open = self.net.passes(self.now, STORE, node) && self.now >= store.away_until;
        if !open || self.now < store.watch_frozen[node] || self.nodes[node].mind.is_none() {
            return;
        }
        let Some((revision, record)) = store.versions.get(version).cloned() else { return };
        let store = self.store_of_mut(node);
        store.shown[node] = store.shown[node].max(version + 1);
        self.input(node, Input::Watched(revision, record));
    }

    /// The watch catches up with what it missed; now and then it shows something old.
    pub(crate) fn watch_again(&mut self, node: Node) {
        let newest = self.store_of(node).versions.len();
        if !self.healed && self.rng.chance(600) {
            let back = 1 + self.rng.index(12);
            self.watch_shows(node, newest.saturating_sub(back));
        } else if self.store_of(node).shown[node] < newest {
            self.watch_shows(node, newest - 1);
        }
        let next = self.now + self.rng.range(200, 350) * MS;
        self.queue.push(next, Happening::WatchAgain(node));
    }

    /// A new agent's watch shows what its member of the store happens to know.
    pub(crate) fn watch_begins(&mut self, node: Node) {
        self.store_of_mut(node).shown[node] = 0;
        let newest = self.store_of(node).versions.len();
        if newest > 0 {
            let back = if !self.healed && self.rng.chance(4000) { self.rng.index(12) } else { 0 };
            let delay = self.rng.range(500, 30 * MS);
            self.queue.push(self.now + delay, Happening::Watch(node, (newest - 1).saturating_sub(back)));
        }
    }
}
