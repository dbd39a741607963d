//! The benchmark: for each fault a number of trials, each the longest time without an acknowledged write as clients saw it.

use anyhow::Result;
use mainstay_testkit::cluster::{Cluster, Place};
use mainstay_testkit::faults::Fault;
use mainstay_testkit::statistics::{Summary, summarise};
use mainstay_testkit::trial::{self, Report, Settings};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// The faults that are measured unless others are asked for.
const MEASURED: [Fault; 4] = [Fault::ServerKill, Fault::NodeKill, Fault::ServerStop, Fault::Switchover];
/// More invalid trials than this in a row end the measurement of a fault.
const INVALID: u32 = 3;

/// `bench-failover`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Trials of each fault
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    trials: u32,
    /// Only these faults
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Fault>,
    /// Writing clients
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..=256))]
    clients: i32,
    /// Measure this cluster, and leave it up [default: a new one, removed afterwards]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// End with one JSON object
    #[arg(long)]
    json: bool,
}

/// What must be reached: median and worst.
fn target(fault: Fault) -> (Option<Duration>, Option<Duration>) {
    let ms = |millis| Some(Duration::from_millis(millis));
    match fault {
        Fault::ServerKill => (ms(300), ms(1000)),
        Fault::NodeKill => (ms(1000), ms(2500)),
        Fault::ServerStop => (None, ms(5000)),
        Fault::Switchover => (ms(500), ms(1500)),
        _ => (None, None),
    }
}

/// The trials of one fault.
struct Row {
    fault: Fault,
    gaps: Vec<Duration>,
    invalid: u32,
    lost: usize,
    duplicated: usize,
    undead: usize,
    acknowledged: u64,
}

impl Row {
    fn new(fault: Fault) -> Row {
        Row { fault, gaps: Vec::new(), invalid: 0, lost: 0, duplicated: 0, undead: 0, acknowledged: 0 }
    }

    fn add(&mut self, report: &Report) {
        self.gaps.push(report.gap.length);
        self.lost += report.verdict.lost.len();
        self.duplicated += report.verdict.duplicated.len();
        self.undead += report.verdict.undead.len();
        self.acknowledged += report.verdict.acknowledged;
    }

    fn summary(&self) -> Summary {
        summarise(self.gaps.clone())
    }

    /// `None`: nothing is asked of this fault.
    fn reached(&self) -> Option<bool> {
        let (median, worst) = target(self.fault);
        let summary = self.summary();
        let within = |limit: Option<Duration>, value| limit.is_none_or(|limit| value <= limit);
        (median.is_some() || worst.is_some())
            .then(|| !self.gaps.is_empty() && within(median, summary.median) && within(worst, summary.worst))
    }
}

/// Returns whether every trial was valid and nothing was lost or duplicated. Missed targets are shown; they do not fail.
///
/// # Errors
/// When no cluster comes up.
pub(crate) async fn run(options: &Options) -> Result<bool> {
    let faults = if options.only.is_empty() { MEASURED.to_vec() } else { options.only.clone() };
    let mut cluster = fresh(options).await?;
    println!(
        "three nodes up after {:.1} s; {} writing clients, {} trials of each fault",
        cluster.up_took.as_secs_f64(),
        options.clients,
        options.trials
    );
    let settings = Settings { clients: options.clients, ..Settings::default() };
    let mut rows = Vec::new();
    for fault in faults {
        rows.push(measure(&mut cluster, fault, options, settings).await?);
    }
    table(&rows);
    let clean =
        rows.iter().all(|row| row.lost + row.duplicated + row.undead == 0 && !row.gaps.is_empty() && row.invalid == 0);
    println!("{}", machine_line(&rows));
    if options.json {
        println!("{}", object(&rows, &cluster));
    }
    Ok(clean)
}

async fn fresh(options: &Options) -> Result<Cluster> {
    let Some(dir) = &options.dir else { return Cluster::temporary().await };
    let mut cluster = Cluster::up(&Place::Dir(dir.clone())).await?;
    cluster.keep();
    Ok(cluster)
}

async fn measure(cluster: &mut Cluster, fault: Fault, options: &Options, settings: Settings) -> Result<Row> {
    let mut row = Row::new(fault);
    for number in 1..=options.trials {
        match trial::run(&*cluster, fault, settings).await {
            Ok(report) => {
                println!(
                    "{:<12} {number:>3}: gap {:>5} ms, one client {:>5} ms, healed after {:>5.1} s, {} acknowledged, {} unknown, {} lost, {} duplicated",
                    fault.name(),
                    report.gap.length.as_millis(),
                    report.client_gap.length.as_millis(),
                    report.healed_after.as_secs_f64(),
                    report.verdict.acknowledged,
                    report.verdict.unknown,
                    report.verdict.lost.len(),
                    report.verdict.duplicated.len(),
                );
                row.add(&report);
            }
            Err(error) => {
                row.invalid += 1;
                println!("{:<12} {number:>3}: INVALID: {error:#}", fault.name());
                if row.invalid >= INVALID {
                    println!("{:<12}      given up after {INVALID} invalid trials", fault.name());
                    break;
                }
                // What is wrong with this cluster must not spoil the trials that follow.
                if options.dir.is_none() {
                    *cluster = fresh(options).await?;
                }
            }
        }
    }
    Ok(row)
}

fn table(rows: &[Row]) {
    println!();
    println!("longest gap between acknowledged writes, milliseconds");
    println!(
        "{:<13}{:>7}{:>9}{:>8}{:>8}{:>8}{:>14}{:>7}{:>12}  target (median / worst)",
        "fault", "trials", "invalid", "median", "p95", "worst", "acknowledged", "lost", "duplicated"
    );
    for row in rows {
        let summary = row.summary();
        let (median, worst) = target(row.fault);
        let show =
            |limit: Option<Duration>| limit.map_or_else(|| "-".to_owned(), |limit| limit.as_millis().to_string());
        let verdict = match row.reached() {
            Some(true) => "reached",
            Some(false) => "MISSED",
            None => "",
        };
        println!(
            "{:<13}{:>7}{:>9}{:>8}{:>8}{:>8}{:>14}{:>7}{:>12}  {} / {} {verdict}",
            row.fault.name(),
            row.gaps.len(),
            row.invalid,
            summary.median.as_millis(),
            summary.p95.as_millis(),
            summary.worst.as_millis(),
            row.acknowledged,
            row.lost,
            row.duplicated,
            show(median),
            show(worst),
        );
    }
}

fn machine_line(rows: &[Row]) -> String {
    let words = rows.iter().map(|row| {
        let summary = row.summary();
        format!(
            "{}={}/{}/{}",
            row.fault.name(),
            summary.median.as_millis(),
            summary.p95.as_millis(),
            summary.worst.as_millis()
        )
    });
    let (lost, duplicated) =
        rows.iter().fold((0, 0), |(lost, duplicated), row| (lost + row.lost, duplicated + row.duplicated));
    format!(
        "bench-failover median/p95/worst ms: {} lost={lost} duplicated={duplicated}",
        words.collect::<Vec<_>>().join(" ")
    )
}

fn object(rows: &[Row], cluster: &Cluster) -> Value {
    let millis = |duration: Duration| (duration.as_secs_f64() * 10_000.0).round() / 10.0;
    let faults: Vec<Value> = rows
        .iter()
        .map(|row| {
            let (summary, (median, worst)) = (row.summary(), target(row.fault));
            json!({
                "fault": row.fault.name(), "trials": row.gaps.len(), "invalid": row.invalid,
                "median_ms": millis(summary.median), "p95_ms": millis(summary.p95), "worst_ms": millis(summary.worst),
                "gaps_ms": row.gaps.iter().copied().map(millis).collect::<Vec<_>>(),
                "acknowledged": row.acknowledged, "lost": row.lost, "duplicated": row.duplicated, "refused_but_there": row.undead,
                "target_median_ms": median.map(millis), "target_worst_ms": worst.map(millis), "reached": row.reached(),
            })
        })
        .collect();
    json!({ "faults": faults, "up_ms": millis(cluster.up_took) })
}
