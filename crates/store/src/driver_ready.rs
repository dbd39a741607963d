//! Carries out what Raft wants: send, make durable, apply; and takes snapshots.
//!
//! A leader's messages go out at once, while its own disk works; everything that promises durability goes out after the fsync
//! (the writer sends it). Committed entries are applied here, and watchers wake, before anything else happens.

use crate::driver::{Driver, Fatal};
use crate::frame::Frame;
use crate::journal::Records;
use crate::raft_store::Member;
use crate::request::Answer;
use crate::shared::Visible;
use crate::state::{Applied, State, raft_id};
use crate::writer::Job;
use mainstay_model::NodeId;
use mainstay_ports::peer::Channel;
use protobuf::Message as _;
use raft::Ready;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType, Message, MessageType, Snapshot};
use std::time::Instant;

/// Batches that may be with the writer. Further ones wait in Raft, which joins them.
const OUTSTANDING_MAX: usize = 64;
/// Rounds before events are looked at again.
const ROUNDS_MAX: usize = 64;
/// A snapshot is due after this many bytes of commands, even if they are few.
const SNAPSHOT_BYTES: usize = 4 * 1024 * 1024;

impl Driver {
    pub(crate) fn carry_out_wishes(&mut self) -> Result<(), Fatal> {
        for _ in 0..ROUNDS_MAX {
            if self.outstanding.len() >= OUTSTANDING_MAX || !self.node.has_ready() {
                break;
            }
            let ready = self.node.ready();
            self.carry_out(ready)?;
        }
        self.maybe_snapshot()
    }

    fn carry_out(&mut self, mut ready: Ready) -> Result<(), Fatal> {
        let number = ready.number();
        self.last_number = number;
        let now = self.encode(ready.take_messages());
        self.send(now);
        let snapshot = ready.snapshot().clone();
        if !snapshot.is_empty() {
            self.install(&snapshot)?;
        }
        let mirror = self.node.mut_store();
        mirror.append(ready.entries());
        if let Some(hard) = ready.hs() {
            mirror.hard = hard.clone();
        }
        let (at_once, later) = ready.take_persisted_messages().into_iter().partition(promises_nothing);
        let at_once = self.encode(at_once);
        self.send(at_once);
        let messages = self.encode(later);
        self.reads.indexes(ready.take_read_states());
        let committed = ready.take_committed_entries();
        if !snapshot.is_empty() {
            self.submit_checkpoint(number, messages);
        } else if ready.must_sync() {
            let mut records = Records::default();
            for entry in ready.entries() {
                records.entry(entry);
            }
            // The vote and the term always; the commit index comes along, so that a restart shows newer values.
            records.hard(&self.node.store().hard);
            self.submit(Job { number, records, checkpoint: false, messages });
        } else if self.outstanding.is_empty() {
            self.send(messages);
            self.node.advance_append_async(ready);
            self.node.on_persist_ready(number);
            return self.apply(&committed);
        } else {
            // Nothing to write, but earlier promises must become durable first.
            self.submit(Job { number, records: Records::default(), checkpoint: false, messages });
        }
        self.node.advance_append_async(ready);
        self.apply(&committed)
    }

    pub(crate) fn submit(&mut self, job: Job) {
        self.outstanding.push_back((job.number, Instant::now()));
        // A writer that is gone has said why: that event ends the driver.
        let _ = self.writer.send(job);
    }

    fn submit_checkpoint(&mut self, number: u64, messages: Vec<(NodeId, Vec<u8>)>) {
        let mut contents = self.node.store().contents();
        contents.copy = self.setup.copy;
        contents.group = self.setup.group;
        contents.owner = self.shared.me.to_string();
        self.checkpoint_running = true;
        self.bytes_since_snapshot = 0;
        self.submit(Job { number, records: Records::checkpoint(&contents), checkpoint: true, messages });
    }

    fn encode(&mut self, messages: Vec<Message>) -> Vec<(NodeId, Vec<u8>)> {
        let mut encoded = Vec::with_capacity(messages.len());
        for message in messages {
            let to = message.to;
            let Some(name) = self.names.get(&to).cloned() else { continue };
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.snapshots_sent.insert(to, Instant::now());
            }
            let to_copy = self.known_copy(to).unwrap_or(0);
            encoded
                .push((name, Frame { group: self.setup.group, from_copy: self.setup.copy, to_copy, message }.encode()));
        }
        encoded
    }

    fn send(&self, messages: Vec<(NodeId, Vec<u8>)>) {
        for (to, body) in messages {
            self.peers.send(&to, Channel::Raft, body);
        }
    }

    /// The leader's snapshot replaces this member's state.
    fn install(&mut self, snapshot: &Snapshot) -> Result<(), Fatal> {
        let state = State::decode(&snapshot.data).map_err(|error| format!("the leader's snapshot: {error}"))?;
        let index = snapshot.get_metadata().index;
        self.names.extend(state.members.clone());
        self.node.mut_store().install(snapshot);
        let mut visible = self.shared.visible();
        visible.state = state;
        visible.state.applied = index;
        drop(visible);
        self.show_members();
        self.shared.visible().show_all();
        self.forget_pending_until(index);
        Ok(())
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), Fatal> {
        let Some(last) = entries.last().map(|entry| entry.index) else { return Ok(()) };
        for entry in entries {
            self.bytes_since_snapshot += entry.data.len();
            let answer = match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => {
                    Answer::NotProposed("another change of the members is under way".to_owned())
                }
                EntryType::EntryNormal => apply_command(&mut self.shared.visible(), entry),
                EntryType::EntryConfChange => self.apply_change(entry)?,
                EntryType::EntryConfChangeV2 => return Err("an unknown kind of entry: upgrade this member".to_owned()),
            };
            self.answer_pending(entry, answer);
        }
        self.shared.visible().state.applied = last;
        self.node.advance_apply_to(last);
        Ok(())
    }

    fn apply_change(&mut self, entry: &Entry) -> Result<Answer, Fatal> {
        let change =
            ConfChange::parse_from_bytes(&entry.data).map_err(|error| format!("a change of members: {error}"))?;
        let name = std::str::from_utf8(&change.context).ok().and_then(|name| NodeId::new(name).ok());
        let name = name.filter(|name| raft_id(name) == change.node_id);
        let Some(name) = name else { return Err("a change of members without a name".to_owned()) };
        let id = change.node_id;
        self.node.apply_conf_change(&change).map_err(|error| format!("a change of members: {error}"))?;
        self.change_members(change.get_change_type(), id, name.clone());
        self.names.insert(id, name);
        self.met.remove(&id);
        // A new member needs a snapshot that names it: those of before would not let it in.
        self.snapshot_wanted |= change.get_change_type() == ConfChangeType::AddLearnerNode;
        self.show_members();
        Ok(Answer::Started)
    }

    fn change_members(&self, change: ConfChangeType, id: u64, name: NodeId) {
        let state = &mut self.shared.visible().state;
        match change {
            ConfChangeType::RemoveNode => {
                state.members.remove(&id);
                // It may come back with another directory.
                state.copies.remove(&id);
            }
            ConfChangeType::AddNode | ConfChangeType::AddLearnerNode => {
                state.members.insert(id, name);
            }
        }
    }

    pub(crate) fn show_members(&self) {
        let conf = self.node.raft.prs().conf().to_conf_state();
        let mut visible = self.shared.visible();
        let members = visible.state.members.iter();
        let members = members.map(|(id, node)| Member { node: node.clone(), learner: !conf.voters.contains(id) });
        visible.members = members.collect();
    }

    fn maybe_snapshot(&mut self) -> Result<(), Fatal> {
        let applied = self.node.raft.raft_log.applied;
        let since = applied.saturating_sub(self.node.store().snapshot.get_metadata().index);
        let heavy = self.bytes_since_snapshot >= SNAPSHOT_BYTES;
        let due = since >= self.setup.snapshot_every || (since > 0 && (heavy || self.snapshot_wanted));
        if !due || self.checkpoint_running {
            return Ok(());
        }
        self.snapshot_wanted = false;
        let term = self.node.raft.raft_log.term(applied).map_err(|error| format!("the log at {applied}: {error}"))?;
        let mut snapshot = Snapshot::default();
        let meta = snapshot.mut_metadata();
        meta.index = applied;
        meta.term = term;
        meta.set_conf_state(self.node.raft.prs().conf().to_conf_state());
        snapshot.data = self.shared.visible().state.encode().into();
        self.node.mut_store().take_snapshot(snapshot);
        self.submit_checkpoint(self.last_number, Vec::new());
        Ok(())
    }
}

/// A follower's answer to a heartbeat says that it hears this leader, and nothing about its disk. It must not wait there: a leader that
/// hears nothing from a majority for one election time-out steps down, however well everybody hears it.
fn promises_nothing(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgHeartbeatResponse
}

fn apply_command(visible: &mut Visible, entry: &Entry) -> Answer {
    match visible.state.apply(entry.index, &entry.data) {
        Applied::Done { key, revision } => {
            visible.show(&key);
            Answer::Done(revision)
        }
        Applied::Conflict(present) => Answer::Conflict(present),
        Applied::Refused(why) => Answer::Never(why),
        Applied::Noted => Answer::Started,
    }
}
