//! What differs between the ways in which buckets are spoken to: how a request is signed, what answers mean, how pages of names and objects of
//! several parts are asked for. All else is the same for each, and stands in `mod.rs` and `http.rs`.

use super::Inner;
use super::answers::Page;
use super::http::{Answer, Ask};
use crate::objects::{Key, ObjectError};
use mainstay_model::bucket::Address;
use ureq::http::HeaderMap;

/// Names with values: of headers, or of a query, sorted by name then.
pub(super) type Pairs = Vec<(&'static str, String)>;

/// A request as it goes out, without its method and body.
pub(super) struct Letter {
    pub(super) uri: String,
    pub(super) headers: Pairs,
}

/// One way of speaking.
pub(super) trait Dialect: Send + Sync {
    /// Addresses a request and signs it, with keys that are read anew for each.
    fn signed(&self, address: &Address, ask: &Ask<'_>) -> Result<Letter, ObjectError>;
    /// The code that says why not; empty if the answer names none.
    fn code(&self, headers: &HeaderMap, body: &[u8]) -> String;
    /// May a later try better this answer?
    fn again(&self, answer: &Answer) -> bool;
    /// An answer that says no, as an error that tells what to do.
    fn refusal(&self, answer: &Answer, says: String) -> ObjectError;

    /// The header that keeps the mark of a write with the object.
    fn mark(&self) -> &'static str;
    /// What a write of a whole object needs besides.
    fn whole(&self) -> Pairs {
        Vec::new()
    }
    /// Does it say in its own words that the object is not there?
    fn says_missing(&self, answer: &Answer) -> bool;
    /// Does it say that one of this name is there already?
    fn says_exists(&self, answer: &Answer) -> bool;
    /// Does it say that it keeps the object by a rule of its own, whoever asks?
    fn says_kept(&self, _answer: &Answer) -> bool {
        false
    }
    /// Does it know nothing any more of the parts that were to be joined?
    fn says_gone(&self, answer: &Answer) -> bool;

    /// How a page of names is asked for.
    fn listing(&self, prefix: String, next: Option<&str>, most: usize) -> Pairs;
    /// Reads a page; names lose `prefix`. `None`: this is no whole page.
    fn page(&self, body: &[u8], prefix: &str) -> Option<Page>;

    /// An object has so many parts at most.
    fn parts_max(&self) -> usize;
    /// Begins an object of several parts: what they have in common.
    fn begin(&self, bucket: &Inner, key: &Key, mark: &str) -> Result<String, ObjectError>;
    /// Writes one: by what the joining request names it.
    fn part(&self, bucket: &Inner, key: &Key, part: Part<'_>) -> Result<String, ObjectError>;
    /// Joins them, under this condition.
    fn join(&self, bucket: &Inner, key: &Key, parts: &Parts<'_>, condition: Pairs) -> Result<Answer, ObjectError>;
    /// Locks an object for as long as one that is written now.
    fn relock(&self, _bucket: &Inner, _key: &Key) -> Result<(), ObjectError> {
        Ok(())
    }
    /// What was begun is not wanted any more.
    fn give_up(&self, bucket: &Inner, key: &Key, id: &str);
}

/// A part.
pub(super) struct Part<'a> {
    pub(super) id: &'a str,
    /// From one on.
    pub(super) number: usize,
    pub(super) body: &'a [u8],
}

/// All parts of an object.
pub(super) struct Parts<'a> {
    pub(super) id: &'a str,
    pub(super) mark: &'a str,
    pub(super) tags: &'a [String],
}

/// A query, as addresses carry it.
pub(super) fn query(pairs: &Pairs) -> String {
    pairs.iter().map(|(name, value)| format!("{name}={}", encoded(value, false))).collect::<Vec<_>>().join("&")
}

/// A name or value, as paths and queries carry it.
pub(super) fn encoded(text: &str, slash: bool) -> String {
    let mut into = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') || (slash && byte == b'/') {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
    into
}

/// The time of a request, in the form that its signature wants.
pub(super) fn now(form: &str) -> String {
    later(0, form)
}

/// So many milliseconds later.
pub(super) fn later(by: u64, form: &str) -> String {
    let millis = i64::try_from(mainstay_ports::clock::wall_now_ms().saturating_add(by)).unwrap_or(0);
    jiff::Timestamp::from_millisecond(millis).map(|at| at.strftime(form).to_string()).unwrap_or_default()
}
