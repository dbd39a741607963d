//! What all threads obey and tell: the route, who may log in, whether work is paused; their numbers; words from one to another.
//! Absent: anything on the way of a query.

use super::options::PoolOptions;
use super::scram::Verifier;
use super::slab::Id;
use super::stats::PoolNumbers;
use crate::hold::Kind;
use crate::options::{Live, ProxyOptions};
use crate::registry::{Cut, Place, verdict};
use crate::table::{Held, RouteTable, Target, View};
use mainstay_model::outcome::{CommitAnswer, CommitQuestion};
use mainstay_model::{Moment, Span, SystemId};
use mainstay_ports::route_board::Holds;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

pub use mainstay_model::logins::{LoginRole as Login, Logins};

/// Words that wait for a thread, at most; more are dropped (each is a request to cancel, which may get lost on its way anyhow).
const MAIL_MAX: usize = 1024;

/// A role that may log in.
#[derive(Clone)]
pub(crate) struct Role {
    pub(crate) verifier: Verifier,
    pub(crate) superuser: bool,
    pub(crate) monitor: bool,
}

/// One state of what everybody obeys.
#[derive(Clone)]
pub(crate) struct Rules {
    pub(crate) view: View,
    pub(crate) until: Moment,
    pub(crate) roles: Option<Arc<BTreeMap<String, Role>>>,
    pub(crate) system: Option<SystemId>,
}

impl Rules {
    /// May a server connection stay? As for whole connections, and not past the end of the promise, whoever is late to say so.
    pub(crate) fn verdict(&self, place: &Place, now: Moment) -> Option<Cut> {
        let late = matches!(place, Place::Primary(_)) && now >= self.until;
        verdict(&self.view, place).or(late.then_some(Cut::Fence))
    }

    /// Where new work of this address may go now.
    pub(crate) fn places(&self, kind: Kind, now: Moment) -> Result<Vec<Place>, Held> {
        if kind == Kind::Read && !self.view.reads.is_empty() {
            return Ok(self.view.reads.iter().cloned().map(Place::Replica).collect());
        }
        match &self.view.write {
            Some(_) if now >= self.until => Err(Held::Stale),
            Some(target) => Ok(vec![Place::Primary(target.clone())]),
            None => Err(self.view.held),
        }
    }

    /// May this server get new work now?
    pub(crate) fn takes(&self, kind: Kind, place: &Place, now: Moment) -> bool {
        let fits = |target: &Target| self.view.write.as_ref() == Some(target) && now < self.until;
        match place {
            Place::Primary(target) => fits(target) && (kind == Kind::Write || self.view.reads.is_empty()),
            Place::Replica(target) => kind == Kind::Read && self.view.reads.iter().any(|read| same(read, target)),
        }
    }
}

/// A replica stays fit when another primary takes over above it.
fn same(a: &Target, b: &Target) -> bool {
    (&a.node, a.address) == (&b.node, b.address)
}

/// A commit that is to be looked up, for a client that waits.
#[derive(Clone, Debug)]
pub struct Asked {
    pub(crate) thread: usize,
    pub(crate) client: Id,
    /// The same client may have asked before, and was told that nobody had answered.
    pub(crate) serial: u64,
    /// What is to be asked.
    pub question: CommitQuestion,
    /// Until then the client waits.
    pub until: Moment,
}

/// A word to a thread.
#[derive(Clone, Debug)]
pub(crate) enum Mail {
    /// What became of this client's commit.
    Outcome { client: Id, serial: u64, answer: CommitAnswer },
    /// A client with this number and secret wants its query cancelled.
    Cancel { process: u32, secret: u32 },
    /// The settings that this client at the console asked for are read anew, or why not.
    Reloaded { client: Id, asked: Moment, outcome: Result<(), Arc<str>> },
}

/// Clients at the console who want the settings read anew, and by which thread each is served.
#[derive(Default)]
struct Reloaders {
    /// For whom nobody has begun to read yet.
    asked: Vec<(usize, Id, Moment)>,
    /// Whom the reading that is under way answers: it began after they had asked.
    read_for: Vec<(usize, Id, Moment)>,
}

pub(crate) struct Mailbox {
    wake: OwnedFd,
    mail: Mutex<Vec<Mail>>,
    /// The newest version that the thread goes by.
    follows: AtomicU64,
    /// Transactions that it has open at the primary, while one is about to be changed.
    under_way: AtomicU64,
}

impl Mailbox {
    fn new(wake: OwnedFd) -> Self {
        Self { wake, mail: Mutex::default(), follows: AtomicU64::new(0), under_way: AtomicU64::new(0) }
    }
}

/// See the module.
pub(crate) struct Hub {
    rules: Mutex<Arc<Rules>>,
    pub(crate) version: AtomicU64,
    pub(crate) paused: AtomicBool,
    pub(crate) stopping: AtomicBool,
    /// Clients and those waiting, over all threads.
    pub(crate) clients: AtomicU64,
    pub(crate) waiting: AtomicU64,
    /// What those have sent.
    pub(crate) held_bytes: AtomicU64,
    pub(crate) options: Arc<Live<ProxyOptions>>,
    pub(crate) pooling: Live<PoolOptions>,
    /// The console asks for the settings to be read anew.
    pub(crate) reload: Notify,
    reloaders: Mutex<Reloaders>,
    /// Commits that are to be looked up, and nobody has begun to.
    outcomes: Mutex<Vec<Asked>>,
    /// There are some.
    pub(crate) look_up: Notify,
    boxes: Vec<Mailbox>,
    /// The version that holds new work for a planned change; 0: it is not held.
    drains_since: AtomicU64,
    told: Mutex<Vec<Vec<PoolNumbers>>>,
    /// The timeline of each epoch's primary, as its server said.
    timelines: Mutex<BTreeMap<u64, u32>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(crate) fn new(wakes: Vec<OwnedFd>, options: ProxyOptions, pooling: PoolOptions) -> Self {
        let view = RouteTable::new(0, Span(0)).view(Moment(1));
        let count = wakes.len();
        Self {
            rules: Mutex::new(Arc::new(Rules { view, until: Moment(0), roles: None, system: None })),
            version: AtomicU64::new(1),
            paused: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            clients: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            held_bytes: AtomicU64::new(0),
            options: Arc::new(Live::new(options)),
            pooling: Live::new(pooling),
            reload: Notify::new(),
            reloaders: Mutex::default(),
            outcomes: Mutex::default(),
            look_up: Notify::new(),
            boxes: wakes.into_iter().map(Mailbox::new).collect(),
            drains_since: AtomicU64::new(0),
            told: Mutex::new(vec![Vec::new(); count]),
            timelines: Mutex::default(),
        }
    }

    pub(crate) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&lock(&self.rules))
    }

    pub(crate) fn wake_of(&self, thread: usize) -> Option<&OwnedFd> {
        self.boxes.get(thread).map(|held| &held.wake)
    }

    pub(crate) fn wake_all(&self) {
        self.version.fetch_add(1, Ordering::Release);
        for held in &self.boxes {
            ring(&held.wake);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Rules)) {
        {
            let mut rules = lock(&self.rules);
            let mut next = Rules::clone(&rules);
            change(&mut next);
            *rules = Arc::new(next);
        }
        self.wake_all();
    }

    pub(crate) fn set_view(&self, view: &View, until: Moment) {
        let now = self.rules();
        if now.view != *view || now.until != until {
            let drained_before = now.view.held == Held::Draining;
            self.change(|rules| (rules.view, rules.until) = (view.clone(), until));
            if view.held != Held::Draining {
                self.drains_since.store(0, Ordering::Release);
            } else if !drained_before || now.view.epoch != view.epoch {
                self.drains_since.store(self.version.load(Ordering::Acquire), Ordering::Release);
            }
        }
    }

    /// A thread goes by this version now, and has so much under way at a primary that is about to be changed.
    pub(crate) fn follows(&self, thread: usize, version: u64, under_way: u64) {
        if let Some(held) = self.boxes.get(thread) {
            held.under_way.store(under_way, Ordering::Release);
            held.follows.store(version, Ordering::Release);
        }
    }

    /// What is held for a planned change, once every thread holds it.
    pub(crate) fn holds(&self) -> Option<Holds> {
        let since = self.drains_since.load(Ordering::Acquire);
        let all = since > 0 && self.boxes.iter().all(|held| held.follows.load(Ordering::Acquire) >= since);
        let under_way = self.boxes.iter().map(|held| held.under_way.load(Ordering::Acquire)).sum();
        all.then(|| Holds { epoch: self.rules().view.epoch, under_way })
    }

    /// Takes who may log in. Roles whose verifier can not be read are left out.
    pub(crate) fn set_logins(&self, logins: Logins) {
        let role = |login: Login| {
            let verifier = Verifier::parse(&login.verifier)?;
            Some((login.name, Role { verifier, superuser: login.superuser, monitor: login.monitor }))
        };
        let roles = Arc::new(logins.roles.into_iter().filter_map(role).collect());
        self.change(|rules| (rules.roles, rules.system) = (Some(roles), logins.system.or(rules.system)));
    }

    pub(crate) fn post(&self, thread: usize, mail: Mail) {
        if let Some(held) = self.boxes.get(thread) {
            let mut waiting = lock(&held.mail);
            if waiting.len() < MAIL_MAX {
                waiting.push(mail);
            }
            ring(&held.wake);
        }
    }

    /// A client at the console wants the settings read anew. False: too many do.
    pub(crate) fn ask_reload(&self, thread: usize, client: Id, now: Moment) -> bool {
        let mut reloaders = lock(&self.reloaders);
        let room = reloaders.asked.len() + reloaders.read_for.len() < MAIL_MAX;
        if room {
            reloaders.asked.push((thread, client, now));
            self.reload.notify_one();
        }
        room
    }

    /// They are read from now on, for everybody who has asked up to now.
    pub(crate) fn reload_begins(&self) {
        let mut reloaders = lock(&self.reloaders);
        let asked = std::mem::take(&mut reloaders.asked);
        reloaders.read_for.extend(asked);
    }

    /// They are, or can not be. Who has asked meanwhile, perhaps after the file was read, waits for the next reading.
    pub(crate) fn reloaded(&self, outcome: &Result<(), String>) {
        let outcome: Result<(), Arc<str>> = outcome.as_ref().copied().map_err(|why| Arc::from(why.as_str()));
        for (thread, client, asked) in std::mem::take(&mut lock(&self.reloaders).read_for) {
            self.post(thread, Mail::Reloaded { client, asked, outcome: outcome.clone() });
        }
    }

    /// A commit is to be looked up. False: there are too many.
    pub(crate) fn ask_outcome(&self, asked: Asked) -> bool {
        let mut outcomes = lock(&self.outcomes);
        let room = outcomes.len() < MAIL_MAX;
        if room {
            outcomes.push(asked);
            self.look_up.notify_one();
        }
        room
    }

    /// Those that nobody has begun to look up.
    pub(crate) fn outcomes(&self) -> Vec<Asked> {
        std::mem::take(&mut *lock(&self.outcomes))
    }

    pub(crate) fn mail(&self, thread: usize) -> Vec<Mail> {
        self.boxes.get(thread).map(|held| std::mem::take(&mut *lock(&held.mail))).unwrap_or_default()
    }

    pub(crate) fn tell(&self, thread: usize, numbers: Vec<PoolNumbers>) {
        if let Some(place) = lock(&self.told).get_mut(thread) {
            *place = numbers;
        }
    }

    /// Of all threads, merged by pool.
    pub(crate) fn numbers(&self) -> Vec<PoolNumbers> {
        let mut merged: BTreeMap<(String, String, bool), PoolNumbers> = BTreeMap::new();
        for numbers in lock(&self.told).iter().flatten() {
            let key = (numbers.database.clone(), numbers.user.clone(), numbers.reads);
            merged.entry(key).and_modify(|sum| sum.add(numbers)).or_insert_with(|| numbers.clone());
        }
        merged.into_values().collect()
    }

    /// A primary says its timeline: false if a primary of an earlier epoch was further, so that this one is none.
    pub(crate) fn note_timeline(&self, epoch: u64, timeline: u32) -> bool {
        let mut timelines = lock(&self.timelines);
        let fits = timelines.range(..=epoch).next_back().is_none_or(|(_, known)| *known <= timeline);
        if fits {
            timelines.clear();
            timelines.insert(epoch, timeline);
        }
        fits
    }
}

fn ring(wake: &impl AsFd) {
    // A full counter wakes just as well.
    let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_of_a_later_epoch_is_never_on_an_earlier_timeline() {
        let hub = Hub::new(Vec::new(), ProxyOptions::default(), PoolOptions::default());
        assert!(hub.note_timeline(3, 2) && hub.note_timeline(3, 2) && hub.note_timeline(5, 4));
        assert!(!hub.note_timeline(6, 3));
        assert!(hub.note_timeline(6, 5));
    }

    #[test]
    fn a_reading_answers_those_who_asked_before_it_began() {
        let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        let hub = Hub::new(vec![wake], ProxyOptions::default(), PoolOptions::default());
        let mut slab = crate::pool::slab::Slab::<()>::new();
        let (early, late) = (slab.reserve(), slab.reserve());
        let answered = || -> Vec<Id> {
            hub.reloaded(&Ok(()));
            let of = |mail: Mail| match mail {
                Mail::Reloaded { client, .. } => Some(client),
                _ => None,
            };
            hub.mail(0).into_iter().filter_map(of).collect()
        };
        assert!(hub.ask_reload(0, early, Moment(1)));
        hub.reload_begins();
        assert!(hub.ask_reload(0, late, Moment(2)));
        assert_eq!(answered(), [early]);
        assert_eq!(answered(), []);
        hub.reload_begins();
        assert_eq!(answered(), [late]);
    }

    #[test]
    fn a_drain_is_confirmed_when_every_thread_goes_by_it_and_not_by_a_word_of_before() {
        let wake = || rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        let hub = Hub::new(vec![wake(), wake()], ProxyOptions::default(), PoolOptions::default());
        let follow = |thread, under_way| hub.follows(thread, hub.version.load(Ordering::Relaxed), under_way);
        let open = View { epoch: mainstay_model::Term(3), ..hub.rules().view.clone() };
        let drains = View { held: Held::Draining, ..open.clone() };
        for _ in 0..2 {
            hub.set_view(&open, Moment(9));
            follow(0, 0);
            follow(1, 0);
            assert_eq!(hub.holds(), None);
            hub.set_view(&drains, Moment(9));
            follow(0, 2);
            assert_eq!(hub.holds(), None, "one thread has not heard it");
            follow(1, 1);
            let holds = |under_way| Some(Holds { epoch: mainstay_model::Term(3), under_way });
            assert_eq!(hub.holds(), holds(3));
            // A later promise of the same drain is no new one.
            hub.set_view(&drains, Moment(20));
            assert_eq!(hub.holds(), holds(3));
        }
    }
}
