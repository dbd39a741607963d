//! In which order servers are restarted: replicas one after the other, then the primary's role moves away from the old primary, whose server
//! thereby starts anew.

use crate::failure::{Failure, Outcome};
use mainstay_model::NodeId;
use mainstay_model::status::{NodeStatus, Status};
use std::collections::BTreeMap;

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    /// These nodes; none: the whole cluster.
    pub(crate) nodes: Vec<NodeId>,
    /// Only nodes with parameters that wait for it.
    pub(crate) pending: bool,
    /// The primary restarts as primary of the same term.
    pub(crate) in_place: bool,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// This replica's server is restarted; the next step waits until it streams again.
    Replica(NodeId),
    /// This primary hands its role over; its server then starts anew as a replica.
    HandOver(NodeId),
    /// This primary's server is restarted as primary: writes wait meanwhile.
    InPlace(NodeId),
}

impl Step {
    /// For people.
    pub(crate) fn words(&self) -> String {
        match self {
            Step::Replica(node) => format!("restart the replica {node}, and wait until it streams again"),
            Step::HandOver(node) => {
                format!("hand the primary's role over from {node}, whose server then starts anew as a replica")
            }
            Step::InPlace(node) => format!("restart the primary {node} in place: writes wait meanwhile"),
        }
    }
}

/// The steps, in their order; none: nothing waits for a restart.
///
/// # Errors
/// When a node has no server, or does not answer, or when there is no primary that a restarted server could follow.
pub(crate) fn plan(status: &Status, pending: &BTreeMap<NodeId, Vec<String>>, wish: &Wish) -> Outcome<Vec<Step>> {
    for name in &wish.nodes {
        if status.nodes.iter().any(|node| node.name == *name && node.role == "witness") {
            return Err(Failure::usage(format!("{name} is a witness: it has no server to restart")));
        }
    }
    let waits = |node: &NodeStatus| pending.get(&node.name).is_some_and(|names| !names.is_empty());
    let named = |node: &NodeStatus| wish.nodes.is_empty() || wish.nodes.contains(&node.name);
    let data: Vec<&NodeStatus> = status.nodes.iter().filter(|node| node.role != "witness").collect();
    let chosen: Vec<&NodeStatus> =
        data.iter().copied().filter(|node| named(node) && (!wish.pending || waits(node))).collect();
    if let Some(silent) = chosen.iter().find(|node| node.agent_pid.is_none()) {
        return Err(Failure::not_now(format!(
            "the agent of {} does not answer: its server can not be restarted",
            silent.name
        ))
        .hint("bring it back first, or name the other nodes"));
    }
    // The first replica would be restarted, and the next one be refused: half a restart, for nothing.
    if status.cluster.primary.is_none() && !chosen.is_empty() {
        return Err(Failure::not_now("the cluster has no primary now: servers are not restarted before it has one")
            .hint("see `mainstay status` for what is missing; nothing was changed"));
    }
    let is_primary = |node: &NodeStatus| status.cluster.primary.as_ref() == Some(&node.name);
    let mut steps: Vec<Step> =
        chosen.iter().filter(|node| !is_primary(node)).map(|node| Step::Replica(node.name.clone())).collect();
    if let Some(primary) = chosen.iter().find(|node| is_primary(node)) {
        let alone = data.len() == 1;
        if !alone && !wish.in_place && !data.iter().any(|node| !is_primary(node) && node.healthy) {
            return Err(Failure::not_now(format!("no replica is fit to take over from {}", primary.name)).hint(
                "wait for one (`mainstay status`), or restart it in place with --in-place: writes wait meanwhile",
            ));
        }
        let name = primary.name.clone();
        steps.push(if alone || wish.in_place { Step::InPlace(name) } else { Step::HandOver(name) });
    }
    Ok(steps)
}

/// A step failed. What was restarted before it stays so, and is said: "nothing was changed" holds for the last step alone.
pub(crate) fn cut_short(failure: Failure, restarted: &[NodeId], left: &[NodeId]) -> Failure {
    if restarted.is_empty() {
        return failure;
    }
    let names = |nodes: &[NodeId]| super::failover::list(nodes);
    let rest: Vec<&str> = left.iter().map(NodeId::as_str).collect();
    Failure::failed(format!(
        "{}\n{} restarted already; not restarted: {}",
        failure.error,
        names(restarted),
        names(left)
    ))
    .hint(format!("see `mainstay status` and `mainstay why`; for what is left: `mainstay restart {}`", rest.join(" ")))
}

/// Parameters that a replica may not hold lower than the primary. A lowered one reaches the replicas only after the primary runs with it, and a
/// replica that is promoted keeps its higher value: so the primary restarts in place first.
const NEVER_LOWER: [&str; 5] = [
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_wal_senders",
    "max_worker_processes",
];

/// What is left to do when parameters still wait after every server was restarted once: they were lowered. `None`: nothing that helps.
pub(crate) fn lowered(status: &Status, pending: &BTreeMap<NodeId, Vec<String>>) -> Option<Vec<Step>> {
    let primary = status.cluster.primary.as_ref()?;
    let held_up = pending.get(primary)?.iter().any(|name| NEVER_LOWER.contains(&name.as_str()));
    let replicas = pending.keys().filter(|node| *node != primary).cloned().map(Step::Replica);
    held_up.then(|| std::iter::once(Step::InPlace(primary.clone())).chain(replicas).collect())
}

/// What it costs, for people.
pub(crate) fn cost(status: &Status, pending: &BTreeMap<NodeId, Vec<String>>, steps: &[Step]) -> String {
    let replicas = status.nodes.iter().filter(|node| node.role == "replica" && node.healthy).count();
    let mut costs = Vec::new();
    if steps.iter().any(|step| matches!(step, Step::Replica(_))) {
        costs.push("reads on a replica that restarts are ended".to_owned());
        if replicas < 2 && status.cluster.durability == "strict" {
            costs.push("commits wait while the only replica restarts (durability strict)".to_owned());
        }
    }
    if steps.iter().any(|step| matches!(step, Step::HandOver(_))) {
        costs.push("at the handover new work waits for a moment, and open transactions may be ended".to_owned());
    }
    if steps.iter().any(|step| matches!(step, Step::InPlace(_))) {
        costs.push("open transactions are ended, and new work waits until the server has started".to_owned());
    }
    let mut names: Vec<&str> = pending.values().flatten().map(String::as_str).collect();
    names.retain(|name| NEVER_LOWER.contains(name));
    names.sort_unstable();
    names.dedup();
    if !names.is_empty() && steps.iter().any(|step| matches!(step, Step::HandOver(_))) {
        let names = names.join(" or ");
        costs.push(format!(
            "if {names} was lowered, the primary then restarts in place and the replicas once more: new work waits meanwhile"
        ));
    }
    costs.join("; ")
}

/// Is this restart done: another server process, which does what its role asks, and counts for commits if it did before?
pub(crate) fn done(before: &NodeStatus, now: &Status) -> bool {
    let Some(node) = now.nodes.iter().find(|node| node.name == before.name) else { return false };
    node.healthy
        && node.server_pid.is_some()
        && node.server_pid != before.server_pid
        && (node.sync || !before.sync || node.role == "primary")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::examples::{name, node, status};

    fn three() -> Status {
        status(vec![
            node("db1", "replica", true),
            node("db2", "primary", true),
            node("db3", "replica", true),
            node("w", "witness", true),
        ])
    }

    fn steps(status: &Status, wish: &Wish) -> Vec<Step> {
        plan(status, &BTreeMap::new(), wish).unwrap()
    }

    #[test]
    fn the_whole_cluster_begins_with_its_replicas() {
        assert_eq!(
            steps(&three(), &Wish::default()),
            [Step::Replica(name("db1")), Step::Replica(name("db3")), Step::HandOver(name("db2"))]
        );
    }

    #[test]
    fn in_place_or_alone_the_primary_keeps_its_role() {
        let wish = Wish { in_place: true, ..Wish::default() };
        assert_eq!(steps(&three(), &wish).last(), Some(&Step::InPlace(name("db2"))));
        let alone = status(vec![node("db1", "primary", true), node("w", "witness", true)]);
        assert_eq!(steps(&alone, &Wish::default()), [Step::InPlace(name("db1"))]);
    }

    #[test]
    fn only_named_nodes_and_only_pending_ones() {
        let wish = Wish { nodes: vec![name("db3")], ..Wish::default() };
        assert_eq!(steps(&three(), &wish), [Step::Replica(name("db3"))]);
        let pending = [(name("db2"), vec!["max_connections".to_owned()]), (name("db3"), Vec::new())].into();
        let wish = Wish { pending: true, ..Wish::default() };
        assert_eq!(plan(&three(), &pending, &wish).unwrap(), [Step::HandOver(name("db2"))]);
        assert_eq!(steps(&three(), &wish), []);
    }

    #[test]
    fn what_can_not_be_done_is_refused_before_anything_is() {
        let wish = |text: &str| Wish { nodes: vec![name(text)], ..Wish::default() };
        let refused = |status: &Status, wish: &Wish| plan(status, &BTreeMap::new(), wish).unwrap_err();
        assert_eq!(refused(&three(), &wish("w")).status, crate::failure::USAGE);
        let lame = status(vec![node("db1", "none", false), node("db2", "primary", true)]);
        assert_eq!(refused(&lame, &Wish::default()).status, crate::failure::NOT_NOW);
        let failure = refused(&lame, &wish("db2"));
        assert!(failure.error.contains("no replica is fit"), "{}", failure.error);
        assert!(failure.hint.unwrap().contains("--in-place"));
    }

    #[test]
    fn without_a_primary_nothing_is_restarted() {
        let none = status(vec![node("db1", "replica", true), node("db2", "replica", true)]);
        let failure = plan(&none, &BTreeMap::new(), &Wish::default()).unwrap_err();
        assert_eq!(failure.status, crate::failure::NOT_NOW);
        assert!(failure.error.contains("no primary"), "{}", failure.error);
    }

    #[test]
    fn a_restart_that_was_cut_short_says_what_is_done() {
        let refused = || Failure::not_now("refused").hint("nothing was changed");
        assert_eq!(cut_short(refused(), &[], &[name("db1")]), refused());
        let half = cut_short(refused(), &[name("db1")], &[name("db2"), name("db3")]);
        assert_eq!(half.status, crate::failure::FAILED);
        assert_eq!(half.error, "refused\ndb1 restarted already; not restarted: db2, db3");
        assert!(half.hint.unwrap().ends_with("`mainstay restart db2 db3`"));
    }

    #[test]
    fn lowered_parameters_begin_at_the_primary() {
        let all = |parameter: &str| ["db1", "db2", "db3"].map(|node| (name(node), vec![parameter.to_owned()])).into();
        assert_eq!(
            lowered(&three(), &all("max_connections")).unwrap(),
            [Step::InPlace(name("db2")), Step::Replica(name("db1")), Step::Replica(name("db3"))]
        );
        assert_eq!(lowered(&three(), &all("shared_buffers")), None, "a restart was all it needed");
        assert_eq!(lowered(&three(), &[(name("db1"), vec!["max_connections".to_owned()])].into()), None);
    }

    #[test]
    fn the_cost_is_said() {
        let two = status(vec![node("db1", "replica", true), node("db2", "primary", true)]);
        assert!(
            cost(&two, &BTreeMap::new(), &steps(&two, &Wish::default()))
                .contains("commits wait while the only replica restarts")
        );
        assert!(!cost(&three(), &BTreeMap::new(), &steps(&three(), &Wish::default())).contains("only replica"));
    }

    #[test]
    fn a_restart_is_done_with_another_process_that_counts_again() {
        let before = three();
        assert!(!done(&before.nodes[0], &before), "the same process");
        let mut after = three();
        after.nodes[0].server_pid = Some(99);
        assert!(done(&before.nodes[0], &after));
        after.nodes[0].sync = false;
        assert!(!done(&before.nodes[0], &after), "it counted for commits before");
        after.nodes[0].sync = true;
        after.nodes[0].healthy = false;
        assert!(!done(&before.nodes[0], &after));
    }
}
