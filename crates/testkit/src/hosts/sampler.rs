//! The single-writer sampler: on every data host, through that host's own server and past the proxy, it tries again and again to write as
//! the application, and keeps what it was told, on which timeline, and when.
//!
//! All hosts share this machine's monotonic clock, so their moments can be compared. What is looked for: an old primary that
//! acknowledges after a newer one has acknowledged, although the newer one does not have that write.

use super::cluster::HostCluster;
use super::inside::Inside;
use crate::ledger::{self, connect};
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_postgres::Config;

/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(8);
/// Pause after a server took no connection.
const REFUSED: Duration = Duration::from_millis(15);
/// A server that answers nothing for this long is given up, and asked anew.
const PATIENCE: Duration = Duration::from_secs(4);
/// Samples kept of one server: an hour of them.
const SAMPLES_MAX: usize = 500_000;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS mainstay_samples \
     (run bigint NOT NULL, node text NOT NULL, sequence bigint NOT NULL, timeline integer NOT NULL)";
const INSERT: &str = "INSERT INTO mainstay_samples (run, node, sequence, timeline) VALUES ($1, $2, $3, \
     ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::integer) RETURNING timeline";

/// One acknowledged write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The server's node.
    pub node: String,
    /// Its number there.
    pub sequence: i64,
    /// The timeline it was written on.
    pub timeline: i32,
    /// When the acknowledgement was there, since the sampler began.
    pub acknowledged: Duration,
}

/// A sampler at work.
pub struct Sampler {
    run: i64,
    stop: Arc<AtomicBool>,
    tried: Arc<AtomicU64>,
    servers: Vec<(Inside, JoinHandle<Vec<Sample>>)>,
}

/// What it saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Single {
    /// Attempts on all servers.
    pub tried: u64,
    /// Acknowledged writes.
    pub acknowledged: usize,
    /// Timelines on which writes were acknowledged.
    pub timelines: Vec<i32>,
    /// Acknowledged by an older primary after a newer one had, but known to the newer: allowed, and rare.
    pub late: usize,
    /// The same, and the newer one does not know it: two primaries.
    pub overlaps: Vec<Sample>,
    /// Acknowledged at any time, and not there.
    pub lost: Vec<Sample>,
}

impl Single {
    /// Never two primaries, nothing lost.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.overlaps.is_empty() && self.lost.is_empty()
    }
}

impl Sampler {
    /// Makes the table if need be, and starts on every data host.
    ///
    /// # Errors
    /// When the table can not be made, or a host not entered.
    pub async fn start(cluster: &HostCluster, client: &Inside) -> Result<Sampler> {
        let config = ledger::config(&cluster.uri())?;
        client.run(ledger::reach(config, "the samples' table", TABLE, None)).await??;
        let run = ledger::unique()?;
        let (stop, tried, begun) = (Arc::new(AtomicBool::new(false)), Arc::default(), Instant::now());
        let mut servers = Vec::new();
        for (node, host) in cluster.data_nodes() {
            let inside = host.inside()?;
            let task = Task {
                config: ledger::config(&cluster.server_uri(host))?,
                run,
                node: node.to_string(),
                begun,
                stop: Arc::clone(&stop),
                tried: Arc::clone(&tried),
            };
            let handle = inside.handle().spawn(task.sample());
            servers.push((inside, handle));
        }
        Ok(Sampler { run, stop, tried, servers })
    }

    /// Ends it, and compares with the cluster's data.
    ///
    /// # Errors
    /// When the cluster's data can not be had.
    pub async fn finish(self, cluster: &HostCluster, client: &Inside) -> Result<Single> {
        self.finish_all(cluster, client).await.map(|(single, _)| single)
    }

    /// The same, with every sample.
    ///
    /// # Errors
    /// When the cluster's data can not be had.
    pub async fn finish_all(self, cluster: &HostCluster, client: &Inside) -> Result<(Single, Vec<Sample>)> {
        self.stop.store(true, Ordering::SeqCst);
        let mut samples = Vec::new();
        for (_inside, server) in self.servers {
            samples.extend(server.await.context("a sampler failed")?);
        }
        let select = "SELECT node, sequence FROM mainstay_samples WHERE run = $1";
        let asked = ledger::reach(ledger::config(&cluster.uri())?, "the samples", select, Some(self.run));
        let rows = client.run(asked).await??;
        let there = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        Ok((judge(&samples, &there, self.tried.load(Ordering::Relaxed)), samples))
    }
}

struct Task {
    config: Config,
    run: i64,
    node: String,
    begun: Instant,
    stop: Arc<AtomicBool>,
    tried: Arc<AtomicU64>,
}

impl Task {
    async fn sample(mut self) -> Vec<Sample> {
        let (mut samples, mut sequence) = (Vec::new(), 0i64);
        // What waits for an answer longer is abandoned: an old server may answer late, but then nobody hears it.
        self.config.connect_timeout(PATIENCE);
        while !self.stop.load(Ordering::Relaxed) {
            self.tried.fetch_add(1, Ordering::Relaxed);
            let Ok(Ok((session, warnings))) = tokio::time::timeout(PATIENCE, connect(&self.config)).await else {
                tokio::time::sleep(REFUSED).await;
                continue;
            };
            let _ = self.converse(&session, &warnings, &mut sequence, &mut samples).await;
            tokio::time::sleep(REFUSED).await;
        }
        samples
    }

    /// Writes over one connection until it breaks or the server becomes a replica.
    async fn converse(
        &self,
        session: &tokio_postgres::Client,
        warnings: &AtomicU64,
        sequence: &mut i64,
        samples: &mut Vec<Sample>,
    ) -> Result<()> {
        let asked = session.prepare("SELECT pg_is_in_recovery()");
        let replica = tokio::time::timeout(PATIENCE, asked).await??;
        let insert = tokio::time::timeout(PATIENCE, session.prepare(INSERT)).await??;
        while !self.stop.load(Ordering::Relaxed) && samples.len() < SAMPLES_MAX {
            self.tried.fetch_add(1, Ordering::Relaxed);
            let row = tokio::time::timeout(PATIENCE, session.query_one(&replica, &[])).await??;
            // Asked first: a refused write would be a line in the server's log, every time.
            if !row.get::<_, bool>(0) {
                *sequence += 1;
                let warned = warnings.load(Ordering::SeqCst);
                let number = *sequence;
                let write = async { session.query_one(&insert, &[&self.run, &self.node, &number]).await };
                let row = tokio::time::timeout(PATIENCE, write).await??;
                let acknowledged = self.begun.elapsed();
                if warnings.load(Ordering::SeqCst) == warned {
                    samples.push(Sample {
                        node: self.node.clone(),
                        sequence: number,
                        timeline: row.get(0),
                        acknowledged,
                    });
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

fn judge(samples: &[Sample], there: &BTreeSet<(String, i64)>, tried: u64) -> Single {
    let timelines: BTreeSet<i32> = samples.iter().map(|sample| sample.timeline).collect();
    let first = |timeline: i32| {
        let newer = samples.iter().filter(move |sample| sample.timeline > timeline);
        newer.map(|sample| sample.acknowledged).min()
    };
    let newer_began: Vec<(i32, Option<Duration>)> =
        timelines.iter().map(|timeline| (*timeline, first(*timeline))).collect();
    let mut single = Single { tried, acknowledged: samples.len(), ..Single::default() };
    for sample in samples {
        let present = there.contains(&(sample.node.clone(), sample.sequence));
        let began = newer_began.iter().find(|(timeline, _)| *timeline == sample.timeline).and_then(|(_, began)| *began);
        let after_newer = began.is_some_and(|began| sample.acknowledged > began);
        if !present {
            single.lost.push(sample.clone());
        }
        match (after_newer, present) {
            (true, true) => single.late += 1,
            (true, false) => single.overlaps.push(sample.clone()),
            _ => {}
        }
    }
    single.timelines = timelines.into_iter().collect();
    single
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(node: &str, sequence: i64, timeline: i32, at: u64) -> Sample {
        Sample { node: node.to_owned(), sequence, timeline, acknowledged: Duration::from_millis(at) }
    }

    #[test]
    fn an_old_primary_that_goes_on_is_found() {
        let samples =
            [sample("db1", 1, 1, 10), sample("db2", 1, 2, 20), sample("db1", 2, 1, 21), sample("db1", 3, 1, 22)];
        let there = BTreeSet::from([("db1".to_owned(), 1), ("db2".to_owned(), 1), ("db1".to_owned(), 2)]);
        let single = judge(&samples, &there, 9);
        assert_eq!((single.late, single.overlaps.as_slice()), (1, [samples[3].clone()].as_slice()));
        assert_eq!((single.lost.len(), single.timelines.as_slice(), single.acknowledged), (1, [1, 2].as_slice(), 4));
        assert!(!single.is_clean());
    }

    #[test]
    fn one_after_the_other_is_clean_and_a_loss_is_not() {
        let samples = [sample("db1", 1, 1, 10), sample("db2", 1, 2, 20)];
        let both = BTreeSet::from([("db1".to_owned(), 1), ("db2".to_owned(), 1)]);
        assert!(judge(&samples, &both, 2).is_clean());
        let one = BTreeSet::from([("db2".to_owned(), 1)]);
        assert!(!judge(&samples, &one, 2).is_clean());
    }
}
