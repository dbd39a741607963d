//! What contributors run: `cargo xtask tidy | test | sim | demo | bench | hosts | chaos | mixed | versions | soak | deb`.
//!
//! Nothing here is part of the program. Each command says what it is about to do before it does it, how long each step took, and
//! stops at the first that fails.

mod bench_proxy;
mod bench_vault;
mod deb;
mod leftovers;
mod measure;
mod mixed;
mod packages;
mod step;
mod suite;
mod tidy;
mod versions;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;

/// Checks and glue for working on Mainstay.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Checks the house's rules: floors, sources, licences, banned crates
    Tidy,
    /// Runs everything: packages, format, tidy, lints, tests, simulator, end to end
    Test,
    /// Runs the simulator, optimised: `cargo xtask sim --seeds 20000`, `--plant all`
    Sim {
        /// Passed on to the simulator
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// The main job: a three-node cluster under load, its primary's server killed, the take-over shown and measured
    Demo {
        /// Passed on: `--down` takes the cluster down at the end, `--dir DIR` says where it lives
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Every fault on virtual hosts (root): `cargo xtask hosts --all`, `--only FAULT`, `--shape three|witness|five`
    Hosts {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Faults that overlap, drawn from a seed, with every workload and checker (root): `cargo xtask chaos --seed N [--minutes M] [--only CLASS] [--json]`
    Chaos {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Two versions in one cluster (root): the previous one, host after host the new one, and back, with take-overs in between: `cargo xtask mixed
    /// --previous COMMIT|DIR|PROGRAM [--seed N] [--store etcd]`
    Mixed(mixed::Options),
    /// The tests on real servers, for each version of PostgreSQL that is here (root): `cargo xtask versions [--only 17] [--pg-bin DIR]`
    Versions(versions::Options),
    /// Processors and disks saturated by other programs: nobody may take over (root): `cargo xtask soak --minutes 10`
    Soak {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Makes a Debian package of the program: `target/debian/mainstay_VERSION_ARCH.deb`
    Deb,
    /// Measures: `cargo xtask bench failover [--trials N] [--only FAULT] [--json]`
    Bench {
        /// What to measure
        #[command(subcommand)]
        what: Bench,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// Processor time per transaction of a pooling proxy, beside PgBouncer and HAProxy
    Proxy {
        /// `--tcp` (else the last hop is a Unix socket), `--rounds N`, `--seconds N`, `--json`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Backups, restores and the archive of the log, beside pgBackRest and `tar | zstd`
    Vault {
        /// `--size MEGABYTES` (2000), `--rounds N`, `--segments N`, `--pgbackrest PROGRAM` (else the distribution's), `--json`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// What clients of a pool notice of a change of the primary: errors, and how long they are held
    Switchover {
        /// Passed on: `--trials N`, `--clients N`, `--planned`, `--json`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// The longest gap between acknowledged writes when something dies
    Failover {
        /// Passed on: `--hosts` (on virtual hosts, as root), `--trials N`, `--only FAULT,FAULT`, `--json`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn run() -> Result<ExitCode> {
    let root = step::root()?;
    match Arguments::parse().command {
        Command::Tidy => tidy::check(&root).map(|()| ExitCode::SUCCESS),
        Command::Test => suite::test(&root).map(|()| ExitCode::SUCCESS),
        Command::Sim { arguments } => suite::sim(&root, &arguments),
        Command::Demo { arguments } => suite::testkit(&root, "demo", &arguments),
        Command::Hosts { arguments } => suite::testkit(&root, "hosts", &arguments),
        Command::Chaos { arguments } => suite::testkit(&root, "chaos", &arguments),
        Command::Mixed(options) => mixed::run(&root, &options),
        Command::Versions(options) => versions::versions(&root, &options).map(|()| ExitCode::SUCCESS),
        Command::Soak { arguments } => suite::testkit(&root, "soak", &arguments),
        Command::Deb => suite::package(&root),
        Command::Bench { what: Bench::Proxy { arguments } } => bench_proxy::run(&root, &arguments),
        Command::Bench { what: Bench::Vault { arguments } } => bench_vault::run(&root, &arguments),
        Command::Bench { what: Bench::Switchover { arguments } } => {
            suite::testkit(&root, "bench-switchover", &arguments)
        }
        Command::Bench { what: Bench::Failover { arguments } } => suite::testkit(&root, "bench-failover", &arguments),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
