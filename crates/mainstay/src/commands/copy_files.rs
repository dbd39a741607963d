//! The files of a copy, written from a repository while it is shown how far that is.

use super::backup::going;
use super::shelf::blocking;
use crate::failure::Outcome;
use crate::output::progress::Progress;
use mainstay_ports::clock::boot_now;
use mainstay_vault::postgres::backup::Watch;
use mainstay_vault::postgres::restore::{Destination, Plan, Restored, restore};
use mainstay_vault::repository::Repository;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const LOOK: Duration = Duration::from_millis(300);

/// Writes them, by as many threads as there are processors.
///
/// # Errors
/// Those of the restore.
pub(super) async fn write(
    repository: Repository,
    plan: Plan,
    to: Destination,
    progress: &mut Progress,
) -> Outcome<Restored> {
    progress.step("Writing the files");
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (watch, begun) = (Arc::new(Watch::default()), boot_now());
    let to = Destination { threads, watch: Arc::clone(&watch), ..to };
    let work = blocking(move || restore(&repository, &plan, &to));
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done.inspect_err(|_| progress.fail()),
            () = tokio::time::sleep(LOOK) => {
                let (done, total) = (watch.done.load(Ordering::Relaxed), watch.total.load(Ordering::Relaxed));
                progress.detail(&going(done, total, boot_now().since(begun).0));
            }
        }
    }
}
