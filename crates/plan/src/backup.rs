//! When base backups are made, how much room they need, and how long a restore takes.

use crate::facts::Facts;
use crate::parameters::REPLAY_MB_PER_S;

/// What is left of a base backup, and of log, after compression.
const COMPRESSED_PERCENT: u64 = 50;
/// Finding out, deciding, and starting the restored server.
const PREPARE_S: u64 = 600;
/// The choices, in hours, from the cheapest on.
const INTERVALS: [u64; 4] = [168, 24, 12, 6];

/// The schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Hours between base backups.
    pub every_h: u64,
    /// How many must be kept so that every moment of the retention can be restored.
    pub kept: u64,
    /// Log a day.
    pub log_gb_per_day: u64,
    /// How long a restore takes at worst.
    pub restore_s: u64,
    /// Of that, copying the base.
    pub copy_s: u64,
    /// Of that, replaying log.
    pub replay_s: u64,
}

/// The room that the repository takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Months from today.
    pub month: u64,
    /// The data then.
    pub size_gb: u64,
    /// Base backups.
    pub bases_gb: u64,
    /// Log.
    pub log_gb: u64,
}

fn at(facts: &Facts<'_>, every_h: u64) -> Schedule {
    let asked = facts.asked();
    let log_gb_per_day = facts.log_gb_per_day();
    let copy_s = asked.size_gb * 8192 / asked.link_mbit_s.max(1);
    let replay_s = log_gb_per_day * 1024 * every_h / 24 / REPLAY_MB_PER_S;
    let kept = (asked.retention_days * 24).div_ceil(every_h) + 1;
    Schedule { every_h, kept, log_gb_per_day, restore_s: PREPARE_S + copy_s + replay_s, copy_s, replay_s }
}

/// The longest interval with which a restore is as fast as asked; without an objective, the longest that keeps the replay under an hour.
#[must_use]
pub fn schedule(facts: &Facts<'_>) -> Schedule {
    let asked = facts.asked();
    let most = [asked.outage_human_s, asked.outage_site_s].into_iter().flatten().min();
    let fits = |schedule: &Schedule| match most {
        Some(most) => schedule.restore_s <= most,
        None => schedule.replay_s <= 3600,
    };
    let shortest = at(facts, 6);
    INTERVALS.into_iter().map(|every| at(facts, every)).find(fits).unwrap_or(shortest)
}

/// The room at some months from now.
#[must_use]
pub fn forecast(facts: &Facts<'_>, schedule: &Schedule) -> Vec<Room> {
    let asked = facts.asked();
    let rooms = [0, 6, 12, 24].into_iter().map(|month| {
        let size_gb = asked.size_gb + asked.growth_gb_per_month * month;
        let bases_gb = (size_gb * schedule.kept * COMPRESSED_PERCENT).div_ceil(100);
        // The oldest base reaches back beyond the retention, and needs its log too.
        let days = (schedule.kept * schedule.every_h).div_ceil(24);
        let log_gb = (schedule.log_gb_per_day * days * COMPRESSED_PERCENT).div_ceil(100);
        Room { month, size_gb, bases_gb, log_gb }
    });
    rooms.collect()
}
