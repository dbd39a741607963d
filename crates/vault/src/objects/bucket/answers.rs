//! What a bucket's server answers, as far as we ask: pages of names, and why something was refused.

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
pub(super) fn reason(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let message: String = element(&text, "Message").unwrap_or_default().trim().chars().take(200).collect();
    let code = code(body);
    match (code.as_str(), message.as_str()) {
        ("", _) => text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(120).collect(),
        (_, "") => code,
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

fn unescaped(text: &str) -> String {
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

/// Reads a page; names lose `prefix`. `None`: this is no whole page.
pub(super) fn page(body: &[u8], prefix: &str) -> Option<Page> {
    let text = std::str::from_utf8(body).ok()?;
    if !text.contains("<ListBucketResult") || !text.trim_end().ends_with("</ListBucketResult>") {
        return None;
    }
    let mut page = Page::default();
    for part in text.split("<Contents>").skip(1) {
        let (part, _) = part.split_once("</Contents>")?;
        let name = unescaped(element(part, "Key")?);
        let size = element(part, "Size")?.trim().parse().ok()?;
        // Others may keep things in this bucket, too: what is no name of ours is not ours.
        if let Some(Ok(key)) = name.strip_prefix(prefix).map(Key::new) {
            page.entries.push(Entry { key, size });
        }
    }
    if element(text, "IsTruncated")?.trim() == "true" {
        page.next = Some(unescaped(element(text, "NextContinuationToken")?));
    }
    Some(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read_and_half_of_one_is_none() {
        let text = "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"x\"><IsTruncated>true</IsTruncated><NextContinuationToken>a&amp;b</NextContinuationToken>\
                    <Contents><Key>p/log/one</Key><Size>7</Size></Contents><Contents><Key>p/.probe</Key><Size>1</Size></Contents></ListBucketResult>";
        let read = page(text.as_bytes(), "p/").unwrap();
        assert_eq!(read.next.as_deref(), Some("a&b"));
        assert_eq!(read.entries, [Entry { key: Key::new("log/one").unwrap(), size: 7 }]);
        for cut in 0..text.len() {
            assert_eq!(page(&text.as_bytes()[..cut], "p/"), None, "{cut}");
        }
        assert_eq!(page(b"<html>not found</html>", ""), None);
    }

    #[test]
    fn errors_are_named_and_other_pages_are_not_taken_for_them() {
        let text = b"<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code><Message>It is not there.</Message></Error>";
        assert_eq!((code(text).as_str(), reason(text).as_str()), ("NoSuchKey", "NoSuchKey: It is not there."));
        assert_eq!(code(b"<html><Code>NoSuchKey</Code></html>"), "");
        assert_eq!(reason(b"<h1>Bad\n gateway</h1>"), "<h1>Bad gateway</h1>");
    }
}
