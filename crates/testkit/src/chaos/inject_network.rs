//! Cables, directions, single ports, and slow links.

use super::fault::Kind;
use super::inject::{Happened, Scene};
use super::undo::Undo;
use crate::hosts::host::Host;
use crate::hosts::inject as hosts;
use crate::hosts::inside::enter;
use anyhow::{Context as _, Result, bail};
use mainstay_model::NodeId;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// The agents' port, and the servers'.
const AGENTS: u16 = 7420;
const SERVERS: u16 = 5432;
/// How long a connection of a check may take.
const CHECK: Duration = Duration::from_millis(400);

pub(crate) async fn inject(scene: &Scene<'_>, kind: Kind, node: &NodeId, host: &Host) -> Result<Happened> {
    let cluster = scene.cluster;
    let others = scene.others(node);
    let of_hosts = |(at, evidence, heal)| Happened { at, evidence, undo: Undo::Hosts(heal) };
    match kind {
        Kind::LinkCut => hosts::cut_cable(cluster, node, host).map(of_hosts),
        Kind::CutOut => hosts::cut_out(cluster, node, host).map(of_hosts),
        Kind::CutIn => hosts::cut_in(cluster, node, host).map(of_hosts),
        Kind::Flapping => hosts::flap(cluster, host).await.map(of_hosts),
        Kind::PrimaryApart => hosts::apart(cluster, (node, host), &others).map(of_hosts),
        Kind::ReplicaApart => {
            let replicas: Vec<(&NodeId, &Host)> =
                others.into_iter().filter(|(name, _)| scene.replicas.contains(name)).collect();
            hosts::apart(cluster, (node, host), &replicas).map(of_hosts)
        }
        Kind::AgentsApart => cut_port(node, host, &others, AGENTS, SERVERS),
        Kind::StreamsCut => cut_port(node, host, &others, SERVERS, AGENTS),
        Kind::SlowLink => slow(node, host),
        _ => bail!("{} is no fault of the network", kind.name()),
    }
}

/// Does a connection come about, or is it refused at once? Both say that packets pass.
fn passes(from: &Host, to: &Host, port: u16) -> Result<bool> {
    let (here, address) = (from.network(), SocketAddr::new(to.address().into(), port));
    let attempt = std::thread::spawn(move || -> Result<bool> {
        enter(&here)?;
        Ok(match TcpStream::connect_timeout(&address, CHECK) {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::ConnectionRefused,
        })
    });
    attempt.join().map_err(|_| anyhow::anyhow!("a thread of the check panicked"))?
}

/// Nothing of this port passes between a host and these others, in either role; everything else does. Routes that lead nowhere: the sender
/// notices as little as with a firewall that drops.
pub(crate) fn cut_port(
    node: &NodeId,
    host: &Host,
    others: &[(&NodeId, &Host)],
    port: u16,
    stays: u16,
) -> Result<Happened> {
    let rules = |verb: &str| {
        let each = others.iter().flat_map(|(_, other)| {
            ["dport", "sport"]
                .map(|side| format!("rule {verb} to {} ipproto tcp {side} {port} blackhole", other.address()))
        });
        each.collect::<Vec<_>>().join("\n")
    };
    let at = Instant::now();
    host.ip(&rules("add"))?;
    let undo = Undo::Ip(node.clone(), rules("del"));
    for (name, other) in others {
        // A witness has no server.
        let has = |port| port != SERVERS || !crate::hosts::files::is_witness(name);
        if passes(host, other, port)? || passes(other, host, port)? {
            bail!("port {port} still passes between {node} and {name}");
        }
        if has(stays) && !passes(host, other, stays)? {
            bail!("port {stays} does not pass from {node} to {name} any more");
        }
    }
    Ok(Happened {
        at,
        evidence: format!("port {port} passes between {node} and no other node, port {stays} does"),
        undo,
    })
}

/// A cable that carries a megabit a second.
fn slow(node: &NodeId, host: &Host) -> Result<Happened> {
    let at = Instant::now();
    let words =
        ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1mbit", "burst", "16kbit", "latency", "300ms"];
    host.run_now(&words)?;
    let shown = host.run_now(&["tc", "qdisc", "show", "dev", "eth0"])?;
    if !shown.contains("tbf") {
        bail!("the link of {node} is not slow: {shown}");
    }
    let evidence =
        format!("what {node} sends passes at a megabit a second: {}", shown.lines().next().context("tc")?.trim());
    Ok(Happened { at, evidence, undo: Undo::Fast(node.clone()) })
}
