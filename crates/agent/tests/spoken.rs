//! Two versions in one cluster speak to each other: every word of an earlier one that is kept in `spoken/` is read by this version, and said
//! again so that the earlier one reads it. Agents, guards, proxies and commands of two versions meet in every upgrade, and what one wrote to disk or
//! to the store the other reads.
//!
//! A file there is never changed, but for words that it lacked; a version that is released adds its own. `cargo xtask mixed` lets two programs meet.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use mainstay_agent::door::{ClusterQuestion, StoreReply};
use mainstay_agent::intent::{Intent, Removed};
use mainstay_guard::{Request, Response};
use mainstay_model::api::{CommandWish, PauseWish, RecoverWish, ReplaceWish, RunbookWish, SpecWish, Standing};
use mainstay_model::message::Message;
use mainstay_model::record::Durable;
use mainstay_model::route::Route;
use mainstay_model::stored_spec::StoredSpec;
use mainstay_model::vault::{ArchiveState, BackupState, BackupWish};
use mainstay_model::{Event, Record};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// May this version say more than the earlier one did?
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    /// Fields that it does not know are left out by whoever reads this.
    Ignored,
    /// They are refused: the same words mean the same bytes.
    Refused,
}

type Again = fn(&Value) -> Result<Value, serde_json::Error>;

fn again<T: DeserializeOwned + Serialize>(word: &Value) -> Result<Value, serde_json::Error> {
    serde_json::from_value::<T>(word.clone()).and_then(serde_json::to_value)
}

/// Every kind of word: its name in the files, and how it is read and said again.
fn kinds() -> BTreeMap<&'static str, (More, Again)> {
    BTreeMap::from([
        ("messages", (More::Ignored, again::<Message> as Again)),
        ("records", (More::Ignored, again::<Record>)),
        ("durables", (More::Ignored, again::<Durable>)),
        ("store_replies", (More::Ignored, again::<StoreReply>)),
        ("cluster_questions", (More::Refused, again::<ClusterQuestion>)),
        ("routes", (More::Ignored, again::<Route>)),
        ("events", (More::Ignored, again::<Event>)),
        ("standings", (More::Ignored, again::<Standing>)),
        ("archives", (More::Ignored, again::<ArchiveState>)),
        ("backups", (More::Ignored, again::<BackupState>)),
        ("intents", (More::Ignored, again::<Intent>)),
        ("removals", (More::Ignored, again::<Removed>)),
        ("commands", (More::Refused, again::<CommandWish>)),
        ("pauses", (More::Refused, again::<PauseWish>)),
        ("replacements", (More::Refused, again::<ReplaceWish>)),
        ("recoveries", (More::Refused, again::<RecoverWish>)),
        ("runbooks", (More::Refused, again::<RunbookWish>)),
        ("backup_wishes", (More::Refused, again::<BackupWish>)),
        ("spec_wishes", (More::Refused, again::<SpecWish>)),
        // What stands around the specification may grow; the specification itself is refused with a key too many.
        ("specs", (More::Refused, again::<StoredSpec>)),
        ("guard_requests", (More::Ignored, again::<Request>)),
        ("guard_answers", (More::Ignored, again::<Response>)),
    ])
}

/// Where the second does not say what the first said; `None`: nowhere.
fn differs(at: &str, said: &Value, again: &Value, more: More) -> Option<String> {
    match (said, again) {
        (Value::Object(said), Value::Object(again)) => {
            let added = again.keys().find(|key| !said.contains_key(*key)).filter(|_| more == More::Refused);
            added.map(|key| format!("{at}.{key} is new, and the earlier version refuses it")).or_else(|| {
                said.iter().find_map(|(key, value)| match again.get(key) {
                    None => Some(format!("{at}.{key} is left out")),
                    Some(now) => differs(&format!("{at}.{key}"), value, now, more),
                })
            })
        }
        (Value::Array(said), Value::Array(again)) if said.len() == again.len() => {
            let both = said.iter().zip(again).enumerate();
            both.into_iter().find_map(|(place, (said, again))| differs(&format!("{at}[{place}]"), said, again, more))
        }
        _ => (said != again).then(|| format!("{at} was {said} and becomes {again}")),
    }
}

fn files() -> Vec<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/spoken");
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn what_an_earlier_version_said_is_understood_and_said_so_that_it_understands() {
    let kinds = kinds();
    let mut wrong = Vec::new();
    let files = files();
    assert!(!files.is_empty());
    for file in files {
        let words: BTreeMap<String, Vec<Value>> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(words.keys().map(String::as_str).collect::<Vec<_>>(), kinds.keys().copied().collect::<Vec<_>>());
        for (kind, said) in &words {
            assert!(!said.is_empty(), "{kind}");
            let (more, again) = kinds[kind.as_str()];
            for (place, word) in said.iter().enumerate() {
                let at = format!("{}: {kind}[{place}]", file.file_name().unwrap().display());
                match again(word) {
                    Ok(now) => wrong.extend(differs(&at, word, &now, more)),
                    Err(error) => wrong.push(format!("{at} is not understood: {error}")),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "an earlier version can not be in one cluster with this one:\n{}", wrong.join("\n"));
}

/// A test that can not fail is a defect.
#[test]
fn what_an_earlier_version_would_not_understand_is_noticed() {
    let said = serde_json::json!({ "a": 1, "b": { "c": [1, 2] } });
    let cases = [
        (serde_json::json!({ "a": 1, "b": { "c": [1, 2] } }), More::Refused, None),
        (serde_json::json!({ "a": 1, "b": { "c": [1, 2], "d": 0 } }), More::Ignored, None),
        (serde_json::json!({ "a": 1, "b": { "c": [1, 2], "d": 0 } }), More::Refused, Some("x.b.d is new")),
        (serde_json::json!({ "a": 1, "b": {} }), More::Ignored, Some("x.b.c is left out")),
        (serde_json::json!({ "a": 2, "b": { "c": [1, 2] } }), More::Ignored, Some("x.a was 1 and becomes 2")),
        (serde_json::json!({ "a": 1, "b": { "c": [1, 3] } }), More::Ignored, Some("x.b.c[1] was 2 and becomes 3")),
    ];
    for (again, more, wanted) in cases {
        let found = differs("x", &said, &again, more);
        assert!(found.as_deref().unwrap_or("").starts_with(wanted.unwrap_or("")), "{found:?} {wanted:?}");
        assert_eq!(found.is_some(), wanted.is_some(), "{found:?}");
    }
    // A record without its members.
    let (_, again) = kinds()["records"];
    assert!(again(&serde_json::json!({ "term": 1 })).is_err());
}
