//! Who gets in: authority, cluster, name, role, channel.

use crate::common::{Pki, SOON, cluster, connected, echo, loopback, node, until};
use mainstay_model::ClusterName;
use mainstay_net::{Authority, Client, Credentials, Expect, Mesh, MeshOptions, NetError, Role};
use mainstay_ports::peer::{Caller, Channel, PeerError, Peers};
use std::collections::BTreeMap;
use std::time::Duration;

async fn refused(address: std::net::SocketAddr, expect: Expect, credentials: &Credentials) -> String {
    match Client::connect(address, expect, credentials).await {
        Ok(_) => panic!("was let in"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn another_authoritys_caller_and_agent_are_both_refused() {
    let (ours, theirs) = (Pki::new(), Pki::new());
    let (_mesh, address) = ours.mesh("db1", echo().1).await;
    // The caller trusts the agent's authority, but its own certificate is another's.
    let impostor = Pki { authority: theirs.authority, trusted: ours.trusted.clone() };
    let why = refused(address, Expect::AnyNode, &impostor.node("db2")).await;
    assert!(why.contains("let us in"), "{why}");
    // The agent is genuine, but the caller trusts another authority.
    let stranger = Pki::new();
    let why = refused(address, Expect::AnyNode, &stranger.node("db2")).await;
    assert!(why.contains("invalid peer certificate"), "{why}");
    Client::connect(address, Expect::AnyNode, &ours.node("db2")).await.expect("ours is let in");
}

#[tokio::test]
async fn another_cluster_is_refused_even_where_both_authorities_are_trusted() {
    let mut pki = Pki::new();
    let other = ClusterName::new("billing").unwrap();
    let other_authority = Authority::create(&other).unwrap();
    pki.trusted.push_str(other_authority.cert_pem());
    let (_mesh, address) = pki.mesh("db1", echo().1).await;
    let credentials = pki.credentials_from(&other_authority, &other, &Role::Node(node("db1")));
    let why = refused(address, Expect::AnyNode, &credentials).await;
    assert!(why.contains("not of the cluster billing"), "the caller notices first: {why}");
    // And the listener notices by itself: a caller that would accept anybody's name is not let in either.
    let (_other_mesh, other_address) = {
        let mesh = Mesh::with_credentials(credentials.clone(), Some(loopback()), BTreeMap::new()).unwrap();
        let address = mesh.serve(echo().1, None).await.unwrap().unwrap();
        (mesh, address)
    };
    let why = refused(other_address, Expect::AnyNode, &pki.node("db1")).await;
    assert!(why.contains("not of the cluster orders"), "{why}");
    assert!(Credentials::from_pem(&cluster(), &pki.trusted, "", "").is_err());
}

#[tokio::test]
async fn an_agent_of_another_name_does_not_pass_for_the_expected_one() {
    let pki = Pki::new();
    let (_mesh, address) = pki.mesh("db2", echo().1).await;
    let why = refused(address, Expect::Node(node("db3")), &pki.node("db1")).await;
    assert!(why.contains("node/db2 answered"), "{why}");
    Client::connect(address, Expect::Node(node("db2")), &pki.node("db1")).await.expect("the right name is accepted");
}

#[tokio::test]
async fn the_database_servers_keys_open_nothing() {
    let pki = Pki::new();
    let (_mesh, address) = pki.mesh("db1", echo().1).await;
    for role in [Role::Replication("mainstay_replicator".to_owned()), Role::Server(node("db2"))] {
        let why = refused(address, Expect::AnyNode, &pki.credentials(&role)).await;
        assert!(why.contains("let us in"), "{role:?}: {why}");
        assert!(Mesh::with_credentials(pki.credentials(&role), None, BTreeMap::new()).is_err(), "{role:?}");
    }
}

#[tokio::test]
async fn a_proxys_key_does_not_make_an_agent() {
    // A proxy answers the database's clients; in an agent's place it can not.
    let pki = Pki::new();
    let mesh = Mesh::with_credentials(pki.proxy(), Some(loopback()), BTreeMap::new()).unwrap();
    let address = mesh.serve(echo().1, None).await.unwrap().unwrap();
    refused(address, Expect::AnyNode, &pki.node("db1")).await;
}

#[tokio::test]
async fn each_role_reaches_its_channels_only() {
    let pki = Pki::new();
    let (handler, handlers) = echo();
    let (_mesh, address) = pki.mesh("db1", handlers).await;
    // What a proxy may ask on that channel, its handler says.
    let of_proxy = vec![Channel::Raft, Channel::Store, Channel::Mind];
    let of_admin = [&of_proxy[..], &[Channel::Ask]].concat();
    for (credentials, closed) in [(pki.proxy(), of_proxy), (pki.admin(), of_admin)] {
        let client = Client::connect(address, Expect::AnyNode, &credentials).await.unwrap();
        for channel in closed {
            let answer = client.request(channel, b"x".to_vec(), SOON).await;
            assert!(matches!(&answer, Err(PeerError::Refused(text)) if text.contains("may not use")), "{answer:?}");
        }
        assert_eq!(client.request(Channel::Route, b"x".to_vec(), SOON).await, Ok(b"x".to_vec()));
        assert!(client.send(Channel::Mind, b"vote for me".to_vec()));
        tokio::time::timeout(SOON, client.closed()).await.expect("a message where none is allowed ends the connection");
    }
    assert!(handler.heard.lock().unwrap().is_empty(), "and is never heard");
    let client = Client::connect(address, Expect::AnyNode, &pki.node("db2")).await.unwrap();
    for channel in [Channel::Raft, Channel::Store, Channel::Mind, Channel::Ask, Channel::Route] {
        assert_eq!(client.request(channel, b"x".to_vec(), SOON).await, Ok(b"x".to_vec()));
    }
    assert!(client.send(Channel::Mind, b"hello".to_vec()));
    until("the message of a node", || handler.heard.lock().unwrap().len() == 1).await;
    assert_eq!(handler.heard.lock().unwrap()[0], (Caller::Node(node("db2")), b"hello".to_vec()));
}

#[tokio::test]
async fn a_proxys_mesh_without_a_port_asks_for_routes() {
    let pki = Pki::new();
    let (_mesh, address) = pki.mesh("db1", echo().1).await;
    let proxy = Mesh::with_credentials(pki.proxy(), None, [(node("db1"), address)].into()).unwrap();
    assert_eq!(proxy.serve(BTreeMap::new(), None).await.unwrap(), None);
    connected(&proxy, "db1").await;
    assert_eq!(proxy.request(&node("db1"), Channel::Route, b"r".to_vec(), SOON).await, Ok(b"r".to_vec()));
}

#[tokio::test]
async fn a_mesh_says_at_once_when_the_files_are_anothers() {
    let pki = Pki::new();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    pki.authority.write(&at("ca.crt"), &at("ca.key")).unwrap();
    let issued = pki.authority.issue(&Role::Node(node("db1")), &[]).unwrap();
    issued.write(&at("node.crt"), &at("node.key"), None, false).unwrap();
    let options = |me: &str, cluster: &str| MeshOptions {
        cluster: ClusterName::new(cluster).unwrap(),
        me: Caller::Node(node(me)),
        listen: None,
        peers: BTreeMap::new(),
        ca: at("ca.crt"),
        cert: at("node.crt"),
        key: at("node.key"),
    };
    assert!(Mesh::new(options("db1", "orders")).is_ok());
    assert!(matches!(Mesh::new(options("db2", "orders")), Err(NetError::Certificate(_))));
    assert!(matches!(Mesh::new(options("db1", "billing")), Err(NetError::Certificate(_))));
    let mut wrong = options("db1", "orders");
    wrong.key = at("nothing.key");
    assert!(matches!(Mesh::new(wrong), Err(NetError::File { .. })));
    tokio::time::sleep(Duration::from_millis(1)).await;
}
