//! An etcd as the cluster's store: how a node begins with it, and how it notices that etcd knows less than the nodes do.

use crate::door::AskDoor;
use crate::founding::{Begin, Part, ask_around};
use crate::mind_loop::Question;
use crate::record::RECORD_KEY;
use crate::setup::AgentOptions;
use anyhow::{Context, Result, anyhow, bail};
use mainstay_model::{NodeId, Record, Term};
use mainstay_ports::peer::Peers;
use mainstay_ports::store::Store as _;
use mainstay_store::etcd::{self, EtcdOptions, EtcdStore, Found};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

const LOOK: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(500);
/// How often the log says what is waited for.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// How often terms are compared, and for how long what is wrong must be so.
const COMPARE: Duration = Duration::from_secs(1);
const LOWER_MAX: u32 = 3;

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
    let mut said: Option<(Instant, String)> = None;
    loop {
        let waits = match etcd::look(&place, LOOK).await {
            Ok(Found::Ours(origin, revision)) => return begin(place, Some((origin, revision))),
            // The first answers show what is amiss, and the API tells it.
            _ if seen => return begin(place, None),
            Ok(Found::Foreign(why)) => bail!(why),
            Ok(Found::Nothing) => found(options, &place, listed, peers).await,
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
async fn found(options: &AgentOptions, place: &EtcdOptions, listed: &[NodeId], peers: &Arc<dyn Peers>) -> String {
    match ask_around(&options.node, listed, peers, None).await {
        Begin::Found => match etcd::found(place, LOOK).await {
            Ok(()) => "the cluster's place in etcd is marked".to_owned(),
            Err(why) => format!("the cluster's place in etcd can not be marked: {why}"),
        },
        Begin::Join { .. } => format!(
            "other nodes have the cluster's keys, and etcd shows none under {}: does this node's store.endpoints name the same etcd as theirs?",
            place.prefix()
        ),
        Begin::Wait(why) => why,
    }
}

/// No node promises a term before the record in the store has it. So a record below a promise that was made before it was read comes
/// from an older state of etcd, even if this node has not seen the newer one.
pub async fn compare_terms(store: Arc<EtcdStore>, questions: mpsc::Sender<Question>) {
    let mut lower = 0;
    loop {
        sleep(COMPARE).await;
        let Some((promised, by)) = promised(&questions).await else { continue };
        let term = |record: &Record| record.term;
        let parse = |held: &mainstay_ports::store::Versioned| serde_json::from_slice::<Record>(&held.value).ok();
        let shown = store.watch(RECORD_KEY).borrow().as_ref().and_then(parse).map(|record| term(&record));
        if shown.unwrap_or_default() >= promised || store.failure().is_some() {
            lower = 0;
            continue;
        }
        let Ok(read) = store.read(RECORD_KEY, LOOK).await else { continue };
        let now = match &read {
            None => Term::default(),
            // A record of a newer version is not known to be older.
            Some(held) => parse(held).map_or(promised, |record| term(&record)),
        };
        lower = if now < promised { lower + 1 } else { 0 };
        if lower >= LOWER_MAX {
            warn!(%promised, %by, %now, "etcd's record is older than a promise");
            store.distrust(format!(
                "{by} has promised to follow no term older than {promised}, and etcd's record is of term {now}: was etcd restored from an older \
                 copy? Writes that were acknowledged may be missing in it. If a newer copy exists, restore that; else `mainstay recover --from \
                 NODE` makes the cluster's part of it anew"
            ));
        }
    }
}

/// The highest promise that this node knows, and whose it is.
async fn promised(questions: &mpsc::Sender<Question>) -> Option<(Term, String)> {
    let (question, answer) = oneshot::channel();
    questions.send(question).await.ok()?;
    let summary = timeout(LOOK, answer).await.ok()?.ok()?.summary;
    let peers =
        summary.peers.iter().filter_map(|(node, peer)| Some((peer.presence.as_ref()?.promise, node.to_string())));
    peers.chain([(summary.promise, "this node".to_owned())]).max()
}
