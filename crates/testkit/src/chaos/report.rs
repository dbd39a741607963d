//! What a run says of itself: numbers for programs, words for people, a verdict.

use super::check::append::Anomaly;
use super::fault::Kind;
use super::look::Look;
use super::plan::Plan;
use serde::Serialize;
use std::collections::BTreeMap;

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything that was promised held.
    Passed,
    /// A fault could not be verified to have happened, or a workload did nothing: the run proves nothing.
    Invalid,
    /// Something that was promised did not hold.
    Failed,
}

/// What became of one fault.
#[derive(Clone, Debug, Serialize)]
pub struct Told {
    /// In which round, counted from 1.
    pub round: usize,
    /// What.
    pub kind: Kind,
    /// To whom it happened.
    pub node: String,
    /// From when to when, in milliseconds since the run began.
    pub from_ms: u64,
    /// The end of its healing.
    pub to_ms: u64,
    /// It was seen to have happened.
    pub verified: bool,
    /// What was seen, or why it did not happen.
    pub evidence: String,
}

/// What became of one round.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RoundTold {
    /// From when to when, in milliseconds since the run began.
    pub from_ms: u64,
    /// When the cluster was whole again.
    pub to_ms: u64,
    /// When everything was healed.
    pub healed_ms: u64,
    /// The longest time without an acknowledged write.
    pub gap_ms: u64,
    /// When that began.
    pub gap_from_ms: u64,
    /// From the healing to the first acknowledged write that was sent after it.
    pub writable_after_ms: Option<u64>,
    /// From the healing to the whole cluster.
    pub whole_after_ms: Option<u64>,
}

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was to happen.
    pub plan: Plan,
    /// Faults that were tried.
    pub faults: usize,
    /// Those that were seen to have happened.
    pub verified: usize,
    /// How many of each kind were.
    pub kinds: BTreeMap<&'static str, usize>,
    /// Writes that were acknowledged, in all workloads.
    pub acknowledged: u64,
    /// Writes that were refused.
    pub failed: u64,
    /// Writes whose fate the clients did not learn.
    pub unknown: u64,
    /// Acknowledged and not there.
    pub lost: u64,
    /// Of those, how many the mode allows: asynchronous, and reported.
    pub lost_allowed: u64,
    /// There more than once.
    pub duplicated: u64,
    /// Acknowledged by an older primary after a newer one, and unknown to that.
    pub overlaps: u64,
    /// Snapshots, registers, lists, terms that are not right.
    pub anomalies: u64,
    /// Transactions on lists whose history was looked at.
    pub transactions: u64,
    /// Rounds after which the cluster did not come back.
    pub unrecovered: u64,
    /// Rounds after which it took longer than it should: writable within 10 s, whole within 60 s.
    pub slow_recoveries: u64,
    /// Take-overs that nothing asked for.
    pub unexplained: u64,
    /// The longest time without an acknowledged write of each round, by the classes of its faults.
    pub gaps_ms: BTreeMap<&'static str, Vec<u64>>,
    /// The verdict.
    pub verdict: Verdict,
    /// What is not right, in words.
    pub wrong: Vec<String>,
    /// Why it proves nothing, in words.
    pub invalid: Vec<String>,
    /// The faults.
    pub told: Vec<Told>,
    /// The rounds.
    pub rounds: Vec<RoundTold>,
    /// What the timeline shows.
    #[serde(skip)]
    pub looks: Vec<Look>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

impl Report {
    /// Nothing yet.
    #[must_use]
    pub fn new(plan: Plan) -> Report {
        Report {
            plan,
            faults: 0,
            verified: 0,
            kinds: BTreeMap::new(),
            acknowledged: 0,
            failed: 0,
            unknown: 0,
            lost: 0,
            lost_allowed: 0,
            duplicated: 0,
            overlaps: 0,
            anomalies: 0,
            transactions: 0,
            unrecovered: 0,
            slow_recoveries: 0,
            unexplained: 0,
            gaps_ms: BTreeMap::new(),
            verdict: Verdict::Passed,
            wrong: Vec::new(),
            invalid: Vec::new(),
            told: Vec::new(),
            rounds: Vec::new(),
            looks: Vec::new(),
            took_ms: 0,
        }
    }

    /// Notes what is not right.
    pub fn wrong(&mut self, what: impl Into<String>) {
        self.wrong.push(what.into());
    }

    /// Notes anomalies that a checker found.
    pub(crate) fn anomalous(&mut self, of: &str, found: Vec<String>) {
        self.anomalies += found.len() as u64;
        // A handful says as much as thousands.
        self.wrong.extend(found.into_iter().take(5).map(|text| format!("{of}: {text}")));
    }

    /// Notes anomalies of the lists.
    pub(crate) fn anomalous_lists(&mut self, found: Vec<Anomaly>) {
        self.anomalous("lists", found.into_iter().map(|each| format!("{}: {}", each.name, each.evidence)).collect());
    }

    /// Decides.
    pub fn judge(&mut self) {
        self.verdict = match (self.wrong.is_empty(), self.invalid.is_empty()) {
            (false, _) => Verdict::Failed,
            (true, false) => Verdict::Invalid,
            (true, true) => Verdict::Passed,
        };
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let gap = self.rounds.iter().map(|round| round.gap_ms).max().unwrap_or(0);
        format!(
            "seed {}: {:?}: {} of {} faults verified, {} acknowledged, {} unknown, {} lost ({} allowed), {} duplicated, {} overlaps, {} anomalies, \
             {} unrecovered, {} slow, {} unexplained, longest gap {gap} ms, {} s",
            self.plan.seed,
            self.verdict,
            self.verified,
            self.faults,
            self.acknowledged,
            self.unknown,
            self.lost,
            self.lost_allowed,
            self.duplicated,
            self.overlaps,
            self.anomalies,
            self.unrecovered,
            self.slow_recoveries,
            self.unexplained,
            self.took_ms / 1000,
        )
    }
}
