//! Tests of the table: each rule by example, then all of them against random schedules.

use super::*;
use crate::feed::RouteReport;
use proptest::prelude::*;

const LAG_MAX: u64 = 1000;
const GRACE: Span = Span(5000);

fn node(number: usize) -> NodeId {
    NodeId::new(format!("db{number}")).unwrap()
}

fn member(number: usize, lag: u64) -> RouteMember {
    let address = SocketAddr::from(([127, 0, 0, 1], 5000 + u16::try_from(number).unwrap()));
    RouteMember { node: node(number), address, lag_bytes: Some(lag) }
}

fn report(from: usize, epoch: u64, state: RouteState, valid_ms: u64, replicas: &[(usize, u64)]) -> RouteReport {
    let leader = (state != RouteState::Closed).then(|| member(from, 0));
    let replicas = replicas.iter().map(|(number, lag)| member(*number, *lag)).collect();
    RouteReport { from: node(from), route: Route { epoch: Term(epoch), leader, replicas, state, valid_ms } }
}

fn table() -> RouteTable {
    RouteTable::new(LAG_MAX, GRACE)
}

fn hear(table: &mut RouteTable, report: RouteReport, at: u64) -> View {
    assert_eq!(table.hear(TimedReport { report, sent: Moment(at) }, Moment(at)), Hearing::Taken);
    table.view(Moment(at))
}

fn name(target: Option<&Target>) -> Option<&str> {
    target.map(|target| target.node.as_str())
}

fn names(targets: &[Target]) -> Vec<&str> {
    targets.iter().map(|target| target.node.as_str()).collect()
}

use RouteState::{Closed, Draining, Open};

#[test]
fn validity_counts_from_the_question_and_its_end_fences() {
    let mut table = table();
    assert_eq!(table.view(Moment(9)).held, Held::Silence);
    let timed = TimedReport { report: report(1, 3, Open, 1000, &[]), sent: Moment(100) };
    table.hear(timed, Moment(400));
    assert_eq!(name(table.view(Moment(1099)).write.as_ref()), Some("db1"));
    assert_eq!(table.next_change(Moment(400)), Some(Moment(1100)));
    let after = table.view(Moment(1100));
    assert_eq!((after.write, after.keep, after.held), (None, None, Held::Stale));
}

#[test]
fn a_question_dated_in_the_future_gains_nothing() {
    let mut table = table();
    let timed = TimedReport { report: report(1, 3, Open, 1000, &[]), sent: Moment(9000) };
    table.hear(timed, Moment(100));
    assert_eq!(table.until(), Moment(1100));
}

#[test]
fn draining_and_closed_hold_the_new_and_keep_the_old_until_the_promise_ends() {
    for (state, held) in [(Draining, Held::Draining), (Closed, Held::Closed)] {
        let mut table = table();
        hear(&mut table, report(1, 3, Open, 1000, &[(2, 0)]), 100);
        let view = hear(&mut table, report(1, 3, state, 800, &[]), 300);
        assert_eq!((view.write, name(view.keep.as_ref()), view.held), (None, Some("db1"), held));
        assert_eq!(table.view(Moment(1100)).keep, None);
    }
}

#[test]
fn a_higher_epoch_ends_the_older_leader_whoever_tells_it() {
    let mut table = table();
    hear(&mut table, report(1, 3, Open, 1000, &[]), 100);
    let view = hear(&mut table, report(2, 4, Closed, 0, &[]), 200);
    assert_eq!((view.write, view.keep, view.held, view.epoch), (None, None, Held::NoPrimary, Term(4)));
    let old = TimedReport { report: report(1, 3, Open, 1000, &[]), sent: Moment(300) };
    assert_eq!(table.hear(old, Moment(300)), Hearing::Older);
    assert_eq!(table.view(Moment(300)).keep, None);
    let view = hear(&mut table, report(2, 4, Open, 1000, &[]), 400);
    assert_eq!(name(view.write.as_ref()), Some("db2"));
}

#[test]
fn an_epoch_has_one_leader_and_an_agent_speaks_for_itself() {
    let mut table = table();
    hear(&mut table, report(1, 3, Open, 1000, &[]), 100);
    let second = TimedReport { report: report(2, 3, Open, 1000, &[]), sent: Moment(200) };
    assert_eq!(table.hear(second, Moment(200)), Hearing::Conflict);
    let mut other = report(3, 4, Open, 1000, &[]);
    other.route.leader = Some(member(1, 0));
    assert_eq!(table.hear(TimedReport { report: other, sent: Moment(300) }, Moment(300)), Hearing::Refused);
    assert_eq!(table.view(Moment(300)).write, None);
}

#[test]
fn the_word_of_another_closed_agent_or_a_restarted_one_changes_nothing() {
    let mut table = table();
    hear(&mut table, report(1, 3, Open, 1000, &[]), 100);
    assert_eq!(hear(&mut table, report(2, 3, Closed, 0, &[]), 150).held, Held::No);
    let fresh = TimedReport { report: report(1, 0, Closed, 0, &[]), sent: Moment(200) };
    assert_eq!(table.hear(fresh, Moment(200)), Hearing::Older);
    let late = TimedReport { report: report(1, 3, Draining, 900, &[]), sent: Moment(150) };
    assert_eq!(table.hear(late, Moment(250)), Hearing::Older);
    assert_eq!(table.view(Moment(250)).held, Held::No);
}

#[test]
fn reads_go_to_listed_replicas_within_the_bound() {
    let mut table = table();
    let mut route = report(1, 3, Open, 1000, &[(2, LAG_MAX), (3, LAG_MAX + 1), (1, 0)]);
    route.route.replicas.push(RouteMember { lag_bytes: None, ..member(4, 0) });
    let view = hear(&mut table, route, 100);
    assert_eq!(names(&view.reads), ["db2"]);
    let kept: Vec<&str> = view.keep_reads.keys().map(NodeId::as_str).collect();
    assert_eq!(kept, ["db2", "db3", "db4"], "one that is behind keeps the readers it has");
}

#[test]
fn readers_outlive_a_take_over_but_not_the_role_nor_the_grace() {
    let mut table = table();
    hear(&mut table, report(1, 3, Open, 1000, &[(2, 0), (3, 0)]), 100);
    let view = hear(&mut table, report(3, 4, Closed, 0, &[]), 200);
    assert_eq!((names(&view.reads), view.keep_reads.len()), (vec!["db2", "db3"], 2), "no primary: reads go on");
    let view = hear(&mut table, report(2, 4, Open, 9000, &[]), 300);
    assert!(view.reads.is_empty(), "the new primary lists none yet");
    assert_eq!(view.keep_reads.keys().collect::<Vec<_>>(), [&node(3)], "the new primary is no replica");
    assert_eq!(table.next_change(Moment(300)), Some(Moment(5300)));
    assert!(table.view(Moment(5300)).keep_reads.is_empty());
    let view = hear(&mut table, report(2, 4, Open, 9000, &[(3, 0)]), 5000);
    assert_eq!(names(&view.reads), ["db3"]);
    assert_eq!(table.view(Moment(9000)).keep_reads.len(), 1);
}

#[test]
fn new_readers_do_not_go_to_replicas_that_nobody_vouches_for_long() {
    let mut table = table();
    hear(&mut table, report(1, 3, Open, 1000, &[(2, 0)]), 100);
    assert_eq!(table.view(Moment(6099)).reads.len(), 1);
    let view = table.view(Moment(6100));
    assert_eq!((view.reads.len(), view.keep_reads.len()), (0, 1));
}

#[test]
fn memory_is_bounded() {
    let mut table = table();
    for number in 0..NODES_MAX + 50 {
        let timed = TimedReport { report: report(number, 1, Closed, 0, &[]), sent: Moment(1) };
        table.hear(timed, Moment(1));
    }
    assert_eq!(table.heard.len(), NODES_MAX);
    for round in 0..20 {
        let many: Vec<(usize, u64)> = (0..500).map(|number| (100 + round * 500 + number, 0)).collect();
        hear(&mut table, report(0, 1, Open, u64::MAX, &many), 2);
    }
    assert!(table.replicas.len() <= 2 * NODES_MAX);
    assert_eq!(table.until(), Moment(2) + VALID_MAX);
}

#[derive(Clone, Debug)]
struct Step {
    from: usize,
    epoch: u64,
    state: RouteState,
    valid: u64,
    age: u64,
    pass: u64,
    replicas: Vec<(usize, u64)>,
}

fn step() -> impl Strategy<Value = Step> {
    let state = prop_oneof![4 => Just(Open), 1 => Just(Draining), 2 => Just(Closed)];
    let replicas = prop::collection::vec((0..4_usize, 0..2 * LAG_MAX), 0..4);
    (0..4_usize, 0..6_u64, state, 0..3000_u64, 0..400_u64, 0..900_u64, replicas).prop_map(
        |(from, epoch, state, valid, age, pass, replicas)| Step { from, epoch, state, valid, age, pass, replicas },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn one_leader_per_epoch_from_its_own_unexpired_word_and_the_epoch_never_falls(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let (mut table, mut now) = (table(), Moment(10_000));
        let mut leaders: BTreeMap<Term, NodeId> = BTreeMap::new();
        // What each agent promised last: (epoch, until, open).
        let mut words: BTreeMap<NodeId, (Term, Moment, bool)> = BTreeMap::new();
        let mut epoch = Term(0);
        for step in steps {
            now = now + Span(step.pass);
            let sent = now - Span(step.age);
            let said = report(step.from, step.epoch, step.state, step.valid, &step.replicas);
            if table.hear(TimedReport { report: said, sent }, now) == Hearing::Taken {
                let word = words.entry(node(step.from)).or_insert((Term(0), Moment(0), false));
                word.2 = step.state == Open;
                if step.state != Closed {
                    (word.0, word.1) = (Term(step.epoch), sent + Span(step.valid));
                }
            }
            for at in [now, now + Span(700)] {
                let view = table.view(at);
                prop_assert!(view.epoch >= epoch);
                epoch = view.epoch;
                if let Some(keep) = &view.keep {
                    let first = leaders.entry(keep.epoch).or_insert_with(|| keep.node.clone());
                    prop_assert_eq!(&*first, &keep.node);
                    prop_assert_eq!(keep.epoch, view.epoch);
                    let (said, until, _) = words[&keep.node];
                    prop_assert!(said == keep.epoch && at < until);
                    prop_assert!(!view.keep_reads.contains_key(&keep.node));
                }
                if let Some(write) = &view.write {
                    prop_assert_eq!(Some(write), view.keep.as_ref());
                    prop_assert!(words[&write.node].2);
                }
                prop_assert_eq!(view.write.is_some(), view.held == Held::No);
                for read in &view.reads {
                    prop_assert!(table.replicas[&read.node].lag_bytes.unwrap() <= LAG_MAX);
                    prop_assert!(view.keep_reads.contains_key(&read.node));
                }
                let change = table.next_change(at).unwrap_or(Moment(u64::MAX)).min(at + Span(50_000));
                prop_assert_eq!(&table.view(change - Span(1)).keep, &view.keep, "a change before the next change");
            }
        }
    }
}
