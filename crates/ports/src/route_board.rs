//! How an agent tells proxies its route: a board with the newest one, read by long polls.
//!
//! A proxy asks with the version it knows; the answer comes at once when there is another, else after the wait it named, so that
//! what it knows never grows older than that. `valid_ms` is worked out when the answer is given; the proxy counts it from the
//! *sending* of its request, which errs on the safe side.
//!
//! While a planned change is near, a proxy says with each question how far it has come: that is all that an agent knows of proxies. It
//! makes a drain shorter or longer within its bound, and nothing is safe or unsafe by it.

use crate::clock::boot_now;
use mainstay_model::{Moment, Route, RouteState, Span, Term};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// The longest wait an agent grants, in milliseconds.
pub const WAIT_MS_MAX: u64 = 1000;
/// A proxy that has not asked for this long routes nothing by this agent's word.
const GONE: Span = Span(1500);
/// Proxies that are remembered, at most.
const PROXIES_MAX: usize = 256;

/// A proxy's question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRequest {
    /// The version it knows; 0 = none.
    pub known: u64,
    /// Answer after this many milliseconds at the latest.
    pub wait_ms: u64,
    /// Which process asks: proxies may share a certificate. 0 = it does not say.
    #[serde(default)]
    pub life: u64,
    /// It holds new work for a planned change, and this is what is still under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds: Option<Holds>,
    /// Somebody at its console holds all work back.
    #[serde(default)]
    pub paused: bool,
}

/// A proxy's word in a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    /// No new work goes to the primary of this epoch.
    pub epoch: Term,
    /// Transactions that are still open there.
    pub under_way: u64,
}

/// What proxies have said in a drain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draining {
    /// They have not said that new work waits.
    pub silent: Vec<String>,
    /// They have, and work is under way with them.
    pub busy: Vec<String>,
    /// New work waits, and nothing is under way.
    pub done: Vec<String>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteAnswer {
    /// Changes with every change of the route; starts anew, at random, with each life of the agent.
    pub version: u64,
    /// The route, with `valid_ms` as of now.
    pub route: Route,
}

#[derive(Clone, Debug, Default)]
struct Posted {
    version: u64,
    route: Route,
    until: Moment,
}

/// One proxy.
#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Moment,
    holds: Option<Holds>,
    paused: bool,
}

/// The newest route of one agent.
#[derive(Debug)]
pub struct RouteBoard {
    posted: watch::Sender<Posted>,
    /// By name and process.
    proxies: Mutex<BTreeMap<(String, u64), Heard>>,
    /// Counts what proxies said in drains.
    said: watch::Sender<u64>,
}

impl RouteBoard {
    /// An empty board: closed, term 0. `life` is random per process life, so that versions of two lives never match.
    #[must_use]
    pub fn new(life: u64) -> Self {
        let version = (life >> 16).max(1);
        let posted = watch::Sender::new(Posted { version, ..Posted::default() });
        Self { posted, proxies: Mutex::default(), said: watch::Sender::new(0) }
    }

    fn proxies(&self) -> MutexGuard<'_, BTreeMap<(String, u64), Heard>> {
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A proxy of this name asks.
    pub fn heard(&self, name: &str, request: &RouteRequest) {
        let (now, mut proxies) = (boot_now(), self.proxies());
        if proxies.len() >= PROXIES_MAX {
            proxies.retain(|_, heard| now.since(heard.at) < GONE);
        }
        let key = (name.to_owned(), request.life);
        if proxies.len() < PROXIES_MAX || proxies.contains_key(&key) {
            let before = proxies.insert(key, Heard { at: now, holds: request.holds, paused: request.paused });
            drop(proxies);
            if before.is_none_or(|before| before.holds != request.holds) {
                self.said.send_modify(|count| *count = count.wrapping_add(1));
            }
        }
    }

    /// The proxies that have asked lately and say that somebody at their console holds all work back.
    #[must_use]
    pub fn paused(&self) -> Vec<String> {
        let (now, proxies) = (boot_now(), self.proxies());
        let paused = proxies.iter().filter(|(_, heard)| heard.paused && now.since(heard.at) < GONE);
        let mut names: Vec<String> = paused.map(|((name, _), _)| name.clone()).collect();
        names.dedup();
        names
    }

    /// How far the proxies are that have asked lately.
    #[must_use]
    pub fn draining(&self, epoch: Term) -> Draining {
        let (now, mut all) = (boot_now(), Draining::default());
        for ((name, _), heard) in self.proxies().iter().filter(|(_, heard)| now.since(heard.at) < GONE) {
            let list = match heard.holds.filter(|holds| holds.epoch == epoch) {
                None => &mut all.silent,
                Some(Holds { under_way: 0, .. }) => &mut all.done,
                Some(_) => &mut all.busy,
            };
            list.push(name.clone());
        }
        all
    }

    /// Changes when a proxy says something else in a drain.
    #[must_use]
    pub fn said(&self) -> watch::Receiver<u64> {
        self.said.subscribe()
    }

    /// Posts a route that holds until then at most. Only a real change wakes those who wait; a later deadline alone does not.
    pub fn publish(&self, route: Route, until: Moment) {
        if route.state == RouteState::Draining && self.posted.borrow().route.state != RouteState::Draining {
            // What was said in an earlier drain is no answer to this one.
            self.proxies().values_mut().for_each(|heard| heard.holds = None);
        }
        self.posted.send_if_modified(|posted| {
            posted.until = until;
            if posted.route == route {
                return false;
            }
            posted.route = route;
            posted.version += 1;
            true
        });
    }

    /// Answers a question: at once on news, else after its wait.
    pub async fn answer(&self, request: RouteRequest) -> RouteAnswer {
        let mut posted = self.posted.subscribe();
        let wait = Duration::from_millis(request.wait_ms.min(WAIT_MS_MAX));
        let _ = tokio::time::timeout(wait, posted.wait_for(|posted| posted.version != request.known)).await;
        self.now()
    }

    /// The route as of now.
    #[must_use]
    pub fn now(&self) -> RouteAnswer {
        let posted = self.posted.borrow().clone();
        let valid_ms = posted.until.since(boot_now()).0;
        RouteAnswer { version: posted.version, route: Route { valid_ms, ..posted.route } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::{RouteState, Span, Term};

    fn open(term: u64) -> Route {
        Route { epoch: Term(term), state: RouteState::Open, ..Route::default() }
    }

    #[tokio::test]
    async fn news_come_at_once_and_silence_after_the_wait() {
        let board = std::sync::Arc::new(RouteBoard::new(1 << 40));
        let first = board.now();
        let waiting = tokio::spawn({
            let (board, known) = (std::sync::Arc::clone(&board), first.version);
            async move { board.answer(RouteRequest { known, wait_ms: 1000, ..RouteRequest::default() }).await }
        });
        tokio::task::yield_now().await;
        board.publish(open(3), boot_now() + Span(5000));
        let answer = waiting.await.unwrap();
        assert_eq!(answer.route.epoch, Term(3));
        assert!(answer.route.valid_ms > 4000 && answer.route.valid_ms <= 5000);
        let again = board.answer(RouteRequest { known: answer.version, wait_ms: 10, ..RouteRequest::default() }).await;
        assert_eq!(again.version, answer.version);
    }

    #[test]
    fn a_drain_knows_who_holds_new_work_and_believes_no_earlier_word() {
        let board = RouteBoard::new(1 << 40);
        let holds = |epoch, under_way| Some(Holds { epoch: Term(epoch), under_way });
        let ask = |name: &str, life, holds| board.heard(name, &RouteRequest { life, holds, ..RouteRequest::default() });
        let drain = || Route { state: RouteState::Draining, ..open(3) };
        let mut said = board.said();
        for (name, life, what) in [("a", 1, None), ("a", 2, holds(3, 0)), ("b", 0, holds(3, 2)), ("c", 0, holds(2, 0))]
        {
            ask(name, life, what);
        }
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let wanted = Draining { silent: names(&["a", "c"]), busy: names(&["b"]), done: names(&["a"]) };
        assert_eq!(board.draining(Term(3)), wanted);
        assert!(said.has_changed().unwrap());
        said.mark_unchanged();
        ask("b", 0, holds(3, 2));
        assert!(!said.has_changed().unwrap(), "nothing new");
        board.publish(drain(), boot_now() + Span(5000));
        assert_eq!(board.draining(Term(3)).silent.len(), 4, "said before this drain");
        ask("b", 0, holds(3, 0));
        board.publish(drain(), boot_now() + Span(6000));
        assert_eq!(board.draining(Term(3)).done, names(&["b"]), "the same drain goes on");
        (0..2 * PROXIES_MAX as u64).for_each(|life| ask("many", life, None));
        assert_eq!(board.proxies().len(), PROXIES_MAX);
    }

    #[test]
    fn who_is_paused_is_known_until_it_says_otherwise() {
        let board = RouteBoard::new(1 << 40);
        let ask =
            |name: &str, life, paused| board.heard(name, &RouteRequest { life, paused, ..RouteRequest::default() });
        ask("a", 1, true);
        ask("a", 2, true);
        ask("b", 1, false);
        ask("c", 1, true);
        assert_eq!(board.paused(), ["a", "c"]);
        ask("c", 1, false);
        assert_eq!(board.paused(), ["a"]);
    }

    #[tokio::test]
    async fn a_renewal_keeps_the_version_and_a_passed_deadline_is_worth_nothing() {
        let board = RouteBoard::new(1 << 40);
        board.publish(open(3), boot_now() + Span(5000));
        let version = board.now().version;
        board.publish(open(3), Moment(0));
        assert_eq!(board.now().version, version);
        assert_eq!(board.now().route.valid_ms, 0);
    }
}
