//! Planted faults of the shell (its register and its executor) that schedules show seldom, because two steps must cross within a few
//! milliseconds: here they are made to cross, before any agent of the cluster runs. (What the shell of a real agent does about each
//! has its own test there; see the take-over protocol, §6.)
#![allow(clippy::unwrap_used, reason = "a test ends where it can not go on")]

mod common;

use common::{both, config};
use mainstay_decide::{Mind, Plant};
use mainstay_model::{
    CopyId, Durability, Lsn, Order, OrderId, Position, Record, Revision, SyncSetting, Term, Timeline,
};
use mainstay_sim::event::Happening;
use mainstay_sim::orders::Running;
use mainstay_sim::store::Request;
use mainstay_sim::world::World;
use std::collections::BTreeSet;

/// A cluster that has run before, with three members at least, and the record that it begins with.
fn world(plant: Option<Plant>) -> (World, Record) {
    let plants: BTreeSet<Plant> = plant.into_iter().collect();
    (1..200)
        .map(|seed| World::new(seed, &plants, false))
        .find_map(|world| {
            let record = world.store.newest().map(|(_, record)| record.clone()).filter(|it| it.members.len() >= 3)?;
            Some((world, record))
        })
        .unwrap()
}

/// Two nodes have read the first revision, and both write from it, one after the other. What the store holds afterwards, oldest
/// first, from the first of both writes on.
fn crossed(mut world: World, first: Record, second: Record) -> Vec<Record> {
    for (at, node, record) in [(10, 1, first), (20, 0, second)] {
        let write = Some((Some(Revision(1)), record));
        let request = Request { node, life: 0, group: 0, id: 1, sent: 0, repeated: false, write };
        world.queue.push(at, Happening::Request(Box::new(request)));
    }
    world.run();
    world.store.versions.drain(..).skip(1).map(|(_, record)| record).collect()
}

/// The record with another copy for its first member: a change of the members and of nothing else.
fn other_copy(record: &Record) -> (Record, CopyId) {
    let copy = CopyId::new(4711).unwrap();
    let mut changed = record.clone();
    *changed.members.values_mut().next().unwrap() = copy;
    (changed, copy)
}

fn raised(record: &Record) -> Record {
    Record { term: Term(record.term.0 + 1), reason: "raised".to_owned(), ..record.clone() }
}

/// Plant 9: members that an old leader wrote before it knew of the new term come to nothing, although no other write changed the members.
#[test]
fn members_from_before_a_raise_are_refused_after_it() {
    both(Plant::TwoKeys, |plant| {
        let (world, record) = world(plant);
        let (late, copy) = other_copy(&record);
        let versions = crossed(world, raised(&record), late);
        assert_eq!(versions[0].term, Term(2), "the raise came first");
        versions.iter().all(|record| record.members.values().all(|member| *member != copy))
    });
}

/// Plant 42: a raise by somebody who has not seen the newest members is refused, although no other write changed the claim.
#[test]
fn a_raise_from_before_a_change_of_members_is_refused_after_it() {
    both(Plant::SyncReadBeforeRaise, |plant| {
        let (world, record) = world(plant);
        let (changed, copy) = other_copy(&record);
        let versions = crossed(world, changed, raised(&record));
        assert!(versions[0].members.values().any(|member| *member == copy), "the change came first");
        versions.iter().all(|record| record.reason != "raised")
    });
}

/// An order that was given in term 4 comes to its turn when the promise is 5: is it refused?
fn refused_after_a_promise(plant: Option<Plant>, order: Order) -> bool {
    let (mut world, mut record) = world(plant);
    record.term = Term(5);
    world.store.versions = vec![(Revision(1), record.clone())];
    for host in &mut world.nodes {
        host.disk.promise = Term(5);
        host.promised = Term(5);
    }
    let host = &mut world.nodes[0];
    host.gate = host.disk.clone();
    let config = config(&world.names[0], &world.names[..1], Durability::Strict, plant);
    // The process that gave the order; it is gone before it could give another.
    host.mind = Some(Box::new(Mind::new(config, Some(host.disk.clone()), record.system, 1)));
    let (id, term, until) = (OrderId(1), Term(4), 1_000_000);
    host.order = Some(Running { id, term, order, step: 0, number: 999, until, life: 0, marker: None });
    world.queue.push(10, Happening::Order(0, 999));
    world.run();
    world.violation.is_none_or(|violation| violation.rule != "S3")
}

/// Plant 6.
#[test]
fn a_promotion_from_before_a_promise_is_refused_after_it() {
    let fork = Position { timeline: Timeline(1), lsn: Lsn(20) };
    let order = Order::Promote { timeline: Timeline(2), fork, setting: SyncSetting::default() };
    both(Plant::LatePromote, |plant| refused_after_a_promise(plant, order.clone()));
}

/// Plant 31.
#[test]
fn a_rewind_from_before_a_promise_is_refused_after_it() {
    let source = mainstay_model::NodeId::new("n1").unwrap();
    both(Plant::LateRewind, |plant| refused_after_a_promise(plant, Order::Rewind { source: source.clone() }));
}
