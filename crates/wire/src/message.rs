//! The messages that a pooling proxy must look into. Each function takes one whole message, header included, and gives places in it.
//! Absent: messages that are passed on as they are.

use crate::frame::{HEADER_BYTES, WireError};
use std::ops::Range;

/// Where the text up to the next zero byte stands.
fn text(message: &[u8], from: usize) -> Result<Range<usize>, WireError> {
    let rest = message.get(from..).ok_or(WireError::Body("it ends early"))?;
    let end = rest.iter().position(|byte| *byte == 0).ok_or(WireError::Body("a text without end"))?;
    Ok(from..from + end)
}

/// The text of a simple query.
///
/// # Errors
/// When it has no end.
pub fn query(message: &[u8]) -> Result<&[u8], WireError> {
    let body = message.get(HEADER_BYTES..).ok_or(WireError::Body("it ends early"))?;
    body.strip_suffix(&[0]).ok_or(WireError::Body("a query without end"))
}

/// A `Parse`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parse {
    /// The statement's name; empty: unnamed.
    pub name: Range<usize>,
    /// Its text.
    pub query: Range<usize>,
    /// All that follows the name: text and types.
    pub rest: Range<usize>,
}

/// Reads a `Parse`.
///
/// # Errors
/// When a text has no end.
pub fn parse(message: &[u8]) -> Result<Parse, WireError> {
    let name = text(message, HEADER_BYTES)?;
    let query = text(message, name.end + 1)?;
    let rest = name.end + 1..message.len();
    Ok(Parse { name, query, rest })
}

/// Where the statement's name stands in a `Bind`.
///
/// # Errors
/// When a text has no end.
pub fn bound(message: &[u8]) -> Result<Range<usize>, WireError> {
    let portal = text(message, HEADER_BYTES)?;
    text(message, portal.end + 1)
}

/// What a `Describe` or a `Close` is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// A statement, not a portal.
    pub statement: bool,
    /// Its name.
    pub name: Range<usize>,
}

/// Reads a `Describe` or a `Close`.
///
/// # Errors
/// When it is about neither statement nor portal.
pub fn about(message: &[u8]) -> Result<About, WireError> {
    let statement = match message.get(HEADER_BYTES) {
        Some(b'S') => true,
        Some(b'P') => false,
        _ => return Err(WireError::Body("about neither a statement nor a portal")),
    };
    Ok(About { statement, name: text(message, HEADER_BYTES + 1)? })
}

/// A field of an error or a notice.
#[must_use]
pub fn field(message: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut at = HEADER_BYTES;
    while let Some(kind) = message.get(at).filter(|kind| **kind != 0) {
        let place = text(message, at + 1).ok()?;
        if *kind == wanted {
            return message.get(place);
        }
        at = place.end + 1;
    }
    None
}

/// Name and value of a `ParameterStatus`.
#[must_use]
pub fn parameter(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let name = text(message, HEADER_BYTES).ok()?;
    let value = text(message, name.end + 1).ok()?;
    Some((message.get(name)?, message.get(value)?))
}

/// A commit whose wait for its replicas was cancelled: the notice that comes before its `CommandComplete`. Known by the place in the
/// server's source, since the text is translated.
#[must_use]
pub fn is_unreplicated_commit(notice: &[u8]) -> bool {
    field(notice, b'R') == Some(b"SyncRepWaitForLSN")
}

/// The values of a `DataRow`, at most `N` of them.
#[must_use]
pub fn row<const N: usize>(message: &[u8]) -> [Option<&[u8]>; N] {
    let mut values = [None; N];
    let mut at = HEADER_BYTES + 2;
    for value in &mut values {
        let Some(length) = message.get(at..at + 4).and_then(|n| n.first_chunk()).map(|n| i32::from_be_bytes(*n)) else {
            break;
        };
        at += 4;
        if let Ok(length) = usize::try_from(length) {
            *value = message.get(at..at.saturating_add(length));
            at = at.saturating_add(length);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::Reply;

    #[test]
    fn names_and_texts_are_found() {
        let whole = b"P\0\0\0\x11s1\0select 1\0\0\0";
        let found = parse(whole).unwrap();
        assert_eq!((&whole[found.name], &whole[found.query]), (&b"s1"[..], &b"select 1"[..]));
        assert_eq!(&whole[found.rest], b"select 1\0\0\0");
        let bind = b"B\0\0\0\x0ap\0s22\0\0\0";
        assert_eq!(&bind[bound(bind).unwrap()], b"s22");
        assert_eq!(about(b"D\0\0\0\x07Sx\0"), Ok(About { statement: true, name: 6..7 }));
        assert!(
            about(b"D\0\0\0\x07Zx\0").is_err() && parse(b"P\0\0\0\x05s").is_err() && query(b"Q\0\0\0\x05x").is_err()
        );
    }

    #[test]
    fn fields_are_found_and_a_broken_error_has_none() {
        let mut out = Vec::new();
        Reply::error("ERROR", "40001", "no", "", "").encode(&mut out);
        assert_eq!(field(&out, b'C'), Some(&b"40001"[..]));
        assert_eq!(field(&out, b'R'), None);
        assert_eq!(field(b"E\0\0\0\x06Cx", b'M'), None);
        assert_eq!(parameter(b"S\0\0\0\x0aab\0cd\0"), Some((&b"ab"[..], &b"cd"[..])));
        assert_eq!(row::<2>(b"D\0\0\0\x0f\0\x02\0\0\0\x01t\xff\xff\xff\xff"), [Some(&b"t"[..]), None]);
    }
}
