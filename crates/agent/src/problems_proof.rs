//! What is wrong with the archive, and with what proves the backups: drills that failed or are late, and a repository that nothing bounds.

use super::{LATE_MS, List, Look};
use crate::schedule;

/// So much log is archived without a word when nothing makes backups by itself. Bytes.
const UNBOUNDED: u64 = 8 << 30;

/// Trouble with the archive that passes sooner is not said. Milliseconds.
const ARCHIVE_MS: u64 = 30_000;
/// So many whole segments may wait.
const ARCHIVE_SEGMENTS: u64 = 8;

impl Look<'_> {
    pub(super) fn archive(&self, list: &mut List) {
        let place = self.spec.vault.repository.as_ref().map(|place| place.display().to_string());
        // Of a repository that is not in use any more nothing is said.
        let Some(state) = self.beside.archive.as_ref().filter(|state| Some(&state.repository) == place.as_ref()) else {
            return;
        };
        let end = self.primary.and_then(|primary| primary.observed.end);
        let behind = end.zip(state.archived).map_or(0, |(end, archived)| end.0.saturating_sub(archived.lsn.0));
        let waiting = behind / state.segment_size.max(1 << 20);
        if let Some((since, why)) = state
            .failing
            .as_ref()
            .filter(|(since, _)| self.beside.now_ms.saturating_sub(*since) > ARCHIVE_MS || waiting > ARCHIVE_SEGMENTS)
        {
            let hint = "mend what it says; the log waits on the servers as long as their volumes have room, then moments are lost to a restore";
            list.dated(("archive-lagging", "warning"), format!("the log is not archived: {why}"), hint, Some(*since));
        } else if waiting > ARCHIVE_SEGMENTS {
            let evidence = format!("{waiting} segments of the log wait to be archived ({behind} bytes)");
            let hint = "is the repository slow, or full? `mainstay archive status` shows whether it catches up";
            list.add(("archive-lagging", "warning"), evidence, hint);
        }
        for problem in &state.problems {
            let hint = "nothing was overwritten; find out which server wrote the other content, make a new backup, then remove what was kept aside";
            list.add(("archive-conflict", "critical"), problem.clone(), hint);
        }
        for (first, last) in state.gaps.iter().chain(&state.given_up) {
            let evidence = format!("the log from {first} to {last} is neither archived nor on the primary any more");
            let hint = "moments after the hole need a backup that is newer than it; a replica that has this log fills the hole by itself";
            list.add(("archive-gap", "critical"), evidence, hint);
        }
    }

    /// Without a backup nothing can be restored, and nothing is ever removed from the repository.
    pub(super) fn unbounded(&self, list: &mut List) {
        let (state, vault) = (&self.beside.backup, &self.spec.vault);
        let scheduled = vault.full_at.is_some() || vault.incremental_at.is_some();
        let archived = self.beside.archive.as_ref().and_then(|archive| archive.archived).map_or(0, |at| at.lsn.0);
        let since = state.last.as_ref().map_or(0, |last| last.start.lsn.0);
        let log = archived.saturating_sub(since);
        if vault.repository.is_none()
            || scheduled
            || state.running.as_ref().is_some_and(|running| !running.drill)
            || log < UNBOUNDED
        {
            return;
        }
        let what = if state.last.is_some() {
            "since the last backup"
        } else {
            "and there is no backup of which it could be replayed"
        };
        let evidence =
            format!("no schedule makes backups: {} GiB of log were archived {what}, and nothing is removed", log >> 30);
        let hint = "`mainstay set 'vault.full_at=0 2 * * 0'` (and vault.incremental_at), or `mainstay backup` now and then: vault.keep then bounds the repository";
        list.add(("backup-unscheduled", "warning"), evidence, hint);
    }

    pub(super) fn drills(&self, list: &mut List) {
        let (state, now) = (&self.beside.backup, self.beside.now_ms);
        if let Some((drill, why)) = state.drill.as_ref().and_then(|drill| Some((drill, drill.problem.as_ref()?))) {
            let on = drill.node.as_ref().map_or_else(String::new, |node| format!(" on {node}"));
            let evidence = format!("the last restore drill{on} failed: {why}");
            let hint = "until one passes nobody knows whether the backups can be restored: mend what it says, then `mainstay verify --drill`";
            list.dated(("drill-failed", "critical"), evidence, hint, Some(drill.ended_ms));
        }
        let due = schedule::drill_due(&self.spec.vault, state, now).filter(|_| state.running.is_none());
        let Some(since) = due.filter(|at| now.saturating_sub(*at) > LATE_MS) else { return };
        let cut = state.drill_cut.as_ref().filter(|cut| cut.ended_ms >= since).and_then(|cut| cut.problem.as_ref());
        let evidence = cut.map_or_else(
            || "a restore drill is due by the schedule and has not begun".to_owned(),
            |why| format!("a restore drill is due by the schedule; the last attempt was cut off: {why}"),
        );
        let hint = "`mainstay archive status` shows what goes on; `mainstay verify --drill` holds one now";
        list.dated(("drill-overdue", "warning"), evidence, hint, Some(since));
    }
}
