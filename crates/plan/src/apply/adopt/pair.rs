//! Whether a standby's data may become a copy without being copied (docs/adr/0045): it has all of the adopted server's log, and nothing else.
//! Absent: everything that would ask or move; nothing calls this yet.

use mainstay_model::{Lsn, SystemId, Timeline};

/// Where a server's data ended, by its control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Whose data they are.
    pub system: SystemId,
    /// How it was left, in the words of `pg_controldata`.
    pub state: String,
    /// The last checkpoint that is on disk as a whole.
    pub checkpoint: Checkpoint,
    /// Up to where a standby has replayed, and on which timeline; 0/0 of one that was no standby.
    pub replayed: (Lsn, Timeline),
}

/// What tells one checkpoint from every other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where its record lies.
    pub at: Lsn,
    /// Where recovery would begin.
    pub redo: Lsn,
    /// On which timeline.
    pub timeline: Timeline,
    /// When it was made, in the words of `pg_controldata`.
    pub time: String,
    /// The next transaction's number, with its epoch.
    pub next_transaction: String,
}

/// What keeps the standby's data from being the primary's; empty: they are the same log, to the same end. `end` is where the record of the primary's
/// last checkpoint ends, which is the end of its log; `signal`: `standby.signal` is there.
#[must_use]
pub fn differs(primary: &Ended, end: Lsn, standby: &Ended, signal: bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut say = |wrong: bool, what: String| found.extend(wrong.then_some(what));
    say(
        primary.system != standby.system,
        format!("it is of another cluster: system identifier {}, not {}", standby.system, primary.system),
    );
    say(primary.state != "shut down", format!("the primary was not shut down in order: it is {}", primary.state));
    say(
        standby.state != "shut down in recovery",
        format!("it was not shut down as a standby: it is {}", standby.state),
    );
    say(!signal, "it has no standby.signal: it may have been a primary since".into());
    let (theirs, its) = (&primary.checkpoint, &standby.checkpoint);
    say(
        theirs != its,
        format!(
            "its last checkpoint is at {} on timeline {} of {}, the primary's at {} on timeline {} of {}",
            its.at, its.timeline, its.time, theirs.at, theirs.timeline, theirs.time
        ),
    );
    // The same checkpoint, and then something else: it was a primary for a while, or followed another.
    let (replayed, timeline) = standby.replayed;
    say(
        replayed != end || timeline != theirs.timeline,
        format!(
            "it has replayed to {replayed} on timeline {timeline}, and the primary's log ends at {end} on timeline {}",
            theirs.timeline
        ),
    );
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As PostgreSQL 15 left a pair that was stopped in order, the primary first.
    fn pair() -> (Ended, Lsn, Ended) {
        let checkpoint = Checkpoint {
            at: Lsn(0x030B_2B28),
            redo: Lsn(0x030B_2B28),
            timeline: Timeline(1),
            time: "Fri Nov 27 20:25:45 2026".into(),
            next_transaction: "0:725".into(),
        };
        let system = SystemId(7_712_950_097_459_734_565);
        let end = Lsn(0x030B_2BA0);
        let primary = Ended {
            system,
            state: "shut down".into(),
            checkpoint: checkpoint.clone(),
            replayed: (Lsn(0), Timeline(0)),
        };
        let standby = Ended { system, state: "shut down in recovery".into(), checkpoint, replayed: (end, Timeline(1)) };
        (primary, end, standby)
    }

    #[test]
    fn only_the_same_log_to_the_same_end_is_taken() {
        let (primary, end, standby) = pair();
        assert_eq!(differs(&primary, end, &standby, true), Vec::<String>::new());
        assert!(differs(&primary, end, &standby, false)[0].contains("no standby.signal"));
        type Change<'a> = (&'a str, &'a dyn Fn(&mut Ended, &mut Ended));
        let cases: [Change<'_>; 9] = [
            ("another cluster", &|_, standby| standby.system = SystemId(1)),
            ("the primary was not shut down", &|primary, _| primary.state = "in production".into()),
            ("was not shut down as a standby", &|_, standby| standby.state = "shut down".into()),
            ("its last checkpoint is at", &|_, standby| standby.checkpoint.at = Lsn(0x0300_0028)),
            ("its last checkpoint is at", &|_, standby| standby.checkpoint.time = "Fri Nov 27 20:25:44 2026".into()),
            ("its last checkpoint is at", &|_, standby| standby.checkpoint.next_transaction = "0:726".into()),
            ("on timeline 2", &|_, standby| standby.checkpoint.timeline = Timeline(2)),
            ("has replayed to", &|_, standby| standby.replayed.0 = Lsn(0x030B_2C00)),
            ("has replayed to", &|_, standby| standby.replayed.1 = Timeline(2)),
        ];
        for (words, change) in cases {
            let (mut primary, end, mut standby) = pair();
            change(&mut primary, &mut standby);
            let found = differs(&primary, end, &standby, true);
            assert!(found.len() == 1 && found[0].contains(words), "{words}: {found:?}");
        }
    }
}
