//! Has a node a part in the cluster's store, by what the agents say of it?

use mainstay_model::NodeId;
use mainstay_model::api::Standing;
use std::collections::BTreeMap;

/// Another node counts this one as a voting member of the store. An etcd's own members are no nodes. `alone`: there is no other node to say it.
pub(crate) fn votes(standings: &BTreeMap<NodeId, Standing>, node: &NodeId, alone: bool) -> bool {
    let counts = |(other, standing): (&NodeId, &Standing)| {
        standing.store.etcd.is_none() && (alone || other != node) && standing.store.voters.contains(node)
    };
    standings.iter().any(counts)
}

/// It votes; with an etcd, it answers and goes by what that shows.
pub(crate) fn is_in(standings: &BTreeMap<NodeId, Standing>, node: &NodeId, alone: bool) -> bool {
    let goes_by_etcd = |standing: &Standing| {
        standing.store.failure.is_none() && standing.store.etcd.as_ref().is_some_and(|etcd| etcd.works)
    };
    votes(standings, node, alone) || standings.get(node).is_some_and(goes_by_etcd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::examples::{name, standing};
    use mainstay_model::etcd::EtcdStanding;

    #[test]
    fn with_an_etcd_a_node_is_in_when_it_answers_and_goes_by_it() {
        let of_etcd = |number: u64, works: bool| {
            let mut standing = standing(number, 1);
            standing.store.etcd = Some(EtcdStanding { works, ..EtcdStanding::default() });
            (standing.node.clone(), standing)
        };
        let mut standings = BTreeMap::from([of_etcd(1, true), of_etcd(2, false)]);
        let are_in =
            |standings: &BTreeMap<_, _>| [1, 2, 3].map(|number| is_in(standings, &name(&format!("db{number}")), false));
        assert_eq!(are_in(&standings), [true, false, false], "the second one is cut off, the third one is silent");
        standings.values_mut().for_each(|standing| standing.store.failure = Some("seen less".to_owned()));
        assert_eq!(are_in(&standings), [false; 3]);
        let embedded = BTreeMap::from([(name("db1"), standing(1, 1))]);
        assert_eq!(are_in(&embedded), [false, true, true], "the nodes' own store: another member says who votes");
        assert!(
            votes(&embedded, &name("db2"), false) && !votes(&standings, &name("db1"), true),
            "an etcd counts no nodes"
        );
    }
}
