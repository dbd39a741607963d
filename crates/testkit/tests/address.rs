//! The address that goes with the primary, on virtual hosts (needs root): it follows every take-over, a host whose agent hangs loses it, and never
//! do two hosts that have it both acknowledge writes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use mainstay_model::NodeId;
use mainstay_model::status::{NodeStatus, Status};
use mainstay_testkit::hosts::host::Host;
use mainstay_testkit::hosts::inside::Inside;
use mainstay_testkit::hosts::{ADDRESS, HostCluster, Shape};
use mainstay_testkit::processes::Pinned;
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::NoTls;

/// Whatever is waited for comes within this, on a busy machine too.
const SOON: Duration = Duration::from_secs(60);
/// A lease of three seconds less its margin, and what the kernel's clock of whole seconds adds, with room for a busy machine.
const LEASE: Duration = Duration::from_millis(4500);

/// Who waits for an answer from an address that has gone hears of it within this, and so does whoever knew the old place.
const TOLD: Duration = Duration::from_secs(1);
/// No client is without an answer for longer, whatever happened: a lease, a take-over, and what drivers with limits of two seconds add.
const PAUSE: Duration = Duration::from_secs(25);

/// Has the network of this process the address? The kernel's own table says.
fn has(init: u32) -> bool {
    let wanted = format!("|-- {}", ADDRESS.0);
    let table = std::fs::read_to_string(format!("/proc/{init}/net/fib_trie")).unwrap_or_default();
    let mut lines = table.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line == wanted && lines.next().is_some_and(|next| next.contains("host LOCAL")) {
            return true;
        }
    }
    false
}

/// One acknowledged write; says which server wrote.
async fn write(uri: &str) -> Result<String, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(uri, NoTls).await?;
    let connection = tokio::spawn(connection);
    let sql = "insert into beats values (default) returning host(inet_server_addr())";
    let written = client.query_one(sql, &[]).await.map(|row| row.get(0));
    connection.abort();
    written
}

/// A host that is looked at from inside its own network.
struct Spot {
    init: u32,
    uri: String,
    inside: Inside,
}

/// Looks all the time whether two hosts have the address (`doubled` counts how often), and if so, whether both of them acknowledge a write.
fn watch(cluster: &HostCluster, stop: Arc<AtomicBool>, doubled: Arc<AtomicU64>) -> JoinHandle<Vec<String>> {
    let of = |host: &Host| Spot { init: host.init(), uri: cluster.server_uri(host), inside: host.inside().unwrap() };
    let spots: Vec<Spot> = cluster.hosts.values().map(of).collect();
    tokio::spawn(async move {
        let mut wrong = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            let holders: Vec<&Spot> = spots.iter().filter(|spot| has(spot.init)).collect();
            if holders.len() > 1 {
                doubled.fetch_add(1, Ordering::SeqCst);
                let mut writes = Vec::new();
                for spot in holders {
                    let uri = spot.uri.clone();
                    let task =
                        spot.inside.handle().spawn(async move { timeout(Duration::from_secs(1), write(&uri)).await });
                    writes.push(task);
                }
                let mut acknowledged = Vec::new();
                for task in writes {
                    if let Ok(Ok(Ok(server))) = task.await {
                        acknowledged.push(server);
                    }
                }
                if acknowledged.len() > 1 {
                    wrong.push(format!("{acknowledged:?} have the address and acknowledge writes"));
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
        wrong
    })
}

/// A client that knows nothing but the address, and writes all the time.
struct Beats {
    acknowledged: Arc<AtomicU64>,
    last: Arc<Mutex<(Instant, Duration)>>,
    _inside: Inside,
    task: JoinHandle<()>,
}

/// An acknowledged write; what came before it was a pause.
fn note(seen: &Mutex<(Instant, Duration)>) {
    let (now, mut seen) = (Instant::now(), seen.lock().unwrap());
    *seen = (now, seen.1.max(now - seen.0));
}

impl Beats {
    fn start(cluster: &HostCluster) -> Self {
        let inside = cluster.client.inside().unwrap();
        let uri = cluster.virtual_uri();
        let acknowledged = Arc::new(AtomicU64::new(0));
        let last = Arc::new(Mutex::new((Instant::now(), Duration::ZERO)));
        let (count, seen) = (Arc::clone(&acknowledged), Arc::clone(&last));
        let task = inside.handle().spawn(async move {
            loop {
                let Ok(Ok((client, connection))) =
                    timeout(Duration::from_secs(1), tokio_postgres::connect(&uri, NoTls)).await
                else {
                    sleep(Duration::from_millis(20)).await;
                    continue;
                };
                let connection = tokio::spawn(connection);
                // What is not answered in time is asked anew by another connection, as drivers with a limit do.
                while let Ok(Ok(_)) =
                    timeout(Duration::from_secs(2), client.batch_execute("insert into beats values (default)")).await
                {
                    note(&seen);
                    count.fetch_add(1, Ordering::SeqCst);
                    sleep(Duration::from_millis(10)).await;
                }
                connection.abort();
            }
        });
        Self { acknowledged, last, _inside: inside, task }
    }

    /// The longest pause since this was asked last, once writes go on.
    async fn pause(&self) -> Duration {
        let before = self.acknowledged.load(Ordering::SeqCst);
        until("the client writes on", async || self.acknowledged.load(Ordering::SeqCst) > before + 5).await;
        let mut last = self.last.lock().unwrap();
        std::mem::take(&mut last.1)
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < SOON, "never: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the cluster is whole, with the address at its primary and nowhere else.
async fn settled(cluster: &HostCluster) -> (NodeId, Status) {
    let status = cluster.healed(SOON).await.unwrap();
    let (primary, host) = cluster.primary(&status).unwrap();
    until("the primary alone has the address", async || {
        has(host.init()) && cluster.others(&primary).all(|(_, other)| !has(other.init()))
    })
    .await;
    until("the status says so", async || {
        let address = cluster.status().await.ok().and_then(|status| status.routes.address);
        address.is_some_and(|address| address.held_by == [primary.clone()])
    })
    .await;
    let status = cluster.status().await.unwrap();
    assert_eq!(status.routes.write, format!("{}:6432", ADDRESS.0));
    (primary, status)
}

/// A process of a node, by the number that its status tells.
fn process(cluster: &HostCluster, status: &Status, node: &NodeId, number: Number) -> Pinned {
    Pinned::new(cluster.host(node).unwrap().outer(told(status, node, number).unwrap()).unwrap()).unwrap()
}

/// Which of a node's processes.
type Number = fn(&NodeStatus) -> Option<u32>;

fn told(status: &Status, node: &NodeId, number: Number) -> Option<u32> {
    status.nodes.iter().find(|line| line.name == *node).and_then(number)
}

fn agent(cluster: &HostCluster, status: &Status, node: &NodeId) -> Pinned {
    process(cluster, status, node, |line| line.agent_pid)
}

/// Kills a process of the primary's, and waits for the next one; says who was primary.
async fn killed(cluster: &HostCluster, number: Number) -> NodeId {
    let (primary, status) = settled(cluster).await;
    process(cluster, &status, &primary, number).signal(Signal::KILL).unwrap();
    until("the next one is there", async || {
        let now = cluster.status().await.ok().and_then(|now| told(&now, &primary, number));
        now.is_some() && now != told(&status, &primary, number)
    })
    .await;
    primary
}

/// The host has lost the address within the lease; says how long that took.
async fn lost(host: &Host, since: Instant) -> Duration {
    until("the host loses the address", async || !has(host.init())).await;
    let took = since.elapsed();
    assert!(took < LEASE, "it had the address for {took:?}");
    took
}

async fn hung_agent(cluster: &HostCluster) -> String {
    let (primary, status) = settled(cluster).await;
    let (host, agent) = (cluster.host(&primary).unwrap(), agent(cluster, &status, &primary));
    let since = Instant::now();
    agent.signal(Signal::STOP).unwrap();
    let took = lost(host, since).await;
    until("another host has it", async || cluster.others(&primary).any(|(_, other)| has(other.init()))).await;
    agent.signal(Signal::CONT).unwrap();
    assert_ne!(settled(cluster).await.0, primary);
    format!("the address was gone after {} ms", took.as_millis())
}

async fn cut_cable(cluster: &HostCluster) -> String {
    let (primary, _) = settled(cluster).await;
    let host = cluster.host(&primary).unwrap();
    let since = Instant::now();
    cluster.switch.connect(host, false).unwrap();
    let took = lost(host, since).await;
    until("another host has it", async || cluster.others(&primary).any(|(_, other)| has(other.init()))).await;
    cluster.switch.connect(host, true).unwrap();
    assert_ne!(settled(cluster).await.0, primary);
    format!("the address was gone after {} ms", took.as_millis())
}

/// Nothing on the primary's host runs any more, and nothing of it can give the address up.
async fn stopped_host(cluster: &HostCluster) -> String {
    let (primary, _) = settled(cluster).await;
    let host = cluster.host(&primary).unwrap();
    let stopped: Vec<Pinned> = host.processes().into_iter().filter_map(|pid| Pinned::new(pid).ok()).collect();
    let all = |signal| stopped.iter().for_each(|process| drop(process.signal(signal)));
    let since = Instant::now();
    all(Signal::STOP);
    let took = lost(host, since).await;
    until("another host has it", async || cluster.others(&primary).any(|(_, other)| has(other.init()))).await;
    all(Signal::CONT);
    assert_ne!(settled(cluster).await.0, primary);
    format!("the address was gone after {} ms", took.as_millis())
}

async fn killed_guard(cluster: &HostCluster) -> String {
    let primary = killed(cluster, |line| line.guard_pid).await;
    match settled(cluster).await.0 == primary {
        true => "the same host has it".to_owned(),
        false => "another host has it".to_owned(),
    }
}

async fn killed_agent(cluster: &HostCluster) -> String {
    killed(cluster, |line| line.agent_pid).await;
    settled(cluster).await;
    "the next agent has gone on with it".to_owned()
}

/// A session through the address that asks nothing: its end, once it comes.
async fn idle(cluster: &HostCluster, inside: &Inside) -> JoinHandle<Instant> {
    let uri = cluster.virtual_uri();
    let (ready, open) = tokio::sync::oneshot::channel();
    let session = inside.handle().spawn(async move {
        let (client, connection) = tokio_postgres::connect(&uri, NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        client.batch_execute("select 1").await.unwrap();
        ready.send(()).unwrap();
        let _ = connection.await;
        drop(client);
        Instant::now()
    });
    open.await.unwrap();
    session
}

/// The client knows the address at this host.
async fn knows(cluster: &HostCluster, host: &Host) -> bool {
    let link = host.run(&["ip", "-o", "link", "show", "dev", "eth0"]).await.unwrap();
    let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
    let hardware = words.nth(1).expect("it has no hardware address");
    let known = cluster.client.run(&["ip", "neigh", "show", &ADDRESS.0.to_string()]).await.unwrap();
    known.contains(hardware)
}

async fn switchover(cluster: &HostCluster) -> String {
    let (primary, _) = settled(cluster).await;
    let old = cluster.host(&primary).unwrap();
    let inside = cluster.client.inside().unwrap();
    let session = idle(cluster, &inside).await;
    let words = ["switchover", "--yes"];
    let (done, (gone, new, came, told)) = tokio::join!(cluster.run(&words, SOON), async {
        until("the old primary loses the address", async || !has(old.init())).await;
        let gone = Instant::now();
        until("another host has it", async || cluster.others(&primary).any(|(_, other)| has(other.init()))).await;
        let came = Instant::now();
        let (new, host) = cluster.others(&primary).find(|(_, other)| has(other.init())).unwrap();
        until("the client knows it there", async || knows(cluster, host).await).await;
        (gone, new.clone(), came, came.elapsed())
    });
    done.unwrap();
    let ended = timeout(SOON, session).await.expect("nobody told the idle session").unwrap();
    assert!(ended < gone + TOLD, "the idle session heard of it after {:?}", ended - gone);
    // Two programs that ask, and a busy machine.
    assert!(told < TOLD * 2, "the client looked for it at the old host for {told:?}");
    assert_eq!(settled(cluster).await.0, new);
    let without = came.saturating_duration_since(gone).as_millis();
    format!("nobody had it for {without} ms, the client knew the new place {} ms after that", told.as_millis())
}

/// An address that somebody else gave a host is nobody's to take away, and is told of.
async fn foreign(cluster: &HostCluster, doubled: &AtomicU64) -> String {
    let (primary, _) = settled(cluster).await;
    let (other, host) = cluster.others(&primary).next().unwrap();
    let told = async |name: &str| {
        let problems = cluster.status().await.map(|status| status.problems).unwrap_or_default();
        problems.iter().any(|problem| problem.name == name && problem.evidence.contains("not by this agent"))
    };
    // Both hosts answer for it now; whichever a client reaches, the proxy there leads to the primary.
    let by_hand = format!("{}/32", ADDRESS.0);
    let before = doubled.load(Ordering::SeqCst);
    host.run(&["ip", "address", "add", &by_hand, "dev", "lo"]).await.unwrap();
    until("it is told of a replica's host", async || told("address-doubled").await).await;
    until("it was watched who acknowledges meanwhile", async || doubled.load(Ordering::SeqCst) > before + 10).await;
    cluster.run(&["switchover", "--to", other.as_str(), "--yes"], SOON).await.unwrap();
    until("it is told of the primary's host", async || told("address-missing").await).await;
    assert!(has(host.init()), "it was taken away");
    host.run(&["ip", "address", "del", &by_hand, "dev", "lo"]).await.unwrap();
    assert_eq!(settled(cluster).await.0, *other);
    "it was told, and left alone".to_owned()
}

/// A key that is taken back takes the address with it.
async fn taken_back(cluster: &HostCluster) {
    settled(cluster).await;
    cluster.run(&["set", "--unset", "proxy.address", "--yes"], SOON).await.unwrap();
    until("nobody has it", async || cluster.hosts.values().all(|host| !has(host.init()))).await;
    assert!(cluster.status().await.unwrap().routes.address.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_with_the_primary_whatever_happens() {
    let cluster = HostCluster::up(Shape { address: true, ..Shape::THREE }).await.unwrap();
    let (primary, status) = settled(&cluster).await;
    let host = cluster.host(&primary).unwrap();
    let shown = host.run(&["ip", "-o", "-4", "address", "show", "dev", "eth0"]).await.unwrap();
    assert!(shown.lines().any(|line| line.contains("ms-") && line.contains("valid_lft")), "{shown}");
    let virtual_uri = cluster.virtual_uri();
    let inside = cluster.client.inside().unwrap();
    let server = inside
        .handle()
        .spawn(async move {
            let (client, connection) = tokio_postgres::connect(&virtual_uri, NoTls).await.unwrap();
            tokio::spawn(connection);
            client.batch_execute("create table beats (id bigserial primary key)").await.unwrap();
            write(&virtual_uri).await.unwrap()
        })
        .await
        .unwrap();
    assert_eq!(server, host.address().to_string(), "{:?}", status.routes);
    let stop = Arc::new(AtomicBool::new(false));
    let doubled = Arc::new(AtomicU64::new(0));
    let (watched, beats) = (watch(&cluster, Arc::clone(&stop), Arc::clone(&doubled)), Beats::start(&cluster));
    beats.pause().await;
    for (name, said, pause) in [
        ("switchover", switchover(&cluster).await, beats.pause().await),
        ("agent killed", killed_agent(&cluster).await, beats.pause().await),
        ("guard killed", killed_guard(&cluster).await, beats.pause().await),
        ("everything stopped", stopped_host(&cluster).await, beats.pause().await),
        ("agent hangs", hung_agent(&cluster).await, beats.pause().await),
        ("cable cut", cut_cable(&cluster).await, beats.pause().await),
        ("by hand", foreign(&cluster, &doubled).await, beats.pause().await),
    ] {
        println!("{name}: {said}; the longest pause: {} ms", pause.as_millis());
        assert!(pause < PAUSE, "{name}: a client was without an answer for {pause:?}");
    }
    stop.store(true, Ordering::SeqCst);
    let wrong = watched.await.unwrap();
    println!("moments in which two hosts had it: {}", doubled.load(Ordering::SeqCst));
    assert!(wrong.is_empty(), "{wrong:?}");
    beats.task.abort();
    taken_back(&cluster).await;
}
