//! What is wrong with an etcd that is the store, from what each node says of it.

use super::List;
use crate::status::LocalStatus;
use mainstay_model::NodeId;
use mainstay_model::etcd::EtcdStanding;
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
        let why =
            standings.values().find_map(|standing| standing.why.clone()).unwrap_or_else(|| "no answer".to_owned());
        let up = members_up(&standings);
        let evidence =
            format!("etcd answers none of the {} nodes ({up} of its members say that they are up): {why}", away.len());
        let hint = "bring more than half of etcd's members back, or the network to them; the cluster goes on by itself. Until then no node may \
                    serve writes for longer than the lease";
        list.add(("store-no-quorum", "critical"), evidence, hint.to_owned());
    }
    let alarms: BTreeSet<&String> = standings.values().flat_map(|standing| &standing.alarms).collect();
    for alarm in alarms {
        list.add(("store-alarm", "critical"), format!("etcd has raised the alarm {alarm}"), after_alarm(alarm));
    }
    if !reach.is_empty() {
        for (node, standing) in &away {
            let why = standing.why.as_deref().unwrap_or("no answer");
            let evidence = format!("{node} does not go by the etcd that {} reach: {why}", names(&reach));
            let hint = format!(
                "until it does, {node} answers no candidate, and without an answer of etcd it can not become, or stay, the primary: look at the \
                 network between it and etcd, or at what is said here"
            );
            list.add(("store-cut-off", "warning"), evidence, hint);
        }
    }
    lost_members(&standings, list);
}

fn names(nodes: &[(&&NodeId, &&EtcdStanding)]) -> String {
    nodes.iter().map(|(node, _)| node.as_str()).collect::<Vec<_>>().join(", ")
}

fn distrusted(answers: &BTreeMap<NodeId, LocalStatus>, list: &mut List) {
    let failures = answers.values().filter_map(|answer| Some((answer, answer.store.as_ref()?.failure.as_ref()?)));
    for (answer, failure) in failures {
        let hint = "no node serves writes by a store that it can not believe; see docs/etcd.md";
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

fn members_up(standings: &BTreeMap<&NodeId, &EtcdStanding>) -> usize {
    let up = standings.values().flat_map(|standing| &standing.members).filter(|member| member.problem.is_none());
    up.map(|member| &member.endpoint).collect::<BTreeSet<_>>().len()
}

/// Members that no node reaches, while etcd as a whole works.
fn lost_members(standings: &BTreeMap<&NodeId, &EtcdStanding>, list: &mut List) {
    let mut all: BTreeMap<&str, (bool, &str)> = BTreeMap::new();
    for member in standings.values().flat_map(|standing| &standing.members) {
        let held = all.entry(&member.endpoint).or_insert((false, ""));
        match &member.problem {
            None => held.0 = true,
            Some(problem) => held.1 = problem,
        }
    }
    let (up, count) = (all.values().filter(|(up, _)| *up).count(), all.len());
    for (endpoint, (_, why)) in all.iter().filter(|(_, (up, _))| !up) {
        let evidence = format!("etcd's member {endpoint} does not answer any node: {why}; {up} of {count} do");
        let hint =
            "start it, or replace it in etcd (`etcdctl member`), and then in store.endpoints of each node's file"
                .to_owned();
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
        let answers = standings.iter().zip(1..).map(|(standing, number)| {
            let node = NodeId::new(format!("db{number}")).unwrap();
            let store = mainstay_model::api::StoreStanding { etcd: Some(standing.clone()), ..Default::default() };
            let mut answer = crate::status::tests::answer(node.as_str(), "replica", "running");
            answer.store = Some(store);
            (node, answer)
        });
        let mut list = List(Vec::new());
        find(&answers.collect(), &mut list);
        list.0.into_iter().map(|problem| problem.name).collect()
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
        assert_eq!(gone, ["store-no-quorum", "store-member-lost", "store-member-lost"]);
        let full = EtcdStanding { alarms: vec!["NOSPACE".to_owned()], ..etcd(true, &[true]) };
        assert_eq!(names(&[full]), ["store-alarm"]);
    }
}
