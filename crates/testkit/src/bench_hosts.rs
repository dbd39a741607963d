//! The same benchmark on virtual hosts: one cluster for all trials, with samplers at every server and cables that can be cut.

use crate::bench::{INVALID, Options};
use crate::bench_table::{Row, Target, machine_line, object, table, target};
use anyhow::Result;
use mainstay_testkit::hosts::trial::{self, HostReport, Settings};
use mainstay_testkit::hosts::{HostCluster, HostFault, Shape};
use std::time::Instant;

/// The faults that are measured unless others are asked for.
const MEASURED: [HostFault; 7] = [
    HostFault::ServerKill,
    HostFault::HostKill,
    HostFault::LinkCut,
    HostFault::CutOut,
    HostFault::CutIn,
    HostFault::ServerStop,
    HostFault::Switchover,
];

/// What is aimed at: median and worst.
fn aim(fault: HostFault) -> Target {
    match fault {
        HostFault::ServerKill => target(Some(300), Some(1000)),
        HostFault::HostKill => target(Some(1000), Some(2500)),
        HostFault::LinkCut => target(Some(2000), Some(4000)),
        HostFault::CutOut | HostFault::CutIn | HostFault::ServerStop => target(None, Some(5000)),
        HostFault::Switchover => target(Some(500), Some(1500)),
        _ => target(None, None),
    }
}

/// Returns whether every trial was valid and nothing was wrong. Missed targets are shown; they do not fail.
///
/// # Errors
/// When no cluster comes up.
pub(crate) async fn run(options: &Options) -> Result<bool> {
    let faults = options.faults(&MEASURED)?;
    let mut cluster = HostCluster::up(Shape::THREE).await?;
    println!(
        "three hosts up after {:.1} s; {} writing clients and a sampler on each host, {} trials of each fault",
        cluster.up_took.as_secs_f64(),
        options.clients,
        options.trials
    );
    println!("{}", load_words());
    let began = Instant::now();
    let settings = Settings { clients: options.clients, ..Settings::default() };
    let mut rows = Vec::new();
    for fault in faults {
        rows.push(measure(&mut cluster, fault, options.trials, settings).await?);
    }
    table(&rows);
    println!(
        "{}; {} trials in {:.0} s",
        load_words(),
        rows.iter().map(|row| row.gaps.len()).sum::<usize>(),
        began.elapsed().as_secs_f64()
    );
    println!("{}", machine_line(&rows));
    if options.json {
        println!("{}", object(&rows, cluster.up_took));
    }
    Ok(rows.iter().all(Row::is_clean))
}

/// How busy the machine is with everything that runs on it: figures from a busy one say little.
fn load_words() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let averages: Vec<&str> = text.split_whitespace().take(3).collect();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!("load average {} on {processors} processors", averages.join(" "))
}

fn add(row: &mut Row, report: &HostReport) {
    row.gaps.push(report.gap.length);
    row.lost += report.verdict.lost.len() + report.single.lost.len();
    row.duplicated += report.verdict.duplicated.len();
    row.acknowledged += report.verdict.acknowledged;
    let breaches = report.breaches();
    breaches.iter().for_each(|breach| println!("    NOT AS IT MUST BE: {breach}"));
    row.wrong += breaches.len();
}

async fn measure(cluster: &mut HostCluster, fault: HostFault, trials: u32, settings: Settings) -> Result<Row> {
    let mut row = Row::new(fault.name(), aim(fault));
    for number in 1..=trials {
        let begun = Instant::now();
        match trial::run(cluster, fault, settings).await {
            Ok(report) => {
                println!("{number:>3}: {}, {:.1} s in all", report.line(), begun.elapsed().as_secs_f64());
                add(&mut row, &report);
            }
            Err(error) => {
                row.invalid += 1;
                println!("{number:>3}: {:<16} INVALID: {error:#}", fault.name());
                if row.invalid >= INVALID {
                    println!("     {} given up after {INVALID} invalid trials", fault.name());
                    break;
                }
                // What is wrong with this cluster must not spoil the trials that follow.
                *cluster = HostCluster::up(Shape::THREE).await?;
            }
        }
    }
    Ok(row)
}
