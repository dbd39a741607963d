//! What a drill is about to do, and whether it may: worked out from what the agents said. Pure.

use crate::failure::{Failure, Outcome};
use mainstay_drill::judge::{self, Budget};
use mainstay_model::drill::{DrillFault, DrillKind, DrillResult, FaultWish, LASTS_MS_MAX};
use mainstay_model::spec::Spec;
use mainstay_model::status::{NodeStatus, Status};
use mainstay_model::vault::BackupState;
use mainstay_model::{NodeId, Span};
use std::fmt::Write as _;

/// What is known before a drill.
pub(crate) struct Known<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) status: &'a Status,
    pub(crate) backup: Option<&'a BackupState>,
    pub(crate) results: &'a [DrillResult],
    /// Changes of primary: when, and how long nobody was open.
    pub(crate) gaps: &'a [(u64, u64)],
    pub(crate) now_ms: u64,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) kind: DrillKind,
    pub(crate) node: Option<&'a NodeId>,
    pub(crate) lasts_s: Option<u64>,
}

/// A drill that may happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) kind: DrillKind,
    /// To whom it happens; `None`: the proxy of a cluster on this machine, which is none of a node's.
    pub(crate) node: Option<NodeId>,
    /// How long it lasts, if it is not over at once.
    pub(crate) lasts_ms: Option<u64>,
    pub(crate) expected_ms: u64,
    pub(crate) expected_why: String,
    pub(crate) outage_allowed_s: Option<u64>,
    pub(crate) loss_allowed_s: Option<u64>,
    pub(crate) budget: Option<Budget>,
}

/// What an agent is asked to do for it; `None`: no agent's fault (a switchover is a command of its own).
pub(crate) fn fault(plan: &Plan, status: &Status) -> Option<FaultWish> {
    let node = plan.node.clone()?;
    let lasts_ms = plan.lasts_ms.unwrap_or(0);
    let fault = match plan.kind {
        DrillKind::KillServer | DrillKind::LoseReplica => DrillFault::KillServer,
        DrillKind::StopServer => DrillFault::StopServer { lasts_ms },
        DrillKind::IsolatePrimary => DrillFault::Isolate { lasts_ms },
        DrillKind::LoseProxy => DrillFault::KillProxy,
        DrillKind::Switchover => return None,
    };
    let primary = status.cluster.primary.as_ref() == Some(&node);
    Some(FaultWish { node, term: status.cluster.term, primary, fault })
}

/// Why nothing may be rehearsed now; empty: it may.
pub(crate) fn amiss(known: &Known<'_>, kind: DrillKind) -> Vec<String> {
    let status = known.status;
    let mut why = Vec::new();
    if status.cluster.primary.is_none() || !status.cluster.writable {
        why.push("no primary takes writes".to_owned());
    }
    let counts = |severity: &str| severity != "info";
    // What stands on paper says nothing of how the cluster is.
    let problems =
        status.problems.iter().filter(|problem| counts(&problem.severity) && problem.name != "runbook-outdated");
    why.extend(problems.map(|problem| format!("{}: {}", problem.name, problem.evidence)));
    let ill = status.nodes.iter().filter(|node| !node.healthy);
    why.extend(ill.map(|node| format!("{} is {}", node.name, node.state)));
    let replicas: Vec<&NodeStatus> = replicas(status).collect();
    if kind.moves_primary() && replicas.is_empty() {
        why.push("no replica streams: nobody could take over".to_owned());
    }
    let synchronous = status.cluster.durability != "async";
    if synchronous && kind.moves_primary() && !replicas.iter().any(|node| node.sync) {
        why.push("no replica's confirmation counts for commits".to_owned());
    }
    let here = |host: &str| host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if kind == DrillKind::IsolatePrimary && known.spec.nodes.iter().any(|node| here(&node.host)) {
        why.push("nodes are on one host, which can not be cut from itself".to_owned());
    }
    if let Some(running) = known.backup.and_then(|backup| backup.running.as_ref()) {
        why.push(format!("a backup runs on {}", running.node));
    }
    why.dedup();
    why
}

fn replicas(status: &Status) -> impl Iterator<Item = &NodeStatus> {
    status.nodes.iter().filter(|node| node.role == "replica" && node.healthy)
}

/// To whom it happens.
fn node(known: &Known<'_>, wish: Wish<'_>) -> Outcome<Option<NodeId>> {
    let status = known.status;
    let primary = status.cluster.primary.clone();
    match wish.kind {
        DrillKind::LoseReplica => {
            if let Some(node) = wish.node {
                let is = replicas(status).any(|replica| replica.name == *node);
                return if is {
                    Ok(Some(node.clone()))
                } else {
                    Err(Failure::not_now(format!("{node} is no replica that streams")))
                };
            }
            let worst = replicas(status).max_by_key(|node| node.sync).map(|node| node.name.clone());
            worst.map(Some).ok_or_else(|| Failure::not_now("there is no replica that could be lost"))
        }
        DrillKind::LoseProxy if known.spec.proxy.on_nodes => Ok(wish.node.cloned().or(primary)),
        DrillKind::LoseProxy if wish.node.is_some() => {
            Err(Failure::usage("--node: the nodes of this cluster have no proxies of their own (on_nodes in [proxy])"))
        }
        DrillKind::LoseProxy => Ok(None),
        DrillKind::KillServer | DrillKind::StopServer | DrillKind::IsolatePrimary | DrillKind::Switchover => {
            if let Some(node) = wish.node.filter(|node| Some(*node) != primary.as_ref()) {
                return Err(Failure::usage(format!("--node {node}: {} happens to the primary", wish.kind))
                    .hint("leave --node away, or rehearse lose-replica"));
            }
            Ok(primary)
        }
    }
}

/// Works out what would happen.
///
/// # Errors
/// When something is amiss, the wrong node is named, or it would exceed what is declared.
pub(crate) fn plan(known: &Known<'_>, wish: Wish<'_>, over_budget: bool) -> Outcome<Plan> {
    let kind = wish.kind;
    let times = &known.spec.failover;
    let lasts = matches!(kind, DrillKind::StopServer | DrillKind::IsolatePrimary);
    if !lasts && wish.lasts_s.is_some() {
        return Err(Failure::usage(format!("--for: {kind} is over at once")));
    }
    let node = node(known, wish)?;
    let amiss = amiss(known, kind);
    if !amiss.is_empty() {
        return Err(Failure::not_now(format!("the cluster is not in a state to rehearse on\n{}", amiss.join("\n")))
            .hint("mend that first (`mainstay status` says how); nothing was changed"));
    }
    let lasts_ms = lasts.then(|| wish.lasts_s.map_or(times.lease_ms * 2, |seconds| seconds * 1000).min(LASTS_MS_MAX));
    if let Some(ms) = lasts_ms.filter(|ms| *ms <= times.lease_ms) {
        return Err(Failure::usage(format!("--for: {} is no longer than the lease, {} ms", Span(ms), times.lease_ms)));
    }
    let durability = known.spec.cluster.durability;
    let (expected_ms, expected_why) = judge::expected(kind, times, durability, known.results);
    let asked = &known.spec.requirements;
    let (outage_allowed_s, loss_allowed_s) = if kind.is_host() {
        (asked.outage_host_s, asked.loss_host_s)
    } else {
        (asked.outage_server_s, asked.loss_server_s)
    };
    let nodes = known.spec.nodes.len() as u64;
    let budget =
        judge::budget(outage_allowed_s, nodes, asked.host_fails_every_days, known.gaps, known.results, known.now_ms);
    let plan = Plan { kind, node, lasts_ms, expected_ms, expected_why, outage_allowed_s, loss_allowed_s, budget };
    if let Some(budget) = plan.budget.filter(|budget| budget.breaks(expected_ms) && !over_budget) {
        return Err(Failure::not_now(format!(
            "the declared outages would be exceeded: {} of {} of the last {} days are used, and {} are expected ({})",
            Span(budget.used_ms),
            Span(budget.allowed_ms),
            judge::BUDGET_DAYS,
            Span(expected_ms),
            plan.expected_why
        ))
        .hint(
            "wait, declare what you can bear (outage_… in [requirements]), or say --over-budget; nothing was changed",
        ));
    }
    Ok(plan)
}

/// What will happen, for people.
pub(crate) fn words(plan: &Plan, known: &Known<'_>) -> String {
    let node = plan.node.as_ref().map_or_else(|| "this machine".to_owned(), ToString::to_string);
    let lasts = plan.lasts_ms.map(|ms| format!(", for {}", Span(ms))).unwrap_or_default();
    let mut text = format!("{}: {} on {node}{lasts}.", plan.kind, plan.kind.words());
    let _ = write!(
        text,
        "\nExpected: no write is acknowledged for about {} ({}).",
        Span(plan.expected_ms),
        plan.expected_why
    );
    let few = replicas(known.status).count() < 2 && known.spec.cluster.durability == mainstay_model::Durability::Strict;
    if plan.kind == DrillKind::LoseReplica && few {
        text.push_str(" It is the only replica, and durability is strict: writes wait until it is back.");
    }
    let asked = |value: Option<u64>| value.map_or_else(|| "not declared".to_owned(), |seconds| format!("{seconds} s"));
    let _ = write!(
        text,
        "\nAsked for: outage {}, loss {} ([requirements], {}).",
        asked(plan.outage_allowed_s),
        asked(plan.loss_allowed_s),
        if plan.kind.is_host() { "a host is lost" } else { "a server dies" }
    );
    if let Some(budget) = plan.budget {
        let _ = write!(
            text,
            "\nBudget: {} of {} of the last {} days are used.",
            Span(budget.used_ms),
            Span(budget.allowed_ms),
            judge::BUDGET_DAYS
        );
    }
    text.push_str("\nMarker rows go to the schema mainstay_drill, which is dropped afterwards.");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::examples::{name, node, status};
    use mainstay_model::status::Problem;

    fn with<T>(change: impl FnOnce(&mut Spec, &mut Status), judge: impl FnOnce(&Known<'_>) -> T) -> T {
        let nodes =
            ["db1", "db2", "db3"].map(|name| format!("[[node]]\nname = \"{name}\"\nhost = \"{name}.example\"\n"));
        let text = format!("[cluster]\nname = \"main\"\n[proxy]\non_nodes = false\n{}", nodes.join(""));
        let mut spec = mainstay_model::config::parse(&text, crate::local::engine::owned_parameters()).unwrap();
        let mut status =
            status(vec![node("db1", "primary", true), node("db2", "replica", true), node("db3", "replica", true)]);
        change(&mut spec, &mut status);
        judge(&Known { spec: &spec, status: &status, backup: None, results: &[], gaps: &[], now_ms: 1_800_000_000_000 })
    }

    fn wish(kind: DrillKind) -> Wish<'static> {
        Wish { kind, node: None, lasts_s: None }
    }

    #[test]
    fn a_sound_cluster_may_rehearse_everything() {
        with(
            |_, _| {},
            |known| {
                for kind in DrillKind::ALL {
                    let plan = plan(known, wish(kind), false).unwrap();
                    let wished = fault(&plan, known.status);
                    match kind {
                        DrillKind::LoseProxy => assert_eq!((plan.node, wished), (None, None)),
                        DrillKind::Switchover => assert_eq!(wished, None),
                        DrillKind::LoseReplica => {
                            assert_ne!(plan.node, known.status.cluster.primary);
                            assert!(!wished.unwrap().primary);
                        }
                        _ => assert!(wished.unwrap().primary),
                    }
                    let lasts = matches!(kind, DrillKind::StopServer | DrillKind::IsolatePrimary);
                    assert_eq!(plan.lasts_ms, lasts.then_some(6000));
                }
            },
        );
    }

    #[test]
    fn nothing_is_rehearsed_while_anything_is_amiss() {
        let refused = |change: fn(&mut Spec, &mut Status)| {
            with(change, |known| plan(known, wish(DrillKind::KillServer), true).unwrap_err())
        };
        let problem = |severity: &str| Problem {
            name: "paused".to_owned(),
            severity: severity.to_owned(),
            evidence: "by ann".to_owned(),
            hint: String::new(),
            since: None,
        };
        let paused = with(
            |_, status| status.problems.push(problem("warning")),
            |known| plan(known, wish(DrillKind::LoseProxy), true).unwrap_err(),
        );
        assert!(paused.status == 3 && paused.error.contains("paused: by ann"), "{paused:?}");
        with(
            |_, status| status.problems.push(Problem { name: "runbook-outdated".to_owned(), ..problem("warning") }),
            |known| drop(plan(known, wish(DrillKind::KillServer), false).unwrap()),
        );
        with(
            |_, status| status.problems.push(problem("info")),
            |known| {
                plan(known, wish(DrillKind::KillServer), false).unwrap();
            },
        );
        assert!(refused(|_, status| status.cluster.writable = false).error.contains("no primary takes writes"));
        let ill = refused(|_, status| {
            status.nodes.iter_mut().filter(|node| node.role == "replica").for_each(|node| node.healthy = false);
        });
        assert!(ill.error.contains("nobody could take over"), "{ill:?}");
        let lonely = refused(|_, status| status.nodes.iter_mut().for_each(|node| node.sync = false));
        assert!(lonely.error.contains("confirmation"), "{lonely:?}");
    }

    #[test]
    fn nodes_of_one_machine_are_not_cut_from_each_other() {
        let local = |spec: &mut Spec, _: &mut Status| {
            spec.nodes.iter_mut().for_each(|node| "127.0.0.2".clone_into(&mut node.host));
        };
        with(local, |known| {
            assert!(plan(known, wish(DrillKind::IsolatePrimary), false).unwrap_err().error.contains("on one host"));
            plan(known, wish(DrillKind::StopServer), false).unwrap();
        });
    }

    #[test]
    fn the_declared_outages_are_kept_unless_told_otherwise() {
        let tight = |spec: &mut Spec, _: &mut Status| spec.requirements.outage_server_s = Some(1);
        with(tight, |known| {
            let failure = plan(known, wish(DrillKind::KillServer), false).unwrap_err();
            assert!(failure.status == 3 && failure.error.contains("0 ms of 1000 ms"), "{failure:?}");
            assert!(words(&plan(known, wish(DrillKind::KillServer), true).unwrap(), known).contains("outage 1 s"));
            plan(known, wish(DrillKind::IsolatePrimary), false).unwrap();
        });
    }

    #[test]
    fn wrong_wishes_are_usage_errors() {
        with(
            |_, _| {},
            |known| {
                let other = known.status.nodes.iter().find(|node| node.role == "replica").unwrap().name.clone();
                let named = Wish { node: Some(&other), ..wish(DrillKind::KillServer) };
                assert_eq!(plan(known, named, false).unwrap_err().status, 2);
                let short = Wish { lasts_s: Some(3), ..wish(DrillKind::StopServer) };
                assert_eq!(plan(known, short, false).unwrap_err().status, 2);
                let long = Wish { lasts_s: Some(9), ..wish(DrillKind::KillServer) };
                assert_eq!(plan(known, long, false).unwrap_err().status, 2);
                let nobody = name("db9");
                let unknown = Wish { node: Some(&nobody), ..wish(DrillKind::LoseReplica) };
                assert_eq!(plan(known, unknown, false).unwrap_err().status, 3);
            },
        );
    }
}
