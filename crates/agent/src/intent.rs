//! What is to be done to this node's part of the store at the next start, written down before the agent replaces itself, so that an
//! interruption anywhere is gone on with; and the note that the node was removed.

use crate::durable::write_atomically;
use crate::history::HISTORY_KEY;
use crate::record::RECORD_KEY;
use anyhow::{Context, Result, bail};
use mainstay_model::layout::NodeLayout;
use mainstay_model::record::Durable;
use mainstay_model::stored_spec::{SPEC_KEY, StoredSpec};
use mainstay_model::{CopyId, Event, NodeId, Record, Term};
use mainstay_ports::clock::wall_now_ms;
use mainstay_ports::store::Versioned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use tracing::{error, info, warn};

/// A rebuilt store's specification gets a number above every one that another node may have kept.
const GENERATION_STEP: u64 = 1000;

/// The next primary's timeline is this far above the last one that this node knows of: members of the old store may have used the
/// numbers between, or use them yet, and two logs under one number could not be told apart. Each number that is left out costs a small
/// file at the promotion.
const TIMELINE_STEP: u32 = 100;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Intent {
    /// Make a new store of what this node knows.
    Rebuild {
        /// The new store's number.
        group: u64,
        /// The first term of the new incarnation.
        term: Term,
        /// Who asked for it.
        by: String,
        /// Something acknowledged may be missing in this node's copy, and the operator accepted that.
        #[serde(default)]
        lossy: bool,
    },
    /// Move this node's part of the store with this number aside and join the one of this incarnation.
    Join {
        /// The store that is left.
        left: u64,
        /// The first term of the incarnation that is joined.
        term: Term,
        /// Give the copy up, too.
        reinit: bool,
        /// Who asked for it.
        by: String,
    },
}

/// The node was removed from the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// By which generation of the specification.
    pub generation: u64,
    /// Who removed it.
    pub by: String,
    /// When its agent ended, milliseconds since 1970.
    pub wall_ms: u64,
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).with_context(|| format!("read {}", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write_atomically(path, &serde_json::to_vec_pretty(value)?).with_context(|| format!("write {}", path.display()))
}

impl Intent {
    /// What is written down, if anything.
    ///
    /// # Errors
    /// When the file can not be read.
    pub fn load(layout: &NodeLayout) -> Result<Option<Self>> {
        read(&layout.intent())
    }

    /// Writes it down durably.
    ///
    /// # Errors
    /// When it can not be written.
    pub fn save(&self, layout: &NodeLayout) -> Result<()> {
        write(&layout.intent(), self)
    }

    /// It is done.
    pub fn clear(layout: &NodeLayout) {
        if let Err(problem) = std::fs::remove_file(layout.intent())
            && problem.kind() != ErrorKind::NotFound
        {
            warn!(%problem, path = %layout.intent().display(), "can not be removed");
        }
    }
}

impl Removed {
    /// The note, if there is one.
    ///
    /// # Errors
    /// When the file can not be read.
    pub fn load(layout: &NodeLayout) -> Result<Option<Self>> {
        read(&layout.removed())
    }

    /// Leaves the note, and moves the node's part of the store aside: if it is ever added again, it joins.
    ///
    /// # Errors
    /// When it can not be written.
    pub fn save(&self, layout: &NodeLayout) -> Result<()> {
        write(&layout.removed(), self)?;
        mainstay_store::set_aside(&layout.raft())?;
        Ok(())
    }
}

/// Carries out what is written down, before the store starts. Returns the incarnation below which no store may be joined, if the node
/// waits to be taken in.
///
/// # Errors
/// When a file can not be read or written: the next start goes on.
pub fn carry_out(
    layout: &NodeLayout,
    me: &NodeId,
    kept: &StoredSpec,
    durable: &mut Option<Durable>,
) -> Result<Option<u64>> {
    match Intent::load(layout)? {
        None => Ok(None),
        Some(Intent::Rebuild { group, term, by, lossy }) => {
            let copy = durable.as_ref().and_then(|durable| durable.copy);
            let change = |values: &BTreeMap<String, Versioned>| {
                rebuilt_values(values, &Rebuilding { me, copy, term, by: &by, lossy, group, kept })
                    .map_err(|error| format!("{error:#}"))
            };
            match mainstay_store::rebuild(&layout.raft(), me, group, change) {
                Ok(rebuilt) => info!(?rebuilt, term = term.0, "the store is rebuilt from this node"),
                Err(refused @ mainstay_store::RebuildError::Refused(_)) => {
                    error!(%refused, "the store was not rebuilt; nothing was changed");
                }
                Err(problem) => return Err(problem).context("rebuild the store; start the agent again to go on"),
            }
            Intent::clear(layout);
            Ok(None)
        }
        Some(Intent::Join { left, term, reinit, by }) => {
            if mainstay_store::look(&layout.raft())? == (mainstay_store::Look::Member { group: left }) {
                let old = mainstay_store::set_aside(&layout.raft())?;
                info!(?old, %by, "this node leaves its old store");
                if reinit && let Some(held) = durable.as_mut() {
                    held.copy = None;
                    held.upstream = None;
                    let text = serde_json::to_vec_pretty(held)?;
                    write_atomically(&layout.durable(), &text).context("write the promise")?;
                }
            }
            Ok(Some(term.incarnation()))
        }
    }
}

/// What a rebuilt store begins with.
pub(crate) struct Rebuilding<'a> {
    pub(crate) me: &'a NodeId,
    pub(crate) copy: Option<CopyId>,
    pub(crate) term: Term,
    pub(crate) by: &'a str,
    /// Something acknowledged may be missing in its copy.
    pub(crate) lossy: bool,
    /// The new store's number.
    pub(crate) group: u64,
    pub(crate) kept: &'a StoredSpec,
}

/// The values that a rebuilt store begins with, besides those that stay.
pub(crate) fn rebuilt_values(
    values: &BTreeMap<String, Versioned>,
    new: &Rebuilding<'_>,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let Some(held) = values.get(RECORD_KEY) else { bail!("this node knows no record of the cluster") };
    let record: Record = serde_json::from_slice(&held.value).context("the record can not be read")?;
    let Some(copy) = new.copy else { bail!("this node has no whole copy of the data") };
    if new.term.incarnation() <= record.term.incarnation() {
        bail!("term {} is not of a later incarnation than the record's {}", new.term, record.term);
    }
    // Differs, as a rule, between two stores that are rebuilt from one old store without knowing of each other.
    let scatter = u32::try_from(new.group % u64::from(TIMELINE_STEP)).unwrap_or(0);
    let mut next = record.recovered(new.me, copy, new.term, TIMELINE_STEP + scatter);
    next.reason = format!("{}, by {}", next.reason, new.by);
    let stored = values.get(SPEC_KEY).and_then(|held| serde_json::from_slice::<StoredSpec>(&held.value).ok());
    let newest = stored.filter(|stored| stored.generation > new.kept.generation).unwrap_or_else(|| new.kept.clone());
    let mut spec =
        newest.next(newest.spec.clone(), new.by, format!("the store was rebuilt from {}", new.me), wall_now_ms());
    spec.generation += GENERATION_STEP;
    let mut history: Vec<Event> =
        values.get(HISTORY_KEY).and_then(|held| serde_json::from_slice(&held.value).ok()).unwrap_or_default();
    history.push(Event {
        node: new.me.clone(),
        wall_ms: wall_now_ms(),
        term: new.term,
        kind: "store-rebuilt".to_owned(),
        text: format!(
            "{} had the store rebuilt from {} after the store was lost; the last known term was {}, held by {}, members {}{}",
            new.by,
            new.me,
            record.term,
            record.holder.as_ref().map_or("nobody", NodeId::as_str),
            record.members.keys().map(NodeId::as_str).collect::<Vec<_>>().join(", "),
            if new.lossy { "; what this copy lacks of acknowledged writes was accepted as lost" } else { "" },
        ),
        change: None,
        lost: None,
    });
    Ok(BTreeMap::from([
        (RECORD_KEY.to_owned(), serde_json::to_vec(&next)?),
        (SPEC_KEY.to_owned(), serde_json::to_vec(&spec)?),
        (HISTORY_KEY.to_owned(), serde_json::to_vec(&history)?),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::{ClaimState, Lineage, Revision, Timeline};

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn copy(number: u64) -> CopyId {
        CopyId::new(number).unwrap()
    }

    fn kept() -> StoredSpec {
        let text = "[cluster]\nname = \"c\"\n[[node]]\nname = \"db1\"\nhost = \"10.0.0.1\"\n";
        let spec = mainstay_model::config::parse(text, &[]).unwrap();
        StoredSpec { generation: 7, ..StoredSpec::of_file(spec) }
    }

    fn values() -> BTreeMap<String, Versioned> {
        let record = Record {
            term: Term(12),
            holder: Some(node("db2")),
            state: ClaimState::Held,
            grant: 4,
            leader: Some(node("db2")),
            members: BTreeMap::from([(node("db1"), copy(1)), (node("db2"), copy(2)), (node("db3"), copy(3))]),
            quorum: 1,
            timeline: Timeline(5),
            lineage: Lineage::default(),
            wanted: None,
            asynchronous: false,
            system: None,
            lease: None,
            reason: String::new(),
            lossy: None,
            restored: None,
            held: None,
        };
        let value = serde_json::to_vec(&record).unwrap();
        BTreeMap::from([(RECORD_KEY.to_owned(), Versioned { revision: Revision(9), value })])
    }

    fn rebuild(copy: Option<CopyId>, term: u64) -> Result<BTreeMap<String, Vec<u8>>> {
        let me = node("db1");
        rebuilt_values(
            &values(),
            &Rebuilding { me: &me, copy, term: Term(term), by: "anna", lossy: false, group: 3, kept: &kept() },
        )
    }

    #[test]
    fn a_rebuilt_store_counts_one_copy_and_shares_no_number_with_the_old_one() {
        let values = rebuild(Some(copy(1)), 1_000_000).unwrap();
        let record: Record = serde_json::from_slice(&values[RECORD_KEY]).unwrap();
        assert_eq!((record.term, record.state, record.holder), (Term(1_000_000), ClaimState::Free, None));
        assert_eq!(record.members, BTreeMap::from([(node("db1"), copy(1))]));
        assert_eq!((record.wanted, record.quorum), (Some(node("db1")), 0));
        assert!(record.timeline.0 >= 5 + 100, "old members may have used, or use yet, the next numbers");
        let spec: StoredSpec = serde_json::from_slice(&values[SPEC_KEY]).unwrap();
        assert!(spec.generation > 1000, "other nodes may have kept a later generation than this one");
        let history: Vec<Event> = serde_json::from_slice(&values[HISTORY_KEY]).unwrap();
        assert_eq!(history.last().map(|event| event.kind.as_str()), Some("store-rebuilt"));
    }

    #[test]
    fn nothing_is_rebuilt_without_a_copy_or_below_the_next_incarnation() {
        assert!(rebuild(None, 1_000_000).is_err());
        assert!(rebuild(Some(copy(1)), 13).is_err());
    }

    #[test]
    fn the_intent_to_join_stays_until_the_node_is_taken_in() {
        let dir = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(dir.path());
        std::fs::create_dir_all(layout.agent()).unwrap();
        let mut durable = Some(Durable { promise: Term(12), copy: Some(copy(1)), ..Durable::default() });
        let me = node("db1");
        assert_eq!(carry_out(&layout, &me, &kept(), &mut durable).unwrap(), None);
        let intent = Intent::Join { left: 0, term: Term(1_000_000), reinit: true, by: "anna".to_owned() };
        intent.save(&layout).unwrap();
        assert_eq!(carry_out(&layout, &me, &kept(), &mut durable).unwrap(), Some(1));
        assert_eq!(Intent::load(&layout).unwrap(), Some(intent), "it stays until the node is taken in");
        Intent::clear(&layout);
        assert_eq!(Intent::load(&layout).unwrap(), None);
    }
}
