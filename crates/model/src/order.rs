//! Orders: what the agent may do to its own server. Each carries its term and is checked against the node's durable
//! promise when it executes. One runs at a time; `Kill` alone goes first and ends a running one.

use crate::record::RecoveryEnd;
use crate::{CopyId, LogEnd, Lost, Lsn, NodeId, Position, SyncSetting, SystemId, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Numbers the orders of one process life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OrderId(pub u64);

/// An order to the local server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// SIGKILL to the server and every descendant, until none is left. Outcome: `Done`, or `Doomed`.
    Kill,
    /// Stop a standby in order, so that it starts again with other settings. Outcome: `Done`.
    Stop,
    /// Start as a standby, with the upstream that the durable state names (none if it is cut). Outcome: `Done`.
    StartStandby,
    /// Cut the stream durably, verify that it is cut, read the log to its end. Works on a running standby. Outcome: `Ended`.
    Recruit,
    /// Read the log to its end without touching the stream (which must be cut). Works on a running standby without upstream,
    /// or a stopped server. Outcome: `Ended`.
    ReadEnd,
    /// Stream from this node from now on (re-point and reload). The log is known to be a prefix of the upstream's. Outcome: `Done`.
    Follow {
        /// The upstream.
        upstream: NodeId,
    },
    /// Become primary: clients out, the setting in force first, other timeline numbers reserved, promote, and verify that
    /// the server came up on `timeline`. Clients stay out. Outcome: `Promoted`.
    Promote {
        /// In force before the promotion.
        setting: SyncSetting,
        /// The number that the record reserved.
        timeline: Timeline,
        /// Where the log ends now; the new timeline must leave the old one exactly here.
        fork: Position,
    },
    /// Let clients in. Outcome: `Done`.
    Open,
    /// Keep clients out and end those that are in. Outcome: `Done`.
    Close,
    /// Change the synchronous setting, and wait until every walsender has confirmed it. Outcome: `Confirmed`.
    SetSync {
        /// The new setting.
        setting: SyncSetting,
    },
    /// Before a switchover, while clients still work: write a checkpoint, so that the one of the stop has little to write. Bounded to a few
    /// seconds. Outcome: `Done`.
    Checkpoint,
    /// Switchover: a short checkpoint, end the walsenders except these, close clients, stop in order; the others receive the last
    /// record. Outcome: `Ended`.
    StopClean {
        /// The target, and the replicas needed for the quorum.
        keep: BTreeSet<NodeId>,
    },
    /// Start a crashed primary again as primary of the same timeline, clients out, settings untouched. Outcome: `Restarted`.
    RestartInPlace,
    /// The log diverged: keep what is not shared, then rewind to the running primary `source`, verified. The server ends
    /// stopped. Outcome: `Replaced`, or `Done` if nothing had diverged after all.
    Rewind {
        /// A running primary of the promised term.
        source: NodeId,
    },
    /// Move the data directory aside and clone anew from the running primary `source`. The server ends stopped. Outcome: `Replaced` if
    /// the old data held a log that had diverged, else `Done`.
    Clone {
        /// A running primary of the promised term.
        source: NodeId,
        /// The new copy's id.
        copy: CopyId,
    },
    /// Put the restored copy that lies ready into the data directory's place, the old data aside; again and again the same if it is there
    /// already. The server ends stopped. Outcome: `Done`.
    Adopt {
        /// The restored copy.
        copy: CopyId,
        /// Its timeline, by which it is known once it is in its place.
        timeline: Timeline,
    },
    /// Make the cluster's first copy and start it as primary with clients out. Outcome: `Founded`.
    Bootstrap {
        /// The copy's id.
        copy: CopyId,
        /// In force before anything else is written.
        setting: SyncSetting,
    },
}

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is done, and verified.
    Done,
    /// The end of the log is known.
    Ended(LogEnd),
    /// The server is primary; clients are out.
    Promoted(RecoveryEnd),
    /// The server is primary again after crash recovery; clients are out.
    Restarted(RecoveryEnd),
    /// The setting is in force in every walsender; the log ended here afterwards.
    Confirmed(Lsn),
    /// The first copy exists and runs as primary.
    Founded {
        /// The data's identity.
        system: SystemId,
        /// Where it stands.
        end: RecoveryEnd,
    },
    /// Done, and this is what the old data held that the cluster's history does not; it is kept.
    Replaced(Lost),
    /// Of a kill: nothing of the server will ever run user code again, but its processes are not gone (stuck in the kernel, SIGKILL
    /// pending): the claim may be released, nothing may be started or changed in the data directory.
    Doomed,
    /// It did not happen, or not wholly.
    Failed(OrderFailure),
}

/// Why an order failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OrderFailure {
    /// The node's promise is higher than the order's term; nothing was touched.
    Stale,
    /// A later kill ended it half-way.
    Aborted,
    /// Not possible yet (the log's end is not known, the source does not answer); nothing was destroyed, try again.
    NotYet(String),
    /// The copy is no longer whole (a rewind or clone broke half-way).
    Broken(String),
    /// It failed otherwise.
    Error(String),
}
