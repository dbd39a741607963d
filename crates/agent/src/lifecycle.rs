//! How an agent ends: in order with its server, handing the primary's role over first; or replaced by the program on disk, with server
//! and guard untouched; or because its node was removed.

use crate::mind_loop::{self, Question, Snapshot, Wish};
use mainstay_model::{ClaimState, Command, NodeId};
use mainstay_ports::peer::Peers;
use mainstay_store::{ClusterStore, RaftStore};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

/// How long a handover of the primary's role may take before the node ends all the same.
/// Most of it is what the checkpoint before it may take.
const HAND_OVER: Duration = Duration::from_secs(25);
const LOOK: Duration = Duration::from_millis(30);
const ANSWER: Duration = Duration::from_secs(1);
/// How long an order that runs may take before a restart breaks it off.
const ORDER_END: Duration = Duration::from_secs(10);
/// How long the store's leadership may take to move before a planned restart.
const PASS_ON: Duration = Duration::from_secs(1);

/// How often a store that ended on a full volume is looked at, and how much room it must find.
const ROOM_EACH: Duration = Duration::from_secs(5);
const ROOM: usize = 4 << 20;

/// What the agent is asked for from outside. A later one of a higher rank replaces an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Go on.
    #[default]
    Run,
    /// Replace the process by the program on disk; server and guard stay.
    Restart,
    /// Hand the primary's role over if this node has it, then end with the server.
    HandOver,
    /// End with the server at once: the whole cluster is going down.
    Stop,
}

/// How the agent has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With its server, as asked.
    Stopped,
    /// The caller replaces this process by the program on disk; server and guard run on.
    Restart,
    /// The node was removed from the cluster; its server has ended, its files stay.
    Removed(String),
}

/// The agent's own wish to end. Clones share it; the first one counts.
#[derive(Clone, Debug)]
pub struct Ending(watch::Sender<Option<Ended>>);

impl Default for Ending {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Ending {
    /// Ends the loop, to end like this.
    pub fn end(&self, how: Ended) {
        self.0.send_if_modified(|held| {
            let first = held.is_none();
            if first {
                *held = Some(how);
            }
            first
        });
    }

    /// How it is to end, if it is.
    #[must_use]
    pub fn how(&self) -> Option<Ended> {
        self.0.borrow().clone()
    }

    /// Completes when it is to end.
    pub async fn asked(&self) {
        // The sender lives as long as this does.
        let _ = self.0.subscribe().wait_for(Option::is_some).await;
    }
}

/// The loop, as far as ending needs it.
pub struct Lifecycle {
    /// Who.
    pub me: NodeId,
    /// Questions to the loop.
    pub questions: mpsc::Sender<Question>,
    /// Commands to the loop.
    pub wishes: mpsc::Sender<Wish>,
    /// The store.
    pub store: Arc<ClusterStore>,
    /// Where the store's files lie.
    pub store_dir: PathBuf,
    /// The other agents.
    pub peers: Arc<dyn Peers>,
    /// Where the end is said.
    pub ending: Ending,
}

impl Lifecycle {
    /// Follows what is asked for from outside until the end is said.
    pub async fn follow(self, mut signal: watch::Receiver<Signal>) {
        let asked = tokio::select! {
            asked = signal.wait_for(|signal| *signal != Signal::Run) => asked.map(|asked| *asked).ok(),
            () = anew(&self.store, &self.store_dir) => Some(Signal::Restart),
        };
        // A sender that is gone says nothing.
        let Some(asked) = asked else { return std::future::pending().await };
        match asked {
            Signal::Run => {}
            Signal::Restart => {
                info!("asked to restart: the program on disk takes over, the server runs on");
                self.let_order_end().await;
                self.pass_store_on().await;
                self.ending.end(Ended::Restart);
            }
            Signal::HandOver => {
                info!("asked to end");
                tokio::select! {
                    () = self.hand_over() => {}
                    _ = signal.wait_for(|signal| *signal == Signal::Stop) => info!("asked to end at once"),
                }
                self.ending.end(Ended::Stopped);
            }
            Signal::Stop => {
                info!("asked to end at once");
                self.ending.end(Ended::Stopped);
            }
        }
    }

    async fn snapshot(&self) -> Option<Snapshot> {
        mind_loop::ask(&self.questions, ANSWER).await
    }

    /// Gives the primary's role to a replica, if this node has it and one can take it. Bounded.
    async fn hand_over(&self) {
        let primary = |snapshot: &Snapshot| snapshot.summary.primary_of.is_some();
        if !self.snapshot().await.as_ref().is_some_and(primary) {
            return;
        }
        let (reply, answer) = oneshot::channel();
        let wish = Wish { by: "the end of this node".to_owned(), command: Command::Switchover { to: None }, reply };
        if self.wishes.send(wish).await.is_err() {
            return;
        }
        match timeout(ANSWER, answer).await {
            Ok(Ok(Ok(text))) => info!(%text, "handing the primary's role over before the end"),
            Ok(Ok(Err(why))) => return info!(%why, "the primary's role is not handed over"),
            _ => return,
        }
        let begun = Instant::now();
        while begun.elapsed() < HAND_OVER {
            let over = self.snapshot().await.and_then(|snapshot| snapshot.summary.record).is_some_and(|(_, record)| {
                record.state == ClaimState::Held && record.holder.as_ref().is_some_and(|holder| *holder != self.me)
            });
            if over {
                return info!(took_ms = begun.elapsed().as_millis(), "another node is primary");
            }
            sleep(LOOK).await;
        }
        warn!("nobody took the primary's role over in time; ending all the same");
    }

    /// An order that runs now is better ended than broken off. Bounded.
    async fn let_order_end(&self) {
        let begun = Instant::now();
        while begun.elapsed() < ORDER_END
            && self.snapshot().await.is_some_and(|snapshot| snapshot.summary.order.is_some())
        {
            sleep(LOOK).await;
        }
    }

    /// A leader that vanishes costs the store an election: another one leads first, if one is there.
    async fn pass_store_on(&self) {
        let Some(raft) = self.store.embedded().filter(|raft| raft.leader().as_ref() == Some(&self.me)) else { return };
        let voters = raft.standing().voters;
        let to = voters.into_iter().find(|node| *node != self.me && self.peers.connected(node));
        if let Some(to) = to {
            let _ = timeout(PASS_ON, raft.transfer_leader(&to)).await;
        }
    }
}

/// Completes when the agent must start anew for the sake of the store.
async fn anew(store: &ClusterStore, dir: &Path) {
    match store {
        ClusterStore::Raft(raft) => {
            room_again(raft, dir).await;
            warn!("the store ended on a full volume, and there is room again: starting anew");
        }
        ClusterStore::Etcd(etcd) => {
            etcd.until_anew().await;
            warn!("the cluster's store was made anew in etcd: starting anew with it");
        }
    }
}

/// Completes when this member of the store has ended because its volume was full, and room is there again. After any other failure of
/// the disk nobody knows what it holds: that is for people.
async fn room_again(store: &RaftStore, dir: &Path) {
    loop {
        sleep(ROOM_EACH).await;
        let Some(why) = store.failure() else { continue };
        if !was_full(&why) {
            return std::future::pending().await;
        }
        let dir = dir.to_owned();
        if tokio::task::spawn_blocking(move || has_room(&dir)).await.unwrap_or(false) {
            return;
        }
    }
}

fn was_full(why: &str) -> bool {
    [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT].iter().any(|errno| why.contains(&errno.to_string()))
}

/// Tries it out: what a volume says is free may be kept for others.
fn has_room(dir: &Path) -> bool {
    let path = dir.join("room.new");
    let wrote = std::fs::File::create(&path).and_then(|mut file| {
        file.write_all(&vec![0; ROOM])?;
        file.sync_all()
    });
    std::fs::remove_file(&path).is_ok() && wrote.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_full_volume_is_known_to_hold_what_was_written() {
        let text = |errno: rustix::io::Errno| format!("the journal cannot be written: {}", std::io::Error::from(errno));
        assert!(was_full(&text(rustix::io::Errno::NOSPC)) && was_full(&text(rustix::io::Errno::DQUOT)));
        assert!(!was_full(&text(rustix::io::Errno::IO)) && !was_full("the store was stopped"));
    }

    #[test]
    fn room_is_tried_out_and_nothing_stays() {
        let place = tempfile::tempdir().unwrap();
        assert!(has_room(place.path()));
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
        assert!(!has_room(&place.path().join("none")));
    }

    #[tokio::test]
    async fn the_first_end_counts() {
        let ending = Ending::default();
        assert_eq!(ending.how(), None);
        ending.clone().end(Ended::Restart);
        ending.end(Ended::Stopped);
        ending.asked().await;
        assert_eq!(ending.how(), Some(Ended::Restart));
    }
}
