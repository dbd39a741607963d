//! A proxy's settings while it runs: SIGHUP, or `RELOAD` at its console, reads them anew without ending anybody's connection; and the
//! plain listener where it tells its numbers. Absent: what takes a new start (addresses, mode, threads).

use super::proxy::{newest_known, raise_descriptors, resolve};
use crate::target::Target;
use mainstay_agent::plain::{Pages, serve_pages};
use mainstay_model::Span;
use mainstay_model::spec::Proxy as Wanted;
use mainstay_proxy::pool::{PoolOptions, Pooled};
use mainstay_proxy::{ProxyOptions, Stats, Whole};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// The proxy whose settings change.
pub(crate) enum Running {
    /// Of whole connections.
    Whole(Whole),
    /// Of a pool.
    Pooled(Pooled),
}

/// Where settings are read from.
pub(crate) struct Sources {
    /// The cluster's file.
    pub(crate) config: PathBuf,
    /// The newest specification that the node has kept, if this is a node's proxy.
    pub(crate) cache: Option<PathBuf>,
}

impl Running {
    async fn asked(&self) {
        match self {
            Running::Whole(_) => std::future::pending().await,
            Running::Pooled(pooled) => pooled.reload_wanted().await,
        }
    }

    fn take(&self, wanted: &Wanted) {
        match self {
            Running::Whole(whole) => whole.change(|options| limits(options, wanted)),
            Running::Pooled(pooled) => pooled.change(|options, pooling| {
                limits(options, wanted);
                sizes(pooling, wanted);
            }),
        }
    }
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// What a proxy may hold.
pub(crate) fn limits(options: &mut ProxyOptions, wanted: &Wanted) {
    options.max_lag_bytes = wanted.max_lag_bytes;
    options.hold = Duration::from_millis(wanted.hold_ms);
    (options.max_connections, options.max_held) = (count(wanted.max_connections), count(wanted.max_connections));
}

/// How many server connections clients share.
pub(crate) fn sizes(pooling: &mut PoolOptions, wanted: &Wanted) {
    (pooling.size, pooling.queue) = (count(wanted.pool_size), Span(wanted.queue_ms));
}

/// No more connections than there are descriptors for: the others are refused in words, not found out under load.
fn capped(wanted: Wanted, granted: usize) -> Wanted {
    let most = u32::try_from(granted).unwrap_or(u32::MAX);
    if most >= wanted.max_connections {
        return wanted;
    }
    tracing::warn!(max_connections = wanted.max_connections, taken = most, "max_connections is taken in part");
    Wanted { max_connections: most, ..wanted }
}

/// What takes a new start, and has changed.
fn later(before: &Wanted, now: &Wanted) -> Vec<&'static str> {
    let keys = [
        ("proxy.host", before.host != now.host),
        ("proxy.write_port", before.write_port != now.write_port),
        ("proxy.read_port", before.read_port != now.read_port),
        ("proxy.mode", before.mode != now.mode),
        ("proxy.threads", before.threads != now.threads),
        ("proxy.metrics_port", before.metrics_port != now.metrics_port),
    ];
    keys.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
}

/// Follows SIGHUP and the console, for as long as the proxy runs.
pub(crate) fn follow(running: Running, begun_with: Wanted, sources: Sources) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return tracing::warn!(%error, "SIGHUP can not be heard: settings take a new start"),
    };
    let sources = Arc::new(sources);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                heard = hangup.recv() => if heard.is_none() { return },
                () = running.asked() => {}
            }
            let again = Arc::clone(&sources);
            // A disk may stall.
            let read = tokio::task::spawn_blocking(move || {
                Target::read(&again.config).map(|target| newest_known(target.spec, again.cache.as_deref()).spec.proxy)
            });
            match read.await {
                Ok(Ok(wanted)) => {
                    let granted = raise_descriptors(count(wanted.max_connections));
                    let wanted = capped(wanted, granted);
                    running.take(&wanted);
                    let next_start = later(&begun_with, &wanted);
                    tracing::info!(
                        ?next_start,
                        "settings are read anew; what is named takes a new start of this proxy"
                    );
                }
                Ok(Err(error)) => tracing::error!(%error, "settings can not be read anew: the ones in use stay"),
                Err(error) => tracing::error!(%error, "settings can not be read anew: the ones in use stay"),
            }
        }
    });
}

/// Tells the proxy's numbers there. A port that is taken costs the numbers, not the proxy.
pub(crate) async fn tell(at: &Option<(String, u16)>, stats: &Arc<Stats>, pooled: Option<Pooled>) {
    let Some((host, port)) = at else { return };
    let bound = match resolve(host, *port).await {
        Ok(address) => TcpListener::bind(address).await.map_err(|error| error.to_string()),
        Err(failure) => Err(failure.to_string()),
    };
    match bound {
        Ok(listener) => drop(tokio::spawn(serve_pages(listener, pages(Arc::clone(stats), pooled)))),
        Err(why) => {
            tracing::error!(%host, port, why, "the proxy's numbers are told nowhere: choose another proxy.metrics_port")
        }
    }
}

fn pages(stats: Arc<Stats>, pooled: Option<Pooled>) -> Pages {
    Arc::new(move |path| match path {
        "/metrics" => {
            let of_pools = pooled.as_ref().map(Pooled::prometheus).unwrap_or_default();
            Some(("text/plain; version=0.0.4", stats.prometheus() + &of_pools))
        }
        "/stats" => {
            let mut value = stats.json();
            if let Some(pooled) = &pooled {
                value["pools"] = serde_json::to_value(pooled.numbers()).unwrap_or_default();
            }
            Some(("application/json", format!("{value}\n")))
        }
        "/health" => Some(("text/plain", "the proxy runs\n".to_owned())),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_a_new_start_is_named_and_the_rest_is_taken() {
        let before = Wanted::default();
        let now = Wanted { pool_size: 7, hold_ms: 9, threads: 2, read_port: 1, max_connections: 3, ..before.clone() };
        assert_eq!(later(&before, &now), ["proxy.read_port", "proxy.threads"]);
        let (mut options, mut pooling) = (ProxyOptions::default(), PoolOptions::default());
        limits(&mut options, &now);
        sizes(&mut pooling, &now);
        assert_eq!((options.hold, options.max_connections, pooling.size), (Duration::from_millis(9), 3, 7));
        assert_eq!(pooling.threads, PoolOptions::default().threads);
    }

    #[test]
    fn a_reload_takes_no_more_connections_than_the_system_grants() {
        let wanted = Wanted { max_connections: 900, ..Wanted::default() };
        assert_eq!(capped(wanted.clone(), 900), wanted);
        assert_eq!(capped(wanted, 400).max_connections, 400);
        // No system lets a process open so many.
        assert!((1..usize::MAX / 4).contains(&raise_descriptors(usize::MAX / 4)));
        assert_eq!(raise_descriptors(1), 1);
    }
}
