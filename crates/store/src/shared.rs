//! What the driver's thread and the callers share: the queue to the driver, the applied state, the leader, the failure.

use crate::frame::Frame;
use crate::raft_store::Member;
use crate::request::{Answer, Request};
use crate::state::State;
use mainstay_model::NodeId;
use mainstay_ports::store::Versioned;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Bytes that may wait for the driver. What does not fit is refused (requests) or dropped (messages; Raft sends them again).
const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// What an event counts besides its bytes.
const EVENT_COST: usize = 512;
/// How often members of another store are complained about.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// What the driver reacts to.
pub(crate) enum Event {
    Raft { from: NodeId, frame: Box<Frame> },
    Request { request: Request, deadline: Instant, reply: oneshot::Sender<Answer> },
    Link { node: NodeId, up: bool },
    Persisted { number: u64 },
    CheckpointDone,
    DiskFailed(String),
    Stop,
}

/// An event with what it counts in the queue.
pub(crate) struct Queued {
    pub(crate) event: Event,
    pub(crate) cost: usize,
}

/// The applied state and those who watch it.
#[derive(Default)]
pub(crate) struct Visible {
    pub(crate) state: State,
    pub(crate) members: Vec<Member>,
    pub(crate) watchers: BTreeMap<String, watch::Sender<Option<Versioned>>>,
}

impl Visible {
    /// Shows a key's value to its watchers; never an older one than they have.
    pub(crate) fn show(&self, key: &str) {
        let (Some(watcher), Some(value)) = (self.watchers.get(key), self.state.values.get(key)) else { return };
        watcher.send_if_modified(|seen| {
            let newer = seen.as_ref().is_none_or(|seen| seen.revision < value.revision);
            if newer {
                *seen = Some(value.clone());
            }
            newer
        });
    }

    pub(crate) fn show_all(&self) {
        for key in self.watchers.keys() {
            self.show(key);
        }
    }

    pub(crate) fn watch(&mut self, key: &str) -> watch::Receiver<Option<Versioned>> {
        let present = self.state.values.get(key).cloned();
        self.watchers.entry(key.to_owned()).or_insert_with(|| watch::Sender::new(present)).subscribe()
    }
}

/// See the module's doc.
pub(crate) struct Shared {
    pub(crate) me: NodeId,
    /// Which store this is a member of.
    pub(crate) group: u64,
    /// Messages and requests of members of another store, dropped.
    pub(crate) foreign: AtomicU64,
    complained: Mutex<Option<Instant>>,
    pub(crate) leader: watch::Sender<Option<NodeId>>,
    visible: Mutex<Visible>,
    failure: OnceLock<String>,
    events: mpsc::Sender<Queued>,
    queued: AtomicUsize,
}

impl Shared {
    pub(crate) fn new(me: NodeId, group: u64, visible: Visible, events: mpsc::Sender<Queued>) -> Self {
        Self {
            me,
            group,
            foreign: AtomicU64::new(0),
            complained: Mutex::new(None),
            leader: watch::Sender::new(None),
            visible: Mutex::new(visible),
            failure: OnceLock::new(),
            events,
            queued: AtomicUsize::new(0),
        }
    }

    pub(crate) fn visible(&self) -> MutexGuard<'_, Visible> {
        self.visible.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is this the number of our store? Another one is counted, and complained about now and then.
    pub(crate) fn ours(&self, from: &NodeId, group: u64) -> bool {
        if group == self.group {
            return true;
        }
        let count = self.foreign.fetch_add(1, Ordering::Relaxed) + 1;
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if complained.is_none_or(|last| last.elapsed() >= COMPLAIN_EVERY) {
            *complained = Some(Instant::now());
            tracing::warn!(peer = %from, theirs = group, ours = self.group, count,
                "a member of another store calls; it is not heard. If `mainstay recover` was used, `mainstay reinit` takes the node \
                 with the old one in again");
        }
        false
    }

    /// Why this member works no more, if so.
    pub(crate) fn failure(&self) -> Option<&String> {
        self.failure.get()
    }

    /// From now on everything is unavailable here.
    pub(crate) fn fail(&self, why: String) {
        tracing::error!(node = %self.me, why, "this member of the store has stopped; restart the agent once the cause is gone");
        let _ = self.failure.set(why);
        self.leader.send_replace(None);
    }

    /// The end that was asked for.
    pub(crate) fn stopped(&self) {
        let _ = self.failure.set("the store was stopped".to_owned());
        self.leader.send_replace(None);
    }

    /// Puts an outside event into the queue. False: it was not taken and never will be.
    pub(crate) fn offer(&self, event: Event, bytes: usize) -> bool {
        let cost = bytes + EVENT_COST;
        if self.failure().is_some() || self.queued.fetch_add(cost, Ordering::Relaxed) + cost > QUEUE_BYTES_MAX {
            self.queued.fetch_sub(cost, Ordering::Relaxed);
            return false;
        }
        self.events.send(Queued { event, cost }).is_ok()
    }

    /// Puts an event of the house itself into the queue: their number is bounded by what the driver has under way.
    pub(crate) fn tell(&self, event: Event) {
        let _ = self.events.send(Queued { event, cost: 0 });
    }

    /// The driver took an event out.
    pub(crate) fn taken(&self, cost: usize) {
        self.queued.fetch_sub(cost, Ordering::Relaxed);
    }
}
