//! A bucket as a store: S3 and what speaks as it does (docs/adr/0033), and Azure's Blob Storage (docs/adr/0050).
//!
//! An object is written by one request, or in parts that are joined by the last one; either with the condition that none of its name is
//! there. A store that does not keep that condition is noticed before the first write, and then looked at before each: the archive's owner and a
//! backup's random label are then what keeps two writers apart. A store may keep it for whole objects and not where parts are joined, which can
//! not be tried without an object: before that it is always looked as well. Each write carries a random mark: if its answer was lost, the mark tells
//! whether what is there now is ours.
//!
//! An address may ask for objects that are locked as they are written, and for the bucket as it was at some moment (`view.rs`, docs/adr/0052).
//!
//! Absent: making buckets, keys, rights and rules.

mod answers;
mod azure;
mod credentials;
mod dialect;
mod http;
mod s3;
mod view;

use super::{Committed, Entry, Key, ObjectError, Objects, Removal, Upload};
use crate::hex;
use answers::Page;
use dialect::{Dialect, Pairs, Part, Parts};
use http::{Answer, Ask, Http, TRIES};
use mainstay_model::bucket::{Address, Protocol};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use view::View;

/// What is longer is written in parts of this size. Stores ask for at least five megabytes.
const PART: usize = 8 << 20;
/// By so much a store's clock may go before this host's; requests are refused beyond that.
const SKEW_MS: i64 = 900_000;
/// Pages of a listing: far more objects than a repository has.
const PAGES_MAX: usize = 100_000;
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
    /// It is read as it was at some moment.
    view: Option<View>,
}

fn any(_: &Answer) -> bool {
    true
}

/// That none of its name is there.
fn condition() -> Pairs {
    vec![("if-none-match", "*".to_owned())]
}

impl Bucket {
    /// From its address (`docs/backup.md`). Keys must be at hand; the bucket is not asked yet.
    pub fn open(place: &Path) -> Result<Bucket, ObjectError> {
        let address = Address::parse(&place.to_string_lossy()).map_err(ObjectError::Refused)?;
        let dialect: Box<dyn Dialect> = match address.protocol.clone() {
            Protocol::S3 { region, path_style, lock, .. } => Box::new(s3::S3 { region, path_style, lock }),
            Protocol::Azure { account, in_path } => Box::new(azure::Azure { account, in_path }),
        };
        dialect.signed(&address, &Ask { method: "GET", ..Ask::default() })?;
        let view = address.as_of().cloned().map(View::new);
        // The store's clock may go before this one.
        let latest = i64::try_from(mainstay_ports::clock::wall_now_ms()).unwrap_or(i64::MAX).saturating_add(SKEW_MS);
        if let Some(moment) = address.as_of().filter(|moment| moment.micros() / 1000 > latest) {
            let says = "is still to come: name a moment that has been";
            return Err(ObjectError::Refused(format!("{}: as_of={} {says}", address.shown(), moment.text())));
        }
        Ok(Bucket { inner: Arc::new(Inner { http: Http::new(address, dialect)?, keeps: Mutex::new(None), view }) })
    }
}

impl Inner {
    fn name(&self, key: &str) -> String {
        format!("{}{key}", self.http.address.prefix)
    }

    fn ask(&self, method: &'static str, key: &Key) -> Ask<'static> {
        Ask { method, name: self.name(key.as_str()), ..Ask::default() }
    }

    /// The headers of a write of a whole object.
    fn whole(&self, mut headers: Pairs) -> Pairs {
        headers.extend(self.dialect().whole());
        headers
    }

    fn dialect(&self) -> &dyn Dialect {
        &*self.http.dialect
    }

    fn page(&self, prefix: &str, next: Option<&str>, most: usize) -> Result<Page, ObjectError> {
        let query = self.dialect().listing(self.name(prefix), next, most);
        let ask = Ask { method: "GET", query, ..Ask::default() };
        let page = |answer: &Answer| self.dialect().page(&answer.body, &self.http.address.prefix);
        let answer = self.http.ask(&ask, TRIES, |answer| page(answer).is_some())?;
        let read = if answer.good() { page(&answer) } else { None };
        read.ok_or_else(|| self.http.refusal(&answer))
    }

    /// After an answer that it is not there: is that the store's own word? `HEAD` tells no reason, and whatever stands in between
    /// may know nothing of it.
    fn missing(&self, key: &Key, answer: &Answer) -> ObjectError {
        let missing = ObjectError::Missing(key.to_string());
        if answer.status != 404 {
            return match (self.http.refusal(answer), &self.view) {
                (ObjectError::Refused(says), Some(_)) => {
                    ObjectError::Refused(format!("{says}; as_of needs {}", view::RIGHTS))
                }
                (error, _) => error,
            };
        }
        if let Some(view) = &self.view {
            return self.gone(view, key);
        }
        if self.dialect().says_missing(answer) {
            return missing;
        }
        let unclear = |says: &str| ObjectError::Unreachable(format!("{}: {key} {says}", self.http.address.shown()));
        match self.page(key.as_str(), None, 2) {
            Err(error) => error,
            Ok(page) if page.entries.iter().any(|entry| entry.key == *key) => {
                unclear("is listed, and was said not to be there")
            }
            // A store may answer with an empty page and go on.
            Ok(page) if page.entries.is_empty() && page.next.is_some() => unclear("is neither listed nor denied"),
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
            Ok(there) => Ok(there.header(self.dialect().mark()) == Some(mark)),
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
            let headers = self.whole(condition());
            let ask = Ask { method: "PUT", name: self.name(PROBE), headers, body: b"probe", ..Ask::default() };
            let answer = self.http.ask(&ask, TRIES, any)?;
            if self.dialect().says_exists(&answer) {
                *known = Some(true);
                return Ok(true);
            }
            match answer.status {
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
    fn condition(&self, key: &Key) -> Result<Option<Pairs>, ObjectError> {
        if self.keeps()? {
            return Ok(Some(condition()));
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
        let exists = self.dialect().says_exists(answer);
        if !exists && !self.dialect().says_gone(answer) {
            return Err(self.http.refusal(answer));
        }
        if answer.tries > 1 && self.ours(key, mark)? {
            return Ok(Committed::Created);
        }
        if exists { Ok(Committed::Exists) } else { Err(self.http.refusal(answer)) }
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
    fn part(&mut self, length: usize) -> Result<(), ObjectError> {
        let dialect = self.bucket.dialect();
        let id = match &self.id {
            Some(id) => id.clone(),
            None => dialect.begin(&self.bucket, &self.key, &self.mark)?,
        };
        self.id = Some(id.clone());
        let (number, most) = (self.parts.len() + 1, dialect.parts_max());
        if number > most {
            return Err(ObjectError::Refused(format!("{}: an object of more than {most} parts", self.key)));
        }
        let part = Part { id: &id, number, body: self.buffer.get(..length).unwrap_or_default() };
        let tag = dialect.part(&self.bucket, &self.key, part)?;
        self.parts.push(tag);
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
        let parts = Parts { id: &id, mark: &self.mark, tags: &self.parts };
        let answer = self.bucket.dialect().join(&self.bucket, &self.key, &parts, headers)?;
        let outcome = self.bucket.outcome(&self.key, &self.mark, &answer)?;
        if outcome == Committed::Created {
            self.id = None;
        }
        Ok(outcome)
    }
}

impl Drop for BucketUpload {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.bucket.dialect().give_up(&self.bucket, &self.key, &id);
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
        let Some(condition) = self.bucket.condition(&self.key)? else { return Ok(Committed::Exists) };
        let mut headers = self.bucket.whole(condition);
        headers.push((self.bucket.dialect().mark(), self.mark.clone()));
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
        self.inner.check_writable()?;
        self.inner.keeps()?;
        let mark = crate::keys::random::<16>().map_err(|e| ObjectError::Refused(e.to_string()))?;
        let (bucket, key, mark) = (self.inner.clone(), key.clone(), hex::encode(&mark));
        Ok(Box::new(BucketUpload { bucket, key, mark, buffer: Vec::new(), id: None, parts: Vec::new() }))
    }

    fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<Vec<u8>, ObjectError> {
        let mut ask = self.inner.ask("GET", key);
        if let Some(view) = &self.inner.view {
            ask.query.push(("versionId", self.inner.version(view, key)?.id));
        }
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
        if let Some(view) = &self.inner.view {
            return Ok(self.inner.version(view, key)?.size);
        }
        let answer = self.inner.head(key)?;
        let length = answer.header("content-length").and_then(|length| length.parse().ok());
        length.ok_or_else(|| ObjectError::Unreachable(format!("{}: {key} was answered without its size", self.place())))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Entry>, ObjectError> {
        if let Some(view) = &self.inner.view {
            return self.inner.entries(view, prefix);
        }
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

    fn delete(&self, key: &Key) -> Result<Removal, ObjectError> {
        self.inner.check_writable()?;
        let answer = self.inner.http.ask(&self.inner.ask("DELETE", key), TRIES, any)?;
        if answer.good() {
            return Ok(Removal::Gone);
        }
        if self.inner.dialect().says_kept(&answer) {
            return Ok(Removal::Kept);
        }
        match self.inner.missing(key, &answer) {
            ObjectError::Missing(_) => Ok(Removal::Gone),
            error => Err(error),
        }
    }

    fn locks(&self) -> bool {
        matches!(&self.inner.http.address.protocol, Protocol::S3 { lock: Some(_), as_of: None, .. })
    }

    fn relock(&self, key: &Key) -> Result<(), ObjectError> {
        self.inner.check_writable()?;
        self.inner.dialect().relock(&self.inner, key)
    }

    fn unlocked(&self, key: &Key) -> Result<Option<String>, ObjectError> {
        let Protocol::S3 { lock: Some(lock), as_of: None, .. } = &self.inner.http.address.protocol else {
            return Ok(None);
        };
        let answer = self.inner.head(key)?;
        let until = answer.header(s3::LOCKED_UNTIL);
        let time =
            until.and_then(|until| until.trim().parse::<jiff::Timestamp>().ok()).map(jiff::Timestamp::as_millisecond);
        let now = i64::try_from(mainstay_ports::clock::wall_now_ms()).unwrap_or(i64::MAX);
        if let (Some(text), Some(time)) = (until, time) {
            let weak = lock.compliance && answer.header(s3::LOCK_MODE).is_some_and(|mode| mode != s3::COMPLIANCE);
            if time <= now {
                return Ok(Some(format!(
                    "the lock of {key} ended at {text}: make a backup, which renews what opens the repository"
                )));
            }
            return Ok(weak.then(|| format!("{key} is locked, but not with lock_mode=compliance")));
        }
        Ok(Some({
            format!(
                "{key} carries no lock, and the address asks for one (lock=): it was written before lock= was there, these keys may not look at locks (s3:GetObjectRetention), or this store does not know what a lock is and nothing in it is safe from removal"
            )
        }))
    }

    fn place(&self) -> String {
        self.inner.http.address.shown()
    }
}
