//! Cellar: virtual clusters over the real decision code.
//!
//! One seed is one schedule: a small cluster of 2 to 5 nodes with stores, servers, guards, clients and an operator, all virtual, in
//! virtual time, around the same [`mainstay_decide::Mind`] that a real agent runs. Faults strike for some seconds, then stop; what
//! must hold is checked at every event, and liveness at the end. In half of the schedules an operator is at work: commands, nodes,
//! modes, times, a store that is rebuilt. Not here: corruption of disks, and a store that loses what it promised.

#![forbid(unsafe_code)]

pub mod counters;
pub mod event;
pub mod faults;
pub mod host;
pub mod hunt;
pub mod invariants;
pub mod network;
pub mod operator;
pub mod orders;
mod orders_copy;
mod orders_primary;
pub mod rng;
mod scenario;
pub mod server;
pub mod shape;
pub mod store;
pub mod stream;
pub mod trace;
pub mod world;

use counters::Counters;
use invariants::Violation;
use mainstay_decide::Plant;
use std::collections::BTreeSet;

/// What became of a schedule.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// What happened.
    pub counters: Counters,
    /// Tells two runs apart.
    pub hash: u64,
    /// From the heal until all was well, in microseconds of virtual time.
    pub healed_in: u64,
    /// The text, if asked for.
    pub lines: Vec<String>,
}

/// Runs one schedule.
#[must_use]
pub fn run(seed: u64, plants: &BTreeSet<Plant>, traced: bool) -> Report {
    let mut world = world::World::new(seed, plants, traced);
    if traced {
        let shape = format!("seed {seed}: {:?}", world.shape);
        world.trace.lines.push(shape);
    }
    world.run();
    Report {
        seed,
        violation: world.violation.clone(),
        counters: world.counters,
        hash: world.trace.hash(),
        healed_in: world.now.saturating_sub(world.shape.heal_at),
        lines: std::mem::take(&mut world.trace.lines),
    }
}
