//! When etcd is believed no more.

use super::client::Fault;
use super::kept::{Floor, Kept, ORIGIN_KEY, Origin};
use super::wire::{Range, Txn, at, get, put, range};
use super::{EtcdOptions, Inner, locked};
use mainstay_model::NodeId;
use mainstay_model::stored_spec::RECORD_KEY;
use serde_json::json;
use tokio::time::Instant;

/// A revision that no key reaches.
const NEVER: u64 = i64::MAX as u64;

/// Why this node does not use the etcd's keys, although etcd may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// They are older than what it saw, or gone, or another cluster's: for people.
    Distrusted(String),
    /// Another node says so of what it saw. Until that node takes it back.
    Heard(NodeId, String),
    /// They are of a later incarnation of this cluster: start anew with them.
    Anew,
}

impl Refused {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Distrusted(why) => why.clone(),
            Self::Heard(node, why) => format!("{node} does not believe etcd, so this node does not either: {why}"),
            Self::Anew => "the store was made anew; this node starts anew with it".to_owned(),
        }
    }
}

/// What is wrong, with what a person does about it.
pub(crate) fn with_advice(what: &str) -> String {
    format!(
        "{what}: was etcd restored from an older copy, or emptied? Writes that were acknowledged may be missing in it. `mainstay recover --from NODE` \
         makes the cluster's part of it anew, from the node that has most"
    )
}

/// What etcd's consensus shows now.
pub(crate) struct Shown {
    /// The cluster's keys, without values.
    pub(crate) all: Range,
    /// Its origin.
    pub(crate) marked: Range,
    /// Its record.
    pub(crate) record: Range,
}

impl Inner {
    /// Does etcd show what this node has seen or heard of, or newer? If not, it was restored from an older state, and this node stops using
    /// it. `None`, too, when it does not answer.
    pub(crate) async fn confirm(&self, deadline: Instant) -> Option<Shown> {
        let before = locked(&self.kept).clone();
        let shown = match self.ask_consensus(deadline).await {
            Ok(shown) => shown?,
            Err(fault) => {
                self.silent(&fault.text());
                return None;
            }
        };
        match judge(&self.options, &before, &shown) {
            None => {
                self.answered();
                return Some(shown);
            }
            Some(Refused::Distrusted(what)) => self.distrust(&what),
            Some(Refused::Anew) => {
                tracing::warn!("the store in etcd was made anew: starting anew with it");
                self.refused.send_replace(Some(Refused::Anew));
            }
            Some(Refused::Heard(..)) => {}
        }
        None
    }

    /// A transaction that can not succeed, with a write in the branch that is never taken, goes through etcd's consensus: what it shows is no
    /// stale read. It changes nothing, so it may be asked twice.
    async fn ask_consensus(&self, deadline: Instant) -> Result<Option<Shown>, Fault> {
        let origin = self.key(ORIGIN_KEY);
        let body = json!({
            "compare": [at(&origin, NEVER)],
            "success": [put(&origin, b"")],
            "failure": [
                get(&range(&self.options.prefix, true, true)),
                get(&range(&origin, false, false)),
                get(&range(&self.key(RECORD_KEY), false, false)),
            ],
        });
        let mut ranges = self.client.read::<Txn>("/v3/kv/txn", &body, deadline).await?.ranges().into_iter();
        let mut next = || ranges.next();
        let (Some(all), Some(marked), Some(record)) = (next(), next(), next()) else { return Ok(None) };
        Ok(Some(Shown { all, marked, record }))
    }

    /// Another node has seen this state of a key: from now on etcd must show it, or newer. One history of a key leads from each of its states
    /// to every later one: two states of which neither leads to the other prove that etcd went back.
    pub(crate) fn heard_floor(&self, node: &NodeId, key: &str, theirs: &Floor) {
        let heard = locked(&self.kept).hear(key, theirs);
        if let Err(mine) = heard {
            self.distrust(&format!(
                "{node} saw {}{key} at {theirs}, and this node at {mine}: no history leads from the one to the other",
                self.options.prefix
            ));
        }
    }
}

/// Is etcd to be believed, by what its consensus shows now and what was seen before it was asked?
pub(crate) fn judge(options: &EtcdOptions, before: &Kept, shown: &Shown) -> Option<Refused> {
    let distrusted = |what: String| Some(Refused::Distrusted(what));
    let Some(pair) = shown.marked.kvs.first() else {
        return distrusted(format!("the cluster's keys under {} are gone from etcd", options.prefix));
    };
    if pair.mod_revision != before.origin_revision {
        let origin = serde_json::from_slice::<Origin>(&pair.value).unwrap_or_default();
        if origin.authority == options.authority && origin.incarnation > before.origin.incarnation {
            return Some(Refused::Anew);
        }
        return distrusted(format!("{}{ORIGIN_KEY} in etcd is not the one that this node knows", options.prefix));
    }
    for (name, floor) in &before.seen {
        let key = format!("{}{name}", options.prefix);
        let valued = shown.record.kvs.first().filter(|pair| pair.key == key.as_bytes());
        let now = valued.or_else(|| shown.all.kvs.iter().find(|pair| pair.key == key.as_bytes()));
        if !floor.may_become(now) {
            let now = now.map_or_else(Floor::default, |pair| Floor::of("", pair));
            let other =
                if floor.may_become_floor(&Floor { value: None, ..now.clone() }) { ", with another value" } else { "" };
            return distrusted(format!("{key} was seen at {floor}; etcd has it at {now}{other}"));
        }
    }
    None
}
