//! When etcd is believed no more.

use super::client::Fault;
use super::kept::{Floor, Kept, ORIGIN_KEY, Origin};
use super::wire::{Pair, Range, Txn, at, get, holds, put, range};
use super::{EtcdOptions, Inner, locked};
use mainstay_model::stored_spec::RECORD_KEY;
use mainstay_model::{NodeId, Revision};
use serde_json::{Value, json};
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
        "{what}: does this node's [store] name the right etcd (if not, mend its file first: docs/etcd.md)? Was etcd restored from an older copy, or emptied? Writes that were acknowledged may be missing in it. `mainstay recover --from NODE` \
         makes the cluster's part of it anew, from the node that has most"
    )
}

/// What etcd shows now, all of one moment.
pub(crate) struct Shown {
    /// The cluster's keys, without values.
    pub(crate) all: Range,
    /// Its origin.
    pub(crate) marked: Range,
    /// Its record.
    pub(crate) record: Range,
}

impl Shown {
    fn of(txn: Txn) -> Option<Self> {
        let mut ranges = txn.ranges().into_iter();
        Some(Self { all: ranges.next()?, marked: ranges.next()?, record: ranges.next()? })
    }

    /// A key, with its value where that was asked for.
    pub(crate) fn pair(&self, key: &str) -> Option<&Pair> {
        let valued = self.record.kvs.first().filter(|pair| pair.key == key.as_bytes());
        valued.or_else(|| self.all.kvs.iter().find(|pair| pair.key == key.as_bytes()))
    }
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
                self.note_origin(&shown);
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
            "failure": self.what_counts(),
        });
        Ok(Shown::of(self.client.read::<Txn>("/v3/kv/txn", &body, deadline).await?))
    }

    /// The same by a linearizable read, which may be stale where etcd has a fault.
    pub(crate) async fn ask(&self, deadline: Instant) -> Result<Option<Shown>, Fault> {
        let body = json!({ "success": self.what_counts() });
        Ok(Shown::of(self.client.read::<Txn>("/v3/kv/txn", &body, deadline).await?))
    }

    fn what_counts(&self) -> Value {
        json!([
            get(&range(&self.options.prefix, true, true)),
            get(&range(&self.key(ORIGIN_KEY), false, false)),
            get(&range(&self.key(RECORD_KEY), false, false)),
        ])
    }

    pub(crate) fn note_origin(&self, shown: &Shown) {
        if let Some(pair) = shown.marked.kvs.first() {
            locked(&self.kept).note_origin(pair);
        }
    }

    /// What must hold for a write. Revisions are not enough: an etcd that went back may have been brought to the same ones by others.
    pub(crate) fn compares(&self, before: &Kept, key: &str, expected: Option<Revision>) -> Vec<Value> {
        let (full, origin) = (self.key(key), self.key(ORIGIN_KEY));
        let mut all = vec![at(&origin, before.origin_revision), at(&full, expected.map_or(0, |revision| revision.0))];
        all.extend(before.origin_value.as_ref().map(|value| holds(&origin, value.as_bytes())));
        // Other keys are larger, and no term hangs on them.
        let floor =
            before.seen.get(key).filter(|floor| key == RECORD_KEY && Some(Revision(floor.revision)) == expected);
        all.extend(floor.and_then(|floor| floor.value.as_ref()).map(|value| holds(&full, value.as_bytes())));
        all
    }

    /// Another node has seen this state of a key: from now on etcd must show it, or newer. One history of a key leads from each of its states
    /// to every later one: two states of which neither leads to the other prove that etcd went back.
    pub(crate) fn heard_floor(&self, node: &NodeId, key: &str, theirs: &Floor) {
        let heard = locked(&self.kept).hear(key, theirs);
        match heard {
            Ok(true) => self.heard_more.notify_one(),
            Ok(false) => {}
            Err(mine) => self.distrust(&format!(
                "{node} saw {}{key} at {theirs}, and this node at {mine}: no history leads from the one to the other",
                self.options.prefix
            )),
        }
    }
}

/// Is etcd to be believed, by what its consensus shows now and what was seen before it was asked?
pub(crate) fn judge(options: &EtcdOptions, before: &Kept, shown: &Shown) -> Option<Refused> {
    let distrusted = |what: String| Some(Refused::Distrusted(what));
    let Some(pair) = shown.marked.kvs.first() else {
        return distrusted(format!("the cluster's keys under {} are gone from etcd", options.prefix));
    };
    if !before.is_origin(pair) {
        let origin = serde_json::from_slice::<Origin>(&pair.value).unwrap_or_default();
        if origin.authority == options.authority && origin.incarnation > before.origin.incarnation {
            return Some(Refused::Anew);
        }
        return distrusted(format!("{}{ORIGIN_KEY} in etcd is not the one that this node knows", options.prefix));
    }
    for (name, floor) in &before.seen {
        let key = format!("{}{name}", options.prefix);
        let now = shown.pair(&key);
        if !floor.may_become(now) {
            let now = now.map_or_else(Floor::default, |pair| Floor::of("", pair));
            let other =
                if floor.may_become_floor(&Floor { value: None, ..now.clone() }) { ", with another value" } else { "" };
            return distrusted(format!("{key} was seen at {floor}; etcd has it at {now}{other}"));
        }
    }
    None
}
