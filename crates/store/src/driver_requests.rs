//! Carries out what callers want, if this member leads; and keeps who waits for what.
//!
//! Exactness: a compare-and-set is proposed at most once. Its entry's index and term identify it: once any entry is applied at that
//! index, its fate is known, also after this member lost the leadership.

use crate::driver::Driver;
use crate::request::{Answer, Change, Request};
use crate::state::raft_id;
use mainstay_model::NodeId;
use mainstay_ports::store::Versioned;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry};
use raft::{ReadState, StateRole};
use std::time::Instant;
use tokio::sync::oneshot;

/// Proposals, and reads, that may wait.
const WAITING_MAX: usize = 1024;

/// A proposal whose entry is in the log.
pub(crate) struct Pending {
    term: u64,
    deadline: Instant,
    reply: oneshot::Sender<Answer>,
}

struct Read {
    key: String,
    deadline: Instant,
    reply: oneshot::Sender<Answer>,
}

struct ReadBatch {
    number: u64,
    /// Known once a majority confirmed that this member still leads.
    index: Option<u64>,
    reads: Vec<Read>,
}

/// Reads that wait for the proof that this member leads. Those that come together share one round.
#[derive(Default)]
pub(crate) struct Reads {
    last: u64,
    fresh: Vec<Read>,
    asked: Vec<ReadBatch>,
}

impl Reads {
    pub(crate) fn indexes(&mut self, states: Vec<ReadState>) {
        for state in states {
            let Ok(number) = state.request_ctx.as_slice().try_into().map(u64::from_be_bytes) else { continue };
            if let Some(batch) = self.asked.iter_mut().find(|batch| batch.number == number) {
                batch.index = Some(state.index);
            }
        }
    }

    fn waiting(&self) -> usize {
        self.fresh.len() + self.asked.iter().map(|batch| batch.reads.len()).sum::<usize>()
    }
}

fn not_proposed(why: &str) -> Answer {
    Answer::NotProposed(why.to_owned())
}

impl Driver {
    fn leads(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    pub(crate) fn request(&mut self, request: Request, deadline: Instant, reply: oneshot::Sender<Answer>) {
        let refusal = if !self.leads() {
            Some("this member does not lead")
        } else if Instant::now() >= deadline {
            Some("it came too late")
        } else if self.pending.len() >= WAITING_MAX || self.reads.waiting() >= WAITING_MAX {
            Some("too many requests wait for the disk or the quorum")
        } else {
            None
        };
        if let Some(why) = refusal {
            let _ = reply.send(not_proposed(why));
            return;
        }
        let answer = match request {
            Request::Cas(command) => {
                if let Some(why) = command.refusal() {
                    Answer::Never(why)
                } else {
                    let proposed = self.node.propose(Vec::new(), command.encode());
                    return self.await_entry(proposed, deadline, reply);
                }
            }
            Request::Change { change, node } => {
                let proposed = self.propose_change(change, &node);
                return self.await_entry(proposed, deadline, reply);
            }
            Request::Read { key } => return self.reads.fresh.push(Read { key, deadline, reply }),
            Request::Transfer { to } => self.transfer(&to),
            Request::Progress { node } => self.progress(&node),
        };
        let _ = reply.send(answer);
    }

    /// Waits for the entry that was just appended, if it was.
    fn await_entry(&mut self, proposed: raft::Result<()>, deadline: Instant, reply: oneshot::Sender<Answer>) {
        match proposed {
            Ok(()) => {
                let raft = &self.node.raft;
                let pending = Pending { term: raft.term, deadline, reply };
                self.pending.insert(raft.raft_log.last_index(), pending);
            }
            Err(error) => {
                let _ = reply.send(Answer::NotProposed(error.to_string()));
            }
        }
    }

    fn propose_change(&mut self, change: Change, node: &NodeId) -> raft::Result<()> {
        if self.node.raft.has_pending_conf() {
            return Err(raft::Error::ProposalDropped);
        }
        let kind = match change {
            Change::AddLearner => ConfChangeType::AddLearnerNode,
            Change::AddVoter => ConfChangeType::AddNode,
            Change::Remove => ConfChangeType::RemoveNode,
        };
        let mut entry = ConfChange { node_id: raft_id(node), ..ConfChange::default() };
        entry.set_change_type(kind);
        entry.context = node.as_str().as_bytes().to_vec().into();
        self.node.propose_conf_change(Vec::new(), entry)
    }

    fn transfer(&mut self, to: &NodeId) -> Answer {
        let id = raft_id(to);
        if !self.node.raft.prs().conf().voters().contains(id) {
            return Answer::Never(format!("{to} is not a voting member"));
        }
        self.node.transfer_leader(id);
        Answer::Started
    }

    fn progress(&self, node: &NodeId) -> Answer {
        let id = raft_id(node);
        let raft = &self.node.raft;
        let progress = raft.prs().get(id);
        Answer::Progress {
            member: progress.is_some(),
            voter: raft.prs().conf().voters().contains(id),
            matched: progress.map_or(0, |progress| progress.matched),
            committed: raft.raft_log.committed,
        }
    }

    /// An entry was applied: whoever proposed what stands there, or would have stood there, learns it.
    pub(crate) fn answer_pending(&mut self, entry: &Entry, answer: Answer) {
        let Some(pending) = self.pending.remove(&entry.index) else { return };
        let ours = pending.term == entry.term;
        let _ = pending.reply.send(if ours { answer } else { not_proposed("another leader's entry took its place") });
    }

    /// A snapshot tells the state, not the fate of single entries.
    pub(crate) fn forget_pending_until(&mut self, index: u64) {
        let later = self.pending.split_off(&(index + 1));
        for (_, pending) in std::mem::replace(&mut self.pending, later) {
            let _ = pending.reply.send(Answer::Unknown);
        }
    }

    pub(crate) fn expire(&mut self, now: Instant) {
        // The callers have given up already: dropping the reply is enough.
        self.pending.retain(|_, pending| pending.deadline > now);
        self.reads.fresh.retain(|read| read.deadline > now);
        for batch in &mut self.reads.asked {
            batch.reads.retain(|read| read.deadline > now);
        }
        self.reads.asked.retain(|batch| !batch.reads.is_empty());
    }

    /// Asks for the proof of leadership for the reads that came in.
    pub(crate) fn issue_reads(&mut self) {
        if !self.leads() {
            let batches = std::mem::take(&mut self.reads.asked).into_iter().flat_map(|batch| batch.reads);
            for read in batches.chain(std::mem::take(&mut self.reads.fresh)) {
                let _ = read.reply.send(not_proposed("this member does not lead any more"));
            }
        } else if !self.reads.fresh.is_empty() && self.node.raft.commit_to_current_term() {
            self.reads.last += 1;
            let number = self.reads.last;
            let reads = std::mem::take(&mut self.reads.fresh);
            self.reads.asked.push(ReadBatch { number, index: None, reads });
            self.node.read_index(number.to_be_bytes().to_vec());
        }
    }

    /// Answers the reads whose proof has come and whose entries are applied.
    pub(crate) fn finish_reads(&mut self) {
        if self.reads.asked.is_empty() {
            return;
        }
        let visible = self.shared.visible();
        let applied = visible.state.applied;
        let proven = |batch: &mut ReadBatch| batch.index.is_some_and(|index| index <= applied);
        for batch in self.reads.asked.extract_if(.., proven) {
            for read in batch.reads {
                let value: Option<Versioned> = visible.state.values.get(&read.key).cloned();
                let _ = read.reply.send(Answer::Value(value));
            }
        }
    }
}
