//! The etcd that is a local cluster's store, asked before the cluster is made or started, and after it was removed. Nothing in it is changed.

use crate::failure::{Failure, Outcome};
use crate::output::progress::Progress;
use mainstay_model::etcd::advice;
use mainstay_model::layout::ClusterLayout;
use mainstay_model::spec::Spec;
use mainstay_net::pki;
use mainstay_store::etcd::{EtcdOptions, Found, look};
use std::time::Duration;

/// How long etcd may take.
const LOOK: Duration = Duration::from_secs(3);

/// Whose keys stand under the cluster's name, and where. `authority`: the cluster's, or nothing if it has none yet.
async fn ask(spec: &Spec, layout: &ClusterLayout, authority: &str) -> Result<(String, Found), String> {
    let node = spec.nodes.first().ok_or("the cluster has no node")?;
    let options = EtcdOptions::of(spec, &node.name, authority.to_owned(), layout.node(&node.name).etcd())?;
    Ok((options.prefix().to_owned(), look(&options, LOOK).await?))
}

fn authority(layout: &ClusterLayout) -> Result<String, String> {
    let path = layout.ca_cert();
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    pki::fingerprint(&text).map_err(|error| error.to_string())
}

/// May a new cluster of this name be made?
///
/// # Errors
/// When etcd does not answer, or keys of another cluster stand there.
pub(crate) async fn check_new(spec: &Spec, layout: &ClusterLayout) -> Outcome {
    if !spec.store.is_etcd() {
        return Ok(());
    }
    match ask(spec, layout, "").await {
        Ok((_, Found::Nothing)) => Ok(()),
        Ok((prefix, Found::Ours(..) | Found::Foreign(_))) => Err(Failure::not_now(format!(
            "the etcd {} holds the keys of another cluster of the name {}, under {prefix}",
            spec.store.endpoints.join(", "),
            spec.cluster.name
        ))
        .hint(format!(
            "choose another --name; or, if that cluster is gone for good, remove its keys: {}; nothing was changed",
            removal(spec, &prefix)
        ))),
        Err(why) => Err(Failure::not_now(format!("the etcd that is to be the store does not answer: {why}")).hint(
            format!("{}; nothing was changed", advice(&why).unwrap_or("start it, or say with --etcd where it is")),
        )),
    }
}

/// May the cluster be started that is there? An etcd that does not answer may come back while it starts: that is said only.
///
/// # Errors
/// When keys of another cluster stand there.
pub(crate) async fn check_start(spec: &Spec, layout: &ClusterLayout, progress: &Progress) -> Outcome {
    if !spec.store.is_etcd() {
        return Ok(());
    }
    let asked = async { ask(spec, layout, &authority(layout)?).await };
    match asked.await {
        Ok((_, Found::Foreign(why))) => Err(Failure::not_now(why).hint("nothing was started")),
        Ok(_) => Ok(()),
        Err(why) => {
            progress.say(&format!("The etcd that is the store does not answer yet: {why}"));
            if let Some(advice) = advice(&why) {
                progress.say(&format!("To do: {advice}"));
            }
            Ok(())
        }
    }
}

/// What of the cluster stays in etcd when its directory is removed.
pub(crate) struct Left {
    /// Where its keys stand.
    pub(crate) prefix: String,
    /// What to tell.
    pub(crate) text: String,
}

/// Looks for it. To be asked while the directory is still there. `None`: nothing of this cluster.
pub(crate) async fn left(spec: &Spec, layout: &ClusterLayout) -> Option<Left> {
    if !spec.store.is_etcd() {
        return None;
    }
    let asked = async { ask(spec, layout, &authority(layout)?).await };
    match asked.await {
        Ok((prefix, Found::Ours(..))) => {
            let text = format!(
                "Its keys stay in etcd; before they are removed no other cluster of this name can be made there: {}",
                removal(spec, &prefix)
            );
            Some(Left { prefix, text })
        }
        Ok((_, Found::Nothing | Found::Foreign(_))) => None,
        Err(why) => {
            let prefix = format!("{}/{}/", spec.store.prefix, spec.cluster.name);
            let text = format!(
                "Its keys may have stayed in etcd, which does not answer ({why}); look, and remove them: {}",
                removal(spec, &prefix)
            );
            Some(Left { prefix, text })
        }
    }
}

/// The command that removes a cluster's keys.
fn removal(spec: &Spec, prefix: &str) -> String {
    let guarded = spec.store.ca_file.is_some() || spec.store.user.is_some();
    let with = if guarded { " (with etcd's certificates, and a user who may)" } else { "" };
    format!("etcdctl --endpoints={} del --prefix {prefix}{with}", spec.store.endpoints.join(","))
}
