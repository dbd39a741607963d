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
    pub faults: &'static [(Kind, Target)],
}

const PRIMARY_CUT: &[(Kind, Target)] = &[(Kind::LinkCut, Target::Primary), (Kind::PrimaryApart, Target::Primary)];
const ASYNC: Durability = Durability::Async;
const STRICT: Durability = Durability::Strict;

/// Every switch.
pub const ALL: [Sabotage; 8] = [
    Sabotage { switch: "endless-lease", breaks: "a lease ends", durability: ASYNC, faults: PRIMARY_CUT },
    Sabotage {
        switch: "no-lease-wait",
        breaks: "in asynchronous mode a successor waits for the lease",
        durability: ASYNC,
        faults: PRIMARY_CUT,
    },
    Sabotage {
        switch: "local-commits",
        breaks: "commits wait for confirmations",
        durability: STRICT,
        faults: PRIMARY_CUT,
    },
    Sabotage {
        switch: "durability-forgotten",
        breaks: "decisions know the durability that was set",
        durability: STRICT,
        faults: PRIMARY_CUT,
    },
    Sabotage {
        switch: "no-rejoin",
        breaks: "an old primary comes back as a replica",
        durability: ASYNC,
        faults: PRIMARY_CUT,
    },
    Sabotage {
        switch: "no-restart",
        breaks: "a server that ended is started again",
        durability: STRICT,
        faults: &[(Kind::HostRestart, Target::Replica(0))],
    },
    Sabotage { switch: "silent-loss", breaks: "what is lost is reported", durability: ASYNC, faults: PRIMARY_CUT },
    Sabotage {
        switch: "silent-history",
        breaks: "the history tells every change of the primary",
        durability: STRICT,
        faults: &[(Kind::ServerKill, Target::Primary)],
    },
];

impl Sabotage {
    /// The plan of one trial.
    #[must_use]
    pub fn plan(self, trial: u64) -> Plan {
        let shape = Shape { durability: self.durability, ..Shape::THREE };
        let step = |(kind, target): (Kind, Target)| Step { at_ms: 200 + trial * 137, kind, target, lasts_ms: 7000 };
        let rounds =
            self.faults.iter().map(|fault| Round { steps: vec![step(*fault)], beyond: false, harmless: false });
        Plan {
            seed: trial,
            data: shape.data,
            witnesses: shape.witnesses,
            durability: shape.durability.as_str(),
            clients: 4,
            rounds: rounds.collect(),
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
