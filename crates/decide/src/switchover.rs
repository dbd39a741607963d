//! Handing the primary's role over on request: a checkpoint while clients still work, then hold work, stop in order, release in favour of
//! the target, which then stands like any candidate.

use crate::mind::Mind;
use crate::reign::{Phase, Reign};
use mainstay_model::{LogEnd, Moment, NodeId, Order, OrderFailure, RouteState, ServerState, Span, Term};
use std::collections::BTreeSet;

/// How long new work is held before the server is stopped when nothing is known of any proxy.
const DRAIN_MS: u64 = 30;
/// The same at most, while proxies say that work is under way with them. The stop ends what is left.
const DRAIN_MAX_MS: u64 = 1000;
const PHASE_MAX_MS: u64 = 2000;
const STOP_MAX_MS: u64 = 4000;
/// So long the checkpoint before the hold may take in all; the server is asked for it again and again, with pauses.
const CHECKPOINT_MAX_MS: u64 = 20_000;
const CHECKPOINT_PAUSE_MS: u64 = 1_000;
const BEHIND_MAX_BYTES: u64 = 1 << 20;

/// A switchover that is under way at the primary.
#[derive(Clone, Debug)]
pub(crate) struct Switch {
    pub(crate) target: NodeId,
    by: String,
    /// When it was asked for.
    asked: Moment,
    /// The server is not asked for a checkpoint before this.
    checkpoint_at: Moment,
    /// Since when new work is held; `None`: it goes on, and a checkpoint is written.
    held: Option<Moment>,
}

impl Switch {
    /// Is new work held?
    pub(crate) fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// Since when.
    pub(crate) fn held(&self) -> Option<Moment> {
        self.held
    }
}

impl Reign {
    /// When a drain that began then is over.
    pub(crate) fn drained(&self, since: Moment) -> Moment {
        match &self.proxies {
            None => since + Span(DRAIN_MS),
            Some(waiting) if waiting.is_empty() => since,
            Some(_) => since + Span(DRAIN_MAX_MS),
        }
    }
}

impl Mind {
    /// Begins to hand over, or says why not.
    pub(crate) fn on_switchover(&mut self, by: &str, to: Option<NodeId>) -> Result<String, String> {
        let serving = self.reign.as_ref().is_some_and(|reign| reign.phase == Phase::Serving && reign.opened);
        if !serving {
            return Err("this node is not an open primary".to_owned());
        }
        if self.reign.as_ref().is_some_and(crate::reign::Reign::holding) {
            return Err("clients are kept out: a restore in place is being prepared".to_owned());
        }
        if self.reign.as_ref().is_some_and(crate::reign::Reign::changing) {
            return Err("a switchover or a restart is under way already".to_owned());
        }
        let target = self.choose_target(to)?;
        let most = Span(CHECKPOINT_MAX_MS);
        let text =
            format!("handing over to {target} after a checkpoint, for which work does not wait (at most {most})");
        self.begin_switchover(by, target);
        Ok(text)
    }

    pub(crate) fn choose_target(&self, to: Option<NodeId>) -> Result<NodeId, String> {
        let able = |node: &NodeId| -> Result<(), String> {
            let reign = self.reign.as_ref().ok_or("this node is not primary")?;
            let copy = self.record().and_then(|record| record.members.get(node));
            if *node == self.config.me {
                return Err(format!("{node} is primary already"));
            }
            if self.config.excluded.contains(node) {
                return Err(format!("{node} may not become primary"));
            }
            if !self.config.data_nodes.contains_key(node) {
                return Err(format!("{node} is no data node of this cluster"));
            }
            // In asynchronous mode nobody but the primary is a member: whoever streams will do.
            let asynchronous = self.record().is_some_and(|record| record.asynchronous);
            let streams = reign.streams_now.get(node);
            if streams.is_none() || (!asynchronous && streams != copy) {
                return Err(format!("{node} is not a streaming member of the sync set"));
            }
            if self.peers.get(node).is_some_and(|peer| peer.link == Some(false)) {
                return Err(format!("{node}'s agent is not connected"));
            }
            Ok(())
        };
        if let Some(node) = to {
            return able(&node).map(|()| node);
        }
        let reign = self.reign.as_ref().ok_or("this node is not primary")?;
        let best = reign.flushed.iter().filter(|(node, _)| able(node).is_ok()).max_by_key(|(_, (_, flush))| *flush);
        best.map(|(node, _)| node.clone()).ok_or_else(|| "no replica is fit to take over".to_owned())
    }

    pub(crate) fn begin_switchover(&mut self, by: &str, target: NodeId) {
        self.tell("switchover-begun", format!("{by} asked to hand over to {target}: a checkpoint first"));
        let now = self.now;
        let Some(reign) = self.reign.as_mut() else { return };
        reign.switch = Some(Switch { target, by: by.to_owned(), asked: now, checkpoint_at: now, held: None });
    }

    /// Has a checkpoint written while clients work, so that the one of the stop is short. Without one nothing is held or stopped.
    fn plan_checkpoint(&mut self, switch: &Switch) {
        let most = Span(CHECKPOINT_MAX_MS);
        if self.now.since(switch.asked) > most && !self.orders.busy() {
            self.undo_switchover(&format!("the server did not end a checkpoint within {most}"));
            return;
        }
        self.until((switch.asked + most + Span(1)).max(self.now + Span(CHECKPOINT_PAUSE_MS)));
        if self.now < switch.checkpoint_at {
            self.until(switch.checkpoint_at);
        } else if !self.orders.busy()
            && let Some(term) = self.reign.as_ref().map(|reign| reign.term)
        {
            self.order(term, Order::Checkpoint);
        }
    }

    pub(crate) fn checkpointed(&mut self, failure: Option<OrderFailure>) {
        let now = self.now;
        let Some(reign) = self.reign.as_mut().filter(|reign| reign.phase == Phase::Serving) else { return };
        let Some(switch) = reign.switch.as_mut().filter(|switch| !switch.holds()) else { return };
        if failure.is_some() {
            // Others' orders, and probes, have their turn first.
            switch.checkpoint_at = now + Span(CHECKPOINT_PAUSE_MS);
            return;
        }
        let target = switch.target.clone();
        if let Err(why) = self.choose_target(Some(target)) {
            self.undo_switchover(&why);
            return;
        }
        let Some(reign) = self.reign.as_mut() else { return };
        reign.proxies = None;
        if let Some(switch) = reign.switch.as_mut() {
            switch.held = Some(now);
        }
        let (term, deadline) = (reign.term, reign.deadline.unwrap_or(now));
        self.reason("switchover", "the checkpoint is written: holding new work");
        self.set_route(term, RouteState::Draining, deadline);
    }

    pub(crate) fn plan_switchover(&mut self) {
        let Some(reign) = &self.reign else { return };
        let Some(switch) = reign.switch.clone() else { return };
        let Some(since) = switch.held else {
            self.plan_checkpoint(&switch);
            return;
        };
        if self.now.since(since).0 > PHASE_MAX_MS {
            self.undo_switchover("the target did not catch up in time");
            return;
        }
        let drained = reign.drained(since);
        let seen_since = reign.observed_at.is_some_and(|at| at > since);
        let end = self.server.seen.as_ref().and_then(|seen| seen.end);
        let flush = reign.flushed.get(&switch.target).map(|(_, flush)| *flush);
        let near = match (end, flush) {
            (Some(end), Some(flush)) => end.0.saturating_sub(flush.0) <= BEHIND_MAX_BYTES,
            _ => false,
        };
        let streams = reign.streams_now.contains_key(&switch.target);
        let term = reign.term;
        self.until(drained.max(self.now + Span(10)).min(since + Span(PHASE_MAX_MS + 1)));
        if self.now < drained || !seen_since || !near || !streams || self.orders.busy() {
            return;
        }
        self.note_drained(since);
        let keep = self.keep(&switch.target);
        if let Some(reign) = self.reign.as_mut() {
            reign.phase = Phase::Stopping;
            reign.since = self.now;
        }
        self.order(term, Order::StopClean { keep });
    }

    /// What is known of the proxies of a drain. It only makes the drain shorter or longer, within its bound.
    pub(crate) fn on_proxies(&mut self, term: Term, waiting: Vec<String>, late: &[String]) {
        let drains = |reign: &&mut Reign| reign.term == term && reign.phase == Phase::Serving && reign.draining();
        let Some(reign) = self.reign.as_mut().filter(drains) else { return };
        reign.proxies = Some(waiting);
        if !late.is_empty() {
            let names = late.join(", ");
            let text =
                format!("{names} did not confirm that new work waits: not waited for; clients there may see errors");
            self.tell("drain-unconfirmed", text);
        }
    }

    /// The drain ends.
    pub(crate) fn note_drained(&mut self, since: Moment) {
        let (now, reign) = (self.now, self.reign.as_ref());
        let Some(waiting) = reign.and_then(|reign| reign.proxies.clone()) else { return };
        let took = now.since(since);
        if waiting.is_empty() {
            self.reason("drained", format!("new work waits at the proxies, and none is under way, after {took}"));
        } else {
            let text = format!("work is under way with {} after {took}: the stop ends it", waiting.join(", "));
            self.tell("drain-cut", text);
        }
    }

    /// The target, and the best others that commits may still wait for.
    fn keep(&self, target: &NodeId) -> BTreeSet<NodeId> {
        let mut keep = BTreeSet::from([target.clone()]);
        if let Some(reign) = &self.reign {
            let mut others: Vec<_> = reign.flushed.iter().filter(|(node, _)| *node != target).collect();
            others.sort_by_key(|(_, (_, flush))| std::cmp::Reverse(*flush));
            let need = reign.settings.iter().map(|setting| setting.need).max().unwrap_or(0) as usize;
            keep.extend(others.into_iter().take(need.saturating_sub(1)).map(|(node, _)| node.clone()));
        }
        keep
    }

    fn undo_switchover(&mut self, why: &str) {
        self.tell("switchover-refused", format!("{why}: work goes on here"));
        let Some(reign) = self.reign.as_mut() else { return };
        reign.switch = None;
        reign.phase = Phase::Serving;
        let (term, deadline, opened) = (reign.term, reign.deadline, reign.opened);
        if let (Some(deadline), true) = (deadline, opened) {
            self.set_route(term, RouteState::Open, deadline);
        }
    }

    /// The stop takes too long: what is left of the server is killed, and the target takes over as after a crash.
    pub(crate) fn watch_stopping(&mut self) {
        let Some(since) = self.reign.as_ref().map(|reign| reign.since) else { return };
        if self.now.since(since).0 > STOP_MAX_MS {
            self.reason("switchover", "stopping in order takes too long: ending the server");
            self.order_kill();
        } else {
            self.until(since + Span(STOP_MAX_MS + 1));
        }
    }

    pub(crate) fn stopped(&mut self, end: LogEnd) {
        self.server.set(self.now, ServerState::Down);
        self.server.ended(end);
        if let Some(target) = self.switch_target() {
            self.handed = Some((target.clone(), self.now));
            let cause = self.switch_cause();
            self.server.ordered = true;
            self.abdicate_because("switchover: the server is stopped", Some(target), &cause);
        } else {
            self.stopped_for_restart();
        }
    }

    fn switch_cause(&self) -> String {
        let switch = self.reign.as_ref().and_then(|reign| reign.switch.as_ref());
        switch.map_or_else(String::new, |switch| format!("switchover to {}, asked by {}", switch.target, switch.by))
    }

    fn switch_target(&self) -> Option<NodeId> {
        let reign = self.reign.as_ref().filter(|reign| reign.phase == Phase::Stopping)?;
        reign.switch.as_ref().map(|switch| switch.target.clone())
    }

    pub(crate) fn not_stopped(&mut self, failure: Option<OrderFailure>) {
        let Some(target) = self.switch_target() else {
            self.not_stopped_for_restart(failure);
            return;
        };
        if let Some(OrderFailure::NotYet(why)) = failure {
            if let Some(reign) = self.reign.as_mut() {
                reign.opened = false;
            }
            self.undo_switchover(&why);
            return;
        }
        self.server.state = Some(ServerState::Primary); // perhaps it still runs: end it
        self.handed = Some((target.clone(), self.now));
        let cause = self.switch_cause();
        self.server.ordered = true;
        if let Some(reign) = self.reign.as_mut() {
            reign.phase = Phase::Crashed;
        }
        self.abdicate_because("switchover: the server did not stop in order and is ended", Some(target), &cause);
    }
}
