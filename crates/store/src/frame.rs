//! One Raft message between members, with the numbers of both directories.
//!
//! A directory's number is drawn when the directory is made. A member whose directory was lost comes back with another number;
//! its peers then ignore it, since it may have forgotten votes and entries, until it is removed and added again.

use crate::codec::{In, Malformed, Out};
use protobuf::Message as _;
use raft::eraftpb::Message;

const FORMAT: u8 = 1;

/// See the module's doc.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    /// The sender's directory.
    pub(crate) from_copy: u64,
    /// The receiver's directory as the sender knows it; 0: they have not met.
    pub(crate) to_copy: u64,
    pub(crate) message: Message,
}

impl Frame {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Out::default().u8(FORMAT).u64(self.from_copy).u64(self.to_copy).0;
        // Writing to memory fails only if a required field is missing; proto3 has none.
        let _ = self.message.write_to_vec(&mut bytes);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = In(bytes);
        if input.u8()? != FORMAT {
            return Err(Malformed);
        }
        let (from_copy, to_copy) = (input.u64()?, input.u64()?);
        let message = Message::parse_from_bytes(input.0).map_err(|_| Malformed)?;
        Ok(Self { from_copy, to_copy, message })
    }
}
