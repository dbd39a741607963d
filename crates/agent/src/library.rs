//! This host's C library, for whoever compares hosts. It is looked at again now and then: packages are updated while the agent runs. A look that
//! hangs, as on a disk that stands still, costs one thread and no answer.

use mainstay_model::{Moment, Span};
use mainstay_ports::clock::boot_now;
use mainstay_ports::library;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How old a look may be.
const AGE: Span = Span(60_000);
/// For how long an answer waits for a look.
const PATIENCE: Duration = Duration::from_millis(300);

#[derive(Debug, Default)]
struct Seen {
    version: Option<String>,
    at: Option<Moment>,
    looking: bool,
}

/// Looks at it.
#[derive(Clone, Debug, Default)]
pub struct Library(Arc<Mutex<Seen>>);

impl Library {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is it time for a look? At most one is under way.
    fn begin(&self) -> bool {
        let mut seen = self.seen();
        let old = seen.at.is_none_or(|at| boot_now().since(at) >= AGE);
        let begin = old && !seen.looking;
        seen.looking |= begin;
        begin
    }

    /// As last seen; `None` while it is not known.
    pub async fn version(&self) -> Option<String> {
        if self.begin() {
            let library = self.clone();
            let look = tokio::task::spawn_blocking(move || {
                let version = library::version().ok();
                *library.seen() = Seen { version, at: Some(boot_now()), looking: false };
            });
            // Whoever asks next finds what comes later.
            let _ = tokio::time::timeout(PATIENCE, look).await;
        }
        self.seen().version.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::Library;

    #[test]
    fn one_look_at_a_time_and_not_again_at_once() {
        let library = Library::default();
        assert!(library.begin() && !library.begin());
        library.seen().looking = false;
        assert!(library.begin(), "the first look found nothing");
        *library.seen() = super::Seen { version: None, at: Some(super::boot_now()), looking: false };
        assert!(!library.begin());
    }
}
