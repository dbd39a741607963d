//! What adding or removing a node does to the arithmetic of votes and commits, in words.

use mainstay_model::Durability;
use mainstay_model::spec::Spec;

/// One shape of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    data: u32,
    /// None where an etcd is the store: its members vote.
    voters: Option<u32>,
    waits: u32,
    durability: Durability,
}

impl Shape {
    /// Of this specification.
    pub(crate) fn of(spec: &Spec) -> Shape {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let waits = if spec.cluster.durability == Durability::Async { 0 } else { spec.sync_replicas() };
        Shape {
            data: count(spec.data_nodes().count()),
            voters: (!spec.store.is_etcd()).then(|| count(spec.nodes.len())),
            waits,
            durability: spec.cluster.durability,
        }
    }

    /// How many nodes may fail at once while the rest still can elect. With an etcd that works no node is needed for that, but a copy of the data.
    fn spare_voters(self) -> u32 {
        match self.voters {
            Some(voters) => voters.saturating_sub(1) / 2,
            None if self.durability == Durability::Async => self.data.saturating_sub(1),
            None => self.waits.min(self.data.saturating_sub(1)),
        }
    }

    /// For people.
    pub(crate) fn words(self) -> String {
        let plural = |count: u32| if count == 1 { "" } else { "s" };
        let commits = match (self.durability, self.waits) {
            (Durability::Async, _) | (_, 0) => "a commit waits for no replica".to_owned(),
            (_, waits) => format!(
                "a commit waits for {waits} of {} replica{}",
                self.data.saturating_sub(1),
                plural(self.data.saturating_sub(1))
            ),
        };
        let spare = self.spare_voters();
        let survives = match spare {
            0 => "no node may fail".to_owned(),
            _ => format!(
                "{spare} node{} may fail{}",
                plural(spare),
                if self.voters.is_none() { " while the etcd works" } else { "" }
            ),
        };
        let votes = match self.voters {
            Some(voters) => format!("{voters} vote{}", plural(voters)),
            None => "an etcd votes".to_owned(),
        };
        format!("{} data node{}, {votes}: {commits}; {survives}", self.data, plural(self.data))
    }
}

/// What becomes weaker, if anything does.
pub(crate) fn warnings(before: Shape, after: Shape) -> Vec<String> {
    let mut found = Vec::new();
    if after.spare_voters() < before.spare_voters() {
        found.push(format!(
            "fewer nodes may fail than before ({} instead of {})",
            after.spare_voters(),
            before.spare_voters()
        ));
    }
    if let Some(voters) = after.voters.filter(|voters| *voters > 0 && voters.is_multiple_of(2)) {
        found.push(format!("{voters} votes bear no more failures than {}: an odd number is better", voters - 1));
    }
    if after.data == 1 && before.data > 1 {
        found.push(
            "no replica is left: a failure of the last data node stops the cluster, and its disk is the only copy"
                .to_owned(),
        );
    } else if after.waits > 0 && after.data - 1 == after.waits && after.durability == Durability::Strict {
        found.push(
            "each replica is needed for every commit: writes are blocked while one is away (durability strict)"
                .to_owned(),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::config::parse;
    use std::fmt::Write as _;

    fn shape(data: usize, witnesses: usize, durability: &str) -> Shape {
        shape_with("", data, witnesses, durability)
    }

    fn shape_with(store: &str, data: usize, witnesses: usize, durability: &str) -> Shape {
        let mut text = format!("[cluster]\nname = \"a\"\ndurability = \"{durability}\"\n");
        for number in 0..data + witnesses {
            let _ = write!(
                text,
                "[[node]]\nname = \"n{number}\"\nhost = \"10.0.0.{}\"\nwitness = {}\n",
                number + 1,
                number >= data
            );
        }
        text.push_str(store);
        Shape::of(&parse(&text, &[]).unwrap())
    }

    #[test]
    fn shapes_in_words() {
        assert_eq!(
            shape(3, 0, "strict").words(),
            "3 data nodes, 3 votes: a commit waits for 1 of 2 replicas; 1 node may fail"
        );
        assert_eq!(
            shape(2, 1, "strict").words(),
            "2 data nodes, 3 votes: a commit waits for 1 of 1 replica; 1 node may fail"
        );
        assert_eq!(
            shape(1, 0, "strict").words(),
            "1 data node, 1 vote: a commit waits for no replica; no node may fail"
        );
        assert_eq!(
            shape(5, 0, "async").words(),
            "5 data nodes, 5 votes: a commit waits for no replica; 2 nodes may fail"
        );
    }

    #[test]
    fn where_an_etcd_votes_no_node_does() {
        let of = |data, durability| {
            shape_with("[store]\nkind = \"etcd\"\nendpoints = [\"http://10.0.1.1\"]\n", data, 0, durability)
        };
        let two = of(2, "available");
        assert_eq!(
            two.words(),
            "2 data nodes, an etcd votes: a commit waits for 1 of 1 replica; 1 node may fail while the etcd works"
        );
        assert_eq!(warnings(of(3, "available"), two), Vec::<String>::new(), "an even number is as good as an odd one");
        assert!(
            warnings(two, of(1, "available")).join("\n").contains("fewer nodes may fail than before (0 instead of 1)")
        );
    }

    #[test]
    fn what_becomes_weaker_is_said() {
        let weaker = warnings(shape(3, 0, "strict"), shape(2, 0, "strict")).join("\n");
        for words in ["fewer nodes may fail", "an odd number is better", "writes are blocked while one is away"] {
            assert!(weaker.contains(words), "{words}: {weaker}");
        }
        assert!(warnings(shape(2, 1, "available"), shape(1, 1, "available")).join("\n").contains("the only copy"));
        assert_eq!(warnings(shape(3, 0, "strict"), shape(5, 0, "strict")), Vec::<String>::new());
    }
}
