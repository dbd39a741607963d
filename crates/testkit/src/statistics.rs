//! Medians and percentiles of a handful of durations.

use std::time::Duration;

/// What a benchmark says about one fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Half are shorter.
    pub median: Duration,
    /// Nineteen of twenty are not longer.
    pub p95: Duration,
    /// The longest.
    pub worst: Duration,
}

/// Summarises; all zero if there is nothing.
#[must_use]
pub fn summarise(mut times: Vec<Duration>) -> Summary {
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    let count = times.len();
    let Some(worst) = times.last().copied() else { return Summary::default() };
    let median = if count % 2 == 1 { at(count / 2) } else { (at(count / 2 - 1) + at(count / 2)) / 2 };
    let p95 = at((count * 95).div_ceil(100).saturating_sub(1));
    Summary { median, p95, worst }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_numbers_of_trials() {
        let ms = Duration::from_millis;
        assert_eq!(summarise(vec![]), Summary::default());
        assert_eq!(summarise(vec![ms(5)]), Summary { median: ms(5), p95: ms(5), worst: ms(5) });
        assert_eq!(summarise(vec![ms(9), ms(1), ms(3), ms(5)]), Summary { median: ms(4), p95: ms(9), worst: ms(9) });
        let twenty = (1..=20).map(ms).collect();
        assert_eq!(summarise(twenty), Summary { median: Duration::from_micros(10_500), p95: ms(19), worst: ms(20) });
    }
}
