//! Carries out a plan: a cluster, clients, round after round of faults, healing, and the judgement.

use super::check::{append, bank, lineage, loss, register};
use super::fault::Kind;
use super::inject::{Breach, Scene, inject};
use super::look::Seen;
use super::plan::{Plan, Round};
use super::report::{Report, RoundTold, Told};
use super::undo::Undo;
use super::workload::{self, Workloads};
use crate::hosts::inject::all_stream;
use crate::hosts::inside::Inside;
use crate::hosts::sampler::{Sample, Sampler};
use crate::hosts::{HostCluster, Setup};
use crate::ledger::{self, Ledger};
use anyhow::{Context as _, Result};
use mainstay_model::status::Status;
use mainstay_model::{Durability, Event};
use std::path::Path;
use std::time::{Duration, Instant};

/// After healing writes should be acknowledged, and every node do its part, within these times …
const WRITABLE_SOON: Duration = Duration::from_secs(10);
const WHOLE_SOON: Duration = Duration::from_secs(60);
/// … and must within these.
const WRITABLE: Duration = Duration::from_secs(60);
const WHOLE: Duration = Duration::from_secs(150);
/// Writes must be acknowledged again while faults last that the cluster can spare, within this time.
const SPARED: Duration = Duration::from_secs(40);
/// Acknowledged writes that show that a cluster is writable.
const PROOF: u64 = 12;
/// Time without faults before a round.
const QUIET: Duration = Duration::from_millis(700);

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Clients and samplers at work.
struct Watchers {
    client: Inside,
    ledger: Ledger,
    sampler: Sampler,
    workloads: Workloads,
}

/// Settings of a run that are no part of its plan.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Added to every program's environment: the switches of `sabotage`.
    pub environment: Vec<(String, String)>,
    /// The program that every host begins with, for plans that change it: an earlier version.
    pub previous: Option<std::path::PathBuf>,
    /// Says what happens while it happens.
    pub loud: bool,
    /// Where the logs of a run that did not pass are kept.
    pub logs: Option<std::path::PathBuf>,
}

/// Runs a plan.
///
/// # Errors
/// When no cluster comes up, or this program itself fails.
pub async fn run(plan: &Plan, options: &Options) -> Result<Report> {
    let hangs = |round: &Round| round.steps.iter().any(|step| step.kind == Kind::ArchiveHangs);
    let repository = plan.rounds.iter().any(hangs);
    let setup = Setup { environment: options.environment.clone(), previous: options.previous.clone(), repository };
    let cluster = HostCluster::up_with(plan.shape, &setup).await?;
    let client = cluster.client.inside()?;
    let begun = Instant::now();
    let first = cluster.healed(WRITABLE_SOON * 3).await?;
    let watchers = Watchers {
        ledger: Ledger::start_on(client.handle(), &cluster.uri(), plan.clients).await?,
        sampler: Sampler::start(&cluster, &client).await?,
        workloads: Workloads::start(&cluster, &client, plan.seed).await?,
        client,
    };
    let seen = Seen::default();
    let mut report = Report::new(plan.clone());
    let course = async {
        for (number, round) in plan.rounds.iter().enumerate() {
            let went_on = one_round(&cluster, &watchers, &seen, round, number + 1, begun, &mut report, options).await;
            match went_on {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    report.unrecovered += 1;
                    report.wrong(format!("round {}: the cluster did not come back: {error:#}", number + 1));
                    break;
                }
            }
        }
    };
    tokio::select! {
        () = course => {}
        () = seen.watch(&cluster, begun) => {}
    }
    let judged = conclude(&cluster, watchers, &seen, begun, &first, &mut report).await;
    if let Err(error) = judged {
        let text = format!("what is there can not be compared with what was told: {error:#}");
        // After a fault that is half in force, not everything need be there.
        if report.invalid.is_empty() {
            report.wrong(text);
        } else {
            report.invalid.push(text);
        }
    }
    report.took_ms = ms(begun.elapsed());
    report.judge();
    // A rule that was broken and went unnoticed is looked into as well.
    let switch = options.environment.first().map(|(_, switch)| switch.as_str());
    let wanted = report.verdict != super::Verdict::Passed || switch.is_some();
    if let Some(dir) = options.logs.as_deref().filter(|_| wanted) {
        keep_logs(
            &cluster,
            &dir.join(format!("{}seed-{}", switch.map_or(String::new(), |switch| format!("{switch}-")), plan.seed)),
        );
    }
    Ok(report)
}

fn keep_logs(cluster: &HostCluster, dir: &Path) {
    let kept = std::fs::create_dir_all(dir).map_err(Into::into).and_then(|()| cluster.keep_logs(dir));
    match kept {
        Ok(()) => eprintln!("the logs are kept in {}", dir.display()),
        Err(error) => eprintln!("the logs can not be kept in {}: {error:#}", dir.display()),
    }
}

/// One round. `false`: a fault of it was not seen to have happened. It may be half in force and nobody undoes it, so nothing that comes
/// later could be judged: the run ends, and what was told until then is still compared with what is there.
#[expect(clippy::too_many_arguments, reason = "a round touches everything of a run")]
async fn one_round(
    cluster: &HostCluster,
    watchers: &Watchers,
    seen: &Seen,
    round: &Round,
    number: usize,
    begun: Instant,
    report: &mut Report,
    options: &Options,
) -> Result<bool> {
    let status = cluster.healed(WHOLE).await.context("before the faults")?;
    watchers.ledger.progress(PROOF, WRITABLE).await.context("before the faults")?;
    tokio::time::sleep(QUIET).await;
    let term = status.cluster.term;
    let scene = Scene::new(cluster, &watchers.client, status)?;
    let mut told = RoundTold { from_ms: ms(begun.elapsed()), ..RoundTold::default() };
    let from = report.told.len();
    happen(&scene, round, number, begun, report, options).await;
    let verified = report.told.iter().skip(from).all(|fault| fault.verified);
    if !verified {
        return Ok(false);
    }
    if !round.beyond {
        // Faults that last are healed by now only if their time was over; those that the cluster mends take their time.
        watchers
            .ledger
            .progress(PROOF, SPARED)
            .await
            .context("the cluster can spare what was taken, and takes no writes")?;
    }
    let healed = Instant::now();
    told.healed_ms = ms(begun.elapsed());
    watchers.ledger.progress(PROOF, WRITABLE).await.context("after everything was healed")?;
    let writable = healed.elapsed();
    let whole = cluster.healed(WHOLE).await.context("after everything was healed")?;
    all_stream(cluster, &whole).await.context("after everything was healed")?;
    let took = healed.elapsed();
    (told.writable_after_ms, told.whole_after_ms) = (Some(ms(writable)), Some(ms(took)));
    told.to_ms = ms(begun.elapsed());
    report.slow_recoveries += u64::from(writable > WRITABLE_SOON || took > WHOLE_SOON);
    if round.harmless && whole.cluster.term != term {
        report.unexplained += 1;
        report.wrong(format!("round {number}: term {} became {}, and nothing asked for it", term, whole.cluster.term));
    }
    if let Ok(events) = cluster.history().await {
        seen.remember(events);
    }
    if options.loud {
        eprintln!("  round {number}: writable {} ms and whole {} ms after healing", ms(writable), ms(took));
    }
    report.rounds.push(told);
    Ok(true)
}

/// A fault that is in force, and when it is healed.
struct InForce {
    until: Duration,
    undo: Undo,
    told: usize,
}

/// Lets the round's faults happen and heals each in its time. What can not be verified is noted; the rest is healed all the same.
async fn happen(
    scene: &Scene<'_>,
    round: &Round,
    number: usize,
    begun: Instant,
    report: &mut Report,
    options: &Options,
) {
    let started = Instant::now();
    let mut in_force: Vec<InForce> = Vec::new();
    for step in &round.steps {
        let at = Duration::from_millis(step.at_ms);
        heal_until(scene, &mut in_force, started, at, begun, report).await;
        tokio::time::sleep(at.saturating_sub(started.elapsed())).await;
        let node = scene.node(step.target).map_or_else(|_| step.target.to_string(), |(node, _)| node.to_string());
        let from_ms = ms(begun.elapsed());
        report.faults += 1;
        let (verified, evidence) = match inject(scene, step).await {
            Ok(happened) => {
                let until = happened.at.duration_since(started) + Duration::from_millis(step.lasts_ms);
                in_force.push(InForce { until, undo: happened.undo, told: report.told.len() });
                report.verified += 1;
                *report.kinds.entry(step.kind.name()).or_insert(0) += 1;
                (true, happened.evidence)
            }
            Err(error) => {
                let kind = step.kind.name();
                match error.is::<Breach>() {
                    true => report.wrong(format!("round {number}: {kind}: {error:#}")),
                    false => report.invalid.push(format!("round {number}: {kind} did not happen: {error:#}")),
                }
                (false, format!("{error:#}"))
            }
        };
        if options.loud {
            eprintln!("  round {number}: {} on {node}: {evidence}", step.kind.name());
        }
        report.told.push(Told {
            round: number,
            kind: step.kind,
            node,
            from_ms,
            to_ms: ms(begun.elapsed()),
            verified,
            evidence,
        });
    }
    heal_until(scene, &mut in_force, started, Duration::MAX, begun, report).await;
}

/// Heals what is due before this moment of the round, in order.
async fn heal_until(
    scene: &Scene<'_>,
    in_force: &mut Vec<InForce>,
    started: Instant,
    before: Duration,
    begun: Instant,
    report: &mut Report,
) {
    in_force.sort_by_key(|fault| fault.until);
    while let Some(first) = in_force.first()
        && first.until <= before
    {
        let fault = in_force.remove(0);
        tokio::time::sleep(fault.until.saturating_sub(started.elapsed())).await;
        let healed = fault.undo.apply(scene.cluster).await;
        if let Some(told) = report.told.get_mut(fault.told) {
            told.to_ms = ms(begun.elapsed());
        }
        match healed {
            Ok(()) => {}
            Err(error) if error.is::<Breach>() => report.wrong(format!("{error:#}")),
            Err(error) => report.invalid.push(format!("a fault could not be healed: {error:#}")),
        }
    }
}

/// Ends the clients and judges.
async fn conclude(
    cluster: &HostCluster,
    watchers: Watchers,
    seen: &Seen,
    begun: Instant,
    first: &Status,
    report: &mut Report,
) -> Result<()> {
    let offset = watchers.ledger.at(Instant::now());
    let offset = begun.elapsed().saturating_sub(offset);
    let records = watchers.ledger.finish().await?;
    let (single, samples) = watchers.sampler.finish_all(cluster, &watchers.client).await?;
    let workloads = watchers.workloads.finish(&watchers.client).await?;
    let verdict = records.verify_on(watchers.client.handle()).await?;
    seen.remember(cluster.history().await?);
    let (looks, events) = seen.take();
    gaps(&records, offset, report);
    let (acknowledged, failed, unknown) = counts(&workloads);
    report.acknowledged = verdict.acknowledged + single.acknowledged as u64 + acknowledged;
    (report.failed, report.unknown) = (verdict.failed + failed, verdict.unknown + unknown);
    report.lost = (verdict.lost.len() + single.lost.len()) as u64;
    report.duplicated = verdict.duplicated.len() as u64;
    report.overlaps = single.overlaps.len() as u64;
    if !verdict.undead.is_empty() || !verdict.duplicated.is_empty() {
        report
            .wrong(format!("the ledger: refused and there {:?}, there twice {:?}", verdict.undead, verdict.duplicated));
    }
    report.anomalous("history", loss::false_rewinds(&events));
    judge_losses(report, &events, &verdict.lost, &single.lost);
    judge_workloads(report, &workloads, cluster.shape.durability);
    let found = lineage::wrong(&looks, &events, &samples, first.cluster.term.0);
    report.anomalous("terms", found);
    enough(report, &workloads, &samples, verdict.acknowledged);
    report.looks = looks;
    Ok(())
}

fn gaps(records: &ledger::Records, offset: Duration, report: &mut Report) {
    for (number, round) in report.rounds.iter_mut().enumerate() {
        let of = |at: u64| Duration::from_millis(at).saturating_sub(offset);
        let gap = records.longest_gap_between(of(round.from_ms), of(round.to_ms));
        (round.gap_ms, round.gap_from_ms) = (ms(gap.length), ms(gap.from + offset));
        let of_round = report.told.iter().filter(|fault| fault.round == number + 1 && fault.verified);
        let classes: std::collections::BTreeSet<&str> = of_round.map(|fault| fault.kind.class().name()).collect();
        for class in classes {
            report.gaps_ms.entry(class).or_default().push(round.gap_ms);
        }
    }
}

fn counts(workloads: &workload::Records) -> (u64, u64, u64) {
    let mut sums = workloads.transfers;
    let told = workloads.registers.iter().map(|operation| operation.told);
    for told in told.chain(workloads.lists.iter().map(|transaction| transaction.told)) {
        let place = match told {
            ledger::Told::Acknowledged => 0,
            ledger::Told::Failed => 1,
            ledger::Told::Unknown => 2,
        };
        if let Some(sum) = sums.get_mut(place) {
            *sum += 1;
        }
    }
    let [acknowledged, failed, unknown] = sums;
    (acknowledged, failed, unknown)
}

/// Synchronous modes lose nothing; asynchronous mode reports what it loses.
fn judge_losses(report: &mut Report, events: &[Event], ledger: &[(i32, i64)], samples: &[Sample]) {
    if report.plan.shape.durability == Durability::Async {
        report.lost_allowed = report.lost;
        // A run that broke off waited for nobody to come back and tell what it lost.
        let told = loss::wrong(report.lost, events).filter(|_| report.invalid.is_empty());
        if let Some(text) = told {
            report.wrong(text);
        }
        // Here one primary at a time rests on a guard that is punctual.
        let late = |kind: Kind| matches!(kind, Kind::GuardStop | Kind::HostFreeze | Kind::HostPause);
        if report.overlaps > 0 && !report.told.iter().any(|fault| late(fault.kind)) {
            report.wrong(format!(
                "{} writes were acknowledged by an old primary after a newer one had opened",
                report.overlaps
            ));
        }
        return;
    }
    if !ledger.is_empty() {
        report.wrong(format!(
            "{} acknowledged writes of the ledger are lost: {:?}",
            ledger.len(),
            ledger.iter().take(5).collect::<Vec<_>>()
        ));
    }
    if !samples.is_empty() {
        report.wrong(format!(
            "{} acknowledged writes past the proxy are lost: {:?}",
            samples.len(),
            samples.iter().take(3).collect::<Vec<_>>()
        ));
    }
    if report.overlaps > 0 {
        report.wrong(format!("{} writes were acknowledged by an old primary", report.overlaps));
    }
}

fn judge_workloads(report: &mut Report, workloads: &workload::Records, durability: Durability) {
    let total = workload::ACCOUNTS * workload::BALANCE;
    let sums = bank::wrong(&workloads.sums, workload::ACCOUNTS, total);
    report.anomalous("bank", sums.into_iter().map(|sum| format!("{sum:?}")).collect());
    // What is lost is lost for these too, and would be found again as an anomaly.
    if durability != Durability::Async {
        report.anomalous("registers", register::wrong(&workloads.registers));
        report.transactions = workloads.lists.len() as u64;
        report.anomalous_lists(append::anomalies(&workloads.lists, &workloads.last));
    }
}

/// A workload that did nothing proves nothing.
fn enough(report: &mut Report, workloads: &workload::Records, samples: &[Sample], ledger: u64) {
    let told = |told: ledger::Told| told == ledger::Told::Acknowledged;
    let counts = [
        ("the ledger", ledger),
        ("the samplers", samples.len() as u64),
        ("the bank", workloads.transfers.first().copied().unwrap_or(0)),
        ("snapshots of the bank", workloads.sums.values().sum()),
        ("the registers", workloads.registers.iter().filter(|operation| told(operation.told)).count() as u64),
        ("the lists", workloads.lists.iter().filter(|transaction| told(transaction.told)).count() as u64),
    ];
    for (name, _) in counts.iter().filter(|(_, count)| *count < 20) {
        report.invalid.push(format!("{name} did hardly anything: {counts:?}"));
    }
}
