//! The way to the other nodes, their clocks and libraries.

use super::facts::{AddressWay, HostFacts, Knock, Peer, Stage, Told};
use super::{Findings, Severity};
use mainstay_model::NodeId;
use mainstay_model::spec::Spec;

/// Clocks that differ by more confuse whoever reads logs.
const CLOCK_ADVICE_MS: i64 = 100;
/// By more: certificates are refused that were issued a moment ago.
const CLOCK_PROBLEM_MS: i64 = 30_000;

pub(super) fn examine(spec: &Spec, facts: &HostFacts, found: &mut Findings) {
    for peer in &facts.peers {
        reach(facts, peer, found);
        if let Some(round_trip) = peer.round_trip_us {
            latency(spec, peer, round_trip, found);
        }
        if let Some(told) = &peer.told
            && let Some(told) = found.read("peer", &format!("what the agent of {} knows", peer.node), told)
        {
            clock(peer, told, found);
            library(facts, peer, told, found);
        }
    }
    address(spec, facts, found);
    if let Some(reading) = &facts.collations
        && let Some(differing) = found.read("collations", "the versions of collations", reading)
    {
        for each in differing {
            let text = format!(
                "database {}: sorted with version {}, the system has {}",
                each.database, each.recorded, each.actual
            );
            let why =
                "indexes on text were built in another order: rows are not found, and unique indexes let doubles in";
            found.say(
                Severity::Problem,
                "collations",
                text,
                why,
                [
                    format!("reindexdb --concurrently -d {} (on the primary)", each.database),
                    format!("alter database {} refresh collation version", each.database),
                ],
            );
        }
        if differing.is_empty() {
            found.fine("collations", "every database was sorted with the version that the system has");
        }
    }
}

/// The address that goes with the primary: can this host take it, and is it nobody else's?
fn address(spec: &Spec, facts: &HostFacts, found: &mut Findings) {
    let (Some(address), Some(reading)) = (spec.proxy.address, &facts.address) else { return };
    let Some(way) = found.read("virtual-address", "what this host knows of proxy.address", reading) else { return };
    let (interface, before) = (&way.interface, found.0.len());
    if !way.own.iter().any(|own| address.is_beside(*own)) {
        let has: Vec<String> = way.own.iter().map(ToString::to_string).collect();
        let has = if has.is_empty() { "nothing".to_owned() } else { has.join(", ") };
        let text =
            format!("proxy.address = {address} is of no network in which {interface} has an address (it has {has})");
        let why = "clients beside this host do not look for the address here unless routers are told to, and answers may leave by another way";
        let mend = ["take an address and a prefix of that network, or see to it that it is routed to each node's host"];
        found.say(Severity::Advice, "virtual-address", text, why, mend);
    }
    if let Some(interface) = way.foreign {
        let text = format!("this host has {address} already, on interface number {interface} and not by its agent");
        let why = "an address that stays here is answered for by two hosts once another node is the primary";
        let mend =
            [format!("ip address del {address} dev NAME (ip -o address shows where), and where it is configured")];
        found.say(Severity::Problem, "virtual-address", text, why, mend);
    }
    // What is remembered of before is of no use on the host that has it.
    let answers = way.answers.as_ref().filter(|_| !way.held);
    if let Some(stranger) = answers.filter(|answers| answers.node.is_none()) {
        self::stranger(spec, way, &stranger.hardware, found);
    }
    if found.0.len() == before {
        let told = way.holders.as_ref().and_then(|holders| holders.first());
        let has = match answers.and_then(|answers| answers.node.as_ref()).or(told) {
            _ if way.held => "this host has it now".to_owned(),
            Some(node) => format!("{node} has it now"),
            None => "nobody answers for it now".to_owned(),
        };
        found.fine("virtual-address", format!("{interface} can take {address}; {has}"));
    }
}

/// Somebody answers for the address by a hardware address that no node's own address has. On another interface of its host a node does so too.
fn stranger(spec: &Spec, way: &AddressWay, hardware: &str, found: &mut Findings) {
    let Some(address) = spec.proxy.address else { return };
    let elsewhere = spec.nodes.iter().any(|node| node.interface.is_some());
    let (severity, mend) = match &way.holders {
        Some(holders) if !holders.is_empty() => {
            let holders: Vec<&str> = holders.iter().map(NodeId::as_str).collect();
            let mend = format!(
                "agents say that {} has it: see whether this is an interface there (ip link)",
                holders.join(", ")
            );
            (Severity::Advice, mend)
        }
        None if elsewhere => {
            let mend = "no agent says who has it: see whether this is an interface of a node's host (ip link there)";
            (Severity::Advice, mend.to_owned())
        }
        _ => (Severity::Problem, "take an address that nobody has, or free this one".to_owned()),
    };
    let text = format!("{hardware} answers for {address}, and no node's own address is there");
    found.say(severity, "virtual-address", text, "clients reach whoever was heard last", [mend]);
}

fn reach(facts: &HostFacts, peer: &Peer, found: &mut Findings) {
    let lost: Vec<String> = peer
        .ports
        .iter()
        .filter_map(|port| match &port.knock {
            Knock::Lost(why) => Some(format!("{} ({}): {why}", port.port, port.of)),
            _ => None,
        })
        .collect();
    let whom = format!("{} ({})", peer.node, peer.host);
    if !lost.is_empty() {
        let all = lost.len() == peer.ports.len();
        let text = format!(
            "no way from here to {whom}: {}",
            if all {
                format!("none of its ports answers, {}", lost.first().map_or("", String::as_str))
            } else {
                lost.join("; ")
            }
        );
        let why = "agents, replication and proxies need each of these ports, in both directions";
        let ports: Vec<String> = peer.ports.iter().map(|port| port.port.to_string()).collect();
        found.say(Severity::Problem, "reach", text, why, [
            format!("ping -c 3 {}", peer.host),
            format!("on {}: ss -ltn; let the nodes in, for example: nft add rule inet filter input ip saddr THIS_HOST tcp dport {{ {} }} accept", peer.node, ports.join(", ")),
        ]);
        return;
    }
    let refused: Vec<String> = peer
        .ports
        .iter()
        .filter(|port| port.knock == Knock::Refused)
        .map(|port| format!("{} ({})", port.port, port.of))
        .collect();
    if refused.is_empty() {
        found.fine("reach", format!("every port of {whom} answers"));
    } else if facts.stage < Stage::Running {
        found.fine("reach", format!("{whom} answers; nobody listens yet on {}", refused.join(", ")));
    } else {
        let text = format!("{whom} answers, but nobody listens on {}", refused.join(", "));
        let why = "its agent, its server or its proxy does not run, or listens elsewhere";
        found.say(
            Severity::Problem,
            "reach",
            text,
            why,
            [
                format!("mainstay why --config {} --node {}", facts.config, peer.node),
                format!("ssh {} systemctl status mainstay-agent", peer.host),
            ],
        );
    }
}

fn latency(spec: &Spec, peer: &Peer, round_trip: u64, found: &mut Findings) {
    let text = format!("a round trip to {} takes {round_trip} µs", peer.node);
    let suspicion_us = spec.failover.suspicion_ms * 1000;
    if round_trip > suspicion_us / 4 {
        let why = format!(
            "a node that is silent for {} ms is suspected: at this distance a few lost packets are enough",
            spec.failover.suspicion_ms
        );
        found.say(
            Severity::Problem,
            "latency",
            text,
            why,
            [
                format!("mtr -rwc 20 {}", peer.host),
                "if it is that far away: mainstay set failover.suspicion_ms=… failover.lease_ms=… (longer)".to_owned(),
            ],
        );
    } else if round_trip > spec.requirements.write_latency_ms * 1000 {
        let why = format!(
            "a commit waits for it, and [requirements] says write_latency_ms = {}",
            spec.requirements.write_latency_ms
        );
        found.say(Severity::Advice, "latency", text, why, [format!("mtr -rwc 20 {}", peer.host)]);
    } else {
        found.fine("latency", text);
    }
}

fn clock(peer: &Peer, told: &Told, found: &mut Findings) {
    let Some(offset) = told.clock_ms else {
        let text = format!("the agent of {} is older and does not tell its clock", peer.node);
        return found.say(
            Severity::Unknown,
            "clock-offset",
            text,
            "what nobody has seen may be wrong",
            ["upgrade it, then try again"],
        );
    };
    // What the question's own time could explain is no difference.
    let apart = (offset.abs() - told.about_ms).max(0);
    let text = format!("the clock of {} differs by {offset} ms (± {} ms)", peer.node, told.about_ms);
    let why = "nothing is decided by clocks, but history and logs are read by them, and certificates have dates";
    let severity = match apart {
        CLOCK_PROBLEM_MS.. => Severity::Problem,
        CLOCK_ADVICE_MS.. => Severity::Advice,
        _ => return found.fine("clock-offset", text),
    };
    found.say(
        severity,
        "clock-offset",
        text,
        why,
        ["chronyc tracking, on both hosts".to_owned(), "chronyc makestep, on the one that is wrong".to_owned()],
    );
}

fn library(facts: &HostFacts, peer: &Peer, told: &Told, found: &mut Findings) {
    let Some(theirs) = &told.libc else {
        let text = format!("the agent of {} does not tell its C library", peer.node);
        return found.say(
            Severity::Unknown,
            "libc-differs",
            text,
            "what nobody has seen may be wrong",
            [format!("ssh {} getconf GNU_LIBC_VERSION", peer.host)],
        );
    };
    // That of this host is a finding of its own if it is not known.
    let Ok(ours) = &facts.system.libc else { return };
    if ours == theirs {
        found.fine("libc-differs", format!("{} has {theirs} too", peer.node));
    } else {
        let text = format!("this host has {ours}, {} has {theirs}", peer.node);
        let why = "two versions of the C library sort texts differently: indexes made on one host are wrong on the other after a take-over";
        found.say(Severity::Problem, "libc-differs", text, why, [
            "bring all hosts to one release of the distribution; until then: a collation of ICU or \"C\" for indexed texts",
        ]);
    }
}
