//! What `mainstay apply` does, decided before anything is done: from the file, what each host shows and what is in force to an ordered list of
//! steps with their reasons, or to what stands in the way.
//!
//! PURE. The same function decides about bare hosts, about a run that was interrupted anywhere, and about a cluster that is as the file says:
//! then the list is empty. Nothing remembers how far an earlier run came; the hosts show it. Begin at [`work`].

pub mod adopt;
pub mod facts;
mod obstacles;
mod steps;

pub use obstacles::{Obstacle, notes};
pub use steps::{Reasoned, Step, Work, kept};

use facts::{Inventory, Wanted};

/// The steps that make the hosts as the file says.
///
/// # Errors
/// Everything that stands in the way, at once; nothing may be done then.
pub fn work(wanted: &Wanted<'_>, inventory: &Inventory) -> Result<Work, Vec<Obstacle>> {
    let found = obstacles::find(wanted, inventory);
    if found.is_empty() { Ok(steps::order(wanted, inventory)) } else { Err(found) }
}

#[cfg(test)]
mod tests;
