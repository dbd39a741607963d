//! Planned work on one server: restart it, clone it anew, or hand the role over because the node was removed.

use crate::mind::Mind;
use crate::plant::Plant;
use crate::reign::{Phase, Restart};
use mainstay_model::{ClaimState, NodeId, Order, OrderFailure, RouteState, ServerState, Span};
use std::collections::BTreeSet;

/// A removed primary looks so often for somebody to hand over to.
const HAND_AGAIN_MS: u64 = 1_000;

/// Why a copy is kept.
pub(crate) enum Needed {
    /// It may be the last one of something acknowledged.
    Maybe(String),
    /// A primary that answers does not serve yet, and may wait for what this copy holds.
    NotOpen(String),
}

impl Needed {
    pub(crate) fn why(self) -> String {
        match self {
            Needed::Maybe(why) | Needed::NotOpen(why) => why,
        }
    }
}

impl Mind {
    // ---- restart -----------------------------------------------------------------------------------------------------

    pub(crate) fn on_restart(&mut self, by: &str, in_place: bool) -> Result<String, String> {
        if let Some(problem) = &self.problem {
            return Err(problem.clone());
        }
        if self.reign.is_some() {
            return self.restart_primary(by, in_place);
        }
        if self.candidacy.is_some() || self.failover.is_some() || self.leave.is_some() {
            return Err("this node is standing for primary: wait for how that ends".to_owned());
        }
        if let Some((kind, _)) = self.orders.kind() {
            return Err(format!("the server is busy ({kind}): try again when that has ended"));
        }
        if !self.has_data_role() {
            return Err("this node is no data node".to_owned());
        }
        match self.server.state {
            Some(ServerState::Standby) => {
                self.tell("restart-begun", format!("{by} ordered a restart: stopping the server in order"));
                (self.server.ordered, self.server.restarting) = (true, true);
                self.order(self.durable.promise, Order::Stop);
                Ok("stopping the server in order, then starting it again".to_owned())
            }
            Some(ServerState::Down) if self.durable.copy.is_some() => {
                self.tell("restart-begun", format!("{by} ordered a start of the server, which is down"));
                (self.server.ordered, self.server.restarting) = (true, true);
                self.server.retry_at = self.now;
                Ok("the server is down: starting it as a standby".to_owned())
            }
            Some(ServerState::Down) => Err("this node has no whole copy of the data to start".to_owned()),
            _ => Err("the server is starting: try again when it runs".to_owned()),
        }
    }

    fn restart_primary(&mut self, by: &str, in_place: bool) -> Result<String, String> {
        if !in_place {
            let text = "this node is primary: switch over first, or restart it in place (clients wait meanwhile)";
            return Err(text.to_owned());
        }
        let (now, busy) = (self.now, self.orders.busy());
        let Some(reign) = self.reign.as_mut() else { return Err("this node is not primary".to_owned()) };
        let restart = Restart { by: by.to_owned(), since: now };
        match reign.phase {
            Phase::Serving if reign.holding() => {
                Err("clients are kept out: a restore in place is being prepared".to_owned())
            }
            Phase::Serving if reign.changing() => Err("a switchover or a restart is under way already".to_owned()),
            Phase::Serving if reign.opened => {
                reign.restart = Some(restart);
                reign.proxies = None;
                let (term, deadline) = (reign.term, reign.deadline.unwrap_or(now));
                self.set_route(term, RouteState::Draining, deadline);
                self.tell("restart-begun", format!("{by} ordered a restart in place: holding new work"));
                Ok("restarting the primary in place: new work waits".to_owned())
            }
            Phase::Crashed if !busy => {
                reign.restart = Some(restart);
                reign.restart_at = now;
                self.tell("restart-begun", format!("{by} ordered the crashed server to be started in place"));
                Ok("starting the crashed primary in place".to_owned())
            }
            _ => Err("this node is not an open primary yet: try again when it is".to_owned()),
        }
    }

    /// New work is held; stop in order with everybody who streams.
    pub(crate) fn plan_restart(&mut self) {
        let Some(reign) = self.reign.as_ref().filter(|reign| reign.phase == Phase::Serving) else { return };
        let Some(restart) = &reign.restart else { return };
        let (term, since) = (reign.term, restart.since);
        let drained = reign.drained(since);
        if self.now < drained {
            self.until(drained);
            return;
        }
        if self.orders.busy() {
            return;
        }
        self.note_drained(since);
        let Some(reign) = &self.reign else { return };
        let keep: BTreeSet<NodeId> = reign.streams_now.keys().cloned().collect();
        if let Some(reign) = self.reign.as_mut() {
            reign.phase = Phase::Stopping;
            reign.since = self.now;
        }
        self.order(term, Order::StopClean { keep });
    }

    /// Is the server being stopped in order to be started again in place?
    fn stops_for_restart(&self) -> bool {
        self.reign.as_ref().is_some_and(|reign| reign.phase == Phase::Stopping && reign.restart.is_some())
    }

    pub(crate) fn stopped_for_restart(&mut self) {
        if !self.stops_for_restart() {
            return;
        }
        let now = self.now;
        self.loss.get_or_insert(now);
        self.server.forget_end();
        let Some(reign) = self.reign.as_mut() else { return };
        reign.phase = Phase::Crashed;
        reign.opened = false;
        reign.restart_at = now;
        "stopped in order".clone_into(&mut reign.death);
        let term = reign.term;
        self.close_route(term);
    }

    pub(crate) fn not_stopped_for_restart(&mut self, failure: Option<OrderFailure>) {
        if !self.stops_for_restart() {
            return;
        }
        let Some(reign) = self.reign.as_mut() else { return };
        if let Some(OrderFailure::NotYet(why)) = failure {
            reign.restart = None;
            reign.opened = false;
            reign.phase = Phase::Serving;
            self.tell("restart-refused", format!("{why}: work goes on here"));
            return;
        }
        self.stopped_for_restart();
        self.order_kill();
    }

    /// A standby's server was to be stopped in order.
    pub(crate) fn standby_stopped(&mut self, failure: Option<OrderFailure>) {
        if failure.is_none() {
            self.server.set(self.now, ServerState::Down);
            self.server.forget_end();
            self.server.retry_at = self.now;
        } else {
            self.server.forget_end();
            self.back_off(200);
            self.order_kill();
        }
    }

    // ---- clone anew --------------------------------------------------------------------------------------------------

    pub(crate) fn on_reinit(&mut self, by: &str) -> Result<String, String> {
        let me = self.config.me.clone();
        if self.is_superseded() {
            return Ok(format!(
                "{me} joins the rebuilt store; its data are then compared with the primary's, kept where they differ, and replaced"
            ));
        }
        if let Some(problem) = &self.problem {
            return Err(problem.clone());
        }
        if self.reign.is_some() {
            return Err(format!("{me} is primary: its copy is the one that the others follow; switch over first"));
        }
        if self.candidacy.is_some() || self.failover.is_some() || self.leave.is_some() {
            return Err(format!("{me} is standing for primary: wait for how that ends"));
        }
        if let Some((kind, _)) = self.orders.kind() {
            return Err(format!("the server is busy ({kind}): try again when that has ended"));
        }
        if !self.has_data_role() {
            return Err(format!("{me} is no data node"));
        }
        if !self.planted(Plant::ReinitOfLastCopy) {
            self.copy_spare().map_err(Needed::why)?;
        }
        self.give_up_copy(&format!("{by} ordered a new clone"));
        self.server.ordered = true;
        self.server.retry_at = self.now;
        Ok("giving this copy up and cloning anew from the primary; the old data are moved aside".to_owned())
    }

    /// Nothing acknowledged is lost with this copy: another node runs as primary, open, by the newest record.
    pub(crate) fn copy_spare(&self) -> Result<(), Needed> {
        let me = &self.config.me;
        let maybe = |why: String| Err(Needed::Maybe(why));
        let Some(record) = self.record() else {
            return maybe("the record has not been read yet: try again".to_owned());
        };
        if self.is_me(record.leader.as_ref()) {
            return maybe(format!("{me} was the last primary: its copy is the one that counts"));
        }
        let Some((leader, _)) = self.running_leader().filter(|_| record.state == ClaimState::Held) else {
            return maybe(
                "no other node runs as primary: this may be the last copy of something acknowledged".to_owned(),
            );
        };
        if !self.hears(&leader) {
            return maybe(format!("{leader} was primary when it was heard last, and is not heard now"));
        }
        // Heard is what was read just now, however long it was on its way.
        if !self.answers_within(&leader, self.config.suspicion) {
            return maybe(format!(
                "{leader} was primary when it spoke last, and has not answered this node since: try again; an agent of an earlier version never does, \
                 and is to be updated first"
            ));
        }
        let open =
            self.peers.get(&leader).and_then(|peer| peer.presence.as_ref()).is_some_and(|presence| presence.open);
        if !open {
            return Err(Needed::NotOpen(format!(
                "{leader} is primary but not open: it may wait for what this copy holds"
            )));
        }
        Ok(())
    }

    // ---- removed from the configuration --------------------------------------------------------------------------------

    /// A primary that the configuration no longer lists hands the role over as soon as somebody is fit; until then it goes on.
    pub(crate) fn plan_removed_primary(&mut self) {
        let Some(reign) = self.reign.as_ref().filter(|reign| reign.phase == Phase::Serving) else { return };
        if self.has_data_role() || self.config.paused || !reign.opened || reign.changing() || reign.holding() {
            return;
        }
        let at = reign.hand_at;
        if self.now < at {
            self.until(at);
            return;
        }
        let again = self.now + Span(HAND_AGAIN_MS);
        if let Some(reign) = self.reign.as_mut() {
            reign.hand_at = again;
        }
        self.until(again);
        match self.choose_target(None) {
            Ok(target) => self.begin_switchover("the configuration (this node is no longer in it)", target),
            Err(why) => {
                self.reason("removed", format!("this node was removed and is primary: {why}; going on until one is"))
            }
        }
    }

    /// The server of a node that is neither a data node nor a member any more is stopped; its data stay.
    pub(crate) fn plan_removed(&mut self) {
        match self.server.state {
            Some(ServerState::Standby | ServerState::Starting) => {
                if !self.may_retry() {
                    return;
                }
                self.reason("removed", "this node was removed from the cluster: stopping its server; its data stay");
                self.order(self.durable.promise, Order::Stop);
            }
            Some(ServerState::Primary) => {
                self.reason("fence", "the server runs as primary on a node that was removed: ending it");
                self.server.forget_end();
                self.order_kill();
            }
            _ => {}
        }
    }
}
