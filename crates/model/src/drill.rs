//! Drills: failures on purpose, on a cluster in service; what is asked of an agent for one, and what came of it.

use crate::{NodeId, Term};
use serde::{Deserialize, Serialize};

/// The store's key of the results: a list, oldest first. Fields are added, never renamed.
pub const DRILLS_KEY: &str = "drills";
/// So many results are kept.
pub const DRILLS_MAX: usize = 60;
/// How an event of the history begins that tells of a drill's fault; what came of the drill follows in another one, if the asker stays.
pub const FAULT_OF_DRILL: &str = "fault of a drill";
/// A fault that lasts ends by itself after this long at most, in milliseconds.
pub const LASTS_MS_MAX: u64 = 60_000;

/// What can be rehearsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrillKind {
    /// The primary's server is killed.
    KillServer,
    /// The primary's server is stopped for longer than the lease, and goes on then.
    StopServer,
    /// The primary's host hears no other node, and none hears it.
    IsolatePrimary,
    /// The role is handed over in order.
    Switchover,
    /// A replica's server is killed.
    LoseReplica,
    /// A proxy is killed.
    LoseProxy,
}

impl DrillKind {
    /// Every kind.
    pub const ALL: [DrillKind; 6] = [
        DrillKind::KillServer,
        DrillKind::StopServer,
        DrillKind::IsolatePrimary,
        DrillKind::Switchover,
        DrillKind::LoseReplica,
        DrillKind::LoseProxy,
    ];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            DrillKind::KillServer => "kill-server",
            DrillKind::StopServer => "stop-server",
            DrillKind::IsolatePrimary => "isolate-primary",
            DrillKind::Switchover => "switchover",
            DrillKind::LoseReplica => "lose-replica",
            DrillKind::LoseProxy => "lose-proxy",
        }
    }

    /// What it does, for people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            DrillKind::KillServer => "kill the primary's server (SIGKILL)",
            DrillKind::StopServer => {
                "stop the primary's server (SIGSTOP) for longer than the lease, then let it go on (SIGCONT)"
            }
            DrillKind::IsolatePrimary => "cut the primary's host from the other nodes for longer than the lease",
            DrillKind::Switchover => "hand the primary's role over in order",
            DrillKind::LoseReplica => "kill a replica's server (SIGKILL)",
            DrillKind::LoseProxy => "kill a proxy (SIGKILL)",
        }
    }

    /// Does another primary take over, by what is promised?
    #[must_use]
    pub const fn moves_primary(self) -> bool {
        !matches!(self, DrillKind::LoseReplica | DrillKind::LoseProxy)
    }

    /// Is it held against what `[requirements]` asks for the loss of a host? Otherwise for the end of a server.
    #[must_use]
    pub const fn is_host(self) -> bool {
        matches!(self, DrillKind::IsolatePrimary)
    }
}

impl std::fmt::Display for DrillKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for DrillKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        DrillKind::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            let known: Vec<&str> = DrillKind::ALL.iter().map(|kind| kind.as_str()).collect();
            format!("{text:?} can not be rehearsed; there are {}", known.join(", "))
        })
    }
}

/// What an agent does to its own node. Each takes something away and gives nobody anything, so no rule of deciding is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrillFault {
    /// SIGKILL to the server's main process.
    KillServer,
    /// SIGSTOP to all of the server, and SIGCONT after this long, by the agent itself.
    StopServer {
        /// Milliseconds.
        lasts_ms: u64,
    },
    /// Nothing of the cluster's ports passes between this host and the other nodes', for this long; the agent ends it itself.
    Isolate {
        /// Milliseconds.
        lasts_ms: u64,
    },
    /// SIGKILL to the node's proxy.
    KillProxy,
}

impl DrillFault {
    /// How long it lasts; `None`: a moment.
    #[must_use]
    pub const fn lasts_ms(self) -> Option<u64> {
        match self {
            DrillFault::StopServer { lasts_ms } | DrillFault::Isolate { lasts_ms } => Some(lasts_ms),
            DrillFault::KillServer | DrillFault::KillProxy => None,
        }
    }
}

/// A fault that is asked for, with what must still hold when it is carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultWish {
    /// On this node.
    pub node: NodeId,
    /// In this term: in another one the cluster is not the one that was looked at.
    pub term: Term,
    /// The node is the open primary; `false`: it is not primary.
    pub primary: bool,
    /// What.
    pub fault: DrillFault,
}

/// The body of `POST /v1/drill`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillWish {
    /// What.
    pub command: DrillCommand,
    /// Who asks.
    #[serde(default)]
    pub by: String,
}

/// What may be asked for a drill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrillCommand {
    /// To the node concerned: let this happen.
    DrillFault(FaultWish),
    /// To any node: keep what came of a drill.
    DrillResult(Box<DrillResult>),
}

/// What became of the writes of a drill, as its clients learned it and as they were found afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillWrites {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes that were refused.
    pub failed: u64,
    /// Writes whose fate the client did not learn.
    pub unknown: u64,
    /// Of those, how many are there.
    pub unknown_there: u64,
    /// Acknowledged writes that are not there.
    pub lost: u64,
    /// How far back the lost ones reach: from the acknowledgement of the first of them to the last one before the gap.
    pub lost_ms: u64,
    /// Writes that are there more than once.
    pub duplicated: u64,
}

/// What came of a drill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillResult {
    /// What was rehearsed.
    pub kind: DrillKind,
    /// To whom it happened; `None`: to no node (a proxy of its own).
    pub node: Option<NodeId>,
    /// When the fault began, milliseconds since 1970 by the clock of who watched.
    pub at_ms: u64,
    /// Who asked.
    pub by: String,
    /// `strict`, `available` or `async`, as it was then.
    pub durability: String,
    /// The primary and its term before.
    pub from: Option<NodeId>,
    /// The term before.
    pub term: Term,
    /// The primary afterwards.
    pub to: Option<NodeId>,
    /// Its term.
    pub term_after: Term,
    /// The longest time without an acknowledged write.
    pub write_gap_ms: u64,
    /// The longest time without an answered read.
    pub read_gap_ms: u64,
    /// From the fault until every node did its part again; `None`: not within the time that was waited for.
    pub whole_after_ms: Option<u64>,
    /// What became of the writes.
    #[serde(flatten)]
    pub writes: DrillWrites,
    /// The longest outage that `[requirements]` allows for this, if it says so.
    pub outage_allowed_s: Option<u64>,
    /// The loss that it allows.
    pub loss_allowed_s: Option<u64>,
    /// Everything that was asked for holds, and nothing was lost that may not be.
    pub met: bool,
    /// What does not, in words.
    #[serde(default)]
    pub why: Vec<String>,
}

impl DrillResult {
    /// From which primary to which one, in words.
    #[must_use]
    pub fn passage(&self) -> String {
        let name = |node: &Option<NodeId>| node.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        format!("{} (term {}) → {} (term {})", name(&self.from), self.term, name(&self.to), self.term_after)
    }

    /// One sentence for the history.
    #[must_use]
    pub fn words(&self) -> String {
        let node = self.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        let changed = match (&self.from, &self.to) {
            (Some(from), Some(to)) if from != to => format!("{from} → {to}, "),
            _ => String::new(),
        };
        let whole = self.whole_after_ms.map_or_else(
            || "not whole again in the time that was waited for".to_owned(),
            |ms| format!("whole again after {}", crate::Span(ms)),
        );
        let verdict = match (self.met, self.outage_allowed_s) {
            (true, Some(seconds)) => format!("objectives met (outage at most {seconds} s)"),
            (true, None) => "as promised (no outage is declared)".to_owned(),
            (false, _) => format!("NOT MET: {}", self.why.join("; ")),
        };
        format!(
            "drill {}{node}: {changed}write gap {}, read gap {}, {} acknowledged, {} lost, {} unknown, {whole}; {verdict}",
            self.kind,
            crate::Span(self.write_gap_ms),
            crate::Span(self.read_gap_ms),
            self.writes.acknowledged,
            self.writes.lost,
            self.writes.unknown
        )
    }
}

/// What `GET /v1/drill` answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillsAnswer {
    /// The results that are kept, oldest first.
    pub results: Vec<DrillResult>,
    /// What this agent does to its node now, if it does; ended by itself.
    pub in_force: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_they_are_written() {
        for kind in DrillKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert!("kill".parse::<DrillKind>().unwrap_err().contains("kill-server, stop-server"));
    }
}
