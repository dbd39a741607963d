//! A new copy from the running primary. What the old data held alone is kept and reported first; the old data is moved aside, not
//! removed, and the new one takes its place by a rename when it is whole and durable. One old copy is kept, the newest that is whole.

use crate::config::copy_name;
use crate::files;
use crate::inspect::{Finding, inspect_room};
use crate::rewind::parted;
use crate::server::{Postgres, STATEMENT, failed, not_yet};
use crate::source::{ASK, Source};
use crate::sql::Session;
use crate::tablespaces;
use crate::tools::system_id;
use mainstay_model::{CopyId, Lost, NodeId, Position};
use mainstay_ports::engine::EngineError;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a clone may take.
pub(crate) const CLONE: Duration = Duration::from_secs(24 * 3600);
/// What a clone asks of the source's end of its connections. A replica that says nothing for three seconds is let go, so that its successor finds the slot
/// free; a clone holds nothing that anybody waits for, may have taken hours already, and begins anew when its connection ends.
const CLONE_OPTIONS: &str = "options='-c wal_sender_timeout=60s'";
/// How much must be free beyond what the tables take: the log that is written during the clone and its start.
const SPARE: u64 = 128 * 1024 * 1024;
/// A clone that ran out of room is tried again after this long although no more has become free: the source may have shrunk.
const FORGET: Duration = Duration::from_secs(600);

/// A clone that ran out of room: when, and with how many bytes free it had begun.
pub(crate) type RanOut = std::sync::Mutex<Option<(tokio::time::Instant, u64)>>;

/// The directories of a clone, in the node's own.
#[derive(Clone)]
struct Places {
    dir: PathBuf,
    data: PathBuf,
    new: PathBuf,
    old: PathBuf,
    /// The old copy of before, until the new one is in its place.
    gone: PathBuf,
    /// A data directory that is not whole, moved out of the way of one that is.
    broken: PathBuf,
}

impl Postgres {
    fn places(&self) -> Places {
        let dir = self.options.layout.dir().to_owned();
        let name = |name: &str| dir.join(name);
        let (new, old, gone, broken) = (name("data.new"), name("data.old"), name("data.gone"), name("data.broken"));
        Places { data: self.data(), dir, new, old, gone, broken }
    }

    /// See [`mainstay_ports::engine::Engine::clone_from`].
    pub(crate) async fn clone_source(&self, source: &NodeId, copy: CopyId) -> Result<Option<Lost>, EngineError> {
        let there = self.source(source).await?;
        if self.server_pid().await?.is_some() {
            self.fence("its data is replaced by a clone".into()).await?;
        }
        // What a clone puts right by itself, or measures by itself, is no reason against it.
        let mended = |found: &Finding| {
            matches!(
                found,
                Finding::OtherVersion { .. } | Finding::Owner { .. } | Finding::Mode { .. } | Finding::Full { .. }
            )
        };
        self.refuse_bad_start(|found| found.blocks() && !mended(found)).await?;
        let Ok(_aside) = tokio::time::timeout(ASK, self.aside.lock()).await else {
            return Err(not_yet("an old copy is still being removed"));
        };
        if self.take_standby(source, copy, &there).await? {
            return Ok(None);
        }
        let places = self.places();
        let lost = self.keep_before_clone(&there).await?;
        let say = |error: std::io::Error| failed(format!("could not prepare {}: {error}", places.new.display()));
        places.clear().map_err(say)?;
        self.make_room_for_clone(source, &places).await?;
        files::ensure_dir(&places.new, 0o700, self.owner()).map_err(say)?;
        let began_with = free_in(&places.dir);
        self.reserve_log_at(source).await?;
        let made = self.fill_clone(source, copy, &there, &places).await;
        let ran_out = made.as_ref().is_err_and(|error| error.to_string().contains("No space left on device"));
        *self.ran_out.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            ran_out.then(|| (tokio::time::Instant::now(), began_with));
        if made.is_err() {
            // Half a clone is of no use, and its room may be what was lacking.
            if let Err(error) = places.clear() {
                tracing::warn!(%error, "half a clone is left in {}", places.new.display());
            }
        }
        let seeded = made?;
        self.write(None, |live| {
            live.copy = Some(copy);
            live.upstream = None;
        })
        .await?;
        let half = self.unfinished().is_some_and(|unfinished| unfinished.half);
        self.note_clone(&places.new, lost.as_ref())?;
        let swapped = tokio::task::spawn_blocking(move || places.swap(half)).await.map_err(failed)?;
        swapped.map_err(|error| failed(format!("could not put the clone in its place: {error}")))?;
        // The clone is there whatever comes of this, and is told with what it cost.
        if let Some(error) = (!seeded).then(|| self.forget_seeded().err()).flatten() {
            tracing::warn!(%error, "the next clone is the primary's too");
        }
        Ok(lost)
    }

    /// `true`: from the seed.
    async fn fill_clone(
        &self,
        source: &NodeId,
        copy: CopyId,
        there: &Source,
        places: &Places,
    ) -> Result<bool, EngineError> {
        let seeded = self.fill_from_seed(source, copy, there, &places.new).await;
        if !seeded {
            files::ensure_dir(&places.new, 0o700, self.owner())
                .map_err(|error| failed(format!("could not prepare {}: {error}", places.new.display())))?;
            self.base_backup(source, copy, &places.new).await?;
        }
        let control = self.control_of(&places.new).await?;
        if control.system != there.system {
            let (clone, theirs) = (control.system, there.system);
            return Err(not_yet(format!("the clone is of cluster {clone}, {source} is of {theirs}")));
        }
        self.make_ours(&places.new).await?;
        Ok(seeded)
    }

    /// Keeps what the old data holds beyond the source's history; says that, and what nobody has heard of yet.
    async fn keep_before_clone(&self, there: &Source) -> Result<Option<Lost>, EngineError> {
        let unfinished = self.unfinished().unwrap_or_default();
        if unfinished.half {
            // Half of each log: what the rewind was to take out was kept before it began.
            return Ok(unfinished.lost);
        }
        match self.keep_beyond(there).await? {
            Some(lost) => Ok(Some(lost.and(unfinished.lost))),
            None => Ok(unfinished.lost),
        }
    }

    async fn keep_beyond(&self, there: &Source) -> Result<Option<Lost>, EngineError> {
        if system_id(&self.data()) != Some(there.system) {
            return Ok(None);
        }
        // Also after a crash: the last whole record is where the log ends.
        let end = match self.control().await {
            Ok(control) => {
                let end = self.scan_from(control.checkpoint, control.newest_timeline()).await;
                end.map(|end| (end, Position { timeline: control.timeline, lsn: control.redo }))
            }
            Err(error) => Err(error),
        };
        let (end, redo) = match end {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!(%error, "the log of the old data can not be read; it is kept with the old data only");
                return Ok(None);
            }
        };
        if there.lineage.contains(end.position, there.timeline, there.end) {
            return Ok(None);
        }
        self.keep_diverged(&end, parted(&end, there).unwrap_or(redo)).await.map(Some)
    }

    /// The clone must fit beside the old data. If it does not, the copy before the old data goes, but only while the old data is whole.
    async fn make_room_for_clone(&self, source: &NodeId, places: &Places) -> Result<(), EngineError> {
        let sql = "select sum(pg_database_size(oid)) from pg_database where has_database_privilege(oid, 'connect')";
        let said = self.ask_source(source, "dbname=postgres", sql, ASK * 3).await?;
        let Ok(size) = said.trim().parse::<u64>() else { return Ok(()) };
        // Each attempt has the source write a checkpoint and begin a new file of its log: none without hope.
        let ran_out = *self.ran_out.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let ran_out = ran_out.filter(|(when, _)| when.elapsed() < FORGET);
        let size = ran_out.map_or(size, |(_, began_with)| size.max(began_with));
        let free = || free_in(&places.dir);
        if free() < size + SPARE && system_id(&places.data).is_some() && places.old.exists() {
            tracing::warn!(old = %places.old.display(), "removing the copy of before the last clone to make room");
            remove_tree(&places.old)
                .and_then(|()| places.sweep())
                .map_err(|error| failed(format!("could not remove {}: {error}", places.old.display())))?;
        }
        let free = free();
        if free >= size + SPARE {
            return Ok(());
        }
        Err(not_yet(format!(
            "a clone of {source} takes about {} MiB and {} MiB are free in {}; the old data is not removed before the clone is whole: \
             free some space or enlarge the volume",
            (size + SPARE) >> 20,
            free >> 20,
            places.dir.display()
        )))
    }

    /// Removes the copies aside when the volume is nearly full while this node's own is in use: what they held alone is kept elsewhere, and
    /// a server that ends for want of room costs more.
    pub(crate) async fn give_up_old_copies(&self, session: &Session) -> Result<(), EngineError> {
        let places = self.places();
        let Ok(aside) = Arc::clone(&self.aside).try_lock_owned() else { return Ok(()) };
        let any = || [&places.old, &places.gone, &places.broken].iter().any(|copy| copy.exists());
        if inspect_room(&places.dir).is_none() || !any() {
            return Ok(());
        }
        let in_use =
            "select not pg_is_in_recovery() or exists (select from pg_stat_wal_receiver where status = 'streaming')";
        if session.value(in_use, STATEMENT).await? != "t" {
            return Ok(());
        }
        tracing::warn!(dir = %places.dir.display(), "the volume is nearly full: removing the copies that were moved aside before clones");
        let removed = tokio::task::spawn_blocking(move || {
            let _aside = aside;
            [&places.gone, &places.broken, &places.old].into_iter().try_for_each(|copy| remove_tree(copy))?;
            places.sweep()
        });
        removed.await.map_err(failed)?.map_err(|error| failed(format!("could not remove an old copy: {error}")))
    }

    async fn base_backup(&self, source: &NodeId, copy: CopyId, into: &Path) -> Result<(), EngineError> {
        // Not a copy's name: what this connection reports as flushed is no copy yet.
        let name =
            format!("mainstay_clone_{}", copy_name(&self.options.node, copy).chars().take(40).collect::<String>());
        let conninfo = self.source_conninfo(source, &name, CLONE_OPTIONS)?;
        let mut arguments =
            ["-D", &into.display().to_string(), "-d", &conninfo, "-X", "stream", "-c", "fast", "--no-password"]
                .map(str::to_owned)
                .to_vec();
        arguments.extend(self.place_tablespaces(source, copy).await?.0);
        let ran = self.run_durably("pg_basebackup", &arguments, CLONE, into).await?;
        if ran.success {
            return Ok(());
        }
        Err(not_yet(format!("pg_basebackup from {source}: {}", ran.err.trim().replace('\n', " | "))))
    }
}

impl Places {
    /// Removes what a clone that broke off left. Of two old copies the newer one stays.
    fn clear(&self) -> std::io::Result<()> {
        remove_tree(&self.new)?;
        crate::seed::clear(&self.dir)?;
        if self.old.exists() {
            remove_tree(&self.gone)?;
        }
        self.sweep()
    }

    fn sweep(&self) -> std::io::Result<()> {
        tablespaces::sweep(&self.dir)
    }

    /// Puts the new copy in its place. Nothing is removed before it is there. `half`: the data is what a rewind left half-way, and
    /// what it held alone is kept elsewhere.
    fn swap(&self, half: bool) -> std::io::Result<()> {
        if std::fs::read_dir(&self.data).is_ok_and(|mut entries| entries.next().is_some()) {
            let whole = system_id(&self.data).is_some() && !half;
            if !whole && system_id(&self.old).is_some() {
                remove_tree(&self.broken)?;
                std::fs::rename(&self.data, &self.broken)?;
            } else {
                if self.old.exists() {
                    remove_tree(&self.gone)?;
                    std::fs::rename(&self.old, &self.gone)?;
                }
                std::fs::rename(&self.data, &self.old)?;
            }
        } else if self.data.exists() {
            std::fs::remove_dir(&self.data)?;
        }
        std::fs::rename(&self.new, &self.data)?;
        files::sync_dir(&self.dir)?;
        // Only now: until here it was what remained if everything else failed.
        remove_tree(&self.gone)?;
        if half {
            remove_tree(&self.broken)?;
        }
        self.sweep()
    }
}

/// Free bytes for users without privileges.
fn free_in(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(u64::MAX, |is| is.f_bavail.saturating_mul(is.f_frsize))
}

pub(crate) fn remove_tree(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> (tempfile::TempDir, Places) {
        let place = tempfile::tempdir().unwrap();
        let name = |name: &str| place.path().join(name);
        let places = Places {
            dir: place.path().to_owned(),
            data: name("data"),
            new: name("data.new"),
            old: name("data.old"),
            gone: name("data.gone"),
            broken: name("data.broken"),
        };
        (place, places)
    }

    fn fill(dir: &Path, what: &str, whole: bool) {
        std::fs::create_dir_all(dir.join("global")).unwrap();
        std::fs::write(dir.join("what"), what).unwrap();
        if whole {
            std::fs::write(dir.join("PG_VERSION"), "15\n").unwrap();
            std::fs::write(dir.join("global/pg_control"), 7_u64.to_le_bytes()).unwrap();
        }
    }

    fn what(dir: &Path) -> String {
        std::fs::read_to_string(dir.join("what")).unwrap_or_default()
    }

    #[test]
    fn the_newest_whole_copy_stays_aside_whatever_was_in_the_place() {
        let (_place, places) = places();
        fill(&places.data, "first", true);
        fill(&places.new, "second", true);
        places.swap(false).unwrap();
        assert_eq!((what(&places.data), what(&places.old)), ("second".into(), "first".into()));
        // What a rewind left half-way does not take the place of a whole copy.
        fill(&places.new, "third", true);
        places.swap(true).unwrap();
        assert_eq!((what(&places.data), what(&places.old)), ("third".into(), "first".into()));
        // Nor does a directory without a control file, which nobody has kept elsewhere: it stays too.
        std::fs::remove_file(places.data.join("PG_VERSION")).unwrap();
        fill(&places.new, "fourth", true);
        places.swap(false).unwrap();
        let left = [&places.data, &places.old, &places.broken].map(|dir| what(dir));
        assert_eq!(left, ["fourth", "first", "third"]);
        fill(&places.new, "fifth", true);
        places.swap(false).unwrap();
        assert_eq!((what(&places.data), what(&places.old)), ("fifth".into(), "fourth".into()));
        assert!(!places.gone.exists() && !places.new.exists());
    }

    #[test]
    fn a_swap_that_broke_off_never_costs_the_last_copy() {
        let (_place, places) = places();
        // Between the renames.
        fill(&places.gone, "first", true);
        fill(&places.old, "second", true);
        fill(&places.new, "third", true);
        places.clear().unwrap();
        assert_eq!((what(&places.old), places.gone.exists()), ("second".into(), false));
        // Before the second one.
        std::fs::rename(&places.old, &places.gone).unwrap();
        places.clear().unwrap();
        assert_eq!(what(&places.gone), "second");
    }
}
