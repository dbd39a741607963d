//! Socket settings. Absent: anything that reads or writes.

use rustix::net::sockopt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// A listener with its backlog; `floating`: on an address that this host may not have yet.
pub(crate) fn listen(address: SocketAddr, backlog: u32, floating: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if floating {
        sockopt::set_ip_freebind(&socket, true)?;
    }
    socket.bind(address)?;
    socket.listen(backlog)
}

/// No delay, and an end for peers that vanished without a word. Best effort: a socket works without.
pub(crate) fn tune(stream: &TcpStream, peer_timeout: Duration) {
    let timeout = u32::try_from(peer_timeout.as_millis()).unwrap_or(u32::MAX);
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, Duration::from_secs(30));
    let _ = sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10));
    let _ = sockopt::set_tcp_keepcnt(stream, 3);
    let _ = sockopt::set_tcp_user_timeout(stream, timeout);
}
