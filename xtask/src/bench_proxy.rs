//! `cargo xtask bench proxy`: what a transaction costs in a proxy, beside PgBouncer and HAProxy from the distribution, on one host
//! in one run. One thread each; processor time of the proxy's own process, not throughput, so that a busy machine disturbs less.
//!
//! The load is `pgbench -S`. The last hop is the server's Unix socket for all of them, or TCP for all of them (`--tcp`). PgBouncer
//! pools by transaction; where its version can not do that with prepared statements, by session with a server for each client.

use crate::step::{cargo, finish};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const CLIENTS: [usize; 3] = [8, 32, 100];
const PROTOCOLS: [&str; 2] = ["simple", "prepared"];
const PEERS: [&str; 2] = ["pgbouncer", "haproxy"];
const POOL: usize = 20;
const START: Duration = Duration::from_secs(30);
/// Clients that do nothing, to see what one costs.
const IDLE: usize = 800;
/// Bytes that one may cost.
const IDLE_GOAL: f64 = 4096.0;
/// What must be reached: of the geometric mean, and of each row.
const GOAL: f64 = 0.9;

struct Wishes {
    json: bool,
    tcp: bool,
    rounds: usize,
    seconds: u64,
}

fn wishes(arguments: &[OsString]) -> Result<Wishes> {
    let mut wishes = Wishes { json: false, tcp: false, rounds: 5, seconds: 2 };
    let mut words = arguments.iter().map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|word| word.parse().ok()).context(format!("{word} takes a number"));
        match word.as_str() {
            "--json" => wishes.json = true,
            "--tcp" => wishes.tcp = true,
            "--rounds" => wishes.rounds = number()?,
            "--seconds" => wishes.seconds = u64::try_from(number()?)?,
            _ => bail!("bench proxy takes --json, --tcp, --rounds N and --seconds N, not {word}"),
        }
    }
    Ok(wishes)
}

/// A process that ends with its owner, by this signal.
struct Running(Child, &'static str);

impl Drop for Running {
    fn drop(&mut self) {
        // What is gone already is fine.
        let _ = Command::new("kill").args([self.1, &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Processor time of all its threads so far.
    fn cpu(&self) -> Result<Duration> {
        let mut sum = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            sum += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).context("schedstat")?;
        }
        Ok(Duration::from_nanos(sum))
    }

    /// Memory that is its own, in bytes.
    fn memory(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("Pss")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.0.id())).map_or(0, Iterator::count)
    }
}

struct Bed {
    root: PathBuf,
    dir: PathBuf,
    bin: PathBuf,
    user: Option<(u32, u32)>,
    port: u16,
    _server: Running,
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// As root, servers run as the user `postgres`.
pub(crate) fn server_user() -> Option<(u32, u32)> {
    let id = Command::new("id").arg("-u").output().ok()?;
    if String::from_utf8_lossy(&id.stdout).trim() != "0" {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.starts_with("postgres:"))?.to_owned();
    let mut ids = line.split(':').skip(2).filter_map(|id| id.parse().ok());
    Some((ids.next()?, ids.next()?))
}

impl Bed {
    fn make(root: &Path) -> Result<Bed> {
        let bin = (15..=18).rev().map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
        let bin = bin.into_iter().find(|bin| bin.join("postgres").exists()).context("PostgreSQL's server programs")?;
        let dir = std::env::temp_dir().join(format!("bench-proxy-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let (user, port) = (server_user(), free_port()?);
        if let Some((user, group)) = user {
            std::os::unix::fs::chown(&dir, Some(user), Some(group))?;
        }
        let as_user = |mut command: Command| {
            command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            if let Some((user, group)) = user {
                command.uid(user).gid(group);
            }
            command
        };
        let mut initdb = Command::new(bin.join("initdb"));
        initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--pgdata"]).arg(dir.join("data"));
        finish(&mut as_user(initdb))?;
        let hba = "local all postgres trust\nlocal all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(dir.join("data/pg_hba.conf"), hba)?;
        let mut server = Command::new(bin.join("postgres"));
        server.arg("-D").arg(dir.join("data")).arg("-k").arg(&dir).args(["-h", "127.0.0.1", "-p", &port.to_string()]);
        server.args(["-c", "max_connections=250", "-c", "fsync=off", "-c", "shared_buffers=64MB"]);
        // Its own children end with it at SIGQUIT.
        let server = Running(as_user(server).spawn()?, "-QUIT");
        let bed = Bed { root: root.to_owned(), dir, bin, user, port, _server: server };
        bed.until_answers(None)?;
        bed.sql("create role app login password 'secret'")?;
        bed.sql("create database app owner app")?;
        finish(bed.pgbench(None).args(["-i", "-q", "-s", "5"]).stderr(Stdio::null()))?;
        Ok(bed)
    }

    fn client(&self, program: &str, port: Option<u16>) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.env("PGPASSWORD", "secret").env("PGDATABASE", "app").env("PGUSER", "app").env("PGHOST", "127.0.0.1");
        command.env("PGPORT", port.unwrap_or(self.port).to_string()).stdin(Stdio::null());
        command
    }

    fn pgbench(&self, port: Option<u16>) -> Command {
        self.client("pgbench", port)
    }

    fn sql(&self, sql: &str) -> Result<()> {
        let mut psql = self.client("psql", None);
        psql.env("PGHOST", &self.dir).env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        finish(psql.args(["-Xqc", sql]).stdout(Stdio::null()))
    }

    fn until_answers(&self, port: Option<u16>) -> Result<()> {
        let began = Instant::now();
        loop {
            let mut asked = self.client("psql", port);
            if port.is_none() {
                asked.env("PGHOST", &self.dir).env("PGUSER", "postgres").env("PGDATABASE", "postgres");
            }
            asked.args(["-Xqc", "select 1"]).stdout(Stdio::null()).stderr(Stdio::null());
            if asked.status()?.success() {
                return Ok(());
            }
            if began.elapsed() > START {
                bail!("nobody answers at port {}", port.unwrap_or(self.port));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn start(&self, peer: &str, protocol: &str, tcp: bool) -> Result<(Running, u16)> {
        let port = free_port()?;
        let mut command = match peer {
            "pgbouncer" => self.pgbouncer(port, protocol, tcp)?,
            "haproxy" => self.haproxy(port, tcp)?,
            _ => self.ours(port, tcp)?,
        };
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let running = Running(command.spawn().with_context(|| format!("{peer} can not be started"))?, "-TERM");
        self.until_answers(Some(port))?;
        Ok((running, port))
    }

    fn ours(&self, port: u16, tcp: bool) -> Result<Command> {
        let mut command = Command::new(crate::suite::binary(&self.root, "examples/pool")?);
        command.arg(format!("127.0.0.1:{port}")).arg(format!("127.0.0.1:{}", self.port)).arg(&self.dir);
        command.args(["1", &POOL.to_string()]);
        if !tcp {
            command.arg("unix");
        }
        Ok(command)
    }

    fn pgbouncer(&self, port: u16, protocol: &str, tcp: bool) -> Result<Command> {
        let host = if tcp { "127.0.0.1".to_owned() } else { self.dir.display().to_string() };
        let (mode, size) = if protocol == "simple" { ("transaction", POOL) } else { ("session", 200) };
        let users = self.dir.join("users.txt");
        std::fs::write(&users, "\"app\" \"secret\"\n")?;
        let text = format!(
            "[databases]\napp = host={host} port={server} dbname=app\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {users}\npool_mode = {mode}\n\
             default_pool_size = {size}\nmax_client_conn = 1000\nignore_startup_parameters = extra_float_digits\n",
            server = self.port,
            users = users.display(),
        );
        let file = self.dir.join("pgbouncer.ini");
        std::fs::write(&file, text)?;
        let mut command = Command::new("pgbouncer");
        command.arg("-q").arg(file);
        Ok(command)
    }

    fn haproxy(&self, port: u16, tcp: bool) -> Result<Command> {
        let server = if tcp {
            format!("127.0.0.1:{}", self.port)
        } else {
            format!("unix@{}/.s.PGSQL.{}", self.dir.display(), self.port)
        };
        let text = format!(
            "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
             listen pg\n  bind 127.0.0.1:{port}\n  server pg {server}\n"
        );
        let file = self.dir.join("haproxy.cfg");
        std::fs::write(&file, text)?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(file);
        Ok(command)
    }

    /// Microseconds of the proxy's processor time per transaction, and the 99th percentile of latency in microseconds. What it takes to
    /// let the clients in is measured apart and left out: on a busy machine it would be most of it.
    fn cost(&self, proxy: &Running, port: u16, load: &Load) -> Result<(f64, f64)> {
        let logs = self.dir.join("log");
        std::fs::create_dir_all(&logs)?;
        let entry = if load.connects { (0.0, 0.0) } else { self.spent(proxy, port, load, &["-t", "1"])? };
        let seconds = load.seconds.to_string();
        let prefix = format!("--log-prefix={}", logs.join("of").display());
        let mut words = vec!["-T", &seconds, "--log", "--sampling-rate=0.1", &prefix];
        if load.connects {
            words.push("-C");
        }
        let whole = self.spent(proxy, port, load, &words)?;
        let (cpu, count) = (whole.0 - entry.0, whole.1 - entry.1);
        let latency = percentile(&logs)?;
        std::fs::remove_dir_all(&logs)?;
        if count < 1.0 {
            bail!("too few transactions in {seconds} s: the machine is too busy, or --seconds too low");
        }
        Ok((cpu / count, latency))
    }

    /// Microseconds of the proxy's processor time, and transactions.
    fn spent(&self, proxy: &Running, port: u16, load: &Load, words: &[&str]) -> Result<(f64, f64)> {
        let before = proxy.cpu()?;
        let mut pgbench = self.pgbench(Some(port));
        pgbench.args(["-n", "-S", "-j", "1", "-M", load.protocol, "-c", &load.clients.to_string()]).args(words);
        let output = pgbench.stderr(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
        let count: f64 = line.and_then(|line| line.split('/').next()?.trim().parse().ok()).context("pgbench failed")?;
        if count < 1.0 || !output.status.success() {
            bail!("pgbench did not get through: {text}");
        }
        Ok(((proxy.cpu()? - before).as_secs_f64() * 1e6, count))
    }

    /// Bytes of the proxy's memory for a client that has asked once and does nothing.
    fn idle(&self, proxy: &Running, port: u16) -> Result<f64> {
        let script = self.dir.join("idle.sql");
        std::fs::write(&script, "select 1;\n\\sleep 60 s\n")?;
        // The pool's own server connections are there before, not after.
        self.cost(proxy, port, &Load { protocol: "simple", clients: 40, seconds: 1, connects: false })?;
        let (before, descriptors) = (proxy.memory()?, proxy.descriptors());
        let mut pgbench = self.pgbench(Some(port));
        pgbench.args(["-n", "-j", "1", "-t", "1", "-c", &IDLE.to_string(), "-f"]).arg(&script);
        let clients = Running(pgbench.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?, "-KILL");
        let began = Instant::now();
        while proxy.descriptors() < descriptors + IDLE {
            if began.elapsed() > START {
                bail!("{IDLE} clients do not come in; see the limit of open files (ulimit -n)");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        std::thread::sleep(Duration::from_secs(2));
        let bytes = (proxy.memory()? - before) / IDLE as f64;
        drop(clients);
        Ok(bytes)
    }
}

/// One measurement's load.
struct Load<'a> {
    protocol: &'a str,
    clients: usize,
    seconds: u64,
    /// Each transaction over a connection of its own.
    connects: bool,
}

/// The 99th percentile of what pgbench logged.
fn percentile(logs: &Path) -> Result<f64> {
    let mut times = Vec::new();
    for file in std::fs::read_dir(logs)? {
        let text = std::fs::read_to_string(file?.path())?;
        times.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()));
    }
    times.sort_by(f64::total_cmp);
    Ok(times.get(times.len() * 99 / 100).copied().unwrap_or(f64::NAN))
}

impl Drop for Bed {
    fn drop(&mut self) {
        // The server still writes; what is left is in the system's directory for temporary files.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One row for each of these peers.
fn measure(bed: &Bed, wishes: &Wishes, peers: &[&str], load: &Load) -> Result<Vec<Value>> {
    let mut running = vec![bed.start("mainstay", load.protocol, wishes.tcp)?];
    for peer in peers {
        running.push(bed.start(peer, load.protocol, wishes.tcp)?);
    }
    let mut costs: Vec<Vec<(f64, f64)>> = vec![Vec::new(); running.len()];
    // Side by side in time: each round asks each of them, and a peer is compared with what was measured beside it.
    for _ in 0..wishes.rounds.max(1) {
        for ((proxy, port), costs) in running.iter().zip(&mut costs) {
            costs.push(bed.cost(proxy, *port, load)?);
        }
    }
    let of = |costs: &[(f64, f64)], which: fn(&(f64, f64)) -> f64| median(costs.iter().map(which).collect());
    let (ours, theirs) = costs.split_first().context("no costs")?;
    let row = |(peer, theirs): (&&str, &Vec<(f64, f64)>)| {
        let ratio = median(ours.iter().zip(theirs).map(|(ours, theirs)| ours.0 / theirs.0).collect());
        let (cost, peer_cost) = (of(ours, |cost| cost.0), of(theirs, |cost| cost.0));
        let (late, peer_late) = (of(ours, |cost| cost.1), of(theirs, |cost| cost.1));
        let (protocol, clients) = (load.protocol, load.clients);
        println!(
            "{peer:<10} {protocol:<9} {clients:>7} {cost:>10.2} {peer_cost:>12.2} {ratio:>6.2} {late:>10.0} {peer_late:>10.0}"
        );
        json!({
            "peer": peer, "protocol": protocol, "clients": clients, "cpu_us": cost, "peer_cpu_us": peer_cost,
            "ratio": ratio, "p99_us": late, "peer_p99_us": peer_late,
        })
    };
    Ok(peers.iter().zip(theirs).map(row).collect())
}

/// What is measured beside PgBouncer alone: a connection for each transaction, and memory of clients that do nothing.
fn beside(bed: &Bed, wishes: &Wishes) -> Result<Value> {
    println!("with a connection for each transaction (pgbench -C, SCRAM), processor time per connection:");
    let load = Load { protocol: "simple", clients: 8, seconds: wishes.seconds, connects: true };
    let connects = measure(bed, wishes, &PEERS[..1], &load)?;
    let (proxy, port) = bed.start("mainstay", "simple", wishes.tcp)?;
    let ours = bed.idle(&proxy, port)?;
    drop(proxy);
    let (proxy, port) = bed.start(PEERS[0], "simple", wishes.tcp)?;
    let theirs = bed.idle(&proxy, port)?;
    let verdict = if ours <= IDLE_GOAL { "reached" } else { "MISSED" };
    println!(
        "memory per idle client, of {IDLE}: {ours:.0} bytes (wanted: {IDLE_GOAL}) {verdict}; {}: {theirs:.0}",
        PEERS[0]
    );
    Ok(json!({ "connects": connects, "idle_bytes": ours, "peer_idle_bytes": theirs }))
}

/// Measures and shows.
pub(crate) fn run(root: &Path, arguments: &[OsString]) -> Result<ExitCode> {
    let wishes = wishes(arguments)?;
    for peer in PEERS {
        if !crate::step::answers(Command::new(peer).arg("-v")) && !crate::step::answers(Command::new(peer).arg("-V")) {
            bail!("{peer} is missing; on Debian or Ubuntu: apt-get install {peer}");
        }
    }
    finish(&mut cargo(root, &["build", "--release", "--quiet", "-p", "mainstay-proxy", "--example", "pool"]))?;
    let bed = Bed::make(root)?;
    let hop = if wishes.tcp { "TCP" } else { "Unix socket" };
    println!("microseconds of the proxy's processor time per transaction; last hop: {hop}; one thread each");
    println!("ratio: the median of paired rounds; p99: latency that clients see, in microseconds");
    println!(
        "{:<10} {:<9} {:>7} {:>10} {:>12} {:>6} {:>10} {:>10}",
        "peer", "protocol", "clients", "mainstay", "peer", "ratio", "p99", "peer p99"
    );
    let mut rows = Vec::new();
    for protocol in PROTOCOLS {
        for clients in CLIENTS {
            let load = Load { protocol, clients, seconds: wishes.seconds, connects: false };
            rows.extend(measure(&bed, &wishes, &PEERS, &load)?);
        }
    }
    let mean = |peer: &str| {
        let of_peer = rows.iter().filter(|row| row["peer"] == peer).filter_map(|row| row["ratio"].as_f64());
        let logs: Vec<f64> = of_peer.map(f64::ln).collect();
        (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp()
    };
    let means: Vec<(&str, f64)> = PEERS.iter().map(|peer| (*peer, mean(peer))).collect();
    let worst = rows.iter().filter_map(|row| row["ratio"].as_f64()).fold(0.0, f64::max);
    for (peer, mean) in &means {
        let verdict = if *mean <= GOAL { "reached" } else { "MISSED" };
        println!("geometric mean against {peer}: {mean:.2} (wanted: {GOAL}) {verdict}");
    }
    println!("worst row: {worst:.2} (wanted: 1.0) {}", if worst <= 1.0 { "reached" } else { "MISSED" });
    let beside = beside(&bed, &wishes)?;
    if wishes.json {
        let means: Value = means.iter().map(|(peer, mean)| ((*peer).to_owned(), json!(mean))).collect();
        println!(
            "{}",
            json!({ "last_hop": hop, "rows": rows, "geometric_means": means, "worst": worst, "beside": beside })
        );
    }
    Ok(ExitCode::SUCCESS)
}
