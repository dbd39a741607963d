//! The machine: its state, its one entry, and the order in which rules are looked at.
//!
//! The rules are state-driven: an input changes what is known, then every rule looks at what is known and may give one order, one
//! write, and messages. A machine that is restarted between any two outputs therefore goes on from what it finds.

use crate::candidate::Candidacy;
use crate::doubt::Suspect;
use crate::explain::Explain;
use crate::failover::Ordered;
use crate::io::{Config, Input, Output};
use crate::orders::Orders;
use crate::peers::Peer;
use crate::plant::Plant;
use crate::random::Random;
use crate::reign::{Leave, Reign};
use crate::restore::Restoring;
use crate::server::Server;
use crate::view::View;
use mainstay_model::{Durable, Moment, NodeId, Record, Revision, Span, SystemId, Term, Timeline};
use std::collections::BTreeMap;

/// One node's decisions. See the crate's documentation.
#[derive(Clone, Debug)]
pub struct Mind {
    pub(crate) config: Config,
    pub(crate) life: u64,
    pub(crate) now: Moment,
    pub(crate) born: Option<Moment>,
    pub(crate) durable: Durable,
    /// The promise is not known yet: read the record first, act on nothing.
    pub(crate) lost: bool,
    /// This life began without any note of its own about the data found here.
    pub(crate) unknown_data: bool,
    pub(crate) data: Option<SystemId>,
    pub(crate) view: View,
    pub(crate) server: Server,
    pub(crate) orders: Orders,
    pub(crate) reign: Option<Reign>,
    pub(crate) leave: Option<Leave>,
    pub(crate) candidacy: Option<Candidacy>,
    pub(crate) suspect: Option<Suspect>,
    /// When this life claimed a term, the last leader's lease could still run: until then, for this lease. A majority of its members answered,
    /// so that nothing more was acknowledged there; but it may be open, and whoever goes on without them waits for it.
    pub(crate) earlier_lease: Option<(Moment, Span)>,
    /// Since when this node holds the term, and is not primary, beside a server that does not run.
    pub(crate) idle_since: Option<Moment>,
    /// A failover that an operator ordered, until the term is raised for it.
    pub(crate) failover: Option<Ordered>,
    /// A restore in place that is to be written.
    pub(crate) restoring: Option<Restoring>,
    /// The restored copy that waits here: its timeline, and since when this life knows.
    pub(crate) restore_seen: Option<(Timeline, Moment)>,
    /// The latest incarnation that a peer follows.
    pub(crate) superseded: u64,
    /// No standing before this (a random pause after a failed try).
    pub(crate) pause_until: Moment,
    /// The candidate that waits for this node's answer.
    pub(crate) asked: Option<(NodeId, Term)>,
    pub(crate) peers: BTreeMap<NodeId, Peer>,
    pub(crate) presence_at: Moment,
    pub(crate) random: Random,
    pub(crate) explain: Explain,
    /// When the primary was found lost, for the length of the gap.
    pub(crate) loss: Option<Moment>,
    /// The term that this node last fenced itself out of, and why: for the history, should it stand again. Decides nothing.
    pub(crate) fenced: Option<(Term, String)>,
    /// To whom this node handed the role in a switchover, and when.
    pub(crate) handed: Option<(NodeId, Moment)>,
    pub(crate) route: Option<(Term, mainstay_model::RouteState, Moment)>,
    /// Why this node stays out altogether.
    pub(crate) problem: Option<String>,
    pub(crate) out: Vec<Output>,
    pub(crate) wake: Option<Moment>,
}

impl Mind {
    /// A machine that begins a process life. `durable` is what the node kept: `None`, or a promise of 0, means that the
    /// promise was lost (or never given), and the record is read linearizably before anything else. `data` is the identity of
    /// the data directory if it looks whole. `life` is random per process life.
    #[must_use]
    pub fn new(config: Config, durable: Option<Durable>, data: Option<SystemId>, life: u64) -> Mind {
        let unknown_data = durable.is_none();
        let durable = durable.unwrap_or_default();
        let random = Random::new(config.seed, life, config.me.as_str());
        let peers = config.data_nodes.keys().filter(|node| **node != config.me);
        let peers = peers.map(|node| (node.clone(), Peer::default())).collect();
        let lost = durable.promise == Term(0) && !planted_in(&config, Plant::PromiseReset);
        Mind {
            life,
            now: Moment(0),
            born: None,
            lost,
            unknown_data,
            durable,
            data,
            view: View::default(),
            server: Server::default(),
            orders: Orders::default(),
            reign: None,
            leave: None,
            candidacy: None,
            suspect: None,
            earlier_lease: None,
            idle_since: None,
            failover: None,
            restoring: None,
            restore_seen: None,
            superseded: 0,
            pause_until: Moment(0),
            asked: None,
            peers,
            presence_at: Moment(0),
            random,
            explain: Explain::default(),
            loss: None,
            fenced: None,
            handed: None,
            route: None,
            problem: None,
            out: Vec::new(),
            wake: None,
            config,
        }
    }

    /// Takes one input and says what to do. `now` never goes back. The only entry.
    pub fn step(&mut self, now: Moment, input: Input) -> Vec<Output> {
        self.now = self.now.max(now);
        if self.born.is_none() {
            self.born = Some(self.now);
        }
        self.wake = None;
        self.take(input);
        self.plan();
        std::mem::take(&mut self.out)
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Tick => {}
            Input::Watched(revision, record) => self.take_record(revision, record),
            Input::Read(id, answer) => self.on_read(id, answer),
            Input::Cas(id, result) => self.on_cas(id, result),
            Input::Observed(observation) => self.on_observed(observation),
            Input::ServerExited => self.on_exit("the server's process ended"),
            Input::Fenced(why) => self.on_fenced(&why),
            Input::Ordered(id, outcome) => self.on_ordered(id, outcome),
            Input::Peer(node, message) => self.on_message(&node, message),
            Input::PeerLink(node, up) => self.on_link(&node, up),
            Input::Evidence(node, evidence) => self.on_evidence(&node, evidence),
            Input::Proxies { term, waiting, late } => self.on_proxies(term, waiting, &late),
            Input::Configured(config) => self.on_configured(*config),
            Input::Operator { id, by, command } => self.on_command(id, &by, command),
        }
    }

    /// Every rule, the most urgent first. Order matters: what ends service goes before what prolongs it.
    fn plan(&mut self) {
        self.plan_read();
        if self.lost {
            // It acts on nothing, and yet a server that it found must not go on beside a rebuilt store.
            self.plan_kill();
            self.plan_superseded();
        } else {
            self.check_system();
            self.plan_kill();
            self.plan_superseded();
            self.plan_restoring();
            self.plan_standing_down();
            self.plan_reign();
            self.plan_leave();
            self.plan_candidate();
            self.plan_founding();
            if !self.plan_adopt() {
                self.plan_server();
            }
            self.answer_recruit();
            self.plan_candidate();
            self.plan_stand();
        }
        self.plan_presence();
    }

    /// The latest moment at which the next `Tick` must come.
    #[must_use]
    pub fn wake(&self) -> Option<Moment> {
        self.wake
    }

    /// Asks for a tick at this moment or before.
    pub(crate) fn until(&mut self, at: Moment) {
        let at = at.max(self.now + Span(1));
        self.wake = Some(self.wake.map_or(at, |known| known.min(at)));
    }

    /// The configuration it decides by.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn planted(&self, plant: Plant) -> bool {
        planted_in(&self.config, plant)
    }

    pub(crate) fn record(&self) -> Option<&Record> {
        self.view.newest.as_ref().map(|(_, record)| record)
    }

    pub(crate) fn revision(&self) -> Revision {
        self.view.newest.as_ref().map_or(Revision(0), |(revision, _)| *revision)
    }

    pub(crate) fn record_term(&self) -> Term {
        self.record().map_or(self.durable.promise, |record| record.term.max(self.durable.promise))
    }

    pub(crate) fn is_me(&self, node: Option<&NodeId>) -> bool {
        node == Some(&self.config.me)
    }

    pub(crate) fn has_data_role(&self) -> bool {
        self.config.data_nodes.contains_key(&self.config.me)
    }

    /// Changes the durable state, and has it made durable before anything later.
    pub(crate) fn persist(&mut self, change: impl FnOnce(&mut Durable)) {
        let mut next = self.durable.clone();
        change(&mut next);
        next.promise = next.promise.max(self.durable.promise);
        next.system = self.record().and_then(|record| record.system).or(next.system);
        if next != self.durable {
            self.durable = next;
            self.out.push(Output::Persist(self.durable.clone()));
        }
    }
}

fn planted_in(config: &Config, plant: Plant) -> bool {
    cfg!(feature = "plant") && config.plants.contains(&plant)
}
