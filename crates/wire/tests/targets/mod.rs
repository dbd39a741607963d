//! What the parsers must keep for any bytes: for the fuzzer, and for the corpus in every run of the tests.

// Each user calls some of these.
#![allow(dead_code)]

use mainstay_wire::message::{about, bound, field, is_unreplicated_commit, parameter, parse, query, row};
use mainstay_wire::{header, startup::STARTUP_BYTES_MAX, text::traits};

/// A first packet is refused, incomplete, or within the bytes.
pub(crate) fn startup(bytes: &[u8]) {
    if let Ok(Some((_, used))) = mainstay_wire::startup(bytes) {
        assert!((8..=bytes.len().min(STARTUP_BYTES_MAX)).contains(&used));
        // More bytes change nothing, fewer are not enough.
        assert_eq!(mainstay_wire::startup(&bytes[..used]).map(|found| found.is_some()), Ok(true));
        assert_eq!(mainstay_wire::startup(&bytes[..used - 1]), Ok(None));
    }
}

/// A walk over headers ends, and nothing that is found lies outside of its message.
pub(crate) fn messages(bytes: &[u8]) {
    let mut at = 0;
    while let Ok(Some(head)) = header(&bytes[at..]) {
        assert!(head.length >= 5);
        let whole = &bytes[at..bytes.len().min(at + head.length)];
        if let Ok(found) = parse(whole) {
            assert!(found.name.end < found.query.start && found.rest.end == whole.len());
        }
        for place in [bound(whole), about(whole).map(|about| about.name)].into_iter().flatten() {
            assert!(place.end < whole.len());
        }
        let _ = (query(whole), field(whole, b'C'), parameter(whole), is_unreplicated_commit(whole), row::<3>(whole));
        at += head.length;
        if at > bytes.len() {
            return;
        }
    }
}

/// A text is looked at to its end.
pub(crate) fn text(bytes: &[u8]) {
    let found = traits(bytes);
    assert!(found.statements <= bytes.len());
    assert!(found.changes.len() <= found.statements);
}
