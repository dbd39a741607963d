//! What comes next for a copy that is fed from the archive: which timeline it follows, what is fetched, what is taken away again. Pure.
//!
//! Two rules keep a copy from a log that the cluster has left. A segment is offered from the newest timeline only that began before its end
//! ([`owner`]): a primary that died may have archived under the same number what nobody else had. And a history is offered only when the segment
//! that holds its fork lies here, so that whatever ends the recovery finds the fork behind itself or knows nothing of it.

use crate::postgres::archive::{Held, SWEEP_MAX};
use crate::postgres::log::{LogFile, SegmentSize, owner};
use crate::postgres::restore::Hole;
use crate::postgres::scratch::RESERVED_MOST;
use mainstay_model::{Lineage, Lsn, Timeline};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A segment: its timeline and number.
pub(crate) type Segment = (Timeline, u64);

/// What is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) size: SegmentSize,
    /// What the archive holds.
    pub(crate) held: &'a Held,
    /// The paths to the timelines after the present one, as far as the archive tells them.
    pub(crate) paths: &'a BTreeMap<Timeline, Lineage>,
    /// The timeline that the copy follows, and the path to it.
    pub(crate) on: (Timeline, &'a Lineage),
    /// Before this the server asks for nothing any more.
    pub(crate) needed: Lsn,
    /// Up to where it has replayed; `None`: it can not be asked.
    pub(crate) replayed: Option<Lsn>,
    /// What lies in the folder from which it takes its log.
    pub(crate) offered: &'a BTreeSet<Segment>,
    /// So many segments may lie there ahead of it.
    pub(crate) ahead: u64,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// From now on it follows this timeline: the histories up to it are offered.
    pub(crate) turn: Option<Timeline>,
    /// To be fetched, in this order.
    pub(crate) fetch: Vec<Segment>,
    /// To be taken away.
    pub(crate) remove: Vec<Segment>,
    /// So far the log goes on without a hole in the archive.
    pub(crate) reaches: Lsn,
    /// Of this timeline is the end.
    pub(crate) timeline: Timeline,
    /// Why it does not go on.
    pub(crate) trouble: Option<Trouble>,
}

/// What the archive can not mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// A segment is missing, and the log goes on behind it.
    Hole(Hole),
    /// The cluster goes on from a place that this copy has passed, or on another way to it.
    Left {
        /// On this timeline.
        timeline: Timeline,
        /// It left the one that the copy follows here; `None`: it does not come from it.
        fork: Option<Lsn>,
        /// The copy is here.
        at: Lsn,
    },
    /// Numbers of timelines are further apart than can be.
    Far(Timeline),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Hole(hole) => {
                write!(
                    f,
                    "the segment {} is missing in the repository, and the log goes on after it; it may still come, else make a backup, and then the copy \
                     anew (mainstay follow --again)",
                    hole.segment
                )
            }
            Trouble::Left { timeline, fork: Some(fork), at } => {
                write!(
                    f,
                    "the cluster goes on with timeline {timeline} from {fork}, and this copy has replayed up to {at}"
                )
            }
            Trouble::Left { timeline, fork: None, at } => {
                write!(
                    f,
                    "the cluster goes on with timeline {timeline}, which does not come from the one of this copy at {at}"
                )
            }
            Trouble::Far(timeline) => {
                write!(f, "the repository holds a timeline {timeline}, and none of the {RESERVED_MOST} before it")
            }
        }
    }
}

/// The timeline to go to: the newest whose path leads over the place where the copy is.
fn heading<'a>(view: &View<'a>) -> (Timeline, &'a Lineage, Option<Trouble>) {
    let (on, path) = view.on;
    // As far as the server is known to be, if it can not be asked.
    let at = view.replayed.unwrap_or(view.needed);
    let mut trouble = None;
    for (timeline, path) in view.paths.range(Timeline(on.0.saturating_add(1))..).rev() {
        let fork = path.0.iter().find(|left| left.timeline == on).map(|left| left.lsn);
        let says = match fork {
            Some(_) if timeline.0 - on.0 > RESERVED_MOST => Trouble::Far(*timeline),
            Some(fork) if at <= fork => return (*timeline, path, trouble),
            _ => Trouble::Left { timeline: *timeline, fork, at },
        };
        trouble.get_or_insert(says);
    }
    (on, path, trouble)
}

/// The newest timeline on the way to `to` whose beginning lies before this.
fn begun(on: Timeline, (to, path): (Timeline, &Lineage), end: Lsn) -> Option<Timeline> {
    let after = path.0.iter().skip(1).map(|left| left.timeline).chain([to]);
    let begins = path.0.iter().map(|left| left.lsn);
    begins.zip(after).filter(|(lsn, timeline)| *lsn < end && *timeline > on).map(|(_, timeline)| timeline).max()
}

/// Decides.
pub(crate) fn step(view: &View<'_>) -> Step {
    let (timeline, path, left) = heading(view);
    let of = |number| owner(view.size, number, timeline, path);
    let holds = |number: u64| view.held.files.contains(&LogFile::Segment(of(number), number));
    let first = view.size.holding(view.needed);
    let behind = (first..).find(|number| !holds(*number)).unwrap_or(first);
    let later = |file: &&LogFile| matches!(**file, LogFile::Segment(is, at) if at > behind && is == of(at));
    let later = view.held.files.iter().filter(later).count();
    let before_fork = path.0.iter().any(|fork| fork.lsn.0 > behind.saturating_mul(view.size.0));
    let goes_on = later > 0 || (before_fork && of(behind) < timeline);
    let hole = goes_on.then(|| Hole { segment: view.size.name(of(behind), behind), on_its_way: later <= SWEEP_MAX });
    let wanted = first..behind.min(first.saturating_add(view.ahead));
    let fetch = wanted.map(|number| (of(number), number)).filter(|segment| !view.offered.contains(segment)).collect();
    let here = (first..).find(|number| !view.offered.contains(&(of(*number), *number))).unwrap_or(first);
    let here = Lsn(here.saturating_mul(view.size.0));
    // Where the server is must be known: it may have passed the fork.
    let turn = view.replayed.and_then(|_| begun(view.on.0, (timeline, path), here));
    // The last one that was replayed is read again when a recovery ends.
    let over = |(is, number): &&Segment| number.saturating_add(1) < first || (*number >= first && *is != of(*number));
    Step {
        turn,
        fetch,
        remove: view.offered.iter().filter(over).copied().collect(),
        reaches: Lsn(behind.saturating_mul(view.size.0)),
        timeline,
        trouble: left.or(hole.map(Trouble::Hole)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::Position;

    const SIZE: SegmentSize = SegmentSize(1 << 20);

    /// What a test is told; positions in hundredths of a segment.
    struct World {
        held: Held,
        paths: BTreeMap<Timeline, Lineage>,
        on: (Timeline, Lineage),
        offered: BTreeSet<Segment>,
        ahead: u64,
    }

    fn at(hundredths: u64) -> Lsn {
        Lsn(SIZE.0 * hundredths / 100)
    }

    fn path(left: &[(u32, u64)]) -> Lineage {
        Lineage(left.iter().map(|(t, lsn)| Position { timeline: Timeline(*t), lsn: at(*lsn) }).collect())
    }

    fn segments(all: &[(u32, u64)]) -> BTreeSet<Segment> {
        all.iter().map(|(timeline, number)| (Timeline(*timeline), *number)).collect()
    }

    impl World {
        fn new(held: &[(u32, u64)], offered: &[(u32, u64)]) -> World {
            let files = segments(held).into_iter().map(|(timeline, number)| LogFile::Segment(timeline, number));
            World {
                held: Held { files: files.collect() },
                paths: BTreeMap::new(),
                on: (Timeline(1), Lineage::default()),
                offered: segments(offered),
                ahead: 8,
            }
        }

        fn knows(mut self, timeline: u32, left: &[(u32, u64)]) -> World {
            self.paths.insert(Timeline(timeline), path(left));
            self
        }

        fn step(&self, needed: u64, replayed: Option<u64>) -> Step {
            step(&View {
                size: SIZE,
                held: &self.held,
                paths: &self.paths,
                on: (self.on.0, &self.on.1),
                needed: at(needed),
                replayed: replayed.map(at),
                offered: &self.offered,
                ahead: self.ahead,
            })
        }
    }

    fn list(all: &[(u32, u64)]) -> Vec<Segment> {
        segments(all).into_iter().collect()
    }

    #[test]
    fn what_is_archived_is_fetched_ahead_within_bounds_and_what_was_replayed_goes() {
        let mut world = World::new(&[(1, 3), (1, 4), (1, 5), (1, 6), (1, 7)], &[(1, 3), (1, 4), (1, 5)]);
        world.ahead = 2;
        let step = world.step(550, Some(550));
        assert_eq!(step.fetch, list(&[(1, 6)]));
        assert_eq!(step.remove, list(&[(1, 3)]), "the one before the last stays");
        assert_eq!((step.reaches, step.turn, step.trouble), (at(800), None, None));
        // It can not be asked: it may begin again where its last checkpoint is.
        let step = world.step(300, None);
        assert_eq!((step.fetch, step.remove), (vec![], vec![]));
        let nothing = World::new(&[], &[]).step(550, Some(550));
        assert_eq!((nothing.reaches, nothing.trouble), (at(500), None));
    }

    #[test]
    fn a_hole_is_told_and_nothing_behind_it_is_fetched() {
        let step = World::new(&[(1, 3), (1, 5)], &[]).step(300, Some(300));
        assert_eq!(step.fetch, list(&[(1, 3)]));
        let Some(Trouble::Hole(hole)) = step.trouble else { panic!("{step:?}") };
        assert!(hole.on_its_way && hole.segment == SIZE.name(Timeline(1), 4));
        // The history of a later timeline came first.
        let step = World::new(&[(1, 3)], &[]).knows(2, &[(1, 560)]).step(300, Some(300));
        assert!(matches!(step.trouble, Some(Trouble::Hole(_))) && step.turn.is_none(), "{step:?}");
    }

    #[test]
    fn the_segment_of_a_fork_comes_from_the_new_timeline_and_its_history_after_it() {
        // The dead primary had archived its own segment 5, which nobody else had.
        let world = World::new(&[(1, 4), (1, 5)], &[(1, 4)]).knows(2, &[(1, 540)]);
        let step = world.step(480, Some(480));
        assert_eq!((step.fetch, step.turn, step.trouble.is_none()), (vec![], None, true), "nothing of the old one");
        assert_eq!((step.reaches, step.timeline), (at(500), Timeline(2)));
        let mut world = World::new(&[(1, 4), (1, 5), (2, 5)], &[(1, 4)]).knows(2, &[(1, 540)]);
        let step = world.step(480, Some(480));
        assert_eq!((step.fetch, step.turn), (list(&[(2, 5)]), None), "the log first");
        world.offered.insert((Timeline(2), 5));
        assert_eq!(world.step(480, Some(480)).turn, Some(Timeline(2)));
        assert_eq!(world.step(480, None).turn, None, "where it is must be known");
        // A fork at the very end of a segment needs the next one.
        let world = World::new(&[(1, 4), (2, 5)], &[(1, 4)]).knows(2, &[(1, 500)]);
        assert_eq!(world.step(480, Some(480)).turn, None);
    }

    #[test]
    fn a_segment_of_the_old_timeline_that_was_offered_before_the_fork_was_known_is_withdrawn() {
        let world = World::new(&[(1, 5), (2, 5)], &[(1, 5)]).knows(2, &[(1, 540)]);
        let step = world.step(500, Some(500));
        assert_eq!((step.remove, step.fetch, step.turn), (list(&[(1, 5)]), list(&[(2, 5)]), None));
    }

    #[test]
    fn several_take_overs_are_followed_as_far_as_the_log_is_here() {
        let world = |offered: &[(u32, u64)]| {
            World::new(&[(1, 4), (2, 5), (4, 6)], offered)
                .knows(2, &[(1, 520)])
                .knows(3, &[(1, 520), (2, 610)])
                .knows(4, &[(1, 520), (2, 610), (3, 630)])
        };
        assert_eq!(world(&[(1, 4), (2, 5)]).step(450, Some(450)).turn, Some(Timeline(2)));
        assert_eq!(world(&[(1, 4), (2, 5), (4, 6)]).step(450, Some(450)).turn, Some(Timeline(4)));
        let mut there = world(&[(2, 5), (4, 6)]);
        there.on = (Timeline(4), path(&[(1, 520), (2, 610), (3, 630)]));
        let step = there.step(640, Some(640));
        assert_eq!((step.turn, step.fetch, step.remove, step.trouble), (None, vec![], vec![], None));
    }

    #[test]
    fn a_cluster_that_went_on_from_before_is_not_followed_and_that_is_told() {
        let world = World::new(&[(1, 5), (1, 6), (2, 5)], &[(1, 5)]).knows(2, &[(1, 540)]);
        let step = world.step(560, Some(560));
        let left = Trouble::Left { timeline: Timeline(2), fork: Some(at(540)), at: at(560) };
        assert_eq!((step.turn, step.trouble, step.timeline), (None, Some(left), Timeline(1)));
        // At the fork exactly it is followed.
        assert_eq!(world.step(540, Some(540)).trouble, None);
        let other = World::new(&[(3, 5)], &[]).knows(3, &[(2, 300)]).step(500, Some(500));
        assert!(matches!(other.trouble, Some(Trouble::Left { fork: None, .. })), "{other:?}");
        let far = World::new(&[], &[]).knows(20_000, &[(1, 900)]).step(500, Some(500));
        assert_eq!((far.trouble, far.turn), (Some(Trouble::Far(Timeline(20_000))), None));
    }
}
