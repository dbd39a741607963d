//! Whom a node hears while the store is an etcd: with a real one that is away, goes back, and shows what others have raised.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "../../store/tests/common/etcd_servers.rs"]
mod etcd_servers;

use etcd_servers::Etcd;
use mainstay_agent::handlers::MindHandler;
use mainstay_decide::io::Input;
use mainstay_model::stored_spec::RECORD_KEY;
use mainstay_model::{Message, NodeId, Term};
use mainstay_ports::peer::{Caller, Handler};
use mainstay_ports::store::{CasOutcome, Store as _};
use mainstay_store::ClusterStore;
use mainstay_store::etcd::{EtcdOptions, EtcdStore, Found, found, look};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout;

const LOOK: Duration = Duration::from_secs(2);
const PATIENT: Duration = Duration::from_secs(30);
/// Longer than etcd is waited for.
const SILENCE: Duration = Duration::from_millis(1500);

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn options(etcd: &Etcd, dir: &Path, me: &str) -> EtcdOptions {
    let mut text =
        format!("[cluster]\nname = \"orders\"\n[store]\nkind = \"etcd\"\nendpoints = {:?}\n", etcd.endpoints());
    for number in 1..=3 {
        text += &format!("[[node]]\nname = \"db{number}\"\nhost = \"10.0.0.{number}\"\n");
    }
    let spec = mainstay_model::config::parse(&text, &[]).unwrap();
    EtcdOptions::of(&spec, &node(me), "ours".to_owned(), dir.join(format!("{me}.json"))).unwrap()
}

async fn store(options: EtcdOptions) -> Arc<EtcdStore> {
    let until = Instant::now() + PATIENT;
    loop {
        match look(&options, LOOK).await {
            Ok(Found::Ours(origin, revision)) => return EtcdStore::start(options, Some((origin, revision))).unwrap(),
            Ok(Found::Nothing) => drop(found(&options, LOOK).await),
            Ok(Found::Foreign(why)) | Err(why) => assert!(Instant::now() < until, "{why}"),
        }
    }
}

/// One life of an agent, as far as messages go.
struct Ear {
    handler: Arc<MindHandler>,
    heard: mpsc::Receiver<Input>,
}

impl Ear {
    fn of(store: &Arc<EtcdStore>) -> Self {
        Self::with_room(store, 64)
    }

    fn with_room(store: &Arc<EtcdStore>, room: usize) -> Self {
        let (inputs, heard) = mpsc::channel(room);
        let store = Arc::new(ClusterStore::Etcd(Arc::clone(store)));
        Self { handler: MindHandler::new(inputs, &Arc::default(), &store), heard }
    }

    async fn say(&self, from: &str, message: Message) {
        self.handler.message(&Caller::Node(node(from)), serde_json::to_vec(&message).unwrap()).await;
    }

    /// Candidates ask again, and so does this one.
    async fn hears(&mut self, from: &str, term: Term) {
        let end = Instant::now() + PATIENT;
        loop {
            assert!(Instant::now() < end, "{from} is not heard for term {term}");
            self.say(from, Message::Recruit { term }).await;
            match timeout(Duration::from_millis(200), self.heard.recv()).await {
                Ok(Some(Input::Peer(who, Message::Recruit { term: of }))) => {
                    assert_eq!((who, of), (node(from), term));
                    return;
                }
                Ok(other) => panic!("{other:?}"),
                Err(_) => {}
            }
        }
    }

    async fn hears_nothing_of(&mut self, from: &str, term: Term) {
        self.say(from, Message::Recruit { term }).await;
        assert!(timeout(SILENCE, self.heard.recv()).await.is_err(), "no promise, no answer");
    }
}

/// Writes over whatever stands there.
async fn put(store: &EtcdStore, key: &str, value: &[u8]) {
    let until = Instant::now() + PATIENT;
    loop {
        let read = store.read(key, LOOK).await;
        if let Ok(held) = read {
            let expected = held.map(|held| held.revision);
            if let CasOutcome::Done(_) = store.compare_and_set(key, expected, value.to_vec(), LOOK).await {
                return;
            }
        }
        assert!(Instant::now() < until, "{key} is not written");
    }
}

fn raised(term: u64, by: &str) -> Vec<u8> {
    format!("{{\"term\":{term},\"holder\":\"{by}\"}}").into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_is_heard_once_etcd_confirms_what_it_goes_by() {
    let (mut etcd, dir) = (Etcd::start(1), tempfile::tempdir().unwrap());
    let (mine, theirs) =
        (store(options(&etcd, dir.path(), "db1")).await, store(options(&etcd, dir.path(), "db2")).await);
    put(theirs.as_ref(), RECORD_KEY, &raised(7, "db2")).await;
    let mut ear = Ear::of(&mine);
    ear.hears_nothing_of("db2", Term(7)).await;
    // The other nodes have told what they saw.
    mine.set_compared();
    ear.hears("db2", Term(7)).await;
    ear.hears_nothing_of("db2", Term(8)).await;
    ear.hears_nothing_of("db3", Term(7)).await;
    let copy = etcd.save();
    put(theirs.as_ref(), RECORD_KEY, &raised(8, "db3")).await;
    ear.hears("db3", Term(8)).await;
    mine.stop().await;
    drop((ear, mine));
    theirs.stop().await;

    // It begins while etcd does not answer, or it is cut off from it.
    etcd.kill_all();
    let mine = EtcdStore::start(options(&etcd, dir.path(), "db1"), None).unwrap();
    mine.set_compared();
    let mut ear = Ear::of(&mine);
    ear.hears_nothing_of("db3", Term(8)).await;
    ear.say("db3", Message::Ask { term: Term(8) }).await;
    assert!(ear.heard.recv().await.is_some(), "what makes nobody promise is heard");
    etcd.launch_all();
    ear.hears("db3", Term(8)).await;

    // Etcd goes back, to where another one stands. That one goes by a record which may count fewer copies.
    etcd.kill_all();
    etcd.restore(&copy);
    ear.hears_nothing_of("db2", Term(7)).await;
    ear.hears_nothing_of("db2", Term(7)).await;
    let end = Instant::now() + PATIENT;
    while mine.evidence().is_none() {
        assert!(Instant::now() < end, "that is evidence");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_that_repeats_itself_waits_once() {
    let (etcd, dir) = (Etcd::start(1), tempfile::tempdir().unwrap());
    let mine = store(options(&etcd, dir.path(), "db1")).await;
    put(mine.as_ref(), RECORD_KEY, &raised(7, "db2")).await;
    mine.set_compared();
    let mut ear = Ear::with_room(&mine, 1);
    ear.hears("db2", Term(7)).await;
    // The loop is busy.
    tokio::time::sleep(SILENCE).await;
    while ear.heard.try_recv().is_ok() {}
    ear.say("db2", Message::Ask { term: Term(7) }).await;
    for _ in 0..4 {
        ear.say("db2", Message::Recruit { term: Term(7) }).await;
        tokio::time::sleep(SILENCE).await;
    }
    assert!(matches!(ear.heard.recv().await, Some(Input::Peer(_, Message::Ask { .. }))));
    assert!(matches!(ear.heard.recv().await, Some(Input::Peer(_, Message::Recruit { .. }))));
    assert!(timeout(SILENCE, ear.heard.recv()).await.is_err(), "four questions, one answer");
}
