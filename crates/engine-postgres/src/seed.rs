//! A new copy from a seed (the repository) instead of the running primary. It is made in a directory of its own that no other attempt uses, so that
//! what an attempt that was given up still writes reaches no other copy.

use crate::clone::{CLONE, remove_tree};
use crate::files;
use crate::server::{Postgres, STATEMENT, failed};
use crate::slots::slot_name;
use crate::source::{ASK, Source};
use crate::sql::{Session, literal};
use mainstay_model::{CopyId, NodeId};
use mainstay_ports::engine::EngineError;
use mainstay_ports::seed::{Seed, SeedWish};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Copies being made from a seed, in the node's directory.
const PREFIX: &str = "data.seed-";
/// A copy from the seed is wanted again so soon: the last one was of no use, and the next is the primary's.
const AGAIN: Duration = Duration::from_secs(600);
/// A file that says: the copy made from the seed has not streamed yet. Replaying may take longer than the primary keeps its log, and longer every time:
/// a copy that is given up before it streams is never followed by another from the seed, however late that is and whoever was restarted meanwhile.
const MARK: &str = "seeded";
/// Behind its upstream by less than this, in bytes, a copy has come through.
const NEAR: u64 = 64 * 1024 * 1024;

/// The seed, and when it was used last.
#[derive(Default)]
pub(crate) struct Held {
    seed: OnceLock<Arc<dyn Seed>>,
    last: Mutex<Option<Instant>>,
}

impl Held {
    pub(crate) fn take(&self, seed: Arc<dyn Seed>) {
        // There is one for the life of a process.
        let _ = self.seed.set(seed);
    }
}

impl Postgres {
    /// Fills `new` from the seed if there is one, it is wanted, and it can serve. `false`: it is as empty as before.
    pub(crate) async fn fill_from_seed(&self, source: &NodeId, copy: CopyId, there: &Source, new: &Path) -> bool {
        let Some(seed) = self.seed.seed.get().filter(|seed| seed.wanted()) else { return false };
        match self.try_seed(&**seed, source, copy, there, new).await {
            Ok(of) => {
                tracing::info!(%of, "the new copy was made from the repository");
                seed.made(&of);
                true
            }
            Err(why) => {
                tracing::warn!(%why, "the new copy is not made from the repository: {source} is cloned");
                seed.passed_over(&why);
                false
            }
        }
    }

    async fn try_seed(
        &self,
        seed: &dyn Seed,
        source: &NodeId,
        copy: CopyId,
        there: &Source,
        new: &Path,
    ) -> Result<String, String> {
        if self.seed_is_unproven() {
            return Err("the last copy from there has not come to stream, and a new one is needed".to_owned());
        }
        let last = *self.seed.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last.filter(|last| last.elapsed() < AGAIN) {
            return Err(format!(
                "the last copy from there is {} s old and a new one is needed",
                last.elapsed().as_secs()
            ));
        }
        let name = literal(&slot_name(&self.options.node));
        let sql = format!("select coalesce(restart_lsn::text, '') from pg_replication_slots where slot_name = {name}");
        let said = self.ask_source(source, "dbname=postgres", &sql, ASK).await.map_err(|error| error.to_string())?;
        let kept_from = said.trim().parse().map_err(|_| format!("{source} keeps no log for this node"))?;
        let dir = self.options.layout.dir();
        let into = dir.join(format!("{PREFIX}{copy}"));
        let wish = SeedWish {
            into: into.clone(),
            tablespaces: self.options.layout.tablespaces(copy).with_extension("vault"),
            programs: self.options.bin_dir.clone(),
            system: there.system,
            timeline: there.timeline,
            lineage: there.lineage.clone(),
            kept_from,
        };
        let filled = tokio::time::timeout(CLONE, seed.fill(wish)).await;
        let filled = filled.unwrap_or_else(|_| Err(format!("it was not there within {} h", CLONE.as_secs() / 3600)));
        let checked = match filled {
            Ok(of) => self.seeded(&into, there, new).await.map(|()| of),
            Err(why) => Err(why),
        };
        if checked.is_err()
            && let Err(error) = remove_tree(&into).and_then(|()| crate::tablespaces::sweep(dir))
        {
            tracing::warn!(%error, "half a copy is left in {}", into.display());
        }
        checked
    }

    /// It is what was asked for: it takes the place in which a clone is made.
    async fn seeded(&self, into: &Path, there: &Source, new: &Path) -> Result<(), String> {
        let control = self.control_of(into).await.map_err(|error| error.to_string())?;
        if control.system != there.system {
            return Err(format!("it is of the database {}, the primary is of {}", control.system, there.system));
        }
        // Before the copy counts: a crash in between costs a clone of the primary, the other way round the mark could be missing.
        let conf = self.options.layout.conf();
        files::write_atomic(&conf, MARK, b"", 0o600, self.owner())
            .map_err(|error| format!("{}/{MARK}: {error}", conf.display()))?;
        remove_tree(new)
            .and_then(|()| std::fs::rename(into, new))
            .and_then(|()| files::sync_dir(self.options.layout.dir()))
            .map_err(|error| format!("{}: {error}", new.display()))?;
        *self.seed.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }

    fn seed_is_unproven(&self) -> bool {
        self.options.layout.conf().join(MARK).symlink_metadata().is_ok()
    }

    /// The seed may be asked again: the copy in place is the primary's, or has come through.
    pub(crate) fn forget_seeded(&self) -> Result<(), EngineError> {
        let conf = self.options.layout.conf();
        let gone = files::remove(&conf, MARK).and_then(|was| if was { files::sync_dir(&conf) } else { Ok(()) });
        gone.map_err(|error| failed(format!("{}/{MARK}: {error}", conf.display())))
    }

    /// Looks whether the copy from the seed has come through: it has got log from its upstream and nearly all of it, or leads. A receiver's state alone
    /// says nothing, it is "streaming" for a moment also when the upstream has removed that log.
    pub(crate) async fn look_at_seeded(&self, session: &Session) -> Result<(), EngineError> {
        if !self.seed_is_unproven() {
            return Ok(());
        }
        let through = format!(
            "select not pg_is_in_recovery() or exists (select from pg_stat_wal_receiver where status = 'streaming' \
             and flushed_lsn > receive_start_lsn and latest_end_lsn - flushed_lsn < {NEAR})"
        );
        if session.value(&through, STATEMENT).await? == "t" { self.forget_seeded() } else { Ok(()) }
    }
}

/// Removes what attempts left that did not end.
pub(crate) fn clear(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}
