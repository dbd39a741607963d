//! May the cluster go from one specification to another? A pure function; what a specification must satisfy by itself stands in
//! `mainstay_model::config_check`.

use mainstay_model::spec::Spec;
use mainstay_model::{Durability, NodeId};
use std::collections::BTreeSet;

/// Every reason against the change. `counted`: the holder of the term, or who is to become it.
#[must_use]
pub fn refusals(now: &Spec, next: &Spec, primary: Option<&NodeId>) -> Vec<String> {
    let mut against = Vec::new();
    if now.cluster.name != next.cluster.name {
        against.push(format!("the cluster is called {}; a cluster keeps its name", now.cluster.name));
    }
    if now.cluster.engine != next.cluster.engine {
        against.push(format!("the engine is {}; a cluster keeps its engine", now.cluster.engine));
    }
    if now.store.kind != next.store.kind {
        against.push(format!("the store is of the kind {}; a running cluster keeps its store", now.store.kind));
    }
    nodes(now, next, primary, &mut against);
    let (had, has) = (now.data_nodes().count(), next.data_nodes().count());
    if has == 0 {
        against.push("no node would hold data".to_owned());
    } else if has < had && has < 2 && next.cluster.durability == Durability::Strict {
        against.push(
            "one data node alone can not protect a commit, and durability is \"strict\": set durability = \"available\" or \
             \"async\" first, or add a node"
                .to_owned(),
        );
    }
    against
}

fn nodes(now: &Spec, next: &Spec, primary: Option<&NodeId>, against: &mut Vec<String>) {
    let names = |spec: &Spec| spec.nodes.iter().map(|node| node.name.clone()).collect::<BTreeSet<_>>();
    let (before, after) = (names(now), names(next));
    let added: Vec<&NodeId> = after.difference(&before).collect();
    let removed: Vec<&NodeId> = before.difference(&after).collect();
    if added.len() + removed.len() > 1 {
        against.push(format!(
            "{} nodes added and {} removed at once: one at a time, each once the one before has settled",
            added.len(),
            removed.len()
        ));
    }
    if let Some(primary) = primary
        && removed.contains(&primary)
    {
        against.push(format!("{primary} is the primary: switch over to another node first (mainstay switchover)"));
    }
    for (old, new) in now.nodes.iter().filter_map(|old| next.node(&old.name).map(|new| (old, new))) {
        let fixed = [
            ("witness", old.witness != new.witness),
            ("port", old.port != new.port),
            ("agent_port", old.agent_port != new.agent_port),
            ("health_port", old.health_port != new.health_port),
            ("dir", old.dir != new.dir),
        ];
        for (key, _) in fixed.iter().filter(|(_, changed)| *changed) {
            against
                .push(format!("{key} of {} can not change while it is a node: remove it and add it again", old.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(durability: &str, nodes: &[&str]) -> Spec {
        let mut text = format!("[cluster]\nname = \"orders\"\ndurability = \"{durability}\"\n");
        for (place, name) in nodes.iter().enumerate() {
            let witness = name.starts_with('w');
            text += &format!("[[node]]\nname = \"{name}\"\nhost = \"10.0.0.{}\"\nwitness = {witness}\n", place + 1);
        }
        mainstay_model::config::parse(&text, &[]).unwrap()
    }

    fn why(now: &Spec, next: &Spec, primary: &str) -> String {
        refusals(now, next, Some(&NodeId::new(primary).unwrap())).join("; ")
    }

    #[test]
    fn one_node_comes_or_goes_at_a_time() {
        let three = spec("strict", &["db1", "db2", "db3"]);
        assert_eq!(why(&three, &spec("strict", &["db1", "db2", "db3", "db4"]), "db1"), "");
        assert_eq!(why(&three, &spec("strict", &["db1", "db2"]), "db1"), "");
        assert!(why(&three, &spec("strict", &["db1", "db2", "db3", "db4", "db5"]), "db1").contains("one at a time"));
        assert!(why(&three, &spec("strict", &["db1", "db2", "db4"]), "db1").contains("one at a time"));
    }

    #[test]
    fn the_primary_stays() {
        let three = spec("strict", &["db1", "db2", "db3"]);
        assert!(why(&three, &spec("strict", &["db2", "db3"]), "db1").contains("switch over"));
    }

    #[test]
    fn strict_keeps_two_data_nodes() {
        let two = spec("strict", &["db1", "db2", "w1"]);
        assert!(why(&two, &spec("strict", &["db1", "w1"]), "db1").contains("strict"));
        assert_eq!(why(&two, &spec("available", &["db1", "w1"]), "db1"), "");
        assert_eq!(why(&spec("strict", &["db1"]), &spec("strict", &["db1"]), "db1"), "", "what is stays possible");
    }

    #[test]
    fn what_a_cluster_and_a_node_keep() {
        let now = spec("strict", &["db1", "db2", "db3"]);
        let mut next = now.clone();
        next.cluster.name = mainstay_model::ClusterName::new("other").unwrap();
        next.nodes[1].witness = true;
        next.nodes[2].port = 5433;
        let why = why(&now, &next, "db1");
        for part in ["keeps its name", "witness of db2", "port of db3"] {
            assert!(why.contains(part), "{part}: {why}");
        }
        let mut host = now.clone();
        host.nodes[1].host = "10.0.9.9".to_owned();
        assert_eq!(refusals(&now, &host, None), Vec::<String>::new(), "a host may move");
    }
}
