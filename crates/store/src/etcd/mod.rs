//! The store in an etcd that others run (`docs/adr/0044`): its JSON gateway, by HTTP.
//!
//! ```text
//!  callers ──► EtcdStore ──► Client ──► Door, one for each member of the etcd
//!     ▲ watch      ▲ what it saw, and at which revisions
//!     └────────────┴── follow: one stream for all keys · poll: linearizable, at a steady pace · survey: each member's state
//! ```
//! Keys stand under `PREFIX/CLUSTER/`; `origin` among them says whose they are. A write is one transaction: the origin is the one this
//! node knows, and the key is at the expected revision. Whoever once saw a key at a higher revision than etcd has now, by an answer that
//! went through its consensus, believes it no more: etcd was restored from an older state, and everything waits for a person.
//!
//! Absent: leases, locks and users of etcd; what the values mean; the members of the etcd, which are not ours.

mod client;
mod follow;
mod http;
mod kept;
mod wire;

pub use kept::Origin;

use async_trait::async_trait;
use client::{Client, Fault, User};
use http::{Door, TlsFiles};
use kept::{Kept, ORIGIN_KEY};
use mainstay_model::etcd::{Endpoint, EtcdStanding, MemberStanding};
use mainstay_model::spec::Spec;
use mainstay_model::{NodeId, Revision};
use mainstay_ports::store::{CasOutcome, Store, StoreError, VALUE_BYTES_MAX, Versioned};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use wire::{Range, Txn, at, get, put, range};

/// A revision that no key reaches.
const NEVER: u64 = i64::MAX as u64;
const SURVEY: Duration = Duration::from_secs(3);
/// etcd works if it answered within this.
const FRESH: Duration = Duration::from_secs(5);

/// Which etcd, and whose keys in it.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    endpoints: Vec<Endpoint>,
    tls: Option<TlsFiles>,
    user: Option<User>,
    prefix: String,
    authority: String,
    first: usize,
    kept: PathBuf,
}

impl EtcdOptions {
    /// From the specification. `authority`: the fingerprint of the cluster's authority. `kept`: where the node keeps what it has seen.
    ///
    /// # Errors
    /// When an endpoint is no address, or none is named.
    pub fn of(spec: &Spec, me: &NodeId, authority: String, kept: PathBuf) -> Result<Self, String> {
        let store = &spec.store;
        let endpoints: Result<Vec<Endpoint>, String> =
            store.endpoints.iter().map(|text| Endpoint::parse(text)).collect();
        let endpoints = endpoints?;
        if endpoints.is_empty() {
            return Err("store.endpoints names no member of the etcd".to_owned());
        }
        let own = store.cert_file.clone().zip(store.key_file.clone());
        let user = store.user.clone().zip(store.password_file.clone());
        let place = spec.nodes.iter().position(|node| node.name == *me);
        Ok(Self {
            endpoints,
            tls: store.ca_file.clone().map(|ca| TlsFiles { ca, own }),
            user: user.map(|(name, password_file)| User { name, password_file }),
            prefix: format!("{}/{}/", store.prefix, spec.cluster.name),
            authority,
            first: place.unwrap_or(0),
            kept,
        })
    }

    /// Where the cluster's keys stand.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn client(&self) -> Client {
        let doors = self.endpoints.iter().map(|endpoint| Door::new(endpoint.clone(), self.tls.clone()));
        Client::new(doors.collect(), self.user.clone(), self.first)
    }
}

/// Why this node does not use the etcd's keys, although etcd may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Refused {
    /// They are older than what it saw, or gone, or another cluster's: for people.
    Distrusted(String),
    /// They are of a later incarnation of this cluster: start anew with them.
    Anew,
}

/// The store. See the module's doc.
pub struct EtcdStore {
    inner: Arc<Inner>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

pub(crate) struct Inner {
    options: EtcdOptions,
    client: Client,
    keys: Mutex<BTreeMap<String, watch::Sender<Option<Versioned>>>>,
    kept: Mutex<Kept>,
    refused: watch::Sender<Option<Refused>>,
    answered: Mutex<(Option<Instant>, Option<String>)>,
    members: Mutex<(Vec<MemberStanding>, Vec<String>)>,
    /// The stream has missed something.
    missed: Notify,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What stands in etcd under the cluster's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// This cluster's keys.
    Ours(Origin, Revision),
    /// Something else: why this node keeps off.
    Foreign(String),
}

/// Looks whose keys stand in etcd. Changes nothing.
///
/// # Errors
/// When etcd does not answer in time: by which member, and why.
pub async fn look(options: &EtcdOptions, timeout: Duration) -> Result<Found, String> {
    look_by(&options.client(), options, Instant::now() + timeout).await
}

async fn look_by(client: &Client, options: &EtcdOptions, deadline: Instant) -> Result<Found, String> {
    let key = format!("{}{ORIGIN_KEY}", options.prefix);
    let read = client.read::<Range>("/v3/kv/range", &range(&key, false, false), deadline).await;
    let Some(pair) = read.map_err(Fault::text)?.kvs.pop() else { return Ok(Found::Nothing) };
    let origin = match serde_json::from_slice::<Origin>(&pair.value) {
        Ok(origin) => origin,
        Err(error) => return Ok(Found::Foreign(format!("the key {key} is not of this program's making: {error}"))),
    };
    if origin.authority != options.authority {
        return Ok(Found::Foreign(format!(
            "the keys under {} are another cluster's, of the same name and with another authority: give this one another store.prefix, or, \
             if that cluster is gone for good, remove its keys (etcdctl del --prefix {})",
            options.prefix, options.prefix
        )));
    }
    Ok(Found::Ours(origin, Revision(pair.mod_revision)))
}

/// Asks every member, and etcd as a whole, once.
pub async fn survey(options: &EtcdOptions) -> EtcdStanding {
    let client = options.client();
    let (members, alarms) = follow::ask_members(&client).await;
    let looked = look_by(&client, options, Instant::now() + SURVEY).await;
    EtcdStanding { works: looked.is_ok(), why: looked.err(), members, alarms: alarms.unwrap_or_default() }
}

/// Marks the place as this cluster's, if nothing stands there. Another node may be faster: look again.
///
/// # Errors
/// When etcd does not answer in time, or refuses.
pub async fn found(options: &EtcdOptions, timeout: Duration) -> Result<(), String> {
    let key = format!("{}{ORIGIN_KEY}", options.prefix);
    let origin = Origin { authority: options.authority.clone(), ..Origin::default() };
    let value = serde_json::to_vec(&origin).map_err(|error| error.to_string())?;
    let body = json!({ "compare": [at(&key, 0)], "success": [put(&key, &value)] });
    let written = options.client().write::<Txn>("/v3/kv/txn", &body, Instant::now() + timeout).await;
    written.map(|_| ()).map_err(Fault::text)
}

/// Has this node ever seen the cluster's keys in an etcd?
///
/// # Errors
/// When what it kept can not be read.
pub fn has_seen(options: &EtcdOptions) -> Result<bool, String> {
    Kept::load(&options.kept).map(|kept| kept.is_some())
}

impl EtcdStore {
    /// Starts on the keys of this origin: it was found there just now. `None`: etcd did not answer, and this node goes by what it kept.
    ///
    /// # Errors
    /// When what was kept can not be read or written, or there is neither.
    pub fn start(options: EtcdOptions, now: Option<(Origin, Revision)>) -> Result<Arc<Self>, String> {
        let kept = match (Kept::load(&options.kept)?, now) {
            (None, None) => {
                return Err("etcd does not answer, and this node has never seen the cluster's keys".to_owned());
            }
            (Some(kept), None) => kept,
            // The same store, or an older one: which is for the first answers to show.
            (Some(kept), Some((origin, _))) if kept.origin.incarnation >= origin.incarnation => kept,
            (_, Some((origin, revision))) => {
                let kept = Kept { origin, origin_revision: revision.0, seen: BTreeMap::new() };
                kept.save(&options.kept).map_err(|error| format!("{}: {error}", options.kept.display()))?;
                kept
            }
        };
        let inner = Arc::new(Inner {
            client: options.client(),
            options,
            keys: Mutex::default(),
            kept: Mutex::new(kept),
            refused: watch::Sender::new(None),
            answered: Mutex::default(),
            members: Mutex::default(),
            missed: Notify::new(),
        });
        let tasks = follow::start(&inner);
        Ok(Arc::new(Self { inner, tasks: Mutex::new(tasks) }))
    }

    /// It answers, and this node trusts what it says.
    #[must_use]
    pub fn works(&self) -> bool {
        self.inner.works() && self.failure().is_none()
    }

    /// Why this node does not use it any more, if so. A person must act.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        match &*self.inner.refused.borrow() {
            Some(Refused::Distrusted(why)) => Some(why.clone()),
            _ => None,
        }
    }

    /// Completes when the store was made anew, by `recover`: the agent starts anew, too.
    pub async fn until_anew(&self) {
        let mut refused = self.inner.refused.subscribe();
        if refused.wait_for(|refused| *refused == Some(Refused::Anew)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Which store: 0 is the one that the cluster began with.
    #[must_use]
    pub fn group(&self) -> u64 {
        locked(&self.inner.kept).origin.group
    }

    /// Its members, as the file names them.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.inner.client.endpoints()
    }

    /// Nothing was written but whose keys these are, as far as this node knows.
    #[must_use]
    pub fn is_new(&self) -> bool {
        locked(&self.inner.kept).seen.is_empty()
    }

    /// What this node knows of the etcd.
    #[must_use]
    pub fn standing(&self) -> EtcdStanding {
        let (members, alarms) = locked(&self.inner.members).clone();
        let works = self.inner.works();
        let why = locked(&self.inner.answered).1.clone().filter(|_| !works);
        EtcdStanding { works, why, members, alarms }
    }

    /// Others have seen what etcd does not show: it was restored from an older state, even if this node did not see the newer one.
    pub fn distrust(&self, why: String) {
        self.inner.distrust(why);
    }

    /// The values that this node has seen, and those that etcd holds where it has seen none.
    ///
    /// # Errors
    /// When etcd does not answer in time.
    pub async fn known(&self, timeout: Duration) -> Result<BTreeMap<String, Versioned>, String> {
        let mut values = self.inner.whole(Instant::now() + timeout).await.map_err(Fault::text)?.0;
        for (key, sender) in &*locked(&self.inner.keys) {
            if let Some(seen) = &*sender.borrow() {
                values.insert(key.clone(), seen.clone());
            }
        }
        Ok(values)
    }

    /// Makes the store anew in one transaction: these values, under a new origin. Every node then starts anew with them.
    ///
    /// # Errors
    /// When etcd does not answer, holds another cluster's keys or a later incarnation, or another node was faster. Asking again is
    /// harmless.
    pub async fn make_anew(
        &self,
        (group, incarnation): (u64, u64),
        values: BTreeMap<String, Vec<u8>>,
        timeout: Duration,
    ) -> Result<(), String> {
        let (deadline, options) = (Instant::now() + timeout, &self.inner.options);
        let present = match look_by(&self.inner.client, options, deadline).await? {
            Found::Foreign(why) => return Err(why),
            Found::Nothing => 0,
            Found::Ours(origin, _) if origin.group == group => return Ok(()),
            Found::Ours(origin, _) if origin.incarnation >= incarnation => {
                return Err("it was made anew already".to_owned());
            }
            Found::Ours(_, revision) => revision.0,
        };
        let key = format!("{}{ORIGIN_KEY}", options.prefix);
        let origin = Origin { group, incarnation, authority: options.authority.clone() };
        let mut puts = vec![put(&key, &serde_json::to_vec(&origin).map_err(|error| error.to_string())?)];
        puts.extend(values.iter().map(|(name, value)| put(&format!("{}{name}", options.prefix), value)));
        let body = json!({ "compare": [at(&key, present)], "success": puts });
        match self.inner.client.write::<Txn>("/v3/kv/txn", &body, deadline).await {
            Ok(txn) if txn.succeeded => Ok(()),
            Ok(_) => Err("another node was faster: ask again".to_owned()),
            Err(fault) => Err(fault.text()),
        }
    }

    /// Stops what runs by itself, and keeps what was seen.
    pub async fn stop(&self) {
        let tasks = std::mem::take(&mut *locked(&self.tasks));
        tasks.iter().for_each(JoinHandle::abort);
        self.inner.save().await;
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        locked(&self.tasks).iter().for_each(JoinHandle::abort);
    }
}

impl Inner {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.options.prefix)
    }

    fn works(&self) -> bool {
        locked(&self.answered).0.is_some_and(|at| at.elapsed() < FRESH)
    }

    fn answered(&self) {
        *locked(&self.answered) = (Some(Instant::now()), None);
    }

    fn silent(&self, why: &str) {
        locked(&self.answered).1 = Some(why.to_owned());
    }

    fn refusal(&self) -> Option<String> {
        match &*self.refused.borrow() {
            None => None,
            Some(Refused::Distrusted(why)) => Some(why.clone()),
            Some(Refused::Anew) => Some("the store was made anew; this node starts anew with it".to_owned()),
        }
    }

    fn distrust(&self, why: String) {
        let first = self.refused.send_if_modified(|refused| {
            let first = refused.is_none();
            if first {
                *refused = Some(Refused::Distrusted(why.clone()));
            }
            first
        });
        if first {
            tracing::error!(%why, "etcd is not believed any more; this node serves no writes until a person has acted");
        }
    }

    /// At which revision this node has seen the key at least; 0: never.
    fn seen(&self, name: &str) -> u64 {
        locked(&self.kept).seen.get(name).copied().unwrap_or(0)
    }

    /// Shows a value, if it is newer than what is shown.
    fn publish(&self, name: &str, versioned: &Versioned) {
        {
            let mut kept = locked(&self.kept);
            let seen = kept.seen.entry(name.to_owned()).or_default();
            *seen = (*seen).max(versioned.revision.0);
        }
        let mut keys = locked(&self.keys);
        let sender = keys.entry(name.to_owned()).or_insert_with(|| watch::Sender::new(None));
        sender.send_if_modified(|shown| {
            let newer = shown.as_ref().is_none_or(|shown| shown.revision < versioned.revision);
            if newer {
                *shown = Some(versioned.clone());
            }
            newer
        });
    }

    /// All keys with their values, the origin left out, and the revision of the whole.
    async fn whole(&self, deadline: Instant) -> Result<(BTreeMap<String, Versioned>, u64), Fault> {
        let body = range(&self.options.prefix, true, false);
        let read = self.client.read::<Range>("/v3/kv/range", &body, deadline).await?;
        let revision = read.header.revision;
        let named = read.kvs.into_iter().filter_map(|pair| {
            let name = self.name(&pair.key)?;
            Some((name, Versioned { revision: Revision(pair.mod_revision), value: pair.value }))
        });
        Ok((named.collect(), revision))
    }

    /// A key's name without the prefix; `None`: the origin, or not ours.
    fn name(&self, key: &[u8]) -> Option<String> {
        let name = std::str::from_utf8(key).ok()?.strip_prefix(&self.options.prefix)?;
        (name != ORIGIN_KEY).then(|| name.to_owned())
    }

    /// An answer shows less than this node has seen. A transaction that can not succeed asks etcd's consensus: what that shows is no stale
    /// read, and if it is older than what was seen before the question, etcd was restored from an older state.
    async fn confirm(&self, deadline: Instant) {
        let before = locked(&self.kept).clone();
        let origin = self.key(ORIGIN_KEY);
        let body = json!({
            "compare": [at(&origin, NEVER)],
            "success": [put(&origin, b"")],
            "failure": [get(&range(&self.options.prefix, true, true)), get(&range(&origin, false, false))],
        });
        let Ok(txn) = self.client.write::<Txn>("/v3/kv/txn", &body, deadline).await else { return };
        let mut ranges = txn.ranges().into_iter();
        let (Some(all), Some(marked)) = (ranges.next(), ranges.next()) else { return };
        if let Some(verdict) = judge(&self.options, &before, &all, &marked) {
            match verdict {
                Refused::Distrusted(why) => self.distrust(why),
                Refused::Anew => {
                    tracing::warn!("the store in etcd was made anew: starting anew with it");
                    self.refused.send_replace(Some(Refused::Anew));
                }
            }
        }
    }

    /// Keeps what was seen on disk. What fails is tried again at the next pace.
    async fn save(&self) {
        let (kept, path) = (locked(&self.kept).clone(), self.options.kept.clone());
        let saved = tokio::task::spawn_blocking(move || kept.save(&path)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, path = %self.options.kept.display(), "what was seen of etcd can not be kept");
        }
    }
}

/// Is etcd to be believed, by what its consensus shows now and what this node saw before it asked?
fn judge(options: &EtcdOptions, before: &Kept, all: &Range, marked: &Range) -> Option<Refused> {
    let advice = "restored from an older copy, or emptied? Writes that were acknowledged may be missing in it. If a newer copy exists, restore \
                  that; else `mainstay recover --from NODE` makes the cluster's part of it anew";
    let distrusted = |what: String| Some(Refused::Distrusted(format!("{what}: was etcd {advice}")));
    let Some(pair) = marked.kvs.first() else {
        return distrusted(format!("the cluster's keys under {} are gone from etcd", options.prefix));
    };
    if pair.mod_revision != before.origin_revision {
        let origin = serde_json::from_slice::<Origin>(&pair.value).unwrap_or_default();
        if origin.authority == options.authority && origin.incarnation > before.origin.incarnation {
            return Some(Refused::Anew);
        }
        return distrusted(format!("{}{ORIGIN_KEY} in etcd is not the one that this node knows", options.prefix));
    }
    for (name, seen) in &before.seen {
        let key = format!("{}{name}", options.prefix);
        let now = all.kvs.iter().find(|pair| pair.key == key.as_bytes()).map_or(0, |pair| pair.mod_revision);
        if now < *seen {
            return distrusted(format!("this node saw {key} at revision {seen}, and etcd has it at {now}"));
        }
    }
    None
}

#[async_trait]
impl Store for EtcdStore {
    async fn read(&self, key: &str, timeout: Duration) -> Result<Option<Versioned>, StoreError> {
        let (inner, deadline) = (&self.inner, Instant::now() + timeout);
        if let Some(why) = inner.refusal() {
            return Err(StoreError::Unavailable(why));
        }
        let seen = inner.seen(key);
        let read = inner.client.read::<Range>("/v3/kv/range", &range(&inner.key(key), false, false), deadline).await;
        let found = match read {
            Ok(read) => read.kvs.into_iter().next(),
            Err(fault) => {
                let why = fault.text();
                inner.silent(&why);
                return Err(StoreError::Unavailable(why));
            }
        };
        if found.as_ref().map_or(0, |pair| pair.mod_revision) < seen {
            inner.confirm(deadline).await;
            let why =
                inner.refusal().unwrap_or_else(|| "etcd answered with an older state than it had shown".to_owned());
            return Err(StoreError::Unavailable(why));
        }
        inner.answered();
        let found = found.map(|pair| Versioned { revision: Revision(pair.mod_revision), value: pair.value });
        if let Some(found) = &found {
            inner.publish(key, found);
        }
        Ok(found)
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<Revision>,
        value: Vec<u8>,
        timeout: Duration,
    ) -> CasOutcome {
        let (inner, deadline) = (&self.inner, Instant::now() + timeout);
        if value.len() > VALUE_BYTES_MAX {
            return CasOutcome::Unavailable(format!("the value has {} bytes; {VALUE_BYTES_MAX} may", value.len()));
        }
        if let Some(why) = inner.refusal() {
            return CasOutcome::Unavailable(why);
        }
        let (seen, origin_revision) = (inner.seen(key), locked(&inner.kept).origin_revision);
        let (full, origin) = (inner.key(key), inner.key(ORIGIN_KEY));
        let body = json!({
            "compare": [at(&origin, origin_revision), at(&full, expected.map_or(0, |revision| revision.0))],
            "success": [put(&full, &value), get(&range(&full, false, true))],
            "failure": [get(&range(&full, false, false)), get(&range(&origin, false, true))],
        });
        let txn = match inner.client.write::<Txn>("/v3/kv/txn", &body, deadline).await {
            Ok(txn) => txn,
            Err(Fault::Never(why)) => {
                inner.silent(&why);
                return CasOutcome::Unavailable(why);
            }
            Err(Fault::Unknown(why)) => {
                inner.silent(&why);
                return CasOutcome::Unknown;
            }
        };
        let (succeeded, mut ranges) = (txn.succeeded, txn.ranges().into_iter());
        let pair = ranges.next().and_then(|range| range.kvs.into_iter().next());
        if succeeded {
            let Some(pair) = pair else { return CasOutcome::Unknown };
            inner.answered();
            let revision = Revision(pair.mod_revision);
            inner.publish(key, &Versioned { revision, value });
            return CasOutcome::Done(revision);
        }
        let marked = ranges.next().and_then(|range| range.kvs.into_iter().next()).map_or(0, |pair| pair.mod_revision);
        if marked != origin_revision || pair.as_ref().map_or(0, |pair| pair.mod_revision) < seen {
            inner.confirm(deadline).await;
            let why =
                inner.refusal().unwrap_or_else(|| "etcd answered with an older state than it had shown".to_owned());
            return CasOutcome::Unavailable(why);
        }
        inner.answered();
        let present = pair.map(|pair| Versioned { revision: Revision(pair.mod_revision), value: pair.value });
        if let Some(present) = &present {
            inner.publish(key, present);
        }
        CasOutcome::Conflict(present)
    }

    fn watch(&self, key: &str) -> watch::Receiver<Option<Versioned>> {
        locked(&self.inner.keys).entry(key.to_owned()).or_insert_with(|| watch::Sender::new(None)).subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::Pair;

    fn options() -> EtcdOptions {
        EtcdOptions {
            endpoints: Vec::new(),
            tls: None,
            user: None,
            prefix: "/m/c/".to_owned(),
            authority: "ours".to_owned(),
            first: 0,
            kept: PathBuf::new(),
        }
    }

    fn kept() -> Kept {
        let origin = Origin { group: 0, incarnation: 0, authority: "ours".to_owned() };
        Kept { origin, origin_revision: 4, seen: BTreeMap::from([("record".to_owned(), 10), ("spec".to_owned(), 6)]) }
    }

    fn keys(pairs: &[(&str, u64)]) -> Range {
        let pair = |(key, revision): &(&str, u64)| Pair {
            key: format!("/m/c/{key}").into_bytes(),
            mod_revision: *revision,
            value: Vec::new(),
        };
        Range { kvs: pairs.iter().map(pair).collect(), ..Range::default() }
    }

    fn marked(revision: u64, incarnation: u64, authority: &str) -> Range {
        let origin = Origin { group: incarnation, incarnation, authority: authority.to_owned() };
        let value = serde_json::to_vec(&origin).unwrap();
        Range { kvs: vec![Pair { key: b"/m/c/origin".to_vec(), mod_revision: revision, value }], ..Range::default() }
    }

    fn verdict(all: &[(&str, u64)], marked: &Range) -> Option<Refused> {
        judge(&options(), &kept(), &keys(all), marked)
    }

    #[test]
    fn what_was_seen_may_only_grow() {
        let same = marked(4, 0, "ours");
        assert_eq!(verdict(&[("record", 10), ("spec", 6)], &same), None);
        assert_eq!(verdict(&[("record", 99), ("spec", 6), ("more", 3)], &same), None);
        for older in [&[("record", 9), ("spec", 6)][..], &[("record", 12)], &[]] {
            assert!(matches!(verdict(older, &same), Some(Refused::Distrusted(_))), "{older:?}");
        }
    }

    #[test]
    fn another_origin_is_this_clusters_only_in_a_later_incarnation() {
        let all = [("record", 10), ("spec", 6)];
        assert_eq!(verdict(&all, &marked(40, 1, "ours")), Some(Refused::Anew));
        for other in [marked(40, 0, "ours"), marked(40, 1, "theirs"), Range::default()] {
            assert!(matches!(verdict(&all, &other), Some(Refused::Distrusted(_))), "{other:?}");
        }
    }
}
