//! What can happen: every kind of fault, its class, what it takes from the cluster, and with what it may overlap.

use crate::hosts::{HostFault, Shape};
use mainstay_model::Durability;
use mainstay_model::spec::StoreKind;
use serde::{Deserialize, Serialize};

/// Classes of faults, as reports count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Processes and whole hosts end, stop, freeze or run out of memory.
    Process,
    /// Cables, directions, single services of the network.
    Network,
    /// Volumes: full, stalled, slow, failing, powered off.
    Disk,
    /// Clocks.
    Time,
    /// The store that agents vote in.
    Store,
    /// What a database does to itself, or its clients to it.
    Database,
    /// What operators do.
    Operator,
}

impl Class {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Class::Process => "process",
            Class::Network => "network",
            Class::Disk => "disk",
            Class::Time => "time",
            Class::Store => "store",
            Class::Database => "database",
            Class::Operator => "operator",
        }
    }
}

/// What a fault takes from the cluster while it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing that the cluster needs: nobody may take over because of it.
    Nothing,
    /// A moment of one node: it is back by itself.
    Moment,
    /// One data node.
    Node,
    /// More than the cluster can spare: writes may wait until it is healed.
    Quorum,
}

macro_rules! kinds {
    ($($name:ident $text:literal $class:ident $takes:ident $low:literal..$high:literal;)*) => {
        /// A kind of fault. Kinds that the suite `hosts` has too are made to happen the same way.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Kind {
            $(#[doc = $text] $name,)*
        }
        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Kind] = &[$(Kind::$name),*];
            /// Its name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Kind::$name => $text,)* }
            }
            /// Its class.
            #[must_use]
            pub fn class(self) -> Class {
                match self { $(Kind::$name => Class::$class,)* }
            }
            /// What it takes.
            #[must_use]
            pub fn takes(self) -> Takes {
                match self { $(Kind::$name => Takes::$takes,)* }
            }
            /// How long it lasts before it is healed, in milliseconds: from, to.
            #[must_use]
            pub fn lasts(self) -> (u64, u64) {
                match self { $(Kind::$name => ($low, $high),)* }
            }
        }
    };
}

kinds! {
    ServerKill "server-kill" Process Moment 500..3000;
    ServerStop "server-stop" Process Node 4000..8000;
    ServerPause "server-pause" Process Moment 300..1800;
    BackendKill "backend-kill" Process Moment 500..2000;
    WorkerStop "worker-stop" Process Moment 1000..4000;
    AgentKill "agent-kill" Process Moment 500..3000;
    AgentStop "agent-stop" Process Node 4000..8000;
    AgentPause "agent-pause" Process Moment 300..1800;
    GuardKill "guard-kill" Process Moment 500..3000;
    GuardStop "guard-stop" Process Node 4000..7000;
    HostKill "host-kill" Process Node 2000..7000;
    HostRestart "host-restart" Process Moment 500..3000;
    HostFreeze "host-freeze" Process Node 4000..9000;
    HostPause "host-pause" Process Moment 300..1800;
    EveryHostRestart "every-host-restart" Process Quorum 500..2000;
    OutOfMemory "out-of-memory" Process Moment 500..2000;
    ProxyKill "proxy-kill" Process Moment 300..1000;
    ProxyStop "proxy-stop" Process Quorum 1000..4000;
    LinkCut "link-cut" Network Node 3000..8000;
    CutOut "cut-out" Network Node 3000..8000;
    CutIn "cut-in" Network Node 3000..8000;
    Flapping "flapping" Network Moment 100..500;
    ReplicaApart "replica-apart" Network Nothing 2000..6000;
    PrimaryApart "primary-apart" Network Node 3000..8000;
    AgentsApart "agents-apart" Network Node 3000..8000;
    StreamsCut "streams-cut" Network Quorum 2000..5000;
    SlowLink "slow-link" Network Moment 2000..6000;
    DiskFull "disk-full" Disk Node 6000..10000;
    DiskStall "disk-stall" Disk Node 3000..9000;
    DiskSlow "disk-slow" Disk Moment 2000..6000;
    DiskDies "disk-dies" Disk Node 4000..8000;
    PowerLoss "power-loss" Disk Node 1000..4000;
    EveryPowerLoss "every-power-loss" Disk Quorum 500..2000;
    ClockStep "clock-step" Time Moment 500..1000;
    AgentsLost "agents-lost" Store Quorum 4000..8000;
    HostsLost "hosts-lost" Store Quorum 3000..8000;
    HostWiped "host-wiped" Store Node 1000..2000;
    MostWiped "most-wiped" Store Quorum 500..1000;
    MostReturn "most-return" Store Quorum 500..1000;
    LongQuery "long-query" Database Moment 500..2000;
    ReplayPaused "replay-paused" Database Moment 500..2000;
    ReplicasLost "replicas-lost" Database Quorum 2000..5000;
    CrashInRecovery "crash-in-recovery" Database Moment 500..2000;
    SlotsExhausted "slots-exhausted" Database Nothing 3000..7000;
    LongTransaction "long-transaction" Database Moment 200..500;
    CancelledWaits "cancelled-waits" Database Quorum 500..1500;
    LogCorrupt "log-corrupt" Database Node 500..1500;
    Switchover "switchover" Operator Moment 200..1000;
    StoppedReplica "stopped-replica" Operator Node 200..1000;
    RestartNode "restart-node" Operator Moment 200..1000;
    RestartAll "restart-all" Operator Moment 200..500;
    RestartReplicas "restart-replicas" Operator Moment 200..500;
    AgentReload "agent-reload" Operator Moment 200..500;
    SettingChange "setting-change" Operator Nothing 200..500;
    DurabilityChange "durability-change" Operator Moment 200..500;
    Reinit "reinit" Operator Node 200..500;
    NodeChange "node-change" Operator Node 200..500;
    Paused "paused" Operator Quorum 2000..5000;
    EtcdKill "etcd-kill" Store Nothing 3000..9000;
    EtcdStop "etcd-stop" Store Nothing 3000..9000;
    EtcdLeaderKill "etcd-leader-kill" Store Moment 3000..9000;
    EtcdLeaderStop "etcd-leader-stop" Store Moment 3000..9000;
    EtcdStall "etcd-stall" Store Moment 3000..9000;
    EtcdWiped "etcd-wiped" Store Nothing 1000..4000;
    EtcdLost "etcd-lost" Store Quorum 3000..9000;
    EtcdPowerLoss "etcd-power-loss" Store Quorum 500..3000;
    EtcdApart "etcd-apart" Store Node 3000..8000;
    EtcdRestored "etcd-restored" Store Quorum 500..2000;
    ProgramNew "program-new" Operator Nothing 1000..3000;
    ProgramBack "program-back" Operator Nothing 1000..3000;
    LogFull "log-full" Disk Node 6000..10000;
    ArchiveHangs "archive-hangs" Disk Nothing 8000..20000;
}

impl Kind {
    /// The kind of this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// The fault of the suite `hosts` that it is, if that makes it happen. Such a one runs alone: it looks at the whole cluster meanwhile.
    #[must_use]
    pub(crate) fn whole(self) -> Option<HostFault> {
        Some(match self {
            Kind::ClockStep => HostFault::ClockStep,
            Kind::HostsLost => HostFault::HostsLost,
            Kind::HostWiped => HostFault::HostWiped,
            Kind::MostWiped => HostFault::MostWiped,
            Kind::MostReturn => HostFault::MostReturn,
            Kind::LongQuery => HostFault::LongQuery,
            Kind::ReplayPaused => HostFault::ReplayPaused,
            Kind::ReplicasLost => HostFault::ReplicasLost,
            Kind::StoppedReplica => HostFault::StoppedReplica,
            Kind::RestartAll => HostFault::RestartAll,
            Kind::RestartReplicas => HostFault::RestartReplicas,
            Kind::AgentReload => HostFault::AgentReload,
            Kind::DurabilityChange => HostFault::DurabilityChange,
            Kind::NodeChange => HostFault::NodeChange,
            Kind::Paused => HostFault::Paused,
            _ => return None,
        })
    }

    /// It happens to the etcd that is the store, or to a node's way there.
    #[must_use]
    pub fn of_etcd(self) -> bool {
        self.to_etcd() || self == Kind::EtcdApart
    }

    /// It happens to members of the etcd, and to no node.
    #[must_use]
    pub(crate) fn to_etcd(self) -> bool {
        matches!(
            self,
            Kind::EtcdKill
                | Kind::EtcdStop
                | Kind::EtcdLeaderKill
                | Kind::EtcdLeaderStop
                | Kind::EtcdStall
                | Kind::EtcdWiped
                | Kind::EtcdLost
                | Kind::EtcdPowerLoss
                | Kind::EtcdRestored
        )
    }

    /// The next host gets another version of the program.
    #[must_use]
    pub fn of_versions(self) -> bool {
        matches!(self, Kind::ProgramNew | Kind::ProgramBack)
    }

    /// It happens only where it was asked for by its name: plans of earlier seeds do not know it.
    #[must_use]
    pub fn on_request(self) -> bool {
        matches!(self, Kind::LogFull | Kind::ArchiveHangs)
    }

    /// Is it drawn where this holds the store? A store of the nodes has no members of its own, and an etcd is not lost with nodes. Versions
    /// change by plans of their own.
    #[must_use]
    pub fn belongs(self, store: StoreKind) -> bool {
        !self.of_versions()
            && !self.on_request()
            && match store {
                StoreKind::Raft => !self.of_etcd(),
                StoreKind::Etcd => !matches!(self, Kind::MostWiped | Kind::MostReturn),
            }
    }

    /// It looks at, or changes, the whole cluster while it happens, or relies on the rest of the cluster being sound.
    #[must_use]
    pub fn alone(self) -> bool {
        let relies = matches!(
            self,
            Kind::EveryHostRestart
                | Kind::EveryPowerLoss
                | Kind::CancelledWaits
                | Kind::LogCorrupt
                | Kind::Reinit
                | Kind::AgentsLost
                | Kind::EtcdRestored
                | Kind::ProgramNew
                | Kind::ProgramBack
                | Kind::LogFull
        );
        self.whole().is_some() || relies
    }

    /// An operator's command that may be refused in the middle of other faults: either is right.
    #[must_use]
    pub fn may_be_refused(self) -> bool {
        matches!(self, Kind::Switchover | Kind::RestartNode | Kind::SettingChange | Kind::LongTransaction)
    }

    /// It happens to the primary, or to a replica, whatever the dice say; `None`: to either.
    #[must_use]
    pub fn on_primary(self) -> Option<bool> {
        match self {
            Kind::PrimaryApart
            | Kind::StreamsCut
            | Kind::SlotsExhausted
            | Kind::OutOfMemory
            | Kind::BackendKill
            | Kind::LongTransaction
            | Kind::CancelledWaits => Some(true),
            Kind::ArchiveHangs => Some(true),
            Kind::ReplicaApart | Kind::LogCorrupt | Kind::Reinit => Some(false),
            _ => None,
        }
    }

    /// Entries for neighbours are changed in both: their healing would meet.
    fn cuts_by_neighbours(self) -> bool {
        matches!(self, Kind::CutOut | Kind::CutIn | Kind::ReplicaApart | Kind::PrimaryApart)
    }

    /// May these two be in force at once, on the same node or on two?
    #[must_use]
    pub fn may_meet(self, other: Kind, same_node: bool) -> bool {
        if self.alone() || other.alone() || self == other && same_node {
            return false;
        }
        // While a repository hangs, processes that use it can not be ended: what only stops them is enough.
        let gentle =
            |kind: Kind| matches!(kind, Kind::ServerKill | Kind::Switchover | Kind::LinkCut | Kind::SettingChange);
        if self == Kind::ArchiveHangs && !gentle(other) || other == Kind::ArchiveHangs && !gentle(self) {
            return false;
        }
        let both = |this: Kind, that: Kind| self == this && other == that || self == that && other == this;
        let stops_all =
            |kind: Kind| matches!(kind, Kind::HostKill | Kind::HostRestart | Kind::PowerLoss | Kind::DiskDies);
        if self.cuts_by_neighbours() && other.cuts_by_neighbours() || both(Kind::AgentsApart, Kind::StreamsCut) {
            return false;
        }
        // What a dead host no longer has can not be killed, and a frozen volume can not be taken away.
        let same = same_node && (self.class() == other.class() || stops_all(self) || stops_all(other));
        let disks = same_node && self.class() == Class::Disk && other.class() == Class::Disk;
        // These need a server that answers.
        let asks = |kind: Kind| {
            matches!(kind, Kind::OutOfMemory | Kind::SlotsExhausted | Kind::BackendKill | Kind::LongTransaction)
        };
        let silent = |kind: Kind| matches!(kind.takes(), Takes::Node | Takes::Quorum);
        // Without its etcd a primary does not answer for long, wherever it is.
        let there = |kind: Kind| same_node || kind.to_etcd();
        let unanswered = asks(self) && silent(other) && there(other) || asks(other) && silent(self) && there(self);
        let commands = self.class() == Class::Operator && other.class() == Class::Operator;
        // Together they might take more of the etcd than either says; and a node's way there is looked at over its cable.
        let cuts = |kind: Kind| kind.class() == Class::Network;
        let way = same_node && (self == Kind::EtcdApart && cuts(other) || other == Kind::EtcdApart && cuts(self));
        let etcd = self.of_etcd() && other.of_etcd() || way;
        !(same || disks || unanswered || commands || etcd)
    }

    /// Can it happen on such hosts?
    #[must_use]
    pub fn fits(self, shape: Shape) -> bool {
        (self.on_request() || self.belongs(shape.store))
            && match self {
                // With one replica there is nobody to cut it from, and it can not be removed.
                Kind::ReplicaApart | Kind::NodeChange => shape.data > 2,
                Kind::CancelledWaits => shape.durability == Durability::Strict,
                _ => true,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_fault_of_the_suite_hosts_is_here() {
        let names: std::collections::BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
        for fault in HostFault::ALL.into_iter().chain(HostFault::OPERATED) {
            let here = match fault {
                // A replica's end is the same kind as the primary's, with another target.
                HostFault::ReplicaKill => "host-kill",
                fault => fault.name(),
            };
            assert!(names.contains(here), "{here}");
        }
    }

    #[test]
    fn meetings_are_symmetric_and_exclude_what_cannot_be_healed_together() {
        for one in Kind::ALL {
            for other in Kind::ALL {
                for same in [false, true] {
                    assert_eq!(one.may_meet(*other, same), other.may_meet(*one, same), "{one:?} {other:?}");
                }
            }
        }
        assert!(!Kind::CutOut.may_meet(Kind::CutIn, false));
        assert!(!Kind::PowerLoss.may_meet(Kind::DiskStall, true));
        assert!(Kind::ServerKill.may_meet(Kind::DiskStall, false));
        assert!(Kind::AgentPause.may_meet(Kind::LinkCut, true));
    }
}
