//! The benchmark: for each fault a number of trials, each the longest time without an acknowledged write as clients saw it.

use crate::bench_table::{Row, Target, machine_line, object, table, target};
use anyhow::Result;
use mainstay_testkit::cluster::{Cluster, Place};
use mainstay_testkit::faults::Fault;
use mainstay_testkit::trial::{self, Report, Settings};
use std::path::PathBuf;

/// The faults that are measured unless others are asked for.
const MEASURED: [Fault; 4] = [Fault::ServerKill, Fault::NodeKill, Fault::ServerStop, Fault::Switchover];
/// More invalid trials than this in a row end the measurement of a fault.
pub(crate) const INVALID: u32 = 3;

/// `bench-failover`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// On virtual hosts instead of one (needs root)
    #[arg(long)]
    pub(crate) hosts: bool,
    /// Trials of each fault
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) trials: u32,
    /// Only these faults; their names with --hosts are those of `testkit hosts`
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Writing clients
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..=256))]
    pub(crate) clients: i32,
    /// Measure this cluster, and leave it up [default: a new one, removed afterwards]
    #[arg(long, value_name = "DIR", conflicts_with = "hosts")]
    dir: Option<PathBuf>,
    /// End with one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl Options {
    /// The faults that are asked for, or these.
    ///
    /// # Errors
    /// When there is none of that name.
    pub(crate) fn faults<F: clap::ValueEnum>(&self, otherwise: &[F]) -> Result<Vec<F>> {
        if self.only.is_empty() {
            return Ok(otherwise.to_vec());
        }
        let known = || {
            let names =
                F::value_variants().iter().filter_map(|fault| Some(fault.to_possible_value()?.get_name().to_owned()));
            names.collect::<Vec<_>>().join(", ")
        };
        let fault = |name: &String| {
            F::from_str(name, false).map_err(|_| anyhow::anyhow!("no fault is called {name:?}; there are {}", known()))
        };
        self.only.iter().map(fault).collect()
    }
}

fn aim(fault: Fault) -> Target {
    match fault {
        Fault::ServerKill => target(Some(300), Some(1000)),
        Fault::NodeKill => target(Some(1000), Some(2500)),
        Fault::ServerStop => target(None, Some(5000)),
        Fault::Switchover => target(Some(500), Some(1500)),
        _ => target(None, None),
    }
}

fn add(row: &mut Row, report: &Report) {
    row.gaps.push(report.gap.length);
    row.lost += report.verdict.lost.len();
    row.duplicated += report.verdict.duplicated.len();
    row.wrong += report.verdict.undead.len();
    row.acknowledged += report.verdict.acknowledged;
}

/// Returns whether every trial was valid and nothing was lost or duplicated. Missed targets are shown; they do not fail.
///
/// # Errors
/// When no cluster comes up.
pub(crate) async fn run(options: &Options) -> Result<bool> {
    let faults = options.faults(&MEASURED)?;
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
    let clean = rows.iter().all(Row::is_clean);
    println!("{}", machine_line(&rows));
    if options.json {
        println!("{}", object(&rows, cluster.up_took));
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
    let mut row = Row::new(fault.name(), aim(fault));
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
                add(&mut row, &report);
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
