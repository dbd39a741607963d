//! Listings of versions: every version of every name, and the markers that hide one.

use super::super::answers::{element, listing as whole, unescaped};
use super::super::dialect::Pairs;
use super::super::view::Version;
use crate::objects::Key;

/// Where the next page begins: a name, and the version of it that was the last one, if the page ended within a name.
pub(in super::super) type Marker = (String, Option<String>);

/// A version, or a marker that hides those before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Found {
    pub(in super::super) key: Key,
    /// When it was written, in microseconds since 1970.
    pub(in super::super) micros: i64,
    /// It is the newest of its name.
    pub(in super::super) latest: bool,
    /// `None`: a marker.
    pub(in super::super) version: Option<Version>,
}

/// One page.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Page {
    pub(in super::super) found: Vec<Found>,
    /// How the next page is asked for; `None`: this was the last.
    pub(in super::super) next: Option<Marker>,
}

/// How a page is asked for.
pub(in super::super) fn listing(prefix: String, next: Option<&Marker>) -> Pairs {
    let mut query = vec![("max-keys", "1000".to_owned()), ("prefix", prefix), ("versions", String::new())];
    if let Some((key, version)) = next {
        query.push(("key-marker", key.clone()));
        query.extend(version.clone().map(|version| ("version-id-marker", version)));
    }
    query.sort();
    query
}

/// Reads a page; names lose `prefix`. `None`: this is no whole page.
pub(in super::super) fn page(body: &[u8], prefix: &str) -> Option<Page> {
    let text = whole(body, "ListVersionsResult")?;
    let mut page = Page::default();
    let mut rest = text;
    // Versions and markers stand mixed, and their order counts.
    while let Some((at, kind)) = first(rest) {
        let (part, after) = rest.get(at..)?.split_once(&format!("</{kind}>"))?;
        rest = after;
        let name = unescaped(element(part, "Key")?);
        let written: jiff::Timestamp = element(part, "LastModified")?.trim().parse().ok()?;
        let latest = element(part, "IsLatest").is_some_and(|latest| latest.trim() == "true");
        let version = if kind == "Version" {
            let (id, size) = (unescaped(element(part, "VersionId")?), element(part, "Size")?.trim().parse().ok()?);
            Some(Version { id, size })
        } else {
            None
        };
        // Others may keep things in this bucket, too.
        if let Some(Ok(key)) = name.strip_prefix(prefix).map(Key::new) {
            page.found.push(Found { key, micros: written.as_microsecond(), latest, version });
        }
    }
    if element(text, "IsTruncated")?.trim() == "true" {
        let version = element(text, "NextVersionIdMarker").map(unescaped).filter(|version| !version.is_empty());
        page.next = Some((unescaped(element(text, "NextKeyMarker")?), version));
    }
    Some(page)
}

/// Where the next version or marker begins. They follow each other, so that it is rarely searched.
fn first(text: &str) -> Option<(usize, &'static str)> {
    let kinds = [("<Version>", "Version"), ("<DeleteMarker>", "DeleteMarker")];
    let rest = text.trim_start();
    let next = kinds.iter().find(|(tag, _)| rest.starts_with(tag));
    next.map(|(_, kind)| (text.len() - rest.len(), *kind))
        .or_else(|| kinds.iter().filter_map(|(tag, kind)| Some((text.find(tag)?, *kind))).min())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "<?xml version=\"1.0\"?><ListVersionsResult xmlns=\"x\"><Name>vault</Name><Prefix>p/</Prefix><KeyMarker></KeyMarker>\
        <VersionIdMarker></VersionIdMarker><NextKeyMarker>p/b&amp;c</NextKeyMarker><NextVersionIdMarker>v&lt;3</NextVersionIdMarker>\
        <MaxKeys>1000</MaxKeys><IsTruncated>true</IsTruncated>\
        <Version><Key>p/a</Key><VersionId>v2</VersionId><IsLatest>false</IsLatest><LastModified>2026-11-28T10:00:01.500Z</LastModified><Size>7</Size></Version>\
        <DeleteMarker><Key>p/a</Key><VersionId>v1</VersionId><IsLatest>true</IsLatest><LastModified>2026-11-28T10:00:01Z</LastModified></DeleteMarker>\
        <Version><Key>p/.mainstay-probe</Key><VersionId>null</VersionId><IsLatest>true</IsLatest><LastModified>2026-11-28T10:00:00Z</LastModified><Size>1</Size></Version>\
        </ListVersionsResult>";

    #[test]
    fn pages_of_versions_are_read_in_their_order_and_half_of_one_is_none() {
        let read = page(TEXT.as_bytes(), "p/").unwrap();
        let key = Key::new("a").unwrap();
        let second = 1_795_860_001_000_000;
        let version = Some(Version { id: "v2".into(), size: 7 });
        assert_eq!(
            read.found,
            [
                Found { key: key.clone(), micros: second + 500_000, latest: false, version },
                Found { key, micros: second, latest: true, version: None },
            ]
        );
        assert_eq!(read.next, Some(("p/b&c".into(), Some("v<3".into()))));
        for cut in 0..TEXT.len() {
            assert_eq!(page(&TEXT.as_bytes()[..cut], "p/"), None, "{cut}");
        }
        // Whatever is not as it must be is no page, and no shorter one.
        for (from, to) in [
            ("<IsTruncated>true</IsTruncated>", ""),
            ("<NextKeyMarker>p/b&amp;c</NextKeyMarker>", ""),
            ("<Size>7</Size>", ""),
            ("<Size>7</Size>", "<Size>-7</Size>"),
            ("<VersionId>v2</VersionId>", ""),
            ("2026-11-28T10:00:01Z", "yesterday"),
            ("ListVersionsResult", "ListBucketResult"),
        ] {
            assert_eq!(page(TEXT.replace(from, to).as_bytes(), "p/"), None, "{from} {to}");
        }
        // The last page; one that ended at a name's end.
        let last = page(TEXT.replace("<IsTruncated>true", "<IsTruncated>false").as_bytes(), "p/").unwrap();
        assert_eq!(last.next, None);
        let without = TEXT.replace("<NextVersionIdMarker>v&lt;3</NextVersionIdMarker>", "");
        assert_eq!(page(without.as_bytes(), "p/").unwrap().next, Some(("p/b&c".into(), None)));
        let empty = "<ListVersionsResult><IsTruncated>false</IsTruncated></ListVersionsResult>";
        assert_eq!(page(empty.as_bytes(), "p/"), Some(Page::default()));
    }

    #[test]
    fn a_page_is_asked_for_from_where_the_last_one_ended() {
        let of = |next: Option<Marker>| {
            listing("p/log/".into(), next.as_ref())
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(of(None), ["max-keys=1000", "prefix=p/log/", "versions="]);
        let within = of(Some(("p/log/a".into(), Some("v1".into()))));
        assert_eq!(
            within,
            ["key-marker=p/log/a", "max-keys=1000", "prefix=p/log/", "version-id-marker=v1", "versions="]
        );
        assert_eq!(of(Some(("p/log/a".into(), None)))[0], "key-marker=p/log/a");
    }
}
