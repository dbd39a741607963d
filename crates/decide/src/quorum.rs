//! The arithmetic of acknowledgements and elections (take-over protocol, §4). Pure functions of small sets.

use mainstay_model::{CopyId, Lsn, NodeId, SyncSetting};
use std::collections::{BTreeMap, BTreeSet};

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

/// What a leader plans its members and its server's setting from.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// The leader.
    pub me: &'a NodeId,
    /// Its copy.
    pub my_copy: CopyId,
    /// M of the record.
    pub members: &'a Members,
    /// q of the record.
    pub quorum: u32,
    /// Every setting that may be in force, the newest last. Never empty.
    pub settings: &'a [SyncSetting],
    /// The only setting in force is confirmed.
    pub confirmed: bool,
    /// P: the log's end when the setting was confirmed; unconfirmed, the end now.
    pub position: Lsn,
    /// Flush reports, each with the copy that gave it.
    pub flush: &'a BTreeMap<NodeId, (CopyId, Lsn)>,
    /// Replicas that stream and may count, with their copies.
    pub acting: &'a Members,
    /// Members whose copy is known to be no longer the record's.
    pub broken: &'a BTreeSet<NodeId>,
    /// Keep n + 1 members and block rather than acknowledge with fewer.
    pub strict: bool,
    /// n as configured; 0 in asynchronous mode.
    pub wanted: u32,
    /// Rules left out on purpose.
    pub bend: Bend,
}

/// Planted faults of this arithmetic (all false outside the simulator).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bend {
    /// Plant 7.
    pub all_listed: bool,
    /// Plant 8.
    pub remove_early: bool,
    /// Plant 27.
    pub degrade_server_first: bool,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write these members and this quorum.
    Record(Members, u32),
    /// Change the server's setting, and wait until it is confirmed.
    Setting(SyncSetting),
}

impl Situation<'_> {
    /// M*, q* and the setting that are aimed at.
    #[must_use]
    pub fn target(&self) -> (Members, u32, SyncSetting) {
        let mut members = self.acting.clone();
        members.remove(self.me);
        let acting = u32::try_from(members.len()).unwrap_or(u32::MAX);
        if self.strict && acting < self.wanted {
            let kept = self.members.iter().filter(|(node, _)| *node != self.me && !self.broken.contains(*node));
            // Those that stream first: whoever is to leave still confirms until others do.
            let mut kept: Vec<_> = kept.collect();
            kept.sort_by_key(|(node, copy)| self.flush.get(*node).is_none_or(|(theirs, _)| theirs != *copy));
            for (node, copy) in kept {
                if members.len() < self.wanted as usize {
                    members.entry(node.clone()).or_insert(*copy);
                }
            }
        }
        let need = if self.strict { self.wanted } else { self.wanted.min(acting) };
        let setting = SyncSetting { need, copies: if need == 0 { Members::new() } else { members.clone() } };
        members.insert(self.me.clone(), self.my_copy);
        let size = u32::try_from(members.len()).unwrap_or(u32::MAX);
        (members, size.saturating_sub(1 + need), setting)
    }

    /// May this record be written now?
    #[must_use]
    pub fn record_allowed(&self, members: &Members, quorum: u32) -> bool {
        let size = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let held = holders(members, self.me, self.position, self.flush);
        let early = self.bend.remove_early && members.len() < self.members.len();
        self.settings.iter().all(|setting| cover(members, quorum, setting))
            && (early || held >= size.saturating_sub(quorum))
    }

    /// May the server's setting be changed to this one now?
    #[must_use]
    pub fn setting_allowed(&self, setting: &SyncSetting) -> bool {
        self.confirmed && cover(self.members, self.quorum, setting)
    }

    fn smallest_allowed(&self, members: &Members) -> u32 {
        let most = u32::try_from(members.len().saturating_sub(1)).unwrap_or(u32::MAX);
        (0..most).find(|quorum| self.record_allowed(members, *quorum)).unwrap_or(most)
    }

    /// This record, with the smallest quorum that is allowed, unless it is the present one.
    fn record_step(&self, members: Members) -> Option<Step> {
        let quorum = self.smallest_allowed(&members);
        // With the same members, a higher quorum would only make elections harder.
        let better = members != *self.members || quorum < self.quorum;
        better.then_some(Step::Record(members, quorum))
    }

    fn setting_step(&self, setting: SyncSetting) -> Option<Step> {
        (self.settings.last() != Some(&setting) && self.setting_allowed(&setting)).then_some(Step::Setting(setting))
    }

    /// The first change towards the target that is allowed now.
    #[must_use]
    pub fn next_step(&self) -> Option<Step> {
        let (members, quorum, setting) = self.target();
        if let Some(step) = self.bent(&members, quorum, &setting) {
            return step;
        }
        if self.members.keys().any(|node| self.broken.contains(node)) {
            let mut whole = self.members.clone();
            whole.retain(|node, _| !self.broken.contains(node));
            return self.record_step(whole);
        }
        if (self.members, self.quorum) != (&members, quorum) && self.record_allowed(&members, quorum) {
            return Some(Step::Record(members, quorum));
        }
        let there = (self.members, self.quorum) == (&members, quorum);
        let reached = self.settings.last() == Some(&setting);
        let mut both = self.members.clone();
        both.extend(members.clone());
        self.setting_step(setting)
            .or_else(|| if there { None } else { self.record_step(both).or_else(|| self.record_step(members.clone())) })
            .or_else(|| if reached { None } else { self.widening_step(&members) })
    }

    /// When the target's setting is not allowed yet: without those who leave; else everybody of both.
    fn widening_step(&self, members: &Members) -> Option<Step> {
        let now = self.settings.last()?;
        let mut without = now.clone();
        without.copies.retain(|node, copy| members.get(node) == Some(copy));
        let mut all = now.copies.clone();
        all.extend(members.clone());
        all.remove(self.me);
        let need = u32::try_from(all.len()).unwrap_or(u32::MAX);
        self.setting_step(without).or_else(|| self.setting_step(SyncSetting { need, copies: all }))
    }

    /// What a planted fault does instead; `None`: nothing special.
    fn bent(&self, members: &Members, quorum: u32, setting: &SyncSetting) -> Option<Option<Step>> {
        let reached = self.settings.last() == Some(setting);
        let set = (self.confirmed && !reached).then(|| Step::Setting(setting.clone()));
        let write = ((self.members, self.quorum) != (members, quorum)).then(|| Step::Record(members.clone(), quorum));
        if self.bend.degrade_server_first && setting.need == 0 && !(reached && self.confirmed) {
            return Some(set);
        }
        let change = match members.len().cmp(&self.members.len()) {
            std::cmp::Ordering::Greater => set.or(write),
            std::cmp::Ordering::Less => write.or(set),
            std::cmp::Ordering::Equal => None,
        };
        (self.bend.all_listed && change.is_some()).then_some(change)
    }
}

fn size(copies: &Members) -> u64 {
    copies.len() as u64
}
