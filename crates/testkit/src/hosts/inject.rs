//! Makes faults happen to hosts; each is seen to have happened before it counts.

use super::checks::direction;
use super::cluster::HostCluster;
use super::faults::{Heal, HostFault, Injected};
use super::files;
use super::host::Host;
use super::network::cut_towards;
use super::operated;
use super::volume::{self, Freeze};
use crate::processes::{Pinned, kill_all, state, working_in};
use anyhow::{Context as _, Result, bail};
use mainstay_model::NodeId;
use mainstay_model::status::{Problem, Status};
use rustix::process::Signal;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the commands of a planned change may take.
const PLANNED: Duration = Duration::from_secs(40);
/// How often a cable flaps, and for how long it is out and in, milliseconds.
const FLAPS: [(u64, u64); 6] = [(300, 400), (1200, 300), (2000, 500), (600, 300), (1600, 1000), (900, 300)];
/// How far clocks jump, in seconds.
const JUMPS: [i64; 2] = [3600, -3600];

/// What happened: when, what was seen of it, and what undoes it.
pub(crate) type Happened = (Instant, String, Heal);

pub(crate) async fn inject(fault: HostFault, cluster: &HostCluster, status: &Status) -> Result<Injected> {
    use HostFault as F;
    let (before, host) = cluster.primary(status)?;
    let replica = replicas(cluster, &before).next().context("there is no replica")?;
    let (at, evidence, heal) = match fault {
        F::ServerKill => kill_server(host, status, &before)?,
        F::HostKill => kill_hosts(cluster, &[(&before, host)], false)?,
        F::HostRestart => kill_hosts(cluster, &[(&before, host)], true)?,
        F::HostsLost => kill_hosts(cluster, &cluster.others(&before).collect::<Vec<_>>(), false)?,
        F::ReplicaKill => kill_hosts(cluster, &[replica], false)?,
        F::ServerStop => (Instant::now(), stop_server(host)?.1, Heal::Nothing),
        F::Switchover => switch_over(cluster).await?,
        F::LinkCut => cut_cable(cluster, &before, host)?,
        F::CutOut => cut_out(cluster, &before, host)?,
        F::CutIn => cut_in(cluster, &before, host)?,
        F::Flapping => flap(cluster, host).await?,
        F::ReplicaApart => apart(cluster, replica, &replicas(cluster, &before).skip(1).collect::<Vec<_>>())?,
        F::PrimaryApart => apart(cluster, (&before, host), &cluster.others(&before).collect::<Vec<_>>())?,
        F::ReplicasLost => lose_servers(cluster, status, &before)?,
        F::DiskFull => {
            let at = Instant::now();
            (at, volume::fill(host)?, Heal::Empty(before.clone()))
        }
        F::DiskStall => {
            let at = Instant::now();
            (at, format!("the volume of {before} is frozen"), Heal::Thaw(Freeze::new(host)?))
        }
        F::ClockStep => step_clock(cluster, host, status, &before).await?,
        F::LongQuery => long_query(cluster, status, &before, host).await?,
        F::ReplayPaused => replay_paused(cluster, status, &before, host).await?,
        F::StoppedReplica => stopped_replica(cluster, replica).await?,
        F::HostWiped => wipe(cluster, &[replica])?,
        F::MostWiped => operated::lose_most(cluster, &before, true).await?,
        F::MostReturn => operated::lose_most(cluster, &before, false).await?,
        F::RestartAll => operated::restart_all(cluster).await?,
        F::RestartReplicas => operated::restart_replicas(cluster, status, &before).await?,
        F::AgentReload => operated::reload_agents(cluster, status).await?,
        F::DurabilityChange => operated::change_durability(cluster).await?,
        F::NodeChange => operated::take_out(cluster, replica).await?,
        F::Paused => operated::kill_while_paused(cluster, host, status, &before).await?,
        F::AgentKill => kill_agent(host, status, &before)?,
    };
    Ok(Injected { before, at, evidence, heal })
}

/// Data nodes besides this one.
pub(crate) fn replicas<'a>(
    cluster: &'a HostCluster,
    primary: &'a NodeId,
) -> impl Iterator<Item = (&'a NodeId, &'a Host)> {
    cluster.data_nodes().filter(move |(name, _)| *name != primary)
}

pub(crate) fn pid_of(host: &Host, status: &Status, node: &NodeId, server: bool) -> Result<u32> {
    let line = status.nodes.iter().find(|line| line.name == *node).context("the node is not in the status")?;
    let inner = if server { line.server_pid } else { line.agent_pid };
    host.outer(inner.with_context(|| format!("the status shows no process number on {node}"))?)
}

pub(super) fn kill_server(host: &Host, status: &Status, node: &NodeId) -> Result<Happened> {
    let server = pid_of(host, status, node, true)?;
    Ok((kill_all(&[server], &[])?, format!("the server of {node}, process {server}, is gone"), Heal::Nothing))
}

fn kill_agent(host: &Host, status: &Status, node: &NodeId) -> Result<Happened> {
    let agent = pid_of(host, status, node, false)?;
    Ok((kill_all(&[agent], &[])?, format!("the agent of {node}, process {agent}, is gone"), Heal::Nothing))
}

/// Sends an agent a signal that it survives.
pub(super) fn tell_agent(agent: u32, signal: Signal) -> Result<()> {
    Pinned::new(agent)?.signal(signal)
}

/// Kills every process of these hosts. They are started again at once, or only when healed.
pub(crate) fn kill_hosts(cluster: &HostCluster, hosts: &[(&NodeId, &Host)], at_once: bool) -> Result<Happened> {
    let nodes: Vec<NodeId> = hosts.iter().map(|(node, _)| (*node).clone()).collect();
    nodes.iter().try_for_each(|node| cluster.keep(node, false))?;
    let mut first = None;
    let mut evidence = Vec::new();
    for (node, host) in hosts {
        let (at, count) = host.kill_everything()?;
        first.get_or_insert(at);
        evidence.push(format!("{count} processes of {node} are gone"));
    }
    let heal = if at_once { Heal::Nothing } else { Heal::Keep(nodes.clone()) };
    if at_once {
        nodes.iter().try_for_each(|node| cluster.keep(node, true))?;
    }
    Ok((first.context("no host was named")?, evidence.join(", "), heal))
}

/// Kills these hosts and gives them empty volumes under their old names.
pub(super) fn wipe(cluster: &HostCluster, hosts: &[(&NodeId, &Host)]) -> Result<Happened> {
    let (at, evidence, _) = kill_hosts(cluster, hosts, false)?;
    let nodes: Vec<NodeId> = hosts.iter().map(|(node, _)| (*node).clone()).collect();
    nodes.iter().try_for_each(|node| cluster.wipe(node))?;
    Ok((at, format!("{evidence}, and what was on their volumes"), Heal::Replace(nodes)))
}

/// The server's processes: they work in the data directory, of which there is one of that name in each host.
pub(crate) fn server_processes(host: &Host) -> Vec<u32> {
    let there = host.processes();
    working_in(Path::new(&files::data_dir())).into_iter().filter(|pid| there.contains(pid)).collect()
}

/// Stops a server and all its backends, again and again until none runs (new ones may be forked meanwhile).
pub(crate) fn stop_server(host: &Host) -> Result<(Vec<Pinned>, String)> {
    let mut stopped = Vec::new();
    for _ in 0..200 {
        let all = server_processes(host);
        let running: Vec<u32> =
            all.iter().copied().filter(|pid| !matches!(state(*pid), None | Some('T' | 'Z'))).collect();
        if running.is_empty() && !all.is_empty() {
            return Ok((stopped, format!("{} processes of the server of {} are stopped", all.len(), host.name())));
        }
        for pid in running {
            // One that ended by itself meanwhile is as good.
            let Ok(process) = Pinned::new(pid) else { continue };
            if process.signal(Signal::STOP).is_ok() {
                stopped.push(process);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("the server of {} does not stop", host.name())
}

async fn switch_over(cluster: &HostCluster) -> Result<Happened> {
    let at = Instant::now();
    cluster.run(&["switchover", "--yes"], PLANNED).await?;
    Ok((at, "switchover has returned".to_owned(), Heal::Nothing))
}

pub(crate) fn cut_cable(cluster: &HostCluster, node: &NodeId, host: &Host) -> Result<Happened> {
    let at = Instant::now();
    cluster.switch.connect(host, false)?;
    let heal = Heal::Plug(vec![node.clone()]);
    direction(host, &cluster.client, false)?;
    direction(&cluster.client, host, false)?;
    Ok((at, format!("nothing passes between {node} and the others"), heal))
}

fn addresses<'a>(hosts: impl Iterator<Item = (&'a NodeId, &'a Host)>) -> Vec<Ipv4Addr> {
    hosts.map(|(_, host)| host.address()).collect()
}

pub(crate) fn cut_out(cluster: &HostCluster, node: &NodeId, host: &Host) -> Result<Happened> {
    let mut all = addresses(cluster.others(node).chain(&cluster.stores));
    all.push(cluster.client.address());
    let at = Instant::now();
    cut_towards(host, &all, true)?;
    for to in cluster.others(node).map(|(_, other)| other).chain([&cluster.client]) {
        direction(host, to, false)?;
    }
    direction(&cluster.client, host, true)?;
    let heal = Heal::Paths(vec![(Some(node.clone()), all)]);
    Ok((at, format!("what {node} sends arrives nowhere, what is sent to it arrives"), heal))
}

pub(crate) fn cut_in(cluster: &HostCluster, node: &NodeId, host: &Host) -> Result<Happened> {
    let there = vec![host.address()];
    let mut paths = vec![(None, there.clone())];
    let at = Instant::now();
    cut_towards(&cluster.client, &there, true)?;
    for (other, from) in cluster.others(node).chain(&cluster.stores) {
        cut_towards(from, &there, true)?;
        paths.push((Some(other.clone()), there.clone()));
    }
    for from in cluster.others(node).map(|(_, other)| other).chain([&cluster.client]) {
        direction(from, host, false)?;
    }
    direction(host, &cluster.client, true)?;
    Ok((at, format!("nothing arrives at {node}, what it sends arrives"), Heal::Paths(paths)))
}

/// Cuts one host from these others, both ways.
pub(crate) fn apart(
    cluster: &HostCluster,
    (node, host): (&NodeId, &Host),
    from: &[(&NodeId, &Host)],
) -> Result<Happened> {
    let others: Vec<Ipv4Addr> = from.iter().map(|(_, other)| other.address()).collect();
    if others.is_empty() {
        bail!("there is nobody to cut {node} from: this needs more hosts");
    }
    let at = Instant::now();
    cut_towards(host, &others, true)?;
    let mut paths = vec![(Some(node.clone()), others)];
    for (name, other) in from {
        cut_towards(other, &[host.address()], true)?;
        paths.push((Some((*name).clone()), vec![host.address()]));
    }
    for (_, other) in from {
        direction(host, other, false)?;
        direction(other, host, false)?;
    }
    direction(&cluster.client, host, true)?;
    direction(host, &cluster.client, true)?;
    let names: Vec<&str> = from.iter().map(|(name, _)| name.as_str()).collect();
    Ok((at, format!("nothing passes between {node} and {}; clients reach all", names.join(", ")), Heal::Paths(paths)))
}

pub(crate) async fn flap(cluster: &HostCluster, host: &Host) -> Result<Happened> {
    let at = Instant::now();
    for (out, back) in FLAPS {
        cluster.switch.connect(host, false)?;
        tokio::time::sleep(Duration::from_millis(out)).await;
        cluster.switch.connect(host, true)?;
        tokio::time::sleep(Duration::from_millis(back)).await;
    }
    Ok((at, format!("the cable of {} was out {} times", host.name(), FLAPS.len()), Heal::Nothing))
}

/// Puts a program that only fails in place of the server's, or takes it away again.
pub(super) fn break_program(host: &Host, broken: bool) -> Result<()> {
    let script = if broken {
        "for p in /usr/lib/postgresql/*/bin/postgres; do mount --bind /bin/false \"$p\" || exit 1; done"
    } else {
        // At once, also while it is being run: else the nodes after this one would stay without their servers.
        "for p in /usr/lib/postgresql/*/bin/postgres; do umount -l \"$p\" || exit 1; done"
    };
    host.run_now(&["sh", "-c", script]).map(drop)
}

fn lose_servers(cluster: &HostCluster, status: &Status, primary: &NodeId) -> Result<Happened> {
    let mut nodes = Vec::new();
    let mut pids = Vec::new();
    for (node, host) in replicas(cluster, primary) {
        pids.push(pid_of(host, status, node, true)?);
        break_program(host, true)?;
        nodes.push(node.clone());
    }
    let at = kill_all(&pids, &[])?;
    Ok((at, format!("{} servers are gone and do not start", nodes.len()), Heal::Programs(nodes)))
}

/// Agents have so long to tell of a clock that jumped.
const CLOCK_TOLD: Duration = Duration::from_secs(15);

/// Sets how far a host's wall clock is ahead, for processes that were started with the library for it.
pub(super) fn set_clock(host: &Host, seconds: i64) -> Result<()> {
    std::fs::write(host.path(CLOCK_FILE), format!("{seconds:+}\n"))?;
    Ok(())
}

/// Where the library looks how far the clock is off.
pub(super) const CLOCK_FILE: &str = "/etc/mainstay/clock";

/// Do the agents themselves say that this node's clock is so many seconds ahead? Seen from the node, the others are behind.
fn tells_clock(status: &Status, node: &NodeId, seconds: i64) -> bool {
    let told = |problem: &Problem| {
        let its_own = problem.evidence.starts_with(&format!("{node}:"));
        let ahead = its_own == (seconds > 0);
        let mut numbers = problem.evidence.split(' ').filter_map(|word| word.parse::<i64>().ok());
        let far = numbers.any(|ms| (ms / 1000 - seconds.abs()).abs() <= 5);
        problem.name == "clock-off" && far && problem.evidence.contains(if ahead { "ms ahead" } else { "ms behind" })
    };
    status.problems.iter().any(told)
}

/// The agent is started again with the library that lies about the clock: servers and guards have an environment of their own and keep the
/// right one, which is the harder case for an agent.
async fn step_clock(cluster: &HostCluster, host: &Host, status: &Status, node: &NodeId) -> Result<Happened> {
    set_clock(host, 0)?;
    let at = Instant::now();
    cluster.start_agent(node, &super::cluster::clock_environment()?)?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    kill_agent(host, status, node)?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    for jump in JUMPS {
        set_clock(host, jump)?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        let until = Instant::now() + CLOCK_TOLD;
        while !tells_clock(&cluster.status().await?, node, jump) {
            if Instant::now() > until {
                bail!("no agent says that the clock of {node} is off by {jump} s");
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
    Ok((at, format!("the clock of the agent of {node} was {JUMPS:?} s off"), Heal::Clock(node.clone())))
}

/// The agent's own way in: the server's socket, as the operating system's root.
fn sql<'a>(dir: &'a str, database: &'a str, statement: &'a str) -> [&'a str; 12] {
    ["psql", "-X", "-q", "-A", "-t", "-h", dir, "-U", "postgres", "-d", database, statement]
}

pub(crate) async fn ask(host: &Host, statement: &str) -> Result<String> {
    let (dir, statement) = (files::socket_dir(), format!("-c{statement}"));
    Ok(host.run(&sql(&dir, "app", &statement)).await?.trim().to_owned())
}

/// Asks until the answer is this.
async fn until(host: &Host, statement: &str, wanted: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let answer = ask(host, statement).await;
        if answer.as_ref().is_ok_and(|answer| answer == wanted) {
            return Ok(());
        }
        if begun.elapsed() > Duration::from_secs(30) {
            bail!("{}: {statement}: {answer:?} instead of {wanted:?}", host.name());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the primary's server sends its log to every other data node.
pub(crate) async fn all_stream(cluster: &HostCluster, status: &Status) -> Result<()> {
    let (primary, host) = cluster.primary(status)?;
    let others = replicas(cluster, &primary).count().to_string();
    let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name NOT LIKE 'mainstay_clone%'";
    until(host, streams, &others).await.context("the status says that every replica streams, and they do not")
}

async fn long_query(cluster: &HostCluster, status: &Status, primary: &NodeId, host: &Host) -> Result<Happened> {
    ask(host, "CREATE TABLE IF NOT EXISTS mainstay_conflict (x integer)").await?;
    let dir = files::socket_dir();
    let mut sessions = Vec::new();
    for (_, replica) in replicas(cluster, primary) {
        until(replica, "SELECT count(*) FROM pg_class WHERE relname = 'mainstay_conflict'", "1").await?;
        let statement = "-cBEGIN; SELECT count(*) FROM mainstay_conflict; SELECT pg_sleep(120)";
        let mut command = replica.command(&sql(&dir, "app", statement));
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        sessions.push(command.stderr(std::process::Stdio::null()).spawn()?);
        until(
            replica,
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(120)%' AND wait_event = 'PgSleep'",
            "1",
        )
        .await?;
    }
    // Replay of its lock waits for those queries.
    ask(host, "TRUNCATE mainstay_conflict").await?;
    for (_, replica) in replicas(cluster, primary) {
        // It may wait for the same query a little earlier in the log already, where rows that it might see were removed.
        let blocked = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'startup' AND (wait_event_type = 'Lock' OR wait_event LIKE 'RecoveryConflict%')";
        until(replica, blocked, "1").await?;
    }
    let (at, evidence, _) = kill_server(host, status, primary)?;
    Ok((at, format!("replay waits for a query on every replica; {evidence}"), Heal::Sessions(sessions)))
}

async fn replay_paused(cluster: &HostCluster, status: &Status, primary: &NodeId, host: &Host) -> Result<Happened> {
    for (_, replica) in replicas(cluster, primary) {
        ask(replica, "SELECT pg_wal_replay_pause()").await?;
        until(replica, "SELECT pg_get_wal_replay_pause_state()", "paused").await?;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (at, evidence, _) = kill_server(host, status, primary)?;
    Ok((at, format!("replay is paused on every replica; {evidence}"), Heal::Nothing))
}

async fn stopped_replica(cluster: &HostCluster, (node, host): (&NodeId, &Host)) -> Result<Happened> {
    let (stopped, evidence) = stop_server(host)?;
    let at = Instant::now();
    // Refused, or done with another replica: either is right, and which one is said.
    let answer = match cluster.run(&["switchover", "--yes"], PLANNED).await {
        Ok(_) => "switchover has returned".to_owned(),
        Err(error) => format!("switchover was refused: {error:#}"),
    };
    Ok((at, format!("{evidence}; {answer} (stopped: {node})"), Heal::Continue(stopped)))
}
