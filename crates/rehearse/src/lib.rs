//! Rehearsal: the real decision core of every node of a planned cluster, in a small world whose nodes fail. What a plan says of failures
//! is not only arithmetic: it happened here.
//!
//! PURE. Absent: networks that lose messages, slow disks, clocks that drift: those are the simulator's (`crates/sim`), which looks for mistakes
//! in the decisions; this looks at one cluster.

#![forbid(unsafe_code)]

mod server;
mod world;

use mainstay_model::NodeId;
use mainstay_model::spec::Spec;
use mainstay_plan::layout::{Layout, Pace, subsets};
use mainstay_plan::whatif::{Ended, WhatIf};
use std::collections::BTreeSet;
use world::World;

/// How long the world may take to found the cluster.
const FOUNDING_MS: u64 = 20_000;
/// Commits at most this far apart are service without a gap.
const STEADY_MS: u64 = 60;
/// Above so many nodes pairs are left out: there are too many of them, and the arithmetic says the same.
const NODES_MAX: usize = 9;

/// What happens to this cluster when each node fails, and each pair of nodes, at once and one after the other; and when the primary's
/// database server dies. `None`: the world could not found it (no plan claims anything then).
#[must_use]
pub fn what_if(spec: &Spec) -> Option<Vec<WhatIf>> {
    let mut world = World::new(spec);
    let primary = world.settle(FOUNDING_MS)?;
    let steady = steady_for(spec);
    world.run(steady);
    let mut found = vec![server_dies(&world, &primary, steady)];
    let layout = Layout::of(spec);
    for failed in subsets(&layout.places, 1) {
        found.push(rehearse(&world, &primary, &failed, Pace::AtOnce, steady));
    }
    if layout.votes() <= NODES_MAX {
        for failed in subsets(&layout.places, 2) {
            for pace in [Pace::AtOnce, Pace::OneByOne] {
                found.push(rehearse(&world, &primary, &failed, pace, steady));
            }
        }
    }
    for zone in layout.zones().into_iter().flatten() {
        let failed = layout.zone(zone);
        if failed.len() > 2 || (failed.len() == 2 && layout.votes() > NODES_MAX) {
            found.push(rehearse(&world, &primary, &failed, Pace::AtOnce, steady));
        }
    }
    Some(found)
}

/// What has gone on for that long goes on: a primary that can not renew its claim has stopped by then.
fn steady_for(spec: &Spec) -> u64 {
    spec.failover.lease_ms + spec.failover.suspicion_ms
}

fn server_dies(settled: &World, primary: &NodeId, steady: u64) -> WhatIf {
    let mut world = settled.clone();
    world.crash_server(primary);
    let (ended, lost) = watch(&mut world, steady);
    WhatIf { failed: BTreeSet::new(), primary: primary.clone(), pace: Pace::AtOnce, ended, lost }
}

fn rehearse(settled: &World, primary: &NodeId, failed: &BTreeSet<NodeId>, pace: Pace, steady: u64) -> WhatIf {
    let mut world = settled.clone();
    // One by one, the primary goes first: the others then have to do without it.
    let mut order: Vec<&NodeId> = failed.iter().collect();
    order.sort_by_key(|name| *name != primary);
    let mut ended = Ended::Stopped;
    let mut longest = 0;
    let mut lost = false;
    for (place, name) in order.iter().enumerate() {
        world.lose(name);
        if pace == Pace::AtOnce && place + 1 < order.len() {
            continue;
        }
        let (now, gone) = watch(&mut world, steady);
        lost |= gone;
        ended = now;
        if let Ended::Serves { gap_ms } = now {
            longest = longest.max(gap_ms);
        }
        // Redundancy as far as it can be had, before the next one fails.
        if place + 1 < order.len() {
            world.run(steady);
        }
    }
    if let Ended::Serves { .. } = ended {
        ended = Ended::Serves { gap_ms: longest };
    }
    WhatIf { failed: failed.clone(), primary: primary.clone(), pace, ended, lost }
}

/// Runs until commits have been acknowledged without a gap for `steady`, or it is clear that they will not.
fn watch(world: &mut World, steady: u64) -> (Ended, bool) {
    let start = world.now;
    let limit = start + 5 * steady;
    let mut last = start;
    let mut since = start;
    let mut longest = 0;
    while world.now < limit && world.now - since < steady {
        world.tick();
        let newest = world.acknowledged.map_or(0, |(_, at)| at);
        if newest == world.now {
            if newest - last > STEADY_MS {
                since = newest;
            }
            longest = longest.max(newest - last);
            last = newest;
        } else if world.now - last > STEADY_MS {
            since = world.now;
        }
    }
    let serves = world.now - since >= steady;
    (if serves { Ended::Serves { gap_ms: longest } } else { Ended::Stopped }, world.lost)
}
