//! A proxy between real sockets: servers that tell their name, and agents' words by hand.

// Each test file uses a part of this, and a helper that cannot go on fails its test.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use mainstay_model::route::RouteMember;
use mainstay_model::{NodeId, Route, RouteState, Term};
use mainstay_ports::clock::boot_now;
use mainstay_proxy::{Proxy, ProxyOptions, RouteReport, Snapshot, Stats, TimedReport};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};

/// Whatever is waited for comes within this, on a busy machine too.
pub const SOON: Duration = Duration::from_secs(30);
/// What happens at once is seen within this, on a busy machine too. How fast it is, benchmarks say.
pub const AT_ONCE: Duration = Duration::from_secs(4);
pub const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Answers each line with its name before it. Dies when dropped.
pub struct Server {
    pub name: String,
    pub address: SocketAddr,
    pub open: Arc<AtomicUsize>,
    pub accepted: Arc<Mutex<Vec<Instant>>>,
    pub resets: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(name: &str) -> Self {
        Self::start_at(name, LOCAL).await
    }

    pub async fn start_at(name: &str, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let (open, accepted) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let address = listener.local_addr().unwrap();
        let resets = Arc::new(AtomicUsize::new(0));
        let serving = serve(listener, name.to_owned(), Arc::clone(&open), Arc::clone(&accepted), Arc::clone(&resets));
        Self { name: name.to_owned(), address, open, accepted, resets, task: tokio::spawn(serving) }
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    pub fn accepted(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }

    pub fn member(&self, lag: u64) -> RouteMember {
        RouteMember { node: NodeId::new(&self.name).unwrap(), address: self.address, lag_bytes: Some(lag) }
    }

    /// Dies and waits until its port is free.
    pub async fn kill(self) -> SocketAddr {
        let address = self.address;
        self.task.abort();
        until("the port is closed", async || TcpStream::connect(address).await.is_err()).await;
        address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    listener: TcpListener,
    name: String,
    open: Arc<AtomicUsize>,
    accepted: Arc<Mutex<Vec<Instant>>>,
    resets: Arc<AtomicUsize>,
) {
    let mut tasks = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        accepted.lock().unwrap().push(Instant::now());
        open.fetch_add(1, Ordering::SeqCst);
        let (name, open, resets) = (name.clone(), Arc::clone(&open), Arc::clone(&resets));
        tasks.spawn(async move {
            let end = echo(stream, &name).await.map_err(|error| error.kind());
            if end == Err(std::io::ErrorKind::ConnectionReset) {
                resets.fetch_add(1, Ordering::SeqCst);
            }
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// `bye` ends it. `flood N` is answered with N bytes, `eat` with the number of bytes until the end of input.
async fn echo(stream: TcpStream, name: &str) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        if let Some(count) = line.trim_end().strip_prefix("flood ") {
            let count: usize = count.parse().unwrap();
            stream.write_all(&pattern(count)).await?;
        } else if line == "eat\n" {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await?;
            let whole = bytes == pattern(bytes.len());
            stream.write_all(format!("{} {whole}\n", bytes.len()).as_bytes()).await?;
        } else if line == "bye\n" {
            return stream.write_all(b"bye\n").await;
        } else {
            stream.write_all(format!("{name}:{line}").as_bytes()).await?;
        }
        line.clear();
    }
    Ok(())
}

/// Bytes whose order tells.
pub fn pattern(count: usize) -> Vec<u8> {
    let mut bytes = (0..251).collect::<Vec<u8>>().repeat(count / 251 + 1);
    bytes.truncate(count);
    bytes
}

/// A running proxy.
pub struct Bench {
    pub write: SocketAddr,
    pub read: SocketAddr,
    pub reports: mpsc::Sender<TimedReport>,
    pub stats: Arc<Stats>,
    pub stop: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<()>,
}

pub fn options() -> ProxyOptions {
    ProxyOptions { hold: SOON, max_lag_bytes: 1000, ..ProxyOptions::new(vec![LOCAL], vec![LOCAL]) }
}

impl Bench {
    pub fn start(options: ProxyOptions) -> Self {
        let stats = Arc::new(Stats::default());
        let proxy = Proxy::bind(options, Arc::clone(&stats)).unwrap();
        let (write, read) = (proxy.write_addresses()[0], proxy.read_addresses()[0]);
        let (reports, heard) = mpsc::channel(64);
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(proxy.run(heard, async {
            let _ = stopped.await;
        }));
        Self { write, read, reports, stats, stop: Some(stop), task }
    }

    pub fn now(&self) -> Snapshot {
        self.stats.snapshot()
    }

    pub async fn say(&self, from: &Server, epoch: u64, state: RouteState, valid_ms: u64, replicas: Vec<RouteMember>) {
        let leader = (state != RouteState::Closed).then(|| from.member(0));
        let route = Route { epoch: Term(epoch), leader, replicas, state, valid_ms };
        let report = RouteReport { from: NodeId::new(&from.name).unwrap(), route };
        self.reports.send(TimedReport { report, sent: boot_now() }).await.unwrap();
    }

    pub async fn open(&self, leader: &Server, epoch: u64, replicas: Vec<RouteMember>) {
        self.say(leader, epoch, RouteState::Open, 60_000, replicas).await;
        until("the route is open", async || self.now().epoch == epoch && self.now().open == 1).await;
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub struct Client(pub BufReader<TcpStream>);

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self(BufReader::new(TcpStream::connect(address).await.unwrap()))
    }

    /// Connects and says a first line without waiting for the answer.
    pub async fn hello(address: SocketAddr) -> Self {
        let mut client = Self::connect(address).await;
        client.send(b"hello\n").await;
        client
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    pub async fn line(&mut self) -> String {
        let mut line = String::new();
        timeout(SOON, self.0.read_line(&mut line)).await.expect("no answer").unwrap();
        line
    }

    pub async fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\n").as_bytes()).await;
        self.line().await
    }

    /// Waits for the end, by close or reset; what came before it.
    pub async fn end(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = timeout(SOON, self.0.read_to_end(&mut rest)).await.expect("still open");
        rest
    }

    pub async fn is_open_after(&mut self, time: Duration) -> bool {
        let mut byte = [0];
        timeout(time, self.0.read(&mut byte)).await.is_err()
    }
}

pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < SOON, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A start-up packet of PostgreSQL, and a request for TLS.
pub fn startup() -> Vec<u8> {
    let body = b"user\0app\0database\0app\0\0";
    let mut packet = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
    packet.extend(196_608_u32.to_be_bytes());
    packet.extend(body);
    packet
}

pub fn ssl_request() -> Vec<u8> {
    [8_u32.to_be_bytes(), 80_877_103_u32.to_be_bytes()].concat()
}
