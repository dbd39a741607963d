//! The kernel's own words for addresses and sockets (rtnetlink, sock_diag), and an ARP announcement: bytes made and read. PURE. Absent: sockets.

use std::net::Ipv4Addr;

/// A request; an answer even if all went well; a whole table; create, or change what is there.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const REPLACE: u16 = 0x100 | 0x400;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const SOCKETS_BY_FAMILY: u16 = 20;
const DESTROY_SOCKET: u16 = 21;

const FAMILY_IPV4: u8 = 2;
const TCP: u8 = 6;
const HEADER: usize = 16;
/// `struct ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;
/// `struct inet_diag_sockid`, and where it stands in an answer.
const SOCKET_ID: usize = 48;
const SOCKET_ID_AT: usize = 4;
/// Every state but TIME_WAIT and LISTEN.
const STATES: u32 = 0xfff & !(1 << 6) & !(1 << 10);

/// The address alone. With its network's prefix it would bring a route to that network to an interface that has none, and take it away again when it
/// goes; and where the interface's first address of that network goes, ours would go along.
pub(super) const PREFIX: u8 = 32;

/// Attributes of an address.
const ATTRIBUTE_ADDRESS: u16 = 1;
const ATTRIBUTE_LOCAL: u16 = 2;
const ATTRIBUTE_LABEL: u16 = 3;
const ATTRIBUTE_LIFETIME: u16 = 6;

/// An address as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) interface: u32,
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) label: String,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// An error's number; 0: done.
    Error(i32),
    /// The end of a table.
    Done,
    /// A row.
    Row(&'a [u8]),
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend((flags | REQUEST).to_ne_bytes());
    out.extend(1_u32.to_ne_bytes());
    out.extend(0_u32.to_ne_bytes());
    out.extend(body);
    out
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend(u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn address_header(prefix: u8, interface: u32) -> Vec<u8> {
    let mut body = vec![FAMILY_IPV4, prefix, 0, 0];
    body.extend(interface.to_ne_bytes());
    body
}

/// Gives an interface an address that the kernel takes away by itself after so many seconds.
pub(super) fn give(address: Ipv4Addr, interface: u32, label: &str, seconds: u32) -> Vec<u8> {
    let mut body = address_header(PREFIX, interface);
    attribute(&mut body, ATTRIBUTE_LOCAL, &address.octets());
    attribute(&mut body, ATTRIBUTE_ADDRESS, &address.octets());
    attribute(&mut body, ATTRIBUTE_LABEL, &[label.as_bytes(), &[0]].concat());
    let lifetime: Vec<u8> = [seconds, seconds, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
    attribute(&mut body, ATTRIBUTE_LIFETIME, &lifetime);
    message(NEW_ADDRESS, REPLACE | ACK, &body)
}

/// Takes it away.
pub(super) fn take_away(held: &Held) -> Vec<u8> {
    let mut body = address_header(held.prefix, held.interface);
    attribute(&mut body, ATTRIBUTE_LOCAL, &held.address.octets());
    attribute(&mut body, ATTRIBUTE_LABEL, &[held.label.as_bytes(), &[0]].concat());
    message(DELETE_ADDRESS, ACK, &body)
}

/// Asks for every IPv4 address.
pub(super) fn all_addresses() -> Vec<u8> {
    message(GET_ADDRESS, DUMP, &address_header(0, 0))
}

/// Asks for every TCP connection over IPv4.
pub(super) fn all_connections() -> Vec<u8> {
    let mut body = vec![FAMILY_IPV4, TCP, 0, 0];
    body.extend(STATES.to_ne_bytes());
    body.resize(8 + SOCKET_ID, 0);
    message(SOCKETS_BY_FAMILY, DUMP, &body)
}

/// Ends a connection that such a row shows: both sides see a reset.
pub(super) fn destroy(row: &[u8]) -> Option<Vec<u8>> {
    let id = row.get(SOCKET_ID_AT..SOCKET_ID_AT + SOCKET_ID)?;
    let mut body = vec![FAMILY_IPV4, TCP, 0, 0];
    body.extend(STATES.to_ne_bytes());
    body.extend(id);
    Some(message(DESTROY_SOCKET, ACK, &body))
}

/// The own address of the connection that a row shows.
pub(super) fn own_address(row: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = row.get(SOCKET_ID_AT + 4..SOCKET_ID_AT + 8)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The answers in what was read at once. What is cut off ends them.
pub(super) fn answers(mut bytes: &[u8]) -> Vec<Answer<'_>> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (number(bytes, 0), short(bytes, 4)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(body) = bytes.get(HEADER..length) else { break };
        found.push(match kind {
            ERROR => Answer::Error(number(body, 0).map_or(0, u32::cast_signed).wrapping_neg()),
            DONE => Answer::Done,
            _ => Answer::Row(body),
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The address that a row shows.
pub(super) fn held(row: &[u8]) -> Option<Held> {
    let (prefix, interface) = (*row.get(1)?, number(row, 4)?);
    let (mut local, mut label) = (None, String::new());
    let mut rest = row.get(ADDRESS_HEADER..)?;
    while let (Some(length), Some(kind)) = (short(rest, 0), short(rest, 2)) {
        let Some(value) = rest.get(4..usize::from(length)) else { break };
        match kind {
            ATTRIBUTE_LOCAL => local = <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from),
            ATTRIBUTE_LABEL => {
                label = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
            }
            _ => {}
        }
        rest = rest.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Held { interface, address: local?, prefix, label })
}

/// A whole Ethernet frame that tells everybody where the address is now: they remember it anew if they know the address at all.
pub(super) fn announcement(address: Ipv4Addr, hardware: [u8; 6], answer: bool) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(hardware);
    // ARP for IPv4 over Ethernet; a question for the own address, or the answer to it: some listen to the one, some to the other.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, if answer { 2 } else { 1 }]);
    frame.extend(hardware);
    frame.extend(address.octets());
    frame.extend(if answer { [0xff; 6] } else { [0; 6] });
    frame.extend(address.octets());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_is_read() {
        let address = Ipv4Addr::new(10, 1, 2, 3);
        let given = give(address, 7, "ms-00c0ffee", 2);
        assert_eq!(number(&given, 0), Some(u32::try_from(given.len()).unwrap()));
        let read = held(&given[HEADER..]).unwrap();
        let there = Held { interface: 7, address, prefix: 32, label: "ms-00c0ffee".into() };
        assert_eq!(read, there);
        assert_eq!(held(&take_away(&there)[HEADER..]).unwrap(), there);
    }

    #[test]
    fn answers_are_told_apart_and_cut_ones_end_them() {
        let error = message(ERROR, 0, &(-17_i32).to_ne_bytes());
        let both = [error.clone(), message(DONE, 0, &[0; 4])].concat();
        assert_eq!(answers(&both), [Answer::Error(17), Answer::Done]);
        for end in 0..both.len() {
            assert!(answers(&both[..end]).len() <= 1, "{end}");
        }
        // A length of nothing, or of more than there is, ends it as well.
        for length in [0_u32, 3, 15, u32::MAX] {
            let mut wrong = error.clone();
            wrong[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(answers(&wrong).is_empty(), "{length}");
        }
        for end in 0..40 {
            let _ = held(&give(Ipv4Addr::new(10, 1, 2, 3), 7, "x", 2)[HEADER..HEADER + end]);
        }
    }

    #[test]
    fn an_announcement_is_a_whole_frame() {
        let frame = announcement(Ipv4Addr::new(10, 0, 0, 100), [2, 0, 0, 0, 0, 1], false);
        assert_eq!((frame.len(), frame[12..14].to_vec(), frame[21]), (42, vec![8, 6], 1));
        assert_eq!(frame[28..32], frame[38..42]);
        assert_eq!(announcement(Ipv4Addr::new(10, 0, 0, 100), [2, 0, 0, 0, 0, 1], true)[21], 2);
    }

    #[test]
    fn a_connection_is_ended_by_the_row_that_shows_it() {
        let mut row = vec![FAMILY_IPV4, 1, 0, 0];
        row.extend([0x19, 0x20, 0x30, 0x39, 10, 0, 0, 100]);
        row.resize(72, 9);
        assert_eq!(own_address(&row), Some(Ipv4Addr::new(10, 0, 0, 100)));
        let ended = destroy(&row).unwrap();
        assert_eq!(ended[HEADER + 8..], row[4..52]);
        assert_eq!(destroy(&row[..50]), None);
    }
}
