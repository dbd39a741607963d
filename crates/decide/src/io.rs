//! What goes into a decision and what comes out. Events in, orders and reasons out; the shell that carries them out (the agent,
//! or the simulator) makes no choice of its own.
//!
//! How the shell must treat outputs:
//! 1. In the order of the list. `Persist` is durable (file and directory fsynced) before anything after it is begun.
//! 2. `Order`: one runs at a time; `Mind` never gives a second one before the first one's outcome came in, except `Kill`, which ends a
//!    running one: its outcome (`Aborted` if it was cut short, its own if it was faster) comes in first, then the kill's `Done`. When
//!    an order begins to execute, the shell compares its term with the durable promise under the lock that `Persist` takes, and
//!    refuses it as `Stale` if it is lower.
//! 3. `Deadline` goes to the guard at once, beside a running order.
//! 4. `Cas` and `Read`: at most one of each is open; the outcome comes in as `Input::Cas` / `Input::Read` with the same id.
//! 5. `Promote`, `RestartInPlace` and `Bootstrap` also need a deadline ahead when they begin to execute; else `Failed(NotYet)`.
//! 6. `Send` may be dropped, delayed or repeated by the network.

use mainstay_model::record::{Durability, Durable};
use mainstay_model::{
    Command, Event, Message, Moment, NodeId, Order, OrderId, Outcome, Reason, Record, Revision, RouteState,
    ServerObservation, Span, Term,
};
use std::collections::BTreeMap;

/// What a node must know to decide; from the spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who I am.
    pub me: NodeId,
    /// All nodes that hold data, each with its place in the file (the order in which candidates stand), me included unless I am a witness.
    pub data_nodes: BTreeMap<NodeId, u32>,
    /// Nodes that may not become primary nor count for commits, for now.
    pub excluded: std::collections::BTreeSet<NodeId>,
    /// Whoever alone may make the first copy, because it is to be an existing server's data; `None`: whoever comes first.
    pub founder: Option<NodeId>,
    /// How commits are protected.
    pub durability: Durability,
    /// n: how many replicas a commit waits for.
    pub sync_replicas: u32,
    /// How long a claim lets its holder serve.
    pub lease: Span,
    /// Kept back from the lease by the guard.
    pub margin: Span,
    /// Silence after which a holder is suspected.
    pub suspicion: Span,
    /// How often presence is sent.
    pub ping: Span,
    /// A server that gives no sign of life for this long is taken for hung, and fenced.
    pub hang: Span,
    /// Seed for copy ids and random pauses: operating system entropy on a host, the schedule's in the simulator.
    pub seed: u64,
    /// The operator has switched automatic take-over, restart and rejoin off.
    pub paused: bool,
    /// Faults planted on purpose; heeded only with the cargo feature `plant`. Empty outside the simulator.
    pub plants: std::collections::BTreeSet<crate::plant::Plant>,
}

/// How a compare-and-set of the record ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one at a time; moved, not kept")]
pub enum CasResult {
    /// Written.
    Done(Revision),
    /// Another write was first; this is what the record holds now.
    Conflict(Option<(Revision, Record)>),
    /// No answer: it may have happened or still happen.
    Unknown,
    /// It did not and will not happen.
    Unavailable,
}

/// Direct evidence about another node's processes, gathered by connecting to its ports when a connection to it broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The host answers and nobody listens on the server's port: its server is dead.
    ServerRefused,
    /// The host answers, its server's port too, and nobody listens on the agent's: only its agent is dead.
    AgentRefused,
    /// The host answers and nobody listens on either port: its agent and its server are dead.
    AllRefused,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Time passed. Comes at the latest when `Mind::wake` asked for it.
    Tick,
    /// The watch shows this record (may be stale).
    Watched(Revision, Record),
    /// A linearizable read ended; `None` = no answer, `Some(None)` = the key does not exist.
    Read(u64, Option<Option<(Revision, Record)>>),
    /// A compare-and-set ended.
    Cas(u64, CasResult),
    /// A probe of the local server ended.
    Observed(ServerObservation),
    /// The local server's process ended (pidfd).
    ServerExited,
    /// The guard (or its deadline) killed the server, for this reason.
    Fenced(String),
    /// An order ended.
    Ordered(OrderId, Outcome),
    /// A peer said something.
    Peer(NodeId, Message),
    /// The connection to a peer broke, or came up.
    PeerLink(NodeId, bool),
    /// Evidence about another node.
    Evidence(NodeId, Evidence),
    /// A planned change is near: these proxies have not confirmed yet that new work waits and that none is under way with them; those
    /// did not answer in time and are not waited for. Nobody left: go on. Without such a word a drain takes a fixed, short time.
    Proxies {
        /// Of the drain of this term.
        term: Term,
        /// Waited for.
        waiting: Vec<String>,
        /// Not waited for.
        late: Vec<String>,
    },
    /// The operator's wishes changed: nodes, durability, times, pause. Who I am, the seed and plants stay as they were.
    Configured(Box<Config>),
    /// An operator at this node asks for something.
    Operator {
        /// Comes back in [`Output::Reply`].
        id: u64,
        /// Who asked.
        by: String,
        /// What.
        command: Command,
    },
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Make this durable before going on.
    Persist(Durable),
    /// Read the record, linearizably.
    Read(u64),
    /// Write the record if it is at this revision (`None`: if it does not exist).
    Cas(u64, Option<Revision>, Record),
    /// Tell a peer.
    Send(NodeId, Message),
    /// Tell the guard: the server may serve as primary of this term until then.
    Deadline(Term, Moment),
    /// Do this to the local server.
    Order(OrderId, Term, Order),
    /// Tell proxies: whether clients may write here, for which term, and until when at most (the guard's deadline).
    Route(Term, RouteState, Moment),
    /// A fact for the history.
    Event(Event),
    /// Why something was decided, or not.
    Reason(Reason),
    /// The answer to the operator's command of this number: what will be done, or why not. Comes within the same step.
    Reply(u64, Result<String, String>),
}
