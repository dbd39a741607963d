//! Registers in real time: is there an order of all operations, each at one moment between its beginning and its answer, in which every read
//! returns the value written last?
//!
//! Every value is written once, which makes it simple (Gibbons and Korach, 1997): the operations of one value form a zone, from the first of their
//! answers to the last of their beginnings. Zones that run forwards must not overlap, and none that runs backwards may lie within one that runs
//! forwards. Reads here commit a write of their own: a plain read from a primary that is being replaced may be old.

use crate::ledger::Told;
use std::collections::BTreeMap;
use std::time::Duration;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    /// This value was written.
    Write(i64),
    /// This value was read.
    Read(i64),
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Which register.
    pub key: i32,
    /// What.
    pub did: Did,
    /// When it was sent.
    pub invoked: Duration,
    /// When the answer was there.
    pub finished: Duration,
    /// The answer.
    pub told: Told,
}

#[derive(Clone, Copy, Debug)]
struct Zone {
    value: i64,
    /// The first answer …
    first: Duration,
    /// … and the last beginning.
    last: Duration,
}

/// What has no such order, in words. The registers begin with the value 0.
#[must_use]
pub fn wrong(operations: &[Operation]) -> Vec<String> {
    let mut keys: BTreeMap<i32, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        keys.entry(operation.key).or_default().push(operation);
    }
    keys.into_iter().flat_map(|(key, operations)| wrong_of_one(key, &operations)).collect()
}

fn wrong_of_one(key: i32, operations: &[&Operation]) -> Vec<String> {
    let mut wrong = Vec::new();
    let zero = Duration::ZERO;
    let begin = Operation { key, did: Did::Write(0), invoked: zero, finished: zero, told: Told::Acknowledged };
    let mut values: BTreeMap<i64, (Option<&Operation>, Vec<&Operation>)> =
        BTreeMap::from([(0, (Some(&begin), vec![]))]);
    for operation in operations {
        match operation.did {
            Did::Write(value) => values.entry(value).or_default().0 = Some(operation),
            Did::Read(value) if operation.told == Told::Acknowledged => {
                values.entry(value).or_default().1.push(operation)
            }
            Did::Read(_) => {}
        }
    }
    let mut zones = Vec::new();
    for (value, (write, reads)) in &values {
        let Some(write) = write else {
            wrong.push(format!("register {key}: {value} was read and nobody wrote it"));
            continue;
        };
        if write.told == Told::Failed && !reads.is_empty() {
            wrong.push(format!("register {key}: {value} was read, and its write had been refused"));
        }
        if reads.iter().any(|read| read.finished < write.invoked) {
            wrong.push(format!("register {key}: {value} was read before it was written"));
        }
        // A write without answer happened if it was read, at any moment since.
        let answered = (write.told == Told::Acknowledged).then_some(write.finished);
        let first = reads.iter().map(|read| read.finished).chain(answered).min();
        let last = reads.iter().map(|read| read.invoked).chain([write.invoked]).max();
        if let (Some(first), Some(last)) = (first, last) {
            zones.push(Zone { value: *value, first, last });
        }
    }
    wrong.extend(collisions(key, zones));
    wrong
}

fn collisions(key: i32, zones: Vec<Zone>) -> Vec<String> {
    let (mut forward, backward): (Vec<Zone>, Vec<Zone>) = zones.into_iter().partition(|zone| zone.first < zone.last);
    forward.sort_by_key(|zone| zone.first);
    let mut wrong = Vec::new();
    for pair in forward.windows(2) {
        if let [one, other] = pair
            && other.first < one.last
        {
            wrong.push(format!(
                "register {key}: {} and {} were each seen both before and after the other (at {:?} and {:?})",
                one.value, other.value, one.last, other.first
            ));
        }
    }
    for zone in backward {
        // Forward zones that do not overlap are in order of both ends: the last that begins before decides.
        let before = forward.partition_point(|other| other.first < zone.last);
        let around = before.checked_sub(1).and_then(|place| forward.get(place));
        if let Some(around) = around.filter(|around| zone.first < around.last) {
            wrong.push(format!(
                "register {key}: {} was written and gone within the time in which {} stood (at {:?})",
                zone.value, around.value, zone.first
            ));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(did: Did, invoked: u64, finished: u64, told: Told) -> Operation {
        let ms = Duration::from_millis;
        Operation { key: 1, did, invoked: ms(invoked), finished: ms(finished), told }
    }
    const OK: Told = Told::Acknowledged;

    #[test]
    fn one_after_the_other_and_at_once_are_right() {
        let done = [
            op(Did::Read(0), 1, 2, OK),
            op(Did::Write(1), 3, 6, OK),
            op(Did::Write(2), 4, 7, OK),
            op(Did::Read(2), 8, 9, OK),
            op(Did::Read(2), 10, 11, OK),
        ];
        assert_eq!(wrong(&done), Vec::<String>::new());
    }

    #[test]
    fn a_write_without_answer_may_appear_late_or_never() {
        let unknown = op(Did::Write(7), 2, 3, Told::Unknown);
        assert_eq!(wrong(&[unknown, op(Did::Read(0), 4, 5, OK)]), Vec::<String>::new());
        let late = [unknown, op(Did::Read(0), 4, 5, OK), op(Did::Read(7), 6, 7, OK)];
        assert_eq!(wrong(&late), Vec::<String>::new());
    }

    #[test]
    fn an_old_value_after_a_new_one_is_found() {
        let stale = [op(Did::Write(1), 1, 2, OK), op(Did::Write(2), 3, 4, OK), op(Did::Read(1), 5, 6, OK)];
        assert_eq!(wrong(&stale).len(), 1);
    }

    #[test]
    fn a_lost_write_is_found() {
        let lost = [
            op(Did::Write(1), 1, 2, OK),
            op(Did::Read(1), 3, 4, OK),
            op(Did::Write(2), 5, 6, OK),
            op(Did::Read(1), 7, 8, OK),
        ];
        assert_eq!(wrong(&lost).len(), 1);
        let back_and_forth = [
            op(Did::Write(1), 1, 2, OK),
            op(Did::Write(2), 3, 4, OK),
            op(Did::Read(1), 5, 6, OK),
            op(Did::Read(2), 7, 8, OK),
        ];
        assert!(!wrong(&back_and_forth).is_empty());
    }

    #[test]
    fn what_nobody_wrote_or_was_refused_is_found() {
        assert_eq!(wrong(&[op(Did::Read(9), 1, 2, OK)]).len(), 1);
        assert_eq!(wrong(&[op(Did::Write(9), 1, 2, Told::Failed), op(Did::Read(9), 3, 4, OK)]).len(), 1);
        assert!(!wrong(&[op(Did::Read(9), 1, 2, OK), op(Did::Write(9), 5, 6, OK)]).is_empty());
    }
}
