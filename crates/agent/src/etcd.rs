//! An etcd as the cluster's store: how a node begins with it, and how it notices that etcd knows less than the nodes do.

use crate::door::{AskDoor, StoreReply, ask_all_stores};
use crate::founding::{Begin, Part, found_or_join};
use crate::generations::Generations;
use crate::mind_loop::{self, Question};
use crate::record::RECORD_KEY;
use crate::setup::{AgentOptions, entropy};
use anyhow::{Context, Result, anyhow, bail};
use mainstay_decide::summary::Summary;
use mainstay_model::spec::Spec;
use mainstay_model::{NodeId, Record, Term};
use mainstay_ports::peer::Peers;
use mainstay_ports::store::{Store as _, StoreError, Versioned};
use mainstay_store::etcd::{self, EtcdOptions, EtcdStore, Found};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

const LOOK: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(500);
/// How often the log says what is waited for.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// How often the nodes are asked, and how often in a row a promise must be above the record.
const COMPARE: Duration = Duration::from_secs(1);
const LOWER_MAX: u32 = 3;
/// The same after a start, until all have told, or those that do not answer were given this much.
const COMPARE_FIRST: Duration = Duration::from_millis(100);
const COMPARED_WITHIN: Duration = Duration::from_secs(2);
/// A node that answers, and has not read yet what it saw, is given longer: it is there, and will tell.
const BEGUN_WITHIN: Duration = Duration::from_secs(30);

/// Which store it is stands in each node's own file: whoever has lost the store must find it without asking it. But no node may begin with
/// another kind than the cluster has.
///
/// # Errors
/// When this one would.
pub(crate) fn same_store(file: &Spec, kept: &Spec) -> Result<()> {
    let (in_file, in_use) = (file.store.kind, kept.store.kind);
    anyhow::ensure!(
        in_file == in_use,
        "this node's file says store.kind = \"{in_file}\", and the cluster's store is of the kind \"{in_use}\": a cluster keeps its store; put the \
         file right and start the agent again"
    );
    Ok(())
}

/// Starts on the cluster's keys; founds them if more than half of the nodes are there and none has ever seen any.
///
/// # Errors
/// When a file can not be read, or the place in etcd is another cluster's.
pub async fn start(
    options: &AgentOptions,
    listed: &[NodeId],
    ask: &AskDoor,
    peers: &Arc<dyn Peers>,
) -> Result<Arc<EtcdStore>> {
    let ca = options.layout.ca_cert();
    let authority = std::fs::read_to_string(&ca).with_context(|| format!("read {}", ca.display()))?;
    let authority = mainstay_net::pki::fingerprint(&authority)?;
    let place = EtcdOptions::of(&options.spec, &options.node, authority, options.layout.etcd());
    let place = place.map_err(|why| anyhow!(why))?;
    let seen = etcd::has_seen(&place).map_err(|why| anyhow!(why))?;
    if !seen {
        ask.say(Part::Empty);
    }
    let mark = format!("{:016x}", entropy()?);
    let mut said: Option<(Instant, String)> = None;
    loop {
        let waits = match etcd::look(&place, LOOK).await {
            Ok(Found::Ours(origin, revision)) => return begin(place, Some((origin, revision))),
            // The first answers show what is amiss, and the API tells it.
            _ if seen => return begin(place, None),
            Ok(Found::Foreign(why)) => bail!(why),
            Ok(Found::Nothing) => found((options, &place), &mark, listed, ask, peers).await,
            Err(why) => format!("etcd does not answer: {why}"),
        };
        if said.as_ref().is_none_or(|(at, text)| *text != waits || at.elapsed() >= SAY_EVERY) {
            info!("{waits}");
            said = Some((Instant::now(), waits));
        }
        sleep(PAUSE).await;
    }
}

fn begin(place: EtcdOptions, now: Option<(etcd::Origin, mainstay_model::Revision)>) -> Result<Arc<EtcdStore>> {
    info!(prefix = place.prefix(), found = now.is_some(), "the cluster's store is an etcd");
    EtcdStore::start(place, now).map_err(|why| anyhow!(why))
}

/// Nothing stands in etcd. What is waited for next.
async fn found(
    (options, place): (&AgentOptions, &EtcdOptions),
    mark: &str,
    listed: &[NodeId],
    ask: &AskDoor,
    peers: &Arc<dyn Peers>,
) -> String {
    let marked = async {
        let marks = etcd::marks(place, LOOK).await?;
        if marks.get(options.node.as_str()).is_some_and(|there| there == mark) {
            return Ok(marks);
        }
        etcd::leave_mark(place, &options.node, mark, LOOK).await?;
        ask.say_mark(mark);
        etcd::marks(place, LOOK).await
    };
    let marks = match marked.await {
        Ok(marks) => marks,
        Err(why) => return format!("etcd does not take this node's mark: {why}"),
    };
    let mut answers = ask_all_stores(&options.node, listed, peers).await;
    let elsewhere = leave_out_elsewhere(&mut answers, &marks);
    match found_or_join(&options.node, listed, &answers, None) {
        Begin::Found => match etcd::found(place, LOOK).await {
            Ok(()) => "the cluster's place in etcd is marked".to_owned(),
            Err(why) => format!("the cluster's place in etcd can not be marked: {why}"),
        },
        Begin::Join { .. } => format!(
            "other nodes have the cluster's keys, and etcd shows none under {}: does this node's store.endpoints name the same etcd as theirs?",
            place.prefix()
        ),
        Begin::Wait(_) if !elsewhere.is_empty() => format!(
            "what {} wrote in etcd does not stand in the etcd that this node asks: do the files of all nodes name the same one (store.endpoints, \
             store.prefix)?",
            elsewhere.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
        ),
        Begin::Wait(why) => why,
    }
}

/// Only nodes whose mark stands in this node's etcd found with it; those that have written theirs elsewhere are named.
fn leave_out_elsewhere(answers: &mut BTreeMap<NodeId, StoreReply>, marks: &BTreeMap<String, String>) -> Vec<NodeId> {
    let is_here =
        |node: &NodeId, reply: &StoreReply| reply.mark.is_some() && marks.get(node.as_str()) == reply.mark.as_ref();
    let marked = answers.iter().filter(|(node, reply)| reply.mark.is_some() && !is_here(node, reply));
    let elsewhere = marked.map(|(node, _)| node.clone()).collect();
    answers.retain(|node, reply| reply.part == Part::Member || is_here(node, reply));
    elsewhere
}

/// The number of the store that this wish makes: the same each time it is asked for, so that asking again after a lost answer finds what is
/// done; and another one for another node or term. (FNV-1a.)
pub(crate) fn group_of(from: &NodeId, term: Term) -> u64 {
    let bytes = from.as_str().bytes().chain(term.0.to_be_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)).max(1)
}

/// Holds what etcd shows against what the nodes know: the evidence that they have, what they have seen of the record, and their promises.
pub async fn hold_against_the_nodes(
    me: NodeId,
    store: Arc<EtcdStore>,
    peers: Arc<dyn Peers>,
    questions: mpsc::Sender<Question>,
    generations: Arc<Generations>,
) {
    let (mut asked_first, mut lower) = (AskedFirst::now(), 0);
    loop {
        // At first quickly: this node does not stand before.
        sleep(if store.is_compared() { COMPARE } else { COMPARE_FIRST }).await;
        let Some(summary) = summary(&questions).await else { continue };
        let listed = generations.now();
        let nodes = listed.spec.nodes.iter().map(|node| &node.name).chain(summary.peers.keys());
        let mut silent: BTreeSet<NodeId> = nodes.filter(|node| **node != me).cloned().collect();
        let asked: Vec<NodeId> = silent.iter().cloned().collect();
        for (node, reply) in ask_all_stores(&me, &asked, &peers).await {
            asked_first.answered(&node, reply.part);
            if tells(reply.part) {
                silent.remove(&node);
            }
            let Some(heard) = heard(&reply, store.group()) else { continue };
            // A node that has evidence is believed: whoever trusts would go on by a record that is older than what that one has seen.
            store.heard_of(&node, heard);
            // One that has none may be cut off from etcd.
            if let Some(floor) = &reply.record_floor {
                store.hold_against(&node, RECORD_KEY, floor);
            }
        }
        if silent.is_empty() || asked_first.is_enough() {
            store.set_compared();
        }
        match below_a_promise(&store, &summary).await {
            Ok(None) => lower = 0,
            Ok(Some(what)) => {
                lower += 1;
                warn!(%what, "etcd's record is older than a promise");
                if lower >= LOWER_MAX {
                    store.distrust(&what);
                }
            }
            // Etcd's silence says nothing.
            Err(_) => {}
        }
    }
}

/// Whom a start still waits for: those that are off do not hold it up for ever.
struct AskedFirst {
    begun: Instant,
    /// They answer, and do not tell yet: when they last did.
    beginning: BTreeMap<NodeId, Instant>,
}

impl AskedFirst {
    fn now() -> Self {
        Self { begun: Instant::now(), beginning: BTreeMap::new() }
    }

    fn answered(&mut self, node: &NodeId, part: Part) {
        match tells(part) {
            true => self.beginning.remove(node),
            false => self.beginning.insert(node.clone(), Instant::now()),
        };
    }

    /// One question that was lost does not make a node that begins one that is off.
    fn is_enough(&self) -> bool {
        let begins = self.beginning.values().any(|at| at.elapsed() < COMPARED_WITHIN);
        self.begun.elapsed() >= if begins { BEGUN_WITHIN } else { COMPARED_WITHIN }
    }
}

/// A node that begins tells what it has seen only once it has read that.
fn tells(part: Part) -> bool {
    matches!(part, Part::Member | Part::Founding | Part::Empty)
}

/// No node promises a term before the record in the store has it. So a record below a promise that was made before it was read comes
/// from an older state of etcd, even if this node has not seen the newer one.
async fn below_a_promise(store: &EtcdStore, summary: &Summary) -> Result<Option<String>, StoreError> {
    let parse = |held: &Versioned| serde_json::from_slice::<Record>(&held.value).ok().map(|record| record.term);
    let Some((promised, by)) = promised(summary) else { return Ok(None) };
    let shown = store.watch(RECORD_KEY).borrow().as_ref().and_then(parse);
    if shown.unwrap_or_default() >= promised || store.failure().is_some() {
        return Ok(None);
    }
    let now = match &store.read(RECORD_KEY, LOOK).await? {
        None => Term::default(),
        // A record of a newer version is not known to be older.
        Some(held) => parse(held).unwrap_or(promised),
    };
    let what =
        || format!("{by} has promised to follow no term older than {promised}, and etcd's record is of term {now}");
    Ok((now < promised).then(what))
}

/// What another node says against etcd, `Some(None)`: nothing. `None`: it does not speak of this store, or does not know it yet.
fn heard(reply: &StoreReply, group: u64) -> Option<Option<String>> {
    let speaks = reply.part == Part::Member && reply.standing.group == group;
    speaks.then(|| reply.distrusts.clone())
}

async fn summary(questions: &mpsc::Sender<Question>) -> Option<Summary> {
    Some(mind_loop::ask(questions, LOOK).await?.summary)
}

/// The highest promise that this node knows, and whose it is.
fn promised(summary: &Summary) -> Option<(Term, String)> {
    let peers =
        summary.peers.iter().filter_map(|(node, peer)| Some((peer.presence.as_ref()?.promise, node.to_string())));
    peers.chain([(summary.promise, "this node".to_owned())]).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_ports::peer::{Channel, LinkChange, PeerError};

    fn reply(part: Part, mark: Option<&str>) -> StoreReply {
        StoreReply { part, mark: mark.map(ToOwned::to_owned), ..StoreReply::default() }
    }

    #[test]
    fn nodes_that_write_in_another_etcd_found_nothing_together() {
        let name = |text: &str| NodeId::new(text).unwrap();
        let mut answers = BTreeMap::from([
            (name("here"), reply(Part::Empty, Some("1"))),
            (name("elsewhere"), reply(Part::Empty, Some("2"))),
            (name("old"), reply(Part::Empty, Some("3"))),
            (name("silent"), reply(Part::Empty, None)),
            (name("member"), reply(Part::Member, None)),
        ]);
        let marks =
            [("here", "1"), ("old", "0"), ("silent", "4")].map(|(node, mark)| (node.to_owned(), mark.to_owned()));
        let left = leave_out_elsewhere(&mut answers, &marks.into());
        assert_eq!(left, [name("elsewhere"), name("old")]);
        assert_eq!(answers.into_keys().collect::<Vec<_>>(), [name("here"), name("member")]);
    }

    /// Other agents, by what they answer.
    struct Others(BTreeMap<NodeId, StoreReply>);

    #[async_trait::async_trait]
    impl Peers for Others {
        fn send(&self, _to: &NodeId, _channel: Channel, _body: Vec<u8>) {}
        async fn request(
            &self,
            to: &NodeId,
            _channel: Channel,
            _body: Vec<u8>,
            _timeout: Duration,
        ) -> Result<Vec<u8>, PeerError> {
            let reply = self.0.get(to).ok_or_else(|| PeerError::NotConnected(to.to_string()))?;
            Ok(serde_json::to_vec(reply).unwrap())
        }
        fn links(&self) -> tokio::sync::broadcast::Receiver<LinkChange> {
            tokio::sync::broadcast::channel(1).1
        }
        fn connected(&self, node: &NodeId) -> bool {
            self.0.contains_key(node)
        }
    }

    /// An agent's part in it, with an etcd that nobody runs; it ends with the second one.
    fn begun(dir: &std::path::Path, others: &[(&str, StoreReply)]) -> (Arc<EtcdStore>, tokio::task::JoinSet<()>) {
        let mut text =
            "[cluster]\nname = \"c\"\n[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:9\"]\n".to_owned();
        for number in 1..=3 {
            text += &format!("[[node]]\nname = \"db{number}\"\nhost = \"10.0.0.{number}\"\n");
        }
        let (spec, me) = (mainstay_model::config::parse(&text, &[]).unwrap(), NodeId::new("db1").unwrap());
        let options = EtcdOptions::of(&spec, &me, "ours".to_owned(), dir.join("etcd.json")).unwrap();
        let origin = etcd::Origin { authority: "ours".to_owned(), ..etcd::Origin::default() };
        let store = EtcdStore::start(options, Some((origin, mainstay_model::Revision(4)))).unwrap();
        let others = others.iter().map(|(node, reply)| (NodeId::new(*node).unwrap(), reply.clone())).collect();
        let generations = Arc::new(Generations::load(dir.join("spec.json"), spec).unwrap());
        let (questions, mut queue) = mpsc::channel::<Question>(4);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(hold_against_the_nodes(me, Arc::clone(&store), Arc::new(Others(others)), questions, generations));
        tasks.spawn(async move {
            while let Some(question) = queue.recv().await {
                let (summary, reasons) = (Summary::default(), Vec::new());
                let _ = question.send(crate::mind_loop::Snapshot { summary, reasons, since_ms: 0 });
            }
        });
        (store, tasks)
    }

    fn member(record_floor: Option<&str>) -> StoreReply {
        let record_floor = record_floor.map(|text| serde_json::from_str(text).unwrap());
        StoreReply { record_floor, ..reply(Part::Member, None) }
    }

    async fn until(what: &str, so: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !so() {
            assert!(Instant::now() < end, "not in time: {what}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn a_start_hears_what_others_have_seen_before_it_stands() {
        let seen = r#"{"revision":10,"created":5,"version":4,"value":"{}"}"#;
        let (dir, floor) = (tempfile::tempdir().unwrap(), serde_json::from_str(seen).ok());
        let (store, _tasks) = begun(dir.path(), &[("db2", member(Some(seen))), ("db3", member(None))]);
        assert!(!store.is_compared());
        until("both have told", || store.is_compared()).await;
        assert_eq!(store.floor(RECORD_KEY), floor, "heard before, although etcd is silent");
        assert!(store.is_believed());
        // A state that no history joins with it: one of them comes from another past.
        let other = r#"{"revision":12,"created":7,"version":5}"#;
        let apart = [("db2", member(Some(seen))), ("db3", member(Some(other)))];
        let dir = tempfile::tempdir().unwrap();
        let (store, _tasks) = begun(dir.path(), &apart);
        until("that is evidence", || store.evidence().is_some()).await;
    }

    #[tokio::test]
    async fn who_is_off_holds_nobody_up_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _tasks) = begun(dir.path(), &[("db2", member(None))]);
        let begun = Instant::now();
        until("it goes on without them", || store.is_compared()).await;
        assert!(begun.elapsed() >= COMPARED_WITHIN / 2, "they were given time");
    }

    #[tokio::test(start_paused = true)]
    async fn who_begins_is_given_longer_than_who_is_off() {
        let (one, other) = (NodeId::new("db2").unwrap(), NodeId::new("db3").unwrap());
        let mut first = AskedFirst::now();
        first.answered(&one, Part::Unknown);
        first.answered(&other, Part::Unknown);
        sleep(COMPARED_WITHIN - PAUSE).await;
        first.answered(&one, Part::Unknown);
        sleep(PAUSE).await;
        assert!(!first.is_enough(), "one of them is there and will tell");
        first.answered(&one, Part::Member);
        assert!(first.is_enough());
        first.answered(&one, Part::Unknown);
        assert!(!first.is_enough());
        sleep(COMPARED_WITHIN).await;
        assert!(first.is_enough(), "it went off meanwhile");
        sleep(BEGUN_WITHIN).await;
        first.answered(&one, Part::Unknown);
        assert!(first.is_enough(), "nor that for ever");
    }

    #[test]
    fn only_who_has_this_store_speaks_against_etcd() {
        let mut said = reply(Part::Member, None);
        said.distrusts = Some("seen less".to_owned());
        assert_eq!(heard(&said, 0), Some(Some("seen less".to_owned())));
        assert_eq!(heard(&said, 7), None, "of the store before it was made anew");
        assert_eq!(heard(&reply(Part::Member, None), 0), Some(None));
        assert_eq!(heard(&reply(Part::Unknown, None), 0), None, "an agent that starts takes nothing back");
    }

    #[test]
    fn the_same_wish_makes_the_same_store() {
        let (one, other) = (NodeId::new("db1").unwrap(), NodeId::new("db2").unwrap());
        assert_eq!(group_of(&one, Term(1_000_000)), group_of(&one, Term(1_000_000)));
        assert_ne!(group_of(&one, Term(1_000_000)), group_of(&other, Term(1_000_000)));
        assert_ne!(group_of(&one, Term(1_000_000)), group_of(&one, Term(2_000_000)));
    }
}
