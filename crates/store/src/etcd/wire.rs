//! What etcd's JSON gateway says and is told: whole numbers as texts, bytes as base64, defaults left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_model::Revision;
use mainstay_ports::store::Versioned;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Number(u64),
    }
    match Either::deserialize(deserializer)? {
        Either::Number(number) => Ok(number),
        Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    STANDARD.decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// Of every answer.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct Header {
    #[serde(default, deserialize_with = "number")]
    pub(crate) member_id: u64,
    #[serde(default, deserialize_with = "number")]
    pub(crate) revision: u64,
}

/// One key.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Pair {
    #[serde(default, deserialize_with = "bytes")]
    pub(crate) key: Vec<u8>,
    #[serde(default, deserialize_with = "number")]
    pub(crate) mod_revision: u64,
    #[serde(default, deserialize_with = "number")]
    pub(crate) create_revision: u64,
    /// Writes since it was made.
    #[serde(default, deserialize_with = "number")]
    pub(crate) version: u64,
    #[serde(default, deserialize_with = "bytes")]
    pub(crate) value: Vec<u8>,
}

impl Pair {
    pub(crate) fn versioned(&self) -> Versioned {
        Versioned { revision: Revision(self.mod_revision), value: self.value.clone() }
    }
}

/// The answer to a read.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Range {
    #[serde(default)]
    pub(crate) header: Header,
    #[serde(default)]
    pub(crate) kvs: Vec<Pair>,
}

/// The answer to a transaction.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Txn {
    #[serde(default)]
    pub(crate) succeeded: bool,
    #[serde(default)]
    responses: Vec<Part>,
}

#[derive(Clone, Debug, Deserialize)]
struct Part {
    response_range: Option<Range>,
}

impl Txn {
    /// The answers to its reads, in their order.
    pub(crate) fn ranges(self) -> Vec<Range> {
        self.responses.into_iter().filter_map(|part| part.response_range).collect()
    }
}

/// What a member says of itself.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Status {
    #[serde(default)]
    pub(crate) header: Header,
    #[serde(default)]
    pub(crate) version: String,
    #[serde(default, deserialize_with = "number")]
    pub(crate) leader: u64,
    #[serde(default, rename = "dbSize", deserialize_with = "number")]
    pub(crate) size: u64,
}

/// The alarms that are raised.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Alarms {
    #[serde(default)]
    pub(crate) alarms: Vec<Alarm>,
}

/// One of them.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Alarm {
    #[serde(default)]
    pub(crate) alarm: String,
}

/// The answer to a login.
#[derive(Deserialize)]
pub(crate) struct Login {
    #[serde(default)]
    pub(crate) token: String,
}

/// Why something was refused.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Refusal {
    #[serde(default, alias = "error")]
    pub(crate) message: Value,
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(crate) struct Line {
    #[serde(default)]
    pub(crate) result: Option<Watched>,
    #[serde(default)]
    pub(crate) error: Option<Value>,
}

/// What it says.
#[derive(Debug, Deserialize)]
pub(crate) struct Watched {
    #[serde(default)]
    pub(crate) canceled: bool,
    #[serde(default)]
    pub(crate) events: Vec<Happened>,
}

/// A change.
#[derive(Debug, Deserialize)]
pub(crate) struct Happened {
    /// `DELETE`, or nothing for a write.
    #[serde(default, rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) kv: Pair,
}

/// One key, or all that begin with it.
pub(crate) fn span(key: &str, whole_prefix: bool) -> Value {
    let mut span = json!({ "key": encode(key) });
    if whole_prefix {
        // The prefix ends in '/', so this is the first key after all of them.
        let mut end = key.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        span["range_end"] = encode(end).into();
    }
    span
}

/// A read of them.
pub(crate) fn range(key: &str, whole_prefix: bool, keys_only: bool) -> Value {
    let mut range = span(key, whole_prefix);
    range["keys_only"] = keys_only.into();
    range
}

/// "The key is at this revision"; 0: it does not exist.
pub(crate) fn at(key: &str, revision: u64) -> Value {
    json!({ "key": encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string() })
}

/// "The key has this value". A revision alone does not say so of an etcd that went back and was written to again.
pub(crate) fn holds(key: &str, value: &[u8]) -> Value {
    json!({ "key": encode(key), "target": "VALUE", "result": "EQUAL", "value": encode(value) })
}

pub(crate) fn put(key: &str, value: &[u8]) -> Value {
    json!({ "request_put": { "key": encode(key), "value": encode(value) } })
}

/// Removes all keys that begin with it.
pub(crate) fn remove(prefix: &str) -> Value {
    json!({ "request_delete_range": span(prefix, true) })
}

pub(crate) fn get(range: &Value) -> Value {
    json!({ "request_range": range })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_etcd_writes_them() {
        let text = r#"{"header":{"cluster_id":"324952591200643719","member_id":"3319814642761637952","revision":"2","raft_term":"2"},
            "responses":[{"response_range":{"header":{"revision":"2"},"kvs":[{"key":"aw==","create_revision":"2","mod_revision":"2",
            "version":"1","value":"djE="}],"count":"1"}}]}"#;
        let txn: Txn = serde_json::from_str(text).unwrap();
        assert!(!txn.succeeded);
        let ranges = txn.ranges();
        let pair = &ranges[0].kvs[0];
        assert_eq!((pair.key.as_slice(), pair.mod_revision, pair.value.as_slice()), (&b"k"[..], 2, &b"v1"[..]));
        let line: Line = serde_json::from_str(r#"{"result":{"header":{"revision":"2"},"created":true}}"#).unwrap();
        assert!(line.result.unwrap().events.is_empty());
        let empty: Range = serde_json::from_str("{}").unwrap();
        assert!(empty.kvs.is_empty());
    }

    #[test]
    fn a_prefix_ends_before_its_neighbours() {
        assert_eq!(span("/m/c/", true), json!({ "key": encode("/m/c/"), "range_end": encode("/m/c0") }));
        assert_eq!(range("/m/c/", false, true), json!({ "key": encode("/m/c/"), "keys_only": true }));
    }
}
