//! One trial on virtual hosts: a write load, samplers at every server, one fault, healing, and the comparison of what everybody was told with
//! what is there and with what the fault may lead to.

use super::cluster::HostCluster;
use super::expected::{Expected, Primary, WHOLE_AFTER, WRITABLE_AFTER, Writes, expected};
use super::faults::{HostFault, Injected};
use super::fresh::{Fresh, Tally};
use super::inject;
use super::inside::Inside;
use super::sampler::{Sampler, Single};
use crate::ledger::{Gap, Ledger, Records, Verdict};
use anyhow::{Context as _, Result};
use mainstay_model::NodeId;
use mainstay_model::status::Status;
use std::time::{Duration, Instant};

/// Writes that must be acknowledged to call a cluster writable.
const PROOF: u64 = 20;
/// A write that was under way when a fault that stops all writes happened may still be acknowledged.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// How a trial runs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Writing clients.
    pub clients: i32,
    /// How long they write before the fault.
    pub before: Duration,
    /// How long they write after the cluster takes writes again.
    pub after: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { clients: 4, before: Duration::from_millis(1000), after: Duration::from_millis(500) }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct HostReport {
    /// The fault.
    pub fault: HostFault,
    /// What it must lead to.
    pub expected: Expected,
    /// Who was the primary before, and after.
    pub primaries: (NodeId, Option<NodeId>),
    /// What was seen of the fault.
    pub evidence: String,
    /// The longest time without any acknowledgement.
    pub gap: Gap,
    /// From the healing to the first acknowledged write that was sent after it.
    pub writable_after: Option<Duration>,
    /// From the healing to the whole cluster.
    pub whole_after: Duration,
    /// Acknowledged although writes had to wait.
    pub not_waited: usize,
    /// What the data say to the ledger.
    pub verdict: Verdict,
    /// What the samplers saw.
    pub single: Single,
    /// Transactions on new connections, if they were tried.
    pub fresh: Option<Tally>,
}

impl HostReport {
    /// What is not as it must be; empty: all is well.
    #[must_use]
    pub fn breaches(&self) -> Vec<String> {
        let mut found = Vec::new();
        if !self.verdict.is_clean() {
            found.push(format!("the ledger: {:?}", self.verdict));
        }
        if !self.single.is_clean() {
            found.push(format!("the samplers: {:?}", self.single));
        }
        match self.expected.writes {
            Writes::Within(worst) if self.gap.length > worst => {
                found.push(format!("no acknowledged write for {:?}, at most {worst:?} is allowed", self.gap.length));
            }
            Writes::Wait if self.not_waited > 0 => {
                found.push(format!("{} writes were acknowledged although all had to wait", self.not_waited));
            }
            _ => {}
        }
        if self.fault.unnoticed() && self.verdict.failed + self.verdict.unknown > 0 {
            found.push(format!(
                "no write may notice, and {} failed and {} had no answer",
                self.verdict.failed, self.verdict.unknown
            ));
        }
        let (before, after) = &self.primaries;
        let same = after.as_ref() == Some(before);
        match self.expected.primary {
            Primary::Other if same => found.push(format!("{before} is still the primary")),
            Primary::Same if !same => found.push(format!("{after:?} is the primary instead of {before}")),
            _ => {}
        }
        if self.writable_after.is_none_or(|after| after > WRITABLE_AFTER) {
            found.push(format!(
                "writable {:?} after healing, at most {WRITABLE_AFTER:?} is allowed",
                self.writable_after
            ));
        }
        if self.whole_after > WHOLE_AFTER {
            found.push(format!("whole {:?} after healing, at most {WHOLE_AFTER:?} is allowed", self.whole_after));
        }
        if let Some(tally) = self.fresh.as_ref().filter(|tally| tally.failed > 0) {
            found.push(format!(
                "{} of {} transactions on new connections failed: {:?}",
                tally.failed, tally.tried, tally.errors
            ));
        }
        found
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let after = self.primaries.1.as_ref().map_or("nobody", NodeId::as_str);
        format!(
            "{:<16} gap {:>5} ms, {} → {after}, writable {:>4} ms and whole {:>4.1} s after healing, {} acknowledged, {} unknown, {} lost, {} duplicated, \
             {} samples on timelines {:?}, {} late, {} overlaps",
            self.fault.name(),
            self.gap.length.as_millis(),
            self.primaries.0,
            self.writable_after.unwrap_or_default().as_millis(),
            self.whole_after.as_secs_f64(),
            self.verdict.acknowledged,
            self.verdict.unknown,
            self.verdict.lost.len(),
            self.verdict.duplicated.len(),
            self.single.acknowledged,
            self.single.timelines,
            self.single.late,
            self.single.overlaps.len(),
        )
    }
}

/// Who writes and looks during a trial.
struct Watchers {
    client: Inside,
    ledger: Ledger,
    sampler: Sampler,
    fresh: Option<Fresh>,
}

impl Watchers {
    async fn start(cluster: &HostCluster, fault: HostFault, settings: Settings) -> Result<Watchers> {
        let client = cluster.client.inside()?;
        let ledger = Ledger::start_on(client.handle(), &cluster.uri(), settings.clients).await?;
        let sampler = Sampler::start(cluster, &client).await?;
        let fresh = if fault.spares_connections() { Some(Fresh::start(&client, &cluster.uri())?) } else { None };
        Ok(Watchers { client, ledger, sampler, fresh })
    }

    async fn finish(self, cluster: &HostCluster) -> Result<Seen> {
        let fresh = match self.fresh {
            Some(fresh) => Some(fresh.finish().await?),
            None => None,
        };
        let records = self.ledger.finish().await?;
        let single = self.sampler.finish(cluster, &self.client).await?;
        let verdict = records.verify_on(self.client.handle()).await?;
        Ok(Seen { records, single, verdict, fresh })
    }
}

struct Seen {
    records: Records,
    single: Single,
    verdict: Verdict,
    fresh: Option<Tally>,
}

/// What happened, on the ledger's clock.
struct Course {
    before: NodeId,
    evidence: String,
    at: Duration,
    healed: Duration,
    whole_after: Duration,
    status: Status,
}

/// Runs a trial.
///
/// # Errors
/// When the fault did not happen (the trial is invalid), or the cluster did not heal.
pub async fn run(cluster: &HostCluster, fault: HostFault, settings: Settings) -> Result<HostReport> {
    let whole = cluster.healed(WHOLE_AFTER).await.context("before the fault")?;
    let expected = expected(fault, cluster.shape);
    let watchers = Watchers::start(cluster, fault, settings).await?;
    watchers.ledger.progress(PROOF, WHOLE_AFTER).await.context("before the fault")?;
    tokio::time::sleep(settings.before).await;
    let course = happen(cluster, fault, expected, settings, &whole, &watchers.ledger).await;
    if course.is_err() {
        explain(cluster).await;
    }
    let course = course?;
    let seen = watchers.finish(cluster).await?;
    Ok(HostReport {
        fault,
        expected,
        primaries: (course.before, course.status.cluster.primary),
        evidence: course.evidence,
        gap: seen.records.longest_gap(),
        writable_after: seen.records.first_after(course.healed).map(|first| first.saturating_sub(course.healed)),
        whole_after: course.whole_after,
        not_waited: match expected.writes {
            Writes::Wait => seen.records.acknowledged_between(course.at + UNDER_WAY, course.healed),
            Writes::Within(_) | Writes::OnceHealed => 0,
        },
        verdict: seen.verdict,
        single: seen.single,
        fresh: seen.fresh,
    })
}

async fn happen(
    cluster: &HostCluster,
    fault: HostFault,
    expected: Expected,
    settings: Settings,
    whole: &Status,
    ledger: &Ledger,
) -> Result<Course> {
    let Injected { before, at, evidence, heal } =
        fault.inject(cluster, whole).await.context("the fault did not happen")?;
    // Writes that do not come back in time are healed all the same: what follows shows whether the fault left damage. Dropped on the way out
    // of an error, what must not last heals by itself.
    let came_back = match expected.writes {
        Writes::Within(worst) => ledger.progress(PROOF, worst + UNDER_WAY).await.is_ok(),
        Writes::Wait | Writes::OnceHealed => true,
    };
    if came_back {
        tokio::time::sleep(expected.lasts).await;
    }
    let healing = Instant::now();
    heal.apply(cluster).await.with_context(|| format!("this could not be healed: {evidence}"))?;
    let healed = ledger.at(Instant::now());
    ledger.progress(PROOF, WHOLE_AFTER).await.with_context(|| format!("no writes after healing this: {evidence}"))?;
    tokio::time::sleep(settings.after).await;
    // Asked late: each question is a process of its own and would take time from what is measured.
    let status = cluster.healed(WHOLE_AFTER).await.with_context(|| format!("after healing this: {evidence}"))?;
    // What the servers say themselves, not what is said of them.
    inject::all_stream(cluster, &status).await.with_context(|| format!("after healing this: {evidence}"))?;
    Ok(Course { before, evidence, at: ledger.at(at), healed, whole_after: healing.elapsed(), status })
}

/// Prints how the cluster sees itself, for a trial that failed.
async fn explain(cluster: &HostCluster) {
    for words in [&["status"][..], &["history"], &["why"]] {
        match cluster.run(words, Duration::from_secs(10)).await {
            Ok(text) => {
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- {}", words.join(" "));
                lines.iter().skip(lines.len().saturating_sub(40)).for_each(|line| eprintln!("{line}"));
            }
            Err(error) => eprintln!("--- {}: {error:#}", words.join(" ")),
        }
    }
    cluster.show_logs();
}
