//! The driver: the one thread that owns the Raft state. It takes events, lets time pass for Raft, and carries out what Raft
//! wants (`driver_ready`) and what callers want (`driver_requests`).
//!
//! Absent: blocking on the disk (the writer does that), on the network (`Peers::send` never blocks), or on callers.

use crate::command::Logged;
use crate::driver_requests::{Pending, Reads};
use crate::frame::Frame;
use crate::mirror::Mirror;
use crate::shared::{Event, Queued, Shared};
use crate::state::raft_id;
use crate::writer::Job;
use mainstay_model::NodeId;
use mainstay_ports::peer::Peers;
use raft::eraftpb::MessageType;
use raft::{RawNode, SnapshotStatus, StateRole};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// Events taken before Raft's wishes are looked at again.
const EVENTS_PER_ROUND: usize = 256;
/// Names of members, former members and candidates that are remembered.
const NAMES_MAX: usize = 64;
/// A snapshot that was not confirmed after this long is sent again.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(2);
/// After a start, once the connections should be up, it is worth asking for votes before the time-out.
const STAND_AFTER_START: Duration = Duration::from_millis(120);
/// How often the leader looks for directories that it should write down.
const COPIES_EVERY: Duration = Duration::from_millis(200);
/// After the leader's connection closed, the first follower stands after this long, each further one a step later.
const STAND_FIRST: Duration = Duration::from_millis(20);
const STAND_STEP: Duration = Duration::from_millis(60);

/// This member cannot go on. The text says why.
pub(crate) type Fatal = String;

/// What the driver works with, fixed at the start.
pub(crate) struct Setup {
    pub(crate) tick: Duration,
    /// A disk that takes longer than this for one write costs the leadership.
    pub(crate) stall: Duration,
    pub(crate) snapshot_every: u64,
    pub(crate) copy: u64,
    pub(crate) group: u64,
}

/// See the module's doc.
pub(crate) struct Driver {
    pub(crate) shared: Arc<Shared>,
    pub(crate) node: RawNode<Mirror>,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) setup: Setup,
    pub(crate) events: Receiver<Queued>,
    pub(crate) writer: Sender<Job>,
    /// The directories of the peers that this process has met; those that the leader has met too stand in the state.
    pub(crate) met: BTreeMap<u64, u64>,
    pub(crate) names: BTreeMap<u64, NodeId>,
    pub(crate) pending: BTreeMap<u64, Pending>,
    pub(crate) reads: Reads,
    /// Batches that the writer has, with when it got them.
    pub(crate) outstanding: VecDeque<(u64, Instant)>,
    pub(crate) last_number: u64,
    pub(crate) checkpoint_running: bool,
    pub(crate) bytes_since_snapshot: usize,
    pub(crate) snapshots_sent: BTreeMap<u64, Instant>,
    pub(crate) snapshot_wanted: bool,
    copies_told: Option<Instant>,
    next_tick: Instant,
    stand_at: Option<Instant>,
    warned: Option<Instant>,
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        node: RawNode<Mirror>,
        peers: Arc<dyn Peers>,
        setup: Setup,
        events: Receiver<Queued>,
        writer: Sender<Job>,
    ) -> Self {
        let next_tick = Instant::now() + setup.tick;
        Self {
            shared,
            node,
            peers,
            setup,
            events,
            writer,
            met: BTreeMap::new(),
            names: BTreeMap::new(),
            pending: BTreeMap::new(),
            reads: Reads::default(),
            outstanding: VecDeque::new(),
            last_number: 0,
            checkpoint_running: false,
            bytes_since_snapshot: 0,
            snapshots_sent: BTreeMap::new(),
            snapshot_wanted: false,
            copies_told: None,
            next_tick,
            stand_at: None,
            warned: None,
        }
    }

    /// Runs until told to stop.
    pub(crate) fn run(&mut self) -> Result<(), Fatal> {
        // If there is a leader, those who hear it refuse.
        self.stand_soon(STAND_AFTER_START, raft::INVALID_ID);
        loop {
            if !self.take_events()? {
                return Ok(());
            }
            self.pass_time(Instant::now());
            self.issue_reads();
            self.carry_out_wishes()?;
            self.finish_reads();
            self.show_leader();
        }
    }

    /// Waits for events and takes them. False: stop.
    fn take_events(&mut self) -> Result<bool, Fatal> {
        let wake = self.stand_at.map_or(self.next_tick, |stand| stand.min(self.next_tick));
        let wait = wake.saturating_duration_since(Instant::now());
        let mut next = match self.events.recv_timeout(wait) {
            Ok(queued) => Some(queued),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
        };
        for _ in 0..EVENTS_PER_ROUND {
            let Some(queued) = next else { break };
            self.shared.taken(queued.cost);
            if !self.take(queued.event)? {
                return Ok(false);
            }
            next = self.events.try_recv().ok();
        }
        if let Some(queued) = next {
            self.shared.taken(queued.cost);
            return self.take(queued.event);
        }
        Ok(true)
    }

    fn take(&mut self, event: Event) -> Result<bool, Fatal> {
        match event {
            Event::Raft { from, frame } => self.step(&from, *frame),
            Event::Request { request, deadline, reply } => self.request(request, deadline, reply),
            Event::Link { node, up } => self.link(&node, up),
            Event::Persisted { number } => {
                while self.outstanding.front().is_some_and(|(first, _)| *first <= number) {
                    self.outstanding.pop_front();
                }
                self.node.on_persist_ready(number);
            }
            Event::CheckpointDone => self.checkpoint_running = false,
            Event::DiskFailed(why) => return Err(why),
            Event::Stop => return Ok(false),
        }
        Ok(true)
    }

    fn step(&mut self, from: &NodeId, frame: Frame) {
        let id = raft_id(from);
        let message = &frame.message;
        if message.from != id || message.to != self.node.raft.id {
            return self.warn(from, "a message under another name was dropped");
        }
        if frame.to_copy != 0 && frame.to_copy != self.setup.copy {
            let why = "this member's directory is not the one its peers know: remove the member and add it again";
            return self.warn(from, why);
        }
        if self.known_copy(id).is_some_and(|known| known != frame.from_copy) {
            let why = "its directory is not the one known here: remove that member and add it again";
            return self.warn(from, why);
        }
        if self.names.contains_key(&id) || self.names.len() < NAMES_MAX {
            self.met.insert(id, frame.from_copy);
        }
        if self.names.len() < NAMES_MAX {
            self.names.entry(id).or_insert_with(|| from.clone());
        }
        if message.get_msg_type() == MessageType::MsgAppendResponse {
            self.snapshots_sent.remove(&id);
        }
        if let Err(error) = self.node.step(frame.message) {
            tracing::debug!(%from, %error, "a Raft message was not taken");
        }
    }

    /// The directory that this member must have, if it is one and has been met.
    pub(crate) fn known_copy(&self, id: u64) -> Option<u64> {
        let visible = self.shared.visible();
        let member = visible.state.members.contains_key(&id);
        visible.state.copies.get(&id).copied().or_else(|| self.met.get(&id).copied().filter(|_| member))
    }

    /// The leader writes into the log which directories it has met, so that every member knows them.
    fn tell_copies(&mut self, now: Instant) {
        let lately = self.copies_told.is_some_and(|told| now - told < COPIES_EVERY);
        if lately || self.node.raft.state != StateRole::Leader || !self.node.raft.commit_to_current_term() {
            return;
        }
        self.copies_told = Some(now);
        let me = (self.node.raft.id, self.setup.copy);
        let visible = self.shared.visible();
        let met = self.met.iter().map(|(id, copy)| (*id, *copy)).chain([me]);
        let news =
            met.filter(|(id, _)| visible.state.members.contains_key(id) && !visible.state.copies.contains_key(id));
        let news: Vec<(u64, u64)> = news.collect();
        drop(visible);
        for (id, copy) in news {
            let _ = self.node.propose(Vec::new(), Logged::copy(id, copy));
        }
    }

    /// A peer's connection is evidence, faster than any time-out: a follower whose leader hung up asks for votes soon (pre-vote:
    /// those who still hear the leader refuse), a leader sends to the peer anew from where it is known to be.
    fn link(&mut self, node: &NodeId, up: bool) {
        let id = raft_id(node);
        if up {
            return;
        }
        if self.node.raft.state == StateRole::Leader {
            self.node.report_unreachable(id);
        } else if self.node.raft.leader_id == id {
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, raft::INVALID_ID);
            self.stand_soon(STAND_FIRST, id);
        }
    }

    /// Asks for votes before the time-out would; one member after the other, so that they do not split the votes.
    fn stand_soon(&mut self, first: Duration, without: u64) {
        let me = self.node.raft.id;
        let voters = self.node.raft.prs().conf().voters().ids();
        let before_me = voters.iter().filter(|voter| *voter != without && *voter < me).count();
        let steps = u32::try_from(before_me).unwrap_or(u32::MAX).min(16);
        self.stand_at = Some(Instant::now() + first + STAND_STEP * steps);
    }

    /// Lets time pass. After a pause of the process only one tick is made: what happened meanwhile waits in the queue.
    fn pass_time(&mut self, now: Instant) {
        if self.stand_at.is_some_and(|stand| stand <= now) {
            self.stand_at = None;
            let raft = &self.node.raft;
            if raft.leader_id == raft::INVALID_ID && raft.promotable() && self.outstanding.is_empty() {
                let _ = self.node.campaign();
            }
        }
        if now < self.next_tick {
            return;
        }
        self.next_tick = (self.next_tick + self.setup.tick).max(now + self.setup.tick / 2);
        let leads = self.node.raft.state == StateRole::Leader;
        let stalled = self.outstanding.front().is_some_and(|(_, since)| now - *since > self.setup.stall);
        if leads && stalled {
            tracing::warn!(
                "the disk has not confirmed a write for {:?}: giving the store's leadership up",
                self.setup.stall
            );
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, raft::INVALID_ID);
        } else if leads || self.outstanding.is_empty() {
            // A follower whose disk is busy does not stand for election.
            self.node.tick();
        }
        self.expire(now);
        self.tell_copies(now);
        self.retry_snapshots(now);
    }

    fn retry_snapshots(&mut self, now: Instant) {
        let late = self.snapshots_sent.iter().filter(|(_, sent)| now - **sent > SNAPSHOT_PATIENCE);
        let late: Vec<u64> = late.map(|(id, _)| *id).collect();
        for id in late {
            self.snapshots_sent.remove(&id);
            self.node.report_snapshot(id, SnapshotStatus::Failure);
        }
    }

    fn show_leader(&mut self) {
        let leader = self.names.get(&self.node.raft.leader_id);
        self.shared.leader.send_if_modified(|seen| {
            let changed = seen.as_ref() != leader;
            if changed {
                *seen = leader.cloned();
            }
            changed
        });
    }

    /// At most one line each ten seconds.
    fn warn(&mut self, from: &NodeId, what: &str) {
        let now = Instant::now();
        if self.warned.is_none_or(|last| now - last > Duration::from_secs(10)) {
            self.warned = Some(now);
            tracing::warn!(peer = %from, what);
        }
    }
}
