//! The writer: a thread that makes the driver's batches durable, in order, several with one fsync, and then lets the messages go
//! that promise them.
//!
//! Absent: any retry. After a failed write or fsync nobody knows what the disk holds, so the member stops.

use crate::journal::{Journal, Records};
use crate::shared::{Event, Shared};
use mainstay_model::NodeId;
use mainstay_ports::peer::{Channel, Peers};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// Batches that share one fsync at most.
const GROUP_MAX: usize = 64;

/// Work for the writer.
pub(crate) struct Job {
    /// The last batch of the Raft state that is durable once this job is done.
    pub(crate) number: u64,
    pub(crate) records: Records,
    /// Begin a new journal file with the records instead of appending them.
    pub(crate) checkpoint: bool,
    /// To be sent once the records are durable.
    pub(crate) messages: Vec<(NodeId, Vec<u8>)>,
}

/// Runs until the driver hangs up or the disk fails.
pub(crate) fn run(mut journal: Journal, jobs: &Receiver<Job>, peers: &Arc<dyn Peers>, shared: &Shared) {
    while let Ok(first) = jobs.recv() {
        let mut group = vec![first];
        while group.len() < GROUP_MAX
            && let Ok(job) = jobs.try_recv()
        {
            group.push(job);
        }
        if let Err(error) = carry_out(&mut journal, group, peers, shared) {
            shared.tell(Event::DiskFailed(format!("the store's journal cannot be written: {error}")));
            return;
        }
    }
}

fn carry_out(journal: &mut Journal, group: Vec<Job>, peers: &Arc<dyn Peers>, shared: &Shared) -> io::Result<()> {
    let mut open = Records::default();
    let mut done: Vec<Job> = Vec::new();
    for job in group {
        if job.checkpoint {
            flush(journal, &mut open, &mut done, peers, shared)?;
            journal.checkpoint(&job.records)?;
            shared.tell(Event::CheckpointDone);
        } else {
            open.append(&job.records);
        }
        done.push(job);
    }
    flush(journal, &mut open, &mut done, peers, shared)
}

fn flush(
    journal: &mut Journal,
    open: &mut Records,
    done: &mut Vec<Job>,
    peers: &Arc<dyn Peers>,
    shared: &Shared,
) -> io::Result<()> {
    if !open.is_empty() {
        journal.append(&std::mem::take(open))?;
    }
    let Some(number) = done.last().map(|job| job.number) else { return Ok(()) };
    for job in done.drain(..) {
        for (to, body) in job.messages {
            peers.send(&to, Channel::Raft, body);
        }
    }
    shared.tell(Event::Persisted { number });
    Ok(())
}
