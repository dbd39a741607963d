//! Free ports for a new cluster: one set, the same on every loopback address, so that a person can remember them.
//!
//! A free port is no promise: what another program takes between now and the start shows there as an error of its own.

use crate::failure::{Failure, Outcome};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

/// How many sets are tried.
const SETS: u16 = 400;

/// A cluster's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    /// Servers.
    pub(crate) server: u16,
    /// Agents.
    pub(crate) agent: u16,
    /// Health endpoints.
    pub(crate) health: u16,
    /// The proxy's address for writes.
    pub(crate) write: u16,
    /// The proxy's address for reads.
    pub(crate) read: u16,
}

impl Ports {
    fn set(number: u16) -> Self {
        Self {
            server: 5432 + number,
            agent: 7420 + 2 * number,
            health: 7421 + 2 * number,
            write: 6432 + 2 * number,
            read: 6433 + 2 * number,
        }
    }

    fn all(self) -> [u16; 5] {
        [self.server, self.agent, self.health, self.write, self.read]
    }
}

/// Held while a new cluster's ports are chosen and not yet in use, so that two `up` at once do not choose the same.
pub(crate) struct Turn {
    _held: Option<UnixListener>,
    first: u16,
}

impl Turn {
    /// Takes the turn. Who comes second does not wait: it begins its search elsewhere.
    pub(crate) fn take() -> Self {
        let held = SocketAddr::from_abstract_name(b"mainstay-up-ports").and_then(|name| UnixListener::bind_addr(&name));
        let elsewhere = u16::try_from(std::process::id() % u32::from(SETS)).unwrap_or(0);
        match held {
            Ok(listener) => Self { _held: Some(listener), first: 0 },
            Err(_) => Self { _held: None, first: elsewhere },
        }
    }
}

/// The loopback address of the node in this place: 127.0.0.1, .2, .3 …
pub(crate) fn loopback(place: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, place.saturating_add(1))
}

/// Chooses a set that is free on every host, and that none of the neighbours has in its file.
///
/// # Errors
/// When none of the sets is free.
pub(crate) fn choose(turn: &Turn, hosts: &[Ipv4Addr], reserved: &BTreeSet<u16>) -> Outcome<Ports> {
    let sets = (0..SETS).map(|step| Ports::set((turn.first + step) % SETS));
    sets.into_iter()
        .find(|ports| {
            let all = ports.all();
            !all.iter().any(|port| reserved.contains(port))
                && all.iter().all(|port| hosts.iter().all(|host| is_free(IpAddr::V4(*host), *port)))
        })
        .ok_or_else(|| {
            Failure::failed("no set of free ports was found on the loopback addresses")
                .hint("stop other servers on this machine; `ss -ltn` shows who listens")
        })
}

/// Can somebody listen there now?
pub(crate) fn is_free(host: IpAddr, port: u16) -> bool {
    TcpListener::bind((host, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::{Ports, SETS, Turn, choose, loopback};
    use std::collections::BTreeSet;
    use std::net::TcpListener;

    #[test]
    fn sets_never_hold_a_port_twice() {
        for number in 0..SETS {
            let ports = Ports::set(number).all();
            assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len());
        }
    }

    #[test]
    fn taken_and_reserved_ports_are_avoided() {
        let turn = Turn { _held: None, first: 300 };
        let hosts = [loopback(0), loopback(1)];
        let first = choose(&turn, &hosts, &BTreeSet::new()).unwrap();
        let _taken = TcpListener::bind((hosts[1], first.agent)).unwrap();
        let second = choose(&turn, &hosts, &BTreeSet::new()).unwrap();
        assert_ne!(first.agent, second.agent);
        let third = choose(&turn, &hosts, &[second.read].into()).unwrap();
        assert_ne!(third.read, second.read);
    }
}
