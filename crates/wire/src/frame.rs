//! The five bytes before each message. Absent: what stands behind them.

/// Tag and length.
pub const HEADER_BYTES: usize = 5;
/// The longest message that a server or client can make: a value of one gigabyte.
pub const MESSAGE_BYTES_MAX: usize = 0x4000_0000;

/// Bytes that are not the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A length that no message can have.
    #[error("a message of tag {tag:?} says that it is {length} bytes long")]
    Length {
        /// The tag's character.
        tag: char,
        /// What it says.
        length: u32,
    },
    /// A message that this side never sends.
    #[error("a message of unknown tag {0:?}")]
    Tag(char),
    /// A message whose body is not as its tag asks for.
    #[error("a broken message: {0}")]
    Body(&'static str),
    /// A first packet that is none.
    #[error("not a start-up packet: {0}")]
    Startup(&'static str),
}

/// One message's first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub tag: u8,
    /// The whole message, tag included. Never less than [`HEADER_BYTES`].
    pub length: usize,
}

/// The header at the beginning of these bytes; `None`: not all of it is there.
///
/// # Errors
/// When the length is none.
pub fn header(bytes: &[u8]) -> Result<Option<Header>, WireError> {
    let Some(&[tag, a, b, c, d]) = bytes.first_chunk() else { return Ok(None) };
    let said = u32::from_be_bytes([a, b, c, d]);
    let length = said as usize;
    if !(4..MESSAGE_BYTES_MAX).contains(&length) {
        return Err(WireError::Length { tag: char::from(tag), length: said });
    }
    Ok(Some(Header { tag, length: length + 1 }))
}

/// Is this a message that a client sends after its start-up?
#[must_use]
pub fn is_request(tag: u8) -> bool {
    matches!(tag, b'Q' | b'P' | b'B' | b'D' | b'E' | b'C' | b'S' | b'H' | b'F' | b'X' | b'd' | b'c' | b'f' | b'p')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_believed_only_within_bounds() {
        assert_eq!(header(b"Z\0\0\0"), Ok(None));
        assert_eq!(header(b"Z\0\0\0\x05I"), Ok(Some(Header { tag: b'Z', length: 6 })));
        assert_eq!(header(b"Z\0\0\0\x04"), Ok(Some(Header { tag: b'Z', length: 5 })));
        for wrong in [*b"Z\0\0\0\x03", *b"Z\0\0\0\0", *b"Z\xff\xff\xff\xff", *b"Z\x40\0\0\0", *b"Z\x80\0\0\0"] {
            assert!(header(&wrong).is_err(), "{wrong:?}");
        }
    }
}
