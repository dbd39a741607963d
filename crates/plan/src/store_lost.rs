//! What can happen to the store, and what to type then: the nodes' own, which has lost its majority, or an etcd, which has to be brought back
//! before anything else.

use crate::facts::Facts;
use crate::layout::Layout;
use crate::scenarios::{Names, Scenario};
use mainstay_model::Durability;
use mainstay_model::etcd::Endpoint;
use mainstay_model::spec::{Spec, Store};
use std::fmt::Write as _;

/// The pages on the store.
pub(crate) fn scenarios(facts: &Facts<'_>, layout: &Layout, names: &Names<'_>) -> Vec<Scenario> {
    if !facts.spec.store.is_etcd() {
        return vec![majority(facts, layout, names)];
    }
    vec![etcd_away(facts, names), etcd_distrusted(facts), etcd_member(facts, names), nodes(facts, names)]
}

/// The title of the page on too many lost nodes.
pub(crate) fn title(spec: &Spec) -> &'static str {
    if spec.store.is_etcd() { "Most nodes are lost" } else { "The majority is lost" }
}

/// A strict cluster of one member takes no writes, whoever accepted what was lost: what comes before and after the new hosts.
fn alone(spec: &Spec) -> (&'static str, &'static str) {
    match spec.cluster.durability {
        Durability::Strict => (
            "# writes still wait for a replica (durability is strict); to write at once, with one copy:\nmainstay set cluster.durability=available\n",
            "\n# when it streams again\nmainstay set cluster.durability=strict",
        ),
        Durability::Available | Durability::Async => ("", ""),
    }
}

fn majority(facts: &Facts<'_>, layout: &Layout, names: &Names<'_>) -> Scenario {
    let (primary, replica) = (&names.primary, &names.replica);
    let alone = alone(facts.spec);
    Scenario {
        key: "majority-lost",
        title: title(facts.spec),
        seen: format!("store-no-quorum: fewer than {} of {} votes", layout.majority(), layout.votes()),
        decides: "the owner of the data, if anything may be lost",
        stop_if: "the lost hosts may come back: start them instead; nothing is lost then.".into(),
        itself: "Writes stop within the lease. When a majority is back, the cluster opens again by itself.".into(),
        commands: format!(
            "mainstay status\n# start what can be started, then wait\nssh {} systemctl start mainstay-agent\n# only if they never come back, and are off: what each node knows, and whether commits may be missing\nmainstay recover\nmainstay recover --from {replica}\n# it refuses where acknowledged commits may be missing; with the owner's word, once what it says was written down\nmainstay recover --from {replica} --accept-data-loss\n{}# a new host takes the place of each lost one\nmainstay node replace {primary} --host NEW_ADDRESS{}",
            names.host(replica),
            alone.0,
            alone.1
        ),
        time: "as long as it takes to start a host; recover takes seconds".into(),
        loss: "nothing if hosts come back; recover says what may be missing before it asks".into(),
        verify: "mainstay status shows a primary, a new incarnation, and who must be replaced".into(),
        back: "none: old members stay out until mainstay reinit NODE. Keep the lost hosts off.".into(),
    }
}

/// How etcdctl finds the etcd, for the lines below it.
fn reach(store: &Store) -> String {
    let mut out =
        format!("# on a node's host, as the agent's user\nexport ETCDCTL_ENDPOINTS={}", store.endpoints.join(","));
    for (name, file) in [("CACERT", &store.ca_file), ("CERT", &store.cert_file), ("KEY", &store.key_file)] {
        if let Some(file) = file {
            let _ = write!(out, " ETCDCTL_{name}={}", file.display());
        }
    }
    if store.user.is_some() {
        // The cluster's own user may touch its keys and nothing else.
        out.push_str(
            "\n# etcd has users: its root may do what follows, and is asked for the password\nexport ETCDCTL_USER=root",
        );
    }
    out
}

fn hosts(store: &Store) -> Vec<String> {
    let mut hosts: Vec<String> =
        store.endpoints.iter().filter_map(|text| Endpoint::parse(text).ok()).map(|endpoint| endpoint.host).collect();
    hosts.dedup();
    hosts
}

/// One line for each host of the etcd.
fn each_host(store: &Store, what: &str) -> String {
    hosts(store).iter().map(|host| format!("ssh {host} {what}\n")).collect()
}

fn etcd_away(facts: &Facts<'_>, names: &Names<'_>) -> Scenario {
    let store = &facts.spec.store;
    let (members, lease) = (store.endpoints.len(), facts.spec.failover.lease_ms);
    let most = members / 2 + 1;
    Scenario {
        key: "store-away",
        title: "etcd is away, or takes no writes",
        seen: format!("store-no-quorum: fewer than {most} of the {members} members of etcd answer; or store-alarm"),
        decides: "whoever runs etcd",
        stop_if: "the nodes are well, as a rule: bring etcd back, and leave them and their data alone. mainstay recover is not for this.".into(),
        itself: format!("Writes stop within the lease ({lease} ms); replicas can still be read, at their own addresses. When etcd is back, the cluster opens again by itself."),
        commands: format!(
            "mainstay status\n{reach}\netcdctl endpoint health\netcdctl endpoint status -w table\n# on each of its hosts that is down\n{start}# store-alarm, NOSPACE: its database is full\netcdctl alarm list\nrevision=$(etcdctl endpoint status -w json | grep -o '\"revision\":[0-9]*' | grep -o '[0-9]*' | sort -n | head -1)\netcdctl compact \"$revision\"\netcdctl defrag\netcdctl alarm disarm\n# store-alarm, CORRUPT: etcd's own documentation, before anything else\n# most of its members are lost for ever: restore etcd from its newest snapshot, or found it anew, at the same addresses (etcd's documentation,\n# disaster recovery); then the page \"{distrusted}\"\n# it answers here: does it answer a node ({replica} taken as the example)?\nssh {host} mainstay doctor",
            reach = reach(store),
            start = each_host(store, "systemctl start etcd"),
            distrusted = DISTRUSTED,
            replica = names.replica,
            host = names.host(&names.replica),
        ),
        time: "as long as it takes to bring etcd back; then seconds".into(),
        loss: "nothing".into(),
        verify: "etcdctl endpoint health; mainstay status shows a primary and no problem of the store".into(),
        back: "none needed".into(),
    }
}

const DISTRUSTED: &str = "etcd shows less than the nodes have seen";

/// One line for each node's host.
fn each_node(facts: &Facts<'_>, what: &str) -> String {
    facts.spec.nodes.iter().map(|node| format!("ssh {} {what}\n", node.host)).collect()
}

fn etcd_distrusted(facts: &Facts<'_>) -> Scenario {
    Scenario {
        key: "store-distrusted",
        title: DISTRUSTED,
        seen: "store-distrusted: etcd was restored from an older copy, founded anew, or its keys were removed; or one node's [store] names another etcd, or a copy of this one".into(),
        decides: "the owner of the data, if anything may be lost",
        stop_if: "a newer copy of etcd, or a living member of the old one, may be found: restore that first. One node's [store] is wrong: mend its file first, and do not recover before. Keep agent/etcd.json of each node: what stands there is the evidence.".into(),
        itself: "No node serves writes, and neither a restart nor a mended file changes that: the evidence is kept, and a person has to decide.".into(),
        commands: format!(
            "mainstay status\n# does [store] in each node's file name the same etcd, and the right one? one node's wrong file does this to all of them: mend it\n{doctor}# does etcd answer? it must work before what follows\n{reach}\netcdctl endpoint status -w table\n# a file was wrong, etcd itself lacks nothing, and no node was primary by the wrong one: no recover. Stop all agents first\n{stop}# in each node's directory, agent/etcd.json: take the entry \"refused\" out; on the node whose file was wrong, move the whole file aside\n# (on the others, too, if store-distrusted comes back). Then\n{start}# else: what each node knows, and whether commits may be missing\nmainstay recover\n# the cluster's part of etcd is made anew from the node that has most, as the line before says\nmainstay recover --from NODE\n# it refuses where acknowledged commits may be missing; with the owner's word, once what it says was written down\nmainstay recover --from NODE --accept-data-loss",
            doctor = each_node(facts, "mainstay doctor"),
            reach = reach(&facts.spec.store),
            stop = each_node(facts, "systemctl stop mainstay-agent"),
            start = each_node(facts, "systemctl start mainstay-agent"),
        ),
        time: "recover takes seconds".into(),
        loss: "nothing if the node that has most answers; recover says what may be missing before it asks".into(),
        verify: "mainstay status shows a primary, no store-distrusted, and after recover a new incarnation".into(),
        back: "none: the other agents follow by themselves, and what their logs alone held is kept under diverged/.".into(),
    }
}

fn etcd_member(facts: &Facts<'_>, names: &Names<'_>) -> Scenario {
    let store = &facts.spec.store;
    let (replica, host) = (&names.replica, names.host(&names.replica));
    Scenario {
        key: "store-member-lost",
        title: "A member of etcd is lost, or a node does not reach etcd",
        seen: "store-member-lost; or store-cut-off".into(),
        decides: "whoever runs etcd",
        stop_if: "store-no-quorum stands beside it: see \"etcd is away, or takes no writes\".".into(),
        itself: "The cluster goes on: each node asks another member. A node that reaches none can not be primary, and hands over.".into(),
        commands: format!(
            "mainstay status\n{}\netcdctl endpoint health\n# on the member's host\n{}# store-cut-off: from the node's host ({replica} taken as the example)\nssh {host} mainstay doctor\n# the member is gone for ever: another one takes its place\netcdctl member list -w table\netcdctl member remove ID\netcdctl member add NAME --peer-urls=https://HOST:2380\n# its address is another one: in store.endpoints of each node's file, then one node after the other (the servers run on)\nssh {host} systemctl restart mainstay-agent",
            reach(store),
            each_host(store, "systemctl start etcd"),
        ),
        time: "nobody waits for it".into(),
        loss: "nothing".into(),
        verify: "mainstay status shows no problem of the store".into(),
        back: "none needed".into(),
    }
}

/// The nodes do not vote: what is left takes over, if it is known to have everything.
fn nodes(facts: &Facts<'_>, names: &Names<'_>) -> Scenario {
    let (primary, replica) = (&names.primary, &names.replica);
    let alone = alone(facts.spec);
    Scenario {
        key: "nodes-lost",
        title: title(facts.spec),
        seen: "node-unreachable for several nodes at once, and no primary, or one that takes no writes".into(),
        decides: "the owner of the data, if anything may be lost",
        stop_if: "the lost hosts may come back: start them instead; nothing is lost then.".into(),
        itself: "While etcd works, any node that is known to have every acknowledged commit takes over, however few are left; if none is, it waits for the others.".into(),
        commands: format!("mainstay status\nmainstay why\n# start what can be started, then wait\nssh {} systemctl start mainstay-agent\n# only if they never come back, and are off\nmainstay failover --to {replica}\n# it refuses where acknowledged commits may be missing; with the owner's word, once what it says was written down\nmainstay failover --to {replica} --accept-data-loss\n{}# a new host takes the place of each lost one\nmainstay node replace {primary} --host NEW_ADDRESS{}", names.host(replica), alone.0, alone.1),
        time: "as long as it takes to start a host; a failover takes seconds".into(),
        loss: "nothing if hosts come back; else what no node that is left has".into(),
        verify: "mainstay status shows a primary that takes writes".into(),
        back: "none: a lost node that comes back becomes a replica, and what its log alone held is kept under diverged/.".into(),
    }
}

#[cfg(test)]
mod tests {
    use crate::day::Day;
    use crate::facts::Facts;
    use crate::markdown;
    use crate::runbook::runbook;
    use mainstay_model::config::parse;

    fn of(store: &str) -> String {
        let node = |n: u32| format!("[[node]]\nname = \"db{n}\"\nhost = \"10.0.0.{n}\"\n");
        let text = format!("[cluster]\nname = \"a\"\n{}{}{store}", node(1), node(2));
        let spec = parse(&text, &[]).unwrap();
        let facts = Facts { spec: &spec, today: Day::of(2026, 11, 27), machines: &[], running: None, what_if: &[] };
        markdown::page(&runbook(&facts))
    }

    #[test]
    fn a_runbook_brings_an_etcd_back_before_anything_else() {
        let page = of(
            "[store]\nkind = \"etcd\"\nendpoints = [\"https://e1\", \"https://e2\", \"https://e3\"]\nca_file = \"/ca\"\nuser = \"m\"\npassword_file = \"/p\"\n",
        );
        for words in [
            "store-no-quorum: fewer than 2 of the 3 members of etcd",
            "store-alarm",
            "store-distrusted",
            "store-cut-off",
            "store-member-lost",
            "ssh e2 systemctl start etcd",
            "ETCDCTL_CACERT=/ca",
            "one node's wrong file does this to all of them: mend it",
            "take the entry \"refused\" out",
            "ssh 10.0.0.2 systemctl stop mainstay-agent",
            "mainstay recover --from NODE",
            "mainstay failover --to db2 --accept-data-loss",
        ] {
            assert!(page.contains(words), "{words}: {page}");
        }
        for wrong in ["votes", "The majority is lost", "majority of the votes"] {
            assert!(!page.contains(wrong), "{wrong}: {page}");
        }
    }

    #[test]
    fn a_runbook_of_nodes_that_vote_knows_no_etcd() {
        let page = of("");
        assert!(page.contains("store-no-quorum: fewer than 2 of 2 votes") && !page.contains("etcd"), "{page}");
    }
}
