//! The feed: asks one agent for its route, again and again, and dates each answer by the moment its question was sent.
//! Absent: the transport (the caller gives it) and any judgement of what was said.

use mainstay_model::{Moment, NodeId, Route, RouteState};
use mainstay_ports::clock::boot_now;
use mainstay_ports::route_board::{Holds, RouteAnswer, RouteRequest};
use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::debug;

/// How long an agent may keep a question when nothing changed: also how often validity is renewed, in milliseconds.
pub const WAIT_MS: u64 = 250;
/// The same while a planned change is near: how far this proxy has come is told with each question, and work is held meanwhile.
const WAIT_IN_DRAIN_MS: u64 = 5;
/// An answer longer than this is not read.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// An answer that takes longer than this is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(WAIT_MS + 750);
/// Least distance between two questions, against an agent that always has news.
const PACE: Duration = Duration::from_millis(2);
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MOST: Duration = Duration::from_millis(200);

/// What a proxy says of itself when it asks.
#[derive(Clone)]
pub struct Standing {
    /// Tells processes apart that share a certificate; 0 = it is not said.
    pub life: u64,
    /// What it holds for a planned change, if it does now.
    pub holds: Arc<dyn Fn() -> Option<Holds> + Send + Sync>,
    /// Does somebody at its console hold all work back?
    pub paused: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Default for Standing {
    fn default() -> Self {
        Self { life: 0, holds: Arc::new(|| None), paused: Arc::new(|| false) }
    }
}

impl std::fmt::Debug for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Standing").field("life", &self.life).finish_non_exhaustive()
    }
}

/// What one agent said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteReport {
    /// Whose agent.
    pub from: NodeId,
    /// Its word.
    pub route: Route,
}

/// A report and the local moment at which the question for it was *sent*: its validity counts from then, which errs on the
/// safe side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimedReport {
    /// What was said.
    pub report: RouteReport,
    /// When the question was sent, by this host's boot clock.
    pub sent: Moment,
}

/// Why an answer was not used.
#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error("no answer within {} ms", ANSWER_TIMEOUT.as_millis())]
    Late,
    #[error("{0}")]
    Transport(String),
    #[error("an answer of {0} bytes, more than {ANSWER_BYTES_MAX}")]
    Long(usize),
    #[error("an answer that cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
}

/// Asks one agent for ever; ends when nobody listens to `to` any more. `ask` sends a question's bytes and returns the answer's
/// (both JSON, see [`RouteRequest`] and [`RouteAnswer`]); when it fails the question is repeated soon.
pub async fn feed<Ask, Answering, Failure>(node: NodeId, ask: Ask, standing: Standing, to: mpsc::Sender<TimedReport>)
where
    Ask: Fn(Vec<u8>) -> Answering,
    Answering: Future<Output = Result<Vec<u8>, Failure>>,
    Failure: Display,
{
    let (mut known, mut retry, mut wait_ms) = (0, RETRY_FIRST, WAIT_MS);
    while !to.is_closed() {
        let (sent, begun) = (boot_now(), tokio::time::Instant::now());
        let (holds, paused) = ((standing.holds)(), (standing.paused)());
        let request = RouteRequest { known, wait_ms, life: standing.life, holds, paused };
        let answer = tokio::select! {
            answer = question(&ask, request) => answer,
            () = to.closed() => return,
        };
        match answer {
            Ok(RouteAnswer { version, route }) => {
                (known, retry) = (version, RETRY_FIRST);
                wait_ms = if route.state == RouteState::Draining { WAIT_IN_DRAIN_MS } else { WAIT_MS };
                let report = RouteReport { from: node.clone(), route };
                if to.send(TimedReport { report, sent }).await.is_err() {
                    return;
                }
                tokio::time::sleep_until(begun + PACE).await;
            }
            Err(error) => {
                debug!(%node, %error, "no route from this agent; asking again");
                (known, wait_ms) = (0, WAIT_MS);
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RETRY_MOST);
            }
        }
    }
}

async fn question<Ask, Answering, Failure>(ask: &Ask, request: RouteRequest) -> Result<RouteAnswer, FeedError>
where
    Ask: Fn(Vec<u8>) -> Answering,
    Answering: Future<Output = Result<Vec<u8>, Failure>>,
    Failure: Display,
{
    let body = serde_json::to_vec(&request)?;
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, ask(body)).await.map_err(|_| FeedError::Late)?;
    let answer = answer.map_err(|failure| FeedError::Transport(failure.to_string()))?;
    if answer.len() > ANSWER_BYTES_MAX {
        return Err(FeedError::Long(answer.len()));
    }
    Ok(serde_json::from_slice(&answer)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::{Span, Term};
    use mainstay_ports::route_board::RouteBoard;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn open(term: u64) -> Route {
        Route { epoch: Term(term), state: RouteState::Open, ..Route::default() }
    }

    async fn answer(board: Arc<RouteBoard>, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let request: RouteRequest = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
        serde_json::to_vec(&board.answer(request).await).map_err(|e| e.to_string())
    }

    fn feeding(board: &Arc<RouteBoard>, failures: usize) -> mpsc::Receiver<TimedReport> {
        let (to, from) = mpsc::channel(16);
        let (board, left) = (Arc::clone(board), Arc::new(AtomicUsize::new(failures)));
        let ask = move |body: Vec<u8>| {
            let board = Arc::clone(&board);
            let bad = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).ok();
            async move {
                match bad {
                    Some(n) if n % 3 == 0 => Err("broken".to_owned()),
                    Some(n) if n % 3 == 1 => Ok(vec![b'['; ANSWER_BYTES_MAX + 1]),
                    Some(_) => Ok(b"{\"version\": -1}".to_vec()),
                    None => answer(board, body).await,
                }
            }
        };
        tokio::spawn(feed(NodeId::new("db1").unwrap(), ask, Standing::default(), to));
        from
    }

    #[tokio::test]
    async fn news_arrive_at_once_and_validity_is_renewed_without_news() {
        let board = Arc::new(RouteBoard::new(1 << 40));
        let mut reports = feeding(&board, 0);
        assert_eq!(reports.recv().await.unwrap().report.route.epoch, Term(0));
        tokio::time::sleep(Duration::from_millis(30)).await;
        let published = boot_now();
        board.publish(open(7), published + Span(3000));
        let heard = reports.recv().await.unwrap();
        assert!(boot_now().since(published) < Span(50));
        assert_eq!(heard.report.route.epoch, Term(7));
        assert!(heard.sent + Span(heard.report.route.valid_ms) <= published + Span(3000), "dated too late");
        let (renewed, at) = (reports.recv().await.unwrap(), boot_now());
        assert!(at.since(published) >= Span(200), "a question without news is kept");
        assert!(renewed.sent >= published && renewed.sent < at);
    }

    #[tokio::test]
    async fn failures_and_garbage_are_retried() {
        let board = Arc::new(RouteBoard::new(1 << 40));
        board.publish(open(2), boot_now() + Span(9000));
        let mut reports = feeding(&board, 4);
        let first = tokio::time::timeout(Duration::from_secs(3), reports.recv()).await.unwrap().unwrap();
        assert_eq!(first.report.route.epoch, Term(2));
    }

    #[tokio::test]
    async fn a_feed_that_nobody_hears_ends() {
        let (to, from) = mpsc::channel(1);
        let silent = |_| std::future::pending::<Result<Vec<u8>, String>>();
        let task = tokio::spawn(feed(NodeId::new("db1").unwrap(), silent, Standing::default(), to));
        drop(from);
        tokio::time::timeout(Duration::from_secs(1), task).await.unwrap().unwrap();
    }
}
