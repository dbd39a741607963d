//! The signature of a request to Azure's Blob Storage by an account's key ("Shared Key" of the versions since 2015-02-21).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac::{HMAC_SHA256, Key, sign};

/// Headers whose values are signed without their names, in this order, behind the body's length and before the condition.
const BEFORE: [&str; 6] = ["content-md5", "content-type", "date", "if-modified-since", "if-match", "if-none-match"];
const AFTER: [&str; 2] = ["if-unmodified-since", "range"];

/// A request, as it is signed.
pub(super) struct Signed<'a> {
    pub(super) method: &'a str,
    pub(super) account: &'a str,
    /// As it stands in the address, encoded; with the account in front where that stands in the path.
    pub(super) path: &'a str,
    /// Not encoded, sorted by name; names in small letters.
    pub(super) query: &'a [(&'static str, String)],
    /// Names in small letters, sorted.
    pub(super) headers: &'a [(&'static str, String)],
    /// The body's.
    pub(super) length: usize,
}

impl Signed<'_> {
    /// What is signed.
    pub(super) fn text(&self) -> String {
        let value = |name: &&str| {
            let found = self.headers.iter().find(|(header, _)| header == name);
            found.map_or(String::new(), |(_, value)| value.trim().to_owned())
        };
        let length = if self.length == 0 { String::new() } else { self.length.to_string() };
        // Behind the method: the content's encoding and language, which we never name.
        let mut lines = vec![self.method.to_owned(), String::new(), String::new(), length];
        lines.extend(BEFORE.iter().chain(&AFTER).map(value));
        let named = self.headers.iter().filter(|(name, _)| name.starts_with("x-ms-"));
        lines.extend(named.map(|(name, value)| format!("{name}:{}", value.trim())));
        lines.push(format!("/{}{}", self.account, self.path));
        lines.extend(self.query.iter().map(|(name, value)| format!("{name}:{value}")));
        lines.join("\n")
    }

    /// The header `authorization`. `None`: the key is no base64.
    pub(super) fn authorization(&self, key: &str) -> Option<String> {
        let key = Key::new(HMAC_SHA256, &STANDARD.decode(key).ok()?);
        let signature = STANDARD.encode(sign(&key, self.text().as_bytes()));
        Some(format!("SharedKey {}:{signature}", self.account))
    }
}
