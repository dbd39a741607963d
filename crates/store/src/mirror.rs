//! The journal's contents in memory, in the form that the Raft crate reads. Bounded: snapshots trim the entries.

use crate::journal::Contents;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

/// Entries that stay behind a snapshot, so that a member that lags a little needs no snapshot.
pub(crate) const KEPT_ENTRIES: usize = 512;
/// … if they are not larger than this, in bytes.
const KEPT_BYTES: usize = 1024 * 1024;

/// See the module's doc.
pub(crate) struct Mirror {
    pub(crate) hard: HardState,
    pub(crate) snapshot: Snapshot,
    trimmed: (u64, u64),
    entries: Vec<Entry>,
}

impl Mirror {
    pub(crate) fn new(contents: &Contents) -> Self {
        let mut mirror = Self {
            hard: contents.hard.clone(),
            snapshot: contents.snapshot.clone(),
            trimmed: contents.trimmed,
            entries: contents.entries.clone(),
        };
        let floor = mirror.snapshot.get_metadata().index;
        mirror.hard.commit = mirror.hard.commit.clamp(floor, mirror.last().max(floor));
        mirror
    }

    fn last(&self) -> u64 {
        self.trimmed.0 + self.entries.len() as u64
    }

    fn position(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.trimmed.0 + 1)?).ok()
    }

    /// Adds entries; those of the same index and after are replaced.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        if let Some(position) = entries.first().and_then(|first| self.position(first.index)) {
            self.entries.truncate(position);
            self.entries.extend_from_slice(entries);
        }
    }

    /// The leader's snapshot replaces everything.
    pub(crate) fn install(&mut self, snapshot: &Snapshot) {
        let meta = snapshot.get_metadata();
        self.trimmed = (meta.index, meta.term);
        self.entries.clear();
        self.snapshot = snapshot.clone();
        self.hard.commit = self.hard.commit.max(meta.index);
        self.hard.term = self.hard.term.max(meta.term);
    }

    /// Takes an own snapshot and forgets entries that it covers, but for a tail.
    pub(crate) fn take_snapshot(&mut self, snapshot: Snapshot) {
        let covered = self.position(snapshot.get_metadata().index).map_or(0, |position| position + 1);
        let (mut kept, mut bytes) = (0, 0);
        while kept < covered.min(KEPT_ENTRIES) {
            bytes += self.entries[covered - 1 - kept].data.len();
            if bytes > KEPT_BYTES {
                break;
            }
            kept += 1;
        }
        self.snapshot = snapshot;
        let trim = covered - kept;
        if let Some(last) = trim.checked_sub(1).and_then(|position| self.entries.get(position)) {
            self.trimmed = (last.index, last.term);
            self.entries.drain(..trim);
        }
    }

    /// What a checkpoint of now holds, but for the directory's number and the pins.
    pub(crate) fn contents(&self) -> Contents {
        Contents {
            hard: self.hard.clone(),
            snapshot: self.snapshot.clone(),
            trimmed: self.trimmed,
            entries: self.entries.clone(),
            ..Contents::default()
        }
    }
}

/// The state of a member that has seen nothing: the same on each, as if a first entry had made it.
pub(crate) fn initial_snapshot(voters: Vec<u64>, data: Vec<u8>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let meta = snapshot.mut_metadata();
    meta.index = 1;
    meta.term = 1;
    meta.set_conf_state(ConfState { voters, ..ConfState::default() });
    snapshot.data = data.into();
    snapshot
}

impl Storage for Mirror {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), self.snapshot.get_metadata().get_conf_state().clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let (Some(from), Some(to)) = (self.position(low), self.position(high)) else {
            return Err(Error::Store(StorageError::Compacted));
        };
        let slice = self.entries.get(from..to).ok_or(Error::Store(StorageError::Unavailable))?;
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut bytes = 0;
        let fits = slice.iter().take_while(|entry| {
            bytes += u64::from(protobuf::Message::compute_size(*entry));
            bytes <= limit
        });
        let count = fits.count().max(1).min(slice.len());
        Ok(slice[..count].to_vec())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.trimmed.0 {
            return Ok(self.trimmed.1);
        }
        let position = self.position(index).ok_or(Error::Store(StorageError::Compacted))?;
        self.entries.get(position).map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.trimmed.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if self.snapshot.get_metadata().index < request_index {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.snapshot.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_keeps_a_tail_and_the_terms_around_it() {
        let mut mirror = Mirror::new(&Contents {
            snapshot: initial_snapshot(vec![1], vec![]),
            trimmed: (1, 1),
            ..Contents::default()
        });
        let entries: Vec<Entry> = (2..=2000).map(|index| Entry { index, term: 3, ..Entry::default() }).collect();
        mirror.append(&entries);
        let mut snapshot = initial_snapshot(vec![1], vec![]);
        snapshot.mut_metadata().index = 1500;
        snapshot.mut_metadata().term = 3;
        mirror.take_snapshot(snapshot);
        assert_eq!(mirror.first_index().unwrap(), 1501 - KEPT_ENTRIES as u64);
        assert_eq!(mirror.last_index().unwrap(), 2000);
        assert_eq!(mirror.term(1500 - KEPT_ENTRIES as u64).unwrap(), 3);
        assert!(mirror.term(1499 - KEPT_ENTRIES as u64).is_err());
        let got = mirror.entries(1999, 2001, None, GetEntriesContext::empty(false)).unwrap();
        assert_eq!(got.len(), 2);
    }
}
