//! Direct evidence about a node whose connection broke: does anybody listen on its ports?
//!
//! A refused connection comes from a living kernel and says that the process is gone; silence says nothing, and is left to
//! the suspicion time.

use mainstay_decide::io::{Evidence, Input};
use mainstay_model::NodeId;
use mainstay_ports::peer::Peers;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

/// One attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);
/// Pause between looks.
const PAUSE: Duration = Duration::from_millis(40);
/// How often to look before giving up: with the pause about two leases, so that the end of a server whose agent died is seen.
const LOOKS: u32 = 150;

/// Where a node listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Its agent.
    pub agent: SocketAddr,
    /// Its database server; `None` on a witness.
    pub server: Option<SocketAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Refused,
    Accepts,
    Silent,
}

async fn look(address: SocketAddr) -> Look {
    match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Look::Accepts,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Look::Refused,
        _ => Look::Silent,
    }
}

/// Follows the links of all peers, passes each change on, and looks at the ports of a peer whose link fell.
pub async fn watch_links(
    peers: Arc<dyn Peers>,
    ports: watch::Receiver<BTreeMap<NodeId, Ports>>,
    inputs: mpsc::Sender<Input>,
) {
    use tokio::sync::broadcast::error::RecvError;
    let mut links = peers.links();
    loop {
        match links.recv().await {
            Ok(change) => {
                if inputs.send(Input::PeerLink(change.node.clone(), change.up)).await.is_err() {
                    return;
                }
                let known = ports.borrow().get(&change.node).copied();
                if let (false, Some(ports)) = (change.up, known) {
                    tokio::spawn(gather(Arc::clone(&peers), change.node, ports, inputs.clone()));
                }
            }
            // Changes were missed: tell the present state of every peer instead.
            Err(RecvError::Lagged(_)) => {
                let nodes: Vec<NodeId> = ports.borrow().keys().cloned().collect();
                for node in nodes {
                    let _ = inputs.send(Input::PeerLink(node.clone(), peers.connected(&node))).await;
                }
            }
            Err(RecvError::Closed) => return,
        }
    }
}

async fn gather(peers: Arc<dyn Peers>, node: NodeId, ports: Ports, inputs: mpsc::Sender<Input>) {
    let mut told = None;
    for _ in 0..LOOKS {
        if peers.connected(&node) {
            return;
        }
        let agent = look(ports.agent).await;
        let server = match ports.server {
            Some(address) => look(address).await,
            None => Look::Refused,
        };
        let evidence = match (agent, server) {
            (Look::Refused, Look::Refused) => Some(Evidence::AllRefused),
            (Look::Refused, Look::Accepts) => Some(Evidence::AgentRefused),
            (Look::Accepts, Look::Refused) => Some(Evidence::ServerRefused),
            _ => None,
        };
        if evidence.is_some() && evidence != told {
            told = evidence;
            if let Some(evidence) = evidence
                && inputs.send(Input::Evidence(node.clone(), evidence)).await.is_err()
            {
                return;
            }
        }
        if evidence == Some(Evidence::AllRefused) {
            return;
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_listener_accepts_and_a_closed_port_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(look(address).await == Look::Accepts);
        drop(listener);
        assert!(look(address).await == Look::Refused);
    }
}
