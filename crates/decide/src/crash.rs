//! The primary's server dies or hangs: end what is left of it, then hand over to a member that streamed, or start it again in place.

use crate::mind::Mind;
use crate::plant::Plant;
use crate::reign::{Origin, Phase};
use mainstay_model::record::RecoveryEnd;
use mainstay_model::{CopyId, Message, NodeId, Order, OrderFailure, ServerState, Span};

const RESTARTS_MAX: u32 = 3;
const RESTART_PAUSE_MS: u64 = 300;

/// So long the dead server's recovery waits for the take-over, which may share its disk.
const MAKE_WAY_MS: u64 = 400;

impl Mind {
    pub(crate) fn check_server(&mut self) {
        if self.orders.busy() {
            return;
        }
        match self.server.state {
            Some(ServerState::Down) => self.on_exit("the server is down"),
            Some(ServerState::Standby) => self.abdicate("the server is a standby although it should be primary", None),
            _ => {}
        }
    }

    pub(crate) fn on_fenced(&mut self, why: &str) {
        self.tell("fenced", format!("the guard ended the server: {why}"));
        self.on_exit("the guard ended the server");
    }

    /// The server's process is gone, or is to be treated so.
    pub(crate) fn on_exit(&mut self, why: &str) {
        let Some(phase) = self.reign.as_ref().map(|reign| reign.phase.clone()) else {
            self.standby_exited();
            return;
        };
        match phase {
            Phase::Serving | Phase::Adopting => {
                self.tell("primary-lost", format!("{}: {why}", self.config.me));
                self.loss.get_or_insert(self.now);
                let adopting = phase == Phase::Adopting;
                let now = self.now;
                if let Some(reign) = self.reign.as_mut() {
                    reign.phase = Phase::Crashed;
                    reign.opened = false;
                    reign.switch = None;
                    reign.restart = None;
                    why.clone_into(&mut reign.death);
                    reign.restart_at = now;
                    let term = reign.term;
                    self.close_route(term);
                }
                if adopting {
                    self.reign = None;
                }
                self.server.forget_end();
                self.order_kill();
            }
            Phase::Promoting => self.abdicate(&format!("during the promotion: {why}"), None),
            // The order that runs says how it ended; an exit is expected in each of these.
            Phase::Stopping | Phase::Restarting | Phase::Founding | Phase::Founded | Phase::Crashed => {}
        }
    }

    fn standby_exited(&mut self) {
        if self.orders.busy() || self.server.state.is_none() {
            // An order's outcome tells; before the first observation a probe does.
            if self.server.state.is_none() {
                self.server.set(self.now, ServerState::Down);
            }
            return;
        }
        if !self.server.is(ServerState::Down) {
            self.reason("exit", "the server's process ended: ending what it left, then starting it again");
            self.back_off(50);
            self.order_kill();
        }
    }

    /// Hand over to a replica that streamed until the end, or start again in place.
    pub(crate) fn plan_crashed(&mut self) {
        if self.orders.at_work() && !self.orders.doomed() && !self.planted(Plant::ReleaseBeforeDoom) {
            return;
        }
        let Some(reign) = &self.reign else { return };
        let ordered = reign.restart.is_some();
        if self.config.paused && !ordered {
            let me = &self.config.me;
            let text = format!(
                "the server died and the cluster is paused: the claim is kept and nothing is started; resume, or order \
                 `mainstay restart {me} --in-place`, or a failover to another node"
            );
            self.reason("paused-server", text);
            return;
        }
        if let Some(wanted) = self.fit_replica().filter(|_| !ordered) {
            let cause = format!("{}'s server died: {}", self.config.me, reign.death);
            let spare = self.others_can_elect();
            self.abdicate_because("the server died and a member that streamed can take over", Some(wanted), &cause);
            if spare {
                self.server.make_way = self.now + Span(MAKE_WAY_MS);
            }
            return;
        }
        if self.orders.doomed() {
            self.plan_doomed();
            return;
        }
        let now = self.now;
        let Some(reign) = self.reign.as_mut() else { return };
        if now < reign.restart_at {
            let at = reign.restart_at;
            self.until(at);
            return;
        }
        if reign.fresh_from.is_none() {
            reign.fresh_from = Some(now);
            reign.fresh = false;
            reign.renew_at = now;
            let why = if ordered { "an operator ordered it" } else { "no member can take over" };
            self.reason("restart", format!("{why}: renewing the claim, then starting the server in place"));
            self.plan_renewal();
            return;
        }
        let skip = cfg!(feature = "plant") && self.config.plants.contains(&Plant::RestartWithoutCheck);
        let ahead = reign.deadline.is_some_and(|deadline| now <= deadline);
        let fresh = reign.fresh && ahead && self.durable.promise <= reign.term;
        if !fresh && !skip {
            return;
        }
        reign.phase = Phase::Restarting;
        reign.fresh_from = None;
        let term = reign.term;
        self.order(term, Order::RestartInPlace);
    }

    /// Nothing of the server runs and it can not be started: the claim is kept for its lease, in case its processes go; then anybody may
    /// try, though nobody seemed fit.
    fn plan_doomed(&mut self) {
        let Some(deadline) = self.reign.as_ref().and_then(|reign| reign.deadline) else { return };
        if self.now <= deadline {
            self.until(deadline + Span(1));
            self.reason(
                "doomed",
                "no member is known to be fit, and the dead server's processes are not gone: ending them",
            );
            return;
        }
        self.abdicate("the server is dead, and its processes can not be ended to start it again", None);
    }

    /// The member with the highest flush that streamed in the last observation and is not known to be gone.
    pub(crate) fn fit_replica(&self) -> Option<NodeId> {
        let reign = self.reign.as_ref()?;
        let record = self.record()?;
        let fit = |node: &NodeId, copy: &CopyId| {
            let gone = self.peers.get(node).is_some_and(|peer| peer.link == Some(false) || peer.evidence.is_some());
            record.members.get(node) == Some(copy)
                && reign.streams_now.get(node) == Some(copy)
                && !gone
                && !self.config.excluded.contains(node)
        };
        let place = |node: &NodeId| std::cmp::Reverse(self.config.data_nodes.get(node).copied().unwrap_or(u32::MAX));
        let fit = reign.flushed.iter().filter(|(node, (copy, _))| fit(node, copy));
        fit.max_by_key(|(node, (_, flush))| (*flush, place(node))).map(|(node, _)| node.clone())
    }

    /// Do enough members stream that this copy's answer, which needs its server's recovery, is not asked for?
    fn others_can_elect(&self) -> bool {
        let (Some(reign), Some(record)) = (&self.reign, self.record()) else { return false };
        let streams = |(node, copy): &(&NodeId, &CopyId)| reign.streams_now.get(*node) == Some(*copy);
        record.members.iter().filter(streams).count() > record.quorum as usize
    }

    pub(crate) fn restarted(&mut self, end: RecoveryEnd) {
        self.server.set(self.now, ServerState::Primary);
        let reserved = self.record().map(|record| record.timeline);
        let now = self.now;
        let Some(reign) = self.reign.as_mut().filter(|reign| reign.phase == Phase::Restarting) else { return };
        if Some(end.timeline) != reserved {
            self.abdicate("the restarted server is on another timeline than the record's", None);
            return;
        }
        let cause = match reign.restart.take() {
            Some(restart) => format!("restarted in place, ordered by {}", restart.by),
            None => format!("restarted in place after the server died: {}", reign.death),
        };
        reign.origin = Origin { cause, from: Some(self.config.me.clone()), fork: None, at_risk: None };
        reign.phase = Phase::Serving;
        reign.end = Some(end);
        // Crash recovery makes visible what waited for its confirmation, and what is visible must not vanish either: whoever becomes a
        // member from now on must hold that too, though the setting was confirmed when the log was shorter.
        reign.confirmed = reign.confirmed.map(|at| at.max(end.lsn));
        reign.since = now;
        reign.restarts = 0;
        reign.flushed.clear();
        reign.streams_now.clear();
        let term = reign.term;
        self.tell("restarted", format!("restarted in place as primary of term {term}; recovery ended at {}", end.lsn));
        self.send_voters(&Message::Open { term, timeline: end.timeline });
    }

    pub(crate) fn not_restarted(&mut self, failure: Option<OrderFailure>) {
        let now = self.now;
        let Some(reign) = self.reign.as_mut().filter(|reign| reign.phase == Phase::Restarting) else { return };
        reign.restarts += 1;
        reign.phase = Phase::Crashed;
        reign.fresh_from = None;
        reign.restart_at = now + Span(RESTART_PAUSE_MS * u64::from(reign.restarts));
        let give_up = reign.restarts >= RESTARTS_MAX;
        self.server.forget_end();
        self.order_kill();
        if give_up {
            self.abdicate(&format!("the server could not be started in place: {failure:?}"), None);
        }
    }
}
