//! Waiting for a state, with a bound that a slow machine keeps.

use std::time::{Duration, Instant};

pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Asks again and again until there is an answer.
pub(crate) fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "not {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
