//! Socket options: small messages leave at once, and a peer that has gone silent is noticed within about two seconds.

use rustix::net::sockopt;
use std::time::Duration;
use tokio::net::TcpStream;

/// Data not confirmed for this long ends the connection (milliseconds).
const USER_TIMEOUT_MS: u32 = 2000;

/// Sets the options. A kernel that knows one of them not still gives a working connection, so failures are only logged.
pub(crate) fn tune(stream: &TcpStream) {
    let set = || -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, Duration::from_secs(1))?;
        sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))?;
        sockopt::set_tcp_keepcnt(stream, 2)?;
        sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT_MS)?;
        Ok(())
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "socket options");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_options_are_really_set() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tune(&stream);
        assert!(stream.nodelay().unwrap());
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), Duration::from_secs(1));
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), USER_TIMEOUT_MS);
    }
}
