//! Safety rules that are broken on purpose, one at a time: `chaos` must turn red on each within a stated number of trials.
//!
//! The program must have been built with the cargo feature `sabotage`. Each switch comes with the faults that put its rule to the test.

use super::fault::Kind;
use super::plan::{Plan, Round, Step, Target};
use crate::hosts::Shape;
use mainstay_model::Durability;

/// The variable of the environment that names the switch (`mainstay_ports::sabotage`).
pub const VARIABLE: &str = mainstay_ports::sabotage::VARIABLE;
/// Trials after which a switch that `chaos` did not notice counts as not found.
pub const TRIALS: u64 = 3;

/// A fault of a round: when it begins, what it is, whom it meets, how long it lasts. Milliseconds.
type Fault = (u64, Kind, Target, u64);

/// A rule that is broken.
#[derive(Clone, Copy, Debug)]
pub struct Sabotage {
    /// Its switch.
    pub switch: &'static str,
    /// Which rule.
    pub breaks: &'static str,
    /// The mode in which it shows.
    pub durability: Durability,
    /// The faults that put it to the test, round after round.
    pub rounds: &'static [&'static [Fault]],
}

const ASYNC: Durability = Durability::Async;
const STRICT: Durability = Durability::Strict;
/// The primary loses everybody, then the other nodes only.
const PRIMARY_CUT: &[&[Fault]] =
    &[&[(200, Kind::LinkCut, Target::Primary, 7000)], &[(200, Kind::PrimaryApart, Target::Primary, 7000)]];
/// The primary's agent is stopped for three leases, and its server cut from the other nodes, though not from clients: nobody extends its
/// deadline, and nobody but its guard ends its server. While replicas stream from it nobody would take over, and nothing could go wrong.
const AGENT_STOPPED: &[&[Fault]] = &[
    &[(200, Kind::AgentStop, Target::Primary, 9500), (400, Kind::PrimaryApart, Target::Primary, 8500)],
    &[(900, Kind::AgentStop, Target::Primary, 9500), (1000, Kind::PrimaryApart, Target::Primary, 8500)],
];
/// A replica that missed four seconds of writes comes back as the primary's host dies, and stands while something of the other one's is stopped, which
/// has confirmed them all: it must not become primary by being first. Either replica in turn.
const fn stale(stops: Kind, lasts: u64) -> [[Fault; 3]; 2] {
    const fn round(stale: u8, other: u8, stops: Kind, lasts: u64) -> [Fault; 3] {
        [
            (200, Kind::LinkCut, Target::Replica(stale), 4000),
            (3800, stops, Target::Replica(other), lasts),
            (3900, Kind::HostKill, Target::Primary, 9000),
        ]
    }
    [round(0, 1, stops, lasts), round(1, 0, stops, lasts)]
}
/// Its agent, for a moment.
const STANDS: [[Fault; 3]; 2] = stale(Kind::AgentStop, 2200);
const STALE_STANDS: &[&[Fault]] = &[&STANDS[0], &STANDS[1]];
/// Its server, until the last lease is over: its agent votes, and can not answer for its log.
const OUTLASTS: [[Fault; 3]; 2] = stale(Kind::ServerStop, 7000);
const STALE_OUTLASTS: &[&[Fault]] = &[&OUTLASTS[0], &OUTLASTS[1]];

const fn of(
    switch: &'static str,
    breaks: &'static str,
    durability: Durability,
    rounds: &'static [&'static [Fault]],
) -> Sabotage {
    Sabotage { switch, breaks, durability, rounds }
}

/// Every switch.
pub const ALL: [Sabotage; 14] = [
    // A primary whose agent lives ends its server itself: only where that is stopped the deadline alone counts.
    of("endless-lease", "a lease ends", ASYNC, AGENT_STOPPED),
    of("no-lease-wait", "in asynchronous mode a successor waits for the lease", ASYNC, PRIMARY_CUT),
    of("local-commits", "commits wait for confirmations", STRICT, PRIMARY_CUT),
    of("durability-forgotten", "decisions know the durability that was set", STRICT, PRIMARY_CUT),
    of("no-rejoin", "an old primary comes back as a replica", ASYNC, PRIMARY_CUT),
    of(
        "no-restart",
        "a server that ended is started again",
        STRICT,
        &[&[(200, Kind::HostRestart, Target::Replica(0), 7000)]],
    ),
    of("silent-loss", "what is lost is reported", ASYNC, PRIMARY_CUT),
    of(
        "silent-history",
        "the history tells every change of the primary",
        STRICT,
        &[&[(200, Kind::ServerKill, Target::Primary, 7000)]],
    ),
    of(
        "guard-never-kills",
        "the guard ends a server whose deadline has passed, without its agent",
        ASYNC,
        AGENT_STOPPED,
    ),
    of("promote-early", "a candidate waits for enough recruits", STRICT, STALE_STANDS),
    of("lease-for-recruits", "the end of a lease replaces no recruits", STRICT, STALE_OUTLASTS),
    of("no-fast-forward", "a candidate catches up with the best of its recruits first", STRICT, STALE_STANDS),
    of(
        "stale-route",
        "a proxy follows the route of the highest term",
        STRICT,
        &[&[(200, Kind::ServerKill, Target::Primary, 7000)]],
    ),
    of("false-rewind", "a diverged copy is rewound before it is a replica again", ASYNC, PRIMARY_CUT),
];

impl Sabotage {
    /// The plan of one trial.
    #[must_use]
    pub fn plan(self, trial: u64) -> Plan {
        let shape = Shape { durability: self.durability, ..Shape::THREE };
        let step = |(at_ms, kind, target, lasts_ms): &Fault| Step {
            at_ms: at_ms + trial * 137,
            kind: *kind,
            target: *target,
            lasts_ms: *lasts_ms,
        };
        let round = |faults: &&[Fault]| Round {
            steps: faults.iter().map(step).collect(),
            beyond: faults.len() > 1,
            harmless: false,
        };
        Plan {
            seed: trial,
            data: shape.data,
            witnesses: shape.witnesses,
            durability: shape.durability.as_str(),
            store: shape.store,
            clients: 4,
            rounds: self.rounds.iter().map(round).collect(),
            shape,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_are_unique_and_their_faults_can_happen() {
        let names: std::collections::BTreeSet<&str> = ALL.iter().map(|sabotage| sabotage.switch).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(ALL.iter().all(|sabotage| !sabotage.plan(1).rounds.is_empty()));
    }
}
