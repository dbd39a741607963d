//! S3, and what speaks as it does.

mod sign;
pub(super) mod versions;

use super::answers::{Page, code, element, listing, unescaped};
use super::credentials::Secrets;
use super::dialect::{Dialect, Letter, Pairs, Part, Parts, encoded, later, now, query};
use super::http::{Answer, Ask, TRIES};
use super::{Inner, any};
use crate::hex;
use crate::objects::{Key, ObjectError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_model::bucket::{Address, Lock};
use sign::{Signed, sum};
use ureq::http::HeaderMap;

/// S3 in one region.
pub(super) struct S3 {
    pub(super) region: String,
    pub(super) path_style: bool,
    pub(super) lock: Option<Lock>,
}

/// The kind of sum that each write of what is to be locked carries, and what it is called elsewhere in the protocol. The signature has one, too, which
/// does not count there. Other writes go without: not every store bears headers that it does not know.
const SUM_KIND: &str = "SHA256";
const SUM: &str = "x-amz-checksum-sha256";
/// What keeps an object from being removed.
pub(super) const LOCKED_UNTIL: &str = "x-amz-object-lock-retain-until-date";
pub(super) const LOCK_MODE: &str = "x-amz-object-lock-mode";
pub(super) const COMPLIANCE: &str = "COMPLIANCE";

impl S3 {
    /// What locks an object that is written now; by this host's clock, which the store compares with its own in each request.
    fn lock(&self) -> Pairs {
        let lasts = self.lasts();
        lasts.map_or_else(Vec::new, |(mode, until)| vec![(LOCK_MODE, mode.to_owned()), (LOCKED_UNTIL, until)])
    }

    /// How, and until when, what is written now is locked.
    fn lasts(&self) -> Option<(&'static str, String)> {
        let lock = self.lock?;
        let until = later(u64::from(lock.days?) * 86_400_000, "%Y-%m-%dT%H:%M:%SZ");
        Some((if lock.compliance { COMPLIANCE } else { "GOVERNANCE" }, until))
    }
}

/// Who signs.
#[derive(Clone, PartialEq, Eq)]
struct Credentials {
    id: String,
    secret: String,
    token: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.id)
    }
}

fn credentials(address: &Address) -> Result<Credentials, ObjectError> {
    let secrets = Secrets::of(address)?;
    let needed = |name| {
        secrets.value(name).ok_or_else(|| secrets.missing(&["aws_access_key_id", "aws_secret_access_key"], None))
    };
    Ok(Credentials {
        id: needed("aws_access_key_id")?,
        secret: needed("aws_secret_access_key")?,
        token: secrets.value("aws_session_token"),
    })
}

impl Dialect for S3 {
    fn signed(&self, address: &Address, ask: &Ask<'_>) -> Result<Letter, ObjectError> {
        let who = credentials(address)?;
        let (host, time, body) = (address.host(), now("%Y%m%dT%H%M%SZ"), sum(ask.body));
        let name = encoded(&ask.name, true);
        let path = match (self.path_style, ask.name.is_empty()) {
            (true, true) => format!("/{}", address.bucket),
            (true, false) => format!("/{}/{name}", address.bucket),
            (false, _) => format!("/{name}"),
        };
        let query = query(&ask.query);
        let mut headers =
            vec![("host", host.clone()), ("x-amz-content-sha256", body.clone()), ("x-amz-date", time.clone())];
        headers.extend(who.token.clone().map(|token| ("x-amz-security-token", token)));
        headers.extend(ask.headers.iter().cloned());
        // Whole objects, parts and locks.
        if ask.method == "PUT" && self.lock.is_some() {
            let own = STANDARD.encode(hex::decode(&body).unwrap_or_default());
            headers.extend([(SUM, own), ("x-amz-sdk-checksum-algorithm", SUM_KIND.to_owned())]);
        }
        headers.sort();
        let signed = Signed {
            method: ask.method,
            path: &path,
            query: &query,
            headers: &headers,
            body: &body,
            time: &time,
            region: &self.region,
        };
        let authorization = signed.authorization(&who);
        // The host stands in the address already.
        headers.retain(|(name, _)| *name != "host");
        headers.push(("authorization", authorization));
        let question = if query.is_empty() { "" } else { "?" };
        Ok(Letter { uri: format!("{}://{host}{path}{question}{query}", address.scheme()), headers })
    }

    fn code(&self, _: &HeaderMap, body: &[u8]) -> String {
        code(body)
    }

    fn again(&self, answer: &Answer) -> bool {
        let code = answer.code.as_str();
        match answer.status {
            408 | 429 => true,
            // A store that has no room says so at once.
            501 | 507 => false,
            500.. => code != "XMinioStorageFull",
            400 => matches!(code, "RequestTimeout" | "XAmzContentSHA256Mismatch" | "BadDigest" | "IncompleteBody"),
            409 => matches!(code, "ConditionalRequestConflict" | "OperationAborted"),
            // A failure that is told after the answer began.
            200 => matches!(code, "InternalError" | "SlowDown" | "ServiceUnavailable"),
            _ => false,
        }
    }

    fn refusal(&self, answer: &Answer, says: String) -> ObjectError {
        match (answer.status, answer.code.as_str()) {
            (507, _) | (_, "XMinioStorageFull" | "QuotaExceeded" | "InsufficientStorage") => ObjectError::Full(says),
            (_, "RequestTimeTooSkewed") => ObjectError::Refused(format!("{says}; set this host's clock")),
            (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken") => {
                ObjectError::Refused(format!("{says}; look at the keys to the bucket"))
            }
            (301 | 307 | 308, _) => {
                let region = answer.header("x-amz-bucket-region").unwrap_or("another");
                ObjectError::Refused(format!("{says}; the bucket is in the region {region}: name it (&region=…)"))
            }
            (401 | 403, _) if self.lock.is_some() => ObjectError::Refused(format!(
                "{says}; these keys may not do that here (to write with lock= they need the right to set an object's retention, too)"
            )),
            (401 | 403, _) => ObjectError::Refused(format!("{says}; these keys may not do that here")),
            (400, "InvalidRequest" | "InvalidArgument") | (501, _) if self.lock.is_some() => {
                ObjectError::Refused(format!(
                    "{says}; the address asks for locked objects (lock=), and this bucket may have no object lock: switch it on there, or take lock= out of the address"
                ))
            }
            (_, "NoSuchBucket") => ObjectError::Unreachable(format!("{says}; make the bucket, or look at its name")),
            // Something in between that knows nothing of the bucket.
            (404, _) => ObjectError::Unreachable(format!("{says}; is this the endpoint of a store of objects?")),
            _ => ObjectError::Refused(says),
        }
    }

    fn mark(&self) -> &'static str {
        "x-amz-meta-mainstay-write"
    }
    fn whole(&self) -> Pairs {
        self.lock()
    }
    fn says_missing(&self, answer: &Answer) -> bool {
        answer.status == 404 && answer.code == "NoSuchKey"
    }
    fn says_exists(&self, answer: &Answer) -> bool {
        answer.status == 412
    }
    fn says_gone(&self, answer: &Answer) -> bool {
        answer.status == 404 && answer.code == "NoSuchUpload"
    }

    fn listing(&self, prefix: String, next: Option<&str>, most: usize) -> Pairs {
        let mut query = vec![("list-type", "2".to_owned()), ("max-keys", most.to_string()), ("prefix", prefix)];
        query.extend(next.map(|token| ("continuation-token", token.to_owned())));
        query.sort();
        query
    }

    fn page(&self, body: &[u8], prefix: &str) -> Option<Page> {
        let text = listing(body, "ListBucketResult")?;
        let mut page = Page::default();
        for part in text.split("<Contents>").skip(1) {
            let (part, _) = part.split_once("</Contents>")?;
            let size = element(part, "Size")?.trim().parse().ok()?;
            page.add(&unescaped(element(part, "Key")?), size, prefix);
        }
        if element(text, "IsTruncated")?.trim() == "true" {
            page.next = Some(unescaped(element(text, "NextContinuationToken")?));
        }
        Some(page)
    }

    fn parts_max(&self) -> usize {
        10_000
    }

    fn begin(&self, bucket: &Inner, key: &Key, mark: &str) -> Result<String, ObjectError> {
        let mut headers = self.lock();
        headers.push((self.mark(), mark.to_owned()));
        headers.extend(self.lock.map(|_| ("x-amz-checksum-algorithm", SUM_KIND.to_owned())));
        let ask = Ask { query: vec![("uploads", String::new())], headers, ..bucket.ask("POST", key) };
        let id = |answer: &Answer| element(&String::from_utf8_lossy(&answer.body), "UploadId").map(str::to_owned);
        let answer = bucket.http.ask(&ask, TRIES, |answer| id(answer).is_some())?;
        let id = if answer.good() { id(&answer) } else { None };
        id.ok_or_else(|| bucket.http.refusal(&answer))
    }

    fn part(&self, bucket: &Inner, key: &Key, part: Part<'_>) -> Result<String, ObjectError> {
        let query = vec![("partNumber", part.number.to_string()), ("uploadId", part.id.to_owned())];
        let ask = Ask { query, body: part.body, ..bucket.ask("PUT", key) };
        let answer = bucket.http.ask(&ask, TRIES, |answer| answer.header("etag").is_some())?;
        let tag = answer.header("etag").filter(|_| answer.good()).ok_or_else(|| bucket.http.refusal(&answer))?;
        // Who keeps the sum of each part wants to hear it again; others may not know what it is.
        let sum = answer
            .header(SUM)
            .filter(|_| self.lock.is_some())
            .map(|sum| format!("<ChecksumSHA256>{}</ChecksumSHA256>", escaped(sum)));
        Ok(format!("<ETag>{}</ETag>{}", escaped(tag), sum.unwrap_or_default()))
    }

    fn join(&self, bucket: &Inner, key: &Key, parts: &Parts<'_>, condition: Pairs) -> Result<Answer, ObjectError> {
        let tags = parts.tags.iter().enumerate();
        let tags: String =
            tags.map(|(at, tag)| format!("<Part><PartNumber>{}</PartNumber>{tag}</Part>", at + 1)).collect();
        let body = format!("<CompleteMultipartUpload>{tags}</CompleteMultipartUpload>");
        let query = vec![("uploadId", parts.id.to_owned())];
        let ask = Ask { query, headers: condition, body: body.as_bytes(), ..bucket.ask("POST", key) };
        let whole = |answer: &Answer| String::from_utf8_lossy(&answer.body).contains("<CompleteMultipartUploadResult");
        bucket.http.ask(&ask, TRIES, whole)
    }

    fn relock(&self, bucket: &Inner, key: &Key) -> Result<(), ObjectError> {
        let Some((mode, until)) = self.lasts() else { return Ok(()) };
        let body = format!("<Retention><Mode>{mode}</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>");
        let query = vec![("retention", String::new())];
        let ask = Ask { query, body: body.as_bytes(), ..bucket.ask("PUT", key) };
        let answer = bucket.http.ask(&ask, TRIES, any)?;
        if answer.good() { Ok(()) } else { Err(bucket.http.refusal(&answer)) }
    }

    fn give_up(&self, bucket: &Inner, key: &Key, id: &str) {
        // What is left of it is not visible, and the bucket's own rule for unfinished parts removes it if this does not.
        let ask = Ask { query: vec![("uploadId", id.to_owned())], ..bucket.ask("DELETE", key) };
        let _ = bucket.http.ask(&ask, 1, any);
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Entry;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn pages_are_read_and_half_of_one_is_none() {
        let s3 = S3 { region: "x".into(), path_style: true, lock: None };
        let text = "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"x\"><IsTruncated>true</IsTruncated><NextContinuationToken>a&amp;b</NextContinuationToken>\
                    <Contents><Key>p/log/one</Key><Size>7</Size></Contents><Contents><Key>p/.probe</Key><Size>1</Size></Contents></ListBucketResult>";
        let read = s3.page(text.as_bytes(), "p/").unwrap();
        assert_eq!(read.next.as_deref(), Some("a&b"));
        assert_eq!(read.entries, [Entry { key: Key::new("log/one").unwrap(), size: 7 }]);
        for cut in 0..text.len() {
            assert_eq!(s3.page(&text.as_bytes()[..cut], "p/"), None, "{cut}");
        }
        assert_eq!(s3.page(b"<html>not found</html>", ""), None);
    }

    #[test]
    fn writes_carry_their_sum_and_the_lock_that_the_address_asks_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        std::fs::write(&file, "aws_access_key_id = id\naws_secret_access_key=s3cret\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let address = Address::parse(&format!("s3://vault?credentials={}", file.display())).unwrap();
        let of = |lock: Option<Lock>| S3 { region: "x".into(), path_style: true, lock };
        assert_eq!(of(None).whole(), Vec::new());
        let locking = of(Some(Lock { days: Some(30), compliance: false }));
        let [(_, mode), (_, until)] = &locking.whole()[..] else { panic!() };
        let until: jiff::Timestamp = until.parse().unwrap();
        let left = until.as_second() - i64::try_from(mainstay_ports::clock::wall_now_ms() / 1000).unwrap();
        assert!(mode == "GOVERNANCE" && (30 * 86_400 - 60..=30 * 86_400 + 1).contains(&left), "{mode} {left}");
        assert_eq!(of(Some(Lock { days: Some(30), compliance: true })).whole()[0].1, "COMPLIANCE");
        let headers = locking.whole();
        let put = Ask { method: "PUT", name: "a".into(), headers, body: b"abc", ..Ask::default() };
        let letter = locking.signed(&address, &put).unwrap();
        let header = |name: &str| letter.headers.iter().find(|(other, _)| *other == name).unwrap().1.clone();
        assert_eq!(header(SUM), "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
        for name in [SUM, LOCKED_UNTIL, LOCK_MODE, "x-amz-sdk-checksum-algorithm"] {
            assert!(header("authorization").contains(&format!(";{name}")), "{name} is not signed");
        }
        let get = locking.signed(&address, &Ask { method: "GET", name: "a".into(), ..Ask::default() }).unwrap();
        assert!(!get.headers.iter().any(|(name, _)| *name == SUM));
        let put = Ask { method: "PUT", name: "a".into(), body: b"abc", ..Ask::default() };
        let of_bucket = of(Some(Lock { days: None, compliance: false }));
        assert!(of_bucket.whole().is_empty());
        for (s3, sums) in [(of_bucket, true), (of(None), false)] {
            let letter = s3.signed(&address, &put).unwrap();
            assert_eq!(letter.headers.iter().any(|(name, _)| *name == SUM), sums);
        }
    }

    #[test]
    fn a_file_of_keys_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        std::fs::write(&file, "[default]\naws_access_key_id = id\naws_secret_access_key=s3cret\n").unwrap();
        let address = Address::parse(&format!("s3://vault?credentials={}", file.display())).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = credentials(&address).unwrap_err().to_string();
        assert!(error.contains("chmod 600") && !error.contains("s3cret"), "{error}");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let read = credentials(&address).unwrap();
        assert_eq!((read.id.as_str(), read.secret.as_str(), read.token.is_none()), ("id", "s3cret", true));
        assert!(!format!("{read:?}").contains("s3cret"));
        std::fs::write(&file, "aws_access_key_id = id\n").unwrap();
        assert!(credentials(&address).unwrap_err().to_string().contains("aws_secret_access_key"));
    }
}
