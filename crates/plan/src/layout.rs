//! Which nodes there are, and what the arithmetic of votes and commits says after some of them failed. The rehearsal runs the real decisions
//! on the same failures; tests compare both.

use mainstay_model::spec::Spec;
use mainstay_model::{Durability, NodeId};
use std::collections::BTreeSet;

/// One node of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub name: NodeId,
    /// Its zone.
    pub zone: Option<String>,
    /// It votes and holds no data.
    pub witness: bool,
}

/// What decides over survival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The nodes.
    pub places: Vec<Place>,
    /// How commits are protected.
    pub durability: Durability,
    /// How many replicas a commit waits for.
    pub waits: usize,
    /// The store is an etcd: its members vote, and no node does. That it works is not this arithmetic's: it is counted as if it did.
    pub etcd: bool,
}

/// How failures follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pace {
    /// All in one moment, as when a zone loses its power.
    AtOnce,
    /// The next one when the cluster has settled after the one before.
    OneByOne,
}

/// Writes after failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// They go on, by themselves.
    GoOn,
    /// Too few votes are left.
    NoMajority,
    /// All copies that are left may lack acknowledged writes: only a person may let them take over.
    Unproved,
    /// A commit finds too few replicas.
    Blocked,
    /// No copy of the data is left.
    NoData,
}

impl Writes {
    /// For people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::GoOn => "writes go on by themselves",
            Self::NoMajority => "writes stop: fewer than a majority of the votes are left",
            Self::Unproved => {
                "writes stop: the copies that are left may lack acknowledged writes, so none takes over by itself"
            }
            Self::Blocked => "writes stop: a commit finds too few replicas (durability strict)",
            Self::NoData => "writes stop: no copy of the data is left",
        }
    }
}

impl Layout {
    /// As the file says.
    #[must_use]
    pub fn of(spec: &Spec) -> Layout {
        let place = |node: &mainstay_model::spec::Node| Place {
            name: node.name.clone(),
            zone: node.zone.clone(),
            witness: node.witness,
        };
        let asynchronous = spec.cluster.durability == Durability::Async;
        Layout {
            places: spec.nodes.iter().map(place).collect(),
            durability: spec.cluster.durability,
            waits: if asynchronous { 0 } else { spec.sync_replicas() as usize },
            etcd: spec.store.is_etcd(),
        }
    }

    /// So many nodes without zones, and a commit that waits for half of the data nodes.
    #[must_use]
    pub fn plain(data: usize, witnesses: usize, durability: Durability) -> Layout {
        let name =
            |place: usize| if place < data { format!("db{}", place + 1) } else { format!("w{}", place + 1 - data) };
        let places = (0..data + witnesses)
            .filter_map(|place| {
                Some(Place { name: NodeId::new(name(place)).ok()?, zone: None, witness: place >= data })
            })
            .collect();
        let waits = if durability == Durability::Async { 0 } else { (data / 2).min(data.saturating_sub(1)) };
        Layout { places, durability, waits, etcd: false }
    }

    /// The same nodes, with the votes where this layout has them.
    #[must_use]
    pub fn voting_as(self, other: &Layout) -> Layout {
        Layout { etcd: other.etcd, ..self }
    }

    /// How many nodes hold data.
    #[must_use]
    pub fn data(&self) -> usize {
        self.places.iter().filter(|place| !place.witness).count()
    }

    /// How many nodes there are. Each has a vote, unless the store is an etcd.
    #[must_use]
    pub fn votes(&self) -> usize {
        self.places.len()
    }

    /// How many votes are a majority.
    #[must_use]
    pub fn majority(&self) -> usize {
        self.votes() / 2 + 1
    }

    /// What becomes of writes when so many are left, whoever was primary.
    #[must_use]
    pub fn with(&self, votes: usize, data: usize) -> Writes {
        if data == 0 {
            Writes::NoData
        } else if !self.etcd && votes < self.majority() {
            Writes::NoMajority
        } else if self.durability == Durability::Strict && data < self.waits + 1 {
            Writes::Blocked
        } else {
            Writes::GoOn
        }
    }

    /// What becomes of writes when these fail, the primary among them or not.
    #[must_use]
    pub fn after(&self, failed: &BTreeSet<NodeId>, primary: bool, pace: Pace) -> Writes {
        let left = self.places.iter().filter(|place| !failed.contains(&place.name));
        let (votes, data) = (left.clone().count(), left.filter(|place| !place.witness).count());
        let with = self.with(votes, data);
        let lost = self.data() - data;
        let unproved = pace == Pace::AtOnce && primary && self.durability != Durability::Async && lost > self.waits;
        match with {
            Writes::GoOn | Writes::Blocked if unproved => Writes::Unproved,
            with => with,
        }
    }

    /// How many copies hold each acknowledged commit, at least.
    #[must_use]
    pub fn copies(&self) -> usize {
        self.waits + 1
    }

    /// Worst case over every choice of so many nodes.
    #[must_use]
    pub fn survives(&self, count: usize, pace: Pace) -> bool {
        let choices = subsets(&self.places, count);
        choices.iter().all(|failed| {
            let with_data = self.places.iter().any(|place| !place.witness && failed.contains(&place.name));
            self.after(failed, with_data, pace) == Writes::GoOn
        })
    }

    /// The most failures of any kind that writes bear by themselves, one by one.
    #[must_use]
    pub fn bears(&self) -> usize {
        (1..=self.votes().min(4)).take_while(|count| self.survives(*count, Pace::OneByOne)).last().unwrap_or(0)
    }

    /// The zones, if every node has one.
    #[must_use]
    pub fn zones(&self) -> Option<BTreeSet<&str>> {
        self.places.iter().map(|place| place.zone.as_deref()).collect()
    }

    /// The nodes of a zone.
    #[must_use]
    pub fn zone(&self, zone: &str) -> BTreeSet<NodeId> {
        let here = self.places.iter().filter(|place| place.zone.as_deref() == Some(zone));
        here.map(|place| place.name.clone()).collect()
    }

    /// What the loss of this zone does, in the worst case.
    #[must_use]
    pub fn without_zone(&self, zone: &str) -> Writes {
        let failed = self.zone(zone);
        let with_data = self.places.iter().any(|place| !place.witness && failed.contains(&place.name));
        self.after(&failed, with_data, Pace::AtOnce)
    }
}

/// Every choice of `count` nodes.
#[must_use]
pub fn subsets(places: &[Place], count: usize) -> Vec<BTreeSet<NodeId>> {
    if count == 0 {
        return vec![BTreeSet::new()];
    }
    let mut found = Vec::new();
    for (place, node) in places.iter().enumerate() {
        for mut rest in subsets(places.get(place + 1..).unwrap_or_default(), count - 1) {
            rest.insert(node.name.clone());
            found.push(rest);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use Durability::{Async, Available, Strict};

    #[test]
    fn known_shapes() {
        for (data, witnesses, durability, bears) in [
            (1, 0, Strict, 0),
            (2, 0, Strict, 0),
            (2, 1, Strict, 0),
            (2, 1, Available, 1),
            (2, 1, Async, 1),
            (3, 0, Strict, 1),
            (3, 0, Available, 1),
            (4, 0, Strict, 1),
            (5, 0, Strict, 2),
            (3, 2, Strict, 1),
            (3, 2, Available, 2),
            (7, 0, Strict, 3),
        ] {
            let layout = Layout::plain(data, witnesses, durability);
            assert_eq!(layout.bears(), bears, "{data} + {witnesses} {durability}");
        }
    }

    #[test]
    fn an_etcd_votes_in_the_place_of_the_nodes() {
        for (data, durability, bears) in
            [(1, Available, 0), (2, Strict, 0), (2, Available, 1), (3, Strict, 1), (3, Available, 2), (4, Strict, 1)]
        {
            let layout = Layout { etcd: true, ..Layout::plain(data, 0, durability) };
            assert_eq!(layout.bears(), bears, "{data} {durability}");
        }
    }

    #[test]
    fn what_was_lost_at_once_may_have_been_the_only_copies() {
        let layout = Layout::plain(3, 2, Available);
        let failed = ["db1", "db2"].map(|name| NodeId::new(name).unwrap()).into();
        assert_eq!(layout.after(&failed, true, Pace::AtOnce), Writes::Unproved);
        assert_eq!(layout.after(&failed, true, Pace::OneByOne), Writes::GoOn);
        assert_eq!(layout.after(&failed, false, Pace::AtOnce), Writes::GoOn);
    }
}
