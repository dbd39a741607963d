//! How an agent tells proxies its route: a board with the newest one, read by long polls.
//!
//! A proxy asks with the version it knows; the answer comes at once when there is another, else after the wait it named, so that
//! what it knows never grows older than that. `valid_ms` is worked out when the answer is given; the proxy counts it from the
//! *sending* of its request, which errs on the safe side.

use crate::clock::boot_now;
use mainstay_model::{Moment, Route};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::sync::watch;

/// The longest wait an agent grants, in milliseconds.
pub const WAIT_MS_MAX: u64 = 1000;

/// A proxy's question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRequest {
    /// The version it knows; 0 = none.
    pub known: u64,
    /// Answer after this many milliseconds at the latest.
    pub wait_ms: u64,
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

/// The newest route of one agent.
#[derive(Debug)]
pub struct RouteBoard {
    posted: watch::Sender<Posted>,
}

impl RouteBoard {
    /// An empty board: closed, term 0. `life` is random per process life, so that versions of two lives never match.
    #[must_use]
    pub fn new(life: u64) -> Self {
        let version = (life >> 16).max(1);
        Self { posted: watch::Sender::new(Posted { version, ..Posted::default() }) }
    }

    /// Posts a route that holds until then at most. Only a real change wakes those who wait; a later deadline alone does not.
    pub fn publish(&self, route: Route, until: Moment) {
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
            async move { board.answer(RouteRequest { known, wait_ms: 1000 }).await }
        });
        tokio::task::yield_now().await;
        board.publish(open(3), boot_now() + Span(5000));
        let answer = waiting.await.unwrap();
        assert_eq!(answer.route.epoch, Term(3));
        assert!(answer.route.valid_ms > 4000 && answer.route.valid_ms <= 5000);
        let again = board.answer(RouteRequest { known: answer.version, wait_ms: 10 }).await;
        assert_eq!(again.version, answer.version);
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
