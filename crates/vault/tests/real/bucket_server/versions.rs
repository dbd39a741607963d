//! A bucket that keeps every version, and locks: nobody can remove a locked version before its time, whatever the keys.

use super::{Answer, Object, Request, Server, State, answer, s3};
use std::collections::BTreeMap;

/// A version, or a marker that hides those before it.
struct Version {
    id: String,
    millis: i64,
    object: Option<Object>,
}

#[derive(Default)]
pub(super) struct Versions {
    /// The oldest first.
    all: BTreeMap<String, Vec<Version>>,
    /// What is written can be locked.
    locks: bool,
    /// Locks are asked for and forgotten, as by a store that does not know them.
    forgets: bool,
    /// What asks for no lock is locked for so many days.
    days: Option<i64>,
    count: usize,
    last: i64,
}

/// What became of an attack with the keys of a host.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Attack {
    /// Versions that could not be removed for good.
    pub(crate) refused: usize,
    pub(crate) removed: usize,
    pub(crate) hidden: usize,
    pub(crate) overwritten: usize,
}

fn now() -> i64 {
    mainstay_ports::clock::wall_now_ms().try_into().unwrap()
}

/// A time, as S3 writes it.
pub(super) fn written(millis: i64) -> String {
    jiff::Timestamp::from_millisecond(millis).unwrap().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

impl Versions {
    pub(super) fn add(&mut self, name: &str, object: Option<Object>) {
        self.count += 1;
        // No two of one moment: what was written before a moment is told from what came after it.
        self.last = now().max(self.last + 1);
        let version = Version { id: format!("v-{:06}", self.count), millis: self.last, object };
        self.all.entry(name.to_owned()).or_default().push(version);
    }
}

/// What locks this write until when.
pub(super) fn until(state: &State, request: &Request) -> Result<Option<i64>, Answer> {
    let (mode, date) = (request.headers.get("x-amz-object-lock-mode"), request.headers.get(s3::LOCKED_UNTIL));
    let begins = request.method == "PUT" || request.query.contains_key("uploads");
    let Some((mode, date)) = mode.zip(date) else {
        let days = state.versions.as_ref().and_then(|versions| versions.days);
        return Ok(days.filter(|_| begins).map(|days| now() + days * 86_400_000));
    };
    let Some(versions) = state.versions.as_ref().filter(|versions| versions.locks || versions.forgets) else {
        return Err(s3::error(400, "InvalidRequest"));
    };
    let date = date.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_millisecond);
    if !begins || !["GOVERNANCE", "COMPLIANCE"].contains(&mode.as_str()) || date <= now() {
        return Err(s3::error(400, "InvalidArgument"));
    }
    Ok(Some(date).filter(|_| !versions.forgets))
}

/// Is a sum of its own needed?
pub(super) fn needs_sum(state: &State, request: &Request, upload: Option<&str>) -> bool {
    let part = upload.and_then(|id| state.uploads.get(id)).is_some_and(|(_, object, _)| object.until.is_some());
    part || until(state, request).is_ok_and(|until| until.is_some())
}

/// What concerns versions.
pub(super) fn act(state: &mut State, name: &str, request: &Request) -> Option<Answer> {
    if name.is_empty() && request.query.contains_key("versions") {
        return Some(match &state.versions {
            Some(versions) => list(versions, &request.query),
            None => s3::error(501, "NotImplemented"),
        });
    }
    if request.method == "PUT" && request.query.contains_key("retention") {
        return Some(relock(state, name, request));
    }
    let id = request.query.get("versionId")?;
    let versions = state.versions.as_mut()?;
    let all = versions.all.entry(name.to_owned()).or_default();
    let Some(at) = all.iter().position(|version| version.id == *id) else {
        return Some(s3::error(404, "NoSuchVersion"));
    };
    if request.method == "DELETE" {
        let until = all[at].object.as_ref().and_then(|object| object.until);
        if until.is_some_and(|until| until > now()) {
            return Some(s3::error(403, "AccessDenied"));
        }
        all.remove(at);
        let newest = all.last().and_then(|version| version.object.clone());
        match newest {
            Some(object) => drop(state.objects.insert(name.to_owned(), object)),
            None => drop(state.objects.remove(name)),
        }
        return Some(answer(204, ""));
    }
    let object = all[at].object.clone();
    Some(object.map_or_else(|| s3::error(405, "MethodNotAllowed"), |object| state.show(&object, request)))
}

/// A lock can be made longer by whoever may lock, not shorter.
fn relock(state: &mut State, name: &str, request: &Request) -> Answer {
    let text = String::from_utf8_lossy(&request.body).into_owned();
    let of =
        |name: &str| text.split_once(&format!("<{name}>"))?.1.split_once(&format!("</{name}>")).map(|found| found.0);
    let date = of("RetainUntilDate").and_then(|date| date.parse::<jiff::Timestamp>().ok());
    let Some(date) = date.map(jiff::Timestamp::as_millisecond).filter(|_| of("Mode").is_some()) else {
        return s3::error(400, "MalformedXML");
    };
    if !request.headers.contains_key(s3::SUM) {
        return s3::error(400, "InvalidRequest");
    }
    let newest = state.versions.as_mut().and_then(|versions| versions.all.get_mut(name)?.last_mut()?.object.as_mut());
    let Some(object) = newest else { return s3::error(404, "NoSuchKey") };
    if object.until.is_some_and(|until| until > date) {
        return s3::error(403, "AccessDenied");
    }
    object.until = Some(date);
    if let Some(object) = state.objects.get_mut(name) {
        object.until = Some(date);
    }
    answer(200, "")
}

fn list(versions: &Versions, query: &BTreeMap<String, String>) -> Answer {
    let named = |name: &str| query.get(name).cloned().unwrap_or_default();
    let (prefix, key, id) = (named("prefix"), named("key-marker"), named("version-id-marker"));
    let all = versions.all.iter().filter(|(name, _)| name.starts_with(&prefix));
    let all: Vec<(&String, &Version, bool)> = all
        .flat_map(|(name, all)| all.iter().rev().enumerate().map(move |(at, version)| (name, version, at == 0)))
        .collect();
    let begin = match all.iter().position(|(name, version, _)| **name == key && version.id == id) {
        Some(at) => at + 1,
        None => all.iter().position(|(name, _, _)| **name > key).unwrap_or(all.len()),
    };
    // Small pages: there are many, and one name lies on several.
    let most = query["max-keys"].parse::<usize>().unwrap().min(3);
    let rest = &all[begin..];
    let shown = &rest[..rest.len().min(most)];
    let entries: String = shown
        .iter()
        .map(|(name, version, latest)| {
            let kind = if version.object.is_some() { "Version" } else { "DeleteMarker" };
            let size = version.object.as_ref().map(|object| format!("<Size>{}</Size>", object.bytes.len()));
            format!(
                "<{kind}><Key>{name}</Key><VersionId>{}</VersionId><IsLatest>{latest}</IsLatest><LastModified>{}</LastModified>{}</{kind}>",
                version.id,
                written(version.millis),
                size.unwrap_or_default()
            )
        })
        .collect();
    let cut = rest.len() > most;
    let next = if cut {
        let (name, version, _) = shown[most - 1];
        format!("<NextKeyMarker>{name}</NextKeyMarker><NextVersionIdMarker>{}</NextVersionIdMarker>", version.id)
    } else {
        String::new()
    };
    answer(200, format!("<ListVersionsResult><IsTruncated>{cut}</IsTruncated>{next}{entries}</ListVersionsResult>"))
}

impl Server {
    /// From now on versions are kept. The bucket can lock them, with so many days for what asks for no lock.
    pub(crate) fn lock_bucket(&self, days: Option<i64>) {
        self.state.lock().unwrap().versions = Some(Versions { locks: true, days, ..Versions::default() });
    }

    /// A store that takes locks and does not keep them.
    pub(crate) fn forget_locks(&self) {
        self.state.lock().unwrap().versions = Some(Versions { forgets: true, ..Versions::default() });
    }

    /// Versions that anybody with keys can remove.
    pub(crate) fn unlocked(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let all = state.versions.as_ref().unwrap().all.iter();
        let free = |version: &&Version| version.object.as_ref().is_some_and(|object| object.until.is_none());
        all.flat_map(|(name, all)| all.iter().filter(free).map(move |_| name.clone())).collect()
    }

    /// Every version is locked until then, or none.
    pub(crate) fn set_locks(&self, until: Option<i64>) {
        let state = &mut *self.state.lock().unwrap();
        let versions = state.versions.as_mut().unwrap().all.values_mut().flatten();
        let old = versions.filter_map(|version| version.object.as_mut());
        old.chain(state.objects.values_mut()).for_each(|object| object.until = until);
    }

    /// Ends every lock, as time does, and removes every version of these for good.
    pub(crate) fn purge(&self, prefix: &str) {
        let mut state = self.state.lock().unwrap();
        state.versions.as_mut().unwrap().all.retain(|name, _| !name.starts_with(prefix));
        state.objects.retain(|name, _| !name.starts_with(prefix));
    }

    /// Somebody with the keys of a host tries to remove every version, and then hides or overwrites every object, in turn.
    pub(crate) fn attack(&self) -> Attack {
        let mut state = self.state.lock().unwrap();
        let names: Vec<(String, Vec<String>)> = state
            .versions
            .as_ref()
            .unwrap()
            .all
            .iter()
            .map(|(name, all)| (name.clone(), all.iter().map(|version| version.id.clone()).collect()))
            .collect();
        let mut ask = |method: &str, name: &str, id: Option<&String>| {
            let request = Request {
                method: method.to_owned(),
                path: format!("/vault/{name}"),
                query: id.map(|id| ("versionId".to_owned(), id.clone())).into_iter().collect(),
                headers: BTreeMap::new(),
                body: b"gone".to_vec(),
            };
            s3::act(&mut state, &request, true).status
        };
        let mut attack = Attack { refused: 0, removed: 0, hidden: 0, overwritten: 0 };
        for (at, (name, ids)) in names.iter().enumerate() {
            for id in ids {
                match ask("DELETE", name, Some(id)) {
                    204 => attack.removed += 1,
                    403 => attack.refused += 1,
                    other => panic!("{other}"),
                }
            }
            if at % 2 == 0 || name.ends_with("vault.json") {
                assert_eq!(ask("DELETE", name, None), 204);
                attack.hidden += 1;
            } else {
                assert_eq!(ask("PUT", name, None), 200);
                attack.overwritten += 1;
            }
        }
        attack
    }
}
