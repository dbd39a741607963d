//! The arithmetic of acknowledgements and elections (take-over protocol, §4). Pure functions of small sets.

use mainstay_model::{CopyId, Lsn, NodeId, SyncSetting};
use std::collections::BTreeMap;

/// M: members, each with its copy.
pub type Members = BTreeMap<NodeId, CopyId>;

/// Does every `q + 1` of `members` meet {leader} + every `need` of the setting's copies? `me` is the leader.
#[must_use]
pub fn cover(members: &Members, quorum: u32, setting: &SyncSetting) -> bool {
    let real = size(&setting.copies);
    if real < u64::from(setting.need) {
        return true; // such a setting acknowledges nothing
    }
    let outside = setting.copies.iter().filter(|(node, copy)| members.get(*node) != Some(*copy)).count() as u64;
    let inside = u64::from(setting.need).saturating_sub(outside);
    size(members) <= u64::from(quorum) + 1 + inside
}

/// The smallest quorum with which `cover` holds for every setting that may be in force.
#[must_use]
pub fn smallest_quorum(members: &Members, settings: &[SyncSetting]) -> u32 {
    let most = u32::try_from(members.len().saturating_sub(1)).unwrap_or(u32::MAX);
    (0..most).find(|quorum| settings.iter().all(|setting| cover(members, *quorum, setting))).unwrap_or(most)
}

/// How many members hold everything before `position`: me, and those whose own copy reported a flush that far.
#[must_use]
pub fn holders(members: &Members, me: &NodeId, position: Lsn, flush: &BTreeMap<NodeId, (CopyId, Lsn)>) -> u32 {
    let holds = |node: &NodeId, copy: &CopyId| {
        node == me || flush.get(node).is_some_and(|(theirs, at)| theirs == copy && *at >= position)
    };
    u32::try_from(members.iter().filter(|(node, copy)| holds(node, copy)).count()).unwrap_or(u32::MAX)
}

fn size(copies: &Members) -> u64 {
    copies.len() as u64
}
