//! What a hostile or broken caller can do: cost its own connection.

use crate::common::{AT_ONCE, Pki, SOON, echo};
use mainstay_net::tls::ALPN_FRAMES;
use mainstay_net::{Client, Expect};
use mainstay_ports::peer::Channel;
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A proven connection whose frames the test writes by hand; the greeting is read already.
async fn raw(pki: &Pki, address: SocketAddr) -> TlsStream<TcpStream> {
    let config = pki.node("db2").client_config(Expect::AnyNode, ALPN_FRAMES).unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::IpAddress(address.ip().into());
    let mut stream = TlsConnector::from(config).connect(name, tcp).await.unwrap();
    let mut hello = [0; 14];
    stream.read_exact(&mut hello).await.unwrap();
    stream
}

/// How long until the other side ends the connection.
async fn cut(stream: &mut (impl AsyncReadExt + Unpin)) -> Duration {
    let began = Instant::now();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut rest)).await;
    // An orderly end and a broken one are the same to us.
    assert!(ended.is_ok(), "still open");
    began.elapsed()
}

async fn still_serves(pki: &Pki, address: SocketAddr) {
    let client = Client::connect(address, Expect::AnyNode, &pki.node("db3")).await.unwrap();
    assert_eq!(client.request(Channel::Ask, b"x".to_vec(), SOON).await, Ok(b"x".to_vec()));
}

#[tokio::test]
async fn garbage_instead_of_tls_is_cut() {
    let pki = Pki::new();
    let (_mesh, address) = pki.mesh("db1", echo().1).await;
    for garbage in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0xff; 4096], vec![22, 3, 1, 255, 255]] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&garbage).await.unwrap();
        cut(&mut stream).await;
    }
    still_serves(&pki, address).await;
}

#[tokio::test]
async fn a_handshake_that_does_not_go_on_is_cut_after_two_seconds() {
    let pki = Pki::new();
    let (_mesh, address) = pki.mesh("db1", echo().1).await;
    let mut silent: Vec<TcpStream> = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    still_serves(&pki, address).await;
    let took = cut(&mut silent[0]).await;
    assert!((1500..30_000).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test]
async fn frames_that_break_the_rules_are_cut() {
    let pki = Pki::new();
    let (handler, handlers) = echo();
    let (_mesh, address) = pki.mesh("db1", handlers).await;
    let frame = |length: u32, kind: u8, channel: u8| {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[kind, channel, 0, 0, 0, 0, 0, 0, 0, 1]);
        bytes
    };
    let huge = frame(u32::MAX, 1, 2);
    let too_long = frame(1024 * 1024 + 11, 1, 2);
    let too_short = frame(3, 1, 2);
    let no_kind = frame(10, 9, 2);
    let no_channel = frame(10, 1, 9);
    let answer = frame(10, 3, 2);
    for bytes in [huge, too_long, too_short, no_kind, no_channel, answer, vec![0xaa; 100]] {
        let mut stream = raw(&pki, address).await;
        stream.write_all(&bytes).await.unwrap();
        let took = cut(&mut stream).await;
        assert!(took < AT_ONCE, "{bytes:?} after {took:?}");
    }
    assert!(handler.heard.lock().unwrap().is_empty());
    still_serves(&pki, address).await;
}

#[tokio::test]
async fn a_frame_that_stops_half_way_is_cut() {
    let pki = Pki::new();
    let (_mesh, address) = pki.mesh("db1", echo().1).await;
    let mut stream = raw(&pki, address).await;
    stream.write_all(&[0, 0, 0, 200, 1]).await.unwrap();
    let took = cut(&mut stream).await;
    assert!((4000..30_000).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test]
async fn one_caller_can_not_take_every_connection() {
    let pki = Pki::new();
    let (_mesh, address) = pki.mesh("db1", echo().1).await;
    let credentials = pki.node("db2");
    let mut kept = Vec::new();
    for _ in 0..64 {
        kept.push(Client::connect(address, Expect::AnyNode, &credentials).await.unwrap());
    }
    assert!(Client::connect(address, Expect::AnyNode, &credentials).await.is_err());
    still_serves(&pki, address).await;
    kept.pop();
    let began = Instant::now();
    while Client::connect(address, Expect::AnyNode, &credentials).await.is_err() {
        assert!(began.elapsed() < SOON, "no room although one has gone");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
