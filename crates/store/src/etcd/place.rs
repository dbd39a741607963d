//! The cluster's place in etcd, before there is a store: whose keys stand there, and who else looks at the same etcd.

use super::EtcdOptions;
use super::client::{Client, Fault};
use super::follow;
use super::kept::{Kept, ORIGIN_KEY, Origin};
use super::wire::{Range, Txn, at, put, range, remove};
use mainstay_model::etcd::EtcdStanding;
use mainstay_model::{NodeId, Revision};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Below it each node that would found writes its mark.
const MARKS: &str = "founding/";
/// A survey waits no longer for the etcd as a whole.
const LOOK_LIMIT: Duration = Duration::from_secs(3);

/// What stands in etcd under the cluster's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// This cluster's keys.
    Ours(Origin, Revision),
    /// Something else: why this node keeps off.
    Foreign(String),
}

/// Looks whose keys stand in etcd. Changes nothing.
///
/// # Errors
/// When etcd does not answer in time: by which member, and why.
pub async fn look(options: &EtcdOptions, timeout: Duration) -> Result<Found, String> {
    look_by(&options.client(), options, Instant::now() + timeout).await
}

pub(super) async fn look_by(client: &Client, options: &EtcdOptions, deadline: Instant) -> Result<Found, String> {
    let key = format!("{}{ORIGIN_KEY}", options.prefix);
    let read = client.read::<Range>("/v3/kv/range", &range(&key, false, false), deadline).await;
    let Some(pair) = read.map_err(Fault::text)?.kvs.pop() else { return Ok(Found::Nothing) };
    let origin = match serde_json::from_slice::<Origin>(&pair.value) {
        Ok(origin) => origin,
        Err(error) => return Ok(Found::Foreign(format!("the key {key} is not of this program's making: {error}"))),
    };
    if origin.authority != options.authority {
        return Ok(Found::Foreign(format!(
            "the keys under {} are another cluster's, of the same name and with another authority: give this one another store.prefix, or, \
             if that cluster is gone for good, remove its keys (etcdctl del --prefix {})",
            options.prefix, options.prefix
        )));
    }
    Ok(Found::Ours(origin, Revision(pair.mod_revision)))
}

/// Asks every member, and etcd as a whole, once.
pub async fn survey(options: &EtcdOptions) -> EtcdStanding {
    let client = options.client();
    let (members, alarms) = follow::ask_members(&client).await;
    let looked = look_by(&client, options, Instant::now() + LOOK_LIMIT).await;
    EtcdStanding { works: looked.is_ok(), why: looked.err(), members, alarms: alarms.unwrap_or_default() }
}

/// Writes this node's mark, for others to find in their etcd: that it is the same one. Addresses do not tell (`127.0.0.1`), and neither
/// does an etcd's own id: two that were set up alike have the same.
///
/// # Errors
/// When etcd does not answer in time, or refuses.
pub async fn leave_mark(options: &EtcdOptions, node: &NodeId, mark: &str, timeout: Duration) -> Result<(), String> {
    let key = format!("{}{MARKS}{node}", options.prefix);
    let body = json!({ "compare": [], "success": [put(&key, mark.as_bytes())] });
    let written = options.client().write::<Txn>("/v3/kv/txn", &body, Instant::now() + timeout).await;
    written.map(|_| ()).map_err(Fault::text)
}

/// The marks that stand in this etcd.
///
/// # Errors
/// When etcd does not answer in time.
pub async fn marks(options: &EtcdOptions, timeout: Duration) -> Result<BTreeMap<String, String>, String> {
    let prefix = format!("{}{MARKS}", options.prefix);
    let body = range(&prefix, true, false);
    let read = options.client().read::<Range>("/v3/kv/range", &body, Instant::now() + timeout).await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
    let pairs = read.map_err(Fault::text)?.kvs.into_iter();
    Ok(pairs.filter_map(|pair| Some((text(pair.key)?.strip_prefix(&prefix)?.to_owned(), text(pair.value)?))).collect())
}

/// Marks the place as this cluster's, if nothing stands there, and takes the nodes' marks away. Another node may be faster: look again.
///
/// # Errors
/// When etcd does not answer in time, or refuses, or another cluster's place is above or below this one.
pub async fn found(options: &EtcdOptions, timeout: Duration) -> Result<(), String> {
    let (client, deadline) = (options.client(), Instant::now() + timeout);
    if let Some(key) = neighbour(&client, options, deadline).await? {
        return Err(format!(
            "the keys of another cluster, with {key}, would stand above or below those of this one, {}: give one of them another store.prefix",
            options.prefix
        ));
    }
    let key = format!("{}{ORIGIN_KEY}", options.prefix);
    let origin = Origin { authority: options.authority.clone(), ..Origin::default() };
    let value = serde_json::to_vec(&origin).map_err(|error| error.to_string())?;
    let puts = [put(&key, &value), remove(&format!("{}{MARKS}", options.prefix))];
    let body = json!({ "compare": [at(&key, 0)], "success": puts });
    client.write::<Txn>("/v3/kv/txn", &body, deadline).await.map(|_| ()).map_err(Fault::text)
}

/// The origin of a cluster whose keys stand below this one's, or around them.
async fn neighbour(client: &Client, options: &EtcdOptions, deadline: Instant) -> Result<Option<String>, String> {
    let own = format!("{}{ORIGIN_KEY}", options.prefix);
    let below = client.read::<Range>("/v3/kv/range", &range(&options.prefix, true, true), deadline).await;
    let is_origin = |key: &String| *key != own && key.ends_with(&format!("/{ORIGIN_KEY}"));
    let mut names = below.map_err(Fault::text)?.kvs.into_iter().filter_map(|pair| String::from_utf8(pair.key).ok());
    if let Some(key) = names.find(is_origin) {
        return Ok(Some(key));
    }
    for key in around(&options.prefix) {
        match client.read::<Range>("/v3/kv/range", &range(&key, false, true), deadline).await {
            Ok(found) if !found.kvs.is_empty() => return Ok(Some(key)),
            Ok(_) => {}
            // A user of etcd that may see this cluster's keys only.
            Err(Fault::Never(why)) if why.contains("permission denied") => {}
            Err(fault) => return Err(fault.text()),
        }
    }
    Ok(None)
}

/// Where the origins of clusters around this place would stand: `PREFIX/CLUSTER/` has two parts at least.
fn around(place: &str) -> Vec<String> {
    let parts: Vec<&str> = place.trim_matches('/').split('/').collect();
    (2..parts.len()).map(|count| format!("/{}/{ORIGIN_KEY}", parts[..count].join("/"))).collect()
}

/// Has this node ever seen the cluster's keys in an etcd?
///
/// # Errors
/// When what it kept can not be read.
pub fn has_seen(options: &EtcdOptions) -> Result<bool, String> {
    Kept::load(&options.kept).map(|kept| kept.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_around_a_place_are_looked_for_where_they_can_be() {
        assert_eq!(around("/mainstay/orders/"), Vec::<String>::new());
        assert_eq!(around("/a/b/c/d/"), ["/a/b/origin", "/a/b/c/origin"]);
    }
}
