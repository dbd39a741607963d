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
mod given;
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
    mute(why).print();
    ExitCode::from(failure::FAILED)
}

fn mute(why: &str) -> Failure {
    Failure::failed(format!("standard output can not be written: {why}"))
        .hint("what was asked is done; its result was not shown")
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
        output::object(&wrong_line(&error.render().to_string()).to_json());
    }
    ExitCode::from(failure::USAGE)
}

/// What was wrong, names and possible values included, without the usage below; what may have been meant as the hint.
fn wrong_line(text: &str) -> Failure {
    let said: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let said = said.join(" ");
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    let failure = Failure::usage(if said.is_empty() { "wrong command line" } else { said });
    let tips: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("tip: ")).collect();
    if tips.is_empty() { failure.hint("`--help` shows what may be said") } else { failure.hint(tips.join("; ")) }
}

fn report(failure: &Failure, json: bool) -> ExitCode {
    if failure.is_said() {
        // What it said may have gone nowhere.
        if let Some(why) = output::unwritten() {
            mute(why).print();
        }
        return ExitCode::from(failure.status);
    }
    failure.print();
    if json {
        output::object(&failure.to_json());
    }
    ExitCode::from(failure.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_line_is_told_with_its_names() {
        let told = |text: &str| wrong_line(text).to_json();
        let missing = told(
            "error: the following required arguments were not provided:\n  <KIND>\n  --to <DIR>\n\nUsage: mainstay drill <KIND>\n\n\
             For more information, try '--help'.\n",
        );
        assert_eq!(missing["error"], "the following required arguments were not provided: <KIND> --to <DIR>");
        let mistyped = told(
            "error: unexpected argument '--jso' found\n\n  tip: a similar argument exists: '--json'\n\nUsage: x\n",
        );
        assert_eq!(mistyped["error"], "unexpected argument '--jso' found");
        assert_eq!(mistyped["hint"], "a similar argument exists: '--json'");
        assert_eq!(told("")["error"], "wrong command line");
    }
}
