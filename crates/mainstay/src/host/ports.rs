//! Which ports a node has, and whether somebody listens on its own. The kernel's table is read: nothing is opened.

use super::text;
use mainstay_model::spec::{Node, Spec};
use mainstay_plan::doctor::facts::{OwnPort, Reading};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs as _};

/// The state of a socket that listens.
const LISTENS: &str = "0A";

/// Each port of a node, and whose it is.
pub(super) fn of(spec: &Spec, node: &Node) -> Vec<(u16, &'static str)> {
    let mut ports = vec![(node.agent_port, "agent"), (node.health_port, "health")];
    if !node.witness {
        ports.push((node.port, "server"));
    }
    if spec.proxy.on_nodes {
        ports.extend([(spec.proxy.write_port, "proxy, writes"), (spec.proxy.read_port, "proxy, reads")]);
    }
    ports
}

/// Those of this host.
pub(super) fn own(spec: &Spec, node: &Node) -> Vec<OwnPort> {
    let listening = listening();
    let resolved = (node.host.as_str(), 0).to_socket_addrs();
    let resolved = resolved.map(|all| all.take(8).map(|address| address.ip()).collect::<Vec<IpAddr>>());
    let addresses = resolved.map_err(|error| format!("{}: {error}", node.host));
    let busy = |port: u16| {
        let addresses = addresses.as_ref().map_err(Clone::clone)?;
        let listening = listening.as_ref().map_err(Clone::clone)?;
        let covers = |on: &IpAddr| on.is_unspecified() || addresses.contains(on);
        Ok(listening.iter().any(|(on, at)| *at == port && covers(on)))
    };
    of(spec, node).into_iter().map(|(port, of)| OwnPort { port, of, busy: busy(port) }).collect()
}

fn listening() -> Reading<Vec<(IpAddr, u16)>> {
    let mut all = parse(&text("/proc/self/net/tcp")?);
    // A kernel without IPv6 has no such table.
    all.extend(text("/proc/self/net/tcp6").map(|table| parse(&table)).unwrap_or_default());
    Ok(all)
}

/// `0: 0100007F:1538 00000000:0000 0A …`: addresses in the byte order of the machine, ports in hexadecimal.
fn parse(table: &str) -> Vec<(IpAddr, u16)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next()?, words.nth(1)?);
        let (address, port) = local.split_once(':')?;
        if state != LISTENS {
            return None;
        }
        Some((self::address(address)?, u16::from_str_radix(port, 16).ok()?))
    };
    table.lines().skip(1).filter_map(line).collect()
}

fn address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    if text.len() == 8 {
        return Some(Ipv4Addr::from(word(0)?).into());
    }
    let mut bytes = [0_u8; 16];
    for (place, part) in bytes.chunks_mut(4).enumerate() {
        part.copy_from_slice(&word(place * 8)?);
    }
    let address = Ipv6Addr::from(bytes);
    Some(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_listener_is_seen() {
        for host in ["127.0.0.1", "0.0.0.0", "::1"] {
            // A host without IPv6 has nothing to see there.
            let Ok(listener) = TcpListener::bind((host, 0)) else { continue };
            let bound = listener.local_addr().unwrap();
            assert!(listening().unwrap().contains(&(bound.ip(), bound.port())), "{bound}");
        }
    }

    #[test]
    fn only_those_who_listen_count() {
        let table = "  sl  local_address rem_address st\n   0: 00000000:1538 00000000:0000 0A x\n   1: 00000000:1539 00000000:0000 01 x\n";
        assert_eq!(parse(table), [(IpAddr::from([0, 0, 0, 0]), 0x1538)]);
    }
}
