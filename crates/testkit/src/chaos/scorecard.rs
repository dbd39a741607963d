//! What many runs together come to, figure by figure, beside what each must reach before it is worth much. A pure function of the reports.
//!
//! A figure that these runs do not measure has no line. A gate that counts trials says how many are needed, not only that none failed.

use super::fault::{Kind, Takes};
use super::report::{Report, Verdict};
use std::fmt::Write as _;

/// An hour, in milliseconds.
const HOUR: u64 = 3_600_000;
/// Gates: faults, hours without a red run, writes, transactions.
const FAULTS: u64 = 15_000;
const HOURS: u64 = 72;
const WRITES: u64 = 10_000_000;
const TRANSACTIONS: u64 = 1_000_000;
/// Gates of times, milliseconds: half of all crashes, all but one in a hundred; a node that nobody hears; a planned change.
const CRASH: [u64; 2] = [5_000, 10_000];
const SILENT: u64 = 8_000;
const PLANNED: u64 = 2_000;

/// Reports, added up.
#[derive(Clone, Debug, Default)]
pub struct Scorecard {
    runs: u64,
    /// Runs that prove nothing: only their number counts.
    invalid: u64,
    red: u64,
    took_ms: u64,
    faults: u64,
    acknowledged: u64,
    lost: u64,
    duplicated: u64,
    overlaps: u64,
    anomalies: u64,
    transactions: u64,
    unexplained: u64,
    asynchronous: u64,
    wrongly_reported: u64,
    rounds: u64,
    not_back: u64,
    versions: u64,
    crashes: Vec<u64>,
    silences: Vec<u64>,
    changes: Vec<u64>,
}

/// One line.
struct Row {
    number: u32,
    figure: &'static str,
    here: String,
    gate: String,
    /// Held as far as it was tried, and whether it was tried enough.
    held: bool,
    enough: bool,
}

/// The time below which this part of all lies, in hundredths.
fn part(times: &[u64], hundredths: usize) -> Option<u64> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let place = (sorted.len() * hundredths).div_ceil(100).max(1) - 1;
    sorted.get(place).copied()
}

/// What ends a primary and leaves its host answering, or gone at once.
fn is_crash(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::ServerKill | Kind::HostKill | Kind::HostRestart | Kind::BackendKill | Kind::OutOfMemory | Kind::GuardKill
    )
}

/// A node that answers nobody, and whose end nobody is told.
fn is_silence(kind: Kind) -> bool {
    matches!(kind, Kind::LinkCut | Kind::CutOut | Kind::HostFreeze | Kind::PrimaryApart)
}

impl Scorecard {
    /// Adds a run. What proves nothing proves no hours, faults or writes either.
    pub fn add(&mut self, report: &Report) {
        if report.verdict == Verdict::Invalid {
            self.invalid += 1;
            return;
        }
        let asynchronous = report.plan.durability == "async";
        self.runs += 1;
        self.red += u64::from(report.verdict == Verdict::Failed);
        self.took_ms += report.took_ms;
        self.faults += report.verified as u64;
        self.acknowledged += report.acknowledged;
        self.lost += report.lost.saturating_sub(report.lost_allowed);
        self.duplicated += report.duplicated;
        // Where nothing waits for confirmations, one primary at a time rests on a guard that is punctual.
        self.overlaps += if asynchronous { 0 } else { report.overlaps };
        self.anomalies += report.anomalies;
        self.transactions += report.transactions;
        self.unexplained += report.unexplained;
        self.asynchronous += u64::from(asynchronous);
        self.wrongly_reported += u64::from(asynchronous && report.verdict == Verdict::Failed);
        self.rounds += report.rounds.len() as u64;
        self.not_back += report.unrecovered;
        self.versions += report.told.iter().filter(|told| told.verified && told.kind.of_versions()).count() as u64;
        for (place, round) in report.rounds.iter().enumerate() {
            let mut faults = report.told.iter().filter(|told| told.round == place + 1 && told.verified);
            // Only where one fault alone explains the gap, and the cluster could spare what it took.
            let (Some(fault), None, Some(planned)) = (faults.next(), faults.next(), report.plan.rounds.get(place))
            else {
                continue;
            };
            if planned.beyond || fault.kind.takes() == Takes::Nothing {
                continue;
            }
            match fault.kind {
                kind if is_crash(kind) => self.crashes.push(round.gap_ms),
                kind if is_silence(kind) => self.silences.push(round.gap_ms),
                Kind::Switchover => self.changes.push(round.gap_ms),
                _ => {}
            }
        }
    }

    fn counts(&self) -> Vec<Row> {
        let row = |number, figure, here: u64, gate: u64, held| Row {
            number,
            figure,
            here: here.to_string(),
            gate: gate.to_string(),
            held,
            enough: here >= gate,
        };
        let nothing = |number, figure, here: u64| Row {
            number,
            figure,
            here: here.to_string(),
            gate: "0".to_owned(),
            held: here == 0,
            enough: self.runs > 0,
        };
        // A round after which a node did not come back ends its run, and is not among those that were told.
        let back = self.rounds;
        let mut rows = vec![
            row(6, "faults that happened, no acknowledged write lost", self.faults, FAULTS, self.lost == 0),
            row(7, "hours without a red run", self.took_ms / HOUR, HOURS, self.red == 0),
            row(
                8,
                "acknowledged writes, each there exactly once",
                self.acknowledged,
                WRITES,
                self.lost + self.duplicated == 0,
            ),
            nothing(9, "writes that an old primary acknowledged after a newer one", self.overlaps),
            nothing(14, "take-overs without a reason", self.unexplained),
            Row {
                number: 15,
                figure: "rounds after which every node came back unattended",
                here: format!("{back} of {}", self.rounds + self.not_back),
                gate: "99 %".to_owned(),
                held: self.not_back * 100 <= self.rounds + self.not_back,
                enough: self.rounds >= 100,
            },
            row(
                16,
                "transactions whose histories show no anomaly",
                self.transactions,
                TRANSACTIONS,
                self.anomalies == 0,
            ),
        ];
        if self.asynchronous > 0 {
            rows.push(Row {
                number: 10,
                figure: "asynchronous runs: what is lost is what is reported",
                here: format!("{} of {}", self.asynchronous - self.wrongly_reported, self.asynchronous),
                gate: "all".to_owned(),
                held: self.wrongly_reported == 0,
                enough: true,
            });
        }
        if self.versions > 0 {
            rows.push(row(22, "changes of a host's version, nothing broken", self.versions, 1, self.red == 0));
        }
        rows
    }

    fn times(&self) -> Vec<Row> {
        let row = |number, figure, times: &[u64], hundredths, gate: u64| {
            let time = part(times, hundredths)?;
            Some(Row {
                number,
                figure,
                here: format!("{time} ms of {}", times.len()),
                gate: format!("{gate} ms"),
                held: time <= gate,
                // A hundredth of less is not seen.
                enough: times.len() >= if hundredths > 50 { 100 } else { 10 },
            })
        };
        let [half, most] = CRASH;
        let all = [
            row(11, "without writes after a crash, half of them within", &self.crashes, 50, half),
            row(11, "without writes after a crash, 99 % within", &self.crashes, 99, most),
            row(12, "without writes after a node fell silent, 99 % within", &self.silences, 99, SILENT),
            row(13, "without writes in a planned change, 99 % within", &self.changes, 99, PLANNED),
        ];
        all.into_iter().flatten().collect()
    }

    /// As a table for people.
    #[must_use]
    pub fn words(&self) -> String {
        let mut rows = self.counts();
        rows.extend(self.times());
        rows.sort_by_key(|row| row.number);
        let mut text = format!("scorecard of {} runs, {:.1} h", self.runs, self.took_ms as f64 / HOUR as f64);
        if self.invalid > 0 {
            let _ = write!(text, "; {} more proved nothing and are not counted", self.invalid);
        }
        text.push('\n');
        for row in rows {
            let verdict = match (row.held, row.enough) {
                (false, _) => "MISSED",
                (true, false) => "held, too few",
                (true, true) => "met",
            };
            let _ = writeln!(
                text,
                "  {:>2}  {:<60} {:>18}  gate {:>9}  {verdict}",
                row.number, row.figure, row.here, row.gate
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Plan, Round, Step, Target};
    use super::super::report::{RoundTold, Told};
    use super::*;
    use crate::hosts::Shape;
    use mainstay_model::spec::StoreKind;

    fn report(kind: Kind, gap_ms: u64) -> Report {
        let step = Step { at_ms: 0, kind, target: Target::Primary, lasts_ms: 1 };
        let round = Round { steps: vec![step], beyond: false, harmless: false };
        let plan = Plan {
            seed: 1,
            data: 3,
            witnesses: 0,
            durability: "strict",
            store: StoreKind::Raft,
            clients: 2,
            rounds: vec![round],
            shape: Shape::THREE,
        };
        let mut report = Report::new(plan);
        let evidence = String::new();
        report.told.push(Told { round: 1, kind, node: "db1".into(), from_ms: 0, to_ms: 1, verified: true, evidence });
        report.rounds.push(RoundTold { gap_ms, ..RoundTold::default() });
        (report.verified, report.acknowledged, report.took_ms) = (1, 100, 60_000);
        report
    }

    fn line(card: &Scorecard, word: &str) -> String {
        let words = card.words();
        words.lines().find(|line| line.contains(word)).unwrap_or_else(|| panic!("{word}: {words}")).to_owned()
    }

    #[test]
    fn what_is_broken_is_missed_and_what_is_few_is_said_to_be() {
        let mut card = Scorecard::default();
        (0..3).for_each(|_| card.add(&report(Kind::ServerKill, 900)));
        assert!(line(&card, "exactly once").ends_with("held, too few"));
        assert!(line(&card, "old primary").ends_with("met"));
        let mut lost = report(Kind::LinkCut, 60_000);
        (lost.lost, lost.verdict) = (1, Verdict::Failed);
        card.add(&lost);
        for word in ["exactly once", "red run", "faults that happened", "fell silent"] {
            assert!(line(&card, word).ends_with("MISSED"), "{word}");
        }
        assert!(line(&card, "half of them").contains("900 ms of 3"));
    }

    #[test]
    fn a_run_that_proves_nothing_counts_for_nothing() {
        let mut card = Scorecard::default();
        card.add(&report(Kind::ServerKill, 900));
        let before = card.words();
        let mut invalid = report(Kind::ServerKill, 90_000);
        (invalid.verdict, invalid.unrecovered, invalid.lost) = (Verdict::Invalid, 1, 1);
        card.add(&invalid);
        let words = card.words();
        assert!(words.lines().next().is_some_and(|line| line.contains("of 1 runs") && line.contains("1 more proved")));
        assert_eq!(words.lines().skip(1).collect::<Vec<_>>(), before.lines().skip(1).collect::<Vec<_>>());
    }

    #[test]
    fn a_round_that_did_not_come_back_is_one_more_and_takes_none_away() {
        let mut card = Scorecard::default();
        (0..3).for_each(|_| card.add(&report(Kind::ServerKill, 900)));
        let mut stuck = report(Kind::ServerKill, 900);
        stuck.rounds.clear();
        (stuck.unrecovered, stuck.verdict) = (1, Verdict::Failed);
        card.add(&stuck);
        let line = line(&card, "came back unattended");
        assert!(line.contains(" 3 of 4 ") && line.ends_with("MISSED"), "{line}");
    }

    #[test]
    fn only_a_gap_that_one_fault_explains_is_a_time() {
        let mut card = Scorecard::default();
        let mut beyond = report(Kind::HostKill, 90_000);
        beyond.plan.rounds[0].beyond = true;
        card.add(&beyond);
        let mut two = report(Kind::HostKill, 90_000);
        let other = two.told[0].clone();
        two.told.push(other);
        card.add(&two);
        assert!(!card.words().contains("after a crash"), "{}", card.words());
    }

    #[test]
    fn parts_are_of_the_sorted() {
        let times: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(
            (part(&times, 50), part(&times, 99), part(&[7], 99), part(&[], 50)),
            (Some(50), Some(99), Some(7), None)
        );
    }
}
