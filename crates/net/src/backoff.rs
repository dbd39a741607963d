//! The pause before the next attempt to connect: none at first, then 50 ms doubling to 1 s, each with jitter.

use rustix::rand::{GetRandomFlags, getrandom};
use std::time::Duration;

const FIRST_MS: u64 = 50;
const LONGEST_MS: u64 = 1000;

/// Counts failures since the last connection that lasted.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A connection has lasted: the next pause is none again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait before the next attempt.
    pub(crate) fn pause(&mut self) -> Duration {
        let failures = self.failures;
        self.failures = self.failures.saturating_add(1);
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let full = (FIRST_MS << doublings.min(10)).min(LONGEST_MS);
        Duration::from_millis(full / 2 + random() % (full / 2 + 1))
    }
}

fn random() -> u64 {
    let mut bytes = [0_u8; 8];
    // Without randomness the pause is merely regular.
    let _ = getrandom(&mut bytes, GetRandomFlags::NONBLOCK);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_once_then_longer_but_never_long() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.pause(), Duration::ZERO);
        let pauses: Vec<u128> = (0..40).map(|_| backoff.pause().as_millis()).collect();
        assert!((25..=50).contains(&pauses[0]), "{pauses:?}");
        assert!(pauses[10..].iter().all(|pause| (500..=1000).contains(pause)), "{pauses:?}");
        backoff.reset();
        assert_eq!(backoff.pause(), Duration::ZERO);
    }
}
