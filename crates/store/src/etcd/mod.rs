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
mod judge;
mod kept;
mod place;
mod wire;

pub use kept::{Floor, Origin};
pub use place::{Found, found, has_seen, leave_mark, look, marks, survey};

use async_trait::async_trait;
use client::{Client, Fault, User};
use http::{Door, TlsFiles};
use judge::{Refused, with_advice};
use kept::{Kept, ORIGIN_KEY};
use mainstay_model::etcd::{Endpoint, EtcdStanding, MemberStanding};
use mainstay_model::spec::Spec;
use mainstay_model::stored_spec::RECORD_KEY;
use mainstay_model::{NodeId, Revision};
use mainstay_ports::store::{CasOutcome, Store, StoreError, VALUE_BYTES_MAX, Versioned};
use place::look_by;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use wire::{Pair, Range, Txn, at, get, put, range};

const OLDER: &str = "etcd answered with an older state than it had shown";
/// etcd works if it answered within this.
const FRESH: Duration = Duration::from_secs(5);

/// Which etcd, and whose keys in it.
#[derive(Clone)]
pub struct EtcdOptions {
    prefix: String,
    authority: String,
    client: Arc<Client>,
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
        let tls = store.ca_file.clone().map(|ca| TlsFiles { ca, own });
        let doors = endpoints.into_iter().map(|endpoint| Door::new(endpoint, tls.clone()));
        let user = user.map(|(name, password_file)| User { name, password_file });
        Ok(Self {
            client: Arc::new(Client::new(doors.collect(), user, place.unwrap_or(0))),
            prefix: format!("{}/{}/", store.prefix, spec.cluster.name),
            authority,
            kept,
        })
    }

    /// Where the cluster's keys stand.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The one way to it: connections and the login are kept from one question to the next.
    fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client)
    }
}

/// The store. See the module's doc.
pub struct EtcdStore {
    inner: Arc<Inner>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

pub(crate) struct Inner {
    options: EtcdOptions,
    client: Arc<Client>,
    keys: Mutex<BTreeMap<String, watch::Sender<Option<Versioned>>>>,
    kept: Arc<Mutex<Kept>>,
    /// One writer at a time, each of what is newest.
    saving: Arc<Mutex<()>>,
    to_save: Notify,
    refused: watch::Sender<Option<Refused>>,
    answered: Mutex<(Option<Instant>, Option<String>)>,
    members: Mutex<(Vec<MemberStanding>, Vec<String>)>,
    /// The stream has missed something.
    missed: Notify,
    /// Another node has seen more than this one: the poll looks at once.
    heard_more: Arc<Notify>,
    /// See [`EtcdStore::is_compared`].
    compared: AtomicBool,
    /// Why what is seen can not be kept on disk, if so.
    unkept: Mutex<Option<String>>,
}

fn can_not_keep(path: &Path, error: &std::io::Error) -> String {
    format!("{}: what this node sees of etcd can not be kept: {error}", path.display())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
                let kept = Kept { origin, origin_revision: revision.0, ..Kept::default() };
                kept.save(&options.kept).map_err(|error| can_not_keep(&options.kept, &error))?;
                kept
            }
        };
        let refused = kept.refused.clone().map(Refused::Distrusted);
        if let Some(refused) = &refused {
            tracing::error!(why = %refused.text(), "etcd was not believed before this start, and is not now");
        }
        let inner = Arc::new(Inner {
            client: options.client(),
            options,
            keys: Mutex::default(),
            kept: Arc::new(Mutex::new(kept)),
            saving: Arc::default(),
            to_save: Notify::new(),
            refused: watch::Sender::new(refused),
            answered: Mutex::default(),
            members: Mutex::default(),
            missed: Notify::new(),
            heard_more: Arc::default(),
            compared: AtomicBool::new(false),
            unkept: Mutex::default(),
        });
        let tasks = follow::start(&inner);
        Ok(Arc::new(Self { inner, tasks: Mutex::new(tasks) }))
    }

    /// It answers, and this node trusts what it says.
    #[must_use]
    pub fn works(&self) -> bool {
        self.inner.works() && self.failure().is_none() && self.inner.unkept().is_none()
    }

    /// Why this node does not use it any more, if so. A person must act.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let refused = self.inner.refused.borrow();
        refused.as_ref().filter(|refused| **refused != Refused::Anew).map(Refused::text)
    }

    /// The same, but only what this node has seen by itself.
    #[must_use]
    pub fn evidence(&self) -> Option<String> {
        match &*self.inner.refused.borrow() {
            Some(Refused::Distrusted(why)) => Some(why.clone()),
            _ => None,
        }
    }

    /// This node goes by what etcd shows.
    #[must_use]
    pub fn is_believed(&self) -> bool {
        self.inner.refused.borrow().is_none()
    }

    /// The record as etcd's consensus shows it now, if etcd shows all that this node has seen or heard of. A read is not enough (a stale one
    /// may hide a loss), and neither is an earlier answer: etcd may have been restored since. `None`, too, while this node can not keep
    /// what it sees: it would have forgotten that after a start.
    pub async fn confirmed_record(&self, timeout: Duration) -> Option<Versioned> {
        let shown = self.inner.confirm(Instant::now() + timeout).await?;
        let record = shown.record.kvs.first()?;
        self.is_good(record).then(|| record.versioned())
    }

    /// Also by what was heard of while etcd answered.
    fn is_good(&self, record: &Pair) -> bool {
        self.inner.publish(RECORD_KEY, record)
            && locked(&self.inner.kept).allows(RECORD_KEY, Some(record))
            && self.is_believed()
            && self.inner.unkept().is_none()
    }

    /// The newest state of a key that this node has seen, for other nodes to hold against their etcd.
    #[must_use]
    pub fn floor(&self, key: &str) -> Option<Floor> {
        self.inner.seen(key)
    }

    /// Another node has seen this state of a key, before now: an etcd that can not have come from there is not believed, whenever it answers.
    /// (The poll looks.)
    pub fn hold_against(&self, node: &NodeId, key: &str, theirs: &Floor) {
        self.inner.heard_floor(node, key, theirs);
    }

    /// The other nodes were asked what they have seen, in this life.
    pub fn set_compared(&self) {
        self.inner.compared.store(true, Ordering::Relaxed);
    }

    /// Were they?
    #[must_use]
    pub fn is_compared(&self) -> bool {
        self.inner.compared.load(Ordering::Relaxed)
    }

    /// Another node says what it has against etcd; `None`: nothing, or nothing any more. Its silence changes nothing.
    pub fn heard_of(&self, node: &NodeId, evidence: Option<String>) {
        self.inner.heard_of(node, evidence);
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
        let unkept = self.inner.unkept();
        let works = self.inner.works() && unkept.is_none();
        let why = unkept.or_else(|| locked(&self.inner.answered).1.clone()).filter(|_| !works);
        EtcdStanding { works, why, members, alarms }
    }

    /// Others have seen what etcd does not show (say what): it was restored from an older state, even if this node did not see the newer
    /// one.
    pub fn distrust(&self, what: &str) {
        self.inner.distrust(what);
    }

    /// The values that this node has seen, and those that etcd holds where it has seen none.
    ///
    /// # Errors
    /// When etcd does not answer in time.
    pub async fn known(&self, timeout: Duration) -> Result<BTreeMap<String, Versioned>, String> {
        let values = self.inner.whole(Instant::now() + timeout).await.map_err(Fault::text)?.0;
        // A restored etcd may have used the same revisions for something else: what this node has seen comes first.
        let mut values: BTreeMap<String, Versioned> =
            values.into_iter().map(|(name, pair)| (name, pair.versioned())).collect();
        let kept: BTreeMap<String, Versioned> = locked(&self.inner.kept).values().collect();
        for (key, sender) in &*locked(&self.inner.keys) {
            if let Some(seen) = &*sender.borrow() {
                values.insert(key.clone(), seen.clone());
            }
        }
        // At least as new as what is shown.
        values.extend(kept);
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

    fn unkept(&self) -> Option<String> {
        locked(&self.unkept).clone()
    }

    fn refusal(&self) -> Option<String> {
        self.refused.borrow().as_ref().map(Refused::text)
    }

    /// Noted on disk at once: a start must not forget it.
    fn distrust(&self, what: &str) {
        let why = with_advice(what);
        let first = self.refused.send_if_modified(|refused| {
            let first = matches!(refused, None | Some(Refused::Heard(..)));
            if first {
                *refused = Some(Refused::Distrusted(why.clone()));
            }
            first
        });
        if first {
            tracing::error!(%why, "etcd is not believed any more; this node serves no writes until a person has acted");
            locked(&self.kept).refused = Some(why);
            self.to_save.notify_one();
        }
    }

    fn heard_of(&self, node: &NodeId, evidence: Option<String>) {
        let mut changed = None;
        self.refused.send_if_modified(|refused| {
            let next = match (&*refused, &evidence) {
                (None, Some(why)) => Some(Refused::Heard(node.clone(), why.clone())),
                (Some(Refused::Heard(from, _)), None) if from == node => None,
                _ => return false,
            };
            changed = Some(next.is_some());
            *refused = next;
            true
        });
        match changed {
            Some(true) => {
                tracing::error!(%node, ?evidence, "another node does not believe etcd: this node does not either")
            }
            Some(false) => tracing::warn!(%node, "that node believes etcd again: so does this one"),
            None => {}
        }
    }

    /// The newest state of the key that this node has seen.
    fn seen(&self, name: &str) -> Option<Floor> {
        locked(&self.kept).seen.get(name).cloned()
    }

    /// The revision that is shown; 0: none.
    fn shown(&self, name: &str) -> u64 {
        let keys = locked(&self.keys);
        keys.get(name).and_then(|sender| sender.borrow().as_ref().map(|shown| shown.revision.0)).unwrap_or(0)
    }

    /// Shows a value, if it is newer than what is shown and not older than what was seen. False: etcd can not have come there from what was seen before.
    #[must_use]
    fn publish(&self, name: &str, pair: &Pair) -> bool {
        {
            let mut kept = locked(&self.kept);
            if !kept.note(name, pair) {
                return false;
            }
            // Late; or of what etcd was brought back to, which the next answer tells. In neither case does anybody go by it.
            if kept.seen.get(name).is_some_and(|floor| floor.revision > pair.mod_revision) {
                return true;
            }
        }
        let mut keys = locked(&self.keys);
        let sender = keys.entry(name.to_owned()).or_insert_with(|| watch::Sender::new(None));
        sender.send_if_modified(|shown| {
            let newer = shown.as_ref().is_none_or(|shown| shown.revision.0 < pair.mod_revision);
            if newer {
                *shown = Some(pair.versioned());
            }
            newer
        });
        true
    }

    /// Shows them all.
    fn publish_all(&self, values: &BTreeMap<String, Pair>) -> Result<(), String> {
        let good = values.iter().all(|(name, pair)| self.publish(name, pair));
        if good { Ok(()) } else { Err(OLDER.to_owned()) }
    }

    /// All keys with their values, the origin left out, and the revision of the whole.
    async fn whole(&self, deadline: Instant) -> Result<(BTreeMap<String, Pair>, u64), Fault> {
        let body = range(&self.options.prefix, true, false);
        let read = self.client.read::<Range>("/v3/kv/range", &body, deadline).await?;
        let revision = read.header.revision;
        let named = read.kvs.into_iter().filter_map(|pair| Some((self.name(&pair.key)?, pair)));
        Ok((named.collect(), revision))
    }

    /// A key's name without the prefix; `None`: the origin, a mark, or not ours: another cluster's place may be below this one's.
    fn name(&self, key: &[u8]) -> Option<String> {
        let name = std::str::from_utf8(key).ok()?.strip_prefix(&self.options.prefix)?;
        (name != ORIGIN_KEY && !name.contains('/')).then(|| name.to_owned())
    }

    /// Keeps what was seen on disk. What fails is tried again soon.
    async fn save(&self) -> bool {
        let (kept, saving) = (Arc::clone(&self.kept), Arc::clone(&self.saving));
        let path = self.options.kept.clone();
        let saved = tokio::task::spawn_blocking(move || {
            // Whoever waits here writes what is newest then. Who asked for it may be gone meanwhile: this goes on.
            let _alone = locked(&saving);
            let newest = locked(&kept).clone();
            newest.save(&path)
        });
        let problem = match saved.await {
            Ok(saved) => saved.err().map(|error| can_not_keep(&self.options.kept, &error)),
            // It was ended: nobody asks any more.
            Err(_) => return false,
        };
        if let Some(why) = &problem {
            tracing::warn!(%why);
        }
        let saved = problem.is_none();
        *locked(&self.unkept) = problem;
        saved
    }
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
        let fits = seen.is_none_or(|seen| seen.may_become(found.as_ref()));
        if !fits || !found.as_ref().is_none_or(|pair| inner.publish(key, pair)) {
            inner.confirm(deadline).await;
            return Err(StoreError::Unavailable(inner.refusal().unwrap_or_else(|| OLDER.to_owned())));
        }
        inner.answered();
        Ok(found.as_ref().map(Pair::versioned))
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
        let before = locked(&inner.kept).clone();
        let seen = before.seen.get(key);
        if seen.is_some_and(|seen| Revision(seen.revision) > expected.unwrap_or_default()) {
            // Etcd would refuse it. One that was brought back to an older state would not, and would then lack less.
            return match self.read(key, timeout).await {
                Ok(now) => CasOutcome::Conflict(now),
                Err(error) => CasOutcome::Unavailable(error.to_string()),
            };
        }
        let (full, origin) = (inner.key(key), inner.key(ORIGIN_KEY));
        let body = json!({
            "compare": inner.compares(&before, key, expected),
            "success": [put(&full, &value), get(&range(&full, false, true))],
            "failure": [get(&range(&full, false, false)), get(&range(&origin, false, false))],
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
            let Some(mut pair) = pair else { return CasOutcome::Unknown };
            inner.answered();
            pair.value = value;
            if !inner.publish(key, &pair) {
                // Written it is; whether that counts is for people.
                inner.confirm(deadline).await;
                return CasOutcome::Unknown;
            }
            return CasOutcome::Done(Revision(pair.mod_revision));
        }
        let marked = ranges.next().and_then(|range| range.kvs.into_iter().next());
        let known = marked.is_some_and(|pair| before.is_origin(&pair));
        let fits = known && seen.is_none_or(|seen| seen.may_become(pair.as_ref()));
        if !fits || !pair.as_ref().is_none_or(|pair| inner.publish(key, pair)) {
            inner.confirm(deadline).await;
            return CasOutcome::Unavailable(inner.refusal().unwrap_or_else(|| OLDER.to_owned()));
        }
        inner.answered();
        CasOutcome::Conflict(pair.as_ref().map(Pair::versioned))
    }

    fn watch(&self, key: &str) -> watch::Receiver<Option<Versioned>> {
        locked(&self.inner.keys).entry(key.to_owned()).or_insert_with(|| watch::Sender::new(None)).subscribe()
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
