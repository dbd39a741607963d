//! `mainstay completions` and `mainstay manual`: what a shell and `man` need to know, both written from the command line itself.

use crate::cli::{Cli, Completions, Manual};
use crate::failure::{Failure, Outcome};
use clap::CommandFactory;

/// Prints a shell's completions.
pub(super) fn print(options: &Completions) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "mainstay", &mut script);
    crate::output::bytes(&script);
    Ok(())
}

/// Writes `mainstay.1`, and a page for each command that people type: `mainstay-node-add.1`.
pub(super) fn manual(options: &Manual) -> Outcome {
    let wrong =
        |error| Failure::failed(format!("manual pages can not be written to {}: {error}", options.to.display()));
    clap_mangen::generate_to(Cli::command(), &options.to).map_err(wrong)
}
