//! Planted faults that schedules seldom or never show, because a second rule guards them or the window is tiny: each as a property of
//! the one rule, on one machine. Every test looks twice: the rule holds, and with its fault planted the test sees it broken. (They
//! stand here because only this crate builds the decisions with planted faults.)
#![allow(clippy::unwrap_used, reason = "a test ends where it can not go on")]

mod common;

use common::{both, config};
use mainstay_decide::quorum::cover;
use mainstay_decide::{CasResult, Config, Input, Mind, Output, Plant};
use mainstay_model::record::RecoveryEnd;
use mainstay_model::*;
use std::collections::BTreeMap;

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// `a` has copy 1, `b` 2 …
fn copy(name: &str) -> CopyId {
    CopyId::new(u64::from(name.as_bytes()[0] - b'a') + 1).unwrap()
}

fn members(names: &[&str]) -> BTreeMap<NodeId, CopyId> {
    names.iter().map(|name| (id(name), copy(name))).collect()
}

/// A record held by `a` in this term.
fn held(term: u64, names: &[&str], quorum: u32) -> Record {
    Record {
        term: Term(term),
        holder: Some(id("a")),
        state: ClaimState::Held,
        grant: 5,
        leader: Some(id("a")),
        members: members(names),
        quorum,
        timeline: Timeline(1),
        lineage: Lineage::default(),
        wanted: None,
        asynchronous: false,
        system: Some(SystemId(77)),
        lease: Some(Span(3000)),
        lossy: None,
        restored: None,
        held: None,
        reason: String::new(),
    }
}

fn end(lsn: u64) -> LogEnd {
    LogEnd { position: Position { timeline: Timeline(1), lsn: Lsn(lsn) }, lineage: Lineage::default() }
}

/// One machine, and what it was last told to do.
struct Node {
    mind: Mind,
    now: u64,
    order: (OrderId, Option<Order>),
    cas: Option<(u64, Record)>,
    read: u64,
}

impl Node {
    fn new(me: &str, durability: Durability, durable: Durable, plant: Option<Plant>) -> Node {
        let config = config(&id(me), &["a", "b", "c"].map(id), durability, plant);
        let mind = Mind::new(config, Some(durable), Some(SystemId(77)), 1);
        Node { mind, now: 1000, order: (OrderId(0), None), cas: None, read: 0 }
    }

    fn step(&mut self, after: u64, input: Input) -> Vec<Output> {
        self.now += after;
        let outputs = self.mind.step(Moment(self.now), input);
        for output in &outputs {
            match output {
                Output::Order(number, _, order) => self.order = (*number, Some(order.clone())),
                Output::Cas(number, _, record) => self.cas = Some((*number, record.clone())),
                Output::Read(number) => self.read = *number,
                _ => {}
            }
        }
        outputs
    }

    fn written(&mut self, after: u64, revision: u64) -> Vec<Output> {
        let (number, _) = self.cas.take().unwrap();
        self.step(after, Input::Cas(number, CasResult::Done(Revision(revision))))
    }

    fn ordered(&mut self, after: u64, outcome: Outcome) -> Vec<Output> {
        let number = self.order.0;
        self.step(after, Input::Ordered(number, outcome))
    }

    fn read(&mut self, revision: u64, record: Record) -> Vec<Output> {
        let number = self.read;
        self.step(1, Input::Read(number, Some(Some((Revision(revision), record)))))
    }

    fn seen(&mut self, after: u64, state: ServerState, senders: &[&str]) -> Vec<Output> {
        self.seen_at(after, state, senders, 500)
    }

    /// The same, and so far the senders' standbys have flushed.
    fn seen_at(&mut self, after: u64, state: ServerState, senders: &[&str], flush: u64) -> Vec<Output> {
        let walsenders = senders.iter().map(|name| Walsender {
            node: id(name),
            copy: copy(name),
            flush: Lsn(flush),
            replay: Lsn(flush),
            streaming: true,
        });
        let at = Moment(self.now + after);
        let (timeline, lsn) = (Some(Timeline(1)), Some(Lsn(flush)));
        let seen = ServerObservation {
            at,
            state,
            timeline,
            end: lsn,
            open: state == ServerState::Primary,
            walsenders: walsenders.collect(),
            ..ServerObservation::default()
        };
        self.step(after, Input::Observed(seen))
    }

    /// `a` as the adopted, confirmed primary of term 1.
    fn primary(durability: Durability, names: &[&str], quorum: u32, plant: Option<Plant>) -> Node {
        let durable = Durable { promise: Term(1), copy: Some(copy("a")), ..Durable::default() };
        let mut node = Node::new("a", durability, durable, plant);
        let others: Vec<&str> = names.iter().copied().filter(|name| *name != "a").collect();
        node.seen(0, ServerState::Primary, &others);
        node.read(7, held(1, names, quorum));
        node.written(2, 8);
        node.ordered(5, Outcome::Confirmed(Lsn(500)));
        node.seen(5, ServerState::Primary, &others);
        node
    }

    /// `b`, cut and read to its end at 500, in a record of term 1 that nobody holds; then it has raised the term to 2.
    fn candidate(free: Record, plant: Option<Plant>) -> Node {
        let durable = Durable { promise: Term(1), copy: Some(copy("b")), ..Durable::default() };
        let mut node = Node::new("b", Durability::Strict, durable, plant);
        node.seen(0, ServerState::Standby, &[]);
        node.read(7, free);
        node.ordered(5, Outcome::Ended(end(500)));
        assert!(node.cas.is_some(), "it stands");
        node.written(2, 8);
        if matches!(node.order.1, Some(Order::Recruit | Order::ReadEnd)) {
            node.ordered(5, Outcome::Ended(end(500)));
        }
        node
    }

    /// Whatever is written succeeds, at once; says what that was.
    fn write_all(&mut self, revision: &mut u64) -> Vec<Record> {
        let mut records = Vec::new();
        for _ in 0..8 {
            let Some((_, record)) = self.cas.clone() else { break };
            records.push(record);
            *revision += 1;
            self.written(1, *revision);
        }
        records
    }

    fn answer(&mut self, from: &str, term: u64) -> Vec<Output> {
        let answer = Answer { term: Term(term), copy: copy(from), end: end(500) };
        self.step(2, Input::Peer(id(from), Message::Answer(answer)))
    }
}

fn free(names: &[&str], quorum: u32) -> Record {
    Record { state: ClaimState::Free, holder: None, wanted: Some(id("b")), ..held(1, names, quorum) }
}

fn orders(outputs: &[Output]) -> Vec<&Order> {
    outputs
        .iter()
        .filter_map(|output| if let Output::Order(_, _, order) = output { Some(order) } else { None })
        .collect()
}

/// Plant 49 (take-over protocol, 3.4): a restarted agent finds its server running, and a record of half a second ago in which it leads
/// alone. It must not plan from that: no setting is given before a write of its own has succeeded, and then from that record.
#[test]
fn a_restarted_agent_plans_only_from_a_record_that_it_wrote() {
    both(Plant::PlanFromReadRecord, |plant| {
        let durable = Durable { promise: Term(1), copy: Some(copy("a")), ..Durable::default() };
        let mut node = Node::new("a", Durability::Available, durable, plant);
        let mut outputs = node.step(0, Input::Watched(Revision(5), held(1, &["a"], 0)));
        outputs.extend(node.seen(1, ServerState::Primary, &["b"]));
        outputs.extend(node.step(5, Input::Tick));
        outputs.extend(node.seen(800, ServerState::Primary, &["b"]));
        orders(&outputs).is_empty()
    });
    // What the read shows is written again before anything is given; a refusal or silence of the store gives nothing either.
    let durable = Durable { promise: Term(1), copy: Some(copy("a")), ..Durable::default() };
    let mut node = Node::new("a", Durability::Available, durable, None);
    node.step(0, Input::Watched(Revision(5), held(1, &["a"], 0)));
    node.seen(1, ServerState::Primary, &["b"]);
    let mut outputs = node.read(8, held(1, &["a", "b"], 0));
    let (number, _) = node.cas.clone().unwrap();
    outputs.extend(node.step(2, Input::Cas(number, CasResult::Unknown)));
    outputs.extend(node.step(60, Input::Tick));
    assert!(orders(&outputs).is_empty(), "{outputs:?}");
    let given = node.written(2, 9);
    let setting = |order: &&Order| matches!(order, Order::SetSync { setting } if setting.need == 1);
    assert!(orders(&given).iter().any(setting), "{given:?}");
}

/// Plant 18: a write without answer is unknown. Nothing is planned from the record before it until a later write succeeds.
#[test]
fn nothing_is_planned_while_a_write_is_unknown() {
    both(Plant::UnknownTakenForFailed, |plant| {
        let mut node = Node::primary(Durability::Strict, &["a", "b", "c"], 1, plant);
        node.step(600, Input::Tick);
        let (number, _) = node.cas.take().unwrap();
        node.step(5, Input::Cas(number, CasResult::Unknown));
        // `c` has gone: the setting would be the next step.
        let mut outputs = Vec::new();
        for _ in 0..40 {
            let step = node.seen(20, ServerState::Primary, &["b"]);
            outputs.extend(step);
            // The store stays silent.
            if let Some((number, _)) = node.cas.take() {
                outputs.extend(node.step(5, Input::Cas(number, CasResult::Unknown)));
            }
        }
        orders(&outputs).is_empty()
    });
}

/// Plant 33: whoever follows a primary of a term has promised that term, durably, in the same write.
#[test]
fn an_upstream_is_never_of_a_later_term_than_the_promise() {
    both(Plant::FollowWithoutPersist, |plant| {
        let durable = Durable { promise: Term(1), copy: Some(copy("b")), ..Durable::default() };
        let mut node = Node::new("b", Durability::Strict, durable, plant);
        let mut outputs = node.seen(0, ServerState::Standby, &[]);
        outputs.extend(node.read(7, Record { wanted: Some(id("c")), ..free(&["a", "b", "c"], 1) }));
        outputs.extend(node.ordered(5, Outcome::Ended(end(500))));
        let record =
            Record { lineage: Lineage(vec![end(500).position]), timeline: Timeline(2), ..held(3, &["a", "b", "c"], 1) };
        outputs.extend(node.step(5, Input::Watched(Revision(9), record)));
        let mut follows = false;
        let fits = outputs.iter().all(|output| {
            let Output::Persist(durable) = output else { return true };
            follows |= durable.upstream.is_some();
            durable.upstream.as_ref().is_none_or(|upstream| upstream.term <= durable.promise)
        });
        assert!(follows, "it follows");
        fits
    });
}

/// Plant 15: a new clone is another copy than the one that the record counts.
#[test]
fn a_clone_has_a_name_of_its_own() {
    both(Plant::WipedCopyAnswers, |plant| {
        let durable = Durable { promise: Term(1), ..Durable::default() };
        let mut node = Node::new("b", Durability::Strict, durable, plant);
        node.seen(0, ServerState::Down, &[]);
        node.read(7, held(1, &["a", "b", "c"], 1));
        let outputs = node.step(5, Input::Peer(id("a"), Message::Presence(serving())));
        let given = orders(&outputs);
        let [Order::Clone { copy: new, .. }] = given[..] else { panic!("{given:?}") };
        *new != copy("b")
    });
}

fn serving() -> Presence {
    Presence {
        life: 1,
        promise: Term(1),
        revision: Revision(7),
        copy: Some(copy("a")),
        server: ServerState::Primary,
        primary_of: Some(Term(1)),
        open: true,
        position: None,
        holder_heard: None,
        sent: Moment(0),
        echo: None,
    }
}

/// Plant 37: before a rewind begins the copy's name is given up, durably.
#[test]
fn a_copy_that_is_being_rewound_has_no_name() {
    both(Plant::HalfRewoundAnswers, |plant| {
        let durable = Durable { promise: Term(1), copy: Some(copy("b")), ..Durable::default() };
        let mut node = Node::new("b", Durability::Strict, durable, plant);
        node.seen(0, ServerState::Standby, &[]);
        let record =
            Record { lineage: Lineage(vec![end(400).position]), timeline: Timeline(2), ..held(1, &["a", "b", "c"], 1) };
        node.read(7, record);
        node.step(5, Input::Peer(id("a"), Message::Presence(serving())));
        node.ordered(5, Outcome::Ended(end(500)));
        assert_eq!(node.order.1, Some(Order::Kill), "the server is stopped first");
        let outputs = node.ordered(5, Outcome::Done);
        assert!(matches!(orders(&outputs)[..], [Order::Rewind { .. }]), "{outputs:?}");
        let durable =
            outputs.iter().find_map(|output| if let Output::Persist(durable) = output { Some(durable) } else { None });
        durable.is_some_and(|durable| durable.copy.is_none())
    });
}

/// Plant 29: an answer of an older term is no answer.
#[test]
fn answers_of_an_older_term_do_not_count() {
    both(Plant::OldAnswers, |plant| {
        let mut node = Node::candidate(free(&["a", "b", "c"], 1), plant);
        node.answer("c", 1);
        let alone = node.cas.is_none();
        node.answer("c", 2);
        assert!(node.cas.is_some(), "an answer of this term does");
        alone
    });
}

/// Plant 38: the first setting of a winner that was no member covers M with it.
#[test]
fn the_first_setting_of_an_outsider_covers_the_members() {
    both(Plant::OutsiderSmallNeed, |plant| {
        let mut node = Node::candidate(free(&["a", "c"], 0), plant);
        node.answer("c", 2);
        let (_, record) = node.cas.clone().unwrap();
        let outputs = node.written(2, 9);
        let given = orders(&outputs);
        let [Order::Promote { setting, .. }] = given[..] else { panic!("{given:?}") };
        assert_eq!((record.members.len(), record.quorum), (3, 0));
        cover(&record.members, record.quorum, setting)
    });
}

/// Plant 11: the first setting covers what the record lets elect, not the configured number: here one answer is enough to be elected, so
/// both others must confirm.
#[test]
fn the_first_setting_goes_by_the_record() {
    both(Plant::FirstSettingAnyOne, |plant| {
        let mut node = Node::candidate(free(&["a", "b", "c"], 0), plant);
        node.answer("c", 2);
        let (_, record) = node.cas.clone().unwrap();
        assert_eq!((record.state, record.quorum), (ClaimState::Held, 0));
        let outputs = node.written(2, 9);
        let given = orders(&outputs);
        let [Order::Promote { setting, .. }] = given[..] else { panic!("{given:?}") };
        cover(&record.members, record.quorum, setting)
    });
}

/// Plant 43: a claim whose reply comes after the deadline that it allows leads to no promotion.
#[test]
fn a_late_claim_promotes_nobody() {
    both(Plant::PromoteWithoutDeadline, |plant| {
        let mut node = Node::candidate(free(&["a", "b", "c"], 1), plant);
        node.answer("c", 2);
        let outputs = node.written(2_401, 9);
        !orders(&outputs).iter().any(|order| matches!(order, Order::Promote { .. }))
    });
}

/// Plant 26: a crashed primary is started in place only after a renewal that was sent after the crash.
#[test]
fn a_restart_in_place_needs_a_fresh_renewal() {
    both(Plant::RestartWithoutCheck, |plant| {
        let mut node = Node::primary(Durability::Available, &["a"], 0, plant);
        node.step(10, Input::ServerExited);
        assert_eq!(node.order.1, Some(Order::Kill));
        let mut outputs = node.ordered(5, Outcome::Done);
        outputs.extend(node.step(5, Input::Tick));
        let early = orders(&outputs).contains(&&Order::RestartInPlace);
        if plant.is_none() {
            let outputs = node.written(2, 9);
            assert!(orders(&outputs).contains(&&Order::RestartInPlace), "{outputs:?}");
            let end = RecoveryEnd { timeline: Timeline(1), lsn: Lsn(510) };
            node.ordered(100, Outcome::Restarted(end));
        }
        !early
    });
}

/// Plant 27: the last replica has gone. The record leaves it out before the server acknowledges without it: else it could be elected
/// without what was acknowledged alone.
#[test]
fn a_primary_is_alone_in_the_record_before_it_acknowledges_alone() {
    both(Plant::DegradeServerFirst, |plant| {
        let mut node = Node::primary(Durability::Available, &["a", "b"], 0, plant);
        let (mut revision, mut alone) = (8, false);
        for _ in 0..30 {
            node.seen(50, ServerState::Primary, &[]);
            // The setting may come with the write's reply, not before.
            if let (_, Some(Order::SetSync { setting })) = &node.order
                && setting.need == 0
            {
                return alone;
            }
            alone |= node.write_all(&mut revision).iter().any(|record| record.members == members(&["a"]));
        }
        panic!("commits wait for a replica that has gone");
    });
}

/// Plant 8: one of two replicas has gone. The record lets the other one be elected alone only once that has everything which the one
/// that left may have confirmed: the log up to where the smaller setting was confirmed.
#[test]
fn who_stays_has_caught_up_before_the_record_counts_on_it_alone() {
    both(Plant::RemoveWithoutCaughtUp, |plant| {
        let mut node = Node::primary(Durability::Strict, &["a", "b", "c"], 1, plant);
        let smaller = Some(Order::SetSync { setting: SyncSetting { need: 1, copies: members(&["b"]) } });
        let (mut revision, mut records) = (8, Vec::new());
        for _ in 0..40 {
            node.seen(50, ServerState::Primary, &["b"]);
            if node.order.1 == smaller {
                break;
            }
            records.extend(node.write_all(&mut revision));
        }
        assert_eq!(node.order.1, smaller);
        // The store does not take what is written meanwhile.
        let refused = node.cas.take();
        // Confirmed at 600; `b` has 500.
        node.ordered(5, Outcome::Confirmed(Lsn(600)));
        if let Some((number, _)) = refused {
            node.step(5, Input::Cas(number, CasResult::Unavailable));
        }
        records.extend(node.write_all(&mut revision));
        for _ in 0..10 {
            node.seen(50, ServerState::Primary, &["b"]);
            records.extend(node.write_all(&mut revision));
        }
        let early = records.iter().any(|record| record.quorum == 0);
        node.seen_at(50, ServerState::Primary, &["b"], 600);
        records.extend(node.write_all(&mut revision));
        assert!(
            records.iter().any(|record| record.quorum == 0 && record.members == members(&["a", "b"])),
            "{records:?}"
        );
        !early
    });
}

/// Plant 58: the claim is given back only when nothing of the server can run any more: gone, or doomed. Doomed is enough, and then
/// nothing but kills is ordered.
#[test]
fn a_claim_is_released_when_the_server_is_doomed_and_not_before() {
    both(Plant::ReleaseBeforeDoom, |plant| {
        let mut node = Node::primary(Durability::Strict, &["a", "b", "c"], 1, plant);
        node.seen(10, ServerState::Primary, &["b", "c"]);
        node.cas = None;
        node.step(10, Input::ServerExited);
        assert_eq!(node.order.1, Some(Order::Kill));
        node.ordered(5, Outcome::Failed(OrderFailure::Error("some processes may still run".to_owned())));
        node.step(150, Input::Tick);
        let early = node.cas.as_ref().is_some_and(|(_, record)| record.state == ClaimState::Free);
        if plant.is_none() {
            let mut outputs = node.ordered(5, Outcome::Doomed);
            let released = node.cas.clone().unwrap().1;
            assert_eq!((released.state, released.wanted), (ClaimState::Free, Some(id("b"))));
            outputs.extend(node.written(2, 9));
            for _ in 0..20 {
                outputs.extend(node.step(500, Input::Tick));
            }
            assert!(orders(&outputs).iter().all(|order| **order == Order::Kill), "{outputs:?}");
        }
        !early
    });
}

/// Plant 59: a watched record that shows a grant of mine renewed from the moment when that very grant was sent.
#[test]
fn a_watched_grant_counts_from_its_own_sending() {
    both(Plant::LeaseFromNewestAttempt, |plant| {
        let mut node = Node::primary(Durability::Strict, &["a", "b", "c"], 1, plant);
        node.step(600, Input::Tick);
        let (number, first) = node.cas.take().unwrap();
        let sent = node.now;
        node.step(300, Input::Cas(number, CasResult::Unknown));
        node.step(100, Input::Tick);
        let (number, _) = node.cas.take().unwrap();
        node.step(300, Input::Cas(number, CasResult::Unknown));
        let outputs = node.step(1, Input::Watched(Revision(90), first));
        let until = outputs.iter().find_map(|output| match output {
            Output::Deadline(_, until) => Some(*until),
            _ => None,
        });
        until.unwrap() <= Moment(sent + 2_400)
    });
}

/// Plant 51: who waits for a lease goes by the newest grant. So a grant for a shorter lease, written while the guard still holds a
/// deadline from a longer one, is for as long as that.
#[test]
fn a_shorter_lease_is_granted_when_the_longer_one_is_over() {
    both(Plant::LeaseShortenedAtOnce, |plant| {
        let mut node = Node::primary(Durability::Strict, &["a", "b", "c"], 1, plant);
        node.step(600, Input::Tick);
        let renewed = node.now;
        node.written(2, 9);
        let held = renewed + 2_400;
        let shorter = Config {
            lease: Span(800),
            margin: Span(160),
            ..config(&id("a"), &["a", "b", "c"].map(id), Durability::Strict, plant)
        };
        node.step(5, Input::Configured(Box::new(shorter)));
        node.step(600, Input::Tick);
        let sent = node.now;
        let (_, record) = node.cas.clone().unwrap();
        node.written(2, 10);
        let covers = sent + record.lease.unwrap().0 >= held;
        // In the end the shorter one is granted.
        for revision in 11..30 {
            node.step(400, Input::Tick);
            if node.cas.is_some() {
                let (_, record) = node.cas.clone().unwrap();
                node.written(2, revision);
                if record.lease == Some(Span(800)) {
                    return covers;
                }
            }
        }
        panic!("the shorter lease is never granted");
    });
}

/// Plant 60: a copy that can not be started is kept while no other node runs as primary.
#[test]
fn the_last_copy_is_kept_though_it_can_not_be_started() {
    both(Plant::UnstartableGivenUp, |plant| {
        let durable = Durable { promise: Term(1), copy: Some(copy("b")), ..Durable::default() };
        let mut node = Node::new("b", Durability::Strict, durable, plant);
        node.seen(0, ServerState::Down, &[]);
        let mut outputs = node.read(7, free(&["a", "b", "c"], 1));
        for _ in 0..20 {
            if node.order.1 == Some(Order::StartStandby) {
                outputs.extend(node.ordered(5, Outcome::Failed(OrderFailure::Broken("no control file".to_owned()))));
            }
            if node.order.1 == Some(Order::Kill) {
                outputs.extend(node.ordered(5, Outcome::Done));
            }
            outputs.extend(node.step(1_000, Input::Tick));
        }
        !outputs.iter().any(|output| matches!(output, Output::Persist(durable) if durable.copy.is_none()))
    });
}
