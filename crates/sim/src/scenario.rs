//! Chains of happenings that chance alone would rarely line up, each for a rule that only they put to the test.

use crate::event::{Happening, Node};
use crate::network::STORE;
use crate::operator::{FAILOVER, FAILOVER_WITH_LOSS, REINIT};
use crate::server::Process;
use crate::shape::{MS, Micros, Scenario};
use crate::world::World;
use mainstay_model::record::ClaimState;
use mainstay_model::{Command, Durability, Span};

impl World {
    pub(crate) fn act(&mut self, step: u8) {
        let primary = (0..self.nodes.len()).find(|node| self.nodes[*node].server.process == Process::Primary);
        let (Some(scenario), false) = (self.shape.scenario, self.healed) else { return };
        let Some(primary) = primary.or((step > 0).then_some(0)) else {
            self.queue.push(self.now + 100 * MS, Happening::Act(step));
            return;
        };
        self.trace(Some(primary), || format!("SCENARIO {scenario:?}, step {step}"));
        match (scenario, step) {
            (Scenario::LeaseUp, 0) => {
                let mut wish = self.wish().clone();
                wish.lease = Span(3_600);
                self.wish_within(
                    wish,
                    move |world, node| {
                        if node == primary { 5 * MS } else { world.rng.range(3_000, 5_000) * MS }
                    },
                );
                self.act_in(500, 1_500, 1);
            }
            (Scenario::LeaseDown, 0) => {
                let mut wish = self.wish().clone();
                wish.lease = Span(800);
                self.wish_within(wish, |world, _| world.rng.range(1, 20) * MS);
                self.act_in(300, 1_400, 1);
            }
            (Scenario::LeaseUp | Scenario::LeaseDown, 1) => {
                let until = self.now + 5_000 * MS;
                self.isolate(primary, until);
                self.sever(primary, STORE, until);
            }
            (Scenario::Forced | Scenario::ForcedAgain, 0) => self.force(scenario, primary),
            (Scenario::ForcedAgain, again) => {
                self.command(usize::from(again) - 1, FAILOVER_WITH_LOSS, Command::Failover { accept_data_loss: true });
            }
            (Scenario::ReinitAll, 0) => {
                if !self.may_lose(primary) {
                    self.queue.push(self.now + 50 * MS, Happening::Act(step));
                    return;
                }
                self.wipe(primary);
                self.store.away_until = self.store.away_until.max(self.now + 5_000 * MS);
                self.act_in(600, 900, 1);
            }
            (Scenario::ReinitAll, _) => {
                for node in 0..self.nodes.len() {
                    self.command(node, REINIT, Command::Reinit);
                }
                if step < 10 {
                    self.act_in(300, 500, step + 1);
                }
            }
            (Scenario::Removed, 0) => self.remove_another(primary),
            (Scenario::Removed, chosen) => {
                self.command(usize::from(chosen) - 1, FAILOVER, Command::Failover { accept_data_loss: false });
            }
            _ => {}
        }
    }

    /// Would every acknowledged commit, and an election, survive the loss of this primary's disk, whatever is under way?
    fn may_lose(&self, primary: Node) -> bool {
        let Some((_, record)) = self.store.newest() else { return false };
        // One that can not be started, or is about to be rewound, may be given up in the same moment.
        let whole = record.members.iter().all(|(name, copy)| {
            let host = &self.nodes[crate::world::number(name)];
            host.disk.copy == Some(*copy) && host.disk.diverged.is_none() && !host.server.unstartable
        });
        let held = record.state == ClaimState::Held && record.holder.as_ref() == Some(&self.names[primary]);
        let quiet = self.nodes[primary].cas_open.is_none();
        let strict = self.wishes.iter().all(|wish| wish.durability == Durability::Strict);
        let elsewhere = self.nodes[primary]
            .server
            .log
            .iter()
            .all(|entry| !self.ledger.acknowledged.contains_key(&entry.id) || self.elsewhere(primary, entry.id));
        whole && held && quiet && strict && elsewhere && record.members.len() > record.quorum as usize + 1
    }

    fn act_in(&mut self, from: Micros, to: Micros, step: u8) {
        let at = self.now + self.rng.range(from, to) * MS;
        self.queue.push(at, Happening::Act(step));
    }

    fn sever(&mut self, one: usize, other: usize, until: Micros) {
        self.net.cut(one, other, until);
        self.net.cut(other, one, until);
    }

    fn isolate(&mut self, node: Node, until: Micros) {
        (0..self.nodes.len()).filter(|other| *other != node).for_each(|other| self.sever(node, other, until));
    }

    /// One replica, behind the others, learns that another one was removed; it is cut off from all of them.
    fn remove_another(&mut self, primary: Node) {
        let replicas: Vec<Node> = (0..self.shape.listed).filter(|node| *node != primary).collect();
        let [chosen, removed, ..] = replicas[..] else { return };
        let mut wish = self.wish().clone();
        if !wish.can_spare_one() || !wish.listed.contains(&removed) {
            return;
        }
        wish.listed.remove(&removed);
        self.wish_within(
            wish,
            move |world, node| {
                if node == chosen { 5 * MS } else { world.rng.range(5_000, 7_000) * MS }
            },
        );
        let until = self.now + 6_000 * MS;
        self.isolate(chosen, until);
        self.sever(primary, STORE, until);
        self.sever(removed, STORE, until);
        self.act_in(200, 500, chosen as u8 + 1);
    }

    /// One replica reaches the store alone; the primary serves on with the others, without the store.
    fn force(&mut self, scenario: Scenario, primary: Node) {
        let replicas: Vec<Node> = (0..self.shape.listed).filter(|node| *node != primary).collect();
        let Some(chosen) = replicas.get(self.rng.index(replicas.len())).copied() else { return };
        let until = self.now + 9_000 * MS;
        self.isolate(chosen, until);
        (0..self.nodes.len()).filter(|node| *node != chosen).for_each(|node| self.sever(node, STORE, until));
        if scenario == Scenario::Forced {
            self.command(chosen, FAILOVER_WITH_LOSS, Command::Failover { accept_data_loss: true });
        } else {
            self.command(chosen, FAILOVER, Command::Failover { accept_data_loss: false });
            self.act_in(2_150, 2_400, chosen as u8 + 1);
        }
    }
}
