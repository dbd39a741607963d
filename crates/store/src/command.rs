//! What a log entry holds: one compare-and-set, or the number of a member's directory.

use crate::codec::{In, Malformed, Out};
use mainstay_ports::store::VALUE_BYTES_MAX;

/// The longest key, in bytes.
pub(crate) const KEY_BYTES_MAX: usize = 256;

const CAS: u8 = 1;
const COPY: u8 = 2;

/// A compare-and-set as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) key: String,
    pub(crate) expected: Option<u64>,
    pub(crate) value: Vec<u8>,
}

impl Command {
    /// Why this command can never be carried out, if so.
    pub(crate) fn refusal(&self) -> Option<String> {
        if self.value.len() > VALUE_BYTES_MAX {
            return Some(format!("the value has {} bytes; {VALUE_BYTES_MAX} may", self.value.len()));
        }
        if self.key.is_empty() || self.key.len() > KEY_BYTES_MAX {
            return Some(format!("the key has {} bytes; 1 to {KEY_BYTES_MAX} may", self.key.len()));
        }
        None
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        Out::default().u8(CAS).bytes(self.key.as_bytes()).optional(self.expected).bytes(&self.value).0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = In(bytes);
        if input.u8()? != CAS {
            return Err(Malformed);
        }
        let command = Self { key: input.text()?, expected: input.optional()?, value: input.bytes()?.to_vec() };
        input.end()?;
        Ok(command)
    }
}

/// What a log entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Logged {
    Cas(Command),
    /// The leader has met the member with this Raft number, and its directory's number is this.
    Copy {
        id: u64,
        copy: u64,
    },
}

impl Logged {
    pub(crate) fn copy(id: u64, copy: u64) -> Vec<u8> {
        Out::default().u8(COPY).u64(id).u64(copy).0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = In(bytes);
        match input.u8()? {
            CAS => Command::decode(bytes).map(Logged::Cas),
            COPY => {
                let logged = Logged::Copy { id: input.u64()?, copy: input.u64()? };
                input.end().map(|()| logged)
            }
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_cut_refused() {
        let command = Command { key: "claim".into(), expected: Some(7), value: b"{}".to_vec() };
        let bytes = command.encode();
        assert_eq!(Command::decode(&bytes), Ok(command));
        for cut in 0..bytes.len() {
            assert_eq!(Logged::decode(&bytes[..cut]), Err(Malformed), "cut at {cut}");
        }
        assert_eq!(Logged::decode(&Logged::copy(3, 4)), Ok(Logged::Copy { id: 3, copy: 4 }));
    }
}
