//! When etcd is believed no more.

use super::client::Fault;
use super::kept::{Floor, Kept, ORIGIN_KEY, Origin};
use super::wire::{Pair, Range, Txn, at, get, holds, put, range};
use super::{EtcdOptions, EtcdStore, Inner, locked};
use mainstay_model::stored_spec::RECORD_KEY;
use mainstay_model::{NodeId, Revision};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// A revision that no key reaches.
const NEVER: u64 = i64::MAX as u64;

/// Why this node does not use the etcd's keys, although etcd may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// They are older than what it saw, or gone, or another cluster's: for people.
    Distrusted(String),
    /// The same, found before this node went by what its endpoints show, in this life: it may be its own file that leads elsewhere. The others are
    /// asked what they see now; until then it uses nothing, helps nobody, and has told nobody.
    Unsure(String),
    /// The others see all that this node has seen, in another etcd: its own file is wrong.
    Elsewhere(String),
    /// Another node says so of what it saw. Until that node takes it back.
    Heard(NodeId, String),
    /// They are of a later incarnation of this cluster: start anew with them.
    Anew,
}

impl Refused {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Distrusted(why) | Self::Unsure(why) | Self::Elsewhere(why) => why.clone(),
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

/// What is wrong where only this node's file is, and what a person does about it.
fn leads_elsewhere(why: &str) -> String {
    let what = why.split(": does this node's").next().unwrap_or(why);
    format!(
        "this node's [store] leads to another etcd than that of the other nodes, or to a copy of it: {what}; the others see there what this node has seen, and \
         newer. Mend store.endpoints and store.prefix in this node's file, and start its agent again"
    )
}

/// What etcd shows now, all of one moment.
pub(crate) struct Shown {
    /// The revision of that moment.
    pub(crate) revision: u64,
    /// The cluster's keys, without values.
    pub(crate) all: Range,
    /// Its origin.
    pub(crate) marked: Range,
    /// Its record.
    pub(crate) record: Range,
}

impl Shown {
    fn of(txn: Txn) -> Option<Self> {
        let revision = txn.header.revision;
        let mut ranges = txn.ranges().into_iter();
        Some(Self { revision, all: ranges.next()?, marked: ranges.next()?, record: ranges.next()? })
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
        // What others have seen is among what is compared, if they were asked before.
        let compared = self.compared.load(Ordering::Relaxed);
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
                self.went_by(compared);
                return Some(shown);
            }
            Some(Refused::Distrusted(what)) => self.found_evidence(&what),
            Some(Refused::Anew) => {
                tracing::warn!("the store in etcd was made anew: starting anew with it");
                self.refused.send_replace(Some(Refused::Anew));
            }
            Some(Refused::Heard(..) | Refused::Unsure(_) | Refused::Elsewhere(_)) => {}
        }
        None
    }

    /// This node goes by what its endpoints show, from now on in this life, if the others had been asked what they have seen.
    pub(crate) fn went_by(&self, compared: bool) {
        if compared && self.refused.borrow().is_none() {
            self.settled.store(true, Ordering::Relaxed);
        }
    }

    /// Noted on disk at once: a start must not forget it.
    pub(crate) fn distrust(&self, what: &str) {
        self.distrust_because(with_advice(what));
    }

    fn distrust_because(&self, why: String) {
        let first = self.refused.send_if_modified(|refused| {
            let first = !matches!(refused, Some(Refused::Distrusted(_) | Refused::Anew));
            if first {
                *refused = Some(Refused::Distrusted(why.clone()));
            }
            first
        });
        if first {
            tracing::error!(%why, "etcd is not believed any more; this node serves no writes until a person has acted");
            locked(&self.kept).refused = Some(why);
            self.to_save.notify_one();
        }
    }

    pub(crate) fn heard_of(&self, node: &NodeId, evidence: Option<String>) {
        let mut changed = None;
        self.refused.send_if_modified(|refused| {
            let next = match (&*refused, &evidence) {
                (None, Some(why)) => Some(Refused::Heard(node.clone(), why.clone())),
                (Some(Refused::Heard(from, _)), None) if from == node => None,
                _ => return false,
            };
            changed = Some(next.is_some());
            *refused = next;
            true
        });
        match changed {
            Some(true) => {
                tracing::error!(%node, ?evidence, "another node does not believe etcd: this node does not either")
            }
            Some(false) => tracing::warn!(%node, "that node believes etcd again: so does this one"),
            None => {}
        }
    }

    /// Noted on disk at once, as all evidence. Only before this node has gone by what its endpoints show, the others are asked first whether it is
    /// its own file that leads elsewhere: then nobody was helped, or misled, by what it saw there.
    pub(crate) fn found_evidence(&self, what: &str) {
        if self.settled.load(Ordering::Relaxed) {
            return self.distrust(what);
        }
        let why = with_advice(what);
        let first = self.refused.send_if_modified(|refused| {
            let first = refused.is_none();
            if first {
                *refused = Some(Refused::Unsure(why.clone()));
            }
            first
        });
        if first {
            tracing::error!(%why, "etcd is not believed; the other nodes are asked whether theirs is another one");
            locked(&self.kept).refused = Some(why);
            self.to_save.notify_one();
        } else if matches!(*self.refused.borrow(), Some(Refused::Heard(..))) {
            // Another node has found the same: it is not this one's file alone.
            self.distrust(what);
        }
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

/// What another node's etcd shows of what this node has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShownThere {
    /// All of it, or newer; and the revision of the whole etcd at that moment.
    All(u64),
    /// Less.
    Less,
    /// It can not be said: that etcd does not answer, or that node does not believe it itself.
    Unknown,
}

impl EtcdStore {
    /// Why this node does not use it any more, if so. A person must act.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        match &*self.inner.refused.borrow() {
            Some(refused @ (Refused::Distrusted(_) | Refused::Heard(..))) => Some(refused.text()),
            _ => None,
        }
    }

    /// The same, but only what this node has seen by itself.
    #[must_use]
    pub fn evidence(&self) -> Option<String> {
        match &*self.inner.refused.borrow() {
            Some(Refused::Distrusted(why)) => Some(why.clone()),
            _ => None,
        }
    }

    /// This node goes by what etcd shows.
    #[must_use]
    pub fn is_believed(&self) -> bool {
        self.inner.refused.borrow().is_none()
    }

    /// What speaks against what the endpoints show, while the other nodes are asked whether theirs are others.
    #[must_use]
    pub fn unsure(&self) -> Option<String> {
        match &*self.inner.refused.borrow() {
            Some(Refused::Unsure(why)) => Some(why.clone()),
            _ => None,
        }
    }

    /// This node's file leads elsewhere, or may: why, for people.
    pub(crate) fn elsewhere(&self) -> Option<String> {
        match &*self.inner.refused.borrow() {
            Some(Refused::Unsure(why) | Refused::Elsewhere(why)) => Some(why.clone()),
            _ => None,
        }
    }

    /// The other nodes were asked. `elsewhere`: their etcd is another one, and shows all that this node has seen. Else the evidence stands,
    /// and is told.
    pub fn settle(&self, elsewhere: bool) {
        let Some(why) = self.unsure() else { return };
        if !elsewhere {
            return self.inner.distrust_because(why);
        }
        let why = leads_elsewhere(&why);
        tracing::error!(%why, "this node refuses its endpoints; the others go on");
        self.inner.refused.send_replace(Some(Refused::Elsewhere(why)));
        // What it has seen stays, and must be there when its file is right.
        locked(&self.inner.kept).refused = None;
        self.inner.to_save.notify_one();
    }

    /// The revision of the whole etcd now, by its consensus.
    pub async fn revision_now(&self, timeout: Duration) -> Option<u64> {
        let shown = self.inner.ask_consensus(Instant::now() + timeout).await.ok()??;
        Some(shown.revision)
    }

    /// What this node has seen of each key. Values are left out but that of the record: the others are large, and no term hangs on them.
    #[must_use]
    pub fn floors(&self) -> BTreeMap<String, Floor> {
        let seen = locked(&self.inner.kept).seen.clone();
        let brief = |(name, floor): (String, Floor)| {
            let value = floor.value.filter(|_| name == RECORD_KEY);
            (name, Floor { value, ..floor })
        };
        seen.into_iter().map(brief).collect()
    }

    /// Does this node's etcd show, now and by its consensus, all that another node has seen of the store of this number?
    pub async fn shows(&self, group: u64, floors: &BTreeMap<String, Floor>, timeout: Duration) -> ShownThere {
        if self.group() != group || !self.is_believed() {
            return ShownThere::Unknown;
        }
        let Some(shown) = self.inner.confirm(Instant::now() + timeout).await else { return ShownThere::Unknown };
        let prefix = &self.inner.options.prefix;
        let held = |(name, floor): (&String, &Floor)| floor.may_become(shown.pair(&format!("{prefix}{name}")));
        match floors.iter().all(held) {
            true => ShownThere::All(shown.revision),
            false => ShownThere::Less,
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
