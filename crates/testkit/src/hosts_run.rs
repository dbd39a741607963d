//! `testkit hosts` and `testkit soak`: every fault on virtual hosts, and a long time of other programs' load without any.

use anyhow::{Context as _, Result, bail};
use mainstay_model::Durability;
use mainstay_testkit::hosts::saturation::Saturation;
use mainstay_testkit::hosts::trial::{self, Settings};
use mainstay_testkit::hosts::{HostCluster, HostFault, Shape};
use mainstay_testkit::ledger::Ledger;
use std::time::{Duration, Instant};

/// Which hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Hosts {
    /// Three data nodes
    Three,
    /// Two data nodes and a witness
    Witness,
    /// Five data nodes
    Five,
}

/// How commits are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Protection {
    Strict,
    Available,
    Async,
}

/// `hosts`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Every fault on every shape, strict and available
    #[arg(long, conflicts_with_all = ["only", "shape", "durability"])]
    all: bool,
    /// Only these faults
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<HostFault>,
    /// Which hosts
    #[arg(long, value_enum, default_value = "three")]
    shape: Hosts,
    /// How commits are protected
    #[arg(long, value_enum, default_value = "strict")]
    durability: Protection,
    /// How often each fault
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    times: u32,
    /// Writing clients
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..=256))]
    clients: i32,
}

/// `soak`.
#[derive(Debug, clap::Args)]
pub(crate) struct Soak {
    /// For how long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
}

fn shape(hosts: Hosts, durability: Protection) -> Shape {
    let shape = match hosts {
        Hosts::Three => Shape::THREE,
        Hosts::Witness => Shape::WITNESS,
        Hosts::Five => Shape::FIVE,
    };
    let durability = match durability {
        Protection::Strict => Durability::Strict,
        Protection::Available => Durability::Available,
        Protection::Async => Durability::Async,
    };
    Shape { durability, ..shape }
}

/// Returns whether everything was as it must be.
///
/// # Errors
/// When no cluster comes up.
pub(crate) async fn run(options: &Options) -> Result<bool> {
    let settings = Settings { clients: options.clients, ..Settings::default() };
    let all = || HostFault::ALL.into_iter().chain(HostFault::OPERATED).collect();
    let faults: Vec<HostFault> = if options.only.is_empty() { all() } else { options.only.clone() };
    let shapes = match options.all {
        true => vec![
            shape(Hosts::Three, Protection::Strict),
            shape(Hosts::Three, Protection::Available),
            shape(Hosts::Witness, Protection::Strict),
            shape(Hosts::Witness, Protection::Available),
            shape(Hosts::Five, Protection::Strict),
        ],
        false => vec![shape(options.shape, options.durability)],
    };
    let mut wrong = Vec::new();
    for shape in shapes {
        wrong.extend(on(shape, &faults, options.times, settings).await?);
    }
    println!();
    wrong.iter().for_each(|line| println!("NOT AS IT MUST BE: {line}"));
    println!("hosts: {} not as it must be", wrong.len());
    Ok(wrong.is_empty())
}

/// Every fault on one cluster; a new one after a trial that did not end as it must.
async fn on(shape: Shape, faults: &[HostFault], times: u32, settings: Settings) -> Result<Vec<String>> {
    let mut cluster = HostCluster::up(shape).await.with_context(|| shape.words())?;
    println!("{}: up after {:.1} s", shape.words(), cluster.up_took.as_secs_f64());
    let mut wrong = Vec::new();
    // With one replica there is nobody to cut it from, and it can not be removed.
    let needs_two = |fault: &HostFault| matches!(fault, HostFault::ReplicaApart | HostFault::NodeChange);
    for fault in faults.iter().filter(|fault| shape.data > 2 || !needs_two(fault)) {
        for _ in 0..times {
            match trial::run(&cluster, *fault, settings).await {
                Ok(report) => {
                    println!("{}\n    {}", report.line(), report.evidence);
                    wrong.extend(
                        report.breaches().iter().map(|breach| format!("{}, {}: {breach}", shape.words(), fault.name())),
                    );
                }
                Err(error) => {
                    println!("{:<16} {error:#}", fault.name());
                    wrong.push(format!("{}, {}: {error:#}", shape.words(), fault.name()));
                    cluster = HostCluster::up(shape).await?;
                }
            }
        }
    }
    Ok(wrong)
}

/// Returns whether nobody took over and nothing was lost.
///
/// # Errors
/// When no cluster comes up, or the machine was not busy.
pub(crate) async fn soak(options: &Soak) -> Result<bool> {
    let cluster = HostCluster::up(Shape::THREE).await?;
    let first = cluster.healed(Duration::from_secs(60)).await?;
    println!(
        "up after {:.1} s, {:?} is the primary of term {}",
        cluster.up_took.as_secs_f64(),
        first.cluster.primary,
        first.cluster.term
    );
    let client = cluster.client.inside()?;
    let ledger = Ledger::start_on(client.handle(), &cluster.uri(), 2).await?;
    let load = Saturation::start(&cluster)?;
    let (begun, lasts) = (Instant::now(), Duration::from_secs(options.minutes * 60));
    let mut changes = 0u32;
    let mut term = first.cluster.term;
    while begun.elapsed() < lasts {
        tokio::time::sleep(Duration::from_secs(10)).await;
        // A busy machine may take longer than the command waits: that is no change.
        let Ok(status) = cluster.status().await else { continue };
        if status.cluster.term != term {
            changes += 1;
            println!("after {:.0} s: term {} instead of {term}", begun.elapsed().as_secs_f64(), status.cluster.term);
            term = status.cluster.term;
        }
    }
    let busy = load.busy()?;
    drop(load);
    let records = ledger.finish().await?;
    let verdict = records.verify_on(client.handle()).await?;
    let last = cluster.healed(Duration::from_secs(60)).await?;
    println!(
        "soak: {} min, processors {:.0} % busy, {:.0} synced writes a second by others, {} acknowledged, longest gap {} ms, {} lost, {} duplicated, {changes} changes of term",
        options.minutes,
        busy.processors_percent,
        busy.syncs_per_second,
        verdict.acknowledged,
        records.longest_gap().length.as_millis(),
        verdict.lost.len(),
        verdict.duplicated.len(),
    );
    if changes > 0 || last.cluster.term != first.cluster.term {
        cluster.history().await?.iter().for_each(|event| {
            println!("{} {} {} {} {}", event.wall_ms, event.node, event.term, event.kind, event.text)
        });
        cluster.show_logs();
    }
    if busy.processors_percent < 95.0 || busy.syncs_per_second < 1.0 {
        bail!("the machine was not saturated: {busy:?}");
    }
    Ok(verdict.is_clean() && last.cluster.term == first.cluster.term)
}
