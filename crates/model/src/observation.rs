//! What a probe of the local server saw, and when.

use crate::{CopyId, Lsn, Moment, NodeId, Position, Timeline};
use serde::{Deserialize, Serialize};

/// What the local server is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    /// No process.
    #[default]
    Down,
    /// A process that does not answer queries yet.
    Starting,
    /// In recovery, answers queries.
    Standby,
    /// Out of recovery.
    Primary,
}

/// A replication connection to this server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walsender {
    /// The replica, from the connection's application name.
    pub node: NodeId,
    /// The copy it said it is.
    pub copy: CopyId,
    /// Up to where that copy says that it has flushed.
    pub flush: Lsn,
    /// Up to where it has replayed.
    pub replay: Lsn,
    /// It has caught up and streams.
    pub streaming: bool,
}

/// The local server as a probe saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerObservation {
    /// When the probe was sent (not when it was answered).
    pub at: Moment,
    /// What it does.
    pub state: ServerState,
    /// For how long, in milliseconds, it has given no sign of life although it should: stopped, hung, or its disk stalled.
    pub silent: u64,
    /// Why it is silent, for people ("server process is stopped", "write to data volume takes 4 s").
    pub symptom: Option<String>,
    /// The timeline it runs on.
    pub timeline: Option<Timeline>,
    /// Primary: end of its flushed log. Standby: end of what it has received, or replayed if that is unknown.
    pub end: Option<Lsn>,
    /// Standby: replayed up to here.
    pub replay: Option<Lsn>,
    /// Standby: the walreceiver streams now.
    pub receiving: bool,
    /// Standby: its upstream has removed log that this copy needs next, so no stream will come up from there; only a clone helps.
    #[serde(default)]
    pub log_gone: bool,
    /// Primary: its replicas.
    pub walsenders: Vec<Walsender>,
    /// Clients other than the agent may enter.
    pub open: bool,
    /// Free bytes on the data volume, if known.
    pub disk_free: Option<u64>,
    /// Bytes of the whole data volume, if known.
    #[serde(default)]
    pub disk_size: Option<u64>,
    /// The server's process.
    pub pid: Option<u32>,
}

impl ServerObservation {
    /// The timeline and the end of its log, if both are known.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.timeline.zip(self.end).map(|(timeline, lsn)| Position { timeline, lsn })
    }
}

/// How little room a data volume has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Less than 256 MiB, or less than a twentieth of a volume of up to 400 GiB, or less than 20 GiB of a larger one.
    Little,
    /// Less than 64 MiB (four segments of the log), or less than a fiftieth of a volume of up to 50 GiB, or less than 1 GiB of a larger one.
    NearlyNone,
}

impl Room {
    /// Judges so many free bytes of so many; `None`: there is enough.
    #[must_use]
    pub fn of(free: u64, size: u64) -> Option<Room> {
        let little = (size / 20).clamp(256 << 20, 20 << 30);
        let nearly_none = (size / 50).clamp(64 << 20, 1 << 30);
        let room = if free < nearly_none { Room::NearlyNone } else { Room::Little };
        (free < little).then_some(room)
    }
}

#[cfg(test)]
mod tests {
    use super::Room;

    #[test]
    fn little_room_goes_by_share_within_bounds() {
        const MIB: u64 = 1 << 20;
        const GIB: u64 = 1 << 30;
        for (free, size, room) in [
            (1025 * MIB, 1536 * MIB, None),
            (255 * MIB, 1536 * MIB, Some(Room::Little)),
            (63 * MIB, 1536 * MIB, Some(Room::NearlyNone)),
            (6 * GIB, 100 * GIB, None),
            (4 * GIB, 100 * GIB, Some(Room::Little)),
            (21 * GIB, 10_000 * GIB, None),
            (2 * GIB, 10_000 * GIB, Some(Room::Little)),
            (1000 * MIB, 10_000 * GIB, Some(Room::NearlyNone)),
        ] {
            assert_eq!(Room::of(free, size), room, "{free} of {size}");
        }
    }
}
