//! The replicated state: keys with their revisions, and who the members are. A pure function of the log.
//!
//! A revision is the index of the log entry that wrote it: it rises with each write, over restarts and changes of leader.

use crate::codec::{In, Malformed, Out};
use crate::command::Logged;
use mainstay_model::{NodeId, Revision};
use mainstay_ports::store::Versioned;
use std::collections::BTreeMap;

/// Keys and values together may hold this much: a snapshot must fit into one message between members.
pub(crate) const STATE_BYTES_MAX: usize = 3 * 1024 * 1024;

/// What counts for a key besides its bytes.
const KEY_OVERHEAD: usize = 32;

const FORMAT: u8 = 1;

/// The number by which Raft knows a node: a hash of its name (FNV-1a), never 0.
pub(crate) fn raft_id(node: &NodeId) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in node.as_str().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash.max(1)
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    Done {
        key: String,
        revision: u64,
    },
    Conflict(Option<Versioned>),
    Refused(String),
    /// Nobody waits for it.
    Noted,
}

/// The state. See the module's doc.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Index of the last entry that is in here.
    pub(crate) applied: u64,
    pub(crate) values: BTreeMap<String, Versioned>,
    /// Voters and learners, by Raft's number.
    pub(crate) members: BTreeMap<u64, NodeId>,
    /// The number of each member's directory, once the leader has met it. A member that comes with another one has lost what it
    /// promised, and is ignored until it is removed and added again.
    pub(crate) copies: BTreeMap<u64, u64>,
    bytes: usize,
}

fn cost(key: &str, value: &[u8]) -> usize {
    key.len() + value.len() + KEY_OVERHEAD
}

impl State {
    /// The state before the first entry.
    pub(crate) fn initial(applied: u64, voters: &[NodeId]) -> Self {
        let members = voters.iter().map(|node| (raft_id(node), node.clone())).collect();
        Self { applied, members, ..Self::default() }
    }

    /// Replaces every value.
    pub(crate) fn set_values(&mut self, values: BTreeMap<String, Versioned>) {
        self.bytes = values.iter().map(|(key, versioned)| cost(key, &versioned.value)).sum();
        self.values = values;
    }

    /// Carries out the command of the entry at `index`.
    pub(crate) fn apply(&mut self, index: u64, data: &[u8]) -> Applied {
        let command = match Logged::decode(data) {
            Ok(Logged::Cas(command)) => command,
            Ok(Logged::Copy { id, copy }) => {
                if self.members.contains_key(&id) {
                    self.copies.entry(id).or_insert(copy);
                }
                return Applied::Noted;
            }
            Err(error) => {
                return Applied::Refused(format!("this entry is not understood ({error}): upgrade every member"));
            }
        };
        let present = self.values.get(&command.key);
        if present.map(|versioned| versioned.revision.0) != command.expected {
            return Applied::Conflict(present.cloned());
        }
        let freed = present.map_or(0, |versioned| cost(&command.key, &versioned.value));
        let bytes = self.bytes - freed + cost(&command.key, &command.value);
        if bytes > STATE_BYTES_MAX {
            return Applied::Refused(format!("the store is full: {STATE_BYTES_MAX} bytes over all keys"));
        }
        self.bytes = bytes;
        let versioned = Versioned { revision: Revision(index), value: command.value };
        self.values.insert(command.key.clone(), versioned);
        Applied::Done { key: command.key, revision: index }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Out::default().u8(FORMAT).u64(self.applied).u64(self.members.len() as u64);
        for (id, node) in &self.members {
            out = out.bytes(node.as_str().as_bytes()).optional(self.copies.get(id).copied());
        }
        out = out.u64(self.values.len() as u64);
        for (key, versioned) in &self.values {
            out = out.bytes(key.as_bytes()).u64(versioned.revision.0).bytes(&versioned.value);
        }
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = In(bytes);
        if input.u8()? != FORMAT {
            return Err(Malformed);
        }
        let mut state = Self { applied: input.u64()?, ..Self::default() };
        for _ in 0..input.u64()? {
            let node = NodeId::new(input.text()?).map_err(|_| Malformed)?;
            if let Some(copy) = input.optional()? {
                state.copies.insert(raft_id(&node), copy);
            }
            state.members.insert(raft_id(&node), node);
        }
        for _ in 0..input.u64()? {
            let key = input.text()?;
            let versioned = Versioned { revision: Revision(input.u64()?), value: input.bytes()?.to_vec() };
            state.bytes += cost(&key, &versioned.value);
            state.values.insert(key, versioned);
        }
        input.end()?;
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;

    fn set(key: &str, expected: Option<u64>, value: Vec<u8>) -> Vec<u8> {
        Command { key: key.into(), expected, value }.encode()
    }

    #[test]
    fn a_write_needs_the_present_revision() {
        let mut state = State::initial(1, &[]);
        assert!(matches!(state.apply(2, &set("k", None, b"a".to_vec())), Applied::Done { .. }));
        assert!(matches!(state.apply(3, &set("k", None, b"b".to_vec())), Applied::Conflict(Some(_))));
        assert!(matches!(state.apply(4, &set("k", Some(2), b"c".to_vec())), Applied::Done { .. }));
        assert!(matches!(state.apply(5, &set("x", Some(2), b"c".to_vec())), Applied::Conflict(None)));
        assert_eq!(state.values["k"], Versioned { revision: Revision(4), value: b"c".to_vec() });
    }

    #[test]
    fn a_snapshot_gives_the_same_state() {
        let voters = ["a", "b"].map(|name| NodeId::new(name).unwrap());
        let mut state = State::initial(1, &voters);
        state.apply(2, &set("k", None, vec![1; 100]));
        state.apply(3, &Logged::copy(raft_id(&voters[0]), 77));
        state.applied = 3;
        let bytes = state.encode();
        assert_eq!(State::decode(&bytes), Ok(state));
        assert_eq!(State::decode(&bytes[..bytes.len() - 1]), Err(Malformed));
    }

    #[test]
    fn the_first_directory_of_a_member_counts() {
        let member = NodeId::new("a").unwrap();
        let mut state = State::initial(1, std::slice::from_ref(&member));
        for (index, copy) in [(2, 5), (3, 6)] {
            assert_eq!(state.apply(index, &Logged::copy(raft_id(&member), copy)), Applied::Noted);
        }
        state.apply(4, &Logged::copy(1234, 7));
        assert_eq!(state.copies, BTreeMap::from([(raft_id(&member), 5)]));
    }

    #[test]
    fn the_whole_state_is_bounded() {
        let mut state = State::initial(1, &[]);
        let mut index = 2;
        let refused = loop {
            let outcome = state.apply(index, &set(&format!("k{index}"), None, vec![0; 200_000]));
            if matches!(outcome, Applied::Refused(_)) {
                break index;
            }
            index += 1;
        };
        assert_eq!(refused, 2 + (STATE_BYTES_MAX / 200_000) as u64);
        assert!(state.encode().len() <= STATE_BYTES_MAX + 1024);
        // Replacing a value by a shorter one still works.
        assert!(matches!(state.apply(99, &set("k2", Some(2), vec![])), Applied::Done { .. }));
    }
}
