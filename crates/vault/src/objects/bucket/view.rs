//! A bucket as it was at some moment: what somebody hid or overwrote since then is read, and nothing is written (docs/adr/0052).
//!
//! A bucket that keeps versions only hides what is removed, behind a marker, and what is overwritten, behind a newer version. So of each name what was the
//! newest at that moment counts, if it is no marker. Absent: anything that would bring an old version back to the front.

use super::super::{Entry, Key, ObjectError};
use super::http::{Ask, TRIES};
use super::s3::versions::{self, Found, Page};
use super::{Inner, PAGES_MAX};
use mainstay_model::bucket::Moment;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What keys need for it.
pub(super) const RIGHTS: &str =
    "a store that lists versions, and the rights to list and to get them (s3:ListBucketVersions, s3:GetObjectVersion)";

/// The moment, and what is known of it.
pub(super) struct View {
    at: Moment,
    /// By each listing; as large as the listings are that callers hold.
    known: Mutex<BTreeMap<Key, Version>>,
}

/// The version of an object that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// What the store calls it.
    pub(super) id: String,
    pub(super) size: u64,
}

impl View {
    pub(super) fn new(at: Moment) -> View {
        View { at, known: Mutex::default() }
    }
    fn known(&self) -> MutexGuard<'_, BTreeMap<Key, Version>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of each name what was the newest at a moment.
#[derive(Default)]
struct Newest(BTreeMap<Key, Found>);

impl Newest {
    /// One more. Stores tell times in seconds: of two at once what is the newest of all counts, then what is listed first, for newer ones come first; a
    /// store may list markers apart from versions.
    fn take(&mut self, at: i64, found: Found) {
        if found.micros > at {
            return;
        }
        let newer = |known: &Found| (known.micros, known.latest) < (found.micros, found.latest);
        if self.0.get(&found.key).is_none_or(newer) {
            self.0.insert(found.key.clone(), found);
        }
    }

    /// Those that were there.
    fn there(self) -> BTreeMap<Key, Version> {
        self.0.into_iter().filter_map(|(key, found)| Some((key, found.version?))).collect()
    }
}

impl Inner {
    /// Is this the bucket as it is now?
    pub(super) fn check_writable(&self) -> Result<(), ObjectError> {
        self.view.as_ref().map_or(Ok(()), |view| {
            Err(ObjectError::Refused(format!(
                "{}: the address shows the bucket as it was (as_of={}), and nothing is written or removed through it; take as_of out of the address to write",
                self.http.address.shown(),
                view.at.text()
            )))
        })
    }

    /// Whose names begin so.
    pub(super) fn entries(&self, view: &View, prefix: &str) -> Result<Vec<Entry>, ObjectError> {
        let there = self.as_it_was(view, prefix)?;
        let entries = there.iter().map(|(key, version)| Entry { key: key.clone(), size: version.size }).collect();
        view.known().extend(there);
        Ok(entries)
    }

    /// The version of an object that is meant.
    pub(super) fn version(&self, view: &View, key: &Key) -> Result<Version, ObjectError> {
        if let Some(version) = view.known().get(key).cloned() {
            return Ok(version);
        }
        // Other names may begin with this one.
        let found = self.as_it_was(view, key.as_str())?.remove(key);
        let version = found.ok_or_else(|| ObjectError::Missing(format!("{key} (as of {})", view.at.text())))?;
        view.known().insert(key.clone(), version.clone());
        Ok(version)
    }

    /// After an answer that a version is not there: it may have been removed for good since it was listed.
    pub(super) fn gone(&self, view: &View, key: &Key) -> ObjectError {
        view.known().remove(key);
        match self.version(view, key) {
            Ok(_) => ObjectError::Unreachable(format!(
                "{}: {key} is listed, and was said not to be there",
                self.http.address.shown()
            )),
            Err(error) => error,
        }
    }

    fn as_it_was(&self, view: &View, prefix: &str) -> Result<BTreeMap<Key, Version>, ObjectError> {
        let (mut newest, mut next) = (Newest::default(), None);
        for _ in 0..PAGES_MAX {
            let page = self.versions(prefix, next.as_ref())?;
            page.found.into_iter().for_each(|found| newest.take(view.at.micros(), found));
            if page.next.is_none() {
                return Ok(newest.there());
            }
            if page.next == next {
                break;
            }
            next = page.next;
        }
        let place = self.http.address.shown();
        Err(ObjectError::Unreachable(format!("{place}: the listing of versions of {prefix:?} does not end")))
    }

    fn versions(&self, prefix: &str, next: Option<&versions::Marker>) -> Result<Page, ObjectError> {
        let ask = Ask { method: "GET", query: versions::listing(self.name(prefix), next), ..Ask::default() };
        let own = &self.http.address.prefix;
        let answer = self.http.ask(&ask, TRIES, |answer| versions::page(&answer.body, own).is_some())?;
        let page = if answer.good() { versions::page(&answer.body, own) } else { None };
        page.ok_or_else(|| match self.http.refusal(&answer) {
            ObjectError::Refused(says) => ObjectError::Refused(format!("{says}; as_of needs {RIGHTS}")),
            error => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(key: &str, second: i64, latest: bool, id: Option<&str>) -> Found {
        let version = id.map(|id| Version { id: id.into(), size: 1 });
        Found { key: Key::new(key).unwrap(), micros: second * 1_000_000, latest, version }
    }

    /// What is there of `a` at a second, given what is listed.
    fn at(second: i64, listed: &[(i64, bool, Option<&str>)]) -> Option<String> {
        let mut newest = Newest::default();
        for (micros, latest, id) in listed {
            newest.take(second * 1_000_000, found("a", *micros, *latest, *id));
        }
        newest.there().remove(&Key::new("a").unwrap()).map(|version| version.id)
    }

    #[test]
    fn of_each_name_the_newest_of_that_moment_counts_if_it_is_no_marker() {
        // Written at 10, overwritten at 20, hidden at 30, written anew at 40.
        let listed = [(40, true, Some("new")), (30, false, None), (20, false, Some("other")), (10, false, Some("old"))];
        for (second, id) in
            [(9, None), (10, Some("old")), (19, Some("old")), (20, Some("other")), (29, Some("other")), (30, None)]
        {
            assert_eq!(at(second, &listed).as_deref(), id, "{second}");
            // A store that lists versions first and markers after them.
            let apart = [listed[0], listed[2], listed[3], listed[1]];
            assert_eq!(at(second, &apart).as_deref(), id, "{second}");
        }
        assert_eq!(at(39, &listed), None);
        assert_eq!(at(40, &listed).as_deref(), Some("new"));
    }

    #[test]
    fn of_the_same_second_what_is_listed_first_counts_or_what_is_the_newest_of_all() {
        assert_eq!(at(10, &[(10, false, Some("second")), (10, false, Some("first"))]).as_deref(), Some("second"));
        assert_eq!(at(10, &[(10, true, None), (10, false, Some("first"))]), None);
        assert_eq!(at(10, &[(10, true, Some("second")), (10, false, None)]).as_deref(), Some("second"));
        // Markers apart, and the marker is what is there now.
        assert_eq!(at(10, &[(10, false, Some("first")), (10, true, None)]), None);
        // It is not known which came first: what can be read is read.
        assert_eq!(
            at(10, &[(11, true, Some("new")), (10, false, Some("first")), (10, false, None)]).as_deref(),
            Some("first")
        );
    }

    #[test]
    fn names_do_not_mix() {
        let mut newest = Newest::default();
        for one in [found("a", 10, true, None), found("a.b", 10, true, Some("x")), found("a", 5, false, Some("y"))] {
            newest.take(10_000_000, one);
        }
        let there = newest.there();
        assert_eq!(there.keys().map(Key::as_str).collect::<Vec<_>>(), ["a.b"]);
    }
}
