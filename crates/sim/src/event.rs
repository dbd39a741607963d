//! What can happen in the virtual world, and the queue that orders it by time and then by the order of scheduling.

use crate::faults::Fault;
use crate::server::Entry;
use crate::shape::Micros;
use crate::store::{Reply, Request};
use mainstay_decide::Input;
use mainstay_model::{CopyId, Message};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A data node's place in the list of nodes.
pub type Node = usize;

/// Something that will happen.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are named by what they hold")]
pub enum Happening {
    /// The agent's timer ran out; the number tells an old timer from the present one.
    Tick(Node, u64),
    /// The agent looks at its server.
    Probe(Node, u32),
    /// Something reaches the agent of this life.
    Input(Node, u32, Box<Input>),
    /// A message reaches a node.
    Peer { to: Node, from: Node, message: Box<Message> },
    /// A request reaches the store.
    Request(Box<Request>),
    /// A reply reaches the agent that asked.
    Reply(Node, u32, Box<Reply>),
    /// A request had no answer in time; true for a read.
    Timeout(Node, u32, u64, bool),
    /// The watch shows this version.
    Watch(Node, usize),
    /// The watch looks again.
    WatchAgain(Node),
    /// The running order goes on.
    Order(Node, u64),
    /// The guard's timer.
    Guard(Node),
    /// The guard's or a fault's kill reaches the server process of this life.
    Kill(Node, u32, &'static str),
    /// The server answers queries.
    Hot(Node, u32),
    /// The server has read its log to the end.
    Replayed(Node, u32),
    /// A promotion wrote its first record (false) or finished (true).
    Promoting(Node, u32, bool),
    /// A standby tries to connect to its upstream.
    Connect(Node, u32),
    /// A standby sees that this connection of its is over.
    Lost(Node, u64),
    /// The connection of this number looks for records to send.
    Pump(Node, u64),
    /// Records reach a standby.
    Batch { from: Node, to: Node, conn: u64, at: usize, entries: Vec<Entry> },
    /// A standby's disk holds its log up to here.
    Flushed { node: Node, life: u32, conn: u64, upto: usize },
    /// A standby's flush report reaches the upstream.
    Report { to: Node, to_life: u32, conn: u64, copy: CopyId, upto: usize },
    /// A process takes the changed setting: a walsender (its connection), or the server's other processes.
    Adopt(Node, u32, Option<u64>, u32),
    /// Clients write.
    Clients,
    /// Clients write in a hurry, close to the protocol's own steps.
    Rush,
    /// The agents' links are looked at.
    Links,
    /// A node looks at a peer's ports after the link broke.
    Look { node: Node, life: u32, at: Node, looks: u32, told: u8 },
    /// Something that was stopped goes on.
    Resume(Node),
    /// An agent process begins.
    AgentStart(Node),
    /// A guard process begins.
    GuardStart(Node),
    /// A host comes back.
    HostStart(Node),
    /// A host's server would start again.
    StartsWork(Node),
    /// The next random fault.
    NextFault,
    /// This fault, here.
    Fault(Fault, Node),
    /// The end of faults.
    Heal,
    /// A node learns this generation of the operator's wishes.
    Learn(Node, usize),
    /// The next step of the schedule's scenario.
    Act(u8),
    /// The lost store is rebuilt.
    Recover,
    /// A node of the lost store joins the rebuilt one.
    Join(Node),
    /// Is all well again?
    Settled,
}

#[derive(Debug)]
struct Slot {
    at: Micros,
    number: u64,
    what: Happening,
}

impl PartialEq for Slot {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Slot {}
impl PartialOrd for Slot {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Slot {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    heap: BinaryHeap<Slot>,
    number: u64,
}

impl Queue {
    /// Something will happen at this moment.
    pub fn push(&mut self, at: Micros, what: Happening) {
        self.number += 1;
        self.heap.push(Slot { at, number: self.number, what });
    }

    /// What happens next.
    pub fn pop(&mut self) -> Option<(Micros, Happening)> {
        self.heap.pop().map(|slot| (slot.at, slot.what))
    }
}
