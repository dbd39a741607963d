//! What tests of single planted faults share: one machine's configuration, and the look at a rule with its fault planted.

use mainstay_decide::{Config, Plant};
use mainstay_model::{Durability, NodeId, Span};
use std::collections::BTreeSet;

/// A node of these nodes, the first of them standing first, with the default times.
pub(crate) fn config(me: &NodeId, nodes: &[NodeId], durability: Durability, plant: Option<Plant>) -> Config {
    Config {
        me: me.clone(),
        data_nodes: nodes.iter().cloned().zip(0..).collect(),
        excluded: BTreeSet::new(),
        durability,
        sync_replicas: 1,
        lease: Span(3000),
        margin: Span(600),
        suspicion: Span(1000),
        ping: Span(250),
        hang: Span(2000),
        seed: 7,
        founder: None,
        paused: false,
        plants: plant.into_iter().collect(),
    }
}

/// The rule holds, and the test sees it broken with the fault planted.
pub(crate) fn both(plant: Plant, holds: impl Fn(Option<Plant>) -> bool) {
    assert!(holds(None), "the rule does not hold");
    assert!(!holds(Some(plant)), "{plant:?} makes no difference: this test can not fail");
}
