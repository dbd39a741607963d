//! The front door: takes the command line apart, runs one command, turns its result into an exit status.
//!
//! One file per command under `commands/`. Nothing here decides about a cluster; commands ask agents and start processes.

#![forbid(unsafe_code)]

mod cli;
mod cli_keys;
mod cli_plan;
mod client;
mod commands;
mod failure;
mod host;
mod identity;
mod local;
mod moment;
mod on_host;
mod output;
mod plan;
mod session;
mod target;

use clap::Parser;
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A guard starts its server through this program: then nothing else of it may run, and this does not return.
    mainstay_guard::intercept();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let json = cli.global.json;
    match commands::run(cli) {
        Ok(()) => told(),
        Err(failure) => report(&failure, json),
    }
}

/// Done is only what could also be said: a result that a full disk swallowed is none.
fn told() -> ExitCode {
    let Some(why) = output::unwritten() else { return ExitCode::SUCCESS };
    Failure::failed(format!("standard output can not be written: {why}"))
        .hint("what was asked is done; its result was not shown")
        .print();
    ExitCode::from(failure::FAILED)
}

/// Help and version go to standard output and are no failure; a wrong command line is, with one object if `--json` was there.
fn usage(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    if !error.use_stderr() {
        output::remember(printed);
        return told();
    }
    let json = std::env::args_os().take_while(|argument| argument != "--").any(|argument| argument == "--json");
    if json {
        let text = error.render().to_string();
        let first = text.lines().next().unwrap_or("wrong command line").trim_start_matches("error: ");
        output::object(&Failure::usage(first).to_json());
    }
    ExitCode::from(failure::USAGE)
}

fn report(failure: &Failure, json: bool) -> ExitCode {
    if failure.is_said() {
        return ExitCode::from(failure.status);
    }
    failure.print();
    if json {
        output::object(&failure.to_json());
    }
    ExitCode::from(failure.status)
}
