//! `testkit`: the demonstration, the benchmarks and the faults on virtual hosts, from outside.

#![forbid(unsafe_code)]

mod bench;
mod bench_hosts;
mod bench_pool;
mod bench_table;
mod chaos_run;
mod demo;
mod hosts_run;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Real clusters, faults and ledgers
#[derive(Debug, Parser)]
#[command(name = "testkit")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts a cluster of three nodes, writes to it, kills the primary's server, and shows the take-over
    Demo(demo::Options),
    /// Measures the longest time without an acknowledged write, fault by fault
    BenchFailover(bench::Options),
    /// Measures what clients of a pool notice of a change of the primary: errors, and how long they are held
    BenchSwitchover(bench_pool::Options),
    /// Lets faults happen to clusters on virtual hosts (needs root)
    Hosts(hosts_run::Options),
    /// Saturates the processors and the data volumes: nobody may take over (needs root)
    Soak(hosts_run::Soak),
    /// Faults that overlap, from a seed, and every workload and checker (needs root)
    Chaos(chaos_run::Options),
    /// The first process of a virtual host
    #[command(hide = true)]
    HostInit {
        /// The host's directory: by it a sweep finds what a dead run left
        _dir: std::path::PathBuf,
    },
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let done = match command {
        // Without a runtime: it has one thread to collect processes, and one to listen.
        Command::HostInit { .. } => mainstay_testkit::hosts::init::run().map(|()| ExitCode::SUCCESS),
        command => {
            tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| runtime.block_on(work(&command)))
        }
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("testkit: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn work(command: &Command) -> anyhow::Result<ExitCode> {
    let work = async {
        let well = match command {
            Command::Chaos(options) => return chaos_run::chaos(options).await,
            Command::Demo(options) => demo::run(options).await,
            Command::BenchFailover(options) if options.hosts => bench_hosts::run(options).await,
            Command::BenchFailover(options) => bench::run(options).await,
            Command::BenchSwitchover(options) => bench_pool::run(options).await,
            Command::Hosts(options) => hosts_run::run(options).await,
            Command::Soak(options) => hosts_run::soak(options).await,
            Command::HostInit { .. } => Ok(false),
        }?;
        Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    };
    // Dropping the work takes its cluster down.
    tokio::select! {
        done = work => done,
        () = interrupted() => Err(anyhow::anyhow!("interrupted")),
    }
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
}
