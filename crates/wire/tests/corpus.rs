//! The fuzzer's corpus, in every run of the tests: first packets, messages and texts like those that have brought other programs down.

#![allow(clippy::unwrap_used)]

mod targets;

use proptest::prelude::*;
use std::path::Path;

fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut count = 0;
    for file in std::fs::read_dir(&folder).unwrap() {
        target(&std::fs::read(file.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 5, "{} has seeds", folder.display());
}

#[test]
fn the_corpus_brings_no_parser_down() {
    replay("startup", targets::startup);
    replay("messages", targets::messages);
    replay("text", targets::text);
}

proptest! {
    #[test]
    fn nor_do_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        targets::startup(&bytes);
        targets::messages(&bytes);
        targets::text(&bytes);
    }

    #[test]
    fn nor_do_messages_whose_bodies_are_cut(tags in prop::collection::vec(
        ("[QPBDCEN]", prop::collection::vec(any::<u8>(), 0..40), 0_u32..60), 1..6,
    )) {
        let mut bytes = Vec::new();
        for (tag, body, said) in tags {
            bytes.extend(tag.bytes());
            bytes.extend(said.to_be_bytes());
            bytes.extend(body);
        }
        targets::messages(&bytes);
    }
}
