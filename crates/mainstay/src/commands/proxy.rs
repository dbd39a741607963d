//! `mainstay proxy`: the data plane. Asks every agent for its route over mutual TLS and lets client connections follow it.

use crate::cli::Proxy;
use crate::failure::{Failure, Outcome};
use crate::target::Target;
use mainstay_model::NodeId;
use mainstay_net::{Credentials, Mesh};
use mainstay_ports::peer::{Channel, Handlers, Peers as _};
use mainstay_proxy::{ProxyOptions, Stats, feed};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::sync::mpsc;

/// The name in the proxy's certificate that `up` makes.
pub(crate) const NAME: &str = "local";
/// How long one question to an agent may take; the feed itself is stricter.
const ANSWER: Duration = Duration::from_secs(2);
/// Reports on their way to the proxy.
const REPORTS_MAX: usize = 256;
/// Threads; as many as cores up to this.
const WORKERS_MAX: usize = 8;

/// Runs the proxy until SIGTERM.
///
/// # Errors
/// When its addresses can not be listened on, or its certificate is missing.
pub(crate) fn run(options: &Proxy) -> Outcome {
    super::start_log();
    let target = Target::read(&crate::target::absolute(&options.config)?)?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let outcome = super::daemon(workers, serve(target));
    if let Err(failure) = &outcome {
        tracing::error!(error = %failure, "the proxy ends");
    }
    outcome
}

/// Each connection costs two descriptors; where the system allows less, it is said instead of found out under load.
fn raise_descriptors(connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_mul(2).saturating_add(200);
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let most = now.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: now.maximum });
    if raised.is_err() || most < wanted {
        tracing::warn!(
            wanted,
            allowed = most,
            "fewer connections than max_connections: the limit on open files is too low"
        );
    }
}

async fn serve(target: Target) -> Outcome {
    let options = options(&target).await?;
    raise_descriptors(options.max_connections);
    let mut peers = BTreeMap::new();
    for node in &target.spec.nodes {
        peers.insert(node.name.clone(), resolve(&node.host, node.agent_port).await?);
    }
    let nodes: Vec<NodeId> = peers.keys().cloned().collect();
    let layout = &target.layout;
    let (cert, key) = (layout.proxy_cert(), layout.proxy_key());
    // The proxy is called as its certificate says.
    let mesh = Credentials::load(&target.spec.cluster.name, &layout.ca_cert(), &cert, &key)
        .and_then(|credentials| Mesh::with_credentials(credentials, None, peers))
        .map_err(|error| {
            Failure::failed(error.to_string()).hint("`mainstay join --proxy NAME` makes this host's certificate")
        })?;
    mesh.serve(Handlers::new(), None).await.map_err(|error| Failure::failed(error.to_string()))?;
    let (reports, heard) = mpsc::channel(REPORTS_MAX);
    for node in nodes {
        let (mesh, asked) = (Arc::clone(&mesh), node.clone());
        let ask = move |body: Vec<u8>| {
            let (mesh, node) = (Arc::clone(&mesh), asked.clone());
            async move { mesh.request(&node, Channel::Route, body, ANSWER).await }
        };
        tokio::spawn(feed(node, ask, reports.clone()));
    }
    drop(reports);
    let stop = async {
        let _ = super::end_signal().await;
        tracing::info!("asked to end");
    };
    mainstay_proxy::run(options, heard, Arc::new(Stats::default()), stop)
        .await
        .map_err(|error| Failure::failed(error.to_string()))
}

/// Where it listens and what it may hold, from the cluster's file.
async fn options(target: &Target) -> Outcome<ProxyOptions> {
    let proxy = &target.spec.proxy;
    let host = proxy.host.clone().unwrap_or_else(|| "0.0.0.0".to_owned());
    let write = resolve(&host, proxy.write_port).await?;
    let read = resolve(&host, proxy.read_port).await?;
    let most = usize::try_from(proxy.max_connections).unwrap_or(usize::MAX);
    Ok(ProxyOptions {
        max_lag_bytes: proxy.max_lag_bytes,
        hold: Duration::from_millis(proxy.hold_ms),
        max_connections: most,
        max_held: most,
        ..ProxyOptions::new(vec![write], vec![read])
    })
}

async fn resolve(host: &str, port: u16) -> Outcome<SocketAddr> {
    let mut found =
        lookup_host((host, port)).await.map_err(|error| Failure::failed(format!("host {host:?}: {error}")))?;
    found.next().ok_or_else(|| Failure::failed(format!("host {host:?} has no address")))
}
