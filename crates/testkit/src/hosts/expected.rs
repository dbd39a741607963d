//! What each fault must lead to.

use super::cluster::Shape;
use super::faults::HostFault;
use mainstay_model::Durability;
use std::time::Duration;

/// Who is the primary after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Primary {
    /// Another node than before.
    Other,
    /// The same node.
    Same,
    /// Either is right.
    Any,
}

/// What becomes of writes while the fault lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// They are acknowledged again within this time.
    Within(Duration),
    /// None is acknowledged until it is healed.
    Wait,
    /// They wait, and healing takes a while and brings them back on its way.
    OnceHealed,
}

/// What a fault must lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The primary.
    pub primary: Primary,
    /// Writes.
    pub writes: Writes,
    /// How long the fault lasts on after writes came back, or in all, if they wait.
    pub lasts: Duration,
}

/// After healing: writes are acknowledged within this time …
pub(super) const WRITABLE_AFTER: Duration = Duration::from_secs(10);
/// … and every node does its part within this.
pub(super) const WHOLE_AFTER: Duration = Duration::from_secs(60);

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Faults that take a data node away until they are healed, or for long.
const TAKES_A_NODE: [HostFault; 12] = [
    HostFault::HostKill,
    HostFault::LinkCut,
    HostFault::CutOut,
    HostFault::CutIn,
    HostFault::PrimaryApart,
    HostFault::ReplicaKill,
    HostFault::DiskStall,
    HostFault::DiskFull,
    HostFault::HostWiped,
    HostFault::MostWiped,
    HostFault::MostReturn,
    HostFault::NodeChange,
];

/// What a fault must lead to on such hosts. With two data nodes and `strict` every commit needs both: while one is away, writes wait, and
/// after a take-over they wait until the old primary has rejoined.
#[must_use]
pub(super) fn expected(fault: HostFault, shape: Shape) -> Expected {
    let usual = usual(fault, shape);
    if shape.data > 2 || shape.durability != Durability::Strict {
        return usual;
    }
    match usual.writes {
        // Room that the server had taken before lasts for a while: writes go on until it is used up.
        Writes::Within(_) if fault == HostFault::DiskFull => {
            Expected { primary: Primary::Any, writes: Writes::OnceHealed, lasts: secs(8) }
        }
        Writes::Within(_) if TAKES_A_NODE.contains(&fault) => {
            Expected { primary: Primary::Any, writes: Writes::Wait, lasts: secs(8) }
        }
        Writes::Within(_) => Expected { writes: Writes::Within(secs(30)), ..usual },
        Writes::Wait | Writes::OnceHealed => usual,
    }
}

/// The worst that is allowed of a fault on a machine that is busy with other things too. What is aimed at stands in the benchmark.
fn usual(fault: HostFault, shape: Shape) -> Expected {
    use HostFault as F;
    let of = |primary, writes, lasts| Expected { primary, writes, lasts: secs(lasts) };
    let within = |seconds| Writes::Within(secs(seconds));
    match fault {
        F::ServerKill => of(Primary::Other, within(5), 0),
        // Its agent is started again at once: whichever stands first may win.
        F::HostRestart => of(Primary::Any, within(5), 0),
        F::HostKill => of(Primary::Other, within(6), 1),
        F::Switchover => of(Primary::Other, within(4), 0),
        // Long enough for the old primary to run out of its lease, alone.
        F::LinkCut | F::CutOut | F::CutIn | F::PrimaryApart => of(Primary::Other, within(8), 4),
        F::ServerStop | F::LongQuery | F::ReplayPaused => of(Primary::Other, within(10), 0),
        F::DiskStall => of(Primary::Other, within(15), 1),
        // Room that the server had taken before lasts for a while.
        F::DiskFull => of(Primary::Other, within(15), 10),
        F::Flapping => of(Primary::Any, within(12), 0),
        F::StoppedReplica => of(Primary::Any, within(10), 0),
        F::AgentKill => of(Primary::Any, within(8), 0),
        F::ReplicaApart => of(Primary::Same, within(4), 6),
        F::ReplicaKill => of(Primary::Same, within(4), 2),
        // Its agent is started again.
        F::ClockStep => of(Primary::Any, within(8), 0),
        F::HostWiped => of(Primary::Same, within(3), 2),
        F::MostWiped | F::MostReturn => match shape.durability {
            // A rebuilt cluster is one copy: strict commits wait for another.
            Durability::Strict => of(Primary::Same, Writes::OnceHealed, 1),
            Durability::Available | Durability::Async => of(Primary::Same, within(30), 1),
        },
        F::RestartAll => of(Primary::Any, within(5), 0),
        F::RestartReplicas | F::AgentReload | F::DurabilityChange | F::NodeChange => of(Primary::Same, within(3), 0),
        F::Paused => of(Primary::Other, Writes::Wait, 5),
        // The store has lost its majority: nobody may serve, whatever the mode.
        F::HostsLost => of(Primary::Any, Writes::Wait, 8),
        F::ReplicasLost => match shape.durability {
            Durability::Strict => of(Primary::Any, Writes::Wait, 8),
            Durability::Available | Durability::Async => of(Primary::Same, within(8), 2),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_strict_nodes_wait_for_each_other_and_available_ones_do_not() {
        let available = Shape { durability: Durability::Available, ..Shape::WITNESS };
        assert_eq!(expected(HostFault::HostKill, Shape::WITNESS).writes, Writes::Wait);
        assert!(matches!(expected(HostFault::HostKill, available).writes, Writes::Within(_)));
        assert!(matches!(expected(HostFault::HostKill, Shape::THREE).writes, Writes::Within(_)));
        assert_eq!(expected(HostFault::ReplicasLost, Shape::THREE).writes, Writes::Wait);
    }
}
