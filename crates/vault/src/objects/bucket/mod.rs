//! A bucket as a store: S3 and what speaks as it does (docs/adr/0033).
//!
//! An object is written by one request, or in parts that are joined by the last one; either with the condition that none of its name is
//! there. A store that does not keep that condition is noticed before the first write, and then looked at before each: the archive's owner and a
//! backup's random label are then what keeps two writers apart. A store may keep it for whole objects and not where parts are joined, which can
//! not be tried without an object: before that it is always looked as well. Each write carries a random mark: if its answer was lost, the mark tells
//! whether what is there now is ours.
//!
//! Absent: making buckets, keys and rights.

mod answers;
mod credentials;
mod http;
mod sign;

use super::{Committed, Entry, Key, ObjectError, Objects, Upload};
use crate::hex;
use answers::{element, page};
use http::{Answer, Ask, Http, TRIES};
use mainstay_model::bucket::Address;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// What is longer is written in parts of this size. Stores ask for at least five megabytes.
const PART: usize = 8 << 20;
/// No store takes more.
const PARTS_MAX: usize = 10_000;
/// Pages of a listing: far more objects than a repository has.
const PAGES_MAX: usize = 100_000;
/// The mark of a write.
const MARK: &str = "x-amz-meta-mainstay-write";
/// No name of an object: with it is tried whether the store keeps conditions.
const PROBE: &str = ".mainstay-probe";

/// A bucket, or a part of one.
#[derive(Clone)]
pub struct Bucket {
    inner: Arc<Inner>,
}

struct Inner {
    http: Http,
    /// Does it keep the condition? `None`: not tried yet.
    keeps: Mutex<Option<bool>>,
}

fn any(_: &Answer) -> bool {
    true
}

impl Bucket {
    /// From its address (`docs/backup.md`). Keys must be at hand; the bucket is not asked yet.
    pub fn open(place: &Path) -> Result<Bucket, ObjectError> {
        let address = Address::parse(&place.to_string_lossy()).map_err(ObjectError::Refused)?;
        credentials::credentials(&address)?;
        Ok(Bucket { inner: Arc::new(Inner { http: Http::new(address)?, keeps: Mutex::new(None) }) })
    }
}

impl Inner {
    fn name(&self, key: &str) -> String {
        format!("{}{key}", self.http.address.prefix)
    }

    fn ask(&self, method: &'static str, key: &Key) -> Ask<'static> {
        Ask { method, name: self.name(key.as_str()), ..Ask::default() }
    }

    fn page(&self, prefix: &str, next: Option<&str>, most: usize) -> Result<answers::Page, ObjectError> {
        let mut query =
            vec![("list-type", "2".to_owned()), ("max-keys", most.to_string()), ("prefix", self.name(prefix))];
        query.extend(next.map(|token| ("continuation-token", token.to_owned())));
        query.sort();
        let ask = Ask { method: "GET", query, ..Ask::default() };
        let ours = &self.http.address.prefix;
        let answer = self.http.ask(&ask, TRIES, |answer| page(&answer.body, ours).is_some())?;
        let read = if answer.good() { page(&answer.body, ours) } else { None };
        read.ok_or_else(|| self.http.refusal(&answer))
    }

    /// After an answer that it is not there: is that the store's own word? `HEAD` tells no reason, and whatever stands in between
    /// may know nothing of it.
    fn missing(&self, key: &Key, answer: &Answer) -> ObjectError {
        let missing = ObjectError::Missing(key.to_string());
        if answer.status != 404 {
            return self.http.refusal(answer);
        }
        if answer.code() == "NoSuchKey" {
            return missing;
        }
        match self.page(key.as_str(), None, 2) {
            Err(error) => error,
            Ok(page) if page.entries.iter().any(|entry| entry.key == *key) => ObjectError::Unreachable(format!(
                "{}: {key} is listed, and was said not to be there",
                self.http.address.shown()
            )),
            Ok(_) => missing,
        }
    }

    fn head(&self, key: &Key) -> Result<Answer, ObjectError> {
        let answer = self.http.ask(&self.ask("HEAD", key), TRIES, any)?;
        if answer.good() { Ok(answer) } else { Err(self.missing(key, &answer)) }
    }

    /// Is what is there what we wrote under this mark?
    fn ours(&self, key: &Key, mark: &str) -> Result<bool, ObjectError> {
        match self.head(key) {
            Ok(there) => Ok(there.header(MARK) == Some(mark)),
            Err(ObjectError::Missing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Does the store keep the condition that nothing is overwritten? Tried once, on a name that is no object's.
    fn keeps(&self) -> Result<bool, ObjectError> {
        let mut known = self.keeps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keeps) = *known {
            return Ok(keeps);
        }
        // The first may make it; the second must be refused.
        for _ in 0..2 {
            let headers = vec![("if-none-match", "*".to_owned())];
            let ask = Ask { method: "PUT", name: self.name(PROBE), headers, body: b"probe", ..Ask::default() };
            let answer = self.http.ask(&ask, TRIES, any)?;
            match answer.status {
                412 => {
                    *known = Some(true);
                    return Ok(true);
                }
                501 => break,
                _ if answer.good() => {}
                _ => return Err(self.http.refusal(&answer)),
            }
        }
        tracing::warn!(
            place = self.http.address.shown(),
            "the store of objects keeps no condition: it is looked before each write instead"
        );
        *known = Some(false);
        Ok(false)
    }

    /// The condition that a write carries; `None`: it is there already, by a look.
    fn condition(&self, key: &Key) -> Result<Option<Vec<(&'static str, String)>>, ObjectError> {
        if self.keeps()? {
            return Ok(Some(vec![("if-none-match", "*".to_owned())]));
        }
        Ok(if self.there(key)? { None } else { Some(Vec::new()) })
    }

    fn there(&self, key: &Key) -> Result<bool, ObjectError> {
        match self.head(key) {
            Ok(_) => Ok(true),
            Err(ObjectError::Missing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What a last request came to. One that was made again may have met its own work.
    fn outcome(&self, key: &Key, mark: &str, answer: &Answer) -> Result<Committed, ObjectError> {
        if answer.good() {
            return Ok(Committed::Created);
        }
        let done = answer.status == 412 || (answer.status == 404 && answer.code() == "NoSuchUpload");
        if !done {
            return Err(self.http.refusal(answer));
        }
        if answer.tries > 1 && self.ours(key, mark)? {
            return Ok(Committed::Created);
        }
        if answer.status == 412 { Ok(Committed::Exists) } else { Err(self.http.refusal(answer)) }
    }
}

/// An object that is being written.
struct BucketUpload {
    bucket: Arc<Inner>,
    key: Key,
    mark: String,
    buffer: Vec<u8>,
    /// What joins the parts, once there are any.
    id: Option<String>,
    parts: Vec<String>,
}

impl BucketUpload {
    fn begin(&mut self) -> Result<String, ObjectError> {
        if let Some(id) = &self.id {
            return Ok(id.clone());
        }
        let ask = Ask {
            query: vec![("uploads", String::new())],
            headers: vec![(MARK, self.mark.clone())],
            ..self.bucket.ask("POST", &self.key)
        };
        let id = |answer: &Answer| element(&String::from_utf8_lossy(&answer.body), "UploadId").map(str::to_owned);
        let answer = self.bucket.http.ask(&ask, TRIES, |answer| id(answer).is_some())?;
        let id = if answer.good() { id(&answer) } else { None };
        let id = id.ok_or_else(|| self.bucket.http.refusal(&answer))?;
        self.id = Some(id.clone());
        Ok(id)
    }

    fn part(&mut self, length: usize) -> Result<(), ObjectError> {
        let id = self.begin()?;
        let number = self.parts.len() + 1;
        if number > PARTS_MAX {
            return Err(ObjectError::Refused(format!("{}: an object of more than {PARTS_MAX} parts", self.key)));
        }
        let query = vec![("partNumber", number.to_string()), ("uploadId", id)];
        let body = self.buffer.get(..length).unwrap_or_default();
        let ask = Ask { query, body, ..self.bucket.ask("PUT", &self.key) };
        let answer = self.bucket.http.ask(&ask, TRIES, |answer| answer.header("etag").is_some())?;
        let tag = answer.header("etag").filter(|_| answer.good());
        self.parts.push(tag.ok_or_else(|| self.bucket.http.refusal(&answer))?.to_owned());
        self.buffer.drain(..length);
        Ok(())
    }

    fn join(&mut self) -> Result<Committed, ObjectError> {
        if !self.buffer.is_empty() {
            self.part(self.buffer.len())?;
        }
        let Some(id) = self.id.clone() else { return Ok(Committed::Exists) };
        let Some(headers) = self.bucket.condition(&self.key)? else { return Ok(Committed::Exists) };
        // With a condition it was not looked yet, and the store may not heed one here.
        if !headers.is_empty() && self.bucket.there(&self.key)? {
            return Ok(Committed::Exists);
        }
        let escaped = |tag: &String| tag.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
        let parts = self.parts.iter().enumerate();
        let parts: String = parts
            .map(|(at, tag)| format!("<Part><PartNumber>{}</PartNumber><ETag>{}</ETag></Part>", at + 1, escaped(tag)))
            .collect();
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        let ask =
            Ask { query: vec![("uploadId", id)], headers, body: body.as_bytes(), ..self.bucket.ask("POST", &self.key) };
        let whole = |answer: &Answer| String::from_utf8_lossy(&answer.body).contains("<CompleteMultipartUploadResult");
        let answer = self.bucket.http.ask(&ask, TRIES, whole)?;
        let outcome = self.bucket.outcome(&self.key, &self.mark, &answer)?;
        if outcome == Committed::Created {
            self.id = None;
        }
        Ok(outcome)
    }
}

impl Drop for BucketUpload {
    fn drop(&mut self) {
        // What is left of it is not visible, and the bucket's own rule for unfinished parts removes it if this does not.
        if let Some(id) = self.id.take() {
            let ask = Ask { query: vec![("uploadId", id)], ..self.bucket.ask("DELETE", &self.key) };
            let _ = self.bucket.http.ask(&ask, 1, any);
        }
    }
}

impl Upload for BucketUpload {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), ObjectError> {
        while !bytes.is_empty() {
            let (now, after) = bytes.split_at(bytes.len().min(PART - self.buffer.len().min(PART)));
            self.buffer.extend_from_slice(now);
            bytes = after;
            // One more byte is to come: an object of exactly one part is written whole.
            if self.buffer.len() >= PART && !bytes.is_empty() {
                self.part(PART)?;
            }
        }
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> Result<Committed, ObjectError> {
        if self.id.is_some() {
            return self.join();
        }
        let Some(mut headers) = self.bucket.condition(&self.key)? else { return Ok(Committed::Exists) };
        headers.push((MARK, self.mark.clone()));
        let ask = Ask { headers, body: &self.buffer, ..self.bucket.ask("PUT", &self.key) };
        let answer = self.bucket.http.ask(&ask, TRIES, any)?;
        self.bucket.outcome(&self.key, &self.mark, &answer)
    }
}

/// Is this the range that was asked for? A server may answer with all of it.
fn of_range(answer: &Answer, range: &Range<u64>) -> bool {
    let length = answer.body.len() as u64;
    match answer.status {
        206 => {
            let says = answer.header("content-range").unwrap_or_default();
            length == range.end - range.start && says.starts_with(&format!("bytes {}-{}/", range.start, range.end - 1))
        }
        _ => true,
    }
}

impl Objects for Bucket {
    fn create(&self, key: &Key) -> Result<Box<dyn Upload>, ObjectError> {
        self.inner.keeps()?;
        let mark = crate::keys::random::<16>().map_err(|e| ObjectError::Refused(e.to_string()))?;
        let (bucket, key, mark) = (self.inner.clone(), key.clone(), hex::encode(&mark));
        Ok(Box::new(BucketUpload { bucket, key, mark, buffer: Vec::new(), id: None, parts: Vec::new() }))
    }

    fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<Vec<u8>, ObjectError> {
        let mut ask = self.inner.ask("GET", key);
        let short = |range: &Range<u64>| {
            ObjectError::Refused(format!(
                "{key} is shorter than its bytes {} to {}, which are asked for",
                range.start, range.end
            ))
        };
        let Some(range) = range else {
            // Without its length an answer that was cut off could pass for a whole one.
            let answer = self.inner.http.ask(&ask, TRIES, |answer| answer.header("content-length").is_some())?;
            return if answer.good() { Ok(answer.body) } else { Err(self.inner.missing(key, &answer)) };
        };
        if range.start >= range.end {
            let fits = range.start == range.end && self.size(key)? >= range.end;
            return if fits { Ok(Vec::new()) } else { Err(short(&range)) };
        }
        ask.headers.push(("range", format!("bytes={}-{}", range.start, range.end - 1)));
        // One that reaches past the end is answered with less.
        let size = |answer: &Answer| answer.header("content-range")?.rsplit('/').next()?.parse::<u64>().ok();
        let ends = |answer: &Answer| answer.status == 206 && size(answer).is_some_and(|size| size < range.end);
        let answer = self.inner.http.ask(&ask, TRIES, |answer| of_range(answer, &range) || ends(answer))?;
        if answer.status == 416 || ends(&answer) {
            return Err(short(&range));
        }
        if !answer.good() {
            return Err(self.inner.missing(key, &answer));
        }
        if answer.status == 206 {
            return Ok(answer.body);
        }
        let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        answer.body.get(at(range.start)..at(range.end)).map(<[u8]>::to_vec).ok_or_else(|| short(&range))
    }

    fn size(&self, key: &Key) -> Result<u64, ObjectError> {
        let answer = self.inner.head(key)?;
        let length = answer.header("content-length").and_then(|length| length.parse().ok());
        length.ok_or_else(|| ObjectError::Unreachable(format!("{}: {key} was answered without its size", self.place())))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Entry>, ObjectError> {
        let (mut found, mut next) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            let page = self.inner.page(prefix, next.as_deref(), 1000)?;
            found.extend(page.entries);
            if page.next.is_none() {
                found.sort();
                found.dedup();
                return Ok(found);
            }
            if page.next == next {
                break;
            }
            next = page.next;
        }
        Err(ObjectError::Unreachable(format!("{}: its listing of {prefix:?} does not end", self.place())))
    }

    fn delete(&self, key: &Key) -> Result<(), ObjectError> {
        let answer = self.inner.http.ask(&self.inner.ask("DELETE", key), TRIES, any)?;
        if answer.good() {
            return Ok(());
        }
        match self.inner.missing(key, &answer) {
            ObjectError::Missing(_) => Ok(()),
            error => Err(error),
        }
    }

    fn place(&self) -> String {
        self.inner.http.address.shown()
    }
}
