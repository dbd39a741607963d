//! Watches a command of the operator's own that archives the log (`postgres.archive_command`: pgBackRest, WAL-G …), while this node is the open primary
//! of its term, and tells the store how far it is: every node's slot keeps what comes after, and whoever is primary next has its own server hand over
//! what the dead one may not have (docs/adr/0049). Absent: running the command. The server does that.

use crate::archiver;
use crate::generations::Generations;
use crate::mind_loop::{self, Question};
use crate::shelves;
use mainstay_model::spec::Spec;
use mainstay_model::vault::{ArchiveState, COMMAND_KEY, PROBLEMS_MAX};
use mainstay_model::{Lsn, NodeId, ServerObservation, ServerState, SystemId, Term, Timeline};
use mainstay_ports::clock::{boot_now, wall_now_ms};
use mainstay_ports::store::{CasOutcome, Store, Versioned};
use mainstay_vault::postgres::handed::{Handed, look};
use mainstay_vault::postgres::log::SegmentSize;
use mainstay_vault::postgres::owner::segment_size;
use mainstay_vault::repository::VaultError;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// How often the server's marks are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Plain progress is not told more often. Milliseconds.
const TELL_MS: u64 = 5_000;
/// A segment that waits for so long is in trouble. Milliseconds.
const LATE_MS: u64 = 60_000;
const STORE_TIMEOUT: Duration = Duration::from_secs(2);
/// For a look at this host's own files.
const HANGS: Duration = Duration::from_secs(20);

/// Up to where the servers may let go of their log: what the repositories that count hold (see `shelves`) and the command has taken. `None`: one of
/// them has told nothing of this timeline, and all is kept.
#[must_use]
pub fn archived(spec: &Spec, store: &dyn Store, timeline: Option<Timeline>) -> Option<Lsn> {
    let repositories = spec.vault.archives().then(|| shelves::archived(&spec.vault, store, timeline));
    let command = spec.postgres.archive_command.is_some().then(|| {
        let told = archiver::parse(store.watch(COMMAND_KEY).borrow().as_ref())?;
        shelves::let_go(std::iter::once((false, told.archived)), timeline)
    });
    // `None` comes before every position.
    repositories.into_iter().chain(command).min().flatten()
}

/// Watches it.
pub struct ArchiveCommand {
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
    /// Looks at this host's own files: one at a time, since a volume that hangs keeps its thread.
    pub looks: Arc<Semaphore>,
}

impl ArchiveCommand {
    /// Runs for ever.
    pub async fn keep(self) {
        let mut told = None;
        loop {
            sleep(LOOK).await;
            let set = self.generations.now().spec.postgres.archive_command.is_some();
            let shown = self.store.watch(COMMAND_KEY).borrow().clone();
            let before = archiver::parse(shown.as_ref()).unwrap_or_default();
            if !set && before == ArchiveState::default() {
                continue;
            }
            let Some((system, term)) = self.reigns().await.filter(|(_, term)| before.term <= *term) else { continue };
            if !set {
                // Set again later it begins anew: what came meanwhile is not the command's.
                self.tell(shown.as_ref(), &ArchiveState::default()).await;
                continue;
            }
            let Some(after) = self.round((system, term), &before).await else { continue };
            let plain =
                ArchiveState { archived: after.archived, archived_ms: after.archived_ms, ..before.clone() } == after;
            let now = boot_now().0;
            let soon = told.is_some_and(|told: u64| now.saturating_sub(told) < TELL_MS);
            if after != before && !(plain && soon) && self.tell(shown.as_ref(), &after).await {
                told = Some(now);
                speak(&before, &after);
            }
        }
    }

    /// The term of which this node is the open primary now, and the data's identity.
    async fn reigns(&self) -> Option<(SystemId, Term)> {
        if self.observed.borrow().state != ServerState::Primary {
            return None;
        }
        let summary = mind_loop::ask(&self.questions, mind_loop::ANSWER).await?.summary;
        let term = summary.reigns()?;
        Some((summary.record?.1.system?, term))
    }

    /// Looks at the marks; the state after it. `None`: nothing could be seen, and the next look comes soon.
    async fn round(&self, (system, term): (SystemId, Term), before: &ArchiveState) -> Option<ArchiveState> {
        let end = self.observed.borrow().position()?;
        let thread = Arc::clone(&self.looks).try_acquire_owned().ok()?;
        let ours = before.system == Some(system);
        let (reached, anew) = (before.archived.filter(|_| ours), before.term != term);
        let pg_wal = self.pg_wal.clone();
        let work = tokio::task::spawn_blocking(move || {
            let none = || VaultError::Server(format!("{} holds no log", pg_wal.display()));
            let found = segment_size(&pg_wal)
                .and_then(|size| size.ok_or_else(none))
                .and_then(|size| Ok((size, look(&pg_wal, size, (reached, end), anew)?)));
            drop(thread);
            found
        });
        let found = timeout(HANGS, work).await.ok()?.unwrap_or_else(|error| Err(VaultError::Server(error.to_string())));
        let state = if ours { before.clone() } else { ArchiveState::default() };
        let state =
            ArchiveState { system: Some(system), node: Some(self.me.clone()), timeline: Some(end.timeline), ..state };
        Some(after(state, term, found, wall_now_ms()))
    }

    /// `false`: it was not written, which the next look makes up for.
    async fn tell(&self, shown: Option<&Versioned>, after: &ArchiveState) -> bool {
        let Ok(value) = serde_json::to_vec(after) else { return false };
        let written = self.store.compare_and_set(COMMAND_KEY, shown.map(|shown| shown.revision), value, STORE_TIMEOUT);
        matches!(written.await, CasOutcome::Done(_))
    }
}

/// The state after a look. A term is taken up only by a look that went well: until then what came before is still to be handed over.
fn after(
    mut state: ArchiveState,
    term: Term,
    found: Result<(SegmentSize, Handed), VaultError>,
    now_ms: u64,
) -> ArchiveState {
    let (size, handed) = match found {
        Ok(found) => found,
        Err(error) => {
            let since = state.failing.as_ref().map_or(now_ms, |(since, _)| *since);
            state.failing = Some((since, format!("the server's marks can not be read: {error}")));
            return state;
        }
    };
    (state.term, state.segment_size) = (term, size.0);
    state.gaps.extend(handed.gaps);
    state.gaps.dedup();
    let surplus = state.gaps.len().saturating_sub(PROBLEMS_MAX);
    state.gaps.drain(..surplus);
    if handed.reached != state.archived {
        (state.archived, state.archived_ms) = (handed.reached, Some(now_ms));
    }
    let late = |(_, since): &(String, u64)| now_ms.saturating_sub(*since) >= LATE_MS;
    state.failing = handed.waiting.filter(late).map(|(name, since)| {
        (since, format!("archive_command has not succeeded for {name}; the server's log says why (log/server.log)"))
    });
    state
}

fn speak(before: &ArchiveState, after: &ArchiveState) {
    match (&before.failing, &after.failing) {
        (None, Some((_, why))) => warn!(%why, "the log is not archived by the operator's command"),
        (Some(_), None) => info!("the log is archived by the operator's command again"),
        _ => {}
    }
    if before.term != after.term {
        info!(term = %after.term, reached = ?after.archived, "this server hands the log to archive_command");
    }
    for (first, last) in after.gaps.iter().filter(|gap| !before.gaps.contains(gap)) {
        warn!(first, last, "the log before the take-over was neither handed to archive_command nor is it here");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::Position;
    use mainstay_store::MemoryStore;

    fn at(timeline: u32, lsn: u64) -> Position {
        Position { timeline: Timeline(timeline), lsn: Lsn(lsn) }
    }

    #[tokio::test]
    async fn the_slot_goes_by_whichever_archive_is_furthest_behind() {
        let store = MemoryStore::new();
        let tell = async |key: &str, archived| {
            let revision = store.read(key, STORE_TIMEOUT).await.unwrap().map(|shown| shown.revision);
            let value = serde_json::to_vec(&ArchiveState { archived, ..ArchiveState::default() }).unwrap();
            assert!(matches!(store.compare_and_set(key, revision, value, STORE_TIMEOUT).await, CasOutcome::Done(_)));
        };
        let mut spec = crate::status::tests::spec();
        let held = |spec: &Spec| archived(spec, &store, Some(Timeline(2))).map(|lsn| lsn.0);
        assert_eq!(held(&spec), None);
        tell("archive", Some(at(2, 30))).await;
        tell(COMMAND_KEY, Some(at(2, 20))).await;
        spec.vault.repository = "/v".into();
        assert_eq!(held(&spec), Some(30));
        spec.postgres.archive_command = Some("push %p".into());
        assert_eq!(held(&spec), Some(20));
        tell(COMMAND_KEY, Some(at(1, 90))).await;
        assert_eq!(held(&spec), None, "of the timeline before");
    }

    #[test]
    fn a_term_counts_only_once_its_first_look_has_gone_well() {
        let before = ArchiveState { term: Term(3), archived: Some(at(1, 1 << 20)), ..ArchiveState::default() };
        let failed = after(before.clone(), Term(4), Err(VaultError::Server("no".into())), 5_000);
        assert_eq!((failed.term, failed.archived), (before.term, before.archived));
        assert_eq!(failed.failing.as_ref().map(|(since, _)| *since), Some(5_000));
        let waits =
            |since| Handed { reached: Some(at(2, 2 << 20)), waiting: Some(("X".into(), since)), ..Handed::default() };
        let found = |handed| Ok((SegmentSize(1 << 20), handed));
        let well = after(failed.clone(), Term(4), found(waits(9_000)), 10_000);
        assert_eq!((well.term, well.archived, well.failing), (Term(4), Some(at(2, 2 << 20)), None));
        let late = after(failed, Term(4), found(waits(9_000)), 9_000 + LATE_MS);
        let (since, why) = late.failing.unwrap();
        assert!(since == 9_000 && why.contains('X'), "{why}");
    }
}
