//! What the thread of a backup, or of a restore drill, does: the copy, then what the retention no longer keeps.

use crate::archiver;
use crate::backups::Told;
use crate::restore_drill as drill;
use mainstay_model::RepositoryName;
use mainstay_model::spec::Vault;
use mainstay_model::vault::DrillDone;
use mainstay_ports::clock::{boot_now, wall_now_ms};
use mainstay_vault::postgres::backup::{self, Options, Watch};
use mainstay_vault::postgres::log::SegmentSize;
use mainstay_vault::postgres::manifest::Manifest;
use mainstay_vault::repository::{Repository, VaultError};
use mainstay_vault::retention::{self, Policy, Spared};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tracing::info;

/// What was begun before this and never became a backup is removed. Milliseconds.
const UNFINISHED_MS: u64 = 24 * 3600 * 1000;

/// What the thread works with.
pub(crate) struct Job {
    /// The repository.
    pub(crate) name: RepositoryName,
    pub(crate) vault: Vault,
    pub(crate) known: String,
    pub(crate) incremental: bool,
    pub(crate) options: Options,
    pub(crate) watch: Arc<Watch>,
    pub(crate) told: Told,
    /// No backup, but a drill.
    pub(crate) drill: Option<drill::Job>,
}

/// What came of it.
pub(crate) enum Done {
    Made(Box<Made>),
    Drilled(Box<DrillDone>),
}

/// What the thread made.
pub(crate) struct Made {
    pub(crate) manifest: Manifest,
    pub(crate) repository: String,
    pub(crate) removed: Vec<String>,
    pub(crate) remark: Option<String>,
}

/// The thread's work.
pub(crate) fn run(mut job: Job) -> Result<Done, VaultError> {
    if let Some(drill) = job.drill.take() {
        let repository = archiver::open(&job.vault, Some(&job.known))?;
        return Ok(Done::Drilled(Box::new(drill::hold(&repository, &job.vault, &drill, &job.watch))));
    }
    made(&job).map(|made| Done::Made(Box::new(made)))
}

fn made(job: &Job) -> Result<Made, VaultError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| VaultError::Backup(format!("no runtime: {error}")))?;
    let repository = archiver::open(&job.vault, Some(&job.known))?;
    let base = if job.incremental { base(&repository, &job.options, &runtime)? } else { None };
    let manifest = runtime.block_on(async {
        match base {
            Some(base) => backup::incremental(&repository, &job.options, &job.watch, Arc::new(base)).await,
            None => backup::full(&repository, &job.options, &job.watch).await,
        }
    })?;
    // From here on it counts, whatever happens.
    let left = job.watch.stop.load(Ordering::Relaxed);
    let off = job.told.off(wall_now_ms(), boot_now().0).filter(|_| job.vault.keep_days > 0);
    let kept = match spared(&manifest, left, off) {
        Some(why) => Err(why),
        None => keep_to(&repository, &manifest, &job.vault).map_err(|error| error.to_string()),
    };
    let (removed, mut remarks) = match kept {
        Ok(kept) => kept,
        Err(why) => (Vec::new(), vec![format!("the retention was not applied: {why}")]),
    };
    if let Err(error) = repository.relock(manifest.system) {
        remarks.push(format!("the locks of what opens the repository were not all renewed: {error}"));
    }
    let remark = (!remarks.is_empty()).then(|| remarks.join("; "));
    Ok(Made { manifest, repository: repository.id().to_owned(), removed, remark })
}

/// The newest full backup of this database.
fn base(
    repository: &Repository,
    options: &Options,
    runtime: &tokio::runtime::Runtime,
) -> Result<Option<Manifest>, VaultError> {
    if !repository.readable() {
        let says = "this host can write to the repository and not read it, so it can not compare: make a full backup";
        return Err(VaultError::Impossible(says.to_owned()));
    }
    let system = runtime.block_on(backup::system(&options.server))?;
    // Others may be damaged: that is told by whoever reads them all, and nothing is removed meanwhile.
    let (all, _) = backup::readable(repository, system)?;
    // Of the present history if there is one: timelines only rise.
    let full = all.into_iter().filter(|manifest| manifest.base.is_none());
    Ok(full.max_by_key(|manifest| (manifest.stop.timeline, manifest.stop.lsn)))
}

/// Why nothing may be removed now.
fn spared(newest: &Manifest, left: bool, off_ms: Option<u64>) -> Option<String> {
    if left {
        return Some("this backup was given up before it ended".to_owned());
    }
    if let Some(off) = off_ms {
        let says = "this host's clock and the primary's differ by";
        return Some(format!("{says} {} minutes, so the age of a backup is not known", off / 60_000));
    }
    let count = newest.corrupt.len();
    (count > 0).then(|| format!("{count} blocks of the newest backup are damaged, older ones may hold them whole"))
}

/// Removes what the retention does not keep; says what, and what stays all the same.
fn keep_to(
    repository: &Repository,
    newest: &Manifest,
    vault: &Vault,
) -> Result<(Vec<String>, Vec<String>), VaultError> {
    if !repository.readable() {
        let says = "this host can not read the repository, so it can not tell what is needed";
        return Err(VaultError::Impossible(says.to_owned()));
    }
    let system = newest.system;
    let verdict = retention::examine(repository, system, Policy::of(vault), micros(wall_now_ms()))?;
    let size = SegmentSize(newest.server.segment_size);
    let mut spared = retention::remove(repository, system, size, &verdict)?;
    let old = retention::unfinished(repository, system, wall_now_ms().saturating_sub(UNFINISHED_MS))?;
    // Whoever holds the lock of backups sweeps, and nobody else.
    let pieces = retention::sweep(repository, Duration::from_millis(UNFINISHED_MS))?;
    if pieces > 0 {
        info!(pieces, "half-written pieces of agents that were killed are removed from the repository");
    }
    let left = retention::Verdict { removed: old, ..retention::Verdict::default() };
    spared.backups.extend(retention::remove(repository, system, size, &left)?.backups);
    let removed = verdict.removed.difference(&spared.backups).cloned().collect();
    Ok((removed, remarks(&verdict.damaged, &spared)))
}

/// What stays although the retention does not keep it, a sentence each.
fn remarks(damaged: &[String], spared: &Spared) -> Vec<String> {
    let mut all = Vec::new();
    if !damaged.is_empty() {
        let says = "can not be read: that stays, with what it may need; `mainstay verify` says why";
        all.push(format!("{} {says}", damaged.join(", ")));
    }
    if *spared != Spared::default() {
        let (backups, log) = (spared.backups.len(), spared.log);
        all.push(format!(
            "a rule of the store keeps what would go, until it lets it: backups {backups}, files of the log {log}"
        ));
    }
    all
}

fn micros(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_although_nothing_keeps_it_is_told() {
        assert_eq!(remarks(&[], &Spared::default()), Vec::<String>::new());
        let spared = Spared { backups: ["a".to_owned()].into(), log: 0 };
        let told = remarks(&["b".to_owned(), "c".to_owned()], &spared);
        assert!(told[0].starts_with("b, c can not be read: "), "{told:?}");
        assert_eq!(told[1], "a rule of the store keeps what would go, until it lets it: backups 1, files of the log 0");
        let spared = Spared { log: 1, ..Spared::default() };
        assert!(remarks(&[], &spared)[0].ends_with("backups 0, files of the log 1"));
    }
}
