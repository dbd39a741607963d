//! Who asks for TLS hears a refusal within TLS: never "server does not support SSL", which sends people to look at certificates.

use crate::support::{Bench, LOCAL, Postgres, SOON, bin, until};
use mainstay_proxy::pool::{PoolOptions, Shown, TlsShown};
use mainstay_proxy::{Proxy, ProxyOptions, Stats};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

fn certificate() -> (TlsShown, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let chain = vec![made.cert.der().clone()];
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.clone(), key)
        .unwrap();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    let shown = Shown { config: Arc::new(config), certificate: chain[0].to_vec() };
    (Arc::new(move || shown.clone()), chain[0].clone())
}

/// What psql says when it can not get in, with TLS required.
async fn psql(address: SocketAddr, more: &str) -> String {
    let place = format!("host=127.0.0.1 port={} user=app dbname=shop sslmode=require {more}", address.port());
    let mut command = tokio::process::Command::new(bin("psql"));
    command.args(["-Xqc", "select 1", &place]).env("PGPASSWORD", "secret").kill_on_drop(true);
    let output = tokio::time::timeout(SOON, command.output()).await.unwrap().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn whole_connections_that_find_no_server_hear_it_within_tls() {
    let (shown, own) = certificate();
    let options = ProxyOptions { hold: Duration::from_millis(200), ..ProxyOptions::new(vec![LOCAL], vec![]) };
    let proxy = Proxy::bind(options, Arc::new(Stats::default())).unwrap().showing(shown);
    let address = proxy.write_addresses()[0];
    // Kept, so that the proxy does not hear of an end of its feed.
    let (_reports, heard) = tokio::sync::mpsc::channel(1);
    let serving = tokio::spawn(proxy.run(heard, std::future::pending()));
    // With the extra round that asks for another encryption first, where the library can.
    for more in ["", "gssencmode=prefer"] {
        let said = psql(address, more).await;
        assert!(said.contains("no database server can take this connection now"), "{said}");
        assert!(!said.contains("SSL"), "{said}");
    }
    // Newer clients begin TLS without asking.
    let mut roots = RootCertStore::empty();
    roots.add(own).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    client.write_all(b"\0\0\0\x12\0\x03\0\0user\0app\0\0").await.unwrap();
    let mut heard = Vec::new();
    tokio::time::timeout(SOON, client.read_to_end(&mut heard)).await.unwrap().expect("an end in order");
    assert!(heard.starts_with(b"E") && String::from_utf8_lossy(&heard).contains("\0C57P03\0"));
    // What stands in clear behind the request is no start-up.
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"\0\0\0\x08\x04\xd2\x16\x2f\0\0\0\x12\0\x03\0\0user\0app\0\0").await.unwrap();
    let mut heard = Vec::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut heard)).await.unwrap();
    assert!(heard.starts_with(b"S") && !String::from_utf8_lossy(&heard).contains("57P03"), "{heard:?}");
    serving.abort();
}

#[tokio::test]
async fn a_pool_that_is_full_or_knows_nobody_says_so_within_tls() {
    let server = Postgres::start("db1").await;
    let (shown, _) = certificate();
    let pooling = PoolOptions { tls: Some(shown), ..PoolOptions::default() };
    let options = ProxyOptions { max_connections: 1, ..ProxyOptions::new(vec![LOCAL], vec![LOCAL]) };
    let bench = Bench::with(&server, pooling, options).await;
    bench.open(&server, 1, vec![]).await;
    let inside = bench.app().await;
    let said = psql(bench.write, "").await;
    assert!(said.contains("the proxy serves 1 connections and takes no more"), "{said}");
    assert!(!said.contains("SSL"), "{said}");
    drop(inside);
    until("there is room", async || bench.pool().clients == 0).await;
    bench.pooled.set_logins(mainstay_proxy::pool::Logins::default());
    let said = psql(bench.write, "").await;
    assert!(said.contains("password authentication failed"), "{said}");
    bench.end().await;
}
