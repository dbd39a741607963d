//! `testkit`: the demonstration and the benchmark, from outside.

#![forbid(unsafe_code)]

mod bench;
mod demo;

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
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let work = async {
        match &command {
            Command::Demo(options) => demo::run(options).await,
            Command::BenchFailover(options) => bench::run(options).await,
        }
    };
    // Dropping the work takes its cluster down.
    let done = tokio::select! {
        done = work => done,
        () = interrupted() => Err(anyhow::anyhow!("interrupted")),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("testkit: {error:#}");
            ExitCode::FAILURE
        }
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
