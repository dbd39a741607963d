//! Brings the log to the archive while this node is the open primary of its term, and tells the store how far it is (docs/adr/0018, 0023).
//!
//! Every other node reads that there: its slot lets go of what is archived, and whoever is primary next brings the rest.
//! A replica brings what the primary misses and can not fill from its own files. Several repositories know nothing of each other (docs/adr/0043).
//! What touches the repository blocks and may hang with it: it has a thread of its own, at ordinary priority, one at a time.

use crate::backups;
use crate::generations::Generations;
use crate::mind_loop::{self, Question};
use crate::shelves::{self, place};
use mainstay_decide::Summary;
use mainstay_model::spec::Vault;
use mainstay_model::vault::{ArchiveState, BACKUP_KEY, BackupMade, PROBLEMS_MAX, archive_key};
use mainstay_model::{
    Lsn, NodeId, Position, RepositoryName, Revision, Room, ServerObservation, ServerState, SystemId, Term,
};
use mainstay_ports::clock::{boot_now, wall_now_ms};
use mainstay_ports::priority::ordinarily;
use mainstay_ports::store::{CasOutcome, Store, Versioned};
use mainstay_vault::keys::read_file;
use mainstay_vault::objects;
use mainstay_vault::postgres::log::{LogFile, SegmentSize};
use mainstay_vault::postgres::owner::{Owner, Standing, assist, given_up, segment_size};
use mainstay_vault::repository::{Repository, VaultError};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{debug, info, warn};

/// How often it is looked whether there is something to bring.
const LOOK: Duration = Duration::from_secs(1);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(5);
/// Plain progress is not told more often. Milliseconds.
const TELL_MS: u64 = 5_000;
const STORE_TIMEOUT: Duration = Duration::from_secs(2);
/// A repository that has not answered for so long hangs, and that is told.
const HANGS: Duration = Duration::from_secs(60);
/// How often it is looked whether a hole was filled. Milliseconds.
const HOLES_MS: u64 = 10_000;

/// The state that this member of the store knows.
#[must_use]
pub fn parse(versioned: Option<&Versioned>) -> Option<ArchiveState> {
    serde_json::from_slice(&versioned?.value).ok()
}

/// Opens the repository that the specification names. `known`: the id of the one that the cluster has used there; it is made only if
/// there is none, so that a volume that is not mounted is never taken for an empty repository.
pub fn open(vault: &Vault, known: Option<&str>) -> Result<Repository, VaultError> {
    let place = vault.place().ok_or_else(|| VaultError::Impossible("no repository is named".into()))?;
    let (secret, writer) = read_file(vault.key_file.as_deref())?;
    if known.is_none() {
        let objects = objects::make(place)?;
        if !Repository::is_in(&*objects)? {
            Repository::create(objects, writer.as_slice())?;
        }
    }
    let repository = Repository::open(objects::existing(place)?, secret)?;
    if let Some(writer) = writer.filter(|writer| !repository.sealed_for(writer)) {
        let is = if repository.encrypted() { "is sealed for other keys" } else { "is not encrypted" };
        let key = writer.fingerprint();
        let says = format!("{} {is}, and vault.key_file names the key {key}; take another place", place.display());
        return Err(VaultError::Impossible(says));
    }
    match known {
        Some(known) if known != repository.id() => Err(VaultError::Impossible(format!(
            "{} holds another repository ({}) than before ({known}): is the right volume mounted? To begin anew, name another place",
            place.display(),
            repository.id()
        ))),
        _ => Ok(repository),
    }
}

/// A repository on the data's own volume does not fill it: with little room there nothing more is brought, and the slot bounds what waits.
/// `key`: what names its place.
fn crowded(vault: &Vault, key: &str, pg_wal: &Path) -> Option<VaultError> {
    let place = vault.place()?;
    let device = |path: &Path| std::fs::metadata(path).ok().map(|metadata| metadata.dev());
    if device(place)? != device(pg_wal)? {
        return None;
    }
    let is = rustix::fs::statvfs(pg_wal).ok()?;
    let (free, size) = (is.f_bavail.saturating_mul(is.f_frsize), is.f_blocks.saturating_mul(is.f_frsize));
    Room::of(free, size)?;
    Some(VaultError::Impossible(format!(
        "{} is on the data's own volume, where {} MiB are left: free some space, or name a place elsewhere (`mainstay set {key}=…`)",
        place.display(),
        free >> 20
    )))
}

/// A hole before a backup that counts keeps nothing from being restored any more.
fn matters((_, last): &(String, String), since: Option<Lsn>, segment_size: u64) -> bool {
    let size = SegmentSize(segment_size);
    match (since, size.parse(last)) {
        (Some(since), Some(LogFile::Segment(_, number))) => number >= size.holding(since),
        _ => true,
    }
}

/// One archiver for each repository that the specification names.
pub struct Archivers {
    /// This node.
    pub me: NodeId,
    /// What the operator wants.
    pub generations: Arc<Generations>,
    /// The last probe.
    pub observed: watch::Receiver<ServerObservation>,
    /// Questions to the loop.
    pub questions: mpsc::Sender<Question>,
    /// The server's log.
    pub pg_wal: PathBuf,
    /// Where the state is told.
    pub store: Arc<dyn Store>,
}

impl Archivers {
    /// Runs for ever. Each has threads of its own: one that hangs in its repository holds up no other.
    pub async fn keep(self) {
        let mut running: BTreeMap<RepositoryName, JoinHandle<()>> = BTreeMap::new();
        loop {
            running.retain(|_, archiver| !archiver.is_finished());
            for name in self.generations.now().spec.vault.names() {
                running.entry(name).or_insert_with_key(|name| tokio::spawn(self.of(name).keep()));
            }
            sleep(LOOK).await;
        }
    }

    fn of(&self, name: &RepositoryName) -> Archiver {
        Archiver {
            name: name.clone(),
            key: archive_key(name),
            me: self.me.clone(),
            generations: Arc::clone(&self.generations),
            observed: self.observed.clone(),
            questions: self.questions.clone(),
            pg_wal: self.pg_wal.clone(),
            store: Arc::clone(&self.store),
            threads: Arc::new(Semaphore::new(THREADS)),
            looks: Arc::new(Semaphore::new(1)),
        }
    }
}

/// Brings the log to one repository.
struct Archiver {
    name: RepositoryName,
    /// Where its state stands in the store.
    key: String,
    me: NodeId,
    generations: Arc<Generations>,
    observed: watch::Receiver<ServerObservation>,
    questions: mpsc::Sender<Question>,
    pg_wal: PathBuf,
    store: Arc<dyn Store>,
    /// Threads that may be in the repository at once: a volume that hangs keeps them for good, and others need the rest of the pool.
    threads: Arc<Semaphore>,
    /// The same for looks at this host's own log.
    looks: Arc<Semaphore>,
}

/// How many threads may hang in a repository: another one that is named meanwhile does not wait for the first.
const THREADS: usize = 2;

/// What a round works with, and what it leaves for the next.
#[derive(Default)]
struct Hold {
    owner: Option<(Vault, Owner)>,
    /// The last segment that was swept, by its number.
    swept: Option<u64>,
    /// When the state was told last, by this host's clock since boot.
    told: Option<u64>,
    /// When holes were looked at last, by the same clock.
    looked: u64,
}

/// What a round in its own thread gives back.
struct Round {
    owner: Option<(Vault, Owner)>,
    id: String,
    result: Result<Standing, VaultError>,
    /// What the server let go of meanwhile.
    given_up: Option<(String, String)>,
}

impl Round {
    fn failed(error: VaultError) -> Round {
        Round { owner: None, id: String::new(), result: Err(error), given_up: None }
    }
}

impl Archiver {
    /// Runs as long as the specification names the repository.
    async fn keep(self) {
        let (mut hold, mut pause) = (Hold::default(), LOOK);
        loop {
            sleep(pause).await;
            pause = LOOK;
            let Some(vault) = self.wanted() else { return };
            let Some(whose) = self.reigns().await else {
                hold = Hold::default();
                pause = self.help(&vault).await;
                continue;
            };
            if !self.round(&vault, whose, &mut hold).await {
                pause = AGAIN;
            }
        }
    }

    /// The vault with this repository alone, if it is still named.
    fn wanted(&self) -> Option<Vault> {
        self.generations.now().spec.vault.only(&self.name)
    }

    /// The term of which this node is the open primary now, and the data's identity.
    async fn reigns(&self) -> Option<(SystemId, Term)> {
        if self.observed.borrow().state != ServerState::Primary {
            return None;
        }
        let summary = self.summary().await?;
        let term = summary.reigns()?;
        Some((summary.record?.1.system?, term))
    }

    /// What the loop knows. The data's identity is taken from there too: this runs on the thread that renews the lease, and must not read a
    /// volume that may have stalled.
    async fn summary(&self) -> Option<Summary> {
        Some(mind_loop::ask(&self.questions, mind_loop::ANSWER).await?.summary)
    }

    /// On a replica of the owner, while that misses something: brings it. Returns when to look again.
    async fn help(&self, vault: &Vault) -> Duration {
        let Some(state) = parse(self.store.watch(&self.key).borrow().as_ref()) else { return LOOK };
        let end = {
            let seen = self.observed.borrow();
            let follows = seen.state == ServerState::Standby && seen.receiving && seen.timeline == state.timeline;
            let end = seen.timeline.zip(seen.end.min(seen.replay));
            end.filter(|_| follows).map(|(timeline, lsn)| Position { timeline, lsn })
        };
        let same = place(vault) == state.repository;
        let (Some(end), true, false) = (end, same, state.gaps.is_empty()) else { return LOOK };
        let record = self.summary().await.and_then(|summary| summary.record).map(|(_, record)| record);
        let system = record.and_then(|record| record.system).filter(|system| Some(*system) == state.system);
        let (Some(system), Ok(thread)) = (system, Arc::clone(&self.threads).try_acquire_owned()) else { return AGAIN };
        let (vault, pg_wal, by) = (vault.clone(), self.pg_wal.clone(), self.me.to_string());
        let work = move || {
            let repository = open(&vault, Some(&state.id))?;
            let size = SegmentSize(state.segment_size);
            assist(repository, (system, size), (state.term, &by), (&pg_wal, end), &state.gaps)
        };
        let work = tokio::task::spawn_blocking(move || {
            let done = ordinarily(work);
            drop(thread);
            done
        });
        match tokio::time::timeout(HANGS, work).await {
            Ok(Ok(Ok(0)) | Err(_)) | Err(_) => {}
            Ok(Ok(Ok(brought))) => info!(brought, "segments that the primary misses were archived from here"),
            Ok(Ok(Err(error))) => debug!(%error, "segments that the primary misses can not be archived from here"),
        }
        AGAIN
    }

    /// `false`: it failed.
    async fn round(&self, vault: &Vault, (system, term): (SystemId, Term), hold: &mut Hold) -> bool {
        let Some(end) = self.observed.borrow().position() else { return true };
        let shown = self.store.watch(&self.key).borrow().clone();
        let before = parse(shown.as_ref()).unwrap_or_default();
        if before.term > term {
            // The store knows a newer owner; this node will hear of it.
            *hold = Hold::default();
            return true;
        }
        hold.owner = hold.owner.take().filter(|(of, owner)| of == vault && owner.term() == term);
        let open = hold.owner.as_ref().map(|(_, owner)| owner.segment_size().holding(end.lsn));
        let holes = !before.gaps.is_empty() && boot_now().0.saturating_sub(hold.looked) >= HOLES_MS;
        if open.is_some() && hold.swept == open && !holes {
            return true;
        }
        hold.looked = boot_now().0;
        let Ok(thread) = Arc::clone(&self.threads).try_acquire_owned() else {
            // Earlier looks still hang: no more threads for it.
            self.tell_silence(vault, (system, term), end, hold).await;
            return false;
        };
        let mut work = self.apart(vault, (system, term), end, &before, (hold.owner.take(), thread));
        let round = loop {
            tokio::select! {
                done = &mut work => break done,
                () = sleep(HANGS) => self.tell_silence(vault, (system, term), end, hold).await,
            }
            // Another repository does not wait for one that hangs.
            if self.wanted().as_ref() != Some(vault) && !work.is_finished() {
                return false;
            }
        };
        let broke = |error: tokio::task::JoinError| Round::failed(VaultError::Server(error.to_string()));
        let round = round.unwrap_or_else(broke);
        let shown = self.store.watch(&self.key).borrow().clone();
        let before = parse(shown.as_ref()).unwrap_or_default();
        if before.term > term {
            *hold = Hold::default();
            return true;
        }
        let (well, after) = self.after(vault, (system, term), end, &before, &round);
        let more = round.result.as_ref().is_ok_and(|standing| standing.more);
        let whole = round.owner.as_ref().filter(|_| well && !more);
        hold.swept = whole.map(|(_, owner)| owner.segment_size().holding(end.lsn));
        hold.owner = round.owner;
        self.tell(shown.map(|shown| shown.revision), &before, after, hold).await;
        well
    }

    /// The repository neither works nor fails.
    async fn tell_silence(&self, vault: &Vault, whose: (SystemId, Term), end: Position, hold: &mut Hold) {
        let shown = self.store.watch(&self.key).borrow().clone();
        let before = parse(shown.as_ref()).unwrap_or_default();
        if before.term > whose.1 {
            return;
        }
        let says = format!("the repository has not answered for {} s", HANGS.as_secs());
        let given_up = self.given_up(&before, end).await;
        let round = Round { given_up, ..Round::failed(VaultError::Server(says)) };
        let (_, after) = self.after(vault, whose, end, &before, &round);
        self.tell(shown.map(|shown| shown.revision), &before, after, hold).await;
    }

    /// What the server has let go of while the repository hangs: only this host's own files are looked at, by one thread at a time.
    async fn given_up(&self, before: &ArchiveState, end: Position) -> Option<(String, String)> {
        let (reached, size) = (before.archived?, SegmentSize(before.segment_size));
        let thread = Arc::clone(&self.looks).try_acquire_owned().ok().filter(|_| size.0 > 0)?;
        let pg_wal = self.pg_wal.clone();
        let look = tokio::task::spawn_blocking(move || {
            let found = given_up(&pg_wal, size, reached, end);
            drop(thread);
            found
        });
        tokio::time::timeout(STORE_TIMEOUT, look).await.ok()?.ok()?
    }

    /// The part that blocks.
    fn apart(
        &self,
        vault: &Vault,
        (system, term): (SystemId, Term),
        end: Position,
        before: &ArchiveState,
        (owner, thread): (Option<(Vault, Owner)>, OwnedSemaphorePermit),
    ) -> tokio::task::JoinHandle<Round> {
        let (vault, pg_wal, by) = (vault.clone(), self.pg_wal.clone(), self.me.to_string());
        let pg_wal_too = pg_wal.clone();
        let same = place(&vault) == before.repository;
        let known = Some(before.id.clone()).filter(|id| same && !id.is_empty());
        let ours = same && before.system == Some(system);
        let reached = before.archived.filter(|_| ours);
        let gaps = if ours { before.gaps.clone() } else { Vec::new() };
        let size = SegmentSize(before.segment_size);
        let shelves = shelves::all(&self.generations.now().spec.vault, &*self.store);
        let (name, key) = (self.name.clone(), shelves::place_key(&self.name, shelves.len() == 1));
        let work = move || {
            let mut id = known.clone().unwrap_or_default();
            let mut claim = || {
                let repository = open(&vault, known.as_deref())?;
                shelves::check_apart(&shelves, &name, repository.id())?;
                id = repository.id().to_owned();
                let none = || VaultError::Server(format!("{} holds no log", pg_wal.display()));
                let size = segment_size(&pg_wal)?.ok_or_else(none)?;
                Owner::claim(repository, (system, size), (term, &by), (reached, &gaps))
            };
            let apart = known.as_deref().map_or(Ok(()), |id| shelves::check_apart(&shelves, &name, id));
            let owner = apart.and_then(|()| match owner {
                Some((_, owner)) => Ok(owner),
                None => claim(),
            });
            match owner {
                Ok(mut owner) => {
                    let result = match crowded(&vault, &key, &pg_wal) {
                        Some(error) => Err(error),
                        None => owner.sweep(&pg_wal, end),
                    };
                    Round { owner: Some((vault, owner)), id, result, given_up: None }
                }
                Err(error) => Round { id, ..Round::failed(error) },
            }
        };
        let all = move || {
            let round = work();
            let lost = reached.filter(|_| round.result.is_err() && size.0 > 0);
            Round { given_up: lost.and_then(|reached| given_up(&pg_wal_too, size, reached, end)), ..round }
        };
        tokio::task::spawn_blocking(move || {
            let round = ordinarily(all);
            drop(thread);
            round
        })
    }

    /// The state after a round, and whether it went well.
    fn after(
        &self,
        vault: &Vault,
        (system, term): (SystemId, Term),
        end: Position,
        before: &ArchiveState,
        round: &Round,
    ) -> (bool, ArchiveState) {
        let place = place(vault);
        let same = before.repository == place && before.system.is_none_or(|is| is == system);
        let mut state = if same { before.clone() } else { ArchiveState::default() };
        (state.repository, state.system, state.term) = (place, Some(system), term);
        (state.node, state.timeline) = (Some(self.me.clone()), Some(end.timeline));
        if !round.id.is_empty() {
            state.id.clone_from(&round.id);
        }
        if let Some((_, owner)) = &round.owner {
            state.segment_size = owner.segment_size().0;
        }
        match &round.result {
            Ok(standing) => {
                state.failing = None;
                state.problems = standing.problems.iter().take(PROBLEMS_MAX).cloned().collect();
                state.given_up = None;
                // More than these are not looked after: the oldest ones matter least.
                let backups = backups::parse(self.store.watch(BACKUP_KEY).borrow().as_ref());
                let ours = |made: &BackupMade| made.system == system && made.repository == state.id;
                let last = backups.of(&self.name, Some(&state.id), false).last;
                let since = last.filter(ours).map(|made| made.start.lsn);
                let gaps: Vec<_> = standing.gaps.iter().filter(|gap| matters(gap, since, state.segment_size)).collect();
                let surplus = gaps.len().saturating_sub(PROBLEMS_MAX);
                state.gaps = gaps.into_iter().skip(surplus).cloned().collect();
                if standing.reached.is_some() && standing.reached != state.archived {
                    (state.archived, state.archived_ms) = (standing.reached, Some(wall_now_ms()));
                }
                (true, state)
            }
            Err(error) => {
                let since = state.failing.as_ref().map_or_else(wall_now_ms, |(since, _)| *since);
                state.failing = Some((since, error.to_string()));
                // A look that was not possible takes nothing back.
                state.given_up = round.given_up.clone().or(state.given_up);
                (false, state)
            }
        }
    }

    /// Writes the state, if it differs: trouble at once, progress now and then. A write that does not succeed is made up for by the next.
    async fn tell(&self, revision: Option<Revision>, before: &ArchiveState, after: ArchiveState, hold: &mut Hold) {
        if *before == after {
            return;
        }
        let plain =
            ArchiveState { archived: after.archived, archived_ms: after.archived_ms, ..before.clone() } == after;
        let now = boot_now().0;
        if plain && hold.told.is_some_and(|told| now.saturating_sub(told) < TELL_MS) {
            // Looked at again, though nothing is to be brought.
            hold.swept = None;
            return;
        }
        match (&before.failing, &after.failing) {
            (None, Some((_, why))) => {
                warn!(repository = %self.name, %why, "the log can not be archived; this is tried again");
            }
            (Some(_), None) => info!(repository = %self.name, "the log is archived again"),
            _ => {}
        }
        let Ok(value) = serde_json::to_vec(&after) else { return };
        match self.store.compare_and_set(&self.key, revision, value, STORE_TIMEOUT).await {
            CasOutcome::Done(_) => hold.told = Some(now),
            CasOutcome::Conflict(_) | CasOutcome::Unknown | CasOutcome::Unavailable(_) => hold.swept = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_vault::keys::SecretKey;

    #[test]
    fn an_unmounted_volume_is_no_empty_repository_and_another_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault { repository: dir.path().join("v").into(), ..Vault::default() };
        let id = open(&vault, None).unwrap().id().to_owned();
        assert_eq!(open(&vault, Some(&id)).unwrap().id(), id);
        std::fs::rename(dir.path().join("v"), dir.path().join("away")).unwrap();
        assert!(open(&vault, Some(&id)).is_err());
        assert!(!dir.path().join("v").exists(), "nothing was made in its place");
        open(&vault, None).unwrap();
        let error = open(&vault, Some(&id)).map(drop).unwrap_err().to_string();
        assert!(error.contains("holds another repository"), "{error}");
    }

    #[test]
    fn a_hole_before_a_backup_is_trouble_no_more() {
        let gap = ("000000010000000000000003".to_owned(), "000000010000000000000005".to_owned());
        let since = |segment: u64| Some(Lsn((segment << 24) + 9));
        assert!(matters(&gap, None, 1 << 24) && matters(&gap, since(5), 1 << 24));
        assert!(!matters(&gap, since(6), 1 << 24));
    }

    #[test]
    fn a_wrong_key_and_a_repository_that_is_not_sealed_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            path
        };
        let (ours, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        let with =
            |key: PathBuf| Vault { repository: dir.path().join("v").into(), key_file: Some(key), ..Vault::default() };
        let vault = with(file("ours", ours.to_text()));
        assert!(open(&vault, None).unwrap().readable());
        let writer = open(&with(file("public", ours.public().to_text())), None).unwrap();
        assert!(!writer.readable());
        assert!(matches!(open(&with(file("other", other.to_text())), None), Err(VaultError::WrongKey { .. })));
        // Somebody who can write to the volume names a reader of his own: beside ours, and instead of it.
        let charter = dir.path().join("v/vault.json");
        let text = std::fs::read_to_string(&charter).unwrap();
        let (key, his) = (ours.public().to_text(), other.public().to_text());
        for readers in [format!("{key}\", \"{his}"), his] {
            std::fs::write(&charter, text.replace(&key, &readers)).unwrap();
            let public = with(dir.path().join("public"));
            let error = open(&public, None).map(drop).unwrap_err().to_string();
            assert!(error.contains("is sealed for other keys"), "{error}");
            assert!(open(&vault, None).is_err());
        }
        let plain = Vault { repository: dir.path().join("p").into(), ..Vault::default() };
        open(&plain, None).unwrap();
        let error = open(&Vault { key_file: vault.key_file, ..plain }, None).map(drop).unwrap_err().to_string();
        assert!(error.contains("is not encrypted"), "{error}");
    }
}
