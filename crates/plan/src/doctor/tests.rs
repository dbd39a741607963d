//! Table tests: what is changed on a host that is well, and what is found then.

use super::facts::*;
use super::*;
use crate::stamp::Stamp;
use mainstay_model::config::parse;

fn spec() -> Spec {
    let node = |name: &str, number: u8| format!("[[node]]\nname = \"{name}\"\nhost = \"10.0.0.{number}\"\n");
    let text = format!("[cluster]\nname = \"orders\"\n{}{}{}", node("db1", 1), node("db2", 2), node("db3", 3));
    parse(&text, &[]).unwrap()
}

fn told(clock_ms: i64) -> Told {
    Told { clock_ms: Some(clock_ms), about_ms: 2, libc: Some("glibc 2.36".into()) }
}

fn peer(name: &str) -> Peer {
    let ports = [("agent", 7420), ("server", 5432)].map(|(of, port)| PeerPort { port, of, knock: Knock::Open });
    Peer {
        node: name.parse().unwrap(),
        host: format!("{name}.example.org"),
        ports: ports.into(),
        round_trip_us: Some(300),
        told: Some(Ok(told(3))),
    }
}

/// A host with which nothing is wrong.
fn well() -> HostFacts {
    let place =
        |path: &str, found| Place { path: path.into(), owner: ("root".into(), 0), mode: 0o700, found: Ok(found) };
    let right = Some(Found { uid: 0, mode: 0o40700, right_kind: true });
    HostFacts {
        node: "db1".parse().unwrap(),
        stage: Stage::Running,
        asked: Ok(()),
        config: "/etc/mainstay/mainstay.toml".into(),
        now: 1_800_000_000,
        system: System {
            not_root: None,
            kernel: Ok("6.1.0-13-amd64".into()),
            libc: Ok("glibc 2.36".into()),
            address_here: true,
            keeper: Keeper::Systemd(Ok("enabled".into())),
            clock_kept: Ok(true),
            open_files: Ok(65_536),
        },
        server: Ok(Server { programs: "/usr/lib/postgresql/15/bin".into(), major: 15 }),
        user: Ok(()),
        places: vec![place("/var/lib/mainstay/orders/agent", right)],
        ports: vec![OwnPort { port: 7420, of: "agent", busy: Ok(true) }],
        memory: Memory {
            total_kb: Ok(16 << 20),
            swap_kb: Ok(2 << 20),
            swappiness: Ok(1),
            overcommit: Ok(2),
            dirty_background_bytes: Ok(256 << 20),
            dirty_bytes: Ok(1 << 30),
            huge_pages: Ok(0),
            transparent: Ok("madvise".into()),
            shared_bytes: Ok(8 << 30),
        },
        volume: Volume {
            at: "/var/lib/mainstay/orders".into(),
            mount: Ok(Mount {
                point: "/var/lib/mainstay".into(),
                kind: "ext4".into(),
                options: vec!["rw".into(), "relatime".into()],
            }),
            space: Ok((500 << 30, 300 << 30)),
            inodes: Ok((900, 1000)),
            writing: Some(Ok(Writing { count: 64, median_us: 400, worst_us: 3000, bytes_per_s: 500 << 20 })),
        },
        data: Ok(Existing::Database(15)),
        papers: vec![Paper {
            path: "node.crt".into(),
            state: Ok(PaperState { until: 1_800_000_000 + 300 * 86_400, wrong: vec![] }),
        }],
        peers: vec![peer("db2"), peer("db3")],
        collations: Some(Ok(vec![])),
        etcd: None,
        address: None,
        runbook: Some(Book {
            path: "runbook.html".into(),
            made_from: Ok(Some(Stamp::of(&spec(), Some(7)))),
            now: Stamp::of(&spec(), Some(7)),
        }),
    }
}

fn examined(facts: &HostFacts) -> Vec<Finding> {
    let spec = spec();
    let node = spec.nodes.first().unwrap();
    let found = examine(&spec, node, facts);
    for finding in &found {
        let fine = finding.severity == Severity::Fine;
        assert_eq!(finding.why.is_empty(), fine, "{finding:?}");
        assert_eq!(finding.mend.is_empty(), fine, "each finding says what mends it: {finding:?}");
        assert!(finding.found.len() > 4 && !finding.mend.iter().any(String::is_empty), "{finding:?}");
    }
    assert!(found.is_sorted_by_key(|finding| finding.severity));
    found
}

#[test]
fn a_host_that_is_well_has_no_findings() {
    let found = examined(&well());
    let amiss_here: Vec<&Finding> = found.iter().filter(|finding| finding.severity != Severity::Fine).collect();
    assert!(amiss_here.is_empty() && !amiss(&found), "{amiss_here:#?}");
    assert!(found.len() > 25, "{}", found.len());
}

type Change = fn(&mut HostFacts);

/// What is changed on a host that is well, and the only findings that follow: check, severity, a part of the text or the mending.
const TABLE: &[(Change, &str, Severity, &str)] = &[
    (|host| host.system.kernel = Ok("4.19.0".into()), "kernel", Severity::Problem, "5.4"),
    (|host| host.system.kernel = Ok("5.4.0".into()), "", Severity::Fine, ""),
    (|host| host.system.address_here = false, "address", Severity::Problem, "10.0.0.1"),
    (|host| host.system.clock_kept = Ok(false), "clock-kept", Severity::Problem, "chrony"),
    (|host| host.system.keeper = Keeper::Systemd(Ok("disabled".into())), "unit", Severity::Advice, "enable --now"),
    (|host| host.system.keeper = Keeper::Nobody, "unit", Severity::Advice, "no systemd"),
    (|host| host.system.keeper = Keeper::Supervisor, "", Severity::Fine, ""),
    (
        |host| each(&mut host.ports, |port| port.busy = Ok(false)),
        "ports",
        Severity::Problem,
        "nobody listens on port 7420",
    ),
    (|host| book(host, |book| book.made_from = Ok(None)), "runbook-outdated", Severity::Problem, "does not say"),
    (
        |host| book(host, |book| book.made_from = Ok(Some(Stamp::of(&spec_without_db3(), Some(6))))),
        "runbook-outdated",
        Severity::Problem,
        "generation 6 of orders; generation 7 of orders holds",
    ),
    // A generation that only paused the cluster changes nothing of what was written down.
    (|host| book(host, |book| book.made_from = Ok(Some(Stamp::of(&spec(), Some(5))))), "", Severity::Fine, ""),
    (|host| host.system.open_files = Ok(1024), "open-files", Severity::Advice, "LimitNOFILE"),
    (|host| host.system.not_root = Some("ann".into()), "user", Severity::Advice, "ann"),
    (
        |host| host.server = Err("no PostgreSQL server was found".into()),
        "server",
        Severity::Problem,
        "create_main_cluster",
    ),
    (|host| host.user = Err("there is no user \"postgres\"".into()), "server-user", Severity::Problem, "postgres"),
    (|host| mode(host, 0o755), "directories", Severity::Problem, "chmod 700"),
    (|host| mode(host, 0o500), "", Severity::Fine, ""),
    (|host| place(host, |found| found.uid = 77), "directories", Severity::Problem, "chown -R root"),
    (|host| place(host, |found| found.right_kind = false), "directories", Severity::Problem, "link"),
    (|host| each(&mut host.places, |place| place.found = Ok(None)), "directories", Severity::Problem, "does not exist"),
    (|host| host.memory.swappiness = Ok(60), "swappiness", Severity::Advice, "sysctl -p"),
    (|host| host.memory.swap_kb = Ok(0), "swap", Severity::Advice, "swapon"),
    (|host| host.memory.overcommit = Ok(0), "overcommit", Severity::Advice, "60-mainstay-overcommit-memory.conf"),
    (|host| host.memory.dirty_background_bytes = Ok(4 << 30), "dirty-background", Severity::Advice, "4 GB"),
    (|host| host.memory.dirty_bytes = Ok(8 << 30), "dirty", Severity::Advice, "8 GB"),
    (|host| host.memory.total_kb = Ok(64 << 20), "huge-pages", Severity::Advice, "vm.nr_hugepages = 8601"),
    (|host| host.memory.transparent = Ok("always".into()), "transparent-huge-pages", Severity::Advice, "madvise"),
    (|host| host.memory.shared_bytes = Ok(64 << 20), "shared-memory", Severity::Advice, "64 MB"),
    (|host| mount(host, "nfs4", "rw"), "file-system", Severity::Problem, "nfs4"),
    (|host| mount(host, "tmpfs", "rw"), "file-system", Severity::Problem, "memory"),
    (|host| mount(host, "ext4", "ro"), "file-system", Severity::Problem, "read-only"),
    (|host| mount(host, "ext4", "barrier=0"), "file-system", Severity::Problem, "barrier"),
    (|host| mount(host, "zfs", "rw"), "file-system", Severity::Advice, "xfs"),
    (|host| host.volume.space = Ok((500 << 30, 1 << 29)), "space", Severity::Problem, "512 MB of 500 GB"),
    (|host| host.volume.space = Ok((500 << 30, 40 << 30)), "space", Severity::Advice, "40 GB"),
    (|host| host.volume.inodes = Ok((2, 1000)), "inodes", Severity::Advice, "2 of 1000"),
    (|host| host.volume.inodes = Ok((0, 0)), "", Severity::Fine, ""),
    (|host| writing(host, 400, 1_200_000), "disk", Severity::Problem, "suspected"),
    (|host| writing(host, 15_000, 20_000), "disk", Severity::Advice, "commit waits"),
    (|host| writing(host, 3, 9), "disk", Severity::Advice, "no disk is so fast"),
    (|host| host.data = Ok(Existing::Database(14)), "data", Severity::Problem, "postgresql-14"),
    (|host| host.data = Ok(Existing::Other(vec!["notes.txt".into()])), "data", Severity::Problem, "notes.txt"),
    (|host| paper(host, 300, &["it is for node db2"]), "certificates", Severity::Problem, "node db2"),
    (|host| paper(host, 20, &[]), "certificates", Severity::Advice, "20 days"),
    (|host| paper(host, 2, &[]), "certificates", Severity::Problem, "2 days"),
    (|host| paper(host, -1, &[]), "certificates", Severity::Problem, "has ended"),
    (|host| knock(host, Knock::Lost("no answer".into())), "reach", Severity::Problem, "5432 (server): no answer"),
    (|host| knock(host, Knock::Refused), "reach", Severity::Problem, "nobody listens on 5432"),
    (|host| db2(host, |peer| peer.round_trip_us = Some(400_000)), "latency", Severity::Problem, "suspected"),
    (|host| db2(host, |peer| peer.told = Some(Ok(told(-5000)))), "clock-offset", Severity::Advice, "-5000 ms"),
    (|host| db2(host, |peer| peer.told = Some(Ok(told(101)))), "", Severity::Fine, ""),
    (|host| db2(host, |peer| peer.told = Some(Ok(told(90_000)))), "clock-offset", Severity::Problem, "makestep"),
    (
        |host| db2(host, |peer| peer.told = Some(Ok(Told { libc: Some("glibc 2.31".into()), ..told(0) }))),
        "libc-differs",
        Severity::Problem,
        "2.31",
    ),
    (|host| collation(host), "collations", Severity::Problem, "refresh collation version"),
];

fn spec_without_db3() -> Spec {
    let mut spec = spec();
    spec.nodes.pop();
    spec
}
fn book(host: &mut HostFacts, change: impl Fn(&mut Book)) {
    change(host.runbook.as_mut().unwrap());
}
fn each<T>(all: &mut [T], change: impl Fn(&mut T)) {
    all.iter_mut().for_each(change);
}
fn place(host: &mut HostFacts, change: fn(&mut Found)) {
    each(&mut host.places, |place| change(place.found.as_mut().unwrap().as_mut().unwrap()));
}
fn mode(host: &mut HostFacts, mode: u32) {
    each(&mut host.places, |place| place.found.as_mut().unwrap().as_mut().unwrap().mode = mode);
}
fn mount(host: &mut HostFacts, kind: &str, option: &str) {
    host.volume.mount = Ok(Mount { point: "/data".into(), kind: kind.into(), options: vec![option.into()] });
}
fn writing(host: &mut HostFacts, median_us: u64, worst_us: u64) {
    host.volume.writing = Some(Ok(Writing { count: 64, median_us, worst_us, bytes_per_s: 1 << 20 }));
}
fn paper(host: &mut HostFacts, days: i64, wrong: &[&str]) {
    let wrong = wrong.iter().map(|text| (*text).to_owned()).collect();
    host.papers =
        vec![Paper { path: "node.crt".into(), state: Ok(PaperState { until: host.now + days * 86_400, wrong }) }];
}
fn db2(host: &mut HostFacts, change: impl Fn(&mut Peer)) {
    change(host.peers.first_mut().unwrap());
}
fn knock(host: &mut HostFacts, knock: Knock) {
    db2(host, |peer| peer.ports.last_mut().unwrap().knock = knock.clone());
}
fn collation(host: &mut HostFacts) {
    let (recorded, actual) = ("2.31".into(), "2.36".into());
    host.collations = Some(Ok(vec![Collation { database: "app".into(), recorded, actual }]));
}

#[test]
fn one_thing_that_is_wrong_makes_one_finding() {
    for (number, (change, check, severity, part)) in TABLE.iter().enumerate() {
        let mut host = well();
        change(&mut host);
        let found = examined(&host);
        let seen: Vec<&Finding> = found.iter().filter(|finding| finding.severity != Severity::Fine).collect();
        if check.is_empty() {
            assert!(seen.is_empty(), "line {number}: {seen:#?}");
            continue;
        }
        let [only] = seen.as_slice() else { panic!("line {number} ({check}): {seen:#?}") };
        assert_eq!((only.check, only.severity), (*check, *severity), "line {number}: {only:#?}");
        let text = format!("{} {} {}", only.found, only.why, only.mend.join(" "));
        assert!(text.contains(part), "line {number}: {part:?} is not in {text}");
        assert_eq!(amiss(&found), *severity == Severity::Problem, "line {number}");
    }
}

/// Every fact that is read can fail, and must then be seen.
const UNREAD: &[(Change, &str)] = &[
    (|host| host.asked = no(), "agent"),
    (|host| host.system.kernel = no(), "kernel"),
    (|host| host.system.libc = no(), "libc"),
    (|host| host.system.keeper = Keeper::Systemd(no()), "unit"),
    (|host| book(host, |book| book.made_from = no()), "runbook-outdated"),
    (|host| host.system.clock_kept = no(), "clock-kept"),
    (|host| host.system.open_files = no(), "open-files"),
    (|host| each(&mut host.places, |place| place.found = no()), "directories"),
    (|host| each(&mut host.ports, |port| port.busy = no()), "ports"),
    (|host| host.memory.total_kb = no(), "memory"),
    (|host| host.memory.swap_kb = no(), "swap"),
    (|host| host.memory.swappiness = no(), "swappiness"),
    (|host| host.memory.overcommit = no(), "overcommit"),
    (|host| host.memory.dirty_background_bytes = no(), "dirty-background"),
    (|host| host.memory.dirty_bytes = no(), "dirty"),
    (|host| host.memory.huge_pages = no(), "huge-pages"),
    (|host| host.memory.transparent = no(), "transparent-huge-pages"),
    (|host| host.memory.shared_bytes = no(), "shared-memory"),
    (|host| host.volume.mount = no(), "file-system"),
    (|host| host.volume.space = no(), "space"),
    (|host| host.volume.inodes = no(), "inodes"),
    (|host| host.volume.writing = Some(no()), "disk"),
    (|host| host.data = no(), "data"),
    (|host| each(&mut host.papers, |paper| paper.state = no()), "certificates"),
    (|host| db2(host, |peer| peer.told = Some(no())), "peer"),
    (|host| db2(host, |peer| peer.told = Some(Ok(Told { clock_ms: None, ..told(0) }))), "clock-offset"),
    (|host| db2(host, |peer| peer.told = Some(Ok(Told { libc: None, ..told(0) }))), "libc-differs"),
    (|host| host.collations = Some(no()), "collations"),
];

fn no<T>() -> Reading<T> {
    Err("Permission denied".to_owned())
}

#[test]
fn what_could_not_be_read_is_never_fine() {
    for (change, check) in UNREAD {
        let mut host = well();
        change(&mut host);
        let found = examined(&host);
        let unknown: Vec<&str> =
            found.iter().filter(|finding| finding.severity == Severity::Unknown).map(|finding| finding.check).collect();
        assert_eq!(unknown, [*check]);
        assert!(amiss(&found), "{check}");
        let fine = |finding: &&Finding| finding.severity == Severity::Fine && finding.check == *check;
        // Of several peers another one may be fine.
        if !["peer", "clock-offset", "libc-differs"].contains(check) {
            assert!(found.iter().find(fine).is_none(), "{check} is said to be fine as well");
        }
    }
}

#[test]
fn an_agent_that_is_silent_is_a_problem_once_the_node_has_joined() {
    let mut host = well();
    (host.stage, host.collations) = (Stage::Joined, None);
    each(&mut host.ports, |port| port.busy = Ok(false));
    let found = examined(&host);
    let wrong: Vec<&Finding> = found.iter().filter(|finding| finding.severity < Severity::Fine).collect();
    let [only] = wrong.as_slice() else { panic!("{wrong:#?}") };
    assert_eq!((only.check, only.severity), ("agent", Severity::Problem));
    assert!(only.mend.iter().any(|mend| mend.contains("journalctl")), "{only:?}");
}

#[test]
fn before_the_agent_is_there_empty_is_fine_and_busy_is_not() {
    let mut host = well();
    (host.stage, host.papers, host.collations, host.runbook) = (Stage::New, vec![], None, None);
    host.data = Ok(Existing::Nothing);
    each(&mut host.places, |place| place.found = Ok(None));
    each(&mut host.ports, |port| port.busy = Ok(false));
    each(&mut host.peers, |peer| {
        peer.told = None;
        each(&mut peer.ports, |port| port.knock = Knock::Refused);
    });
    let found = examined(&host);
    assert!(!amiss(&found), "{found:#?}");
    let advice: Vec<&str> =
        found.iter().filter(|finding| finding.severity == Severity::Advice).map(|finding| finding.check).collect();
    assert_eq!(advice, ["certificates"]);
    host.data = Ok(Existing::Database(15));
    each(&mut host.ports, |port| port.busy = Ok(true));
    let found = examined(&host);
    let wrong: Vec<&str> =
        found.iter().filter(|finding| finding.severity == Severity::Problem).map(|finding| finding.check).collect();
    assert_eq!(wrong, ["ports", "data"]);
}

#[test]
fn an_etcd_that_is_the_store_is_looked_at() {
    use mainstay_model::etcd::{EtcdStanding, MemberStanding};
    let member = |version: &str, problem: Option<&str>| MemberStanding {
        endpoint: "https://e1:2379".into(),
        problem: problem.map(Into::into),
        version: Some(version.into()),
        ..MemberStanding::default()
    };
    let with = |standing: EtcdStanding| examined(&HostFacts { etcd: Some(Ok(standing)), ..well() });
    let good = EtcdStanding { works: true, members: vec![member("3.4.23", None); 3], ..EtcdStanding::default() };
    assert!(!amiss(&with(good.clone())));
    let grave = |standing: EtcdStanding, check: &str| {
        let found = with(standing);
        assert!(
            found.iter().any(|finding| finding.check == check && finding.severity == Severity::Problem),
            "{found:?}"
        );
    };
    grave(EtcdStanding { works: false, why: Some("timed out".into()), ..good.clone() }, "store");
    grave(EtcdStanding { alarms: vec!["NOSPACE".into()], ..good.clone() }, "store-alarm");
    grave(
        EtcdStanding { members: vec![member("3.4.23", Some("connection refused")); 3], ..good.clone() },
        "store-member",
    );
    grave(EtcdStanding { members: vec![member("3.3.27", None); 3], ..good.clone() }, "store-member");
    let one = with(EtcdStanding { members: vec![member("3.5.30", None)], ..good });
    assert!(one.iter().any(|finding| finding.check == "store-size" && finding.severity == Severity::Advice));
    let unread = examined(&HostFacts { etcd: Some(Err("store.endpoints names no member".into())), ..well() });
    assert!(unread.iter().any(|finding| finding.check == "store" && finding.severity == Severity::Unknown));
}

#[test]
fn a_virtual_address_is_the_clusters_alone() {
    let mut spec = spec();
    spec.proxy.address = Some("10.0.0.100/24".parse().unwrap());
    let way = || AddressWay {
        interface: "eth0".into(),
        own: vec![[192, 168, 0, 1].into(), [10, 0, 0, 1].into()],
        held: false,
        foreign: None,
        answers: None,
        holders: None,
    };
    let said_of = |spec: &Spec, way: Reading<AddressWay>| {
        let found = examine(spec, &spec.nodes[0], &HostFacts { address: Some(way), ..well() });
        let mut said: Vec<(Severity, String)> = found
            .into_iter()
            .filter(|finding| finding.check == "virtual-address")
            .map(|finding| (finding.severity, finding.found))
            .collect();
        assert_eq!(said.len(), 1, "{said:?}");
        said.remove(0)
    };
    let said = |way: Reading<AddressWay>| said_of(&spec, way);
    assert_eq!(said(Ok(way())).0, Severity::Fine);
    let node = |node: Option<&str>| {
        let node = node.map(|name| name.parse().unwrap());
        Ok(AddressWay { answers: Some(Answering { hardware: "02:00:00:00:00:09".into(), node }), ..way() })
    };
    let (severity, text) = said(node(Some("db2")));
    assert!(severity == Severity::Fine && text.contains("db2 has it"), "{text}");
    let (severity, text) = said(node(None));
    assert!(severity == Severity::Problem && text.contains("02:00:00:00:00:09"), "{text}");
    assert_eq!(said(Ok(AddressWay { foreign: Some(2), ..way() })).0, Severity::Problem);
    assert_eq!(said(Ok(AddressWay { own: vec![[10, 0, 1, 1].into()], ..way() })).0, Severity::Advice);
    assert_eq!(said(Ok(AddressWay { own: Vec::new(), ..way() })).0, Severity::Advice);
    let db2 = || vec!["db2".parse().unwrap()];
    let with = |holders| node(None).map(|way: AddressWay| AddressWay { holders, ..way });
    let (severity, text) = said(with(Some(db2())));
    assert!(severity == Severity::Advice, "its other interface, perhaps: {text}");
    assert_eq!(said(with(Some(Vec::new()))).0, Severity::Problem, "nobody of the cluster has it");
    let mut elsewhere = spec.clone();
    elsewhere.nodes[1].interface = Some("eth1".into());
    assert_eq!(said_of(&elsewhere, with(None)).0, Severity::Advice, "nobody says");
    let (severity, text) = said(node(None).map(|way| AddressWay { held: true, ..way }));
    assert!(severity == Severity::Fine && text.contains("this host has it"), "{text}");
    let (severity, text) = said(Ok(AddressWay { holders: Some(db2()), ..way() }));
    assert!(severity == Severity::Fine && text.contains("db2 has it"), "{text}");
    assert_eq!(said(Err("no interface".into())).0, Severity::Unknown);
}
