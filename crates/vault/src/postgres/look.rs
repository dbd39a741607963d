//! Looks at one of several repositories, which may hang: a mount whose server is gone answers never. Such a one is passed over, so that another can
//! serve, and remembered by its place until it answers: whoever looks again is told at once, and no more threads wait there.
//!
//! A sole repository is waited for: there is nothing else to take.

use crate::objects::ObjectError;
use crate::repository::VaultError;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One look may take so long.
const MOST: Duration = Duration::from_secs(120);
/// After this one more look may try: its mount may have been made anew, while the thread before waits in the old one for good.
const AGAIN: Duration = Duration::from_secs(600);
/// So many threads may wait at one place.
const WAITING: usize = 4;

/// Looks that did not end in time, and go on.
#[derive(Clone, Copy)]
struct Hung {
    since: Instant,
    waiting: usize,
}

/// Where looks did not end in time.
static HUNG: Mutex<BTreeMap<PathBuf, Hung>> = Mutex::new(BTreeMap::new());

fn hung() -> MutexGuard<'static, BTreeMap<PathBuf, Hung>> {
    HUNG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends with the look, however that ends: then its place is not one that hangs.
struct Under {
    place: PathBuf,
    ended: Arc<Mutex<bool>>,
}

impl Drop for Under {
    fn drop(&mut self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        hung().remove(&self.place);
    }
}

/// A look at the repository there. One of `several` is given up after two minutes.
///
/// # Errors
/// The look's own, and [`ObjectError::Unreachable`] when it does not end in time, or an earlier one has not ended.
pub fn look_at<T: Send + 'static>(
    several: bool,
    place: &Path,
    look: impl FnOnce() -> Result<T, VaultError> + Send + 'static,
) -> Result<T, VaultError> {
    if several { within(MOST, place, look) } else { look() }
}

/// The same, in a thread of its own that is given up after `most`.
pub(crate) fn within<T: Send + 'static>(
    most: Duration,
    place: &Path,
    look: impl FnOnce() -> Result<T, VaultError> + Send + 'static,
) -> Result<T, VaultError> {
    let silent = |says: String| VaultError::Object(ObjectError::Unreachable(format!("{}: {says}", place.display())));
    let tries = |hung: &Hung| hung.since.elapsed() >= AGAIN && hung.waiting < WAITING;
    if hung().get(place).is_some_and(|hung| !tries(hung)) {
        let says = "an earlier look has not been answered yet; if it answers again elsewhere on this host, start this program anew";
        return Err(silent(says.to_owned()));
    }
    let (tell, told) = sync_channel(1);
    let ended = Arc::new(Mutex::new(false));
    let under = Under { place: place.to_owned(), ended: Arc::clone(&ended) };
    let work = move || {
        let result = look();
        drop(under);
        let _ = tell.send(result);
    };
    let started = std::thread::Builder::new().name("look".to_owned()).spawn(work);
    started.map_err(|error| VaultError::Server(format!("no thread for a look at {}: {error}", place.display())))?;
    told.recv_timeout(most).unwrap_or_else(|end| match end {
        RecvTimeoutError::Disconnected => {
            Err(VaultError::Server(format!("the look at {} ended without a word, which is a bug", place.display())))
        }
        RecvTimeoutError::Timeout => {
            // Held until it is noted: one that ends just now takes its note away afterwards.
            let ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
            if !*ended {
                let mut all = hung();
                let waiting = all.get(place).map_or(0, |hung| hung.waiting) + 1;
                all.insert(place.to_owned(), Hung { since: Instant::now(), waiting });
            }
            Err(silent(format!("no answer within {} s", most.as_secs())))
        }
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    /// Makes a place one that hangs, until what is returned is dropped.
    pub(crate) fn hang(place: &Path) -> Sender<()> {
        let (end, ends) = channel::<()>();
        let look = move || {
            let _ = ends.recv();
            Ok(())
        };
        assert!(within(Duration::from_millis(20), place, look).is_err());
        end
    }

    /// Waits until nothing hangs there any more.
    fn ends(place: &Path) {
        let until = Instant::now() + Duration::from_secs(10);
        while hung().contains_key(place) {
            assert!(Instant::now() < until, "{} is still noted", place.display());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn after_a_while_one_more_look_tries_and_not_without_bound() {
        let place = Path::new("/mounted-anew");
        let end = hang(place);
        let later = |waiting| {
            let since = Instant::now().checked_sub(AGAIN).unwrap();
            hung().insert(place.to_owned(), Hung { since, waiting });
        };
        later(WAITING);
        assert!(look_at(true, place, || Ok(7)).is_err());
        later(1);
        assert_eq!(look_at(true, place, || Ok(7)).unwrap(), 7, "made anew");
        assert_eq!(look_at(true, place, || Ok(7)).unwrap(), 7, "and known to answer");
        drop(end);
        ends(place);
    }

    #[test]
    fn one_that_hangs_is_known_until_it_answers_and_costs_no_other() {
        let (place, other) = (Path::new("/gone"), Path::new("/here"));
        let end = hang(place);
        let again = look_at(true, place, || Ok(7)).unwrap_err();
        assert!(
            matches!(&again, VaultError::Object(ObjectError::Unreachable(says)) if says.contains("/gone")),
            "{again}"
        );
        assert_eq!(look_at(true, other, || Ok(7)).unwrap(), 7);
        assert_eq!(look_at(false, place, || Ok(7)).unwrap(), 7, "a sole one is waited for");
        drop(end);
        ends(place);
        assert_eq!(look_at(true, place, || Ok(7)).unwrap(), 7);
    }

    #[test]
    fn a_look_that_fails_or_breaks_leaves_nothing_behind() {
        let place = Path::new("/broken");
        assert!(look_at(true, place, || Err::<(), _>(VaultError::Impossible("no".into()))).is_err());
        let broke = look_at(true, place, || -> Result<(), VaultError> { panic!("on purpose") });
        assert!(broke.unwrap_err().to_string().contains("a bug"));
        // Also after it was given up.
        let (end, ends_when) = std::sync::mpsc::channel::<()>();
        let late = move || -> Result<(), VaultError> {
            let _ = ends_when.recv();
            panic!("on purpose")
        };
        assert!(within(Duration::from_millis(20), place, late).is_err() && hung().contains_key(place));
        drop(end);
        ends(place);
        assert_eq!(look_at(true, place, || Ok(7)).unwrap(), 7);
    }
}
