//! When etcd is believed no more.

use super::EtcdOptions;
use super::kept::{Kept, ORIGIN_KEY, Origin};
use super::wire::Range;
use mainstay_model::NodeId;

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

/// Is etcd to be believed, by what its consensus shows now and what this node saw before it asked?
pub(crate) fn judge(options: &EtcdOptions, before: &Kept, all: &Range, marked: &Range) -> Option<Refused> {
    let advice = "restored from an older copy, or emptied? Writes that were acknowledged may be missing in it. \
                  `mainstay recover --from NODE` makes the cluster's part of it anew, from the node that has most";
    let distrusted = |what: String| Some(Refused::Distrusted(format!("{what}: was etcd {advice}")));
    let Some(pair) = marked.kvs.first() else {
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
        let now = all.kvs.iter().find(|pair| pair.key == key.as_bytes());
        if !floor.may_become(now) {
            let now = now.map(|pair| (pair.mod_revision, pair.create_revision, pair.version)).unwrap_or_default();
            return distrusted(format!(
                "this node saw {key} at revision {}, made at {}, version {}; etcd has it at {}, made at {}, version {}",
                floor.revision, floor.created, floor.version, now.0, now.1, now.2
            ));
        }
    }
    None
}
