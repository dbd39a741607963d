//! Keeps the embedded store's leadership off the primary's host where it can be: the loss of that host then costs a take-over, not a
//! take-over after an election of the store.

use crate::generations::Generations;
use crate::intent::Intent;
use crate::mind_loop::Question;
use crate::routes::Routes;
use mainstay_model::NodeId;
use mainstay_model::layout::NodeLayout;
use mainstay_ports::clock::boot_now;
use mainstay_ports::peer::Peers;
use mainstay_store::{ClusterStore, RaftStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{debug, info};

const PAUSE: Duration = Duration::from_secs(1);

/// Starts what one kind of store asks for and the other does not.
pub fn start(
    me: NodeId,
    store: &ClusterStore,
    peers: Arc<dyn Peers>,
    routes: Routes,
    questions: mpsc::Sender<Question>,
    generations: &Arc<Generations>,
) {
    match store {
        ClusterStore::Raft(raft) => drop(tokio::spawn(keep_apart(me, Arc::clone(raft), peers, routes))),
        ClusterStore::Etcd(etcd) => {
            let (etcd, generations) = (Arc::clone(etcd), Arc::clone(generations));
            tokio::spawn(crate::etcd::hold_against_the_nodes(me, etcd, peers, questions, generations));
        }
    }
}

/// While this node is the open primary and leads the store, passes the store's leadership to a connected member.
pub async fn keep_apart(me: NodeId, store: Arc<RaftStore>, peers: Arc<dyn Peers>, routes: Routes) {
    loop {
        tokio::time::sleep(PAUSE).await;
        if store.leader().as_ref() != Some(&me) || !routes.open(boot_now()) {
            continue;
        }
        let voters = store.members().into_iter().filter(|member| !member.learner).map(|member| member.node);
        let Some(to) = voters.into_iter().find(|node| *node != me && peers.connected(node)) else { continue };
        debug!(%to, "passing the store's leadership on");
        let _ = store.transfer_leader(&to).await;
    }
}

/// The intent to join another store is done once its leader has taken this node in.
pub async fn clear_once_taken_in(store: Arc<RaftStore>, layout: NodeLayout) {
    while store.standing().joining {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    info!("the store's leader has taken this node in");
    Intent::clear(&layout);
}
