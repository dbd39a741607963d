//! What a merged status says, condition by condition.

use super::*;
use mainstay_model::stored_spec::RunbookMade;
use mainstay_model::{CopyId, Lsn, Walsender};

pub(crate) fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(crate) fn spec() -> Spec {
    let text = "[cluster]\nname = \"c\"\n[[node]]\nname = \"db1\"\nhost = \"127.0.0.1\"\n\
                [[node]]\nname = \"db2\"\nhost = \"127.0.0.2\"\n";
    mainstay_model::config::parse(text, &[]).unwrap()
}

pub(crate) fn answer(name: &str, role: &str, state: &str) -> LocalStatus {
    LocalStatus {
        node: node(name),
        agent_pid: 1,
        guard_pid: None,
        server_pid: None,
        version: "15.18".to_owned(),
        standing: Standing { role: role.to_owned(), state: state.to_owned() },
        since_ms: 0,
        term: Term(4),
        primary_of: None,
        open: false,
        blocked: false,
        degraded: false,
        sync: BTreeSet::new(),
        claim: Some((ClaimState::Held, Some(node("db1")))),
        observed: ServerObservation::default(),
        problem: None,
        store_leader: Some(node("db1")),
        wall_ms: 0,
        clock_off_ms: 0,
        generation: 1,
        file: None,
        pending_restart: Vec::new(),
        paused: None,
        store: None,
        certificates: Vec::new(),
        proxies: Vec::new(),
        not_taken: None,
        proxy_down: None,
        proxies_paused: Vec::new(),
        kept: Vec::new(),
        address: None,
    }
}

pub(crate) fn primary() -> LocalStatus {
    let mut answer = answer("db1", "primary", "running");
    answer.primary_of = Some(Term(4));
    answer.open = true;
    answer.sync = [node("db2")].into();
    answer.observed.end = Some(Lsn(1000));
    let copy = CopyId::new(9).unwrap();
    answer.observed.walsenders =
        vec![Walsender { node: node("db2"), copy, flush: Lsn(900), replay: Lsn(800), streaming: true }];
    answer
}

fn merged(answers: Vec<LocalStatus>) -> Status {
    merged_beside(answers, &Beside::default())
}

fn merged_beside(answers: Vec<LocalStatus>, beside: &Beside) -> Status {
    let answers = answers.into_iter().map(|answer| (answer.node.clone(), answer)).collect();
    merge(&spec(), "https://127.0.0.1:7420".to_owned(), &answers, beside)
}

/// The names of all problems; each says something and gives a way out.
pub(crate) fn names(status: &Status) -> Vec<&str> {
    for problem in &status.problems {
        assert!(!problem.evidence.is_empty() && !problem.hint.is_empty(), "{problem:?}");
    }
    status.problems.iter().map(|problem| problem.name.as_str()).collect()
}

type Change = Box<dyn Fn(&mut LocalStatus)>;

#[test]
fn every_condition_of_a_node_has_its_name() {
    let day = 86_400;
    let end = |until| vec![CertificateEnd { purpose: "agent".to_owned(), until }];
    let conditions: Vec<(&str, Change)> = vec![
        ("certificate-expired", Box::new(move |answer| answer.certificates = end(100 * day - 1))),
        ("certificate-expiring", Box::new(move |answer| answer.certificates = end(129 * day))),
        (
            "certificate-expiring",
            Box::new(move |answer| {
                answer.certificates = vec![CertificateEnd { purpose: "authority".to_owned(), until: 110 * day }];
            }),
        ),
        ("certificate-not-taken", Box::new(|answer| answer.not_taken = Some("node.key: no key".to_owned()))),
        ("proxy-down", Box::new(|answer| answer.proxy_down = Some("listen on 10.0.0.2:6432: in use".to_owned()))),
        ("proxy-paused", Box::new(|answer| answer.proxies_paused = vec!["app1".to_owned()])),
        ("clock-off", Box::new(|answer| answer.clock_off_ms = -2001)),
        ("disk-nearly-full", Box::new(|answer| answer.observed.disk_free = Some(1 << 20))),
        (
            "disk-nearly-full",
            Box::new(|answer| {
                answer.observed.disk_size = Some(1 << 43);
                answer.observed.disk_free = Some(19 << 30);
            }),
        ),
        ("file-older", Box::new(|answer| answer.file = Some(FileState::Older(3)))),
        ("file-differs", Box::new(|answer| answer.file = Some(FileState::Differs))),
        ("restart-pending", Box::new(|answer| answer.pending_restart = vec!["max_connections".to_owned()])),
        ("node-stays-out", Box::new(|answer| answer.problem = Some("wrong data".to_owned()))),
        ("server-silent", Box::new(|answer| answer.observed.symptom = Some("stopped".to_owned()))),
        ("replica-not-streaming", Box::new(|answer| answer.standing.state = "detached".to_owned())),
        (
            "paused",
            Box::new(|answer| {
                answer.generation = 9;
                answer.paused = Some(Paused { by: "ann".to_owned(), wall_ms: 1, note: String::new() });
            }),
        ),
        (
            "store-member-lost",
            Box::new(|answer| {
                answer.store = Some(StoreStanding { failure: Some("torn".to_owned()), ..Default::default() });
            }),
        ),
        (
            "store-member-lost",
            Box::new(|answer| {
                answer.store = Some(StoreStanding { voters: vec![node("db9")], ..Default::default() });
            }),
        ),
    ];
    let beside = Beside { now_ms: 100 * 86_400 * 1000, ..Beside::default() };
    for (name, change) in conditions {
        let mut replica = answer("db2", "replica", "streaming");
        replica.certificates = vec![CertificateEnd { purpose: "agent".to_owned(), until: 200 * day }];
        replica.clock_off_ms = 1999;
        replica.observed.disk_free = Some(1 << 40);
        replica.file = Some(FileState::Same);
        assert_eq!(names(&merged_beside(vec![primary(), replica.clone()], &beside)), [""; 0], "before {name}");
        change(&mut replica);
        assert_eq!(names(&merged_beside(vec![primary(), replica], &beside)), [name]);
    }
}

#[test]
fn every_condition_of_the_cluster_has_its_name() {
    let mut lagging = primary();
    lagging.observed.end = Some(Lsn(900 + (64 << 20)));
    assert_eq!(names(&merged(vec![lagging, answer("db2", "replica", "streaming")])), ["replica-lagging"]);
    let mut degraded = primary();
    degraded.degraded = true;
    assert_eq!(names(&merged(vec![degraded, answer("db2", "replica", "streaming")])), ["degraded"]);
    let mut leaderless = vec![primary(), answer("db2", "replica", "streaming")];
    leaderless.iter_mut().for_each(|answer| answer.store_leader = None);
    assert_eq!(names(&merged(leaderless)), ["store-no-quorum"]);
    for (voters, way_out, not) in [
        (vec!["db1", "db2", "db9"], "node replace db9", "recover"),
        (vec!["db1", "db8", "db9"], "recover --from", "node replace"),
    ] {
        let voters = voters.into_iter().map(node).collect();
        let mut alone = primary();
        alone.store = Some(StoreStanding { voters, ..Default::default() });
        let status = merged(vec![alone, answer("db2", "replica", "streaming")]);
        let lost = |problem: &&mainstay_model::status::Problem| problem.name == "store-member-lost";
        let hints: Vec<&str> = status.problems.iter().filter(lost).map(|problem| problem.hint.as_str()).collect();
        assert!(
            !hints.is_empty() && hints.iter().all(|hint| hint.contains(way_out) && !hint.contains(not)),
            "{hints:?}"
        );
    }
    let mut old = answer("db2", "none", "stopped");
    old.term = Term(3);
    let mut new = primary();
    (new.term, new.primary_of) = (Term(1_000_001), Some(Term(1_000_001)));
    assert_eq!(names(&merged(vec![new, old])), ["superseded"]);
    let doubled = Beside { doubled: [(node("db2"), vec![[10, 0, 0, 7].into()])].into(), ..Beside::default() };
    let fine = || vec![primary(), answer("db2", "replica", "streaming")];
    assert_eq!(names(&merged_beside(fine(), &doubled)), ["two-agents-one-name"]);
    for (why, hint) in [
        ("connect to 10.0.0.2:7420: connection refused: nothing listens there", "start its agent"),
        ("connect to 10.0.0.2:7420: no answer within 1 s", "is its host up"),
        ("its certificate is not of this cluster's authority; is it of another cluster?", "join --again"),
    ] {
        let beside = Beside { unreachable: [(node("db2"), why.to_owned())].into(), ..Beside::default() };
        let status = merged_beside(vec![primary()], &beside);
        assert_eq!(names(&status), ["node-unreachable"]);
        let problem = &status.problems[0];
        assert!(problem.evidence.contains(why) && problem.hint.contains(hint), "{problem:?}");
    }
    let ours = "connect to 10.0.0.2:7420: it says that our certificate has expired".to_owned();
    let beside = Beside { unreachable: [(node("db2"), ours)].into(), ..Beside::default() };
    assert_eq!(names(&merged_beside(vec![primary()], &beside)), ["node-unreachable"]);
    let expired = "connect to 10.0.0.2:7420: its certificate has expired".to_owned();
    let beside = Beside { unreachable: [(node("db2"), expired)].into(), ..Beside::default() };
    assert_eq!(names(&merged_beside(vec![primary()], &beside)), ["node-unreachable", "certificate-expired"]);
}

#[test]
fn a_proxy_elsewhere_is_told_of_by_the_latest_that_it_showed() {
    let day = 86_400;
    let beside = Beside { now_ms: 100 * 86_400 * 1000, ..Beside::default() };
    let shown = |name: &str, days: i64| vec![CertificateEnd { purpose: name.to_owned(), until: days * day }];
    let (mut one, mut other) = (primary(), answer("db2", "replica", "streaming"));
    (one.proxies, other.proxies) = (shown("app1", 110), shown("app1", 90));
    let status = merged_beside(vec![one.clone(), other.clone()], &beside);
    assert_eq!(names(&status), ["certificate-expiring"]);
    let problem = &status.problems[0];
    assert!(problem.evidence.contains("proxy app1") && problem.hint.contains("--proxy app1"), "{problem:?}");
    one.proxies = shown("app1", 465);
    assert_eq!(names(&merged_beside(vec![one.clone(), other.clone()], &beside)), [""; 0], "it was renewed");
    (one.proxies, other.proxies) = (shown("app1", 90), Vec::new());
    assert_eq!(names(&merged_beside(vec![one.clone(), other.clone()], &beside)), ["certificate-expired"]);
    one.proxies = shown("db2", 90);
    assert_eq!(names(&merged_beside(vec![one, other], &beside)), [""; 0], "a node's own is told of with its node");
}

#[test]
fn the_address_for_writes_is_one_that_works() {
    let mut down = answer("db1", "primary", "running");
    down.proxy_down = Some("port in use".to_owned());
    let replica = || answer("db2", "replica", "streaming");
    let host =
        |answers: Vec<LocalStatus>| merged(answers).routes.write.split(':').next().unwrap_or_default().to_owned();
    let (first, second) = (host(vec![primary(), replica()]), host(vec![replica()]));
    assert_ne!(first, second, "db1 does not answer");
    assert_eq!(host(vec![down, replica()]), second, "db1's proxy does not run");
    assert_eq!(host(Vec::new()), first, "nobody answers");
}

#[test]
fn the_address_that_goes_with_the_primary_is_told_of() {
    let mut spec = spec();
    spec.proxy.address = Some("10.0.0.100/24".parse().unwrap());
    let told = |one: Option<(bool, Option<&str>)>, other: bool| {
        let standing = |held, problem: Option<&str>| AddressStanding {
            address: "10.0.0.100/24".to_owned(),
            held,
            interface: None,
            problem: problem.map(str::to_owned),
            foreign: false,
            unannounced: None,
        };
        let (mut primary, mut replica) = (primary(), answer("db2", "replica", "streaming"));
        primary.address = one.map(|(held, problem)| standing(held, problem));
        replica.address = Some(standing(other, None));
        let answers = [primary, replica].map(|answer| (answer.node.clone(), answer)).into();
        merge(&spec, String::new(), &answers, &Beside::default())
    };
    let well = told(Some((true, None)), false);
    assert_eq!(names(&well), [""; 0]);
    assert_eq!((well.routes.write.as_str(), well.routes.read.as_str()), ("10.0.0.100:6432", "10.0.0.100:6433"));
    assert_eq!(well.routes.address.unwrap().held_by, [node("db1")]);
    for missing in [None, Some((false, None)), Some((false, Some("operation not permitted")))] {
        let status = told(missing, false);
        assert_eq!(names(&status), ["address-missing"]);
        assert!(!status.routes.write.starts_with("10.0.0.100"), "nobody has it: {}", status.routes.write);
    }
    assert_eq!(names(&told(Some((true, None)), true)), ["address-doubled"]);
}

#[test]
fn what_is_amiss_with_an_address_that_is_held_is_told_of_too() {
    let mut spec = spec();
    spec.proxy.address = Some("10.0.0.100/24".parse().unwrap());
    let (mut primary, mut replica) = (primary(), answer("db2", "replica", "streaming"));
    let standing = |held| AddressStanding {
        address: "10.0.0.100/24".to_owned(),
        held,
        interface: None,
        problem: None,
        foreign: false,
        unannounced: None,
    };
    let told = |answers: [&LocalStatus; 2]| {
        let answers = answers.map(|answer| (answer.node.clone(), answer.clone())).into();
        merge(&spec, String::new(), &answers, &Beside::default())
    };
    primary.address = Some(AddressStanding { unannounced: Some("not permitted".to_owned()), ..standing(true) });
    replica.address = Some(standing(false));
    let status = told([&primary, &replica]);
    assert_eq!(names(&status), ["address-troubled"]);
    assert!(status.problems[0].evidence.contains("not permitted") && status.routes.write.starts_with("10.0.0.100:"));
    primary.address = Some(standing(true));
    let by_hand = "this host has it already and not by this agent";
    replica.address = Some(AddressStanding { foreign: true, problem: Some(by_hand.to_owned()), ..standing(false) });
    let status = told([&primary, &replica]);
    assert_eq!(names(&status), ["address-doubled"]);
    assert!(status.problems[0].evidence.contains("db2") && status.problems[0].evidence.contains(by_hand));
    replica.address = Some(standing(false));
    primary.proxy_down = Some("port in use".to_owned());
    let status = told([&primary, &replica]);
    assert!(status.routes.write.starts_with("127.0.0.2:"), "its proxy does not run: {}", status.routes.write);
    assert_eq!(status.routes.address.unwrap().held_by, [node("db1")]);
}

#[test]
fn an_answer_of_an_older_agent_is_understood() {
    let mut older = serde_json::to_value(answer("db2", "replica", "streaming")).unwrap();
    let fields = older.as_object_mut().unwrap();
    for added in [
        "wall_ms",
        "generation",
        "file",
        "pending_restart",
        "paused",
        "store",
        "certificates",
        "proxies",
        "not_taken",
        "proxy_down",
        "proxies_paused",
        "address",
    ] {
        fields.remove(added).expect("it is told now");
    }
    let read: LocalStatus = serde_json::from_value(older).unwrap();
    assert_eq!(names(&merged(vec![primary(), read])), [""; 0]);
}

#[test]
fn a_runbook_of_before_a_change_is_told_of() {
    let made = |change: fn(&mut Spec)| {
        let mut then = spec();
        change(&mut then);
        let made = RunbookMade { generation: 3, wall_ms: 1_795_391_999_000, by: "ann".to_owned(), spec: then };
        let beside = Beside { runbook: Some(made), ..Beside::default() };
        merged_beside(vec![primary(), answer("db2", "replica", "streaming")], &beside)
    };
    assert_eq!(names(&made(|_| {})), [""; 0], "it says what is");
    let status = made(|spec| spec.cluster.durability = Durability::Async);
    assert_eq!(names(&status), ["runbook-outdated"]);
    let evidence = &status.problems[0].evidence;
    assert!(evidence.contains("made by ann on 2026-11-22 from generation 3"), "{evidence}");
    assert!(evidence.ends_with("changed since: cluster.durability"), "{evidence}");
    let status = made(|spec| drop(spec.nodes.pop()));
    let evidence = &status.problems[0].evidence;
    assert!(evidence.ends_with("changed since: node.db2"), "one node, one change: {evidence}");
    let status = made(|spec| {
        let times = &mut spec.failover;
        (times.ping_ms, times.suspicion_ms, times.lease_ms, times.margin_percent) = (100, 700, 2000, 25);
        spec.proxy.write_port = 1;
    });
    let evidence = &status.problems[0].evidence;
    assert!(evidence.contains("failover.lease_ms") && evidence.ends_with(" and 1 more"), "many are cut: {evidence}");
}

#[test]
fn a_healthy_cluster_has_no_problems() {
    let status = merged(vec![primary(), answer("db2", "replica", "streaming")]);
    assert_eq!(status.cluster.primary, Some(node("db1")));
    assert!(status.cluster.writable);
    assert!(status.problems.is_empty(), "{:?}", status.problems);
    assert!(status.nodes[1].sync && status.nodes[1].healthy);
    assert_eq!(status.nodes[1].lag_bytes, Some(100));
}

#[test]
fn each_trouble_is_named_by_its_evidence() {
    let mut blocked = primary();
    blocked.blocked = true;
    let status = merged(vec![blocked]);
    assert!(!status.cluster.writable);
    assert_eq!(names(&status), ["writes-blocked", "node-unreachable"]);
    assert_eq!(status.nodes[1].state, "unreachable");

    let status = merged(vec![answer("db1", "none", "stopped"), answer("db2", "replica", "detached")]);
    assert_eq!(status.cluster.primary, None);
    assert_eq!(status.problems[0].name, "no-primary");
    assert!(status.problems[0].evidence.contains("db1 holds the term"), "{}", status.problems[0].evidence);
    assert!(status.nodes[1].data_dir.ends_with("data"), "also where the file says no directory: {:?}", status.nodes[1]);

    let status = merged(vec![answer("db1", "none", "promoting")]);
    assert!(status.problems[0].evidence.contains("0 of 1 replicas"), "{}", status.problems[0].evidence);
    assert!(status.problems[0].hint.contains("durability=available"), "{}", status.problems[0].hint);
}

#[test]
fn of_two_that_call_themselves_primary_the_higher_term_counts() {
    let mut old = primary();
    old.primary_of = Some(Term(3));
    let mut new = primary();
    new.node = node("db2");
    let status = merged(vec![old, new]);
    assert_eq!(status.cluster.primary, Some(node("db2")));
}

#[test]
fn a_primary_whose_term_was_overtaken_is_none() {
    let mut candidate = answer("db2", "none", "promoting");
    candidate.term = Term(5);
    let status = merged(vec![primary(), candidate]);
    assert_eq!((status.cluster.primary, status.cluster.term), (None, Term(5)));
}

#[test]
fn wall_time_prints_as_rfc_3339() {
    assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
    assert_eq!(rfc3339(1_709_164_800_123), "2024-02-29T00:00:00.123Z");
    assert_eq!(rfc3339(1_795_391_999_000), "2026-11-22T23:59:59.000Z");
}
