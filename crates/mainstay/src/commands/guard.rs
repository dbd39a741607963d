//! `mainstay guard`: the parent of one database server. Runs in the program's first thread, without any runtime.

use crate::cli::Guard;
use crate::failure::{Failure, Outcome};
use mainstay_guard::GuardOptions;

/// Runs the guard.
///
/// # Errors
/// When another guard of this node runs, or the host refuses what it needs.
pub(crate) fn run(options: &Guard) -> Outcome {
    let options = GuardOptions { socket: options.socket.clone(), log: options.log.clone() };
    mainstay_guard::run(&options).map_err(|error| Failure::failed(error.to_string()))
}
