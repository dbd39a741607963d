//! What is wrong with an etcd that is the store, from what each node says of it.

use super::List;
use crate::status::LocalStatus;
use mainstay_model::NodeId;
use mainstay_model::etcd::{EtcdStanding, NO_LEADER, advice};
use std::collections::{BTreeMap, BTreeSet};

/// A node leads the store, or the etcd that it is answers.
pub(super) fn store_works(answer: &LocalStatus) -> bool {
    let etcd = answer.store.as_ref().filter(|store| store.failure.is_none()).and_then(|store| store.etcd.as_ref());
    answer.store_leader.is_some() || etcd.is_some_and(|etcd| etcd.works)
}

/// Lists every problem, the gravest first.
pub(super) fn find(answers: &BTreeMap<NodeId, LocalStatus>, list: &mut List) {
    let standings: BTreeMap<&NodeId, &EtcdStanding> =
        answers.iter().filter_map(|(node, answer)| Some((node, answer.store.as_ref()?.etcd.as_ref()?))).collect();
    if standings.is_empty() {
        return;
    }
    distrusted(answers, list);
    let (reach, away): (Vec<_>, Vec<_>) = standings.iter().partition(|(_, standing)| standing.works);
    if reach.is_empty() {
        no_answer(&standings, list);
    }
    let alarms: BTreeSet<&String> = standings.values().flat_map(|standing| &standing.alarms).collect();
    for alarm in alarms {
        list.add(("store-alarm", "critical"), format!("etcd has raised the alarm {alarm}"), after_alarm(alarm));
    }
    if !reach.is_empty() {
        for (node, standing) in &away {
            let why = standing.why.as_deref().unwrap_or("no answer");
            let evidence = format!("{node} does not go by the etcd that {} reach: {why}", names(&reach));
            let mend = advice(why).unwrap_or("look at the network between it and etcd, or at what is said here");
            let hint = format!(
                "until it does, {node} answers no candidate, and without an answer of etcd it can not become, or stay, the primary: {mend}"
            );
            list.add(("store-cut-off", "warning"), evidence, hint);
        }
        lost_members(&standings, list);
    }
}

/// No node gets an answer. That members are away is one cause; files and settings of the nodes are others.
fn no_answer(standings: &BTreeMap<&NodeId, &EtcdStanding>, list: &mut List) {
    let why_of = |standing: &EtcdStanding| standing.why.clone().unwrap_or_else(|| "no answer".to_owned());
    let causes: BTreeSet<String> = standings.values().map(|standing| why_of(standing)).collect();
    let advised: BTreeSet<&str> = causes.iter().filter_map(|why| advice(why)).collect();
    let network = causes.iter().any(|why| advice(why).is_none());
    let all = states(standings);
    let up = all.values().filter(|(up, _)| *up).count();
    let mut evidence = format!(
        "etcd answers none of the {} nodes ({up} of its {} members say that they are up): {}",
        standings.len(),
        all.len(),
        causes.into_iter().collect::<Vec<_>>().join("; ")
    );
    let silent: Vec<&str> =
        all.iter().filter(|(_, (up, why))| !up && *why != NO_LEADER).map(|(endpoint, _)| *endpoint).collect();
    if network && !silent.is_empty() {
        evidence += &format!("; without an answer: {}", silent.join(", "));
    }
    let mut hints: Vec<&str> = advised.into_iter().collect();
    if network {
        hints.push("bring more than half of etcd's members back, or the network to them");
    }
    let hint = format!(
        "{}; the cluster goes on by itself. Until then no node may serve writes for longer than the lease",
        hints.join("; ")
    );
    list.add(("store-no-quorum", "critical"), evidence, hint);
}

fn names(nodes: &[(&&NodeId, &&EtcdStanding)]) -> String {
    nodes.iter().map(|(node, _)| node.as_str()).collect::<Vec<_>>().join(", ")
}

fn distrusted(answers: &BTreeMap<NodeId, LocalStatus>, list: &mut List) {
    let failures = answers.values().filter_map(|answer| Some((answer, answer.store.as_ref()?.failure.as_ref()?)));
    for (answer, failure) in failures {
        let hint = "no node serves writes by a store that it can not believe. First see that [store] in each node's file names the same, right etcd; then docs/etcd.md";
        list.add(("store-distrusted", "critical"), format!("{}: {failure}", answer.node), hint.to_owned());
    }
}

fn after_alarm(alarm: &str) -> String {
    match alarm {
        "NOSPACE" => "its database is full, and it takes no writes: compact and defragment it, raise --quota-backend-bytes if it must be, then \
                      `etcdctl alarm disarm`"
            .to_owned(),
        "CORRUPT" => "its members hold different data: see etcd's documentation on data corruption before anything else".to_owned(),
        _ => "see etcd's documentation; `etcdctl alarm list` shows it".to_owned(),
    }
}

/// Each member: is it up as any node sees it, and what is wrong with it where it is not. Of several reasons that of a node which etcd answers.
fn states<'a>(standings: &BTreeMap<&NodeId, &'a EtcdStanding>) -> BTreeMap<&'a str, (bool, &'a str)> {
    let mut all: BTreeMap<&str, (bool, &str)> = BTreeMap::new();
    let mut seen: Vec<&EtcdStanding> = standings.values().copied().collect();
    seen.sort_by_key(|standing| standing.works);
    for member in seen.into_iter().flat_map(|standing| &standing.members) {
        let held = all.entry(&member.endpoint).or_insert((false, ""));
        match &member.problem {
            None => held.0 = true,
            Some(problem) => held.1 = problem,
        }
    }
    all
}

/// Members that no node reaches, while etcd as a whole works.
fn lost_members(standings: &BTreeMap<&NodeId, &EtcdStanding>, list: &mut List) {
    let all = states(standings);
    let (up, count) = (all.values().filter(|(up, _)| *up).count(), all.len());
    for (endpoint, (_, why)) in all.iter().filter(|(_, (up, _))| !up) {
        let evidence = format!("etcd's member {endpoint} does not answer any node: {why}; {up} of {count} do");
        // Whoever replaces a member while too few are left takes away the last that know the data.
        let hint = match advice(why) {
            Some(advice) => advice,
            None if *why == NO_LEADER => {
                "it runs, and reaches too few of the other members: look at the network between them"
            }
            None if up * 2 > count => {
                "start it, or replace it in etcd (`etcdctl member`), and then in store.endpoints of each node's file"
            }
            None => "start it",
        };
        list.add(("store-member-lost", "warning"), evidence, hint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::etcd::MemberStanding;

    fn etcd(works: bool, up: &[bool]) -> EtcdStanding {
        let member = |(place, up): (usize, &bool)| MemberStanding {
            endpoint: format!("http://e{place}:2379"),
            problem: (!up).then(|| "connection refused".to_owned()),
            ..MemberStanding::default()
        };
        EtcdStanding { works, members: up.iter().enumerate().map(member).collect(), ..EtcdStanding::default() }
    }

    fn names(standings: &[EtcdStanding]) -> Vec<String> {
        found(standings).into_iter().map(|problem| problem.name).collect()
    }

    fn found(standings: &[EtcdStanding]) -> Vec<mainstay_model::status::Problem> {
        let answers = standings.iter().zip(1..).map(|(standing, number)| {
            let node = NodeId::new(format!("db{number}")).unwrap();
            let store = mainstay_model::api::StoreStanding { etcd: Some(standing.clone()), ..Default::default() };
            let mut answer = crate::status::tests::answer(node.as_str(), "replica", "running");
            answer.store = Some(store);
            (node, answer)
        });
        let mut list = List(Vec::new());
        find(&answers.collect(), &mut list);
        list.0
    }

    #[test]
    fn what_is_wrong_is_named_by_its_evidence() {
        assert_eq!(names(&[etcd(true, &[true; 3]), etcd(true, &[true; 3])]), Vec::<&str>::new());
        assert_eq!(names(&[etcd(true, &[true, true, false]), etcd(true, &[true, true, false])]), ["store-member-lost"]);
        assert_eq!(
            names(&[etcd(true, &[true, true, false]), etcd(true, &[true; 3])]),
            Vec::<&str>::new(),
            "one node's link"
        );
        assert_eq!(names(&[etcd(false, &[true, true, true]), etcd(true, &[true; 3])]), ["store-cut-off"]);
        let gone = names(&[etcd(false, &[true, false, false]), etcd(false, &[true, false, false])]);
        assert_eq!(gone, ["store-no-quorum"], "nobody is told to replace a member while too few are left");
        let full = EtcdStanding { alarms: vec!["NOSPACE".to_owned()], ..etcd(true, &[true]) };
        assert_eq!(names(&[full]), ["store-alarm"]);
    }

    #[test]
    fn the_cause_decides_what_is_to_be_done() {
        let silent = |why: &str| {
            let mut standing = etcd(false, &[false, false, false]);
            standing.why = Some(why.to_owned());
            standing.members.iter_mut().for_each(|member| member.problem = Some(why.to_owned()));
            standing
        };
        let hint = |standings: &[EtcdStanding]| found(standings).remove(0).hint;
        let open = "/etc/mainstay/etcd.password can be read by others than its owner (mode 644): chmod 600 it";
        let said = hint(&[silent(open), silent(open)]);
        assert!(said.contains("chmod 600") && !said.contains("more than half"), "{said}");
        let said = hint(&[silent(open), silent("http://e0:2379: Connection refused")]);
        assert!(said.contains("chmod 600") && said.contains("more than half"), "{said}");
        assert!(hint(&[silent(open), etcd(true, &[true; 3])]).contains("chmod 600"), "one node's own file");
        assert!(hint(&[etcd(true, &[true, true, false])]).contains("replace it in etcd"));
        assert!(!hint(&[etcd(true, &[true, false, false])]).contains("replace"), "it was seen before two were lost");
        let mut last = etcd(false, &[false, false, false]);
        last.members[2].problem = Some(NO_LEADER.to_owned());
        let told = found(&[last]).remove(0);
        assert!(told.evidence.ends_with("without an answer: http://e0:2379, http://e1:2379"), "{}", told.evidence);
    }
}
