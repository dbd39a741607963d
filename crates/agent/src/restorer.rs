//! Prepares a copy of the cluster as it was, beside this node's data, and hands it to the decisions (docs/adr/0031).
//!
//! Until it is handed over the cluster goes on as it is: what was prepared is removed when nobody asks about it any more, or by the next life of
//! this agent. From then on the record alone says what is to be done with it, and nothing here touches it.

use crate::generations::Generations;
use crate::handed_over::{copies, hindered, in_use, mark, marked, unmark};
use crate::mind_loop::{self, Question, Wish};
use crate::restore_checks::{check_room, check_version, checked, own_dir};
use crate::setup::{AgentOptions, entropy};
use crate::shelves::{self, Shelf};
use mainstay_model::layout::{KEPT_PREFIX, NodeLayout};
use mainstay_model::vault::{RestoreAsk, RestorePhase, RestorePlan, RestoreState, RestoreWish};
use mainstay_model::{Command, CopyId, Record, Restoration, SystemId, Timeline};
use mainstay_ports::priority::ordinarily;
use mainstay_ports::store::Store;
use mainstay_vault::postgres::backup::Watch;
use mainstay_vault::postgres::look::look_at;
use mainstay_vault::postgres::restore::{Destination, Plan, Target, plan_from, restore, time_text};
use mainstay_vault::postgres::scratch::{self, Scratch};
use mainstay_vault::postgres::several::{Chosen, choose};
use mainstay_vault::repository::{Repository, VaultError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

/// What nobody asks about for so long is dropped.
const FORGOTTEN: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_secs(5);
/// Where the copy's server is reached, in the node's directory.
const SOCKETS: &str = "back";
/// The copy's timeline is this far above the newest number: take-overs meanwhile do not make it void at once.
const AHEAD: u32 = 16;

/// Why something was not taken up.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Not now, or never.
    pub why: String,
    /// What to do.
    pub hint: &'static str,
}

fn refuse(why: impl Into<String>, hint: &'static str) -> Refused {
    Refused { why: why.into(), hint }
}

/// Prepares restores in place. Shared with the API.
pub struct Restorer {
    /// What the operator wants.
    pub generations: Arc<Generations>,
    /// This node's files.
    pub layout: NodeLayout,
    /// To whom the server's files belong.
    pub owner: Option<(u32, u32)>,
    /// The store.
    pub store: Arc<dyn Store>,
    /// Questions to the loop.
    pub questions: mpsc::Sender<Question>,
    /// Commands to the loop.
    pub wishes: mpsc::Sender<Wish>,
    work: Mutex<Option<Work>>,
    kept: Mutex<Vec<String>>,
}

/// One restore, from the plan on.
pub struct Work {
    state: RestoreState,
    copy: CopyId,
    watch: Arc<Watch>,
    asked: Instant,
    /// It was handed over: the record says what becomes of it.
    given: bool,
    ready: Option<Restoration>,
    /// Ends when its thread has ended.
    thread: watch::Receiver<bool>,
}

/// What a thread works with.
struct Job {
    /// Those that may be taken, in the order of preference.
    shelves: Vec<Shelf>,
    /// The others: what is damaged may be whole there.
    others: Vec<Shelf>,
    system: SystemId,
    wish: RestoreWish,
    copy: CopyId,
    prepare: bool,
    /// The newest timeline number that was handed out.
    newest: Timeline,
    bin: PathBuf,
    watch: Arc<Watch>,
}

/// The repository that has the moment, and why others were passed over.
fn planned(job: &Job) -> Result<(Chosen, Vec<String>), VaultError> {
    let target = &job.wish.target;
    let (chosen, passed) = choose(job.shelves.len(), target, |at| {
        let none = || VaultError::Impossible("there is no such repository".to_owned());
        let shelf = job.shelves.get(at).ok_or_else(none)?;
        let (own, system, wish) = (shelf.clone(), job.system, job.wish.clone());
        let place = shelves::place(&shelf.vault);
        look_at(job.shelves.len() > 1, Path::new(&place), move || planned_on(&own, system, &wish))
    });
    let Some(chosen) = chosen else { return Err(shelves::none_has_it(&job.shelves, passed)) };
    Ok((chosen, shelves::passed_over(&job.shelves, &passed)))
}

fn planned_on(shelf: &Shelf, system: SystemId, wish: &RestoreWish) -> Result<(Repository, Plan), VaultError> {
    let repository = shelf.open()?;
    if !repository.readable() {
        let key = shelves::key_file_key(&shelf.name, shelf.alone);
        let says = format!(
            "the hosts hold the public key alone, so that they can not read what they wrote: name the file of the secret key for the time of the \
             restore (`mainstay set {key}=FILE`, the file on every data node)"
        );
        return Err(VaultError::Impossible(says));
    }
    let made = plan_from(&repository, system, wish.target.clone(), wish.timeline, wish.backup.as_deref())?;
    Ok((repository, made))
}

fn words(target: &Target) -> String {
    match target {
        Target::Latest => "the latest archived moment".to_owned(),
        Target::Immediate => "the end of a backup".to_owned(),
        Target::Time(time) => time_text(*time),
        Target::Position(lsn) => format!("position {lsn}"),
        Target::Name(name) => format!("the restore point {name:?}"),
        Target::Transaction(id) => format!("transaction {id}"),
    }
}

impl Restorer {
    /// Of this agent.
    #[must_use]
    pub fn of(
        options: &AgentOptions,
        generations: &Arc<Generations>,
        store: Arc<dyn Store>,
        (questions, wishes): (mpsc::Sender<Question>, mpsc::Sender<Wish>),
    ) -> Arc<Restorer> {
        Arc::new(Restorer {
            generations: Arc::clone(generations),
            layout: options.layout.clone(),
            owner: options.server_user,
            store,
            questions,
            wishes,
            work: Mutex::default(),
            kept: Mutex::default(),
        })
    }

    fn work(&self) -> std::sync::MutexGuard<'_, Option<Work>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Directories in which the data of before a restore are kept, or a copy that was handed over and that nothing waits for, as last seen.
    #[must_use]
    pub fn kept(&self) -> Vec<String> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks for them. On a volume that hangs this costs one thread and no answer.
    async fn look(self: &Arc<Self>) {
        let (this, record) = (Arc::clone(self), self.record().await);
        let waits = record.as_ref().and_then(|record| record.restored.as_ref()).map(|restored| restored.copy);
        let known = record.is_some();
        drop(
            tokio::task::spawn_blocking(move || {
                let Ok(entries) = std::fs::read_dir(this.layout.dir()) else { return };
                let kept =
                    entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(KEPT_PREFIX));
                let mut kept: Vec<String> = kept.map(|entry| entry.path().display().to_string()).collect();
                let nobodys = |copy: &CopyId| {
                    known && waits != Some(*copy) && !this.works_on(*copy) && marked(&this.layout, *copy)
                };
                let left = copies(&this.layout).unwrap_or_default().into_iter().filter(nobodys);
                kept.extend(left.map(|copy| this.layout.restored(copy).display().to_string()));
                kept.sort();
                *this.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
            })
            .await,
        );
    }

    /// How far it is. Whoever asks keeps it alive.
    #[must_use]
    pub fn state(&self) -> Option<RestoreState> {
        let mut held = self.work();
        let work = held.as_mut()?;
        work.asked = Instant::now();
        let mut state = work.state.clone();
        state.total = work.watch.total.load(Ordering::Relaxed);
        state.done = work.watch.done.load(Ordering::Relaxed);
        Some(state)
    }

    /// Takes a step up.
    ///
    /// # Errors
    /// Why not.
    pub async fn ask(self: &Arc<Self>, ask: RestoreAsk) -> Result<RestoreState, Refused> {
        match ask {
            RestoreAsk::Plan(wish) => self.begin(wish, false).await,
            RestoreAsk::Prepare(wish) => self.begin(wish, true).await,
            RestoreAsk::Commit { token, by } => self.commit(token, by).await,
            RestoreAsk::Drop { token } => {
                self.let_be(Some(token));
                Ok(RestoreState { token, phase: RestorePhase::Failed, ..RestoreState::default() })
            }
        }
    }

    async fn record(&self) -> Option<Record> {
        let snapshot = mind_loop::ask(&self.questions, mind_loop::ANSWER).await?;
        snapshot.summary.record.map(|(_, record)| record)
    }

    async fn begin(self: &Arc<Self>, wish: RestoreWish, prepare: bool) -> Result<RestoreState, Refused> {
        let job = self.job(wish, prepare).await?;
        let (token, copy, watch) = (job.copy.number(), job.copy, Arc::clone(&job.watch));
        let phase = RestorePhase::Planning;
        let state = RestoreState { token, phase, ..RestoreState::default() };
        let (over, thread) = watch::channel(false);
        {
            let mut held = self.work();
            let busy = held.as_ref().is_some_and(|work| !*work.thread.borrow() || work.given);
            if busy {
                let hint = "wait for how that ends: `mainstay history` tells; one that nobody asks about ends within two minutes";
                return Err(refuse("a restore is being prepared on this node already", hint));
            }
            // One that lay ready is void with this one.
            let before = held.take().map(|work| work.copy);
            *held = Some(Work {
                state: state.clone(),
                copy,
                watch,
                asked: Instant::now(),
                given: false,
                ready: None,
                thread,
            });
            drop(held);
            if let Some(before) = before {
                self.remove_later(before);
            }
        }
        let this = Arc::clone(self);
        let named = std::thread::Builder::new().name("restore".to_owned());
        let started = named.spawn(move || {
            let result = ordinarily(|| this.run(&job));
            this.ended(&job, result);
            over.send_replace(true);
        });
        if let Err(error) = started {
            *self.work() = None;
            return Err(refuse(format!("no thread: {error}"), "try again"));
        }
        Ok(state)
    }

    async fn job(&self, wish: RestoreWish, prepare: bool) -> Result<Job, Refused> {
        wish.target.check().map_err(|why| refuse(why, "name the moment otherwise; nothing was changed"))?;
        let now = self.generations.now();
        let all = shelves::all(&now.spec.vault, &*self.store);
        let (shelves, others) = shelves::named(all, wish.repository.as_ref());
        let first = shelves.first().ok_or_else(|| match &wish.repository {
            Some(name) => refuse(format!("there is no repository {name}"), "`mainstay archive status` names them"),
            None => refuse("no repository is named", "mainstay set vault.repository=/a/folder"),
        })?;
        if shelves.iter().all(|shelf| shelf.known().is_none()) {
            let why = format!("nothing was archived to {} yet", shelves::place(&first.vault));
            return Err(refuse(why, "`mainstay archive status` says why"));
        }
        let record = self.record().await.ok_or_else(|| refuse("the record is not known here yet", "try again"))?;
        let system = record.system.ok_or_else(|| refuse("the cluster has no data yet", "wait for its first copy"))?;
        let bin = mainstay_engine_postgres::find_bin_dir(now.spec.postgres.bin_dir.as_deref());
        let bin = bin.map_err(|error| refuse(error.to_string(), "install PostgreSQL on this node"))?;
        let number = entropy().map_err(|error| refuse(error.to_string(), "try again"))?;
        let copy = CopyId::new(number.max(1)).ok_or_else(|| refuse("no random number", "try again"))?;
        let watch = Arc::new(Watch::default());
        Ok(Job { shelves, others, system, wish, copy, prepare, newest: record.timeline, bin, watch })
    }

    fn note(&self, job: &Job, change: impl FnOnce(&mut RestoreState)) {
        if let Some(work) = self.work().as_mut().filter(|work| work.copy == job.copy) {
            change(&mut work.state);
        }
    }

    /// The thread's work.
    fn run(&self, job: &Job) -> Result<Option<Restoration>, VaultError> {
        let (Chosen { at, repository, plan: made }, passed_over) = planned(job)?;
        let name = job.shelves.get(at).and_then(Shelf::called);
        let shown = RestorePlan { repository: name, passed_over, ..self.shown(&made) };
        let room = check_room(&shown, self.layout.dir());
        let major = made.base.server.version / 10_000;
        self.note(job, |state| state.plan = Some(shown));
        room?;
        check_version(&job.bin, major)?;
        let wrong = |error| VaultError::File { path: self.layout.dir().display().to_string(), error };
        if let Some(why) = hindered(&self.layout).map_err(wrong)? {
            return Err(VaultError::Impossible(why));
        }
        if !job.prepare {
            self.note(job, |state| state.phase = RestorePhase::Planned);
            return Ok(None);
        }
        self.note(job, |state| state.phase = RestorePhase::Writing);
        let data = self.layout.restored(job.copy);
        let to = Destination {
            tablespaces: self.spaces(&made, job.copy)?,
            data: data.clone(),
            owner: self.owner,
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            watch: Arc::clone(&job.watch),
            elsewhere: shelves::elsewhere(&job.shelves, at, &job.others),
            ..Destination::default()
        };
        restore(&repository, &made, &to)?;
        self.note(job, |state| state.phase = RestorePhase::Recovering);
        let next = Timeline(job.newest.0.max(made.timeline.0) + AHEAD);
        scratch::reserve(&made, &data, next, self.owner)?;
        let last_commit = self.recover(job, &made, &data)?;
        let (timeline, lineage) = scratch::finish(&data, self.owner)?;
        let moment = checked((timeline, &lineage), next, &made)?;
        self.note(job, |state| (state.moment, state.last_commit) = (Some(moment), last_commit));
        let what = format!("{} ({moment})", words(&job.wish.target));
        Ok(Some(Restoration { copy: job.copy, system: job.system, timeline, lineage, what }))
    }

    fn shown(&self, made: &Plan) -> RestorePlan {
        // Free for those without privileges: the server is one of them.
        let free = rustix::fs::statvfs(self.layout.dir()).ok().map(|is| is.f_bavail.saturating_mul(is.f_frsize));
        RestorePlan {
            backup: made.base.label.clone(),
            timeline: made.timeline,
            files: made.files(),
            log: made.log_bytes(),
            reaches: made.reaches,
            free,
            needs: made.needs().saturating_add(scratch::log_again(made)),
            unreadable: made.unreadable.clone(),
            repository: None,
            passed_over: Vec::new(),
        }
    }

    /// Each tablespace gets a place beside the data.
    fn spaces(&self, made: &Plan, copy: CopyId) -> Result<BTreeMap<u32, PathBuf>, VaultError> {
        let place = self.layout.tablespaces(copy);
        if !made.base.tablespaces.is_empty() {
            for dir in [place.parent(), Some(place.as_path())].into_iter().flatten() {
                own_dir(dir, self.owner)
                    .map_err(|error| VaultError::File { path: dir.display().to_string(), error })?;
            }
        }
        Ok(made.base.tablespaces.keys().map(|number| (*number, place.join(number.to_string()))).collect())
    }

    /// A server recovers the copy to the moment and ends it there.
    fn recover(&self, job: &Job, made: &Plan, data: &Path) -> Result<Option<i64>, VaultError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| VaultError::Server(format!("no runtime: {error}")))?;
        // A path below the copy may be too long for a socket.
        let socket = self.layout.dir().join(SOCKETS);
        own_dir(&socket, self.owner).map_err(|error| VaultError::File { path: socket.display().to_string(), error })?;
        let (wait, stop) = (Duration::from_secs(job.wish.wait_s), Arc::clone(&job.watch));
        let work = async {
            // Complete: clients were put out, and all that was committed is archived.
            let complete = job.wish.complete && job.wish.complete_to.is_none_or(|end| made.reaches >= end);
            let within = (wait, Some(socket.as_path()));
            let (server, _) = Scratch::start_or_latest(&job.bin, made, data, self.owner, within, complete).await?;
            let last = server.last_commit().await;
            server.stop().await?;
            Ok(last.unwrap_or_default())
        };
        let ended = async {
            while !stop.stop.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(200)).await;
            }
        };
        runtime.block_on(async {
            tokio::select! {
                done = work => done,
                () = ended => Err(VaultError::Impossible("the restore was ended before it was done".to_owned())),
            }
        })
    }

    /// What became of the thread's work.
    fn ended(&self, job: &Job, result: Result<Option<Restoration>, VaultError>) {
        let failed = result.is_err() && job.prepare;
        let mut held = self.work();
        let mine = held.as_mut().filter(|work| work.copy == job.copy);
        let dropped = mine.is_none();
        match (mine, result) {
            (Some(work), Ok(ready)) => {
                if ready.is_some() {
                    work.state.phase = RestorePhase::Ready;
                }
                work.ready = ready;
            }
            (Some(work), Err(error)) => {
                warn!(%error, "a restore in place can not be prepared");
                work.state.phase = RestorePhase::Failed;
                work.state.impossible = matches!(
                    error,
                    VaultError::Impossible(_) | VaultError::NotArchived(_) | VaultError::NothingLater(_)
                );
                work.state.failure = Some(error.to_string());
            }
            (None, _) => {}
        }
        drop(held);
        if failed || (dropped && job.prepare) {
            self.remove(job.copy);
        }
    }

    /// Hands the copy that lies ready to the decisions.
    async fn commit(self: &Arc<Self>, token: u64, by: String) -> Result<RestoreState, Refused> {
        let silent = || refuse("the agent's loop does not answer", "`mainstay status` shows whether it was taken up");
        let wanted = {
            let mut held = self.work();
            let work = held.as_mut().filter(|work| work.state.token == token);
            let gone = || refuse("no such copy lies ready on this node any more", "begin the restore again");
            let work = work.ok_or_else(gone)?;
            let ready = work.ready.clone().ok_or_else(gone)?;
            if work.given {
                // It is asked for once.
                drop(held);
                return self.state().ok_or_else(silent);
            }
            // From here on nothing but the record decides what becomes of it: the answer may be lost.
            work.given = true;
            work.asked = Instant::now();
            ready
        };
        let copy = wanted.copy;
        if let Err(why) = self.marking(move |layout| mark(layout, copy)).await {
            self.take_back(copy).await;
            return Err(refuse(format!("the copy can not be marked as handed over: {why}"), "nothing was changed"));
        }
        let (reply, answer) = oneshot::channel();
        let wish = Wish { by, command: Command::Restore(Box::new(wanted)), reply };
        self.wishes.send(wish).await.map_err(|_| silent())?;
        match timeout(mind_loop::ANSWER, answer).await.map_err(|_| silent())?.map_err(|_| silent())? {
            Ok(text) => info!(%text, "a restored copy was handed over"),
            Err(why) => {
                self.take_back(copy).await;
                return Err(refuse(why, "nothing was changed; mend it, and restore again"));
            }
        }
        self.state().ok_or_else(silent)
    }

    /// Its mark, where files may take their time.
    async fn marking(
        &self,
        change: impl FnOnce(&NodeLayout) -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), String> {
        let layout = self.layout.clone();
        let changed = tokio::task::spawn_blocking(move || change(&layout)).await.map_err(|error| error.to_string())?;
        changed.map_err(|error| error.to_string())
    }

    /// It was refused before anything could name it.
    async fn take_back(&self, copy: CopyId) {
        if let Err(why) = self.marking(move |layout| unmark(layout, copy)).await {
            warn!(%copy, %why, "the mark of a copy that was not handed over can not be removed: the copy stays");
        }
        if let Some(work) = self.work().as_mut().filter(|work| work.copy == copy) {
            work.given = false;
        }
    }

    fn works_on(&self, copy: CopyId) -> bool {
        self.work().as_ref().is_some_and(|work| work.copy == copy)
    }

    /// Ends what goes on, and has what was made removed. `only`: if it is this one.
    fn let_be(self: &Arc<Self>, only: Option<u64>) {
        let work = self.work().take_if(|work| !work.given && only.is_none_or(|token| token == work.state.token));
        let Some(work) = work else { return };
        work.watch.stop.store(true, Ordering::Relaxed);
        // While its thread runs, that one removes it.
        if *work.thread.borrow() {
            self.remove_later(work.copy);
        }
    }

    fn remove_later(self: &Arc<Self>, copy: CopyId) {
        let this = Arc::clone(self);
        drop(tokio::task::spawn_blocking(move || this.remove(copy)));
    }

    /// Removes a copy that was never handed over.
    fn remove(&self, copy: CopyId) {
        if let Some(why) = in_use(&self.layout, copy) {
            warn!(%copy, %why, "what is left of a restore stays");
            return;
        }
        for place in [self.layout.restored(copy), self.layout.tablespaces(copy)] {
            let removed = scratch::end_left_over(&place).map_err(|error| error.to_string());
            let removed = removed.and_then(|()| match std::fs::remove_dir_all(&place) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
                _ => Ok(()),
            });
            if let Err(why) = removed {
                warn!(place = %place.display(), %why, "what is left of a restore can not be removed");
            }
        }
    }

    /// Runs for ever: drops what nobody asks about, and removes what an earlier life left, once the record does not name it.
    pub async fn keep(self: Arc<Self>) {
        let mut swept = false;
        loop {
            sleep(LOOK).await;
            self.look().await;
            let (forgotten, committed) = {
                let held = self.work();
                let forgotten = held.as_ref().is_some_and(|work| work.asked.elapsed() > FORGOTTEN && !work.given);
                (forgotten, held.as_ref().filter(|work| work.given).map(|work| work.copy))
            };
            if forgotten {
                warn!("nobody asks about the restore in place any more: it is dropped");
                self.let_be(None);
            }
            if swept && committed.is_none() {
                continue;
            }
            let Some(record) = self.record().await else { continue };
            let waits = record.restored.as_ref().filter(|_| record.restoring().is_some()).map(|restored| restored.copy);
            if let Some(copy) = committed {
                // Refused by the store after all, or in its place: both end it here.
                self.settle(copy, &record);
            }
            if !swept {
                let this = Arc::clone(&self);
                drop(tokio::task::spawn_blocking(move || this.sweep(waits)).await);
                swept = true;
            }
        }
    }

    /// A copy that was handed over is nobody's here any more once the record has taken it up, or has gone on without it for long. It stays where it
    /// lies: this view of the record may be an old one.
    fn settle(&self, copy: CopyId, record: &Record) {
        let mut held = self.work();
        let taken = record.restored.as_ref().is_some_and(|restored| restored.copy == copy);
        if held.as_ref().is_some_and(|work| work.copy == copy && (taken || work.asked.elapsed() > FORGOTTEN)) {
            *held = None;
        }
    }

    /// Removes copies of an earlier life, but for the one that the record waits for and those that were handed over.
    fn sweep(&self, waits: Option<CopyId>) {
        for copy in copies(&self.layout).unwrap_or_default() {
            if waits != Some(copy) && !self.works_on(copy) && !marked(&self.layout, copy) {
                info!(%copy, "removing what an interrupted restore in place left");
                self.remove(copy);
            }
        }
    }
}
