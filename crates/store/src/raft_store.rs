//! The embedded Raft store: its threads, its public face, and the way of a request to the leader.
//!
//! A compare-and-set is passed on only while it is certain that nobody has proposed it yet: "not connected" and "I do not lead"
//! are such answers, silence is not. So it is never carried out twice, and `Unavailable` always means never.

use crate::command::Command;
use crate::driver::{Driver, Setup};
use crate::handler::{RaftHandler, StoreHandler, ask_driver};
use crate::journal::{Contents, Journal, OpenError, Records, Sync};
use crate::log_bridge;
use crate::mirror::{Mirror, initial_snapshot};
use crate::request::{Answer, Change, Request};
use crate::shared::{Event, Queued, Shared, Visible};
use crate::state::{State, raft_id};
use crate::writer::{self, Job};
use async_trait::async_trait;
use mainstay_model::api::StoreStanding;
use mainstay_model::{NodeId, Revision, Span};
use mainstay_ports::peer::{Channel, Handler, PeerError, Peers};
use mainstay_ports::store::{CasOutcome, Store, StoreError, Versioned};
use raft::{Config, RawNode};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// How long to wait before asking again when the leader did not change meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(25);
/// Raft's clock ticks this often within a heartbeat.
const TICKS_PER_HEARTBEAT: u64 = 4;
/// A disk that needs this many election time-outs for one write costs the leadership.
const STALL_ELECTIONS: u32 = 4;
/// How long the changes of members and leader may take.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(3);
const CHANGE_PATIENCE: Duration = Duration::from_secs(30);
/// A learner this close to the leader's log may become a voter, in entries.
const CAUGHT_UP: u64 = 16;

/// How a member is set up.
#[derive(Clone, Debug)]
pub struct RaftOptions {
    /// This node.
    pub me: NodeId,
    /// The members that the cluster begins with; the same list on each of them. It counts only while `dir` is empty. A node that
    /// is not in the list (it may be empty) joins by being added.
    pub voters: Vec<NodeId>,
    /// Which store to join, if this node is not in the list: 0 is the one that a cluster begins with. It counts only while nobody has
    /// added this node.
    pub group: u64,
    /// Where the journal lies. One member, one directory.
    pub dir: PathBuf,
    /// Silence of the leader after which a follower stands for election; the time is drawn from 1 to 1.5 times this.
    pub election: Span,
    /// How often the leader shows that it is there. A quarter of `election` at most.
    pub heartbeat: Span,
    /// Entries after which a snapshot replaces the log.
    pub snapshot_every: u64,
}

impl RaftOptions {
    /// The defaults: election 500 ms, heartbeat 100 ms, a snapshot each 4096 entries.
    #[must_use]
    pub fn new(me: NodeId, voters: Vec<NodeId>, dir: PathBuf) -> Self {
        Self { me, voters, group: 0, dir, election: Span(500), heartbeat: Span(100), snapshot_every: 4096 }
    }
}

/// Why a member could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The options contradict each other.
    #[error("the store's options: {0}")]
    Options(String),
    /// The journal could not be opened: disk, permission, another process, damage.
    #[error(
        "the store's journal: {0}. If it can not be mended: stop this agent, move the directory {dir} aside, run \
         `mainstay node replace NAME` with this node's name (another node carries it out), and start the agent again", dir = .1.display()
    )]
    Journal(String, PathBuf),
    /// Threads could not be started.
    #[error("the store's threads: {0}")]
    Threads(#[from] std::io::Error),
}

/// Why a change of leader or members did not happen, or not in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RaftError {
    /// It cannot be done.
    #[error("{0}")]
    Refused(String),
    /// It was not done in time, or it is not known whether it was; it may be asked again safely.
    #[error("not done in time: {0}")]
    Late(String),
}

/// A member of the store's cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its name.
    pub node: NodeId,
    /// It receives the log and does not vote yet.
    pub learner: bool,
}

/// The embedded Raft store. See the module's doc.
pub struct RaftStore {
    shared: Arc<Shared>,
    peers: Arc<dyn Peers>,
    election: Duration,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl RaftStore {
    /// Opens the journal and starts this member; what it returns besides itself is to be registered for incoming messages.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        options: RaftOptions,
        peers: Arc<dyn Peers>,
    ) -> Result<(Arc<RaftStore>, BTreeMap<Channel, Arc<dyn Handler>>), StartError> {
        Self::start_on(options, peers, Arc::new(File::sync_data)).await
    }

    /// As `start`, on a disk of the caller's making.
    pub(crate) async fn start_on(
        options: RaftOptions,
        peers: Arc<dyn Peers>,
        sync: Sync,
    ) -> Result<(Arc<RaftStore>, BTreeMap<Channel, Arc<dyn Handler>>), StartError> {
        check(&options)?;
        let links = peers.links();
        let copy = random().map_err(|why| StartError::Journal(why, options.dir.clone()))?;
        let opened = tokio::task::spawn_blocking({
            let (options, sync) = (options.clone(), sync);
            move || Journal::open(&options.dir, sync, || first_contents(&options, copy))
        });
        let broken = |why: String| StartError::Journal(why, options.dir.clone());
        let opened = opened.await.map_err(|error| broken(error.to_string()))?;
        let (mut journal, mut contents) = opened.map_err(|error: OpenError| broken(error.to_string()))?;
        if !contents.owner.is_empty() && contents.owner != options.me.as_str() {
            return Err(broken(format!(
                "the directory belongs to the node {}, this one is {}",
                contents.owner, options.me
            )));
        }
        if contents.group != options.group && contents.is_nobodys() {
            // It waited for a store that was rebuilt meanwhile.
            contents.group = options.group;
            journal.checkpoint(&Records::checkpoint(&contents)).map_err(|error| broken(error.to_string()))?;
        }
        let election = options.election.to_std();
        let (shared, threads) = launch(&options, journal, contents, Arc::clone(&peers))?;
        tokio::spawn(follow_links(links, Arc::clone(&shared)));
        let mut handlers: BTreeMap<Channel, Arc<dyn Handler>> = BTreeMap::new();
        handlers.insert(Channel::Raft, Arc::new(RaftHandler(Arc::clone(&shared))));
        handlers.insert(Channel::Store, Arc::new(StoreHandler(Arc::clone(&shared))));
        Ok((Arc::new(Self { shared, peers, election, threads: Mutex::new(threads) }), handlers))
    }

    /// The leader as far as this member knows. It may be out of date.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.shared.leader.borrow().clone()
    }

    /// The leader, now and whenever it changes.
    #[must_use]
    pub fn watch_leader(&self) -> watch::Receiver<Option<NodeId>> {
        self.shared.leader.subscribe()
    }

    /// Why this member has stopped (a disk error), if it has. It never works again in this process.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.failure().cloned()
    }

    /// The members, as far as this one knows.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let mut members = self.shared.visible().members.clone();
        members.sort();
        members
    }

    /// This member's view of the store, without asking anybody.
    #[must_use]
    pub fn standing(&self) -> StoreStanding {
        let members = self.members();
        let named = |learner: bool| {
            let of_kind = members.iter().filter(move |member| member.learner == learner);
            of_kind.map(|member| member.node.clone()).collect()
        };
        StoreStanding {
            group: self.shared.group,
            leader: self.leader(),
            voters: named(false),
            learners: named(true),
            joining: members.is_empty(),
            failure: self.failure(),
            etcd: None,
        }
    }

    /// Nothing was ever written: as far as this member knows the store has just been founded.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.shared.visible().state.values.is_empty()
    }

    /// How many messages of members of another store were dropped.
    #[must_use]
    pub fn foreign(&self) -> u64 {
        self.shared.foreign.load(Ordering::Relaxed)
    }

    /// Moves the leadership to a voting member.
    ///
    /// # Errors
    /// When `to` does not vote, or did not take over within three seconds.
    pub async fn transfer_leader(&self, to: &NodeId) -> Result<(), RaftError> {
        let mut leader = self.watch_leader();
        let deadline = Instant::now() + TRANSFER_PATIENCE;
        loop {
            match self.ask(&Request::Transfer { to: to.clone() }, deadline).await {
                Asked::Answer(Answer::Never(why)) => return Err(RaftError::Refused(why)),
                Asked::Unasked(why) => return Err(RaftError::Late(why)),
                _ => {}
            }
            // Raft gives an attempt up after one election time-out: then ask again.
            let taken = timeout(self.election * 2, leader.wait_for(|leader| leader.as_ref() == Some(to)));
            if taken.await.is_ok() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(RaftError::Late(format!("{to} did not take the leadership over")));
            }
        }
    }

    /// Adds a member: first it receives the log, then, once it has caught up, it votes. Asking again is harmless.
    ///
    /// # Errors
    /// When it did not catch up within thirty seconds (it then stays a learner), or no leader was there.
    pub async fn add_member(&self, node: &NodeId) -> Result<(), RaftError> {
        let deadline = Instant::now() + CHANGE_PATIENCE;
        let mut last = String::from("no leader");
        while Instant::now() < deadline {
            match self.progress(node, deadline).await {
                Ok((true, true, _)) => return Ok(()),
                Ok((false, ..)) => self.change(Change::AddLearner, node, deadline).await?,
                Ok((true, false, lag)) if lag <= CAUGHT_UP => self.change(Change::AddVoter, node, deadline).await?,
                Ok((true, false, _)) => last = format!("{node} has not caught up"),
                Err(why) => last = why,
            }
            sleep(ASK_AGAIN).await;
        }
        Err(RaftError::Late(last))
    }

    /// Removes a member. Remove a lost one before adding it again with an empty directory. Asking again is harmless.
    ///
    /// # Errors
    /// When the leader removes itself (move the leadership first), it is the last voter, or no leader was there in time.
    pub async fn remove_member(&self, node: &NodeId) -> Result<(), RaftError> {
        let deadline = Instant::now() + CHANGE_PATIENCE;
        let mut last = String::from("no leader");
        while Instant::now() < deadline {
            if self.leader().as_ref() == Some(node) {
                return Err(RaftError::Refused(format!("{node} leads: move the leadership to another member first")));
            }
            match self.progress(node, deadline).await {
                Ok((false, ..)) => return Ok(()),
                Ok((true, ..)) => self.change(Change::Remove, node, deadline).await?,
                Err(why) => last = why,
            }
            sleep(ASK_AGAIN).await;
        }
        Err(RaftError::Late(last))
    }

    /// Stops this member. Move the leadership away first if it should not be missed.
    pub async fn stop(&self) {
        self.shared.tell(Event::Stop);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let join = move || threads.into_iter().for_each(|thread| drop(thread.join()));
        let _ = tokio::task::spawn_blocking(join).await;
    }

    /// Is it a member, does it vote, how many entries is it behind?
    async fn progress(&self, node: &NodeId, deadline: Instant) -> Result<(bool, bool, u64), String> {
        match self.ask(&Request::Progress { node: node.clone() }, deadline).await {
            Asked::Answer(Answer::Progress { member, voter, matched, committed }) => {
                let lag = if matched == 0 { u64::MAX } else { committed.saturating_sub(matched) };
                Ok((member, voter, lag))
            }
            Asked::Unasked(why) => Err(why),
            Asked::Answer(_) | Asked::Lost => Err("the leader did not answer".to_owned()),
        }
    }

    /// One step of a change. Its outcome is seen by the next look at the progress.
    async fn change(&self, change: Change, node: &NodeId, deadline: Instant) -> Result<(), RaftError> {
        let step = deadline.min(Instant::now() + self.election * 4);
        match self.ask(&Request::Change { change, node: node.clone() }, step).await {
            Asked::Answer(Answer::Never(why)) => Err(RaftError::Refused(why)),
            _ => Ok(()),
        }
    }

    /// Brings a request to the leader, once: further tries only follow the certainty that nothing was proposed.
    async fn ask(&self, request: &Request, deadline: Instant) -> Asked {
        let mut leader = self.watch_leader();
        loop {
            if let Some(why) = self.shared.failure() {
                return Asked::Unasked(why.clone());
            }
            let to = leader.borrow_and_update().clone();
            let refused = match to {
                None => "no leader".to_owned(),
                Some(to) => match self.ask_node(&to, request, deadline).await {
                    Asked::Answer(Answer::NotProposed(why)) | Asked::Unasked(why) => why,
                    asked => return asked,
                },
            };
            if timeout_at(deadline, timeout(ASK_AGAIN, leader.changed())).await.is_err() {
                return Asked::Unasked(refused);
            }
        }
    }

    async fn ask_node(&self, to: &NodeId, request: &Request, deadline: Instant) -> Asked {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Asked::Unasked("no time left".to_owned());
        }
        if *to == self.shared.me {
            return ask_driver(&self.shared, request.clone(), left).await.map_or(Asked::Lost, Asked::Answer);
        }
        match timeout_at(
            deadline,
            self.peers.request(to, Channel::Store, request.encode(self.shared.group, left), left),
        )
        .await
        {
            Ok(Ok(body)) => Answer::decode(&body).map_or(Asked::Lost, Asked::Answer),
            Ok(Err(error @ PeerError::NotConnected(_))) => Asked::Unasked(error.to_string()),
            // A refusal comes from that side's listener; how far the request got there is not known.
            Ok(Err(PeerError::NoAnswer(_) | PeerError::Refused(_))) | Err(_) => Asked::Lost,
        }
    }
}

/// What became of a request.
enum Asked {
    Answer(Answer),
    /// Nobody has proposed it, nor ever will.
    Unasked(String),
    /// It was sent and nothing came back.
    Lost,
}

impl Drop for RaftStore {
    fn drop(&mut self) {
        self.shared.tell(Event::Stop);
    }
}

#[async_trait]
impl Store for RaftStore {
    async fn read(&self, key: &str, timeout: Duration) -> Result<Option<Versioned>, StoreError> {
        let deadline = Instant::now() + timeout;
        let request = Request::Read { key: key.to_owned() };
        loop {
            // A read may be repeated, so no single silent leader uses the time up.
            let attempt = deadline.min(Instant::now() + self.election * 2);
            let why = match self.ask(&request, attempt).await {
                Asked::Answer(Answer::Value(value)) => return Ok(value),
                Asked::Answer(Answer::Never(why)) | Asked::Unasked(why) => why,
                Asked::Answer(_) | Asked::Lost => "the leader did not answer".to_owned(),
            };
            if Instant::now() >= deadline || self.shared.failure().is_some() {
                return Err(StoreError::Unavailable(why));
            }
        }
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<Revision>,
        value: Vec<u8>,
        timeout: Duration,
    ) -> CasOutcome {
        let command = Command { key: key.to_owned(), expected: expected.map(|revision| revision.0), value };
        if let Some(why) = command.refusal() {
            return CasOutcome::Unavailable(why);
        }
        match self.ask(&Request::Cas(command), Instant::now() + timeout).await {
            Asked::Answer(Answer::Done(revision)) => CasOutcome::Done(Revision(revision)),
            Asked::Answer(Answer::Conflict(present)) => CasOutcome::Conflict(present),
            Asked::Answer(Answer::Never(why)) | Asked::Unasked(why) => CasOutcome::Unavailable(why),
            Asked::Answer(_) | Asked::Lost => CasOutcome::Unknown,
        }
    }

    fn watch(&self, key: &str) -> watch::Receiver<Option<Versioned>> {
        self.shared.visible().watch(key)
    }
}

fn check(options: &RaftOptions) -> Result<(), StartError> {
    let distinct: BTreeSet<u64> = options.voters.iter().chain([&options.me]).map(raft_id).collect();
    let names: BTreeSet<&NodeId> = options.voters.iter().chain([&options.me]).collect();
    if distinct.len() != names.len() {
        return Err(StartError::Options("two names have the same hash: rename a node".to_owned()));
    }
    if options.heartbeat.0 < TICKS_PER_HEARTBEAT || options.heartbeat.0 * 4 > options.election.0 {
        let text = format!(
            "heartbeat {} must be 4 ms at least and a quarter of election {} at most",
            options.heartbeat, options.election
        );
        return Err(StartError::Options(text));
    }
    Ok(())
}

/// What a new directory holds: the same first state on each initial voter, nothing on one that joins later.
fn first_contents(options: &RaftOptions, copy: u64) -> Contents {
    let owner = options.me.to_string();
    let mut contents = Contents { copy, group: options.group, owner, ..Contents::default() };
    if options.voters.contains(&options.me) {
        contents.group = 0;
        let mut voters: Vec<u64> = options.voters.iter().map(raft_id).collect();
        voters.sort_unstable();
        voters.dedup();
        contents.snapshot = initial_snapshot(voters, State::initial(1, &options.voters).encode());
        contents.trimmed = (1, 1);
        contents.hard.term = 1;
        contents.hard.commit = 1;
    }
    contents
}

/// A random number, never 0. Without randomness two copies would bear one number, so there is none then.
pub(crate) fn random() -> Result<u64, String> {
    let mut number = [0; 8];
    let got = rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty());
    drawn(number, got.map_err(|error| error.to_string()))
}

fn drawn(number: [u8; 8], got: Result<usize, String>) -> Result<u64, String> {
    match got {
        Ok(filled) if filled == number.len() => Ok(u64::from_ne_bytes(number).max(1)),
        Ok(filled) => Err(format!("the operating system gave {filled} random bytes of {}", number.len())),
        Err(error) => Err(format!("no randomness from the operating system: {error}")),
    }
}

fn config(options: &RaftOptions, applied: u64) -> Config {
    let ticks = |span: Span| usize::try_from(span.0 * TICKS_PER_HEARTBEAT / options.heartbeat.0).unwrap_or(usize::MAX);
    let election_tick = ticks(options.election);
    Config {
        id: raft_id(&options.me),
        election_tick,
        heartbeat_tick: ticks(options.heartbeat),
        min_election_tick: election_tick,
        max_election_tick: election_tick + election_tick / 2,
        applied,
        max_size_per_msg: 1024 * 1024,
        max_inflight_msgs: 256,
        max_uncommitted_size: 16 * 1024 * 1024,
        check_quorum: true,
        pre_vote: true,
        ..Config::default()
    }
}

type Launched = (Arc<Shared>, Vec<JoinHandle<()>>);

fn launch(
    options: &RaftOptions,
    journal: Journal,
    contents: Contents,
    peers: Arc<dyn Peers>,
) -> Result<Launched, StartError> {
    let broken = |why: String| StartError::Journal(why, options.dir.clone());
    let snapshot = contents.snapshot.get_metadata().index;
    let state = match &contents.snapshot.data {
        data if data.is_empty() => State::default(),
        data => State::decode(data).map_err(|error| broken(format!("its snapshot: {error}")))?,
    };
    let mirror = Mirror::new(&contents);
    let config = config(options, snapshot);
    // The crate checks what it loads by panicking.
    let node = catch_unwind(AssertUnwindSafe(|| RawNode::new(&config, mirror, &log_bridge::logger())));
    let node = node.map_err(|_| broken("its parts do not fit together".to_owned()))?;
    let node = node.map_err(|error| broken(error.to_string()))?;
    let (events, queue) = mpsc::channel::<Queued>();
    let (writer, jobs) = mpsc::channel::<Job>();
    let names: BTreeMap<u64, NodeId> =
        options.voters.iter().chain([&options.me]).map(|node| (raft_id(node), node.clone())).collect();
    let members = state.members.clone();
    let shared =
        Arc::new(Shared::new(options.me.clone(), contents.group, Visible { state, ..Visible::default() }, events));
    let setup = Setup {
        tick: options.heartbeat.to_std() / u32::try_from(TICKS_PER_HEARTBEAT).unwrap_or(1),
        stall: options.election.to_std() * STALL_ELECTIONS,
        snapshot_every: options.snapshot_every.max(1),
        copy: contents.copy,
        group: contents.group,
    };
    let mut driver = Driver::new(Arc::clone(&shared), node, Arc::clone(&peers), setup, queue, writer);
    driver.names.extend(names);
    driver.names.extend(members);
    driver.show_members();
    let runtime = tokio::runtime::Handle::current();
    let writing = std::thread::Builder::new().name("store-writer".to_owned()).spawn({
        let (runtime, shared) = (runtime.clone(), Arc::clone(&shared));
        move || {
            let _entered = runtime.enter();
            writer::run(journal, &jobs, &peers, &shared);
        }
    })?;
    let driving = std::thread::Builder::new().name("store-raft".to_owned()).spawn({
        let shared = Arc::clone(&shared);
        move || {
            let _entered = runtime.enter();
            drive(driver, &shared);
        }
    })?;
    Ok((shared, vec![driving, writing]))
}

/// The border: whatever goes wrong inside ends here, as "unavailable".
fn drive(mut driver: Driver, shared: &Shared) {
    let why = match catch_unwind(AssertUnwindSafe(|| driver.run())) {
        Ok(Ok(())) => return shared.stopped(),
        Ok(Err(why)) => why,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            broken(&text.unwrap_or_default())
        }
    };
    shared.fail(why);
}

/// What the Raft crate's end means. It ends when its leader knows more of this member than the member itself.
fn broken(text: &str) -> String {
    let older = text.contains("to_commit") && text.contains("out of range");
    let meaning = match older {
        true => {
            "its directory holds less than it once acknowledged (an older copy of it, or a part was lost): move that directory aside and let it \
             join anew"
        }
        false => "its state is broken",
    };
    format!("{meaning} ({text})")
}

async fn follow_links(mut links: broadcast::Receiver<mainstay_ports::peer::LinkChange>, shared: Arc<Shared>) {
    while shared.failure().is_none() {
        match links.recv().await {
            Ok(change) => {
                let _ = shared.offer(Event::Link { node: change.node, up: change.up }, 0);
            }
            // Missed changes cost time only: the time-outs see the same.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{broken, drawn};

    #[test]
    fn a_directory_that_went_back_is_said_to_have() {
        let text = broken("to_commit 3764 is out of range [last_index 3735], raft_id: 1");
        assert!(text.contains("less than it once acknowledged") && text.contains("3764"), "{text}");
        assert!(broken("not a number").starts_with("its state is broken"));
    }

    #[test]
    fn without_randomness_there_is_no_number() {
        assert!(drawn([0; 8], Err("denied".to_owned())).unwrap_err().contains("denied"));
        assert!(drawn([7; 8], Ok(3)).unwrap_err().contains("3 random bytes of 8"));
        assert_eq!(drawn([0; 8], Ok(8)).unwrap(), 1, "never 0");
    }
}
