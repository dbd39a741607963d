//! What repeats many times a second is said once a minute.

use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// The same is said again after this.
const AGAIN: Duration = Duration::from_secs(60);
/// How many different things are remembered; more of them are not said until old ones are forgotten.
const THINGS_MAX: usize = 64;

/// Remembers what was said in the last minute.
#[derive(Debug, Default)]
pub(crate) struct Seldom(BTreeMap<String, Instant>);

impl Seldom {
    /// May this be said now? If so, it counts as said.
    pub(crate) fn may_say(&mut self, what: &str) -> bool {
        let now = Instant::now();
        self.0.retain(|_, at| now.duration_since(*at) < AGAIN);
        if self.0.contains_key(what) || self.0.len() >= THINGS_MAX {
            return false;
        }
        self.0.insert(what.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_is_said_once_a_minute_and_a_flood_stays_bounded() {
        let mut seldom = Seldom::default();
        assert!(seldom.may_say("a") && seldom.may_say("b"));
        assert!(!seldom.may_say("a"));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(seldom.may_say("a"));
        let said = (0..1000).filter(|number| seldom.may_say(&format!("x{number}"))).count();
        assert_eq!(said, THINGS_MAX - 1);
    }
}
