//! The virtual address on this host, by the kernel's own interfaces: given with a lifetime, taken away, announced; connections through it ended.
//! Absent: when.

use super::wire::{self, Answer, Held};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{self as packets, LinkAddr, MsgFlags, SockFlag, SockType};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

/// Bytes of an answer that are read at once, and how often for one table: a host with that many addresses or connections has more.
const ANSWER_BYTES: usize = 64 * 1024;
const ANSWERS_MAX: usize = 4096;
/// The kernel answers at once, unless its tables are locked.
const WITHIN: Duration = Duration::from_secs(2);

/// Why an address can not be held.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// No interface has the node's own address, or one of that name.
    #[error("{0}")]
    NoInterface(String),
    /// Somebody else gave this host the address.
    #[error(
        "this host has {address} already, on interface {interface} and not by this agent: remove it there (`ip address del`), or name another \
         proxy.address"
    )]
    Foreign {
        /// The address.
        address: Ipv4Addr,
        /// The interface.
        interface: u32,
    },
    /// The system refuses.
    #[error("{what}: {error}{}", hint(.error))]
    System {
        /// What was to be done.
        what: &'static str,
        /// What it said.
        error: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        "; the agent needs CAP_NET_ADMIN and CAP_NET_RAW (docs/pooling.md names the file that grants them)"
    } else {
        ""
    }
}

fn wrong(what: &'static str) -> impl Fn(Errno) -> AddressError {
    move |error| AddressError::System { what, error: error.into() }
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    link: LinkAddr,
}

/// What else an interface has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// This host has the virtual address, by its agent's hand.
    pub held: bool,
    /// The interface's own addresses.
    pub own: Vec<Ipv4Addr>,
}

/// The kernel, as far as addresses go.
pub struct Kernel {
    route: OwnedFd,
    connections: OwnedFd,
    /// What is read lies here: asked several times a second, for years.
    buffer: Vec<u8>,
}

/// What is asked of the kernel about addresses.
pub trait Addresses {
    /// The interface of this name, else the one with this address.
    ///
    /// # Errors
    /// When there is none, or it has no hardware address.
    fn interface(&mut self, named: Option<&str>, own: Option<Ipv4Addr>) -> Result<Interface, AddressError>;

    /// Gives the interface the address for so many seconds, or once more for so many. `label` says that it is ours.
    ///
    /// # Errors
    /// When the system refuses.
    fn give(&mut self, address: Ipv4Addr, to: &Interface, label: &str, seconds: u32) -> Result<(), AddressError>;

    /// Takes every address away that carries our label, but `keep` on the interface of that number.
    ///
    /// # Errors
    /// When the system refuses.
    fn clear(&mut self, label: &str, keep: Option<(Ipv4Addr, u32)>) -> Result<(), AddressError>;

    /// The interface that has the address by somebody else's hand.
    ///
    /// # Errors
    /// When the system does not say.
    fn foreign(&mut self, address: Ipv4Addr, label: &str) -> Result<Option<u32>, AddressError>;

    /// Ends every connection through this address, so that those who wait for an answer hear of it. Best effort: not every kernel can. Says how many.
    fn end_connections(&mut self, address: Ipv4Addr) -> usize;

    /// Tells everybody at this interface where the address is.
    ///
    /// # Errors
    /// When the system refuses.
    fn announce(&mut self, address: Ipv4Addr, at: &Interface) -> Result<(), AddressError>;
}

impl Kernel {
    /// # Errors
    /// When the system has no such interface, or no descriptors left.
    pub fn open() -> Result<Self, AddressError> {
        let open = |protocol| -> rustix::io::Result<OwnedFd> {
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
            set_socket_timeout(&socket, Timeout::Recv, Some(WITHIN))?;
            Ok(socket)
        };
        let what = "ask the kernel about addresses";
        let route = open(None).map_err(wrong(what))?;
        let connections = open(Some(netlink::SOCK_DIAG)).map_err(wrong(what))?;
        Ok(Self { route, connections, buffer: vec![0; ANSWER_BYTES] })
    }

    /// The addresses of this interface that are not ours, and whether one of ours is `address` (on whatever interface).
    ///
    /// # Errors
    /// When the system does not say.
    pub fn beside(&mut self, at: &Interface, address: Ipv4Addr, label: &str) -> Result<Beside, AddressError> {
        let all = self.addresses()?;
        let held = all.iter().any(|held| held.address == address && held.label == label);
        let others = all.into_iter().filter(|held| held.interface == at.index && held.label != label);
        Ok(Beside { held, own: others.map(|held| held.address).filter(|own| *own != address).collect() })
    }

    fn addresses(&mut self) -> Result<Vec<Held>, AddressError> {
        let mut all = Vec::new();
        ask(&self.route, &mut self.buffer, &wire::all_addresses(), |row| all.extend(wire::held(row)))
            .map_err(wrong("list the addresses"))?;
        Ok(all)
    }
}

impl Addresses for Kernel {
    fn interface(&mut self, named: Option<&str>, own: Option<Ipv4Addr>) -> Result<Interface, AddressError> {
        let links =
            getifaddrs().map_err(|error| AddressError::System { what: "list the interfaces", error: error.into() })?;
        let links: Vec<(String, LinkAddr)> = links
            .filter_map(|link| Some((link.interface_name.clone(), *link.address.as_ref()?.as_link_addr()?)))
            .collect();
        let found = match (named, own) {
            (Some(name), _) => links.into_iter().find(|(link, _)| link == name),
            (None, Some(own)) => {
                let addresses = self.addresses()?;
                let at = addresses.iter().find(|held| held.address == own).map(|held| held.interface as usize);
                links.into_iter().find(|(_, link)| Some(link.ifindex()) == at)
            }
            (None, None) => None,
        };
        let (name, link) = found.ok_or_else(|| {
            AddressError::NoInterface(match (named, own) {
                (Some(name), _) => {
                    format!("this host has no interface {name}: name another with `interface` in this [[node]]")
                }
                (None, Some(own)) => format!(
                    "no interface has this node's own address {own}: name one with `interface` in this [[node]]"
                ),
                (None, None) => {
                    "this node's own address is no IPv4 address: name an interface with `interface` in this [[node]]"
                        .to_owned()
                }
            })
        })?;
        let index = u32::try_from(link.ifindex()).unwrap_or(0);
        Ok(Interface { name, index, link })
    }

    fn give(&mut self, address: Ipv4Addr, to: &Interface, label: &str, seconds: u32) -> Result<(), AddressError> {
        let request = wire::give(address, to.index, label, seconds);
        ask(&self.route, &mut self.buffer, &request, |_| {}).map_err(wrong("give the interface the address"))
    }

    fn clear(&mut self, label: &str, keep: Option<(Ipv4Addr, u32)>) -> Result<(), AddressError> {
        for held in self.addresses()?.iter().filter(|held| held.label == label) {
            if keep.is_some_and(|(address, index)| {
                (held.address, held.prefix, held.interface) == (address, wire::PREFIX, index)
            }) {
                continue;
            }
            match ask(&self.route, &mut self.buffer, &wire::take_away(held), |_| {}) {
                // Its lifetime may have ended meanwhile.
                Ok(()) | Err(Errno::ADDRNOTAVAIL) => {}
                Err(error) => return Err(wrong("take the address away")(error)),
            }
        }
        Ok(())
    }

    fn foreign(&mut self, address: Ipv4Addr, label: &str) -> Result<Option<u32>, AddressError> {
        let all = self.addresses()?;
        Ok(all.iter().find(|held| held.address == address && held.label != label).map(|held| held.interface))
    }

    fn end_connections(&mut self, address: Ipv4Addr) -> usize {
        let mut ends = Vec::new();
        let listed = ask(&self.connections, &mut self.buffer, &wire::all_connections(), |row| {
            if wire::own_address(row) == Some(address) {
                ends.extend(wire::destroy(row));
            }
        });
        if let Err(error) = listed {
            tracing::debug!(%error, "connections through the address can not be listed");
        }
        ends.iter().filter(|end| ask(&self.connections, &mut self.buffer, end, |_| {}).is_ok()).count()
    }

    fn announce(&mut self, address: Ipv4Addr, at: &Interface) -> Result<(), AddressError> {
        let refused = |error: nix::Error| AddressError::System { what: "announce the address", error: error.into() };
        // One without hardware addresses has nobody to tell.
        let Some(hardware) = at.link.addr().filter(|hardware| *hardware != [0; 6]) else { return Ok(()) };
        let socket = packets::socket(packets::AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
        let socket = socket.map_err(refused)?;
        for answer in [false, true] {
            let frame = wire::announcement(address, hardware, answer);
            packets::sendto(socket.as_raw_fd(), &frame, &at.link, MsgFlags::MSG_DONTWAIT).map_err(refused)?;
        }
        Ok(())
    }
}

/// Sends a request, and takes every row of the answer.
fn ask(socket: &OwnedFd, buffer: &mut [u8], request: &[u8], mut row: impl FnMut(&[u8])) -> Result<(), Errno> {
    // What an earlier question left unread is no answer to this one.
    while recv(socket, &mut *buffer, RecvFlags::DONTWAIT).is_ok() {}
    send(socket, request, SendFlags::empty())?;
    for _ in 0..ANSWERS_MAX {
        let (count, _) = match recv(socket, &mut *buffer, RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        let answers = wire::answers(buffer.get(..count).unwrap_or_default());
        if answers.is_empty() {
            return Err(Errno::BADMSG);
        }
        for answer in answers {
            match answer {
                Answer::Row(bytes) => row(bytes),
                Answer::Done | Answer::Error(0) => return Ok(()),
                Answer::Error(number) => return Err(Errno::from_raw_os_error(number)),
            }
        }
    }
    Err(Errno::NOBUFS)
}
