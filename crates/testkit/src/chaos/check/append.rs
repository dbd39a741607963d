//! Lists that are only appended to: what transactions read shows in which order they were carried out, and cycles in that order are anomalies
//! that snapshot isolation rules out.
//!
//! Between transactions there are edges *ww* (its append follows the other's), *wr* (it read the other's append) and *rw* (it read the list
//! before the other's append). A cycle of ww alone is G0, of ww and wr G1c, with one rw G-single, with several of which no two follow each other
//! G-nonadjacent (Adya; Cerone and Gotsman). Two rw in a row are write skew, which snapshot isolation allows.

use crate::ledger::Told;
use std::collections::{BTreeMap, BTreeSet};

/// What a transaction did to one list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Did {
    /// It appended this, which nobody else ever appends.
    Append(i64, i64),
    /// It read this.
    Read(i64, Vec<i64>),
}

/// One transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// What it did, in order: list, value.
    pub did: Vec<Did>,
    /// What its client was told.
    pub told: Told,
}

/// An anomaly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anomaly {
    /// Its name in the literature, `lost`, `duplicate`, `incompatible-order`, `internal` or `garbage`.
    pub name: &'static str,
    /// What was seen.
    pub evidence: String,
}

fn anomaly(name: &'static str, evidence: String) -> Anomaly {
    Anomaly { name, evidence }
}

struct Index<'a> {
    transactions: &'a [Transaction],
    /// Who appended what.
    appended: BTreeMap<(i64, i64), usize>,
    /// The longest read of each list.
    order: BTreeMap<i64, Vec<i64>>,
}

/// Every anomaly. `last`: the lists as they were when all was over.
#[must_use]
pub fn anomalies(transactions: &[Transaction], last: &BTreeMap<i64, Vec<i64>>) -> Vec<Anomaly> {
    let mut index = Index { transactions, appended: BTreeMap::new(), order: last.clone() };
    for (number, transaction) in transactions.iter().enumerate() {
        for did in &transaction.did {
            if let Did::Append(list, value) = did {
                index.appended.insert((*list, *value), number);
            }
        }
    }
    for (list, read) in index.reads() {
        let longest = index.order.entry(list).or_default();
        if read.len() > longest.len() {
            *longest = read.clone();
        }
    }
    let mut found = index.of_lists();
    found.extend(index.of_transactions(last));
    // Without one order per list there are no edges to speak of.
    if found.iter().all(|found| found.name != "incompatible-order" && found.name != "duplicate") {
        found.extend(index.cycles());
    }
    found
}

impl<'a> Index<'a> {
    /// What acknowledged transactions read of lists, without what they had appended themselves before.
    fn reads(&self) -> Vec<(i64, Vec<i64>)> {
        let sound = self.transactions.iter().filter(|transaction| transaction.told == Told::Acknowledged);
        let reads = sound.flat_map(|transaction| &transaction.did).filter_map(|did| match did {
            Did::Read(list, values) => Some((*list, values.clone())),
            Did::Append(..) => None,
        });
        reads.collect()
    }

    fn of_lists(&self) -> Vec<Anomaly> {
        let mut found = Vec::new();
        for (list, values) in &self.order {
            let unique: BTreeSet<&i64> = values.iter().collect();
            if unique.len() < values.len() {
                found.push(anomaly("duplicate", format!("list {list} holds something twice: {values:?}")));
            }
        }
        for (list, read) in self.reads() {
            let longest = self.order.get(&list).map(Vec::as_slice).unwrap_or_default();
            if !longest.starts_with(&read) {
                let at = read.iter().zip(longest).take_while(|(one, other)| one == other).count();
                let evidence = format!("list {list} was read in two orders that part after {at} values");
                found.push(anomaly("incompatible-order", evidence));
            }
        }
        found
    }

    fn of_transactions(&self, last: &BTreeMap<i64, Vec<i64>>) -> Vec<Anomaly> {
        let mut found = Vec::new();
        for transaction in self.transactions.iter().filter(|transaction| transaction.told == Told::Acknowledged) {
            let mut own: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
            for did in &transaction.did {
                match did {
                    Did::Append(list, value) => own.entry(*list).or_default().push(*value),
                    Did::Read(list, values) => {
                        let mine = own.get(list).map(Vec::as_slice).unwrap_or_default();
                        if !values.ends_with(mine) {
                            found.push(anomaly("internal", format!("{transaction:?} does not see its own append")));
                        }
                        let others = values.get(..values.len().saturating_sub(mine.len())).unwrap_or_default();
                        found.extend(self.of_read(*list, others));
                    }
                }
            }
            for (list, values) in &own {
                let there = last.get(list);
                let lost = there.map(|there| values.iter().filter(|value| !there.contains(value)).count());
                if let Some(lost) = lost.filter(|lost| *lost > 0) {
                    found.push(anomaly(
                        "lost",
                        format!("{lost} acknowledged appends to list {list} are not there: {values:?}"),
                    ));
                }
            }
        }
        found
    }

    /// What somebody else's read may not show.
    fn of_read(&self, list: i64, values: &[i64]) -> Vec<Anomaly> {
        let mut found = Vec::new();
        for value in values {
            match self.appended.get(&(list, *value)).and_then(|number| self.transactions.get(*number)) {
                None => found.push(anomaly("garbage", format!("{value} in list {list} was appended by nobody"))),
                Some(by) if by.told == Told::Failed => {
                    found.push(anomaly(
                        "G1a",
                        format!("{value} in list {list} was read, and its transaction had failed"),
                    ));
                }
                Some(_) => {}
            }
        }
        let by = values.last().and_then(|value| self.appended.get(&(list, *value)).map(|by| (*value, *by)));
        if let Some((value, by)) = by.and_then(|(value, by)| Some((value, self.transactions.get(by)?))) {
            let last_of_it = by.did.iter().rev().find_map(|did| match did {
                Did::Append(of, last) if *of == list => Some(*last),
                _ => None,
            });
            if last_of_it != Some(value) {
                found.push(anomaly("G1b", format!("{value} in list {list} was read before its transaction had ended")));
            }
        }
        found
    }

    /// Edges: by whom, to whom, is it rw?
    fn edges(&self) -> BTreeSet<(usize, usize, Edge)> {
        let mut edges = BTreeSet::new();
        let by = |list: i64, value: i64| self.appended.get(&(list, value)).copied();
        for (list, values) in &self.order {
            for pair in values.windows(2) {
                if let [one, other] = pair
                    && let (Some(one), Some(other)) = (by(*list, *one), by(*list, *other))
                {
                    edges.insert((one, other, Edge::Ww));
                }
            }
        }
        for (number, transaction) in self.transactions.iter().enumerate() {
            if transaction.told != Told::Acknowledged {
                continue;
            }
            let mut own: BTreeSet<i64> = BTreeSet::new();
            for did in &transaction.did {
                match did {
                    Did::Append(list, _) => drop(own.insert(*list)),
                    Did::Read(list, _) if own.contains(list) => {}
                    Did::Read(list, values) => {
                        let writer = values.last().and_then(|value| by(*list, *value));
                        edges.extend(writer.map(|writer| (writer, number, Edge::Wr)));
                        let next = self.order.get(list).and_then(|order| order.get(values.len()));
                        let next = next.and_then(|value| by(*list, *value));
                        edges.extend(next.map(|next| (number, next, Edge::Rw)));
                    }
                }
            }
        }
        edges.retain(|(from, to, _)| from != to);
        edges
    }

    fn cycles(&self) -> Vec<Anomaly> {
        let edges = self.edges();
        let count = self.transactions.len();
        let plain = |wanted: fn(Edge) -> bool| {
            let mut graph = vec![Vec::new(); count];
            for (from, to, edge) in edges.iter().filter(|(_, _, edge)| wanted(*edge)) {
                let _ = edge;
                if let Some(next) = graph.get_mut(*from) {
                    next.push(*to);
                }
            }
            graph
        };
        if let Some(knot) = knots(&plain(|edge| edge == Edge::Ww)).first() {
            return vec![self.cycle("G0", knot)];
        }
        let sure = plain(|edge| edge != Edge::Rw);
        if let Some(knot) = knots(&sure).first() {
            return vec![self.cycle("G1c", knot)];
        }
        // Each transaction twice: reached by anything (even), or by rw (odd), after which no rw may follow.
        let mut graph = vec![Vec::new(); count * 2];
        for (from, to, edge) in &edges {
            let steps: &[(usize, usize)] = if *edge == Edge::Rw {
                &[(from * 2, to * 2 + 1)]
            } else {
                &[(from * 2, to * 2), (from * 2 + 1, to * 2)]
            };
            for (one, other) in steps {
                if let Some(next) = graph.get_mut(*one) {
                    next.push(*other);
                }
            }
        }
        let knots = knots(&graph);
        let Some(knot) = knots.first() else { return Vec::new() };
        let members: BTreeSet<usize> = knot.iter().map(|place| place / 2).collect();
        let single = edges.iter().any(|(from, to, edge)| {
            *edge == Edge::Rw && members.contains(from) && members.contains(to) && reaches(&sure, *to, *from)
        });
        let members: Vec<usize> = members.into_iter().collect();
        vec![self.cycle(if single { "G-single" } else { "G-nonadjacent" }, &members)]
    }

    fn cycle(&self, name: &'static str, members: &[usize]) -> Anomaly {
        let shown: Vec<&Transaction> =
            members.iter().take(4).filter_map(|number| self.transactions.get(*number)).collect();
        anomaly(name, format!("a cycle among {} transactions, for example {shown:?}", members.len()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    Ww,
    Wr,
    Rw,
}

fn reaches(graph: &[Vec<usize>], from: usize, to: usize) -> bool {
    let (mut open, mut seen) = (vec![from], BTreeSet::from([from]));
    while let Some(here) = open.pop() {
        if here == to {
            return true;
        }
        open.extend(graph.get(here).into_iter().flatten().copied().filter(|next| seen.insert(*next)));
    }
    false
}

/// Strongly connected parts of more than one node (Tarjan, without recursion).
fn knots(graph: &[Vec<usize>]) -> Vec<Vec<usize>> {
    const UNSEEN: usize = usize::MAX;
    let count = graph.len();
    let (mut number, mut low, mut on_stack) = (vec![UNSEEN; count], vec![0; count], vec![false; count]);
    let (mut stack, mut next, mut found) = (Vec::new(), 0, Vec::new());
    for root in 0..count {
        if number[root] != UNSEEN {
            continue;
        }
        let mut walk = vec![(root, 0)];
        while let Some((here, child)) = walk.pop() {
            if child == 0 {
                (number[here], low[here]) = (next, next);
                next += 1;
                stack.push(here);
                on_stack[here] = true;
            }
            if let Some(to) = graph[here].get(child).copied() {
                walk.push((here, child + 1));
                if number[to] == UNSEEN {
                    walk.push((to, 0));
                } else if on_stack[to] {
                    low[here] = low[here].min(number[to]);
                }
                continue;
            }
            if let Some((parent, _)) = walk.last() {
                low[*parent] = low[*parent].min(low[here]);
            }
            if low[here] == number[here] {
                let from = stack.iter().rposition(|each| *each == here).unwrap_or(0);
                let part = stack.split_off(from);
                part.iter().for_each(|each| on_stack[*each] = false);
                if part.len() > 1 {
                    found.push(part);
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::Did::{Append, Read};
    use super::*;

    fn ok(did: Vec<Did>) -> Transaction {
        Transaction { did, told: Told::Acknowledged }
    }

    fn names(transactions: &[Transaction], last: &[(i64, Vec<i64>)]) -> Vec<&'static str> {
        anomalies(transactions, &last.iter().cloned().collect()).into_iter().map(|found| found.name).collect()
    }

    #[test]
    fn what_snapshot_isolation_allows_is_no_anomaly() {
        let serial = [
            ok(vec![Append(1, 10)]),
            ok(vec![Read(1, vec![10]), Append(1, 11), Read(1, vec![10, 11])]),
            ok(vec![Read(1, vec![10, 11]), Append(2, 20)]),
        ];
        assert_eq!(names(&serial, &[(1, vec![10, 11]), (2, vec![20])]), Vec::<&str>::new());
        // Each reads both lists as empty and appends to another: write skew.
        let skew = [
            ok(vec![Read(1, vec![]), Read(2, vec![]), Append(1, 1)]),
            ok(vec![Read(1, vec![]), Read(2, vec![]), Append(2, 2)]),
        ];
        assert_eq!(names(&skew, &[(1, vec![1]), (2, vec![2])]), Vec::<&str>::new());
    }

    #[test]
    fn unknown_appends_may_be_there_or_not() {
        let unknown = Transaction { did: vec![Append(1, 1)], told: Told::Unknown };
        assert_eq!(names(&[unknown.clone(), ok(vec![Read(1, vec![1])])], &[(1, vec![1])]), Vec::<&str>::new());
        assert_eq!(names(&[unknown], &[(1, vec![])]), Vec::<&str>::new());
    }

    #[test]
    fn lost_doubled_and_invented_values_are_found() {
        assert_eq!(names(&[ok(vec![Append(1, 1)])], &[(1, vec![])]), ["lost"]);
        assert_eq!(names(&[ok(vec![Append(1, 1)])], &[(1, vec![1, 1])]), ["duplicate"]);
        assert!(names(&[ok(vec![Read(1, vec![7])])], &[(1, vec![7])]).contains(&"garbage"));
        assert_eq!(names(&[ok(vec![Append(1, 1), Read(1, vec![])])], &[(1, vec![1])]), ["internal"]);
    }

    #[test]
    fn two_orders_of_one_list_are_found() {
        let split = [
            ok(vec![Append(1, 1)]),
            ok(vec![Append(1, 2)]),
            ok(vec![Append(1, 3)]),
            ok(vec![Read(1, vec![1, 2])]),
            ok(vec![Read(1, vec![1, 3])]),
        ];
        assert!(names(&split, &[(1, vec![1, 3])]).contains(&"incompatible-order"));
    }

    #[test]
    fn aborted_and_intermediate_reads_are_found() {
        let failed = Transaction { did: vec![Append(1, 1)], told: Told::Failed };
        assert!(names(&[failed, ok(vec![Read(1, vec![1])])], &[(1, vec![1])]).contains(&"G1a"));
        let half = [ok(vec![Append(1, 1), Append(1, 2)]), ok(vec![Read(1, vec![1])])];
        assert!(names(&half, &[(1, vec![1, 2])]).contains(&"G1b"));
    }

    #[test]
    fn cycles_are_found_and_named() {
        let dirty = [ok(vec![Append(1, 1), Append(2, 1)]), ok(vec![Append(1, 2), Append(2, 2)])];
        assert_eq!(names(&dirty, &[(1, vec![1, 2]), (2, vec![2, 1])]), ["G0"]);
        let circular = [ok(vec![Append(1, 1), Read(2, vec![2])]), ok(vec![Append(2, 2), Read(1, vec![1])])];
        assert_eq!(names(&circular, &[(1, vec![1]), (2, vec![2])]), ["G1c"]);
        // Read skew: the second sees one of the first's appends and not the other.
        let skew = [ok(vec![Append(1, 1), Append(2, 2)]), ok(vec![Read(1, vec![1]), Read(2, vec![])])];
        assert_eq!(names(&skew, &[(1, vec![1]), (2, vec![2])]), ["G-single"]);
        // Lost update: both append after reading the same.
        let lost = [ok(vec![Read(1, vec![]), Append(1, 1)]), ok(vec![Read(1, vec![]), Append(1, 2)])];
        assert_eq!(names(&lost, &[(1, vec![1, 2])]), ["G-single"]);
        // Long fork: two readers see two appends in opposite orders.
        let fork = [
            ok(vec![Append(1, 1)]),
            ok(vec![Append(2, 2)]),
            ok(vec![Read(1, vec![1]), Read(2, vec![])]),
            ok(vec![Read(1, vec![]), Read(2, vec![2])]),
        ];
        assert_eq!(names(&fork, &[(1, vec![1]), (2, vec![2])]), ["G-nonadjacent"]);
    }
}
