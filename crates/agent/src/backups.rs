//! Makes backups on this node when it is asked to, one in the cluster at a time: the lock, and how it goes, stand in the store.
//!
//! The copy runs in a thread with a runtime of its own, at ordinary priority: it must not take time from what keeps the lease.
//! The lock of an agent that is gone is taken over when it has given no sign of life for a while, by the clock of whoever waits. A backup that
//! hangs is left behind and its lock given back; until its thread ends, this process begins no other in that repository.

use crate::api::AgentQuestion;
use crate::backup_job::{Done, Job, run};
use crate::backup_outcome::{cut_off, drilled, give_up, record, told};
use crate::clone_seed::VaultSeed;
use crate::generations::Generations;
use crate::record::RECORD_KEY;
use crate::restore_drill as drill;
use crate::setup::entropy;
use crate::shelves;
use mainstay_model::spec::Vault;
use mainstay_model::vault::{BACKUP_KEY, BackupBegun, BackupRunning, BackupState, BackupWish, DrillDone};
use mainstay_model::{Event, NodeId, Record, RepositoryName, ServerObservation};
use mainstay_ports::clock::{boot_now, wall_now_ms};
use mainstay_ports::engine::Engine;
use mainstay_ports::peer::{Channel, Peers};
use mainstay_ports::priority::ordinarily;
use mainstay_ports::store::{CasOutcome, Store, Versioned};
use mainstay_vault::postgres::backup::Watch;
use mainstay_vault::repository::VaultError;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, sleep, timeout};
use tracing::warn;

const STORE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the store is told how a backup goes.
const BEAT: Duration = Duration::from_secs(2);
/// Who has given no sign of life for so long makes no backup any more.
const STALE: Duration = Duration::from_secs(60);
/// How long the archive may take to get the log that a backup needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);
/// How often the primary is asked to end its segment, until it has, while a backup waits for that; and how long it may take.
const NUDGE: Duration = Duration::from_secs(5);
/// How often it is looked whether the lock is that of an agent that is gone.
const TIDY: Duration = Duration::from_secs(10);
/// Beginning one asks the store a few times: whoever wants it waits so long for the answer.
pub const BEGIN: Duration = Duration::from_secs(8);
/// A backup that gets nowhere for so long is left behind.
const HANGS: Duration = Duration::from_secs(600);
/// Writing the outcome is tried so often.
const TRIES: u32 = 60;
/// Clocks that differ by more than this tell no age. Milliseconds.
const CLOCK_MS: u64 = 3_600_000;
const LEFT: &str = "an earlier backup of this agent hangs, in the repository or the server's files; no other begins here before it ends. Mend what it \
                    waits for, or restart this agent";

/// An order, and where to say what became of it.
pub type Order = (BackupWish, oneshot::Sender<Result<BackupBegun, String>>);

/// Gives an order, and never waits for its turn: a node without data takes none.
///
/// # Errors
/// Why it is not taken.
pub fn order(
    orders: &mpsc::Sender<Order>,
    wish: BackupWish,
) -> Result<oneshot::Receiver<Result<BackupBegun, String>>, String> {
    let (reply, answer) = oneshot::channel();
    let why = |error| match error {
        mpsc::error::TrySendError::Full(_) => "this node does not get to the backups that it was asked for; ask again",
        mpsc::error::TrySendError::Closed(_) => "this node makes no backups: it holds no data",
    };
    orders.try_send((wish, reply)).map(|()| answer).map_err(|error| why(error).to_owned())
}

/// The state in the store.
#[must_use]
pub fn parse(versioned: Option<&Versioned>) -> BackupState {
    versioned.and_then(|versioned| serde_json::from_slice(&versioned.value).ok()).unwrap_or_default()
}

/// Makes backups.
pub struct Backups {
    /// This node.
    pub me: NodeId,
    /// What the operator wants.
    pub generations: Arc<Generations>,
    /// The last probe.
    pub observed: watch::Receiver<ServerObservation>,
    /// The engine: where its server is reached.
    pub engine: Arc<dyn Engine>,
    /// The server's data.
    pub data: PathBuf,
    /// Where a drill makes its copy, and to whom the server's files belong.
    pub drill: drill::Place,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The other agents.
    pub peers: Arc<dyn Peers>,
    /// Facts for the history.
    pub events: mpsc::Sender<Event>,
}

/// What this process knows beside the store.
#[derive(Default)]
struct Own {
    /// The lock that it took last.
    token: Option<u64>,
    /// Somebody's lock that showed no sign of life at the last look, and its last one.
    silent: Option<(u64, u64)>,
    /// What its threads are about.
    threads: Vec<Thread>,
    /// What the primary's clock said.
    told: Told,
}

/// A backup or a drill whose threads may still run.
struct Thread {
    /// In the repository of this name.
    name: RepositoryName,
    drill: bool,
    /// Lives as long as they do.
    alive: Weak<Watch>,
}

impl Own {
    /// May another begin? One that hangs in its repository keeps nothing from another one, and nothing else begins in it; drills share one directory.
    fn has_room(&mut self, name: &RepositoryName, drill: bool) -> bool {
        self.threads.retain(|thread| thread.alive.strong_count() > 0);
        !self.threads.iter().any(|thread| thread.name == *name || (drill && thread.drill))
    }
}

/// What another host's clock said last, as far as this process heard it say so.
#[derive(Clone, Copy, Default)]
pub(crate) struct Told {
    wall_ms: Option<u64>,
    /// By the clock that nobody sets; none: it was said before this process listened.
    heard_ms: Option<u64>,
}

impl Told {
    fn hear(&mut self, wall_ms: Option<u64>, boot_ms: u64) {
        if self.wall_ms != wall_ms {
            let heard_ms = self.wall_ms.and(Some(boot_ms));
            *self = Told { wall_ms, heard_ms };
        }
    }

    /// By how much the own clock differs from it, milliseconds, if that is too much to tell the age of anything.
    pub(crate) fn off(self, wall_ms: u64, boot_ms: u64) -> Option<u64> {
        let theirs = self.wall_ms? + boot_ms.saturating_sub(self.heard_ms?);
        Some(theirs.abs_diff(wall_ms)).filter(|off| *off > CLOCK_MS)
    }
}

/// How far a backup has come, and since when.
struct Pulse {
    seen: (u64, u64, bool),
    since: Instant,
}

impl Pulse {
    fn new(now: Instant) -> Pulse {
        Pulse { seen: (0, 0, false), since: now }
    }

    /// It gets nowhere: for how long. Whoever waits for the log gives up by itself first, and may read back what came until then.
    fn hangs(&mut self, watch: &Watch, now: Instant) -> Option<Duration> {
        let of = Ordering::Relaxed;
        let seen = (watch.total.load(of), watch.done.load(of), watch.stopped.load(of));
        if seen != self.seen {
            *self = Pulse { seen, since: now };
        }
        let limit = if seen.2 { PATIENCE + HANGS } else { HANGS };
        (now.duration_since(self.since) >= limit).then_some(limit)
    }
}

impl Backups {
    /// Runs for ever.
    pub async fn keep(self, mut orders: mpsc::Receiver<Order>) {
        let this = Arc::new(self);
        this.engine.take_seed(Arc::new(VaultSeed::of(&this)));
        let left = this.drill.clone();
        // Before any order: a drill would make its copy in the same place.
        if let Err(error) = tokio::task::spawn_blocking(move || left.clear()).await {
            warn!(%error, "it was not looked what is left of a restore drill");
        }
        let mut shown = this.store.watch(BACKUP_KEY);
        let (mut alive, mut own) = (Instant::now(), Own::default());
        let mut looked = tokio::time::interval(TIDY);
        looked.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looked.tick() => {
                    own.told.hear(this.clock_of_the_primary(), boot_now().0);
                    if !this.tidy((alive.elapsed(), own.token), &mut own.silent).await {
                        alive = Instant::now();
                    }
                }
                order = orders.recv() => {
                    let Some((wish, reply)) = order else { return };
                    let begun = Arc::clone(&this).begin(&wish, alive.elapsed(), &mut own).await;
                    // Whoever asked may have gone.
                    let _ = reply.send(begun);
                }
                changed = shown.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    shown.mark_unchanged();
                    alive = Instant::now();
                }
            }
        }
    }

    /// What another host's clock said when it archived something last.
    fn clock_of_the_primary(&self) -> Option<u64> {
        let all = shelves::all(&self.generations.now().spec.vault, &*self.store);
        let told = all.into_iter().filter_map(|shelf| shelf.told);
        told.filter(|state| state.node.as_ref() != Some(&self.me)).filter_map(|state| state.archived_ms).max()
    }

    /// Takes the lock and begins.
    async fn begin(self: Arc<Self>, wish: &BackupWish, silent: Duration, own: &mut Own) -> Result<BackupBegun, String> {
        let (job, term, to) = self.job(wish, own.told)?;
        let held = self.store.read(BACKUP_KEY, STORE_TIMEOUT).await;
        let held = held.map_err(|error| format!("the store does not answer: {error}"))?;
        let mut state = parse(held.as_ref());
        if let Some(running) = &state.running {
            self.may_replace(running, self.unless_alive(running, (silent, own.token)))?;
            let gone = running.clone();
            cut_off(&mut state, &gone);
        }
        if !own.has_room(&job.name, wish.drill) {
            return Err(LEFT.to_owned());
        }
        let token = entropy().map_err(|error| error.to_string())?;
        state.running = Some(BackupRunning {
            token,
            node: self.me.clone(),
            term,
            incremental: wish.incremental,
            drill: wish.drill,
            to,
            by: wish.by.clone(),
            begun_ms: wall_now_ms(),
            total: 0,
            done: 0,
            beat: 0,
        });
        let value = serde_json::to_vec(&state).map_err(|error| error.to_string())?;
        let revision = held.map(|held| held.revision);
        match self.store.compare_and_set(BACKUP_KEY, revision, value, STORE_TIMEOUT).await {
            CasOutcome::Done(_) => {}
            CasOutcome::Conflict(_) => return Err("somebody else has just begun a backup".to_owned()),
            CasOutcome::Unknown => {
                let seen = self.store.read(BACKUP_KEY, STORE_TIMEOUT).await.ok().flatten();
                if parse(seen.as_ref()).running.is_none_or(|running| running.token != token) {
                    return Err("the store did not confirm that no other backup runs; ask again".to_owned());
                }
            }
            CasOutcome::Unavailable(why) => return Err(format!("the store does not answer: {why}")),
        }
        own.token = Some(token);
        own.threads.push(Thread { name: job.name.clone(), drill: wish.drill, alive: Arc::downgrade(&job.watch) });
        let begun = BackupBegun { token, node: self.me.clone() };
        tokio::spawn(async move { self.carry_out(job, token).await });
        Ok(begun)
    }

    /// Takes the lock away from an agent that is gone, so that nobody waits for it. `suspect`: the lock and its sign of life at the look
    /// before. `false`: the store does not answer, so that nobody's sign of life could be heard.
    async fn tidy(&self, lock: (Duration, Option<u64>), suspect: &mut Option<(u64, u64)>) -> bool {
        let before = suspect.take();
        let seen = parse(self.store.watch(BACKUP_KEY).borrow().as_ref());
        if seen.running.is_none_or(|running| self.may_replace(&running, lock).is_err()) {
            return true;
        }
        let Ok(held) = self.store.read(BACKUP_KEY, STORE_TIMEOUT).await else { return false };
        let mut state = parse(held.as_ref());
        let gone = |running: &mut BackupRunning| self.may_replace(running, self.unless_alive(running, lock)).is_ok();
        let Some(running) = state.running.take_if(gone) else { return true };
        // A store that has just come back had no room for a sign of life: one more look, with time for several.
        let shown = Some((running.token, running.beat));
        if running.node != self.me && before != shown {
            *suspect = shown;
            return true;
        }
        cut_off(&mut state, &running);
        let Ok(value) = serde_json::to_vec(&state) else { return true };
        // If this does not succeed, the next time does.
        let revision = held.map(|held| held.revision);
        let _ = self.store.compare_and_set(BACKUP_KEY, revision, value, STORE_TIMEOUT).await;
        true
    }

    /// What the store says now may be newer than what was last heard from it: then its holder was not silent, this node was.
    fn unless_alive(
        &self,
        running: &BackupRunning,
        (silent, mine): (Duration, Option<u64>),
    ) -> (Duration, Option<u64>) {
        let heard = parse(self.store.watch(BACKUP_KEY).borrow().as_ref()).running;
        let same = heard.is_some_and(|heard| (heard.token, heard.beat) == (running.token, running.beat));
        (if same { silent } else { Duration::ZERO }, mine)
    }

    /// Is the lock that of an agent that is gone?
    fn may_replace(&self, running: &BackupRunning, (silent, mine): (Duration, Option<u64>)) -> Result<(), String> {
        let left_over = running.node == self.me && mine != Some(running.token);
        if left_over || silent >= STALE {
            return Ok(());
        }
        Err(format!("a backup runs on {} already (asked for by {})", running.node, running.by))
    }

    /// To its end: tells how it goes, and what became of it.
    async fn carry_out(&self, job: Job, token: u64) {
        let watch = Arc::clone(&job.watch);
        let (drill, limit) = (job.drill.is_some(), job.drill.as_ref().map(|drill| Instant::now() + drill.most));
        let (done, mut outcome) = oneshot::channel();
        let thread = std::thread::Builder::new().name("backup".to_owned());
        // Nobody waits any more if the agent ends.
        let started = thread.spawn(move || drop(done.send(ordinarily(|| run(job)))));
        let (mut nudged, mut ended, mut pulse) = (Instant::now(), None, Pulse::new(Instant::now()));
        let result = loop {
            if let Err(error) = &started {
                break Err(format!("no thread: {error}"));
            }
            tokio::select! {
                result = &mut outcome => break match result {
                    Ok(result) => result.map_err(|error: VaultError| error.to_string()),
                    Err(_) => Err("its thread ended".to_owned()),
                },
                () = sleep(BEAT) => self.beat(token, &watch).await,
            }
            if limit.is_some_and(|limit| Instant::now() >= limit) {
                // Its thread ends by itself then, and removes what it made; unless it hangs.
                watch.stop.store(true, Ordering::Relaxed);
            }
            if limit.is_some_and(|limit| Instant::now() >= limit + HANGS) {
                break Err("it does not end: is the repository reachable, and the disk well?".to_owned());
            }
            // A recovery tells no progress.
            if let Some(limit) = pulse.hangs(&watch, Instant::now()).filter(|_| !drill) {
                // It may come back: then it shall end, and remove nothing.
                watch.stop.store(true, Ordering::Relaxed);
                break Err(hung(limit, &watch));
            }
            // The limit may be changed while it runs.
            watch.rate.store(rate(&self.generations.now().spec.vault), Ordering::Relaxed);
            if watch.stopped.load(Ordering::Relaxed) && nudged.elapsed() >= NUDGE {
                ended = self.nudge(ended).await;
                nudged = Instant::now();
            }
        };
        // Only the thread's own is left: it tells whether it lives.
        drop(watch);
        self.finish(token, drill, result).await;
    }

    /// Tells that it goes on. One whose lock somebody took over ends.
    async fn beat(&self, token: u64, watch: &Watch) {
        let held = self.store.watch(BACKUP_KEY).borrow().clone();
        let mut state = parse(held.as_ref());
        let Some(running) = state.running.as_mut().filter(|running| running.token == token) else {
            // The watch may be behind the write that took the lock.
            let read = self.store.read(BACKUP_KEY, STORE_TIMEOUT).await;
            if read.is_ok_and(|held| parse(held.as_ref()).running.is_none_or(|running| running.token != token)) {
                watch.stop.store(true, Ordering::Relaxed);
            }
            return;
        };
        running.total = watch.total.load(Ordering::Relaxed);
        running.done = watch.done.load(Ordering::Relaxed);
        running.beat += 1;
        let Ok(value) = serde_json::to_vec(&state) else { return };
        // One that is missed is made up for by the next.
        let revision = held.map(|held| held.revision);
        let _ = self.store.compare_and_set(BACKUP_KEY, revision, value, STORE_TIMEOUT).await;
    }

    /// An idle primary would never end the segment that the backup waits for. Tells which primary has ended it: what a replica had when its
    /// copy ended was the primary's before, so once is enough, unless another takes over.
    async fn nudge(&self, ended: Option<NodeId>) -> Option<NodeId> {
        let record: Option<Record> =
            self.store.watch(RECORD_KEY).borrow().as_ref().and_then(|held| serde_json::from_slice(&held.value).ok());
        let Some(primary) = record.and_then(|record| record.holder) else { return ended };
        if primary == self.me || ended.as_ref() == Some(&primary) {
            return ended;
        }
        let body = serde_json::to_vec(&AgentQuestion::EndSegment).ok()?;
        let asked = timeout(NUDGE, self.peers.request(&primary, Channel::Ask, body, STORE_TIMEOUT)).await;
        let why = match asked {
            Ok(Ok(_)) => return Some(primary),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it does not answer".to_owned(),
        };
        warn!(%primary, %why, "a backup waits for the log, and the primary can not be asked to end its segment");
        None
    }

    /// Gives the lock back and says what became of it.
    async fn finish(&self, token: u64, drill: bool, result: Result<Done, String>) {
        let mut begun: Option<BackupRunning> = None;
        for _ in 0..TRIES {
            let Ok(held) = self.store.read(BACKUP_KEY, STORE_TIMEOUT).await else {
                sleep(BEAT).await;
                continue;
            };
            let mut state = parse(held.as_ref());
            let Some(running) = state.running.take_if(|running| running.token == token) else { break };
            begun = Some(running.clone());
            match &result {
                Ok(Done::Made(made)) => record(&mut state, &running, made),
                Ok(Done::Drilled(done)) => {
                    let repository = running.to.clone();
                    drilled(&mut state, &DrillDone { token, repository, ..(**done).clone() });
                }
                Err(why) => give_up(&mut state, &running, why),
            }
            let Ok(value) = serde_json::to_vec(&state) else { break };
            let revision = held.map(|held| held.revision);
            if let CasOutcome::Done(_) = self.store.compare_and_set(BACKUP_KEY, revision, value, STORE_TIMEOUT).await {
                break;
            }
            sleep(BEAT).await;
        }
        let (kind, text) = told(&result, drill, begun.as_ref().and_then(|running| running.to.as_ref()));
        let term = begun.map(|running| running.term).unwrap_or_default();
        let (node, kind) = (self.me.clone(), kind.to_owned());
        let event = Event { node, wall_ms: wall_now_ms(), term, kind, text, change: None, lost: None };
        let _ = self.events.try_send(event);
    }
}

pub(crate) fn rate(vault: &Vault) -> u64 {
    vault.backup_mb_s.saturating_mul(1 << 20)
}

fn hung(limit: Duration, watch: &Watch) -> String {
    let (done, total) = (watch.done.load(Ordering::Relaxed), watch.total.load(Ordering::Relaxed));
    let at = if watch.stopped.load(Ordering::Relaxed) {
        "everything was copied, and its log or the repository is waited for".to_owned()
    } else {
        format!("{done} of {total} bytes are copied")
    };
    format!("no progress for {} minutes: {at}; is the repository reachable, and the disk well?", limit.as_secs() / 60)
}

#[cfg(test)]
#[path = "backups_tests.rs"]
mod tests;
