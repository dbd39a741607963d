//! How many clusters one etcd carries (the long suite: `cargo test --release -p mainstay-store --test etcd_many_long -- --nocapture`).
//!
//! The etcd is real; of each cluster there are the three nodes' doors to the store, which poll, watch and ask for the members' state as in an agent,
//! and one holder that renews its claim as a primary does. No servers and no agents: what they take is not the etcd's. Rows of more and more
//! clusters, until one is without a renewal for as long as a lease. `MAINSTAY_MEMBERS` (3): members of the etcd; `MAINSTAY_CLUSTERS` (`10,50,100,200,400`): the rows;
//! `MAINSTAY_SECONDS` (20): how long each is measured.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, too; a table is what it is for")]

#[path = "common/etcd_servers.rs"]
mod etcd_servers;

use etcd_servers::Etcd;
use mainstay_model::stored_spec::RECORD_KEY;
use mainstay_model::{NodeId, Revision};
use mainstay_ports::store::{CasOutcome, Store};
use mainstay_store::etcd::{EtcdOptions, EtcdStore, Found, found, look};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// As an agent does it with a lease of 3 s.
const RENEWAL: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_millis(750);
/// Without a renewal for so long the primary stands down.
const LEASE: Duration = Duration::from_secs(3);
/// About what a record of three nodes takes.
const RECORD: usize = 700;

fn number_of(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// One cluster: its nodes' doors.
struct Cluster {
    doors: Vec<Arc<EtcdStore>>,
    at: Option<Revision>,
}

impl Cluster {
    async fn open(endpoints: &[String], dir: &Path, number: u64) -> Cluster {
        let mut text =
            format!("[cluster]\nname = \"c{number}\"\n[store]\nkind = \"etcd\"\nendpoints = {endpoints:?}\n");
        for node in 1..=3 {
            text += &format!("[[node]]\nname = \"db{node}\"\nhost = \"10.0.0.{node}\"\n");
        }
        let spec = mainstay_model::config::parse(&text, &[]).unwrap();
        let mut doors = Vec::new();
        for node in 1..=3 {
            let node = NodeId::new(format!("db{node}")).unwrap();
            let kept = dir.join(format!("c{number}-{node}.json"));
            let options = EtcdOptions::of(&spec, &node, "ours".to_owned(), kept).unwrap();
            let until = Instant::now() + Duration::from_secs(30);
            doors.push(loop {
                match look(&options, Duration::from_secs(5)).await {
                    Ok(Found::Ours(origin, revision)) => {
                        break EtcdStore::start(options, Some((origin, revision))).unwrap();
                    }
                    Ok(Found::Nothing) => drop(found(&options, Duration::from_secs(5)).await),
                    Ok(Found::Foreign(why)) => panic!("{why}"),
                    Err(why) => assert!(Instant::now() < until, "{why}"),
                }
            });
        }
        let watched: Vec<_> = doors.iter().map(|door| door.watch(RECORD_KEY)).collect();
        drop(watched);
        Cluster { doors, at: None }
    }

    /// Renews until it is told to end; how long each renewal took, and the longest time without one.
    async fn renew(&mut self, number: u64, end: &AtomicBool, late: &AtomicU32) -> (Vec<Duration>, Duration) {
        // Clusters were not started in one moment.
        tokio::time::sleep(RENEWAL * u32::try_from(number % 50).unwrap() / 50).await;
        let (mut took, mut longest, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
        let mut turn = tokio::time::interval(RENEWAL);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut grant = 0_u64;
        while !end.load(Ordering::Relaxed) {
            turn.tick().await;
            grant += 1;
            let value = format!("{{\"grant\":{grant},\"rest\":\"{}\"}}", "x".repeat(RECORD)).into_bytes();
            let begun = Instant::now();
            match self.doors[0].compare_and_set(RECORD_KEY, self.at, value, TIMEOUT).await {
                CasOutcome::Done(revision) => {
                    self.at = Some(revision);
                    took.push(begun.elapsed());
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
                CasOutcome::Conflict(now) => self.at = now.map(|now| now.revision),
                CasOutcome::Unknown | CasOutcome::Unavailable(_) => drop(late.fetch_add(1, Ordering::Relaxed)),
            }
        }
        (took, longest.max(last.elapsed()))
    }
}

/// Processor time of these processes so far, seconds.
fn processor(pids: &[u32]) -> f64 {
    let of = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let words: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        words[11].parse::<f64>().unwrap() + words[12].parse::<f64>().unwrap()
    };
    pids.iter().map(of).sum::<f64>() / 100.0
}

fn quantile(sorted: &[Duration], of: usize) -> f64 {
    sorted
        .get((sorted.len() * of / 1000).min(sorted.len().saturating_sub(1)))
        .map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// How a row went.
struct Row {
    /// Renewals that did not come in time.
    late: u32,
    /// The longest that one cluster went without a renewal.
    longest: Duration,
}

/// Measures and prints one row.
async fn measure(clusters: &mut [Cluster], members: &[u32], seconds: u64) -> Row {
    let (end, late) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let own = [std::process::id()];
    let (before, before_own, begun) = (processor(members), processor(&own), Instant::now());
    let (mut took, mut longest) = (Vec::new(), Duration::ZERO);
    let count = clusters.len();
    let renewing = futures_of(clusters, &end, &late);
    let ending = async {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        end.store(true, Ordering::Relaxed);
    };
    let (results, ()) = tokio::join!(renewing, ending);
    for (times, gap) in results {
        took.extend(times);
        longest = longest.max(gap);
    }
    took.sort_unstable();
    let wall = begun.elapsed().as_secs_f64();
    println!(
        "{count:>9}{:>12.0}{:>9.1}{:>9.1}{:>9.1}{:>8}{:>10.2}{:>12.2}{:>9.2}",
        f64::from(u32::try_from(took.len()).unwrap()) / wall,
        quantile(&took, 500),
        quantile(&took, 990),
        quantile(&took, 1000),
        late.load(Ordering::Relaxed),
        longest.as_secs_f64(),
        (processor(members) - before) / wall,
        (processor(&own) - before_own) / wall,
    );
    Row { late: late.load(Ordering::Relaxed), longest }
}

/// All renew at once, each in a task of its own.
async fn futures_of(
    clusters: &mut [Cluster],
    end: &Arc<AtomicBool>,
    late: &Arc<AtomicU32>,
) -> Vec<(Vec<Duration>, Duration)> {
    let mut tasks = Vec::new();
    for (number, cluster) in (0..).zip(clusters.iter_mut()) {
        let mut renewing = Cluster { doors: cluster.doors.clone(), at: cluster.at };
        let (end, late) = (Arc::clone(end), Arc::clone(late));
        tasks.push(tokio::spawn(async move {
            let result = renewing.renew(number, &end, &late).await;
            (result, renewing.at)
        }));
    }
    let mut results = Vec::new();
    for (task, cluster) in tasks.into_iter().zip(clusters) {
        let (result, at) = task.await.unwrap();
        cluster.at = at;
        results.push(result);
    }
    results
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_etcd_carries_many_clusters() {
    let members = usize::try_from(number_of("MAINSTAY_MEMBERS", 3)).unwrap();
    let rows = std::env::var("MAINSTAY_CLUSTERS").unwrap_or_else(|_| "10,50,100,200,400".to_owned());
    let seconds = number_of("MAINSTAY_SECONDS", 20);
    let (etcd, dir) = (Etcd::start(members), tempfile::tempdir().unwrap());
    let (endpoints, pids) = (etcd.endpoints(), (0..members).map(|number| etcd.pid(number)).collect::<Vec<_>>());
    println!(
        "{members} members of an etcd; clusters of three nodes each; milliseconds, seconds without a renewal, cores"
    );
    println!(
        "{:>9}{:>12}{:>9}{:>9}{:>9}{:>8}{:>10}{:>12}{:>9}",
        "clusters", "renewals/s", "median", "p99", "worst", "failed", "without", "etcd cores", "clients"
    );
    let (mut clusters, mut carried) = (Vec::new(), 0);
    for row in rows.split(',').map(|row| row.trim().parse::<u64>().unwrap()) {
        while u64::try_from(clusters.len()).unwrap() < row {
            let number = u64::try_from(clusters.len()).unwrap();
            clusters.push(Cluster::open(&endpoints, dir.path(), number).await);
        }
        let measured = measure(&mut clusters, &pids, seconds).await;
        if measured.late == 0 {
            carried = row;
        }
        // A primary would have stood down.
        if measured.longest >= LEASE {
            break;
        }
    }
    println!("carried: {carried} clusters, each renewal in time");
    assert!(carried > 0, "not even the first row");
}
