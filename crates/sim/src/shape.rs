//! What a schedule is drawn from: how many nodes, which durability, how bad the weather is. One seed fixes all of it.

use crate::rng::Rng;
use mainstay_decide::Plant;
use mainstay_model::{Durability, Span};
use std::collections::BTreeSet;

/// Microseconds of virtual time.
pub type Micros = u64;

/// One millisecond.
pub const MS: Micros = 1000;

/// A chain of happenings that chance alone would rarely line up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// The lease gets longer, the primary learns it first, and is cut off.
    LeaseUp,
    /// The lease gets shorter, and the primary is cut off.
    LeaseDown,
    /// A replica that reaches nobody but the store is ordered to take over, a loss accepted.
    Forced,
    /// The same after a first order that found too few answers.
    ForcedAgain,
    /// Every node is ordered to give its copy up while no primary runs.
    ReinitAll,
    /// A replica learns that another one was removed, and is ordered to take over without it.
    Removed,
}

/// The fixed part of a schedule.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Data nodes.
    pub nodes: usize,
    /// n: how many replicas a commit waits for.
    pub sync_replicas: u32,
    /// How commits are protected.
    pub durability: Durability,
    /// The lease.
    pub lease: Span,
    /// Kept back by the guard.
    pub margin: Span,
    /// Each clock's rate, in millionths.
    pub clock_rates: Vec<u64>,
    /// Store requests and replies lost, in 1/10 000.
    pub store_loss: u64,
    /// Store requests and replies late by up to three seconds, in 1/10 000.
    pub store_late: u64,
    /// No answer of the store after this is an unknown outcome; the decisions must not rely on how long it is.
    pub store_timeout: Micros,
    /// The store answers late all the time: many writes land after their time-out.
    pub store_slow: bool,
    /// Watch deliveries late, in 1/10 000.
    pub watch_late: u64,
    /// Messages between nodes lost, in 1/10 000.
    pub peer_loss: u64,
    /// The slowest delay of a message between nodes.
    pub peer_delay: Micros,
    /// A standby that is not heard for so long is cut off.
    pub stream_timeout: Micros,
    /// Begin from no data at all.
    pub found: bool,
    /// Mean pause between faults.
    pub fault_pause: Micros,
    /// When faults end.
    pub heal_at: Micros,
    /// It does not end before this moment, however well all is.
    pub linger_until: Micros,
    /// When the schedule ends at the latest.
    pub end_at: Micros,
    /// Chance of a fault after each of the protocol's own steps, in 1/10 000.
    pub targeted: u64,
    /// How many such faults at most.
    pub targeted_most: u32,
    /// Data nodes listed at the beginning; the others are spare hosts.
    pub listed: usize,
    /// An operator is at work: commands, nodes, modes, times.
    pub operator: bool,
    /// What happens in order, in some schedules.
    pub scenario: Option<Scenario>,
    /// The store may lose its majority for ever.
    pub store_loss_for_ever: bool,
}

impl Shape {
    /// Draws the shape of a schedule.
    #[must_use]
    pub fn draw(rng: &mut Rng, plants: &BTreeSet<Plant>) -> Shape {
        let nodes = match rng.below(100) {
            0..20 => 2,
            20..70 => 3,
            70..80 => 4,
            _ => 5,
        };
        let sync_replicas = if nodes > 2 && rng.chance(4000) { 2 } else { 1 };
        let durability = match rng.below(100) {
            0..60 => Durability::Strict,
            60..90 => Durability::Available,
            _ => Durability::Async,
        };
        let drift = if plants.contains(&Plant::NoMargin) { 100_000 } else { 20_000 };
        let clock_rates = (0..nodes).map(|_| rng.range(1_000_000 - drift, 1_000_000 + drift)).collect();
        let heal_at = rng.range(5_000, 11_000) * MS;
        let operator = rng.chance(5000);
        let store_loss_for_ever = operator && rng.chance(1500);
        let heal_at = if store_loss_for_ever { heal_at + 6_000 * MS } else { heal_at };
        let spare = usize::from(operator && nodes > 2 && rng.chance(3000));
        let listed = if nodes - spare > sync_replicas as usize { nodes - spare } else { nodes };
        let mut shape = Shape {
            nodes,
            sync_replicas,
            durability,
            lease: Span(1200),
            margin: if plants.contains(&Plant::NoMargin) { Span(0) } else { Span(240) },
            clock_rates,
            store_loss: rng.below(1200),
            store_late: rng.range(50, 500),
            store_timeout: rng.range(150, 800) * MS,
            store_slow: false,
            watch_late: rng.range(50, 1500),
            peer_loss: rng.below(300),
            peer_delay: rng.range(1, 12) * MS,
            stream_timeout: rng.range(250, 900) * MS,
            found: rng.chance(700),
            fault_pause: rng.range(150, 1800) * MS,
            heal_at,
            linger_until: if rng.chance(1000) { heal_at + 4_000 * MS } else { heal_at },
            end_at: heal_at + if operator { 16_000 } else { 9_000 } * MS,
            listed,
            operator,
            scenario: None,
            store_loss_for_ever,
            targeted: *[0, 1000, 2500, 5000].get(rng.index(4)).unwrap_or(&0),
            targeted_most: rng.range(1, 10) as u32,
        };
        shape.draw_scenario(rng, plants);
        if rng.chance(1000) {
            shape.store_slow = true;
            shape.store_timeout = rng.range(130, 260) * MS;
        }
        shape
    }

    fn draw_scenario(&mut self, rng: &mut Rng, plants: &BTreeSet<Plant>) {
        if !self.operator || self.store_loss_for_ever || self.found || !rng.chance(1200) {
            return;
        }
        use Scenario::{Forced, ForcedAgain, LeaseDown, LeaseUp, ReinitAll, Removed};
        let all = [LeaseUp, LeaseDown, Forced, ForcedAgain, ReinitAll, Removed];
        let scenario = *all.get(rng.index(all.len())).unwrap_or(&LeaseUp);
        let long = match scenario {
            LeaseDown => 3_600,
            Forced | ForcedAgain => 7_000,
            LeaseUp | ReinitAll | Removed => 1_200,
        };
        if matches!(scenario, Forced | ForcedAgain | Removed) {
            if self.listed < 3 {
                return;
            }
            (self.durability, self.sync_replicas) = (Durability::Available, 1);
        }
        if scenario == ReinitAll {
            if self.listed < 3 {
                return;
            }
            (self.durability, self.sync_replicas) = (Durability::Strict, 1);
        }
        if matches!(scenario, LeaseUp | LeaseDown) {
            self.durability = Durability::Async;
        }
        self.lease = Span(long);
        self.margin = if plants.contains(&Plant::NoMargin) { Span(0) } else { Span(long / 5) };
        self.fault_pause = 4_000 * MS;
        self.heal_at = 14_000 * MS;
        self.linger_until = self.heal_at;
        self.end_at = self.heal_at + 20_000 * MS;
        self.scenario = Some(scenario);
    }
}
