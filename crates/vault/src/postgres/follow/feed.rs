//! Brings the log from the repository into the folder from which the copy's server takes it, and only that: what, `step.rs` decides.
//!
//! Whatever hangs in the repository is left behind after a bound, and asked again only when it has answered (`look.rs`).

use super::step::{Segment, Step, Trouble, View, step};
use super::{Mark, SIGNAL, TAKEN};
use crate::postgres::archive::{Held, lineage};
use crate::postgres::log::{LogFile, check_segment};
use crate::postgres::look::within;
use crate::postgres::place::{NEW, Place};
use crate::postgres::restore::LOG_DIR;
use crate::repository::{Repository, VaultError};
use mainstay_model::{Lineage, Lsn, Room, SystemId, Timeline};
use mainstay_ports::clock::wall_now_ms;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One look at the repository may take so long.
const LOOK: Duration = Duration::from_secs(120);
/// The same for each MiB of a segment: no line is slower than a megabit a second.
const LOOK_EACH: Duration = Duration::from_secs(8);
/// So many segments are fetched before it is looked again where the server is.
const BATCH: usize = 8;
/// What may lie ahead of the server, bytes; two segments at least.
const AHEAD: u64 = 512 << 20;
/// A listing counts for so long.
const FRESH: Duration = Duration::from_secs(2);
/// Listing takes a part of the time only, one in so many.
const SHARE: u32 = 10;
/// It is listed once in so long in any case.
const FRESH_MOST: Duration = Duration::from_secs(60);
/// A segment that is missing may be on its way for so long.
const ON_ITS_WAY: Duration = Duration::from_secs(180);
/// A server that does not answer, and takes nothing of what lies there, may have passed it in its own log: after so long more is fetched.
const STRETCH: Duration = Duration::from_secs(60);
const STRETCH_MOST: u32 = 4;
/// So long after a segment was taken away a server waits for more that had just begun to take it: then it has replayed what it took.
const WITHDRAWN: Duration = Duration::from_secs(5);

/// Where the server is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Before this it asks for nothing any more.
    pub needed: Lsn,
    /// Up to where it has replayed; `None`: it can not be asked.
    pub replayed: Option<Lsn>,
    /// There is one at all.
    pub runs: bool,
    /// It had replayed all that lay here, and waited for more, when it was asked then.
    pub waited: Option<Instant>,
}

/// What a round came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fed {
    /// In the archive the log reaches to here without a hole.
    pub reaches: Lsn,
    /// On this timeline.
    pub timeline: Timeline,
    /// The newest timeline of which the archive holds anything.
    pub newest: Timeline,
    /// How long its segments are.
    pub segment_size: u64,
    /// When the archive was listed, milliseconds since 1970.
    pub listed_ms: u64,
    /// Segments fetched in this round.
    pub fetched: usize,
    /// There is nothing to fetch now.
    pub idle: bool,
    /// All that it is to have now lies here, and nothing is missing behind it.
    pub whole: bool,
    /// Why it does not go on.
    pub trouble: Option<String>,
    /// There is no room for more: that may change.
    pub full: bool,
    /// Only a new copy mends that.
    pub left: bool,
}

/// What the archive holds.
struct Listed {
    repository: Repository,
    held: Held,
    paths: BTreeMap<Timeline, Lineage>,
    /// A history that can not be read.
    damaged: Option<String>,
    at: Instant,
    at_ms: u64,
    took: Duration,
}

impl Listed {
    fn counts(&self) -> bool {
        self.at.elapsed() < (self.took * SHARE).clamp(FRESH, FRESH_MOST)
    }
}

/// Feeds one copy.
pub struct Feed {
    /// What the copy is.
    pub mark: Mark,
    data: PathBuf,
    log: PathBuf,
    user: Option<(u32, u32)>,
    listed: Option<Listed>,
    hole: Option<(String, Instant)>,
    withdrawn: Option<Instant>,
    /// How often the bound was doubled, and when it was looked last whether that is needed.
    stretch: (u32, Instant),
    /// The histories after this timeline are not all offered yet, although it was noted.
    owed: Option<Timeline>,
}

impl Feed {
    /// Of a copy in this directory, which belongs to this user.
    #[must_use]
    pub fn new(mark: Mark, data: &Path, user: Option<(u32, u32)>) -> Feed {
        Feed {
            mark,
            data: data.to_owned(),
            log: data.join(LOG_DIR),
            user,
            listed: None,
            hole: None,
            withdrawn: None,
            stretch: (0, Instant::now()),
            owed: None,
        }
    }

    /// Offers what must be there before a server starts: the histories of all numbers up to its timeline. One that is missing would be taken for the end.
    ///
    /// # Errors
    /// When the copy can not be written to.
    pub fn prepare(&self) -> Result<(), VaultError> {
        if self.data.join(SIGNAL).symlink_metadata().is_err() {
            return Err(VaultError::Impossible(format!("{} follows no more: it was promoted", self.data.display())));
        }
        // Numbers that were kept for a promotion which broke off lead nowhere, and a server would not start with them.
        let own = self.data.join("pg_wal");
        let own = Place::open(&own, self.user)?;
        for name in own.names()? {
            if matches!(self.mark.size().parse(&name), Some(LogFile::History(timeline)) if timeline > self.mark.timeline)
            {
                own.remove(&name)?;
            }
        }
        let place = Place::open(&self.log, self.user)?;
        // It begins anew with what it takes.
        place.remove(TAKEN)?;
        let there: BTreeSet<String> = place.names()?.into_iter().collect();
        self.offer_histories(&place, self.mark.start.timeline, |name| !there.contains(name))
    }

    /// The newest first: the server looks for them in turn, and finds all or none.
    fn offer_histories(
        &self,
        place: &Place<'_>,
        after: Timeline,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(), VaultError> {
        for number in (after.0.saturating_add(1)..=self.mark.timeline.0).rev().map(Timeline) {
            let name = self.mark.size().file_name(LogFile::History(number));
            if wanted(&name) {
                // A placeholder's content says nothing: it need not be on the disk.
                place.whole(&name, self.mark.history_of(number).as_bytes(), number == self.mark.timeline)?;
            }
        }
        Ok(())
    }

    /// One round. Blocks, within bounds.
    ///
    /// # Errors
    /// When the repository can not be read, or the folder not be written to. The next round tries again.
    pub fn round(&mut self, seen: Seen) -> Result<Fed, VaultError> {
        let listed = match self.listed.take().filter(Listed::counts) {
            Some(listed) => listed,
            None => self.list()?,
        };
        let log = self.log.clone();
        let place = Place::open(&log, self.user)?;
        self.pay(&place)?;
        let offered = self.offered(&place)?;
        let path = self.mark.path()?;
        let size = self.mark.size();
        let seen = Seen { needed: seen.needed.max(self.taken(&place, seen)?), ..seen };
        let next = step(&View {
            size,
            held: &listed.held,
            paths: &listed.paths,
            on: (self.mark.timeline, &path),
            needed: seen.needed,
            replayed: seen.replayed,
            offered: &offered,
            ahead: (AHEAD / size.0.max(1)).max(2) << self.stretch.0,
        });
        self.stretch(seen, &next);
        self.remove(&place, &next, size.holding(seen.needed))?;
        if let Some(timeline) = next.turn.filter(|_| self.may_turn(seen)) {
            self.turn(&place, timeline, listed.paths.get(&next.timeline))?;
        }
        let (fetched, room) = self.fetch(&place, &listed, &next)?;
        let whole = fetched == next.fetch.len() && next.turn.is_none() && next.trouble.is_none();
        let newest = listed.held.timelines().last().copied().unwrap_or_default();
        let (trouble, left) = self.trouble(&next);
        let (full, idle) = (room.is_some(), next.fetch.is_empty());
        let told = room.or(trouble).or_else(|| listed.damaged.clone());
        let listed_ms = listed.at_ms;
        self.listed = Some(listed);
        let (reaches, timeline) = (next.reaches, next.timeline);
        let segment_size = size.0;
        Ok(Fed { reaches, timeline, newest, segment_size, listed_ms, fetched, whole, trouble: told, full, idle, left })
    }

    /// Where the segment begins that a server took last which does not answer yet: it has what is before it.
    fn taken(&self, place: &Place<'_>, seen: Seen) -> Result<Lsn, VaultError> {
        let name = if seen.replayed.is_none() { place.read(TAKEN, 64)? } else { None };
        let text = String::from_utf8_lossy(name.as_deref().unwrap_or_default()).trim().to_owned();
        Ok(match self.mark.size().parse(&text) {
            Some(LogFile::Segment(_, number)) => Lsn(number.saturating_mul(self.mark.segment_size)),
            _ => Lsn(0),
        })
    }

    fn stretch(&mut self, seen: Seen, next: &Step) {
        let (count, since) = self.stretch;
        if seen.replayed.is_some() || !seen.runs {
            self.stretch = (0, Instant::now());
        } else if !next.fetch.is_empty() {
            self.stretch = (count, Instant::now());
        } else if since.elapsed() > STRETCH {
            self.stretch = (count.saturating_add(1).min(STRETCH_MOST), Instant::now());
        }
    }

    fn list(&self) -> Result<Listed, VaultError> {
        let (mark, begun) = (self.mark.clone(), Instant::now());
        let place = self.mark.repository.clone();
        let listed = within(LOOK, &place, move || {
            let repository = Repository::at(&mark.repository, mark.key_file.as_deref())?;
            let held = Held::list(&repository, mark.system, mark.size())?;
            if held.files.is_empty() {
                return Err(nothing_of(&repository, mark.system));
            }
            let (mut paths, mut damaged) = (BTreeMap::new(), None);
            for file in &held.files {
                let LogFile::History(timeline) = *file else { continue };
                if timeline <= mark.timeline {
                    continue;
                }
                match lineage(&repository, mark.system, mark.size(), timeline) {
                    Ok(path) => drop(paths.insert(timeline, path)),
                    Err(error @ VaultError::Damaged(_)) => damaged = Some(error.to_string()),
                    Err(error) => return Err(error),
                }
            }
            Ok((repository, held, paths, damaged))
        });
        let (repository, held, paths, damaged) = listed?;
        let (at, at_ms, took) = (Instant::now(), wall_now_ms(), begun.elapsed());
        Ok(Listed { repository, held, paths, damaged, at, at_ms, took })
    }

    /// The segments that lie in the folder. What was being written when this program ended is removed.
    fn offered(&self, place: &Place<'_>) -> Result<BTreeSet<Segment>, VaultError> {
        let mut all = BTreeSet::new();
        for name in place.names()? {
            if name.ends_with(NEW) {
                place.remove(&name)?;
            }
            if let Some(LogFile::Segment(timeline, number)) = self.mark.size().parse(&name) {
                all.insert((timeline, number));
            }
        }
        Ok(all)
    }

    fn remove(&mut self, place: &Place<'_>, next: &Step, first: u64) -> Result<(), VaultError> {
        for (timeline, number) in &next.remove {
            place.remove(&self.mark.size().name(*timeline, *number))?;
            if *number >= first {
                self.withdrawn = Some(Instant::now());
            }
        }
        Ok(())
    }

    /// What a server took it may still have in hand, and replay later: it must have come to wait for more since the last of it was taken away.
    fn may_turn(&self, seen: Seen) -> bool {
        seen.waited.is_some_and(|waited| self.withdrawn.is_none_or(|at| waited > at + WITHDRAWN))
    }

    /// From now on the copy follows this timeline. It is noted first: a server that has gone there must never be taken for one that has not.
    fn turn(&mut self, place: &Place<'_>, timeline: Timeline, path: Option<&Lineage>) -> Result<(), VaultError> {
        let Some(path) = path else { return Ok(()) };
        // The lines of the newest history up to this timeline are its own.
        let left = path.0.iter().take_while(|left| left.timeline < timeline);
        let history = left.map(|left| format!("{}\t{}\tfrom the repository\n", left.timeline, left.lsn)).collect();
        let next = Mark { timeline, history, ..self.mark.clone() };
        next.write(&self.data, self.user)?;
        self.owed = Some(std::mem::replace(&mut self.mark, next).timeline);
        self.pay(place)
    }

    /// Offers the histories that are owed. Without room, say, that is done again in the next round.
    fn pay(&mut self, place: &Place<'_>) -> Result<(), VaultError> {
        if let Some(after) = self.owed {
            self.offer_histories(place, after, |_| true)?;
        }
        self.owed = None;
        Ok(())
    }

    /// Fetches some; how many, and whether there is no room.
    fn fetch(&self, place: &Place<'_>, listed: &Listed, next: &Step) -> Result<(usize, Option<String>), VaultError> {
        let mut fetched = 0;
        for (timeline, number) in next.fetch.iter().take(BATCH) {
            if let Some(says) = self.too_little() {
                return Ok((fetched, Some(says)));
            }
            let content = self.segment(listed, (*timeline, *number))?;
            place.whole(&self.mark.size().name(*timeline, *number), &content, true)?;
            fetched += 1;
        }
        Ok((fetched, None))
    }

    fn segment(&self, listed: &Listed, (timeline, number): Segment) -> Result<Vec<u8>, VaultError> {
        let (size, system, repository) = (self.mark.size(), self.mark.system, listed.repository.clone());
        let key = size.key(system, LogFile::Segment(timeline, number))?;
        let patience = LOOK + LOOK_EACH * u32::try_from(size.0 >> 20).unwrap_or(u32::MAX);
        within(patience, &self.mark.repository, move || {
            let (_, content) = repository.get(&key)?;
            check_segment(&content, system, size, timeline, number)
                .map_err(|says| VaultError::Damaged(format!("{key}: {says}")))?;
            Ok(content)
        })
    }

    /// By the numbers by which an agent stops archiving.
    fn too_little(&self) -> Option<String> {
        let found = rustix::fs::statvfs(&self.data).ok()?;
        let (free, all) =
            (found.f_bavail.saturating_mul(found.f_frsize), found.f_blocks.saturating_mul(found.f_frsize));
        let free = free.saturating_sub(self.mark.segment_size);
        Room::of(free, all)?;
        Some(format!("the volume of {} is nearly full: no more log is fetched; make room there", self.data.display()))
    }

    fn trouble(&mut self, next: &Step) -> (Option<String>, bool) {
        let Some(trouble) = &next.trouble else {
            self.hole = None;
            return (None, false);
        };
        if let Trouble::Hole(hole) = trouble {
            if self.hole.as_ref().is_none_or(|(segment, _)| *segment != hole.segment) {
                self.hole = Some((hole.segment.clone(), Instant::now()));
            }
            let since = self.hole.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
            if hole.on_its_way && since < ON_ITS_WAY {
                return (None, false);
            }
        }
        (Some(trouble.to_string()), !matches!(trouble, Trouble::Hole(_)))
    }
}

fn nothing_of(repository: &Repository, system: SystemId) -> VaultError {
    VaultError::Impossible(format!(
        "{} holds no log of the database {system}: is it the right repository, and the right volume mounted?",
        repository.place()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Folder;
    use crate::postgres::archive::Archive;
    use crate::postgres::log::SegmentSize;
    use mainstay_model::{Position, Term};
    use std::sync::Arc;

    const SIZE: SegmentSize = SegmentSize(1 << 20);
    const SYSTEM: SystemId = SystemId(77);

    fn segment(timeline: u32, number: u64) -> Vec<u8> {
        let mut bytes = vec![7; 1 << 20];
        bytes[0..4].copy_from_slice(&0x0002_d110u32.to_le_bytes());
        bytes[4..8].copy_from_slice(&timeline.to_le_bytes());
        bytes[8..16].copy_from_slice(&(number << 20).to_le_bytes());
        bytes[24..32].copy_from_slice(&SYSTEM.0.to_le_bytes());
        bytes
    }

    struct Home {
        dir: tempfile::TempDir,
        archive: Archive,
    }

    impl Home {
        fn new() -> Home {
            let dir = tempfile::tempdir().unwrap();
            for name in ["copy/pg_wal", "copy/mainstay_log"] {
                std::fs::create_dir_all(dir.path().join(name)).unwrap();
            }
            let folder = Arc::new(Folder::open(dir.path().join("vault")).unwrap());
            let repository = Repository::create(folder, &[]).unwrap();
            let archive = Archive::claim(repository, SYSTEM, SIZE, Term(1), "n1").unwrap();
            Home { dir, archive }
        }

        fn push(&mut self, timeline: u32, number: u64) {
            self.archive.push(&SIZE.name(Timeline(timeline), number), &segment(timeline, number)).unwrap();
        }

        fn feed(&self) -> Feed {
            let mark = Mark {
                system: SYSTEM,
                repository: self.dir.path().join("vault"),
                key_file: None,
                backup: "b".into(),
                start: Position { timeline: Timeline(1), lsn: Lsn(3 << 20) },
                ended: 0,
                version: 150_000,
                segment_size: SIZE.0,
                settings: BTreeMap::new(),
                timeline: Timeline(1),
                history: String::new(),
            };
            Feed::new(mark, &self.dir.path().join("copy"), None)
        }

        fn lies(&self, name: &str) -> Option<String> {
            let text = std::fs::read(self.dir.path().join("copy/mainstay_log").join(name)).ok()?;
            Some(String::from_utf8_lossy(&text).into_owned())
        }
    }

    fn round(feed: &mut Feed, at: u64) -> Fed {
        // As if some time had passed.
        feed.listed = None;
        feed.withdrawn = None;
        let waited = Some(Instant::now());
        feed.round(Seen { needed: Lsn(at), replayed: Some(Lsn(at)), runs: true, waited }).unwrap()
    }

    #[test]
    fn the_log_is_brought_a_take_over_followed_and_a_repository_that_is_away_is_no_end() {
        let mut home = Home::new();
        home.push(1, 3);
        home.push(1, 4);
        let mut feed = home.feed();
        std::fs::write(home.dir.path().join("copy/pg_wal/000003E9.history"), "# reserved by mainstay").unwrap();
        feed.prepare().unwrap_err();
        assert!(home.dir.path().join("copy/pg_wal/000003E9.history").exists(), "a promoted copy keeps its histories");
        std::fs::write(home.dir.path().join("copy").join(SIGNAL), "").unwrap();
        feed.prepare().unwrap();
        assert!(!home.dir.path().join("copy/pg_wal/000003E9.history").exists(), "of a promotion that broke off");
        let fed = round(&mut feed, 3 << 20);
        assert_eq!((fed.fetched, fed.reaches, fed.whole), (2, Lsn(5 << 20), true));
        assert_eq!(round(&mut feed, (5 << 20) - 100).fetched, 0);
        assert!(home.lies(&SIZE.name(Timeline(1), 3)).is_some(), "the one before the last stays");

        let (vault, away) = (home.dir.path().join("vault"), home.dir.path().join("away"));
        std::fs::rename(&vault, &away).unwrap();
        feed.listed = None;
        feed.round(Seen::default()).unwrap_err();
        std::fs::rename(&away, &vault).unwrap();

        // Two take-overs; the number between them was only reserved.
        let path = format!("1\t{}\tx\n", Lsn((5 << 20) + 64));
        home.archive.push("00000003.history", path.as_bytes()).unwrap();
        let fed = round(&mut feed, 5 << 20);
        assert_eq!((fed.trouble, feed.mark.timeline), (None, Timeline(1)), "its log is not here yet");
        home.push(3, 5);
        assert_eq!(round(&mut feed, 5 << 20).fetched, 1);
        let busy = Seen { needed: Lsn(5 << 20), replayed: Some(Lsn(5 << 20)), runs: true, waited: None };
        feed.round(busy).unwrap();
        assert_eq!(feed.mark.timeline, Timeline(1), "it may have more in hand than it has replayed");
        feed.withdrawn = Some(Instant::now());
        feed.round(Seen { waited: Some(Instant::now()), ..busy }).unwrap();
        assert_eq!(feed.mark.timeline, Timeline(1), "it may have taken what was just withdrawn");
        assert!(!round(&mut feed, 5 << 20).whole, "it has just turned");
        assert_eq!(feed.mark.timeline, Timeline(3));
        assert!(home.lies("00000002.history").unwrap().starts_with("# reserved"));
        assert!(home.lies("00000003.history").unwrap().starts_with("1\t0/500040"));
        let fed = round(&mut feed, (5 << 20) + 900_000);
        assert!(fed.whole && fed.trouble.is_none() && home.lies(&SIZE.name(Timeline(1), 3)).is_none(), "{fed:?}");
        // It is noted, and goes on from there.
        let super::super::Found::Follows(mark) = super::super::found(&home.dir.path().join("copy"), None).unwrap()
        else {
            panic!("no mark")
        };
        assert_eq!(*mark, feed.mark);
    }

    #[test]
    fn what_the_server_took_last_moves_the_bound_until_it_answers() {
        let mut home = Home::new();
        home.push(1, 3);
        let feed = home.feed();
        std::fs::write(feed.log.join(TAKEN), format!("{}\n", SIZE.name(Timeline(1), 9))).unwrap();
        let place = Place::open(&feed.log, None).unwrap();
        let silent = Seen { needed: Lsn(3 << 20), replayed: None, runs: true, waited: None };
        assert_eq!(feed.taken(&place, silent).unwrap(), Lsn(9 << 20));
        assert_eq!(feed.taken(&place, Seen { replayed: Some(Lsn(1)), ..silent }).unwrap(), Lsn(0));
        std::fs::write(feed.data.join(SIGNAL), "").unwrap();
        feed.prepare().unwrap();
        assert_eq!(feed.taken(&place, silent).unwrap(), Lsn(0));
    }
}
