//! The lease's deadline on its way to the guard, and what the guard has confirmed.
//!
//! Only the newest deadline matters, so a slow guard never builds a queue. When the guard does not confirm, nothing is done
//! about it here: the deadline it holds passes, and it fences.

use mainstay_model::{Moment, Term};
use mainstay_ports::clock::boot_now;
use mainstay_ports::process::ServerProcess;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::debug;

type Deadline = Option<(Term, Moment)>;

/// Wanted and confirmed deadline. Clones share both.
#[derive(Clone)]
pub struct Deadlines {
    wanted: Arc<watch::Sender<Deadline>>,
    confirmed: watch::Receiver<Deadline>,
}

impl Deadlines {
    /// Starts the task that tells the guard.
    #[must_use]
    pub fn start(process: Arc<dyn ServerProcess>) -> Self {
        let (wanted, mut news) = watch::channel::<Deadline>(None);
        let (confirm, confirmed) = watch::channel::<Deadline>(None);
        tokio::spawn(async move {
            while news.changed().await.is_ok() {
                let Some((term, deadline)) = *news.borrow_and_update() else { continue };
                match process.extend(term, deadline).await {
                    Ok(()) => drop(confirm.send(Some((term, deadline)))),
                    Err(error) => debug!(term = term.0, %error, "the guard did not take the deadline"),
                }
            }
        });
        Self { wanted: Arc::new(wanted), confirmed }
    }

    /// Asks the guard to let the server serve as primary of this term until then.
    pub fn extend(&self, term: Term, deadline: Moment) {
        self.wanted.send_modify(|held| {
            if held.is_none_or(|(held_term, until)| (term, deadline) > (held_term, until)) {
                *held = Some((term, deadline));
            }
        });
    }

    /// The deadline for this term, if it lies ahead. With `wait`: one that the guard has confirmed, awaited for so long at most.
    pub async fn ahead(&self, term: Term, wait: Option<Duration>) -> Option<Moment> {
        let fits = |held: &Deadline| held.is_some_and(|(of, until)| of == term && until > boot_now());
        let held = match wait {
            None => *self.wanted.borrow(),
            Some(wait) => {
                let mut confirmed = self.confirmed.clone();
                *tokio::time::timeout(wait, confirmed.wait_for(fits)).await.ok()?.ok()?
            }
        };
        held.filter(|_| fits(&held)).map(|(_, until)| until)
    }
}
