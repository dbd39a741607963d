//! What is kept, and why: pure arithmetic over what a repository holds.
//!
//! A backup is kept for a reason; a segment of the log is kept because a kept backup needs it to be consistent, or because it leads on from
//! the oldest kept one. Nothing is removed that has a reason, nothing of another database is looked at, and no name's order decides.

use crate::objects::{Key, Removal};
use crate::postgres::archive::{Held, lineage};
use crate::postgres::backup;
use crate::postgres::log::{LogFile, SegmentSize, segments};
use crate::postgres::manifest::Manifest;
use crate::repository::{Repository, VaultError};
use mainstay_model::{Lineage, Lsn, SystemId, Timeline};
use std::collections::{BTreeMap, BTreeSet};

/// What to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The newest so many backups; at least one is kept always.
    pub count: usize,
    /// Backups not older than this, and the one before them, so that every moment of this span can be restored. Microseconds.
    pub span: Option<i64>,
}

impl Policy {
    /// What the specification says is to be kept.
    #[must_use]
    pub fn of(vault: &mainstay_model::spec::Vault) -> Policy {
        let days = i64::try_from(vault.keep_days).unwrap_or(i64::MAX);
        let span = days.saturating_mul(86_400_000_000);
        Policy { count: usize::try_from(vault.keep).unwrap_or(usize::MAX), span: (days > 0).then_some(span) }
    }
}

/// Why an object is kept, or that it is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Each kept backup, with its reasons.
    pub kept: BTreeMap<String, Vec<String>>,
    /// Backups that nothing keeps.
    pub removed: BTreeSet<String>,
    /// Segments that nothing keeps. Histories are always kept.
    pub log: BTreeSet<LogFile>,
    /// Backups that can not be read: they stay, with what they may need.
    pub damaged: Vec<String>,
}

/// Decides over the backups of one database, oldest first, and its log. `lineages` holds the path to each timeline; `damaged` are the names of
/// backups that can not be read.
pub fn judge(
    policy: Policy,
    now: i64,
    backups: &[Manifest],
    held: &Held,
    (lineages, damaged): (&BTreeMap<Timeline, Lineage>, &[String]),
) -> Result<Verdict, VaultError> {
    let mut verdict = Verdict { damaged: damaged.to_vec(), ..Verdict::default() };
    let mut keep = |backup: &Manifest, why: String| verdict.kept.entry(backup.label.clone()).or_default().push(why);
    let count = policy.count.max(1);
    // A backup on a branch that a restore in place left counts for nothing, and stays until as many newer ones lie on the present path: neither
    // history is thinned out by the other's backups.
    // Timelines only rise, so that the highest one is the present.
    let present = backups.iter().map(|backup| backup.stop.timeline).max().unwrap_or_default();
    let path = lineages.get(&present).cloned().unwrap_or_default();
    let (on_path, left): (Vec<&Manifest>, Vec<&Manifest>) =
        backups.iter().partition(|backup| path.contains(backup.stop, present, Lsn(u64::MAX)));
    for (place, backup) in on_path.iter().rev().take(count).enumerate() {
        keep(backup, format!("number {} of the newest {count}", place + 1));
    }
    for backup in left {
        let newer = on_path.iter().filter(|other| other.stop.timeline > backup.stop.timeline).count();
        if newer < count {
            keep(backup, "of a history that was left, and not old enough yet".to_owned());
        }
    }
    if let Some(damaged) = damaged.iter().min() {
        // Names begin with the time. The last two full ones before it: clocks of two hosts may differ.
        let before = backups.iter().filter(|backup| backup.base.is_none() && backup.label < *damaged);
        let mut before: Vec<&Manifest> = before.collect();
        before.sort_by(|left, right| right.label.cmp(&left.label));
        for backup in before.into_iter().take(2) {
            keep(backup, format!("{damaged} can not be read, and may be made on top of it"));
        }
        // All after it may be needed as well.
        for backup in backups.iter().filter(|backup| backup.label > *damaged) {
            keep(backup, format!("{damaged} can not be read, and is older"));
        }
    }
    if let Some(span) = policy.span {
        let horizon = now.saturating_sub(span);
        backups.iter().filter(|b| b.ended > horizon).for_each(|b| keep(b, "younger than the span to keep".into()));
        let before = backups.iter().filter(|b| b.ended <= horizon).max_by_key(|b| b.ended);
        before.into_iter().for_each(|b| keep(b, "moments at the beginning of the span need it".into()));
    }
    for backup in backups.iter().filter(|b| verdict.kept.contains_key(&b.label)).collect::<Vec<_>>() {
        if let Some(base) = &backup.base {
            let why = format!("{} is made on top of it", backup.label);
            verdict.kept.entry(base.label.clone()).or_default().push(why);
        }
    }
    let (kept, removed): (Vec<_>, Vec<_>) = backups.iter().partition(|b| verdict.kept.contains_key(&b.label));
    verdict.removed = removed.into_iter().map(|b| b.label.clone()).collect();
    let Some(size) = kept.first().map(|b| SegmentSize(b.server.segment_size)) else { return Ok(verdict) };
    let mut needed = BTreeSet::new();
    for backup in &kept {
        let left = lineages.get(&backup.stop.timeline).cloned().unwrap_or_default();
        let own = segments(size, backup.start, backup.stop, &left).map_err(VaultError::Impossible)?;
        needed.extend(own.into_iter().map(|(timeline, number)| LogFile::Segment(timeline, number)));
    }
    // From the oldest kept backup on, everything: any later moment, on whatever branch, may be asked for.
    let oldest = kept.iter().map(|b| size.holding(b.start.lsn)).min().unwrap_or(0);
    let goes = |file: &&LogFile| match file {
        LogFile::Segment(_, number) | LogFile::Partial(_, number) => *number < oldest && !needed.contains(*file),
        LogFile::History(_) => false,
    };
    verdict.log = held.files.iter().filter(goes).copied().collect();
    // Where its log begins is known only to be after the backup before it.
    if damaged.iter().min().is_some_and(|damaged| !kept.iter().any(|backup| backup.label < *damaged)) {
        verdict.log.clear();
    }
    Ok(verdict)
}

/// Asks a repository what a policy would remove.
pub fn examine(repository: &Repository, system: SystemId, policy: Policy, now: i64) -> Result<Verdict, VaultError> {
    let (backups, unreadable) = backup::readable(repository, system)?;
    let Some(newest) = backups.last() else {
        // Nothing is known of what one that can not be read needs.
        return unreadable.into_iter().next().map_or_else(|| Ok(Verdict::default()), Err);
    };
    let damaged = if unreadable.is_empty() { Vec::new() } else { damaged(repository, system, &backups)? };
    let size = SegmentSize(newest.server.segment_size);
    let held = Held::list(repository, system, size)?;
    let mut lineages = BTreeMap::new();
    for timeline in backups.iter().map(|backup| backup.stop.timeline) {
        lineages.insert(timeline, lineage(repository, system, size, timeline)?);
    }
    judge(policy, now, &backups, &held, (&lineages, &damaged))
}

/// The names of backups that have a manifest and are not among these.
fn damaged(repository: &Repository, system: SystemId, read: &[Manifest]) -> Result<Vec<String>, VaultError> {
    let prefix = format!("backups/{system}/");
    let entries = repository.objects().list(&prefix)?;
    let manifests = entries.iter().filter(|entry| entry.key.last() == "manifest");
    let labels = manifests.filter_map(|entry| entry.key.as_str().strip_prefix(&prefix)?.split('/').next());
    Ok(labels.filter(|label| !read.iter().any(|backup| backup.label == *label)).map(str::to_owned).collect())
}

/// What the store keeps although nothing of ours does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spared {
    /// Backups, whole or in part.
    pub backups: BTreeSet<String>,
    /// Segments of the log.
    pub log: usize,
}

/// Removes what a verdict names: of a backup the manifest first, so that what is half removed is no backup. What the store keeps by a rule of its own is
/// no error: it is tried again when the retention is applied the next time.
pub fn remove(
    repository: &Repository,
    system: SystemId,
    size: SegmentSize,
    verdict: &Verdict,
) -> Result<Spared, VaultError> {
    let objects = repository.objects();
    let mut spared = Spared::default();
    for label in &verdict.removed {
        let manifest = Key::new(format!("backups/{system}/{label}/manifest"))?;
        if objects.delete(&manifest)? == Removal::Kept {
            // Its packs are older, and the store may let go of them already: it would be a backup without its content.
            spared.backups.insert(label.clone());
            continue;
        }
        for entry in objects.list(&format!("backups/{system}/{label}/"))? {
            if objects.delete(&entry.key)? == Removal::Kept {
                spared.backups.insert(label.clone());
            }
        }
    }
    // The oldest first: what a removal that broke off leaves has no hole.
    let mut log: Vec<&LogFile> = verdict.log.iter().collect();
    log.sort_by_key(|file| match file {
        LogFile::Segment(_, number) | LogFile::Partial(_, number) => *number,
        LogFile::History(_) => u64::MAX,
    });
    for (at, file) in log.iter().enumerate() {
        if objects.delete(&size.key(system, **file)?)? == Removal::Kept {
            spared.log = log.len() - at;
            break;
        }
    }
    Ok(spared)
}

/// Backups that were begun and never became one: no manifest, and nothing written since `before` (milliseconds since 1970). Choose it older
/// than the longest backup takes, for one that another host is making looks the same.
pub fn unfinished(repository: &Repository, system: SystemId, before: u64) -> Result<BTreeSet<String>, VaultError> {
    let prefix = format!("backups/{system}/");
    let mut labels: BTreeMap<String, Vec<Key>> = BTreeMap::new();
    for entry in repository.objects().list(&prefix)? {
        let label = entry.key.as_str().strip_prefix(&prefix).and_then(|rest| rest.split('/').next());
        labels.entry(label.unwrap_or_default().to_owned()).or_default().push(entry.key);
    }
    labels.retain(|_, keys| keys.iter().all(|key| key.last() != "manifest"));
    let mut found = BTreeSet::new();
    for (label, keys) in labels {
        let newest =
            keys.iter().map(|key| Ok(repository.check(key)?.written)).collect::<Result<Vec<_>, VaultError>>()?;
        if newest.iter().all(|written| *written < before) {
            found.insert(label);
        }
    }
    Ok(found)
}

/// Removes what processes that are gone left half-written longer ago than this; says how many pieces.
pub fn sweep(repository: &Repository, age: std::time::Duration) -> Result<usize, VaultError> {
    Ok(repository.objects().sweep_unfinished(age)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::manifest::Server;
    use mainstay_model::Position;

    const SIZE: u64 = 1 << 20;

    fn backup(label: &str, timeline: u32, first: u64, last: u64, ended: i64) -> Manifest {
        let at = |number: u64| Position { timeline: Timeline(timeline), lsn: Lsn(number * SIZE + 100) };
        Manifest {
            format: 1,
            label: label.into(),
            system: SystemId(1),
            server: Server { segment_size: SIZE, ..Server::default() },
            start: at(first),
            stop: at(last),
            began: ended - 1,
            ended,
            backup_label: String::new(),
            tablespace_map: String::new(),
            tablespaces: BTreeMap::new(),
            directories: Vec::new(),
            files: Vec::new(),
            packs: Vec::new(),
            extents: Vec::new(),
            base: None,
            corrupt: Vec::new(),
        }
    }

    fn held() -> Held {
        let mut files: BTreeSet<LogFile> = (0..100).map(|n| LogFile::Segment(Timeline(1), n)).collect();
        files.extend((60..120).map(|n| LogFile::Segment(Timeline(2), n)));
        files.extend([LogFile::History(Timeline(2)), LogFile::Partial(Timeline(1), 5)]);
        Held { files }
    }

    fn decide(count: usize, span: Option<i64>, backups: &[Manifest]) -> Verdict {
        let fork = Position { timeline: Timeline(1), lsn: Lsn(60 * SIZE + 5) };
        let lineages = BTreeMap::from([(Timeline(1), Lineage::default()), (Timeline(2), Lineage(vec![fork]))]);
        judge(Policy { count, span }, 1_000, backups, &held(), (&lineages, &[])).unwrap()
    }

    #[test]
    fn p34_one_that_can_not_be_read_keeps_what_it_may_need_and_no_more() {
        let day = |day: u64| format!("202611{:02}T000000-000000", day);
        let backups: Vec<Manifest> = (1..9).map(|at| backup(&day(at), 1, at * 10, at * 10 + 1, 100)).collect();
        let lineages = BTreeMap::from([(Timeline(1), Lineage::default())]);
        let decide = |damaged: &[String]| {
            judge(Policy { count: 1, span: None }, 1_000, &backups, &held(), (&lineages, damaged)).unwrap()
        };
        let removed = |verdict: &Verdict| verdict.removed.iter().cloned().collect::<Vec<_>>();
        assert_eq!(removed(&decide(&[])).len(), 7);
        let verdict = decide(&["20261105T120000-000000".to_owned()]);
        assert_eq!(removed(&verdict), [day(1), day(2), day(3)], "{verdict:?}");
        assert!(
            verdict
                .log
                .iter()
                .all(|file| matches!(file, LogFile::Segment(_, at) | LogFile::Partial(_, at) if *at < 40))
        );
        assert!(verdict.log.contains(&LogFile::Segment(Timeline(1), 39)));
        // Nothing is known of what came before the first one.
        let verdict = decide(&["20261031T120000-000000".to_owned()]);
        assert!(verdict.removed.is_empty() && verdict.log.is_empty(), "{verdict:?}");
    }

    #[test]
    fn what_never_became_a_backup_is_removed_when_it_is_old_and_a_young_one_is_left_alone() {
        let memory = std::sync::Arc::new(crate::objects::Memory::default());
        let repository = Repository::create(memory, &[]).unwrap();
        for name in ["whole/pack-000000", "whole/manifest", "broken/pack-000000", "broken/pack-000001"] {
            let key = Key::new(format!("backups/7/{name}")).unwrap();
            repository.put(&key, crate::Header::default(), b"content").unwrap();
        }
        let now = mainstay_ports::clock::wall_now_ms();
        assert!(unfinished(&repository, SystemId(7), now - 60_000).unwrap().is_empty());
        let removed = unfinished(&repository, SystemId(7), now + 60_000).unwrap();
        assert_eq!(removed, ["broken".to_owned()].into());
        let verdict = Verdict { removed, ..Verdict::default() };
        remove(&repository, SystemId(7), SegmentSize(SIZE), &verdict).unwrap();
        let left = repository.objects().list("backups/").unwrap();
        assert_eq!(left.len(), 2);
        assert!(left.iter().all(|entry| entry.key.as_str().contains("/whole/")));
    }

    #[test]
    fn what_the_store_keeps_by_its_own_rule_is_told_and_goes_the_next_time() {
        let memory = crate::objects::Memory::default();
        let repository = Repository::create(std::sync::Arc::new(memory.clone()), &[]).unwrap();
        let size = SegmentSize(SIZE);
        let key = |name: &str| Key::new(format!("backups/7/{name}")).unwrap();
        let log = |number| LogFile::Segment(Timeline(1), number);
        let segment = |number| size.key(SystemId(7), log(number)).unwrap();
        let backups = ["old/pack-000000", "old/manifest", "older/pack-000000", "older/manifest"].map(key);
        for key in backups.iter().cloned().chain((0..6).map(segment)) {
            repository.put(&key, crate::Header::default(), b"content").unwrap();
        }
        let removed = BTreeSet::from(["old".to_owned(), "older".to_owned()]);
        let verdict = Verdict { removed, log: (0..6).map(log).collect(), ..Verdict::default() };
        let left = || {
            let all = [repository.objects().list("backups/").unwrap(), repository.objects().list("log/").unwrap()];
            all.map(|entries| entries.len())
        };
        // By age: the pack is older than its manifest, and the store would let go of it.
        memory.keep([key("old/manifest"), segment(2), segment(4)]);
        let spared = remove(&repository, SystemId(7), size, &verdict).unwrap();
        assert_eq!(spared, Spared { backups: ["old".to_owned()].into(), log: 4 });
        assert_eq!(left(), [2, 4], "the one that is kept is whole, and the log has no hole");
        // Removed in part: its rest is no backup any more.
        memory.keep([key("old/pack-000000")]);
        let spared = remove(&repository, SystemId(7), size, &verdict).unwrap();
        assert_eq!(spared, Spared { backups: ["old".to_owned()].into(), log: 0 });
        assert_eq!(left(), [1, 0]);
        memory.keep([]);
        assert_eq!(remove(&repository, SystemId(7), size, &verdict).unwrap(), Spared::default());
        assert_eq!(left(), [0, 0]);
    }

    #[test]
    fn p32_a_kept_backup_keeps_the_one_on_which_it_is_made() {
        let mut backups = [backup("a", 1, 10, 12, 100), backup("b", 1, 40, 41, 400), backup("c", 2, 80, 82, 800)];
        backups[2].base = Some(crate::postgres::manifest::Base { label: "a".into(), packs: Vec::new() });
        let verdict = decide(1, None, &backups);
        assert_eq!(verdict.removed, ["b".to_owned()].into());
        assert_eq!(verdict.kept["a"], ["c is made on top of it"]);
    }

    #[test]
    fn p34_backups_of_a_history_that_was_left_thin_out_no_other() {
        // Restored in place to a moment of segment 60, after two backups were made that lie behind it.
        let mut backups =
            vec![backup("a", 1, 10, 12, 100), backup("void", 1, 70, 71, 400), backup("void-too", 1, 80, 81, 500)];
        // In the order of the log it stands before those.
        backups.insert(1, backup("b", 2, 62, 63, 600));
        let verdict = decide(2, None, &backups);
        assert!(verdict.removed.is_empty(), "the present history has two: {verdict:?}");
        assert_eq!(verdict.kept["a"], ["number 2 of the newest 2"]);
        assert!(verdict.kept["void"][0].contains("a history that was left"));
        backups.push(backup("c", 2, 90, 91, 700));
        let verdict = decide(2, None, &backups);
        let removed: Vec<&str> = verdict.removed.iter().map(String::as_str).collect();
        assert_eq!(removed, ["a", "void", "void-too"]);
        assert_eq!(verdict.kept["b"], ["number 2 of the newest 2"]);
    }

    #[test]
    fn p34_every_kept_backup_keeps_its_log_and_all_that_follows() {
        let backups = [backup("a", 1, 10, 12, 100), backup("b", 1, 40, 41, 400), backup("c", 2, 80, 82, 800)];
        for count in 0..=4 {
            for span in [None, Some(0), Some(250), Some(650), Some(10_000)] {
                let verdict = decide(count, span, &backups);
                assert!(!verdict.kept.is_empty(), "never below one");
                let first = backups.iter().find(|b| verdict.kept.contains_key(&b.label)).unwrap();
                let from = first.start.lsn.0 / SIZE;
                for file in &verdict.log {
                    let (LogFile::Segment(_, number) | LogFile::Partial(_, number)) = file else { panic!("{file:?}") };
                    assert!(*number < from, "{count} {span:?} {file:?}");
                }
                assert_eq!(verdict.kept.len() + verdict.removed.len(), 3);
                if span == Some(650) {
                    assert!(verdict.kept.contains_key("a"), "the moments from 350 on need the backup before");
                }
            }
        }
        let verdict = decide(1, None, &backups);
        assert_eq!(verdict.removed, ["a".to_owned(), "b".to_owned()].into());
        assert!(verdict.log.contains(&LogFile::Partial(Timeline(1), 5)));
        assert!(!verdict.log.contains(&LogFile::History(Timeline(2))), "p15: histories stay for ever");
        assert!(verdict.kept["c"][0].contains("number 1 of the newest 1"));
    }
}
