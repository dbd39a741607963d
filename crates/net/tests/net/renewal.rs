//! Renewed certificates are taken up while the process runs, and files that can not be used change nothing.

use crate::common::{Pki, SOON, cluster, connected, echo, loopback, node, until};
use mainstay_net::{Client, Credentials, Expect, Issued, Mesh, Role, write_file};
use mainstay_ports::peer::{Channel, Peers as _};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// The three files of a process.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new(pki: &Pki, issued: &Issued) -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        files.put("ca.crt", &pki.trusted);
        files.renew(issued);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        let mode = if name == "own.key" { 0o600 } else { 0o644 };
        write_file(&self.path(name), text.as_bytes(), mode, None, true).unwrap();
    }

    fn renew(&self, issued: &Issued) {
        self.put("own.key", &issued.key_pem);
        self.put("own.crt", &issued.cert_pem);
    }

    fn load(&self) -> Arc<Credentials> {
        Credentials::load(&cluster(), &self.path("ca.crt"), &self.path("own.crt"), &self.path("own.key")).unwrap()
    }
}

fn issued(pki: &Pki, role: &Role, valid: Duration) -> Issued {
    pki.authority.issue_for(role, &["127.0.0.1".to_owned()], valid).unwrap()
}

#[tokio::test]
async fn an_agent_whose_certificate_ended_is_reached_and_reaches_others_once_it_was_renewed() {
    let pki = Pki::new();
    let role = Role::Node(node("db1"));
    let files = Files::new(&pki, &issued(&pki, &role, Duration::from_secs(1)));
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let (other, there) = pki.mesh("db2", echo().1).await;
    let mesh = Mesh::with_credentials(files.load(), Some(loopback()), [(node("db2"), there)].into()).unwrap();
    let here = mesh.serve(echo().1, None).await.unwrap().unwrap();
    other.set_peers([(node("db1"), here)].into());
    for (mesh, to) in [(&mesh, "db2"), (&other, "db1")] {
        until("a reason", || mesh.failure(&node(to)).is_some_and(|why| why.contains("expired"))).await;
    }
    files.renew(&issued(&pki, &role, YEAR));
    connected(&mesh, "db2").await;
    connected(&other, "db1").await;
}

#[tokio::test]
async fn a_connection_goes_on_over_a_renewal_and_a_proxy_shows_its_new_end_by_itself() {
    let pki = Pki::new();
    let (mesh, address) = pki.mesh("db1", echo().1).await;
    let proxy = Role::Proxy("app1".to_owned());
    let files = Files::new(&pki, &issued(&pki, &proxy, Duration::from_secs(3600)));
    let credentials = files.load();
    let first = credentials.valid_until();
    let caller = Mesh::with_credentials(credentials, None, [(node("db1"), address)].into()).unwrap();
    caller.serve(BTreeMap::new(), None).await.unwrap();
    until("the proxy is seen", || mesh.proxies() == [("app1".to_owned(), first)].into()).await;
    assert!(mesh.places(&node("db1")).is_empty());
    let person = Client::connect(address, Expect::AnyNode, &pki.node("db9")).await.unwrap();
    assert_eq!(mesh.places(&node("db9")), [loopback().ip()]);
    let renewed = issued(&pki, &proxy, YEAR);
    let last = mainstay_net::pki::valid_until(&renewed.cert_pem).unwrap();
    files.renew(&renewed);
    until("its new end", || mesh.proxies() == [("app1".to_owned(), last)].into()).await;
    connected(&caller, "db1").await;
    assert_eq!(person.request(Channel::Ask, b"still there?".to_vec(), SOON).await.unwrap(), b"still there?");
}

#[tokio::test]
async fn files_that_can_not_be_used_change_nothing() {
    let (pki, strangers) = (Pki::new(), Pki::new());
    let role = Role::Node(node("db1"));
    let first = issued(&pki, &role, YEAR);
    let files = Files::new(&pki, &first);
    let credentials = files.load();
    assert!(credentials.trusts(&pki.trusted) && !credentials.trusts(&strangers.trusted));
    let before = credentials.valid_until();
    let refused = |what: &str| {
        let why = credentials.renew().expect_err(what).to_string();
        assert!(why.contains(what), "{what}: {why}");
        assert_eq!(credentials.valid_until(), before, "{what}");
    };
    assert!(!credentials.renew().unwrap(), "nothing has changed");
    let second = issued(&pki, &role, 2 * YEAR);
    files.put("own.key", &second.key_pem);
    refused("own.key: it is not the key of the certificate beside it");
    assert!(credentials.refused().is_some());
    files.renew(&issued(&pki, &Role::Node(node("db2")), YEAR));
    refused("names mainstay://orders/node/db2");
    files.renew(&issued(&strangers, &role, YEAR));
    refused("not this authority's");
    files.put("ca.crt", &strangers.trusted);
    refused("ca.crt: another authority than the one in use");
    files.put("ca.crt", &pki.trusted);
    files.put("own.crt", "-----BEGIN CERTIFICATE-----");
    refused("own.crt: not whole");
    files.renew(&Issued { key_pem: "-----BEGIN PRIVATE KEY-----".to_owned(), ..first.clone() });
    refused("own.key: not a whole private key");
    std::fs::remove_file(files.path("own.crt")).unwrap();
    refused("own.crt");
    files.renew(&issued(&pki, &role, Duration::from_secs(0)));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    refused("has expired");
    files.renew(&second);
    assert!(credentials.renew().unwrap());
    assert_eq!(credentials.refused(), None);
    assert!(credentials.valid_until() > before && !credentials.expired());
}
