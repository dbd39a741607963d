//! What clients of a pool notice of a change of the primary: errors, and the longest that one of them was held.

use crate::bench::INVALID;
use anyhow::Result;
use mainstay_testkit::cluster::Cluster;
use mainstay_testkit::faults::Fault;
use mainstay_testkit::statistics::summarise;
use mainstay_testkit::trial::{self, Report, Settings};
use serde_json::{Value, json};
use std::time::Duration;

/// What is measured: the change, how long a held client may wait at the median, and whether any error may be seen.
const MEASURED: [(Fault, Duration, bool); 2] =
    [(Fault::Switchover, Duration::from_millis(500), false), (Fault::ServerKill, Duration::from_secs(1), true)];

/// `bench-switchover`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Trials of each change
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    trials: u32,
    /// Writing clients, which share server connections by transaction
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(i32).range(1..=256))]
    clients: i32,
    /// The planned change only
    #[arg(long)]
    planned: bool,
    /// End with one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Default)]
struct Row {
    waits: Vec<Duration>,
    errors: Vec<u64>,
    invalid: u32,
    wrong: usize,
}

/// Returns whether every trial was valid, nothing was lost or done twice, and the planned change cost no client an error. Missed times
/// are shown; they do not fail.
///
/// # Errors
/// When no cluster comes up.
pub(crate) async fn run(options: &Options) -> Result<bool> {
    let mut cluster = Cluster::pooled().await?;
    println!("three nodes and a pool by transaction up after {:.1} s", cluster.up_took.as_secs_f64());
    let (mut clean, mut rows) = (true, Vec::new());
    for (fault, aim, errors_allowed) in MEASURED {
        if options.planned && errors_allowed {
            continue;
        }
        let row = measure(&mut cluster, fault, options).await?;
        clean &= row.wrong == 0 && row.invalid == 0 && (errors_allowed || row.errors.iter().all(|count| *count == 0));
        rows.push(show(fault, aim, options, row));
    }
    if options.json {
        println!("{}", json!({ "clients": options.clients, "rows": rows }));
    }
    Ok(clean)
}

async fn measure(cluster: &mut Cluster, fault: Fault, options: &Options) -> Result<Row> {
    let settings = Settings { clients: options.clients, ..Settings::default() };
    let mut row = Row::default();
    for number in 1..=options.trials {
        match trial::run(&*cluster, fault, settings).await {
            Ok(report) => note(&mut row, fault, number, &report),
            Err(error) => {
                row.invalid += 1;
                println!("{:<12} {number:>3}: INVALID: {error:#}", fault.name());
                if row.invalid >= INVALID {
                    break;
                }
                *cluster = Cluster::pooled().await?;
            }
        }
    }
    Ok(row)
}

fn note(row: &mut Row, fault: Fault, number: u32, report: &Report) {
    let verdict = &report.verdict;
    let errors = verdict.failed + verdict.unknown;
    println!(
        "{:<12} {number:>3}: longest held {:>5} ms, {errors:>3} errors ({} outcomes unknown), {} acknowledged, {} lost, {} duplicated",
        fault.name(),
        report.longest_wait.as_millis(),
        verdict.unknown,
        verdict.acknowledged,
        verdict.lost.len(),
        verdict.duplicated.len(),
    );
    row.waits.push(report.longest_wait);
    row.errors.push(errors);
    row.wrong += verdict.lost.len() + verdict.duplicated.len() + verdict.undead.len();
}

fn show(fault: Fault, aim: Duration, options: &Options, row: Row) -> Value {
    let summary = summarise(row.waits.clone());
    let errors: u64 = row.errors.iter().sum();
    let most = row.errors.iter().max().copied().unwrap_or(0);
    let reached = !row.waits.is_empty() && summary.median <= aim;
    println!(
        "{}: {} clients, {} trials: longest held, median {} ms, worst {} ms (wanted: {} ms at the median) {}; errors: {errors}, at most {most} in a trial",
        fault.name(),
        options.clients,
        row.waits.len(),
        summary.median.as_millis(),
        summary.worst.as_millis(),
        aim.as_millis(),
        if reached { "reached" } else { "MISSED" },
    );
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    json!({
        "change": fault.name(),
        "trials": row.waits.len(),
        "invalid": row.invalid,
        "held_ms_median": ms(summary.median),
        "held_ms_p95": ms(summary.p95),
        "held_ms_worst": ms(summary.worst),
        "errors": errors,
        "errors_worst": most,
        "lost_or_duplicated": row.wrong,
    })
}
