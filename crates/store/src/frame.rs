//! One Raft message between members, with the store's number and the numbers of both directories.
//!
//! A directory's number is drawn when the directory is made. A member whose directory was lost comes back with another number;
//! its peers then ignore it, since it may have forgotten votes and entries, until it is removed and added again. A store that was
//! rebuilt has another number than the one before: members of the two do not hear each other.

use crate::codec::{In, Malformed, Out};
use protobuf::Message as _;
use raft::eraftpb::Message;

const FORMAT: u8 = 2;

/// See the module's doc.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    /// The sender's store.
    pub(crate) group: u64,
    /// The sender's directory.
    pub(crate) from_copy: u64,
    /// The receiver's directory as the sender knows it; 0: they have not met.
    pub(crate) to_copy: u64,
    pub(crate) message: Message,
}

impl Frame {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Out::default().u8(FORMAT).u64(self.group).u64(self.from_copy).u64(self.to_copy).0;
        // Writing to memory fails only if a required field is missing; proto3 has none.
        let _ = self.message.write_to_vec(&mut bytes);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = In(bytes);
        if input.u8()? != FORMAT {
            return Err(Malformed);
        }
        let (group, from_copy, to_copy) = (input.u64()?, input.u64()?, input.u64()?);
        let message = Message::parse_from_bytes(input.0).map_err(|_| Malformed)?;
        Ok(Self { group, from_copy, to_copy, message })
    }
}
