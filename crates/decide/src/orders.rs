//! Orders to the local server: one at a time, a kill beside it; and what their outcomes mean.

use crate::io::Output;
use crate::mind::Mind;
use mainstay_model::{Lost, Moment, Order, OrderFailure, OrderId, Outcome, ServerState, Span, Term};

/// A kill that did not end the server is given again after this, then after twice as long, and so on.
const KILL_AGAIN_MS: u64 = 100;
const KILL_AGAIN_MAX_MS: u64 = 2_000;

/// An order that runs.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    id: OrderId,
    pub(crate) order: Order,
    pub(crate) since: Moment,
    /// The durable state named no upstream when the order was given.
    cut: bool,
}

/// What runs now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Orders {
    next: u64,
    pub(crate) running: Option<Running>,
    kill: Option<(OrderId, Moment)>,
    /// The last kill did not end everything: since when, and when the next one is due.
    kill_again: Option<(Moment, Moment)>,
    kills: u32,
    /// The last kill left processes that will never run again, and are not gone: nothing is started or changed until a kill ends them.
    doomed: bool,
}

impl Orders {
    /// No other order may be given now.
    pub(crate) fn busy(&self) -> bool {
        self.at_work() || self.doomed
    }
    /// An order runs, or a kill is to be given again.
    pub(crate) fn at_work(&self) -> bool {
        self.running.is_some() || self.killing()
    }
    /// Something of the server may still run user code.
    pub(crate) fn killing(&self) -> bool {
        !self.doomed && (self.kill.is_some() || self.kill_again.is_some())
    }
    /// Nothing of the server will run again, and it is not gone.
    pub(crate) fn doomed(&self) -> bool {
        self.doomed
    }
    /// What is ordered of the server now, or its processes' state, is not what probes show.
    pub(crate) fn hides_probes(&self) -> bool {
        self.killing() || self.doomed
    }
    /// The kind of the running order, and since when.
    pub(crate) fn kind(&self) -> Option<(&'static str, Moment)> {
        if let Some((_, since)) = self.kill {
            return Some(("kill", since));
        }
        if let Some((since, _)) = self.kill_again {
            return Some(("kill", since));
        }
        self.running.as_ref().map(|running| (kind(&running.order), running.since))
    }
}

fn kind(order: &Order) -> &'static str {
    match order {
        Order::Kill => "kill",
        Order::Stop => "stop",
        Order::StartStandby => "start-standby",
        Order::Recruit => "recruit",
        Order::ReadEnd => "read-end",
        Order::Follow { .. } => "follow",
        Order::Promote { .. } => "promote",
        Order::Open => "open",
        Order::Close => "close",
        Order::SetSync { .. } => "set-sync",
        Order::Checkpoint => "checkpoint",
        Order::StopClean { .. } => "stop-clean",
        Order::RestartInPlace => "restart-in-place",
        Order::Rewind { .. } => "rewind",
        Order::Clone { .. } => "clone",
        Order::Adopt { .. } => "adopt",
        Order::Bootstrap { .. } => "bootstrap",
    }
}

impl Mind {
    /// Gives an order. The caller checked that none runs.
    pub(crate) fn order(&mut self, term: Term, order: Order) {
        let id = self.next_order();
        let cut = self.durable.upstream.is_none();
        self.orders.running = Some(Running { id, order: order.clone(), since: self.now, cut });
        self.out.push(Output::Order(id, term, order));
    }

    /// Ends the server, whatever runs.
    pub(crate) fn order_kill(&mut self) {
        if self.orders.kill.is_some() {
            return;
        }
        let id = self.next_order();
        self.orders.kill_again = None;
        self.orders.kill = Some((id, self.now));
        self.out.push(Output::Order(id, self.durable.promise, Order::Kill));
    }

    fn next_order(&mut self) -> OrderId {
        self.orders.next += 1;
        OrderId(self.orders.next)
    }

    pub(crate) fn on_ordered(&mut self, id: OrderId, outcome: Outcome) {
        if self.orders.kill.is_some_and(|(kill, _)| kill == id) {
            self.orders.kill = None;
            self.killed(&outcome);
            return;
        }
        let Some(running) = self.orders.running.take_if(|running| running.id == id) else { return };
        self.outcome(running.order, outcome, running.cut);
    }

    /// A kill that did not end everything is given again, with longer and longer pauses.
    pub(crate) fn plan_kill(&mut self) {
        let Some((_, at)) = self.orders.kill_again else { return };
        if self.now < at {
            self.until(at);
        } else {
            self.order_kill();
        }
    }

    fn kill_again(&mut self) {
        let wait = KILL_AGAIN_MS.saturating_mul(1 << self.orders.kills.min(5)).min(KILL_AGAIN_MAX_MS);
        self.orders.kills = self.orders.kills.saturating_add(1);
        self.orders.kill_again = Some((self.now, self.now + Span(wait)));
        self.until(self.now + Span(wait));
    }

    fn killed(&mut self, outcome: &Outcome) {
        if let Outcome::Failed(failure) = outcome {
            self.reason("kill", format!("the server could not be ended ({failure:?}): trying again"));
            self.kill_again();
            return;
        }
        // What the guard ended without an outcome is over.
        self.orders.running = None;
        if *outcome == Outcome::Doomed {
            if !self.orders.doomed {
                self.tell(
                    "doomed",
                    "the server's processes are dead and stuck in the kernel (a disk that does not answer?): nothing of it runs any more; \
                     the role may move, and nothing is started here until they are gone",
                );
            }
            self.orders.doomed = true;
            // The log can not be read now, and what was read of it is not relied on.
            self.server.forget_end();
            self.kill_again();
        } else {
            self.orders.doomed = false;
            self.orders.kills = 0;
        }
        self.server.set(self.now, ServerState::Down);
    }

    fn outcome(&mut self, order: Order, outcome: Outcome, cut: bool) {
        let failure = match &outcome {
            Outcome::Failed(failure) => Some(failure.clone()),
            _ => None,
        };
        if let Some(failure) = &failure {
            self.reason(kind(&order), format!("{} did not succeed: {}", kind(&order), words(failure)));
        }
        match (order, outcome) {
            (Order::StartStandby, _) => self.started(failure, cut),
            (Order::Stop, _) => self.standby_stopped(failure),
            (Order::Recruit | Order::ReadEnd, Outcome::Ended(end)) => self.end_known(end),
            (Order::Recruit | Order::ReadEnd, _) => self.end_unknown(failure),
            (Order::Follow { .. }, Outcome::Done) => {
                self.server.set(self.now, ServerState::Standby);
                self.server.pointed = true;
            }
            (Order::Follow { .. }, _) => self.follow_failed(failure),
            (Order::Rewind { .. }, outcome @ (Outcome::Done | Outcome::Replaced(_))) => {
                let copy = self.server.rewinding;
                self.server.set(self.now, ServerState::Down);
                self.replaced("rewound", "the diverged log was kept and reported, and the copy rewound", outcome);
                self.copy_made(copy);
            }
            (Order::Rewind { .. }, _) => self.rewind_failed(failure),
            (Order::Clone { copy, .. }, outcome @ (Outcome::Done | Outcome::Replaced(_))) => {
                self.server.set(self.now, ServerState::Down);
                self.replaced("cloned", &format!("a new copy was cloned: {copy}"), outcome);
                self.copy_made(Some(copy));
            }
            (Order::Clone { .. }, _) => self.clone_failed(failure),
            (Order::Adopt { copy, timeline }, _) => self.adopted_restored(copy, timeline, failure),
            (order, outcome) => self.primary_outcome(order, outcome, failure),
        }
    }

    /// Tells what left the history, and whether that may have been acknowledged. Before the copy counts as whole: an agent that dies
    /// in between makes the copy once more and tells it twice, rather than never.
    fn replaced(&mut self, kind: &'static str, text: &str, outcome: Outcome) {
        let mut lost = match outcome {
            Outcome::Replaced(lost) => lost.apart(),
            _ => Vec::new(),
        };
        for lost in &mut lost {
            lost.may_be_acknowledged = self.may_be_acknowledged(lost.from);
        }
        // The worst first; else as they came, what was taken out just now before what nobody had heard of yet.
        lost.sort_by_key(|lost| !lost.may_be_acknowledged);
        if lost.is_empty() {
            self.tell_replaced(kind, text.to_owned(), None);
        }
        for lost in lost {
            self.tell_replaced(kind, text.to_owned(), Some(lost));
        }
    }

    fn tell_replaced(&mut self, kind: &'static str, mut text: String, lost: Option<Lost>) {
        if let Some(lost) = &lost {
            let word = if lost.may_be_acknowledged { "may have been acknowledged" } else { "was never acknowledged" };
            text = format!(
                "{text}; what it held from {} to {} is no part of the cluster's history and {word}",
                lost.from, lost.to
            );
        }
        self.reason(kind, text.clone());
        self.event_with(self.record_term(), kind, text, None, lost);
    }

    /// Was any timeline since a log left the history there claimed without proof that nothing acknowledged is missing? Also one that is no
    /// part of the history itself, such as a rebuilt store's first, and a later one: better one warning too many.
    fn may_be_acknowledged(&self, left: mainstay_model::Position) -> bool {
        self.record().is_none_or(|record| record.lossy.is_some_and(|lossy| lossy > left.timeline))
    }

    fn primary_outcome(&mut self, order: Order, outcome: Outcome, failure: Option<OrderFailure>) {
        match (order, outcome) {
            (Order::Promote { .. }, Outcome::Promoted(end)) => self.promoted(end),
            (Order::Promote { .. }, _) => self.not_promoted(failure),
            (Order::RestartInPlace, Outcome::Restarted(end)) => self.restarted(end),
            (Order::RestartInPlace, _) => self.not_restarted(failure),
            (Order::SetSync { setting }, Outcome::Confirmed(at)) => self.setting_confirmed(setting, at),
            (Order::SetSync { .. }, _) => self.setting_failed(),
            (Order::Open, Outcome::Done) => self.opened(),
            (Order::Open, _) => self.open_failed(),
            (Order::Close, _) => self.closed(failure),
            (Order::Checkpoint, _) => self.checkpointed(failure),
            (Order::StopClean { .. }, Outcome::Ended(end)) => self.stopped(end),
            (Order::StopClean { .. }, _) => self.not_stopped(failure),
            (Order::Bootstrap { copy, .. }, Outcome::Founded { system, end }) => self.founded(copy, system, end),
            (Order::Bootstrap { .. }, _) => self.not_founded(),
            _ => {}
        }
    }

    /// `cut`: it was to start without upstream, by the durable state of that moment.
    fn started(&mut self, failure: Option<OrderFailure>, cut: bool) {
        match failure {
            None => {
                self.server.set(self.now, ServerState::Standby);
                self.server.ordered = false;
                self.server.unstartable = None;
                if std::mem::take(&mut self.server.restarting) {
                    self.tell("restarted", "the server runs again as a standby");
                }
            }
            Some(OrderFailure::Stale) => {
                self.server.set(self.now, ServerState::Down);
                return;
            }
            Some(OrderFailure::Broken(why)) => {
                self.start_broken(why);
                return;
            }
            // It may still be reading its log: what runs is left alone, and probes say what becomes of it.
            Some(OrderFailure::NotYet(_)) => {
                self.server.set(self.now, ServerState::Starting);
                self.back_off(200);
            }
            Some(_) => {
                self.server.set(self.now, ServerState::Down);
                self.back_off(200);
                // Whatever the attempt left must be gone before the next one.
                self.order_kill();
                return;
            }
        }
        if self.durable.upstream.is_some() {
            self.server.forget_end();
            self.server.pointed = true;
        } else if cut {
            self.server.is_cut();
        } else {
            // Recruited while it started: it may stream from the upstream that it started with.
            self.server.forget_end();
        }
    }

    fn end_known(&mut self, end: mainstay_model::LogEnd) {
        if self.durable.upstream.is_some() {
            return;
        }
        self.server.set(self.now, ServerState::Standby);
        self.server.ended(end);
    }

    fn end_unknown(&mut self, failure: Option<OrderFailure>) {
        match failure {
            Some(OrderFailure::Stale) => self.server.retry_at = self.now,
            Some(OrderFailure::NotYet(_)) => self.server.retry_at = self.now + mainstay_model::Span(50),
            _ => self.back_off(100),
        }
        let at = self.server.retry_at;
        self.until(at);
    }

    fn follow_failed(&mut self, failure: Option<OrderFailure>) {
        if failure == Some(OrderFailure::Aborted) {
            return;
        }
        // Where it streams from is not certain: cut, and look again.
        if self.candidacy.is_none() {
            self.persist(|durable| durable.upstream = None);
        }
        self.server.forget_end();
        self.back_off(100);
    }

    /// The copy can not be started: until it is given up (see `plan_unstartable`) it is tried again.
    fn start_broken(&mut self, why: String) {
        let since = self.server.unstartable.take().map_or(self.now, |(since, _)| since);
        self.server.unstartable = Some((since, why));
        self.server.set(self.now, ServerState::Down);
        self.server.forget_end();
        self.back_off(200);
        self.order_kill();
    }

    fn clone_failed(&mut self, failure: Option<OrderFailure>) {
        self.server.cloning = None;
        self.server.set(self.now, ServerState::Down);
        let wait = self.clone_back_off();
        let why = failure.as_ref().map_or_else(|| "it ended otherwise than expected".to_owned(), words);
        self.reason("clone", format!("no new copy yet: {why}; trying again in {wait}"));
    }

    fn rewind_failed(&mut self, failure: Option<OrderFailure>) {
        self.server.set(self.now, ServerState::Down);
        let untouched = matches!(failure, Some(OrderFailure::NotYet(_) | OrderFailure::Stale));
        if untouched {
            let copy = self.server.rewinding.take();
            self.persist(|durable| durable.copy = copy);
            self.back_off(200);
        } else {
            self.give_up_copy("the rewind broke half-way");
        }
    }
}

fn words(failure: &OrderFailure) -> String {
    match failure {
        OrderFailure::Stale => "its term is older than the promise".to_owned(),
        OrderFailure::Aborted => "a kill ended it".to_owned(),
        OrderFailure::NotYet(text) => format!("not yet ({text})"),
        OrderFailure::Broken(text) => format!("the copy is not whole ({text})"),
        OrderFailure::Error(text) => text.clone(),
    }
}
