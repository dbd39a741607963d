//! Joining: who answers is proven before the token is shown, and what does not speak as it should costs only itself.

use crate::common::{Pki, SOON, cluster, loopback, node};
use mainstay_model::ClusterName;
use mainstay_net::join::{Answers, Question, Refusal, Welcome, ask, serve};
use mainstay_net::{Authority, Issued, KeyRequest, NetError, Role, pki};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Lets one joiner with the right secret in.
struct Door {
    authority: Arc<Authority>,
    seen: Arc<Mutex<Vec<String>>>,
    done: bool,
}

impl Answers for Door {
    fn answer(&mut self, question: &Question, _from: SocketAddr) -> Result<Welcome, Refusal> {
        self.seen.lock().unwrap().push(question.secret.clone());
        if question.secret != "right" {
            return Err(Refusal { error: "unknown token".into(), hint: "issue one".into() });
        }
        self.done = true;
        let certificates = question.requests.iter().map(|(purpose, request)| {
            (purpose.clone(), self.authority.sign(&Role::Node(node("db1")), &[], request).unwrap())
        });
        let certificates = certificates.collect();
        Ok(Welcome { authority: self.authority.cert_pem().to_owned(), certificates, verifier: None })
    }

    fn done(&self) -> bool {
        self.done
    }
}

struct Served {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    ended: tokio::task::JoinHandle<bool>,
}

/// Serves joins for `authority`, showing `shown`.
async fn door(authority: Authority, shown: Issued, limit: Duration) -> Served {
    let socket = TcpListener::bind(loopback()).await.unwrap();
    let address = socket.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let authority = Arc::new(authority);
    let mut answers = Door { authority: authority.clone(), seen: seen.clone(), done: false };
    let ended =
        tokio::spawn(async move { serve(socket, (authority.cert_pem(), &shown), limit, &mut answers).await.unwrap() });
    Served { address, seen, ended }
}

fn shown(authority: &Authority) -> Issued {
    authority.issue(&Role::Authority("join".to_owned()), &[]).unwrap()
}

fn question(secret: &str, request: &KeyRequest) -> Question {
    Question {
        id: "0".repeat(16),
        secret: secret.to_owned(),
        cluster: "orders".to_owned(),
        role: "node".to_owned(),
        name: "db1".to_owned(),
        requests: [("node".to_owned(), request.request_pem.clone())].into(),
    }
}

#[tokio::test]
async fn a_joiner_comes_to_a_certificate_for_a_key_that_never_travelled() {
    let authority = Authority::create(&cluster()).unwrap();
    let (fingerprint, shown) = (pki::fingerprint(authority.cert_pem()).unwrap(), shown(&authority));
    let served = door(authority, shown, SOON).await;
    let request = KeyRequest::create().unwrap();
    let wrong = ask(served.address, (&cluster(), &fingerprint), &question("wrong", &request)).await.unwrap_err();
    assert!(matches!(&wrong, NetError::Join(refusal) if refusal.error == "unknown token"), "{wrong}");
    let welcome = ask(served.address, (&cluster(), &fingerprint), &question("right", &request)).await.unwrap();
    let issued = request.with(welcome.certificates["node"].clone()).unwrap();
    let (identity, _) = pki::describe(&issued.cert_pem).unwrap();
    assert_eq!(identity.role, Role::Node(node("db1")));
    assert!(served.ended.await.unwrap(), "it ends once nobody is waited for");
    assert!(TcpStream::connect(served.address).await.is_err(), "and nobody listens any more");
}

#[tokio::test]
async fn the_token_is_shown_to_nobody_but_the_authority_that_it_names() {
    let ours = Authority::create(&cluster()).unwrap();
    let fingerprint = pki::fingerprint(ours.cert_pem()).unwrap();
    let request = KeyRequest::create().unwrap();
    // Another authority of the same cluster's name.
    let theirs = Authority::create(&cluster()).unwrap();
    let their_shown = shown(&theirs);
    let served = door(theirs, their_shown, SOON).await;
    let why = ask(served.address, (&cluster(), &fingerprint), &question("right", &request)).await.unwrap_err();
    assert!(why.to_string().contains("not the authority that the token names"), "{why}");
    assert!(served.seen.lock().unwrap().is_empty());
    // A node of the cluster that plays authority: genuine, but not for this purpose.
    let node_cert = ours.issue(&Role::Node(node("db2")), &[]).unwrap();
    let served = door(ours, node_cert, SOON).await;
    let why = ask(served.address, (&cluster(), &fingerprint), &question("right", &request)).await.unwrap_err();
    assert!(why.to_string().contains("node/db2 answers there"), "{why}");
    // And a file of another cluster.
    let other = ClusterName::new("billing").unwrap();
    let ours = Authority::create(&cluster()).unwrap();
    let (fingerprint, ours_shown) = (pki::fingerprint(ours.cert_pem()).unwrap(), shown(&ours));
    let third = door(ours, ours_shown, SOON).await;
    let why = ask(third.address, (&other, &fingerprint), &question("right", &request)).await.unwrap_err();
    assert!(why.to_string().contains("is of the cluster orders, the file says billing"), "{why}");
    assert!(served.seen.lock().unwrap().is_empty() && third.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn strangers_cost_only_themselves_and_the_time_ends() {
    let authority = Authority::create(&cluster()).unwrap();
    let (fingerprint, shown) = (pki::fingerprint(authority.cert_pem()).unwrap(), shown(&authority));
    let served = door(authority, shown, Duration::from_secs(3)).await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        idle.push(stream);
    }
    for stream in &mut idle {
        let mut bytes = Vec::new();
        // However it ends, it ends.
        let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut bytes)).await.expect("closed");
    }
    let request = KeyRequest::create().unwrap();
    let mut long = question("right", &request);
    long.name = "x".repeat(70_000);
    assert!(ask(served.address, (&cluster(), &fingerprint), &long).await.is_err());
    assert!(served.seen.lock().unwrap().is_empty());
    assert!(!served.ended.await.unwrap(), "the time is over, and it says that somebody has not come");
}

#[tokio::test]
async fn an_expired_certificate_is_named_on_both_sides() {
    use crate::common::echo;
    use mainstay_net::{Client, Credentials, Expect, Mesh, reason};
    use mainstay_ports::peer::Peers as _;
    use std::collections::BTreeMap;
    let pki = Pki::new();
    let past = pki.authority.issue_for(&Role::Node(node("db9")), &[], Duration::from_secs(0)).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let expired = Credentials::from_pem(&cluster(), &pki.trusted, &past.cert_pem, &past.key_pem).unwrap();
    // It calls a good agent.
    let (_mesh, address) = pki.mesh("db1", echo().1).await;
    let why = Client::connect(address, Expect::AnyNode, &expired).await.err().unwrap().to_string();
    assert!(why.contains("it says that our certificate has expired"), "{why}");
    // A good agent calls it, keeps the reason, and would say it.
    let theirs = Mesh::with_credentials(expired, Some(loopback()), BTreeMap::new()).unwrap();
    let address = theirs.serve(echo().1, None).await.unwrap().unwrap();
    let ours = Mesh::with_credentials(pki.node("db2"), None, [(node("db9"), address)].into()).unwrap();
    ours.serve(BTreeMap::new(), None).await.unwrap();
    crate::common::until("a reason", || ours.failure(&node("db9")).is_some()).await;
    let why = ours.failure(&node("db9")).unwrap();
    assert!(why.contains("its certificate has expired") && reason::says_expired(&why), "{why}");
    assert!(ours.failure(&node("db1")).is_none(), "nothing is known of others");
}
