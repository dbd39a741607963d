//! A proxy's settings while it runs: those of a later generation are taken when an agent tells of it, and SIGHUP, or `RELOAD` at its
//! console, reads them anew, without ending anybody's connection; and the plain listener where it tells its numbers.
//! Absent: what takes a new start (addresses, mode, threads).

use super::proxy::{newest_known, raise_descriptors, resolve};
use crate::target::Target;
use mainstay_agent::plain::{Pages, serve_pages};
use mainstay_model::spec::Proxy as Wanted;
use mainstay_model::stored_spec::StoredSpec;
use mainstay_model::{ClusterName, Span};
use mainstay_proxy::pool::{PoolOptions, Pooled};
use mainstay_proxy::{ProxyOptions, Stats, Whole};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

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
    /// Where nodes on this disk keep the newest specification that they have seen.
    pub(crate) caches: Vec<PathBuf>,
    /// The cluster whose proxy this is.
    pub(crate) cluster: ClusterName,
    /// The newest specification that agents have told of.
    pub(crate) agents: watch::Receiver<StoredSpec>,
}

impl Sources {
    /// The newest that can be had now. A disk may stall: not on a thread that serves.
    fn read(&self) -> Result<Wanted, String> {
        let target = Target::read(&self.config).map_err(|failure| failure.to_string())?;
        let named = target.spec.cluster.name.clone();
        if named != self.cluster {
            let file = self.config.display();
            return Err(format!("{file} describes the cluster {named} now; this is a proxy of {}", self.cluster));
        }
        let (kept, told) = (newest_known(target.spec, &self.caches), self.agents.borrow().clone());
        // Where no agent has told of one, an edited file counts.
        Ok(if told.generation > kept.generation { told.spec.proxy } else { kept.spec.proxy })
    }
}

impl Running {
    async fn asked(&self) {
        match self {
            Running::Whole(_) => std::future::pending().await,
            Running::Pooled(pooled) => pooled.reload_wanted().await,
        }
    }

    /// Tells whoever asked at the console.
    fn answer(&self, outcome: &Result<(), String>) {
        if let Running::Pooled(pooled) = self {
            pooled.reloaded(outcome);
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
    (pooling.size, pooling.reserve) = (count(wanted.pool_size), count(wanted.pool_reserve));
    pooling.queue = Span(wanted.queue_ms);
    pooling.commit_outcome = wanted.commit_outcome;
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

/// Follows the agents, SIGHUP and the console, for as long as the proxy runs.
pub(crate) fn follow(running: Running, begun_with: Wanted, mut sources: Sources) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return tracing::warn!(%error, "SIGHUP can not be heard: settings take a new start"),
    };
    sources.agents.mark_unchanged();
    let (mut agents, sources) = (sources.agents.clone(), Arc::new(sources));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                heard = hangup.recv() => if heard.is_none() { return },
                () = running.asked() => {}
                told = agents.changed() => {
                    if told.is_err() {
                        return;
                    }
                    // Nobody asked for the file to be read.
                    let told = agents.borrow_and_update().spec.proxy.clone();
                    take(&running, &begun_with, told);
                    continue;
                }
            }
            let again = Arc::clone(&sources);
            let read = tokio::task::spawn_blocking(move || again.read()).await;
            let outcome = match read.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(wanted) => {
                    take(&running, &begun_with, wanted);
                    Ok(())
                }
                Err(error) => {
                    tracing::error!(%error, "settings can not be read anew: the ones in use stay");
                    Err(error)
                }
            };
            running.answer(&outcome);
        }
    });
}

fn take(running: &Running, begun_with: &Wanted, wanted: Wanted) {
    let granted = raise_descriptors(count(wanted.max_connections));
    let wanted = capped(wanted, granted);
    running.take(&wanted);
    let next_start = later(begun_with, &wanted);
    tracing::info!(?next_start, "settings are read anew; what is named takes a new start of this proxy");
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
        let now = Wanted {
            pool_size: 7,
            pool_reserve: 2,
            hold_ms: 9,
            threads: 2,
            read_port: 1,
            max_connections: 3,
            ..before.clone()
        };
        assert_eq!(later(&before, &now), ["proxy.read_port", "proxy.threads"]);
        let (mut options, mut pooling) = (ProxyOptions::default(), PoolOptions::default());
        limits(&mut options, &now);
        sizes(&mut pooling, &now);
        assert_eq!((options.hold, options.max_connections, pooling.size), (Duration::from_millis(9), 3, 7));
        assert_eq!(pooling.reserve, 2);
        assert_eq!(pooling.threads, PoolOptions::default().threads);
    }

    #[test]
    fn the_newest_generation_counts_whoever_knows_it_and_another_clusters_file_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (config, one, two) = (dir.path().join("a.toml"), dir.path().join("1.json"), dir.path().join("2.json"));
        let file = |name: &str| {
            let node = "[[node]]\nname = \"db1\"\nhost = \"10.0.0.1\"\n";
            std::fs::write(&config, format!("[cluster]\nname = \"{name}\"\n{node}[proxy]\npool_size = 1\n")).unwrap();
        };
        file("a");
        let spec = Target::read(&config).unwrap().spec;
        let stored = |generation: u64| {
            let mut stored = StoredSpec { generation, ..StoredSpec::of_file(spec.clone()) };
            stored.spec.proxy.pool_size = 10 + u32::try_from(generation).unwrap();
            stored
        };
        let (told, agents) = watch::channel(stored(0));
        let cluster = spec.cluster.name.clone();
        let sources = Sources { config: config.clone(), caches: vec![one.clone(), two.clone()], cluster, agents };
        let size = || sources.read().map(|wanted| wanted.pool_size);
        assert_eq!(size(), Ok(1), "nobody knows a generation: the file");
        std::fs::write(&one, serde_json::to_vec(&stored(2)).unwrap()).unwrap();
        std::fs::write(&two, serde_json::to_vec(&stored(3)).unwrap()).unwrap();
        assert_eq!(size(), Ok(13));
        told.send_replace(stored(4));
        assert_eq!(size(), Ok(14));
        std::fs::write(&one, "{").unwrap();
        file("b");
        assert!(size().unwrap_err().contains("describes the cluster b now; this is a proxy of a"));
        std::fs::write(&config, "[cluster").unwrap();
        assert!(size().unwrap_err().contains("holds mistakes"));
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
