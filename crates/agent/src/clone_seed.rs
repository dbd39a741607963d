//! New copies from the repository instead of the primary, where the operator wants that (docs/adr/0042): the newest backup on the path to the
//! primary's timeline, and the archived log up to where the primary still has it.

use crate::backups::Backups;
use crate::generations::Generations;
use crate::restore_checks::{check_version, own_dir};
use crate::restore_drill::too_little;
use crate::shelves::{self, Shelf};
use mainstay_model::{Event, NodeId};
use mainstay_ports::clock::wall_now_ms;
use mainstay_ports::priority::ordinarily;
use mainstay_ports::seed::{Seed, SeedWish};
use mainstay_ports::store::Store;
use mainstay_vault::postgres::backup::Watch;
use mainstay_vault::postgres::look::look_at;
use mainstay_vault::postgres::restore::{Destination, Plan, Target, plan, restore};
use mainstay_vault::repository::{Repository, VaultError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

/// So long it is waited for the archive to reach the log that the primary keeps.
const REACH: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_secs(2);
/// One that gets nowhere for so long is left behind.
const HANGS: Duration = Duration::from_secs(600);
/// How often it is looked whether it gets anywhere.
const PULSE: Duration = Duration::from_secs(15);
/// So long one that is left behind is waited for: what it wrote is about to be removed.
const ENDS: Duration = Duration::from_secs(10);
/// More log than the files and this takes longer to replay than a clone of the primary.
const LOG_BYTES: u64 = 1 << 30;

/// The repository as a seed of new copies.
pub(crate) struct VaultSeed {
    me: NodeId,
    generations: Arc<Generations>,
    owner: Option<(u32, u32)>,
    store: Arc<dyn Store>,
    events: mpsc::Sender<Event>,
    /// Told last: attempts that fail alike are told once.
    told: Mutex<String>,
    /// Held by the thread that writes: one that hangs may come back, and two would share the disk.
    writes: Arc<tokio::sync::Mutex<()>>,
}

/// What the thread works with.
struct Job {
    /// In the order of preference.
    shelves: Vec<Shelf>,
    owner: Option<(u32, u32)>,
    wish: SeedWish,
    watch: Arc<Watch>,
}

/// Whoever asked is gone: the thread ends soon.
struct Ends(Arc<Watch>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl VaultSeed {
    /// Of the agent that makes these backups.
    #[must_use]
    pub(crate) fn of(backups: &Backups) -> VaultSeed {
        VaultSeed {
            me: backups.me.clone(),
            generations: Arc::clone(&backups.generations),
            owner: backups.drill.owner,
            store: Arc::clone(&backups.store),
            events: backups.events.clone(),
            told: Mutex::default(),
            writes: Arc::default(),
        }
    }

    fn shelves(&self) -> Vec<Shelf> {
        shelves::all(&self.generations.now().spec.vault, &*self.store)
    }

    fn tell(&self, kind: &str, text: String) {
        let before = std::mem::replace(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner), text.clone());
        if before == text {
            return;
        }
        let told = self.shelves().into_iter().filter_map(|shelf| shelf.told);
        let term = told.map(|archive| archive.term).max().unwrap_or_default();
        let (node, kind) = (self.me.clone(), kind.to_owned());
        let event = Event { node, wall_ms: wall_now_ms(), term, kind, text, change: None, lost: None };
        // It stands in the log too.
        let _ = self.events.try_send(event);
    }
}

#[async_trait::async_trait]
impl Seed for VaultSeed {
    fn wanted(&self) -> bool {
        let vault = &self.generations.now().spec.vault;
        vault.clone_nodes && vault.archives()
    }

    async fn fill(&self, wish: SeedWish) -> Result<String, String> {
        let all = self.shelves();
        let places: Vec<String> = all.iter().map(|shelf| shelves::place(&shelf.vault)).collect();
        let place = places.join(" and ");
        let shelves: Vec<Shelf> = all.into_iter().filter(|shelf| shelf.known().is_some()).collect();
        if shelves.is_empty() {
            return Err(format!("nothing was archived to {place} yet"));
        }
        let writes = Arc::clone(&self.writes).try_lock_owned();
        let writes = writes.map_err(|_| "an earlier copy from there was given up and has not ended yet".to_owned())?;
        let watch = Arc::new(Watch::default());
        let _ends = Ends(Arc::clone(&watch));
        let job = Job { shelves, owner: self.owner, wish, watch: Arc::clone(&watch) };
        let (reply, mut answer) = oneshot::channel();
        let work = move || {
            let done = ordinarily(|| job.run().map_err(|error| error.to_string()));
            drop(writes);
            drop(reply.send(done));
        };
        std::thread::Builder::new()
            .name("clone".to_owned())
            .spawn(work)
            .map_err(|error| format!("no thread: {error}"))?;
        tokio::select! {
            done = &mut answer => return done.unwrap_or_else(|_| Err("it ended without a word, which is a bug".to_owned())),
            () = stalled(&watch) => watch.stop.store(true, Ordering::Relaxed),
        }
        let _ = timeout(ENDS, answer).await;
        Err(format!("the repository {place} has given nothing for {} s", HANGS.as_secs()))
    }

    fn made(&self, of: &str) {
        // Each copy is told.
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.tell("cloned-from-vault", format!("the new copy is made {of}; the rest is streamed from the primary"));
    }

    fn passed_over(&self, why: &str) {
        self.tell(
            "vault-passed-over",
            format!("the primary is cloned and not the repository (vault.clone_nodes): {why}"),
        );
    }
}

/// Returns when nothing has come for too long. While what came is brought to the disk nothing has to; a disk that hangs is found otherwise.
async fn stalled(watch: &Watch) {
    let (mut seen, mut since) = (u64::MAX, Instant::now());
    while since.elapsed() <= HANGS {
        sleep(PULSE).await;
        let done = watch.done.load(Ordering::Relaxed);
        if done != seen || watch.flushing.load(Ordering::Relaxed) {
            (seen, since) = (done, Instant::now());
        }
    }
}

impl Job {
    fn run(&self) -> Result<String, VaultError> {
        let (at, repository, made) = self.reaching()?;
        let to = Destination {
            data: self.wish.into.clone(),
            tablespaces: self.spaces(&made)?,
            owner: self.owner,
            standby: true,
            threads: std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)),
            watch: Arc::clone(&self.watch),
            elsewhere: shelves::elsewhere(&self.shelves, at, &[]),
            ..Destination::default()
        };
        restore(&repository, &made, &to)?;
        let called = self.shelves.get(at).filter(|shelf| !shelf.alone);
        Ok(format!(
            "of the backup {}{} ({} MiB) and {} MiB of the log up to {}",
            made.base.label,
            called.map(|shelf| format!(" in {}", shelf.name)).unwrap_or_default(),
            made.files() >> 20,
            made.log_bytes() >> 20,
            made.reaches
        ))
    }

    /// The first repository that serves, once its log reaches to what the primary keeps: whole segments are archived, so that the last one may take
    /// its time.
    fn reaching(&self) -> Result<(usize, Repository, Plan), VaultError> {
        let mut begun = None;
        loop {
            let (mut passed, mut soon) = (Vec::new(), false);
            for (at, shelf) in self.shelves.iter().enumerate() {
                match self.ask(shelf) {
                    Ok((repository, made)) => return Ok((at, repository, made)),
                    Err(error) => {
                        // Only this may be another one in a moment.
                        soon |= matches!(error, VaultError::NotArchived(_));
                        passed.push((at, error));
                    }
                }
            }
            // Counted from the first round on, which may have waited for one that hangs.
            let begun = begun.get_or_insert_with(std::time::Instant::now);
            if !soon || begun.elapsed() > REACH || self.watch.stop.load(Ordering::Relaxed) {
                return Err(shelves::none_has_it(&self.shelves, passed));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The same; one of several that hangs is given up, so that another one can serve.
    fn ask(&self, shelf: &Shelf) -> Result<(Repository, Plan), VaultError> {
        let (wish, own) = (self.wish.clone(), shelf.clone());
        let place = shelves::place(&shelf.vault);
        look_at(self.shelves.len() > 1, Path::new(&place), move || look(&wish, &own))
    }

    fn spaces(&self, made: &Plan) -> Result<BTreeMap<u32, PathBuf>, VaultError> {
        let place = &self.wish.tablespaces;
        if !made.base.tablespaces.is_empty() {
            for dir in [place.parent(), Some(place.as_path())].into_iter().flatten() {
                own_dir(dir, self.owner)
                    .map_err(|error| VaultError::File { path: dir.display().to_string(), error })?;
            }
        }
        Ok(made.base.tablespaces.keys().map(|number| (*number, place.join(number.to_string()))).collect())
    }
}

/// What can be had of one repository now, if it serves better than the primary.
fn look(wish: &SeedWish, shelf: &Shelf) -> Result<(Repository, Plan), VaultError> {
    let repository = shelf.open()?;
    if !repository.readable() {
        return impossible("this host can write to the repository and not read it");
    }
    let made = plan(&repository, wish.system, Target::Latest, Some(wish.timeline)).map_err(|error| match error {
        // What is known to be missing does not come while it is waited for.
        VaultError::NotArchived(says) if shelf.told.as_ref().is_some_and(|told| !told.gaps.is_empty()) => {
            VaultError::Impossible(says)
        }
        error => error,
    })?;
    if made.path != wish.lineage {
        return impossible("the repository knows another way to the primary's timeline than the primary");
    }
    if !made.base.corrupt.is_empty() {
        // The primary may have them whole.
        return impossible(format!("the backup {} holds damaged blocks", made.base.label));
    }
    check_version(&wish.programs, made.base.server.version / 10_000)?;
    let (files, log) = (made.files(), made.log_bytes());
    if log > files.saturating_add(LOG_BYTES) {
        let (label, log, files) = (&made.base.label, log >> 20, files >> 20);
        return impossible(format!(
            "{log} MiB of log lie after the backup {label} of {files} MiB: a newer backup serves better"
        ));
    }
    let dir = wish.into.parent().unwrap_or(Path::new("/"));
    if let Some(free) = too_little(made.needs(), dir) {
        let (needs, free) = (made.needs() >> 20, free >> 20);
        return impossible(format!("{needs} MiB are needed and {free} MiB are free in {}", dir.display()));
    }
    let segment = made.base.server.segment_size.max(1);
    // The server asks for whole segments.
    if made.reaches.0 < wish.kept_from.0 / segment * segment {
        let (reaches, from) = (made.reaches, wish.kept_from);
        let says = format!("the archive reaches {reaches} and the primary keeps its log from {from} on");
        return Err(VaultError::NotArchived(says));
    }
    Ok((repository, made))
}

fn impossible<T>(why: impl Into<String>) -> Result<T, VaultError> {
    Err(VaultError::Impossible(why.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_brought_to_the_disk_is_no_hang() {
        let watch = Watch::default();
        watch.flushing.store(true, Ordering::Relaxed);
        timeout(HANGS * 5, stalled(&watch)).await.unwrap_err();
        watch.flushing.store(false, Ordering::Relaxed);
        timeout(HANGS * 2, stalled(&watch)).await.unwrap();
        let coming = async {
            loop {
                sleep(HANGS / 2).await;
                watch.done.fetch_add(1, Ordering::Relaxed);
            }
        };
        tokio::select! {
            () = coming => {}
            () = stalled(&watch) => panic!("something came"),
            () = sleep(HANGS * 5) => {}
        }
    }
}
