//! Messages and links between agents: order, time-outs, going down, coming back.

use crate::common::{AT_ONCE, Echo, Pki, SOON, connected, echo, everywhere, next_change, node, until};
use mainstay_net::{Client, Expect, Mesh};
use mainstay_ports::peer::{Channel, PeerError, Peers};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Pair {
    pki: Pki,
    db1: Arc<Mesh>,
    db2: Arc<Mesh>,
    address2: SocketAddr,
    heard2: Arc<Echo>,
}

async fn two() -> Pair {
    let pki = Pki::new();
    let (heard2, handlers2) = echo();
    let (db1, address1) = pki.mesh("db1", echo().1).await;
    let (db2, address2) = pki.mesh("db2", handlers2).await;
    let peers: BTreeMap<_, _> = [(node("db1"), address1), (node("db2"), address2)].into();
    db1.set_peers(peers.clone());
    db2.set_peers(peers);
    connected(&db1, "db2").await;
    connected(&db2, "db1").await;
    Pair { pki, db1, db2, address2, heard2 }
}

#[tokio::test]
async fn messages_arrive_in_order_and_requests_are_answered() {
    let pair = two().await;
    for number in 0..500_u32 {
        pair.db1.send(&node("db2"), Channel::Mind, number.to_be_bytes().to_vec());
    }
    until("all messages", || pair.heard2.heard.lock().unwrap().len() == 500).await;
    let bodies: Vec<Vec<u8>> = pair.heard2.heard.lock().unwrap().iter().map(|(_, body)| body.clone()).collect();
    assert!(bodies.iter().enumerate().all(|(place, body)| *body == (place as u32).to_be_bytes()));
    let ask = |body: &[u8]| {
        let (db1, body) = (pair.db1.clone(), body.to_vec());
        async move { db1.request(&node("db2"), Channel::Ask, body, SOON).await }
    };
    assert_eq!(ask(b"yes").await, Ok(b"yes".to_vec()));
    assert_eq!(ask(b"no").await, Err(PeerError::Refused("I will not".to_owned())));
    let large = vec![7; 1024 * 1024];
    assert_eq!(ask(&large).await, Ok(large.clone()));
    assert!(matches!(ask(&vec![7; 1024 * 1024 + 1]).await, Err(PeerError::Refused(_))));
    let stranger = pair.db1.request(&node("db9"), Channel::Ask, Vec::new(), SOON).await;
    assert_eq!(stranger, Err(PeerError::NotConnected("db9".to_owned())));
}

#[tokio::test]
async fn a_request_ends_within_its_time_out() {
    let pki = Pki::new();
    let slow = Arc::new(Echo { delay: Duration::from_secs(30), ..Echo::default() });
    let (_db2, address2) = pki.mesh("db2", everywhere(&slow)).await;
    let (db1, _) = pki.mesh("db1", echo().1).await;
    db1.set_peers([(node("db2"), address2)].into());
    connected(&db1, "db2").await;
    let began = Instant::now();
    let answer = db1.request(&node("db2"), Channel::Ask, b"?".to_vec(), Duration::from_millis(100)).await;
    assert_eq!(answer, Err(PeerError::NoAnswer("db2".to_owned())));
    assert!((100..10_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_closed_link_is_seen_at_once_and_comes_back() {
    let pair = two().await;
    let mut links = pair.db1.links();
    let asked = tokio::spawn({
        let db1 = pair.db1.clone();
        async move { db1.request(&node("db2"), Channel::Ask, b"?".to_vec(), SOON).await }
    });
    asked.await.unwrap().expect("an answer while the link is up");
    pair.db2.close();
    let began = Instant::now();
    assert_eq!(next_change(&mut links).await, ("db2".to_owned(), false));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    assert!(!pair.db1.connected(&node("db2")));
    let answer = pair.db1.request(&node("db2"), Channel::Ask, b"?".to_vec(), SOON).await;
    assert_eq!(answer, Err(PeerError::NotConnected("db2".to_owned())));

    let again = Mesh::with_credentials(pair.pki.node("db2"), Some(pair.address2), BTreeMap::new()).unwrap();
    let began = Instant::now();
    // The old one gives its port up in its own time.
    while let Err(error) = again.serve(echo().1, None).await {
        assert!(began.elapsed() < SOON, "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(next_change(&mut links).await, ("db2".to_owned(), true));
    assert_eq!(pair.db1.request(&node("db2"), Channel::Ask, b"?".to_vec(), SOON).await, Ok(b"?".to_vec()));
}

#[tokio::test]
async fn the_peers_own_connection_closing_is_seen_too_and_doubt_ends_with_a_ping() {
    let pki = Pki::new();
    let (db1, address1) = pki.mesh("db1", echo().1).await;
    let (_db2, address2) = pki.mesh("db2", echo().1).await;
    db1.set_peers([(node("db2"), address2)].into());
    connected(&db1, "db2").await;
    let from_db2 = Client::connect(address1, Expect::AnyNode, &pki.node("db2")).await.unwrap();
    let mut links = db1.links();
    let began = Instant::now();
    drop(from_db2);
    assert_eq!(next_change(&mut links).await, ("db2".to_owned(), false));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    assert_eq!(next_change(&mut links).await, ("db2".to_owned(), true));
    assert!(began.elapsed() < AT_ONCE, "the connection itself was kept: {:?}", began.elapsed());
}

#[tokio::test]
async fn a_peer_that_comes_first_is_called_back_without_waiting() {
    let pki = Pki::new();
    let (db1, address1) = pki.mesh("db1", echo().1).await;
    // Ports that refuse until somebody comes, at an address that no other test uses.
    let process = std::process::id();
    let [high, low] = [process >> 8, process].map(|number| u8::try_from(number % 256).unwrap());
    let names = ["db2", "db3", "db4", "db5", "db6", "db7"];
    let places =
        names.iter().zip(7420..).map(|(name, port)| (node(name), SocketAddr::from(([127, 250, high, low], port))));
    let places: BTreeMap<_, _> = places.collect();
    db1.set_peers(places.clone());
    tokio::time::sleep(Duration::from_millis(1500)).await; // db1 waits up to 1 s between attempts now
    let (mut meshes, mut waited) = (Vec::new(), Duration::ZERO);
    for (name, place) in places {
        let mesh =
            Mesh::with_credentials(pki.node(name.as_str()), Some(place), [(node("db1"), address1)].into()).unwrap();
        mesh.serve(echo().1, None).await.unwrap();
        waited += until("called back", || db1.connected(&name)).await;
        meshes.push(mesh);
    }
    // Half a second each, if it waited for its next attempt.
    assert!(waited < Duration::from_millis(200) * 6, "{waited:?} for all");
}

#[tokio::test]
async fn peers_can_be_taken_away_and_added() {
    let pair = two().await;
    let mut links = pair.db1.links();
    pair.db1.set_peers(BTreeMap::new());
    assert_eq!(next_change(&mut links).await, ("db2".to_owned(), false));
    pair.db1.send(&node("db2"), Channel::Mind, b"into nothing".to_vec());
    pair.db1.set_peers([(node("db2"), pair.address2)].into());
    assert_eq!(next_change(&mut links).await, ("db2".to_owned(), true));
    assert!(pair.heard2.heard.lock().unwrap().is_empty());
}
