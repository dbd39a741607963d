//! A drain as proxies see it: who holds new work, and who still has work under way. Told to the decision, which goes on when nobody is
//! left, and in any case after a bound of its own. Absent: choosing; whatever is said here, nothing is safe or unsafe by it.

use mainstay_decide::io::Input;
use mainstay_model::Term;
use mainstay_ports::route_board::{Draining, RouteBoard};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// A proxy confirms within this that new work waits, or is not waited for.
const CONFIRM: Duration = Duration::from_millis(250);
/// This ends by itself; the decision has a shorter bound.
const WATCH: Duration = Duration::from_millis(1500);

/// What the decision hears first: everybody who asked lately is waited for. `None`: nobody did.
pub fn begin(board: &RouteBoard, term: Term) -> Option<Input> {
    let waiting = board.draining(term).silent;
    (!waiting.is_empty()).then_some(Input::Proxies { term, waiting, late: Vec::new() })
}

/// Tells who did not confirm in time, and when no work is under way any more.
pub async fn watch(board: Arc<RouteBoard>, term: Term, inputs: mpsc::Sender<Input>) {
    let begun = Instant::now();
    until(&board, term, begun + CONFIRM, |now| now.silent.is_empty() && now.busy.is_empty()).await;
    let Draining { silent: late, busy: waiting, .. } = board.draining(term);
    let done = waiting.is_empty();
    if inputs.send(Input::Proxies { term, waiting, late }).await.is_err() || done {
        return;
    }
    until(&board, term, begun + WATCH, |now| now.busy.is_empty()).await;
    let (waiting, late) = (Vec::new(), Vec::new());
    // When the loop has ended nobody drains.
    let _ = inputs.send(Input::Proxies { term, waiting, late }).await;
}

async fn until(board: &RouteBoard, term: Term, end: Instant, holds: impl Fn(&Draining) -> bool) {
    let mut said = board.said();
    loop {
        said.mark_unchanged();
        if holds(&board.draining(term)) || timeout_at(end, said.changed()).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_ports::route_board::{Holds, RouteRequest};

    fn ask(board: &RouteBoard, name: &str, under_way: Option<u64>) {
        let holds = under_way.map(|under_way| Holds { epoch: Term(3), under_way });
        board.heard(name, &RouteRequest { holds, ..RouteRequest::default() });
    }

    fn word(waiting: &[&str], late: &[&str]) -> Option<Input> {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Some(Input::Proxies { term: Term(3), waiting: names(waiting), late: names(late) })
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_is_waited_for_and_the_silent_are_named_after_a_bound() {
        let board = Arc::new(RouteBoard::new(1 << 40));
        assert_eq!(begin(&board, Term(3)), None, "no proxy");
        ["a", "b", "c"].iter().for_each(|name| ask(&board, name, None));
        assert_eq!(begin(&board, Term(3)), word(&["a", "b", "c"], &[]));
        let (inputs, mut heard) = mpsc::channel(8);
        let watching = tokio::spawn(watch(Arc::clone(&board), Term(3), inputs));
        tokio::task::yield_now().await;
        ask(&board, "a", Some(0));
        ask(&board, "b", Some(2));
        assert_eq!(heard.recv().await, word(&["b"], &["c"]));
        ask(&board, "b", Some(1));
        ask(&board, "b", Some(0));
        assert_eq!(heard.recv().await, word(&[], &[]));
        watching.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_confirm_nobody_waits_for_a_bound() {
        let board = Arc::new(RouteBoard::new(1 << 40));
        ask(&board, "a", None);
        let (inputs, mut heard) = mpsc::channel(8);
        let begun = Instant::now();
        let watching = tokio::spawn(watch(Arc::clone(&board), Term(3), inputs));
        tokio::task::yield_now().await;
        ask(&board, "a", Some(0));
        assert_eq!(heard.recv().await, word(&[], &[]));
        assert!(begun.elapsed() < CONFIRM);
        watching.await.unwrap();
        assert_eq!(heard.recv().await, None);
    }
}
