//! The arithmetic of acknowledgements and elections, against brute force on up to five nodes: whatever the order of writes, flushes,
//! changes, confirmations, losses and returns, every election that the record allows meets everything acknowledged.
#![allow(clippy::unwrap_used, reason = "a test ends where it can not go on")]

use mainstay_decide::quorum::{Bend, Members, Situation, Step, cover, holders};
use mainstay_model::{CopyId, Lsn, NodeId, SyncSetting};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn node(index: usize) -> NodeId {
    NodeId::new(format!("n{index}")).unwrap()
}

fn copy(number: u64) -> CopyId {
    CopyId::new(number).unwrap()
}

#[derive(Clone, Debug)]
enum Event {
    Write,
    Flush(usize),
    Stream(usize, bool),
    Break(usize),
    Step,
    Confirm,
    Forget,
}

/// A leader (node 0) with its replicas.
#[derive(Clone, Debug)]
struct Leader {
    members: Members,
    quorum: u32,
    settings: Vec<SyncSetting>,
    confirmed: Option<u64>,
    end: u64,
    acknowledged: u64,
    copies: Vec<u64>,
    flush: Vec<u64>,
    streams: Vec<bool>,
    next_copy: u64,
    strict: bool,
    wanted: u32,
    bend: Bend,
    changes: u32,
}

impl Leader {
    fn new(nodes: usize, strict: bool, wanted: u32, bend: Bend) -> Leader {
        let copies: Vec<u64> = (1..=nodes as u64).collect();
        let members: Members = (0..nodes).map(|index| (node(index), copy(copies[index]))).collect();
        let mut others = members.clone();
        others.remove(&node(0));
        let setting = SyncSetting { need: wanted, copies: others };
        Leader {
            quorum: (nodes as u32).saturating_sub(1 + wanted),
            members,
            settings: vec![setting],
            confirmed: Some(0),
            end: 0,
            acknowledged: 0,
            copies,
            flush: vec![0; nodes],
            streams: vec![true; nodes],
            next_copy: 100,
            strict,
            wanted,
            bend,
            changes: 0,
        }
    }

    fn flushes(&self) -> BTreeMap<NodeId, (CopyId, Lsn)> {
        (1..self.copies.len()).map(|i| (node(i), (copy(self.copies[i]), Lsn(self.flush[i])))).collect()
    }

    /// By any setting that may be in force.
    fn acknowledge(&mut self) {
        for setting in &self.settings {
            let mut flushed: Vec<u64> = (1..self.copies.len())
                .filter(|i| setting.copies.get(&node(*i)) == Some(&copy(self.copies[*i])))
                .map(|i| self.flush[i])
                .collect();
            flushed.sort_unstable_by(|left, right| right.cmp(left));
            let position = match setting.need as usize {
                0 => Some(self.end),
                need => flushed.get(need - 1).copied(),
            };
            self.acknowledged = self.acknowledged.max(position.unwrap_or(0));
        }
    }

    fn step(&mut self) {
        let acting: Members =
            (1..self.copies.len()).filter(|i| self.streams[*i]).map(|i| (node(i), copy(self.copies[i]))).collect();
        let broken: BTreeSet<NodeId> = (1..self.copies.len())
            .filter(|i| self.members.get(&node(*i)).is_some_and(|known| *known != copy(self.copies[*i])))
            .map(node)
            .collect();
        let flush = self.flushes();
        let me = node(0);
        let situation = Situation {
            me: &me,
            my_copy: copy(self.copies[0]),
            members: &self.members,
            quorum: self.quorum,
            settings: &self.settings,
            confirmed: self.confirmed.is_some(),
            position: Lsn(self.confirmed.unwrap_or(self.end)),
            flush: &flush,
            acting: &acting,
            broken: &broken,
            strict: self.strict,
            wanted: self.wanted,
            bend: self.bend,
        };
        match situation.next_step() {
            Some(Step::Record(members, quorum)) => (self.members, self.quorum) = (members, quorum),
            Some(Step::Setting(setting)) => {
                self.settings.push(setting);
                self.confirmed = None;
            }
            None => return,
        }
        self.changes += 1;
    }

    fn happen(&mut self, event: &Event) {
        let others = self.copies.len() - 1;
        match event {
            Event::Write => self.end += 1,
            Event::Flush(i) => {
                let i = 1 + i % others;
                if self.streams[i] {
                    self.flush[i] = self.end;
                }
            }
            Event::Stream(i, on) => self.streams[1 + i % others] = *on,
            Event::Break(i) => {
                let i = 1 + i % others;
                self.next_copy += 1;
                (self.copies[i], self.flush[i]) = (self.next_copy, 0);
            }
            Event::Step => self.step(),
            Event::Confirm => {
                if self.confirmed.is_none() {
                    self.settings.drain(..self.settings.len() - 1);
                    self.confirmed = Some(self.end);
                }
            }
            // A restarted agent gives the first setting of its record again, and changes nothing before that is confirmed.
            Event::Forget => {
                let mut copies = self.members.clone();
                copies.remove(&node(0));
                let need = (self.members.len() as u32 - 1).saturating_sub(self.quorum).max(self.wanted);
                self.settings.push(SyncSetting { need, copies });
                self.confirmed = None;
                self.acknowledge();
                self.happen(&Event::Confirm);
            }
        }
        self.acknowledge();
    }

    /// Every q + 1 of M without the leader contains a copy with everything acknowledged. (A copy that is gone never answers.)
    fn safe(&self) -> bool {
        let others: Vec<(&NodeId, &CopyId)> = self.members.iter().filter(|(name, _)| **name != node(0)).collect();
        let flushes = self.flushes();
        let without = others
            .iter()
            .filter(|(name, id)| flushes.get(*name).is_some_and(|(copy, at)| copy == *id && at.0 < self.acknowledged))
            .count();
        without <= self.quorum as usize
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Write),
        4 => (0usize..5).prop_map(Event::Flush),
        2 => (0usize..5, any::<bool>()).prop_map(|(i, on)| Event::Stream(i, on)),
        1 => (0usize..5).prop_map(Event::Break),
        5 => Just(Event::Step),
        3 => Just(Event::Confirm),
        1 => Just(Event::Forget),
    ]
}

fn leader() -> impl Strategy<Value = Leader> {
    (2usize..=5, any::<bool>(), 0u32..=2)
        .prop_map(|(nodes, strict, wanted)| Leader::new(nodes, strict, wanted.min(nodes as u32 - 1), Bend::default()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_allowed_election_meets_everything_acknowledged(mut leader in leader(), events in prop::collection::vec(event(), 1..60)) {
        for event in &events {
            leader.happen(event);
            prop_assert!(leader.safe(), "after {event:?}: {leader:?}");
        }
    }

    #[test]
    fn it_comes_to_rest_at_the_target(mut leader in leader(), events in prop::collection::vec(event(), 1..40)) {
        for event in &events {
            leader.happen(event);
        }
        let others = leader.copies.len() - 1;
        for _ in 0..20 {
            leader.happen(&Event::Write);
            leader.happen(&Event::Confirm);
            for i in 0..others {
                leader.happen(&Event::Stream(i, true));
                leader.happen(&Event::Flush(i));
            }
            leader.happen(&Event::Step);
        }
        let changes = leader.changes;
        leader.happen(&Event::Step);
        prop_assert_eq!(changes, leader.changes, "still changing: {:?}", leader);
        prop_assert_eq!(leader.members.len(), others + 1);
        prop_assert_eq!(leader.quorum as usize + leader.wanted as usize, others);
        prop_assert_eq!(leader.settings[0].need, leader.wanted);
    }

    /// `cover` against its definition: every q + 1 of M meets {leader} and every `need` of the setting's copies.
    #[test]
    fn cover_is_what_it_says(size in 1usize..=5, in_set in 0u32..32, extra in 0usize..=2, need in 0u32..=5, quorum in 0u32..=4) {
        let members: Members = (0..size).map(|i| (node(i), copy(i as u64 + 1))).collect();
        let mut copies: Members = (1..size).filter(|i| in_set & (1 << i) != 0).map(|i| (node(i), copy(i as u64 + 1))).collect();
        copies.extend((0..extra).map(|i| (node(10 + i), copy(50 + i as u64))));
        let setting = SyncSetting { need, copies: copies.clone() };
        let nodes: Vec<NodeId> = copies.keys().cloned().collect();
        let mut met = true;
        for acknowledging in 0u32..(1 << nodes.len()) {
            if acknowledging.count_ones() != need {
                continue;
            }
            let holding: BTreeSet<&NodeId> =
                nodes.iter().enumerate().filter(|(i, _)| acknowledging & (1 << i) != 0).map(|(_, name)| name).collect();
            let without = (0..size).filter(|i| *i != 0 && !holding.contains(&node(*i))).count();
            met &= without < quorum as usize + 1;
        }
        prop_assert_eq!(cover(&members, quorum, &setting), met);
    }
}

/// The check can fail: each bent rule loses something within the same number of cases.
#[test]
fn bent_rules_are_found() {
    let bends = [
        Bend { all_listed: true, ..Bend::default() },
        Bend { remove_early: true, ..Bend::default() },
        Bend { degrade_server_first: true, ..Bend::default() },
    ];
    for bend in bends {
        let config = ProptestConfig {
            cases: 20_000,
            failure_persistence: None,
            max_shrink_iters: 0,
            ..ProptestConfig::default()
        };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let strategy = (2usize..=5, 1u32..=2, prop::collection::vec(event(), 1..60));
        let found = runner.run(&strategy, |(nodes, wanted, events)| {
            let mut leader = Leader::new(nodes, false, wanted.min(nodes as u32 - 1), bend);
            for event in &events {
                leader.happen(event);
                prop_assert!(leader.safe());
            }
            Ok(())
        });
        assert!(found.is_err(), "{bend:?} was not found");
    }
}

#[test]
fn holders_counts_only_the_copy_that_the_record_names() {
    let members: Members = (0..3).map(|i| (node(i), copy(i as u64 + 1))).collect();
    let flush = BTreeMap::from([(node(1), (copy(2), Lsn(10))), (node(2), (copy(99), Lsn(10)))]);
    assert_eq!(holders(&members, &node(0), Lsn(10), &flush), 2);
    assert_eq!(holders(&members, &node(0), Lsn(11), &flush), 1);
}
