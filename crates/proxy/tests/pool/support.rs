//! Real PostgreSQL servers behind a pooling proxy, and agents' words by hand.

use mainstay_model::route::RouteMember;
use mainstay_model::{NodeId, Route, RouteState, SystemId, Term};
use mainstay_ports::clock::boot_now;
use mainstay_proxy::pool::{Login, Logins, PoolOptions, Pooled, PooledProxy};
use mainstay_proxy::{ProxyOptions, RouteReport, Snapshot, Stats, TimedReport};
use rustix::process::{Pid, Signal, kill_process};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

pub const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
/// Long enough for a machine that does ten other things.
pub const SOON: Duration = Duration::from_secs(30);

pub fn bin(name: &str) -> PathBuf {
    let versions = (15..=18).map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin/{name}")));
    versions.into_iter().find(|path| path.exists()).expect("PostgreSQL's server programs under /usr/lib/postgresql")
}

/// As root servers run as the user `postgres`.
fn server_user() -> Option<(u32, u32)> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:")).expect("the user postgres");
    let mut ids = line.split(':').skip(2).map(|id| id.parse().unwrap());
    Some((ids.next().unwrap(), ids.next().unwrap()))
}

fn run(command: &mut Command) {
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
    let output = command.current_dir("/").output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub struct Postgres {
    pub name: String,
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
    child: Child,
}

impl Postgres {
    fn data(dir: &Path) -> PathBuf {
        dir.join("data")
    }

    fn home() -> tempfile::TempDir {
        let dir = tempfile::Builder::new().prefix("pool").tempdir().unwrap();
        if let Some((user, group)) = server_user() {
            std::os::unix::fs::chown(dir.path(), Some(user), Some(group)).unwrap();
        }
        dir
    }

    pub async fn start(name: &str) -> Self {
        let dir = Self::home();
        let data = Self::data(dir.path());
        run(Command::new(bin("initdb"))
            .args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--pgdata"])
            .arg(&data));
        let hba = "local all postgres trust\nlocal replication postgres trust\n\
                   host all all 127.0.0.1/32 scram-sha-256\nlocal all all scram-sha-256\n";
        std::fs::write(data.join("pg_hba.conf"), hba).unwrap();
        let server = Self::run(name, dir).await;
        server
            .sql(
                "create role app login password 'secret'; create role other login password 'other'; \
                 create role boss login superuser password 'boss'; \
                 create role helper; grant helper to app",
            )
            .await;
        server.sql("create database shop owner app").await;
        server
    }

    /// A copy that streams from this one.
    pub async fn replica(&self, name: &str) -> Self {
        let dir = Self::home();
        run(Command::new(bin("pg_basebackup"))
            .args(["--no-sync", "--checkpoint=fast", "-R", "-U", "postgres", "-h"])
            .arg(self.dir.path())
            .args(["-p", &self.address.port().to_string(), "-D"])
            .arg(Self::data(dir.path())));
        Self::run(name, dir).await
    }

    async fn run(name: &str, dir: tempfile::TempDir) -> Self {
        let port = std::net::TcpListener::bind(LOCAL).unwrap().local_addr().unwrap().port();
        let mut command = Command::new(bin("postgres"));
        command.arg("-D").arg(Self::data(dir.path())).arg("-k").arg(dir.path());
        command.args(["-p", &port.to_string(), "-h", "127.0.0.1", "-c", "fsync=off", "-c", "max_connections=60"]);
        command.args([
            "-c",
            "logging_collector=off",
            "-c",
            "hot_standby=on",
            "-c",
            "wal_retrieve_retry_interval=100ms",
        ]);
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).current_dir("/");
        if let Some((user, group)) = server_user() {
            command.uid(user).gid(group);
        }
        let child = command.spawn().unwrap();
        let server = Self { name: name.to_owned(), address: SocketAddr::new(LOCAL.ip(), port), dir, child };
        until("the server accepts connections", async || server.try_super().await.is_some()).await;
        server
    }

    async fn try_super(&self) -> Option<Client> {
        self.super_of("postgres").await
    }

    async fn super_of(&self, database: &str) -> Option<Client> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.dir.path()).port(self.address.port()).user("postgres").dbname(database);
        let (client, connection) = config.connect(NoTls).await.ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    /// As superuser, past the proxy.
    pub async fn sql(&self, sql: &str) -> Vec<Vec<String>> {
        let client = self.try_super().await.expect("a superuser's connection");
        rows(client.simple_query(sql).await.unwrap())
    }

    /// The same in the database of `app`.
    pub async fn shop(&self, sql: &str) -> Vec<Vec<String>> {
        let client = self.super_of("shop").await.expect("a superuser's connection");
        rows(client.simple_query(sql).await.unwrap())
    }

    pub async fn logins(&self) -> Logins {
        let system = self.sql("select system_identifier from pg_control_system()").await[0][0].parse().unwrap();
        let sql = "select rolname, rolpassword, rolsuper from pg_authid where rolcanlogin and rolpassword is not null";
        let role = |row: Vec<String>| Login {
            name: row[0].clone(),
            verifier: row[1].clone(),
            superuser: row[2] == "t",
            monitor: false,
        };
        Logins { system: Some(SystemId(system)), roles: self.sql(sql).await.into_iter().map(role).collect() }
    }

    pub fn member(&self) -> RouteMember {
        RouteMember { node: NodeId::new(&self.name).unwrap(), address: self.address, lag_bytes: Some(0) }
    }

    /// The whole server dies at once.
    pub fn kill(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::QUIT);
        self.child.wait().unwrap();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A primary, and a replica that streams from it.
pub async fn pair() -> (Postgres, Postgres) {
    let a = Postgres::start("db1").await;
    let b = a.replica("db2").await;
    until("the replica streams", async || {
        a.sql("select count(*) from pg_stat_replication where state = 'streaming'").await[0][0] == "1"
    })
    .await;
    (a, b)
}

pub fn rows(messages: Vec<SimpleQueryMessage>) -> Vec<Vec<String>> {
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|at| row.get(at).unwrap_or("NULL").to_owned()).collect())
        }
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

/// A running proxy.
pub struct Bench {
    pub write: SocketAddr,
    pub read: SocketAddr,
    pub pooled: Pooled,
    stats: Arc<Stats>,
    reports: mpsc::Sender<TimedReport>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Bench {
    pub async fn start(server: &Postgres, pooling: PoolOptions) -> Self {
        let options = ProxyOptions { hold: SOON, ..ProxyOptions::new(vec![LOCAL], vec![LOCAL]) };
        Self::with(server, pooling, options).await
    }

    pub async fn with(server: &Postgres, pooling: PoolOptions, options: ProxyOptions) -> Self {
        let stats = Arc::new(Stats::default());
        let proxy = PooledProxy::bind(options, pooling, Arc::clone(&stats)).unwrap();
        let (write, read) = proxy.addresses();
        let pooled = proxy.handle();
        let (reports, heard) = mpsc::channel(64);
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async {
            proxy.run(heard, async { drop(stopped.await) }).await.unwrap();
        });
        pooled.set_logins(server.logins().await);
        Self { write: write[0], read: read[0], pooled, stats, reports, stop: Some(stop), task }
    }

    /// How many changes of the primary are over, and the last of them.
    pub fn changes(&self) -> (u64, mainstay_proxy::Change) {
        let (count, last) = self.stats.changes();
        (count, last.unwrap_or_default())
    }

    pub fn now(&self) -> Snapshot {
        self.stats.snapshot()
    }

    pub async fn say(&self, from: &Postgres, epoch: u64, state: RouteState, replicas: Vec<RouteMember>) {
        self.say_of(from.member(), epoch, state, replicas).await;
    }

    /// The same of a server that is reached elsewhere.
    pub async fn say_of(&self, from: RouteMember, epoch: u64, state: RouteState, replicas: Vec<RouteMember>) {
        let node = from.node.clone();
        let leader = (state != RouteState::Closed).then_some(from);
        let route = Route { epoch: Term(epoch), leader, replicas, state, valid_ms: 600_000 };
        let report = RouteReport { from: node, route };
        self.reports.send(TimedReport { report, sent: boot_now() }).await.unwrap();
    }

    pub async fn open(&self, from: &Postgres, epoch: u64, replicas: Vec<RouteMember>) {
        self.open_at(from.member(), epoch, replicas).await;
    }

    /// The same of a server that is reached elsewhere.
    pub async fn open_at(&self, from: RouteMember, epoch: u64, replicas: Vec<RouteMember>) {
        self.say_of(from, epoch, RouteState::Open, replicas).await;
        until("the route is open", async || self.now().epoch == epoch && self.now().open == 1).await;
    }

    pub async fn client(&self, address: SocketAddr, user: &str, password: &str) -> Client {
        self.try_client(address, user, password, "shop").await.unwrap()
    }

    pub async fn try_client(
        &self,
        address: SocketAddr,
        user: &str,
        password: &str,
        database: &str,
    ) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(address.port()).user(user).password(password).dbname(database);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub async fn app(&self) -> Client {
        self.client(self.write, "app", "secret").await
    }

    /// The pool of `app` on the write address.
    pub fn pool(&self) -> mainstay_proxy::pool::PoolNumbers {
        let numbers = self.pooled.numbers();
        numbers.into_iter().find(|pool| pool.user == "app" && !pool.reads).unwrap_or_default()
    }

    pub async fn end(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(SOON, &mut self.task).await.unwrap().unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Its threads end with the stop, or with this process.
        drop(self.stop.take());
    }
}

pub async fn value(client: &Client, sql: &str) -> String {
    rows(client.simple_query(sql).await.unwrap())[0][0].clone()
}

pub fn code(error: &tokio_postgres::Error) -> String {
    error.code().map(|code| code.code().to_owned()).unwrap_or_else(|| format!("{error:?}"))
}

pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < SOON, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
