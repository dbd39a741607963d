//! Which end of a connection is a process's own: what the other side sees of it, as long as nothing translates addresses in between.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// How many of a process's open files are looked at.
const FILES: usize = 10_000;
/// An established connection, in the kernel's words.
const ESTABLISHED: &str = "01";

/// The process's own end of its connection to this port of another host.
pub(super) fn own_end(pid: u32, port: u16) -> Option<SocketAddr> {
    let process = Path::new("/proc").join(pid.to_string());
    let files = std::fs::read_dir(process.join("fd")).ok()?.flatten().take(FILES);
    let sockets: BTreeSet<String> = files
        .filter_map(|file| {
            let target = std::fs::read_link(file.path()).ok()?;
            Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let tables = ["net/tcp", "net/tcp6"].map(|name| std::fs::read_to_string(process.join(name)).unwrap_or_default());
    tables.iter().find_map(|table| own_end_in(table, &sockets, port))
}

fn own_end_in(table: &str, sockets: &BTreeSet<String>, port: u16) -> Option<SocketAddr> {
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (own, other) = (words.next()?, words.next()?);
        let (established, socket) = (words.next()? == ESTABLISHED, words.nth(5)?);
        let other = address(other)?;
        (established && sockets.contains(socket) && other.port() == port).then(|| address(own))?
    })
}

/// An address as the kernel shows it: words of 32 bits as numbers of this machine, in the order of the network.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let mut bytes = Vec::new();
    for word in host.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let host = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        // A server that listens with the older protocol sees the older address.
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
    };
    Some(SocketAddr::new(host, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_other_side_sees_the_end_that_is_found() {
        for place in ["127.0.0.1:0", "[::1]:0"] {
            let server = TcpListener::bind(place).unwrap();
            let port = server.local_addr().unwrap().port();
            let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
            let (_accepted, seen) = server.accept().unwrap();
            assert_eq!(own_end(std::process::id(), port), Some(seen));
            drop(client);
            assert_eq!(own_end(std::process::id(), port), None);
        }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn only_an_established_connection_of_the_process_counts() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 00000000000000000000000000000000:1538 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000   110        0 77 1\n\
             1: 0000000000000000FFFF000003004E0A:C3A2 0000000000000000FFFF000002004E0A:1538 01 00000000:00000000 00:00000000 00000000   110        0 77 1\n\
             2: 03004E0A:C3A4 02004E0A:1538 01 00000000:00000000 00:00000000 00000000   110        0 78 1\n";
        let own = |socket: &str, port| own_end_in(table, &BTreeSet::from([socket.to_owned()]), port);
        assert_eq!(own("77", 5432), Some("10.78.0.3:50082".parse().unwrap()));
        assert_eq!(own("78", 5432), Some("10.78.0.3:50084".parse().unwrap()));
        assert_eq!((own("77", 5433), own("79", 5432)), (None, None));
    }
}
