//! A request to cancel, as clients of whole connections send it: by a connection of its own, with a key that only the server knows that gave
//! it. So each server that works for clients of this proxy gets it, and one that did not give the key is deaf to it. It is never held:
//! later it could only come too late. Absent: requests within TLS, which go where any new connection goes.

use crate::hold::Shared;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// What stands behind the length.
const CODE: [u8; 4] = mainstay_wire::startup::CANCEL.to_be_bytes();
/// With the longest key that the protocol allows.
const LENGTH_MAX: usize = 12 + 256;
/// How long one that has begun may take to be whole.
const WHOLE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long servers may take to hear it and close.
const HEARD: Duration = Duration::from_secs(3);

/// The request, if that is what this connection is for. Nothing of it is taken off the connection.
pub(crate) async fn request(client: &TcpStream) -> Option<Vec<u8>> {
    let mut bytes = [0; LENGTH_MAX];
    let begun = Instant::now();
    loop {
        let there = client.peek(&mut bytes).await.ok()?;
        match wanted(&bytes[..there])? {
            length if length <= there => return Some(bytes[..length].to_vec()),
            _ if there == 0 || begun.elapsed() > WHOLE => return None,
            _ => sleep(LOOK_AGAIN).await,
        }
    }
}

/// How many bytes it takes to be whole, or to be known as something else. `None`: it is something else.
fn wanted(bytes: &[u8]) -> Option<usize> {
    let Some(length) = bytes.first_chunk() else { return Some(4) };
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let known = bytes[4..].len().min(CODE.len());
    let fits = (16..=LENGTH_MAX).contains(&length) && bytes[4..4 + known] == CODE[..known];
    fits.then_some(length)
}

/// Passes it on, and waits until it was heard.
pub(crate) async fn pass_on(shared: &Shared, request: Vec<u8>) {
    let mut told = JoinSet::new();
    for server in shared.registry.servers() {
        let request = request.clone();
        told.spawn(async move { timeout(HEARD, tell(server, &request)).await });
    }
    told.join_all().await;
}

async fn tell(server: SocketAddr, request: &[u8]) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(request).await?;
    // It closes when it has done so.
    stream.read(&mut [0; 1]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_known_by_its_code_and_nothing_else_waits_for_more() {
        let whole = |length: u32| [&length.to_be_bytes()[..], &CODE, &[7; 8]].concat();
        assert_eq!((0..=16).map(|end| wanted(&whole(16)[..end])).filter(|wanted| *wanted == Some(16)).count(), 13);
        assert_eq!(wanted(&whole(44)), Some(44));
        for other in [&whole(15)[..], &whole(300), &whole(u32::MAX), b"\0\0\0\x10\x04\xd2\x16\x2f", b"\x16\x03\x01\x02"]
        {
            assert_eq!(wanted(other), None, "{other:?}");
        }
    }
}
