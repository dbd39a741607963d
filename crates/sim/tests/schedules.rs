//! The simulator itself: the same seed is the same schedule, healthy decisions break nothing, planted faults are found, and the
//! schedules are not idle.

use mainstay_decide::Plant;
use mainstay_sim::{hunt, run};
use std::collections::BTreeSet;

#[test]
fn a_seed_is_one_schedule() {
    let none = BTreeSet::new();
    for seed in [3, 17, 4711] {
        let (plain, again, traced) = (run(seed, &none, false), run(seed, &none, false), run(seed, &none, true));
        assert_eq!(plain.hash, again.hash, "seed {seed}");
        assert_eq!(plain.hash, traced.hash, "the trace of seed {seed} changes what happens");
        assert_eq!(plain.counters, traced.counters);
        assert!(traced.lines.len() > 100 && plain.lines.is_empty());
    }
    assert_ne!(run(1, &none, false).hash, run(2, &none, false).hash);
}

#[test]
fn healthy_decisions_break_nothing() {
    let summary = hunt::many(1, 200, 2, &BTreeSet::new(), false);
    assert_eq!(summary.schedules, 200);
    let broken: Vec<_> = summary.broken.iter().map(|report| (report.seed, report.violation.clone())).collect();
    assert!(broken.is_empty(), "{broken:?}");
    let counters = summary.counters;
    assert!(counters.elections > 200 && counters.acknowledged > 10_000 && counters.fences > 0, "{counters:?}");
    assert!(counters.sync_writes > 50 && counters.rewinds > 0 && counters.clones > 0, "{counters:?}");
}

#[test]
fn planted_faults_are_found() {
    for plant in [Plant::EnoughQuorum, Plant::GuardNeverKills, Plant::LeaseReplacesRecruits, Plant::PositionBeforeCut] {
        let found = hunt::hunt(plant, 1, 1_000, 2);
        assert!(found.seen.is_some(), "{plant:?} was not found");
    }
}
