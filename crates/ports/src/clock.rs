//! The clocks. Decisions use boot time only; wall time is for records that people read.

use mainstay_model::Moment;
use rustix::time::{ClockId, clock_gettime};
use std::time::{SystemTime, UNIX_EPOCH};

/// `CLOCK_BOOTTIME` now: never goes back, goes on while the host is suspended.
#[must_use]
pub fn boot_now() -> Moment {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let millis = u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000;
    Moment(seconds * 1000 + millis)
}

/// Milliseconds since 1970 by the wall clock. Never decide by it.
#[must_use]
pub fn wall_now_ms() -> u64 {
    // Through the C library, as everything else on the host reads it: a clock that is set for one program alone shows here too.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
