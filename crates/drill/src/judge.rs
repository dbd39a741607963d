//! What was seen, held against what was asked for. Pure: the same records give the same judgement.

use crate::access::Told;
use crate::marker::{Operation, Records};
use mainstay_model::Durability;
use mainstay_model::drill::{DrillKind, DrillResult, DrillWrites};
use mainstay_model::spec::Failover;
use std::collections::BTreeMap;

/// Over how many days a budget goes.
pub const BUDGET_DAYS: u64 = 30;
/// Changes of primary so soon after a drill began belong to it: its own measurement counts.
const OF_DRILL_MS: u64 = 180_000;

/// A time without an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// The last answer before it, in milliseconds since the marker began.
    pub from_ms: u64,
    /// Its length.
    pub length_ms: u64,
}

/// What the clients saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The longest time without an acknowledged write, from the fault on.
    pub write: Gap,
    /// The longest time without an answered read.
    pub read: Gap,
    /// The longest time without an acknowledged write before the fault: what this cluster, and this machine, do anyway.
    pub usual_ms: u64,
    /// What became of the writes.
    pub writes: DrillWrites,
}

/// The longest time between two answers that ends after `from_ms`; the beginning and the end count as answers.
#[must_use]
pub fn longest(operations: &[Operation], from_ms: u64, to_ms: u64) -> Gap {
    let acknowledged = operations.iter().filter(|operation| operation.told == Told::Acknowledged);
    let mut answers: Vec<u64> = acknowledged.map(|operation| operation.ended_ms).filter(|at| *at <= to_ms).collect();
    answers.push(to_ms);
    answers.sort_unstable();
    let mut gap = Gap::default();
    let mut last = 0;
    for at in answers {
        if at >= from_ms && at - last > gap.length_ms {
            gap = Gap { from_ms: last, length_ms: at - last };
        }
        last = at;
    }
    gap
}

/// Judges the records of a drill whose fault began then.
#[must_use]
pub fn seen(records: &Records, fault_ms: u64) -> Seen {
    let write = longest(&records.writes, fault_ms, records.ran_ms);
    let before = longest(&records.writes, 0, fault_ms);
    let mut seen = Seen {
        write,
        read: longest(&records.reads, fault_ms, records.ran_ms),
        usual_ms: before.length_ms,
        ..Seen::default()
    };
    let mut first_lost = None::<u64>;
    for operation in &records.writes {
        let there = records.there.get(&(operation.client, operation.number)).copied().unwrap_or(0);
        seen.writes.duplicated += u64::from(there > 1);
        match operation.told {
            Told::Acknowledged => {
                seen.writes.acknowledged += 1;
                if there == 0 {
                    seen.writes.lost += 1;
                    first_lost = Some(first_lost.map_or(operation.ended_ms, |first| first.min(operation.ended_ms)));
                }
            }
            Told::Failed => seen.writes.failed += 1,
            Told::Unknown => {
                seen.writes.unknown += 1;
                seen.writes.unknown_there += u64::from(there > 0);
            }
        }
    }
    // A loss of one moment is a loss all the same.
    seen.writes.lost_ms = first_lost.map_or(0, |first| write.from_ms.saturating_sub(first).max(1));
    seen
}

/// Fills in what the clients saw, and whether it is what was asked for.
#[must_use]
pub fn judged(mut result: DrillResult, seen: &Seen, durability: Durability) -> DrillResult {
    result.write_gap_ms = seen.write.length_ms;
    result.read_gap_ms = seen.read.length_ms;
    result.writes = seen.writes;
    let mut why = Vec::new();
    if let Some(allowed) = result.outage_allowed_s.filter(|allowed| seen.write.length_ms > allowed * 1000) {
        why.push(format!("no write was acknowledged for {} ms, and {allowed} s are allowed", seen.write.length_ms));
    }
    let loss_allowed = durability == Durability::Async
        && result.loss_allowed_s.is_some_and(|allowed| seen.writes.lost_ms <= allowed * 1000);
    if seen.writes.lost > 0 && !loss_allowed {
        let allowed = match (durability, result.loss_allowed_s) {
            (Durability::Async, Some(allowed)) => format!("{allowed} s of writes may be"),
            (Durability::Async, None) => "[requirements] allows no loss".to_owned(),
            _ => format!("durability {} promises that none is", durability.as_str()),
        };
        why.push(format!(
            "{} acknowledged writes are lost, {} ms back; {allowed}",
            seen.writes.lost, seen.writes.lost_ms
        ));
    }
    if seen.writes.duplicated > 0 {
        why.push(format!("{} writes are there more than once", seen.writes.duplicated));
    }
    if result.whole_after_ms.is_none() {
        why.push("not every node does its part again".to_owned());
    }
    if result.kind == DrillKind::Switchover && result.from == result.to {
        why.push("the role did not move".to_owned());
    } else if !moved(&result) {
        why.push(format!(
            "nothing is proved: the term is still {}, so no other primary was needed; did the fault end early?",
            result.term_after
        ));
    }
    result.met = why.is_empty();
    result.why = why;
    result
}

/// Did the role change hands, where it must? If not, a drill has measured nothing of a take-over.
fn moved(result: &DrillResult) -> bool {
    !result.kind.moves_primary() || result.term_after > result.term
}

/// How long writes are expected to wait, and from what that is taken.
#[must_use]
pub fn expected(kind: DrillKind, times: &Failover, durability: Durability, known: &[DrillResult]) -> (u64, String) {
    let before: Vec<&DrillResult> = known.iter().filter(|result| result.kind == kind && moved(result)).collect();
    if let Some(worst) = before.iter().rev().take(5).max_by_key(|result| result.write_gap_ms) {
        let count = before.len().min(5);
        let of = if count == 1 { "the last drill".to_owned() } else { format!("the worst of the last {count} drills") };
        return (worst.write_gap_ms, format!("measured in {of} of this kind"));
    }
    let lease = times.lease_ms;
    let wait = if durability == Durability::Async { lease } else { 0 };
    let (ms, why) = match kind {
        DrillKind::KillServer => (1500, "an end of the server is seen at once; the election follows".to_owned()),
        DrillKind::StopServer => {
            (times.suspicion_ms * 2 + 2000, format!("silence of the server counts after {} ms", times.suspicion_ms * 2))
        }
        DrillKind::IsolatePrimary => (
            lease.max(times.suspicion_ms + wait) + 2000,
            format!("clients of the node that is cut off wait for its lease, {lease} ms"),
        ),
        DrillKind::Switchover => (1500, "new work waits for the hand-over".to_owned()),
        DrillKind::LoseReplica => (1000, "another replica confirms, or this one comes back".to_owned()),
        DrillKind::LoseProxy => (2000, "clients connect anew".to_owned()),
    };
    (ms, format!("not measured here yet: {why}"))
}

/// What was declared for the time, and what of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Milliseconds without service in the last days that the declared objectives allow for.
    pub allowed_ms: u64,
    /// Of those, used: by changes of primary in the history, and by drills.
    pub used_ms: u64,
}

/// The budget of the last days (`docs/adr/0027`): as many outages of the declared length as hosts are declared to fail in that time, at least
/// one. `None`: no outage is declared, so there is nothing to keep to.
#[must_use]
pub fn budget(
    outage_s: Option<u64>,
    nodes: u64,
    host_fails_every_days: u64,
    gaps: &[(u64, u64)],
    drills: &[DrillResult],
    now_ms: u64,
) -> Option<Budget> {
    let outage_s = outage_s?;
    let times = (nodes * BUDGET_DAYS).div_ceil(host_fails_every_days.max(1)).max(1);
    let since = now_ms.saturating_sub(BUDGET_DAYS * 86_400_000);
    let recent: Vec<&DrillResult> = drills.iter().filter(|drill| drill.at_ms >= since).collect();
    let of_drill = |at: u64| {
        recent.iter().any(|drill| (drill.at_ms.saturating_sub(2000)..drill.at_ms + OF_DRILL_MS).contains(&at))
    };
    let changes = gaps.iter().filter(|(at, _)| *at >= since && !of_drill(*at)).map(|(_, gap)| gap);
    let used_ms = changes.sum::<u64>() + recent.iter().map(|drill| drill.write_gap_ms).sum::<u64>();
    Some(Budget { allowed_ms: outage_s * 1000 * times, used_ms })
}

impl Budget {
    /// Would so much more break it?
    #[must_use]
    pub fn breaks(self, expected_ms: u64) -> bool {
        self.used_ms + expected_ms > self.allowed_ms
    }
}

/// Acknowledged writes per slice of time, for the picture.
#[must_use]
pub fn per_slice(operations: &[Operation], slice_ms: u64, ran_ms: u64) -> Vec<u64> {
    let slice = slice_ms.max(1);
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    for operation in operations.iter().filter(|operation| operation.told == Told::Acknowledged) {
        *counts.entry(operation.ended_ms / slice).or_insert(0) += 1;
    }
    (0..=ran_ms / slice).map(|at| counts.get(&at).copied().unwrap_or(0)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use mainstay_model::Term;

    fn at(number: u64, ended_ms: u64, told: Told) -> Operation {
        Operation { client: 0, number, sent_ms: ended_ms - 1, ended_ms, told }
    }

    pub(crate) fn records() -> Records {
        let mut writes: Vec<Operation> = (1..=100).map(|n| at(n, n * 10, Told::Acknowledged)).collect();
        writes.push(at(101, 1015, Told::Unknown));
        writes.push(at(102, 1200, Told::Failed));
        writes.extend((103..=150).map(|n| at(n, 1700 + (n - 103) * 10, Told::Acknowledged)));
        let there = (1..=150).filter(|n| *n != 102).map(|n| ((0, n), 1)).collect();
        Records { reads: writes.clone(), writes, there, ran_ms: 2200, left: None }
    }

    pub(crate) fn result() -> DrillResult {
        DrillResult {
            kind: DrillKind::KillServer,
            node: mainstay_model::NodeId::new("db1").ok(),
            at_ms: 1_800_000_000_000,
            by: "ann".to_owned(),
            durability: "strict".to_owned(),
            from: mainstay_model::NodeId::new("db1").ok(),
            term: Term(3),
            to: mainstay_model::NodeId::new("db2").ok(),
            term_after: Term(4),
            write_gap_ms: 0,
            read_gap_ms: 0,
            whole_after_ms: Some(4000),
            writes: DrillWrites::default(),
            outage_allowed_s: Some(1),
            loss_allowed_s: None,
            met: false,
            why: Vec::new(),
        }
    }

    #[test]
    fn a_gap_is_what_a_client_waited_between_two_answers() {
        let seen = seen(&records(), 1000);
        assert_eq!(seen.write, Gap { from_ms: 1000, length_ms: 700 });
        assert_eq!((seen.usual_ms, seen.writes.acknowledged, seen.writes.failed), (10, 148, 1));
        assert_eq!(
            (seen.writes.unknown, seen.writes.unknown_there, seen.writes.lost, seen.writes.duplicated),
            (1, 1, 0, 0)
        );
    }

    #[test]
    fn without_any_answer_afterwards_the_gap_lasts_to_the_end() {
        let writes: Vec<Operation> = (1..=100).map(|n| at(n, n * 10, Told::Acknowledged)).collect();
        assert_eq!(longest(&writes, 1000, 9000), Gap { from_ms: 1000, length_ms: 8000 });
        assert_eq!(longest(&[], 0, 500).length_ms, 500);
    }

    #[test]
    fn what_was_acknowledged_and_is_missing_fails_whatever_the_gap() {
        let met = judged(result(), &seen(&records(), 1000), Durability::Strict);
        assert!(met.met, "{:?}", met.why);
        let mut records = records();
        records.there.remove(&(0, 95));
        records.there.insert((0, 96), 2);
        let found = seen(&records, 1000);
        assert_eq!((found.writes.lost, found.writes.lost_ms, found.writes.duplicated), (1, 50, 1));
        let failed = judged(result(), &found, Durability::Strict);
        assert!(
            !failed.met && failed.why[0].contains("1 acknowledged writes are lost, 50 ms back"),
            "{:?}",
            failed.why
        );
        assert!(failed.why[1].contains("more than once"));
        // Asynchronous, and declared: as asked for. Not declared: not.
        records.there.insert((0, 96), 1);
        let found = seen(&records, 1000);
        let declared = DrillResult { loss_allowed_s: Some(1), ..result() };
        assert!(judged(declared.clone(), &found, Durability::Async).met);
        assert!(!judged(declared, &found, Durability::Available).met);
        assert!(!judged(result(), &found, Durability::Async).met);
    }

    #[test]
    fn objectives_are_held_against_what_was_measured() {
        let slow = Seen { write: Gap { from_ms: 0, length_ms: 1001 }, ..Seen::default() };
        assert!(judged(result(), &slow, Durability::Strict).why[0].contains("1001 ms, and 1 s"));
        let open = DrillResult { outage_allowed_s: None, ..result() };
        assert!(judged(open, &slow, Durability::Strict).met, "nothing declared, nothing broken");
        let torn = DrillResult { whole_after_ms: None, ..result() };
        assert!(!judged(torn, &Seen::default(), Durability::Strict).met);
        let stayed = DrillResult { kind: DrillKind::Switchover, to: result().from, ..result() };
        assert!(!judged(stayed, &Seen::default(), Durability::Strict).met);
    }

    #[test]
    fn a_fault_after_which_the_same_term_goes_on_proves_nothing() {
        let times = Failover::default();
        for kind in DrillKind::ALL.into_iter().filter(|kind| kind.moves_primary()) {
            let early = DrillResult { kind, to: result().from, term_after: Term(3), ..result() };
            let judged = judged(early, &Seen::default(), Durability::Strict);
            assert!(!judged.met && judged.why.len() == 1, "{judged:?}");
            let (_, why) = expected(kind, &times, Durability::Strict, &[judged]);
            assert!(why.contains("not measured"), "nor is it expected again: {why}");
        }
        let lost = DrillResult { kind: DrillKind::LoseReplica, to: result().from, term_after: Term(3), ..result() };
        assert!(judged(lost, &Seen::default(), Durability::Strict).met, "the primary stays where a replica is lost");
    }

    #[test]
    fn a_budget_counts_each_outage_once() {
        let now = 2_000_000_000_000;
        let day = 86_400_000;
        let drill = DrillResult { at_ms: now - day, write_gap_ms: 900, ..result() };
        let old = DrillResult { at_ms: now - 40 * day, write_gap_ms: 60_000, ..result() };
        let gaps = [(now - day + 700, 650), (now - 2 * day, 4000), (now - 31 * day, 9000)];
        let found = budget(Some(10), 3, 365, &gaps, &[old, drill], now).unwrap();
        assert_eq!(found, Budget { allowed_ms: 10_000, used_ms: 4900 });
        assert!(found.breaks(5101) && !found.breaks(5100));
        assert_eq!(budget(Some(10), 50, 365, &[], &[], now).unwrap().allowed_ms, 50_000);
        assert_eq!(budget(None, 3, 365, &gaps, &[], now), None);
    }

    #[test]
    fn what_was_measured_is_expected_again() {
        let times = Failover::default();
        let (ms, why) = expected(DrillKind::StopServer, &times, Durability::Strict, &[]);
        assert!(ms > 2000 && why.contains("not measured"), "{ms} {why}");
        let known = [DrillResult { write_gap_ms: 812, ..result() }, DrillResult { write_gap_ms: 640, ..result() }];
        let (ms, why) = expected(DrillKind::KillServer, &times, Durability::Strict, &known);
        assert_eq!((ms, why.as_str()), (812, "measured in the worst of the last 2 drills of this kind"));
    }

    #[test]
    fn slices_hold_every_acknowledged_write() {
        let slices = per_slice(&records().writes, 100, 2200);
        assert_eq!(slices.iter().sum::<u64>(), 148);
        assert_eq!((slices[0], slices[12], slices.len()), (9, 0, 23));
    }
}
