//! Many schedules: on several threads, with or without planted faults.

use crate::counters::Counters;
use crate::{Report, run};
use mainstay_decide::Plant;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A run of so many says how far it is, this often.
const LONG: u64 = 100_000;
const TELL_EVERY: u64 = 20_000;

/// What many schedules gave.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// How many ran.
    pub schedules: u64,
    /// Those that broke a promise, by seed; at most a hundred are kept.
    pub broken: Vec<Report>,
    /// How many broke one.
    pub violations: u64,
    /// What happened in all of them.
    pub counters: Counters,
    /// From the heal until all was well, in microseconds, sorted.
    pub healed_in: Vec<u64>,
}

/// Runs the seeds `from .. from + count` on `jobs` threads; with `first_only` it ends soon after the first broken promise.
///
/// A long run is told about while it goes on: how far it is, and each broken promise at once, on standard error.
#[must_use]
pub fn many(from: u64, count: u64, jobs: usize, plants: &BTreeSet<Plant>, first_only: bool) -> Summary {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                let mut mine = Summary::default();
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let report = run(from + index, plants, false);
                    if first_only && report.violation.is_some() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    if count >= LONG {
                        tell(index, count, &report);
                    }
                    mine.take(report);
                }
                summary.lock().unwrap_or_else(PoisonError::into_inner).merge(mine);
            });
        }
    });
    let mut summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.broken.sort_by_key(|report| report.seed);
    summary.healed_in.sort_unstable();
    summary
}

fn tell(index: u64, count: u64, report: &Report) {
    if let Some(violation) = &report.violation {
        eprintln!("seed {}: {} broken: {}", report.seed, violation.rule, violation.what);
    }
    if (index + 1).is_multiple_of(TELL_EVERY) {
        eprintln!("{} of {count} schedules", index + 1);
    }
}

impl Summary {
    fn take(&mut self, report: Report) {
        self.schedules += 1;
        self.counters.add(&report.counters);
        self.healed_in.push(report.healed_in);
        if report.violation.is_some() {
            self.violations += 1;
            if self.broken.len() < 100 {
                self.broken.push(report);
            }
        }
    }

    fn merge(&mut self, other: Summary) {
        self.schedules += other.schedules;
        self.violations += other.violations;
        self.counters.add(&other.counters);
        self.healed_in.extend(other.healed_in);
        self.broken.extend(other.broken);
    }
}

/// What became of one planted fault.
#[derive(Clone, Debug)]
pub struct Found {
    /// Which.
    pub plant: Plant,
    /// The number of schedules it took, the seed and the rule it broke; `None`: not found.
    pub seen: Option<(u64, u64, &'static str)>,
}

/// Plants one fault and looks for it.
#[must_use]
pub fn hunt(plant: Plant, from: u64, most: u64, jobs: usize) -> Found {
    let plants = BTreeSet::from([plant]);
    let summary = many(from, most, jobs, &plants, true);
    let seen = summary.broken.first().and_then(|report| {
        report.violation.as_ref().map(|violation| (report.seed - from + 1, report.seed, violation.rule))
    });
    Found { plant, seen }
}
