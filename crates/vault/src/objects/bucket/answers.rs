//! What a bucket's server answers, as far as its dialects have it in common: elements, codes, and pages of names.

use super::super::{Entry, Key};

/// What stands between `<name>` and `</name>`, the first time.
pub(super) fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

/// The code of an error; empty if the answer names none.
pub(super) fn code(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let code = text.contains("<Error>").then(|| element(&text, "Code")).flatten();
    code.unwrap_or_default().trim().to_owned()
}

/// An error's code and message, for people; never longer than a line.
pub(super) fn reason(code: &str, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let message = element(&text, "Message").unwrap_or_default().trim().lines().next().unwrap_or_default();
    let message: String = message.chars().take(200).collect();
    match (code, message.as_str()) {
        ("", _) => text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(120).collect(),
        (_, "") => code.to_owned(),
        _ => format!("{code}: {message}"),
    }
}

/// One page of a listing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) entries: Vec<Entry>,
    /// How the next page is asked for; `None`: this was the last.
    pub(super) next: Option<String>,
}

impl Page {
    /// One more name, if it is one of ours: others may keep things in this bucket, too.
    pub(super) fn add(&mut self, name: &str, size: u64, prefix: &str) {
        if let Some(Ok(key)) = name.strip_prefix(prefix).map(Key::new) {
            self.entries.push(Entry { key, size });
        }
    }
}

/// The text of a listing whose outermost element is this one; `None`: it is another answer, or half of one.
pub(super) fn listing<'a>(body: &'a [u8], outermost: &str) -> Option<&'a str> {
    let text = std::str::from_utf8(body).ok()?;
    let whole = text.contains(&format!("<{outermost}")) && text.trim_end().ends_with(&format!("</{outermost}>"));
    whole.then_some(text)
}

pub(super) fn unescaped(text: &str) -> String {
    let pairs = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&amp;", "&"),
    ];
    pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_named_and_other_pages_are_not_taken_for_them() {
        let text = b"<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code><Message>It is not there.\nTime: now</Message></Error>";
        assert_eq!(
            (code(text).as_str(), reason(&code(text), text).as_str()),
            ("NoSuchKey", "NoSuchKey: It is not there.")
        );
        assert_eq!(code(b"<html><Code>NoSuchKey</Code></html>"), "");
        assert_eq!(reason("", b"<h1>Bad\n gateway</h1>"), "<h1>Bad gateway</h1>");
        assert_eq!(reason("BlobNotFound", b""), "BlobNotFound");
    }
}
