//! The etcd that is the store, asked from this host with the node's own files.

use mainstay_model::etcd::EtcdStanding;
use mainstay_model::layout::NodeLayout;
use mainstay_model::spec::{Node, Spec};
use mainstay_plan::doctor::facts::Reading;
use mainstay_store::etcd::{EtcdOptions, survey};

/// `None`: the nodes themselves are the store.
pub(super) async fn read(spec: &Spec, node: &Node, layout: &NodeLayout) -> Option<Reading<EtcdStanding>> {
    if !spec.store.is_etcd() {
        return None;
    }
    let options = EtcdOptions::of(spec, &node.name, String::new(), layout.etcd());
    Some(match options {
        Ok(options) => Ok(survey(&options).await),
        Err(why) => Err(why),
    })
}
