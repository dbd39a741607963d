//! How far a server's log reaches, and how logs of several servers relate.
//!
//! The record reserves each timeline number before a promotion uses it, so numbers are unique in the cluster and
//! `(timeline, LSN)` orders positions correctly (take-over protocol, 3.7).

use serde::{Deserialize, Serialize};
use std::fmt;

/// A byte position in PostgreSQL's log; printed as `X/Y` as PostgreSQL does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

/// A PostgreSQL timeline number, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

/// The end of a log: the timeline of its last record, then the byte after it. Ordered by timeline first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Timeline of the last record.
    pub timeline: Timeline,
    /// The byte after the last record.
    pub lsn: Lsn,
}

/// First words of a history file that only keeps a timeline's number from being taken.
pub const RESERVED: &str = "# reserved by mainstay";

/// The past of one timeline: where each earlier timeline on its path was left, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lineage(pub Vec<Position>);

/// The exact end of a log on disk, with the path that led there. A node that can not say it does not answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// The end.
    pub position: Position,
    /// The timelines before `position.timeline`, each with the position where it was left.
    pub lineage: Lineage,
}

impl LogEnd {
    /// The lineage of a log that goes on from this end on timeline `next`.
    #[must_use]
    pub fn forked(&self) -> Lineage {
        let mut path = self.lineage.0.clone();
        path.push(self.position);
        Lineage(path)
    }
}

impl Lineage {
    /// Is a log that ends at `end` a prefix of (or equal to) a log that runs on `timeline` with this past and reaches
    /// at least `reaches` there? Pass `Lsn(u64::MAX)` for a log that is still growing.
    #[must_use]
    pub fn contains(&self, end: Position, timeline: Timeline, reaches: Lsn) -> bool {
        if end.timeline == timeline {
            return end.lsn <= reaches;
        }
        self.0.iter().any(|left| left.timeline == end.timeline && end.lsn <= left.lsn)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl std::str::FromStr for Lsn {
    type Err = String;
    fn from_str(text: &str) -> Result<Lsn, String> {
        let bad = || format!("{text:?} is not a log position such as 0/16B3748");
        let (high, low) = text.trim().split_once('/').ok_or_else(bad)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| bad())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| bad())?;
        Ok(Lsn(u64::from(high) << 32 | u64::from(low)))
    }
}

impl TryFrom<String> for Lsn {
    type Error = String;
    fn try_from(text: String) -> Result<Lsn, String> {
        text.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> String {
        lsn.to_string()
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.timeline, self.lsn)
    }
}
