//! The demonstration: a cluster, a write load, SIGKILL to the primary's server, and what became of it.

use anyhow::{Context as _, Result};
use mainstay_model::Event;
use mainstay_ports::clock::wall_now_ms;
use mainstay_testkit::cluster::{Cluster, Place, primary};
use mainstay_testkit::faults::Fault;
use mainstay_testkit::ledger::{Ledger, Records, Verdict};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// How long healing may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// End the cluster afterwards and remove its files (otherwise it stays up)
    #[arg(long)]
    down: bool,
    /// Where the cluster's files lie [default: a cluster named `demo` in the standard place]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How long to write, the take-over included
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(4..=3600))]
    seconds: u64,
    /// End with one JSON object
    #[arg(long)]
    json: bool,
}

/// Returns whether nothing was lost or duplicated.
///
/// # Errors
/// When the cluster does not come up, the fault does not happen, or it does not heal.
pub(crate) async fn run(options: &Options) -> Result<bool> {
    let place = options.dir.clone().map_or_else(|| Place::Name("demo".to_owned()), Place::Dir);
    println!("1. A cluster of three nodes: mainstay up");
    let mut cluster = Cluster::up(&place).await?;
    if !options.down {
        cluster.keep();
    }
    let status = cluster.healed(PATIENCE).await?;
    println!(
        "   up after {:.1} s in {}; writes at {}, reads at {}",
        cluster.up_took.as_secs_f64(),
        cluster.dir().display(),
        status.routes.write,
        status.routes.read
    );
    for node in &status.nodes {
        let pid = node.server_pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        println!("   {:<6} {:<8} {:<10} server process {pid}", node.name, node.role, node.state);
    }

    println!("2. Four clients write, one row per statement, through the write address");
    let ledger = Ledger::start(&cluster.uri().await?, 4).await?;
    ledger.progress(50, PATIENCE).await?;
    tokio::time::sleep(Duration::from_secs(options.seconds) / 3).await;
    println!("   {} rows acknowledged so far", ledger.acknowledged());

    let old = primary(&status)?.name.clone();
    println!("3. SIGKILL to the server process of {old}, the primary");
    let killed_at = wall_now_ms();
    let injected = Fault::ServerKill.inject(&cluster, &status).await?;
    println!("   verified: {}", injected.evidence);
    ledger.progress(50, PATIENCE).await.context("the take-over")?;
    let rest = Duration::from_secs(options.seconds).saturating_sub(ledger.now());
    tokio::time::sleep(rest).await;
    let healed = cluster.healed(PATIENCE).await?;
    let healed_after = injected.at.elapsed();
    let records = ledger.finish().await?;
    println!("4. The take-over, as the cluster recorded it (milliseconds after the kill)");
    narrate(&cluster.history().await?, killed_at);
    Fault::ServerKill.check(&injected, &healed)?;
    println!(
        "   primary is now {}; {old} is a replica again; every node streams {:.1} s after the kill",
        primary(&healed)?.name,
        healed_after.as_secs_f64()
    );

    let verdict = records.verify().await?;
    conclude(&records, &verdict);
    if options.down {
        drop(cluster);
        println!("The cluster is down and its files are removed.");
    } else {
        println!(
            "The cluster is up: mainstay status --dir {0}   mainstay connect --dir {0}   mainstay down --destroy --dir {0}",
            cluster.dir().display()
        );
    }
    if options.json {
        println!("{}", object(&records, &verdict, healed_after));
    }
    Ok(verdict.is_clean())
}

fn narrate(events: &[Event], killed_at: u64) {
    for event in events.iter().filter(|event| event.wall_ms >= killed_at) {
        println!("   +{:<6} {:<6} {:<18} {}", event.wall_ms - killed_at, event.node, event.kind, event.text);
    }
}

fn conclude(records: &Records, verdict: &Verdict) {
    let (gap, one) = (records.longest_gap(), records.longest_gap_of_a_client());
    println!("5. What the clients saw, against what is in the table");
    println!("   longest write gap   {} ms (of one client: {} ms)", gap.length.as_millis(), one.length.as_millis());
    println!("   rows acknowledged   {}", verdict.acknowledged);
    println!("   rows lost           {}", verdict.lost.len());
    println!("   rows duplicated     {}", verdict.duplicated.len());
    println!(
        "   fate unknown        {} ({} of them are there), refused {}",
        verdict.unknown, verdict.surfaced, verdict.failed
    );
}

fn object(records: &Records, verdict: &Verdict, healed_after: Duration) -> serde_json::Value {
    json!({
        "longest_gap_ms": millis(records.longest_gap().length), "acknowledged": verdict.acknowledged,
        "lost": verdict.lost.len(), "duplicated": verdict.duplicated.len(), "unknown": verdict.unknown,
        "healed_after_ms": millis(healed_after),
    })
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}
