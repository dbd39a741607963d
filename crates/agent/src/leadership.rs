//! Keeps the embedded store's leadership off the primary's host where it can be: the loss of that host then costs a take-over, not a
//! take-over after an election of the store.

use crate::routes::Routes;
use mainstay_model::NodeId;
use mainstay_ports::clock::boot_now;
use mainstay_ports::peer::Peers;
use mainstay_store::RaftStore;
use std::sync::Arc;
use std::time::Duration;
use tracing::debug;

const PAUSE: Duration = Duration::from_secs(1);

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
