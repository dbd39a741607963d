//! What is wrong with the archive, with the backups, and with what proves them: drills that failed or are late, and a repository that nothing
//! bounds.

use super::{List, Look};
use crate::schedule;
use crate::shelves::{Shelf, place};
use mainstay_model::RepositoryName;
use mainstay_model::vault::{ArchiveState, BackupsOf, DrillDone};

/// So much log is archived without a word when nothing makes backups by itself. Bytes.
const UNBOUNDED: u64 = 8 << 30;

/// By so much a backup may be late. Milliseconds.
const LATE_MS: u64 = 3_600_000;
/// Trouble with the archive that passes sooner is not said. Milliseconds.
const ARCHIVE_MS: u64 = 30_000;
/// So many whole segments may wait.
const ARCHIVE_SEGMENTS: u64 = 8;

impl Look<'_> {
    pub(super) fn archive(&self, list: &mut List) {
        for shelf in &self.beside.shelves {
            let place = place(&shelf.vault);
            // Of a repository that is not in use any more nothing is said.
            if let Some(state) = shelf.told.as_ref().filter(|state| state.repository == place) {
                self.archive_in(shelf, state, list);
            }
        }
    }

    fn archive_in(&self, shelf: &Shelf, state: &ArchiveState, list: &mut List) {
        let end = self.primary.and_then(|primary| primary.observed.end);
        let behind = end.zip(state.archived).map_or(0, |(end, archived)| end.0.saturating_sub(archived.lsn.0));
        let waiting = behind / state.segment_size.max(1 << 20);
        if let Some((since, why)) = state
            .failing
            .as_ref()
            .filter(|(since, _)| self.beside.now_ms.saturating_sub(*since) > ARCHIVE_MS || waiting > ARCHIVE_SEGMENTS)
        {
            let hint = if shelf.optional {
                "mend what it says; it is optional, so the servers keep no log for it: it gets a gap, and needs a new backup then"
            } else {
                "mend what it says; the log waits on the servers as long as their volumes have room, then moments are lost to a restore"
            };
            let evidence = shelf.says(format!("the log is not archived: {why}"));
            list.dated(("archive-lagging", "warning"), evidence, hint, Some(*since));
        } else if waiting > ARCHIVE_SEGMENTS {
            let evidence = shelf.says(format!("{waiting} segments of the log wait to be archived ({behind} bytes)"));
            let hint = "is the repository slow, or full? `mainstay archive status` shows whether it catches up";
            list.add(("archive-lagging", "warning"), evidence, hint);
        }
        for problem in &state.problems {
            let hint = "nothing was overwritten; find out which server wrote the other content, make a new backup, then remove what was kept aside";
            list.add(("archive-conflict", "critical"), shelf.says(problem.clone()), hint);
        }
        for (first, last) in state.gaps.iter().chain(&state.given_up) {
            let evidence =
                shelf.says(format!("the log from {first} to {last} is neither archived nor on the primary any more"));
            let hint = format!(
                "moments after the hole need a backup that is newer than it (`{}`); a replica that has this log fills the hole by itself",
                shelf.typed("mainstay backup")
            );
            list.add(("archive-gap", "critical"), evidence, hint);
        }
    }

    pub(super) fn archive_command(&self, list: &mut List) {
        let state = self.beside.command.as_ref().filter(|_| self.spec.postgres.archive_command.is_some());
        let Some(state) = state else { return };
        if let Some((since, why)) = &state.failing {
            let hint = "run the command by hand as the servers' user; until it succeeds the log stays on the primary and fills its volume, unless the \
                        command itself gives up (pgBackRest: archive-push-queue-max)";
            list.dated(("archive-lagging", "warning"), why.clone(), hint, Some(*since));
        }
        for (first, last) in &state.gaps {
            let evidence = format!(
                "the log from {first} to {last} was not handed to archive_command by the primary before, and is not here"
            );
            let hint = "moments after the hole need a backup that is newer than it: make one with the tool that archives, then `mainstay set \
                        --unset postgres.archive_command` and setting it again ends this";
            list.add(("archive-gap", "critical"), evidence, hint);
        }
    }

    pub(super) fn backups(&self, list: &mut List) {
        // Without a repository the schedule is late all the same.
        if self.beside.shelves.is_empty() {
            self.backups_in(None, &self.beside.backup.of(&RepositoryName::main(), None, true), list);
        }
        for shelf in &self.beside.shelves {
            self.backups_in(Some(shelf), &shelf.backups(&self.beside.backup), list);
        }
    }

    fn backups_in(&self, shelf: Option<&Shelf>, of: &BackupsOf, list: &mut List) {
        let (running, now) = (self.beside.backup.running.as_ref(), self.beside.now_ms);
        let says = |text: String| shelf.map_or_else(|| text.clone(), |shelf| shelf.says(text.clone()));
        if let Some(made) = of.last.as_ref().filter(|made| made.corrupt > 0) {
            let evidence = says(format!(
                "the newest backup, {}, holds {} damaged blocks: the data of {} had them so",
                made.label, made.corrupt, made.node
            ));
            let hint = format!(
                "no backup is removed meanwhile; `mainstay verify` names the blocks. Are they whole on another node: make that one the primary, \
                 `mainstay reinit {}`; else restore a copy of before. Then make a full backup (`{}`)",
                made.node,
                backup(shelf)
            );
            list.dated(("backup-corrupt", "critical"), evidence, hint, Some(made.ended_ms));
        }
        self.unbounded(shelf, of, list);
        // One that runs now is the one that was missing, unless it is a drill, or is made in another repository.
        let here = running.filter(|running| !running.drill && running.to == shelf.and_then(Shelf::filed));
        let drill = running.filter(|running| running.drill);
        let vault = shelf.map_or(&self.spec.vault, |shelf| &shelf.vault);
        let due = schedule::due(vault, of, now).filter(|_| here.is_none());
        let Some((incremental, since)) = due.filter(|(_, at)| now.saturating_sub(*at) > LATE_MS) else { return };
        let kind = if incremental { "an incremental" } else { "a full" };
        let why = of.failed.as_ref().filter(|failed| failed.at_ms >= since);
        let why = why.map(|failed| format!(": the last attempt, on {}, failed: {}", failed.node, failed.why));
        let why = drill.map(|drill| format!(": a restore drill runs on {}", drill.node)).or(why);
        let evidence =
            says(format!("{kind} backup is due by the schedule and has not begun{}", why.unwrap_or_default()));
        let hint = format!("mend what it says; it is tried again by itself, and `{}` makes one now", backup(shelf));
        list.dated(("backup-overdue", "warning"), evidence, hint, Some(since));
    }

    /// Without a backup nothing can be restored, and nothing is ever removed from the repository.
    fn unbounded(&self, shelf: Option<&Shelf>, of: &BackupsOf, list: &mut List) {
        let Some(shelf) = shelf else { return };
        let scheduled = shelf.vault.full_at.is_some() || shelf.vault.incremental_at.is_some();
        let archived = shelf.told.as_ref().and_then(|archive| archive.archived).map_or(0, |at| at.lsn.0);
        let since = of.last.as_ref().map_or(0, |last| last.start.lsn.0);
        let log = archived.saturating_sub(since);
        let running = self.beside.backup.running.as_ref();
        if scheduled || running.is_some_and(|running| !running.drill) || log < UNBOUNDED {
            return;
        }
        let what = if of.last.is_some() {
            "since the last backup"
        } else {
            "and there is no backup of which it could be replayed"
        };
        let evidence = shelf.says(format!(
            "no schedule makes backups: {} GiB of log were archived {what}, and nothing is removed",
            log >> 30
        ));
        let hint = format!(
            "`mainstay set 'vault.full_at=0 2 * * 0'` (and vault.incremental_at), or `{}` now and then: vault.keep then bounds the repository",
            shelf.typed("mainstay backup")
        );
        list.add(("backup-unscheduled", "warning"), evidence, hint);
    }

    pub(super) fn drills(&self, list: &mut List) {
        let (state, now) = (&self.beside.backup, self.beside.now_ms);
        let again = "mainstay verify --drill";
        let several = self.beside.shelves.iter().filter(|shelf| !shelf.alone);
        let of_each = several.filter_map(|shelf| Some((shelf.backups(state).drill?, shelf.typed(again))));
        let mut last: Vec<(DrillDone, String)> = of_each.collect();
        if last.is_empty() {
            last.extend(state.drill.clone().map(|drill| (drill, again.to_owned())));
        }
        for (drill, again) in &last {
            let Some(why) = &drill.problem else { continue };
            let of = drill.repository.as_ref().map_or_else(String::new, |name| format!(" of {name}"));
            let on = drill.node.as_ref().map_or_else(String::new, |node| format!(" on {node}"));
            let evidence = format!("the last restore drill{of}{on} failed: {why}");
            let hint = format!(
                "until one passes nobody knows whether the backups can be restored: mend what it says, then `{again}`"
            );
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

/// What makes a backup there.
fn backup(shelf: Option<&Shelf>) -> String {
    shelf.map_or_else(|| "mainstay backup".to_owned(), |shelf| shelf.typed("mainstay backup"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problems::Beside;
    use crate::status::merge;
    use crate::status::tests::{answer, names, node, primary, spec};
    use mainstay_model::Lsn;
    use mainstay_model::spec::{Spec, Vault};
    use std::collections::BTreeMap;

    fn shelf(name: &str, told: ArchiveState) -> Shelf {
        let vault = Vault { repository: "/v".into(), ..Vault::default() };
        let name = RepositoryName::new(name).unwrap();
        Shelf { name, vault, optional: false, alone: true, told: Some(told) }
    }

    #[test]
    fn of_several_repositories_each_is_told_by_its_name() {
        let failing = |repository: &str| ArchiveState {
            repository: repository.to_owned(),
            id: repository.to_owned(),
            failing: Some((1, "no".to_owned())),
            gaps: vec![("a".to_owned(), "b".to_owned())],
            ..ArchiveState::default()
        };
        let mut near = Shelf { alone: false, ..shelf("near", ArchiveState::default()) };
        near.vault.full_at = Some("0 2 * * *".to_owned());
        let far = Shelf {
            name: RepositoryName::new("far").unwrap(),
            optional: true,
            told: Some(failing("/v")),
            ..near.clone()
        };
        let mut backup = mainstay_model::vault::BackupState::default();
        backup.note(&far.name, |of| {
            of.last_full = crate::schedule::tests::made(86_400_000 * 9);
            of.last_full.iter_mut().for_each(|made| made.repository = "/v".to_owned());
            of.drill = Some(DrillDone {
                problem: Some("gone".to_owned()),
                repository: Some(far.name.clone()),
                ..DrillDone::default()
            });
        });
        let beside = Beside { shelves: vec![near, far], backup, now_ms: 86_400_000 * 9, ..Beside::default() };
        let found = merge(&spec(), String::new(), &BTreeMap::new(), &beside).problems;
        let told = |name: &str| {
            let all: Vec<&str> =
                found.iter().filter(|found| found.name == name).map(|found| found.evidence.as_str()).collect();
            all.join("|")
        };
        assert_eq!(told("archive-lagging"), "far: the log is not archived: no");
        assert!(told("archive-gap").starts_with("far: the log from a to b is neither"), "{}", told("archive-gap"));
        assert_eq!(told("backup-overdue"), "near: a full backup is due by the schedule and has not begun");
        assert_eq!(told("drill-failed"), "the last restore drill of far failed: gone");
        let hint = |name: &str| found.iter().find(|found| found.name == name).unwrap().hint.clone();
        assert!(hint("archive-lagging").contains("it is optional") && hint("archive-gap").contains("--repository far"));
        assert!(hint("backup-overdue").contains("`mainstay backup --repository near`"), "{}", hint("backup-overdue"));
        assert!(
            hint("drill-failed").ends_with("`mainstay verify --drill --repository far`"),
            "{}",
            hint("drill-failed")
        );
    }

    #[test]
    fn trouble_with_the_operators_command_is_told_while_there_is_one() {
        use mainstay_model::vault::ArchiveState;
        let mut spec = spec();
        let state = ArchiveState {
            failing: Some((1, "the command fails".to_owned())),
            gaps: vec![("a".to_owned(), "b".to_owned())],
            ..ArchiveState::default()
        };
        let beside = Beside { command: Some(state), now_ms: 100_000, ..Beside::default() };
        let first = primary();
        let answers = [(first.node.clone(), first), (node("db2"), answer("db2", "replica", "streaming"))].into();
        let told = |spec: &Spec| {
            let found = merge(spec, String::new(), &answers, &beside);
            names(&found).into_iter().filter(|name| name.starts_with("archive")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(told(&spec).is_empty());
        spec.postgres.archive_command = Some("tool %p".into());
        let mut told = told(&spec);
        told.sort();
        assert_eq!(told, ["archive-gap", "archive-lagging"]);
    }

    #[test]
    fn trouble_with_the_archive_is_told() {
        let spec = spec();
        let told = |state: ArchiveState, end: u64| {
            let mut first = primary();
            first.observed.end = Some(Lsn(end));
            let answers = [(first.node.clone(), first), (node("db2"), answer("db2", "replica", "streaming"))].into();
            let beside = Beside { shelves: vec![shelf("main", state)], now_ms: 100_000, ..Beside::default() };
            let found = merge(&spec, String::new(), &answers, &beside);
            let names = names(&found).into_iter().filter(|name| name.starts_with("archive"));
            names.map(str::to_owned).collect::<Vec<_>>()
        };
        let archived = Some(mainstay_model::Position { timeline: mainstay_model::Timeline(1), lsn: Lsn(0) });
        let good =
            ArchiveState { repository: "/v".to_owned(), segment_size: 1 << 20, archived, ..ArchiveState::default() };
        assert!(told(good.clone(), 8 << 20).is_empty());
        assert_eq!(told(good.clone(), 10 << 20), ["archive-lagging"]);
        let failing = |since| ArchiveState { failing: Some((since, "no".to_owned())), ..good.clone() };
        assert!(told(failing(99_000), 0).is_empty(), "a second is no trouble");
        assert_eq!(told(failing(99_000), 10 << 20), ["archive-lagging"]);
        assert_eq!(told(failing(9_000), 0), ["archive-lagging"]);
        let hole = Some(("a".to_owned(), "b".to_owned()));
        let bad = ArchiveState {
            problems: vec!["two".to_owned()],
            given_up: hole.clone(),
            gaps: hole.into_iter().collect(),
            ..good.clone()
        };
        assert_eq!(told(bad.clone(), 0), ["archive-conflict", "archive-gap", "archive-gap"]);
        assert!(told(ArchiveState { repository: "/old".to_owned(), ..bad }, 0).is_empty(), "it is in use no more");
    }

    #[test]
    fn a_backup_that_is_late_is_told_with_the_reason() {
        use mainstay_model::vault::{BackupFailed, BackupState};
        let mut spec = spec();
        spec.vault.full_at = Some("0 2 * * *".to_owned());
        let failed = BackupFailed {
            token: 1,
            node: node("db2"),
            incremental: false,
            to: None,
            at_ms: 86_400_000 * 9,
            why: "no room".to_owned(),
        };
        let backup = BackupState { failed: Some(failed), ..BackupState::default() };
        let told = |now_ms| {
            let beside = Beside { backup: backup.clone(), now_ms, ..Beside::default() };
            let found = merge(&spec, String::new(), &BTreeMap::new(), &beside).problems;
            found.into_iter().find(|problem| problem.name == "backup-overdue").map(|problem| problem.evidence)
        };
        let hour = 3_600_000;
        let at = |day: u64, hours: u64| day * 24 * hour + hours * hour;
        assert_eq!(told(at(8, 3)), None, "an hour is no trouble");
        let late = told(at(8, 4)).unwrap();
        assert!(late.contains("full backup is due") && late.contains("no room"), "{late}");
    }

    #[test]
    fn damage_in_the_newest_backup_is_told() {
        use mainstay_model::vault::BackupState;
        let told = |corrupt| {
            let last =
                crate::schedule::tests::made(1).map(|made| mainstay_model::vault::BackupMade { corrupt, ..made });
            let beside = Beside { backup: BackupState { last, ..BackupState::default() }, ..Beside::default() };
            let found = merge(&spec(), String::new(), &BTreeMap::new(), &beside).problems;
            found.into_iter().find(|problem| problem.name == "backup-corrupt")
        };
        assert_eq!(told(0), None);
        let damaged = told(3).unwrap();
        assert_eq!(damaged.severity, "critical");
        assert!(damaged.evidence.contains("holds 3 damaged blocks"), "{}", damaged.evidence);
    }
}
