//! The store in an etcd, with real etcd servers: the conformance suite, lost members, a restored copy, logins and TLS, compaction, a full
//! database.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "common/etcd_servers.rs"]
mod etcd_servers;

use async_trait::async_trait;
use etcd_servers::Etcd;
use mainstay_model::NodeId;
use mainstay_model::spec::Spec;
use mainstay_ports::store::{CasOutcome, Store, StoreError};
use mainstay_ports::store_suite::{self, Fixture, put};
use mainstay_store::etcd::{EtcdOptions, EtcdStore, Found, found, leave_mark, look, marks};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENT: Duration = Duration::from_secs(30);

fn spec(endpoints: &[String], more: &str) -> Spec {
    let mut text =
        format!("[cluster]\nname = \"orders\"\n[store]\nkind = \"etcd\"\nendpoints = {endpoints:?}\n{more}\n");
    for number in 1..=3 {
        text += &format!("[[node]]\nname = \"db{number}\"\nhost = \"10.0.0.{number}\"\n");
    }
    mainstay_model::config::parse(&text, &[]).unwrap()
}

fn options_of(spec: &Spec, dir: &Path, number: usize, authority: &str) -> EtcdOptions {
    let node = NodeId::new(format!("db{}", number + 1)).unwrap();
    EtcdOptions::of(spec, &node, authority.to_owned(), dir.join(format!("{node}.json"))).unwrap()
}

/// A door, once etcd answers. The first one marks the place.
async fn door(options: EtcdOptions) -> Result<Arc<EtcdStore>, String> {
    let until = Instant::now() + PATIENT;
    loop {
        match look(&options, Duration::from_secs(2)).await {
            Ok(Found::Ours(origin, revision)) => return EtcdStore::start(options, Some((origin, revision))),
            Ok(Found::Nothing) => drop(found(&options, Duration::from_secs(2)).await),
            Ok(Found::Foreign(why)) => return Err(why),
            Err(why) => assert!(Instant::now() < until, "{why}"),
        }
    }
}

struct Three {
    etcd: Etcd,
    dir: tempfile::TempDir,
    doors: Vec<Arc<EtcdStore>>,
    restarts: u32,
}

impl Three {
    async fn start() -> Self {
        let (etcd, dir) = (Etcd::start(3), tempfile::tempdir().unwrap());
        let mut three = Self { etcd, dir, doors: Vec::new(), restarts: 0 };
        three.open().await;
        three
    }

    async fn open(&mut self) {
        let spec = spec(&self.etcd.endpoints(), "");
        for number in 0..3 {
            self.doors.push(door(options_of(&spec, self.dir.path(), number, "ours")).await.unwrap());
        }
    }
}

#[async_trait]
impl Fixture for Three {
    fn doors(&self) -> Vec<Arc<dyn Store>> {
        self.doors.iter().map(|door| Arc::clone(door) as Arc<dyn Store>).collect()
    }

    async fn restart(&mut self) -> bool {
        // First etcd alone, under the doors; then the doors as well.
        self.restarts += 1;
        if self.restarts > 1 {
            for door in std::mem::take(&mut self.doors) {
                door.stop().await;
            }
        }
        self.etcd.kill_all();
        self.etcd.launch_all();
        if self.doors.is_empty() {
            self.open().await;
        }
        true
    }

    async fn cut(&mut self) -> bool {
        self.etcd.kill(0);
        self.etcd.signal(1, "-STOP");
        true
    }

    async fn heal(&mut self) {
        self.etcd.signal(1, "-CONT");
        self.etcd.launch(0);
        self.etcd.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite() {
    store_suite::run(&mut Three::start().await).await;
}

/// Waits until something is so.
async fn until(what: &str, so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENT;
    while !so() {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_of_three_may_be_lost_or_hang_and_nothing_happens_twice() {
    let mut three = Three::start().await;
    for (hang, number) in [(true, 0), (false, 1)] {
        let key = format!("count-{number}");
        let doors = three.doors();
        let counting = tokio::spawn(async move { store_suite::exactly_the_successes_show(&doors, &key, 6, 40).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        if hang {
            three.etcd.signal(number, "-STOP");
        } else {
            three.etcd.kill(number);
        }
        counting.await.unwrap();
        // Every node's door works, also one whose first choice is gone; within what a lease leaves.
        for (place, door) in three.doors.iter().enumerate() {
            put(door.as_ref(), &format!("after-{number}-{place}"), b"x").await;
        }
        let members = |standing: &mainstay_model::etcd::EtcdStanding| {
            standing.members.iter().filter(|member| member.problem.is_some()).count()
        };
        let door = Arc::clone(&three.doors[2]);
        until("the lost member shows", || members(&door.standing()) == 1 && door.works()).await;
        if hang {
            three.etcd.signal(number, "-CONT");
        } else {
            three.etcd.launch(number);
        }
        until("the member shows again", || members(&door.standing()) == 0).await;
    }
}

fn unavailable(read: Result<Option<mainstay_ports::store::Versioned>, StoreError>) -> String {
    match read {
        Err(StoreError::Unavailable(why)) => why,
        other => panic!("an older state must not be believed: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_was_restored_from_an_older_copy_is_not_believed() {
    let (mut etcd, dir) = (Etcd::start(1), tempfile::tempdir().unwrap());
    let spec = spec(&etcd.endpoints(), "");
    let options = |number| options_of(&spec, dir.path(), number, "ours");
    let (first, second) = (door(options(0)).await.unwrap(), door(options(1)).await.unwrap());
    put(first.as_ref(), "record", b"old").await;
    let copy = etcd.save();
    let newest = put(first.as_ref(), "record", b"new").await;
    let mut watch = second.watch("record");
    assert!(
        tokio::time::timeout(
            PATIENT,
            watch.wait_for(|shown| shown.as_ref().is_some_and(|shown| shown.revision == newest))
        )
        .await
        .is_ok()
    );
    second.stop().await;
    etcd.restore(&copy);
    // The one that ran on notices by itself; the one that starts anew by what it kept.
    until("it is noticed", || first.failure().is_some()).await;
    let why = unavailable(first.read("record", PATIENT).await);
    assert!(why.contains("restored from an older copy") && why.contains("mainstay recover"), "{why}");
    let again = door(options(1)).await.unwrap();
    until("it is noticed by the other", || again.failure().is_some()).await;
    // What etcd lacks is caught up with by somebody who has seen nothing: a start does not make the other believe it.
    again.stop().await;
    let stranger = door(options(2)).await.unwrap();
    for round in 0..4_u8 {
        put(stranger.as_ref(), "record", &[round]).await;
    }
    stranger.stop().await;
    let again = door(options(1)).await.unwrap();
    assert!(again.evidence().is_some() && !again.works(), "noted for good");
    // The values are known after a start, too, and when etcd has lost them all.
    assert_eq!(again.known(PATIENT).await.unwrap()["record"].value, b"new");
    etcd.ctl_ok(&["del", "--prefix", "/mainstay/orders/"]);
    assert_eq!(again.known(PATIENT).await.unwrap()["record"].value, b"new");
    let write = again.compare_and_set("record", Some(newest), b"x".to_vec(), PATIENT).await;
    assert!(matches!(write, CasOutcome::Unavailable(_)), "{write:?}");
    let shown = first.watch("record").borrow().clone();
    assert_eq!(shown.map(|shown| shown.value), Some(b"new".to_vec()), "a watch never goes back");
    // A person decides: made anew from what the first knows. Everybody starts anew, and goes on.
    assert_eq!(first.known(PATIENT).await.unwrap()["record"].value, b"new");
    let values = BTreeMap::from([("record".to_owned(), b"anew".to_vec())]);
    first.make_anew((77, 1), values.clone(), PATIENT).await.unwrap();
    first.make_anew((77, 1), values, PATIENT).await.unwrap();
    let third = door(options(2)).await.unwrap();
    for options in [options(0), options(1)] {
        let door = door(options).await.unwrap();
        assert_eq!(door.group(), 77);
        let read = door.read("record", PATIENT).await.unwrap().unwrap();
        assert_eq!(read.value, b"anew");
        put(door.as_ref(), "record", b"on").await;
        put(door.as_ref(), "record", b"anew").await;
    }
    until("a node that is there already reads it, too", || {
        third.watch("record").borrow().as_ref().is_some_and(|shown| shown.value == b"anew")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_node_has_seen_must_show_too() {
    let (mut etcd, dir) = (Etcd::start(1), tempfile::tempdir().unwrap());
    let spec = spec(&etcd.endpoints(), "");
    let options = |number| options_of(&spec, dir.path(), number, "ours");
    let db1 = NodeId::new("db1").unwrap();
    let (first, second) = (door(options(0)).await.unwrap(), door(options(1)).await.unwrap());
    let old = put(first.as_ref(), "record", b"old").await;
    until("both have seen it", || second.floor("record") == first.floor("record")).await;
    second.stop().await;
    let copy = etcd.save();
    put(first.as_ref(), "record", b"new").await;
    let floor = first.floor("record").unwrap();
    // The one that has seen most is cut off, etcd goes back, and a node comes that has never seen more than etcd shows.
    first.stop().await;
    etcd.restore(&copy);
    let third = door(options(2)).await.unwrap();
    assert_eq!(third.confirmed_record(PATIENT).await.map(|record| record.value), Some(b"old".to_vec()));
    third.hold_against(&db1, "record", &floor);
    until("the newcomer believes it no more", || third.evidence().is_some()).await;
    assert!(third.confirmed_record(PATIENT).await.is_none());
    third.stop().await;
    // It counts also when it is heard while etcd is away.
    etcd.kill_all();
    let second = EtcdStore::start(options(1), None).unwrap();
    assert!(second.confirmed_record(Duration::from_millis(300)).await.is_none(), "nothing has answered in this life");
    second.hold_against(&db1, "record", &floor);
    assert!(second.is_believed(), "silence is no evidence");
    second.stop().await;
    let second = EtcdStore::start(options(1), None).unwrap();
    etcd.launch_all();
    let write = second.compare_and_set("record", Some(old), b"on the older one".to_vec(), PATIENT).await;
    assert!(!matches!(write, CasOutcome::Done(_)), "{write:?}");
    let shown = second.watch("record").borrow().clone();
    assert_eq!(shown, None, "nobody goes by less than what was heard of");
    until("it is held against etcd once that is back", || second.evidence().is_some()).await;
    assert_eq!(second.known(PATIENT).await.unwrap()["record"].value, b"new", "what was heard is kept, too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_was_brought_to_the_same_revision_by_others_takes_no_write() {
    let (mut etcd, dir) = (Etcd::start(1), tempfile::tempdir().unwrap());
    let spec = spec(&etcd.endpoints(), "");
    let options = |number| options_of(&spec, dir.path(), number, "ours");
    let first = door(options(0)).await.unwrap();
    put(first.as_ref(), "record", b"both").await;
    let copy = etcd.save();
    let mine = put(first.as_ref(), "record", b"mine").await;
    first.stop().await;
    etcd.restore(&copy);
    let other = door(options(1)).await.unwrap();
    assert_eq!(put(other.as_ref(), "record", b"theirs").await, mine, "the numbers are the same");
    other.stop().await;
    let first = EtcdStore::start(options(0), None).unwrap();
    let write = first.compare_and_set("record", Some(mine), b"over theirs".to_vec(), PATIENT).await;
    assert!(!matches!(write, CasOutcome::Done(_)), "{write:?}");
    until("it is noticed", || first.evidence().is_some()).await;
    let evidence = first.evidence().unwrap();
    assert!(evidence.contains("with another value"), "{evidence}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_can_not_keep_what_it_sees_confirms_nothing_and_a_torn_file_is_not_passed_over() {
    let (etcd, dir) = (Etcd::start(1), tempfile::tempdir().unwrap());
    let spec = spec(&etcd.endpoints(), "");
    let options = || options_of(&spec, dir.path(), 0, "ours");
    let store = door(options()).await.unwrap();
    put(store.as_ref(), "record", b"a").await;
    assert!(store.confirmed_record(PATIENT).await.is_some());
    // Nobody can write a file where a directory stands, not even root.
    let (kept, new) = (dir.path().join("db1.json"), dir.path().join("db1.json.new"));
    std::fs::create_dir(&new).unwrap();
    put(store.as_ref(), "record", b"b").await;
    until("it shows", || !store.works()).await;
    assert!(store.standing().why.is_some_and(|why| why.contains("can not be kept")));
    assert!(store.confirmed_record(PATIENT).await.is_none(), "it would have forgotten that after a start");
    std::fs::remove_dir(&new).unwrap();
    until("it is over by itself", || store.works()).await;
    assert!(store.confirmed_record(PATIENT).await.is_some());
    store.stop().await;
    let whole = std::fs::read(&kept).unwrap();
    std::fs::write(&kept, &whole[..whole.len() / 2]).unwrap();
    let torn = door(options()).await.err().unwrap();
    assert!(torn.contains("db1.json") && torn.contains("can not be read"), "{torn}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_made_anew_tells_those_who_know_the_old_one() {
    let (etcd, dir) = (Etcd::start(1), tempfile::tempdir().unwrap());
    let spec = spec(&etcd.endpoints(), "");
    let (first, second) = (
        door(options_of(&spec, dir.path(), 0, "ours")).await.unwrap(),
        door(options_of(&spec, dir.path(), 1, "ours")).await.unwrap(),
    );
    put(first.as_ref(), "record", b"x").await;
    first.make_anew((5, 1), BTreeMap::from([("record".to_owned(), b"anew".to_vec())]), PATIENT).await.unwrap();
    assert!(tokio::time::timeout(PATIENT, second.until_anew()).await.is_ok());
    let write = second.compare_and_set("record", None, b"late".to_vec(), PATIENT).await;
    assert!(matches!(write, CasOutcome::Unavailable(_)), "whoever knows the old one writes nothing: {write:?}");
    // Another cluster of the same name is kept off.
    let other = door(options_of(&spec, dir.path(), 2, "theirs")).await.err().unwrap();
    assert!(other.contains("another cluster's"), "{other}");
    etcd.ctl_ok(&["del", "--prefix", "/mainstay/orders/"]);
    let late = door(options_of(&spec, dir.path(), 2, "theirs")).await;
    assert!(late.is_ok(), "an empty place is free");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_keep_apart_and_nodes_find_out_that_they_ask_the_same_etcd() {
    let (etcd, other, dir) = (Etcd::start(1), Etcd::start(1), tempfile::tempdir().unwrap());
    let plain = spec(&etcd.endpoints(), "");
    let options = options_of(&plain, dir.path(), 0, "ours");
    leave_mark(&options, &NodeId::new("db1").unwrap(), "a", PATIENT).await.unwrap();
    let here = marks(&options_of(&plain, dir.path(), 1, "ours"), PATIENT).await.unwrap();
    assert_eq!(here, BTreeMap::from([("db1".to_owned(), "a".to_owned())]));
    let elsewhere = options_of(&spec(&other.endpoints(), ""), dir.path(), 1, "ours");
    assert!(marks(&elsewhere, PATIENT).await.unwrap().is_empty());

    let store = door(options.clone()).await.unwrap();
    assert!(marks(&options, PATIENT).await.unwrap().is_empty(), "taken away when the place was founded");
    put(store.as_ref(), "record", b"x").await;
    // Keys of others are neither shown nor missed.
    etcd.ctl_ok(&["put", "/mainstay/orders/inner/record", "theirs"]);
    etcd.ctl_ok(&["put", "/mainstay/orders/note", "somebody's"]);
    until("a key of this place is shown", || store.watch("note").borrow().is_some()).await;
    assert!(!store.known(PATIENT).await.unwrap().contains_key("inner/record"));
    etcd.ctl_ok(&["del", "/mainstay/orders/inner/record"]);
    etcd.ctl_ok(&["del", "/mainstay/orders/note"]);
    put(store.as_ref(), "record", b"y").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(store.failure(), None);

    // No other cluster begins below it, and none around one that is there.
    let mut below = spec(&etcd.endpoints(), "");
    below.store.prefix = "/mainstay/orders".to_owned();
    let why = found(&options_of(&below, dir.path(), 2, "theirs"), PATIENT).await.unwrap_err();
    assert!(why.contains("/mainstay/orders/origin"), "{why}");
    etcd.ctl_ok(&["put", "/outer/orders/inner/origin", "{}"]);
    let mut around = below;
    around.store.prefix = "/outer".to_owned();
    let why = found(&options_of(&around, dir.path(), 2, "theirs"), PATIENT).await.unwrap_err();
    assert!(why.contains("/outer/orders/inner/origin"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_over_compactions_and_restarts() {
    let (mut etcd, dir) = (Etcd::start(1), tempfile::tempdir().unwrap());
    let spec = spec(&etcd.endpoints(), "");
    let (writer, reader) = (
        door(options_of(&spec, dir.path(), 0, "ours")).await.unwrap(),
        door(options_of(&spec, dir.path(), 1, "ours")).await.unwrap(),
    );
    let mut watch = reader.watch("record");
    for round in 0..4_u8 {
        let revision = put(writer.as_ref(), "record", &[round]).await;
        let seen = tokio::time::timeout(
            PATIENT,
            watch.wait_for(|shown| shown.as_ref().is_some_and(|shown| shown.revision >= revision)),
        );
        assert!(seen.await.is_ok(), "round {round}");
        if round % 2 == 0 {
            // While the reader's stream is away, what it would go on from is compacted.
            etcd.kill(0);
            etcd.launch_all();
            let next = put(writer.as_ref(), "record", b"between").await;
            etcd.ctl_ok(&["compact", &next.0.to_string()]);
        }
    }
}

/// The authority, etcd's certificate and key, a client's, and those of a client with a common name.
struct Papers {
    ca: PathBuf,
    etcd: [PathBuf; 2],
    client: [PathBuf; 2],
    named: [PathBuf; 2],
}

fn papers(dir: &Path, address: std::net::Ipv4Addr) -> Papers {
    let (ca_key, mut ca) = (rcgen::KeyPair::generate().unwrap(), rcgen::CertificateParams::default());
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let issue = |file: &str, common_name: Option<&str>| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![address.to_string()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = common_name {
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
        }
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let paths = ["crt", "key"].map(|kind| dir.join(format!("{file}.{kind}")));
        std::fs::write(&paths[0], params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        secret(&paths[1], &key.serialize_pem());
        paths
    };
    let path = dir.join("ca.crt");
    std::fs::write(&path, ca_cert.pem()).unwrap();
    // With users, and certificates asked of clients, etcd's gateway refuses a client's with a common name; its own may have one.
    Papers {
        ca: path,
        etcd: issue("etcd", Some("etcd")),
        client: issue("client", None),
        named: issue("named", Some("mainstay")),
    }
}

fn secret(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_logins_are_used_and_renewed() {
    let mut files = None;
    let mut etcd = Etcd::start_with(1, "https", |dir, addresses| {
        let papers = papers(dir, addresses[0]);
        let shown = |path: &Path| path.to_str().unwrap().to_owned();
        let options = vec![
            "--client-cert-auth".to_owned(),
            format!("--trusted-ca-file={}", shown(&papers.ca)),
            format!("--cert-file={}", shown(&papers.etcd[0])),
            format!("--key-file={}", shown(&papers.etcd[1])),
        ];
        files = Some(papers);
        options
    });
    let Papers { ca, client: [cert, key], named, .. } = files.unwrap();
    let tls = ["--cacert", ca.to_str().unwrap(), "--cert", cert.to_str().unwrap(), "--key", key.to_str().unwrap()];
    let ctl = |etcd: &Etcd, arguments: &[&str]| etcd.ctl_ok(&[&tls[..], arguments].concat());
    ctl(&etcd, &["user", "add", "root:rootpw"]);
    ctl(&etcd, &["user", "grant-role", "root", "root"]);
    ctl(&etcd, &["role", "add", "mainstay"]);
    ctl(&etcd, &["role", "grant-permission", "mainstay", "readwrite", "--prefix=true", "/mainstay/"]);
    ctl(&etcd, &["user", "add", "mainstay:s3cret"]);
    ctl(&etcd, &["user", "grant-role", "mainstay", "mainstay"]);
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    secret(&password, "s3cret\n");
    let more = format!(
        "ca_file = {ca:?}\ncert_file = {cert:?}\nkey_file = {key:?}\nuser = \"mainstay\"\npassword_file = {password:?}"
    );
    let spec = spec(&etcd.endpoints(), &more);
    let options = || options_of(&spec, dir.path(), 0, "ours");
    // The file names the user before etcd has users; from then on it logs in, and nothing is away.
    let early = door(options()).await.unwrap();
    put(early.as_ref(), "record", b"before").await;
    ctl(&etcd, &["auth", "enable"]);
    put(early.as_ref(), "record", b"after").await;
    early.stop().await;
    let named = {
        let mut spec = spec.clone();
        (spec.store.cert_file, spec.store.key_file) = (Some(named[0].clone()), Some(named[1].clone()));
        options_of(&spec, dir.path(), 1, "ours")
    };
    let why = look(&named, PATIENT).await.unwrap_err();
    assert!(mainstay_model::etcd::advice(&why).is_some_and(|advice| advice.contains("common name")), "{why}");
    secret(&password, "wrong\n");
    let why = look(&options(), PATIENT).await.unwrap_err();
    assert!(why.contains("authentication failed") && !why.contains("wrong"), "{why}");
    secret(&password, "s3cret\n");
    let store = door(options()).await.unwrap();
    put(store.as_ref(), "record", b"x").await;
    // A restart forgets every login.
    etcd.kill(0);
    etcd.launch_all();
    put(store.as_ref(), "record", b"y").await;
    let mut watch = store.watch("record");
    assert!(
        tokio::time::timeout(PATIENT, watch.wait_for(|shown| shown.as_ref().is_some_and(|shown| shown.value == b"y")))
            .await
            .is_ok()
    );
    std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let why = look(&options(), Duration::from_secs(1)).await.unwrap_err();
    assert!(why.contains("chmod 600"), "{why}");
    // Outside its prefix the user may do nothing: a refusal that is certain.
    let elsewhere = {
        let mut spec = spec.clone();
        spec.store.prefix = "/elsewhere".to_owned();
        spec
    };
    secret(&password, "s3cret\n");
    let why = look(&options_of(&elsewhere, dir.path(), 1, "ours"), PATIENT).await.unwrap_err();
    assert!(why.contains("permission denied"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_database_shows_as_an_alarm_and_loses_nothing() {
    let etcd = Etcd::start_with(1, "http", |_, _| vec!["--quota-backend-bytes=8000000".to_owned()]);
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(&etcd.endpoints(), "");
    let store = door(options_of(&spec, dir.path(), 0, "ours")).await.unwrap();
    let mut last = put(store.as_ref(), "big", &[0]).await;
    let mut refused = 0;
    for round in 0..200_u8 {
        let value = vec![round; 200_000];
        match store.compare_and_set("big", Some(last), value, Duration::from_secs(5)).await {
            CasOutcome::Done(revision) => last = revision,
            CasOutcome::Unknown | CasOutcome::Unavailable(_) => {
                refused += 1;
                if refused > 3 {
                    break;
                }
            }
            // The write that etcd complained of was made all the same.
            CasOutcome::Conflict(Some(present)) => last = present.revision,
            CasOutcome::Conflict(None) => panic!("the key is gone"),
        }
    }
    assert!(refused > 3, "it must become full");
    until("the alarm shows", || store.standing().alarms == ["NOSPACE"]).await;
    let read = store.read("big", PATIENT).await.unwrap().unwrap();
    assert!(read.revision >= last);
    assert_eq!(store.failure(), None);
}
