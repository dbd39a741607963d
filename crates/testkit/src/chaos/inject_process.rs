//! Processes that end, stop, freeze or run out of memory.

use super::cgroup::{Frozen, Limited};
use super::fault::Kind;
use super::inject::{Happened, Scene, program, server, there};
use super::undo::Undo;
use crate::hosts::host::Host;
use crate::hosts::inject as hosts;
use crate::ledger;
use crate::processes::{Pinned, kill_all, state};
use anyhow::{Context as _, Result, bail};
use mainstay_model::NodeId;
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// How long a server may take to let a client in.
const ANSWERS: Duration = Duration::from_secs(20);
/// What a process that runs out of memory may have.
const MEMORY: u64 = 64 * 1024 * 1024;

pub(crate) async fn inject(scene: &Scene<'_>, kind: Kind, node: &NodeId, host: &Host) -> Result<Happened> {
    let client = &scene.cluster.client;
    match kind {
        Kind::ServerKill => kill("server", node, there("a server", || server(host)).await?),
        Kind::AgentKill => kill("agent", node, there("an agent", || program(host, "agent")).await?),
        Kind::GuardKill => kill("guard", node, there("a guard", || program(host, "guard")).await?),
        Kind::ProxyKill => kill("proxy", &NodeId::new("client")?, there("a proxy", || program(client, "proxy")).await?),
        Kind::AgentStop | Kind::AgentPause => stop("agent", node, there("an agent", || program(host, "agent")).await?),
        Kind::GuardStop => stop("guard", node, there("a guard", || program(host, "guard")).await?),
        Kind::ProxyStop => stop("proxy", &NodeId::new("client")?, there("a proxy", || program(client, "proxy")).await?),
        Kind::ServerStop | Kind::ServerPause => {
            there("a server", || server(host)).await?;
            let at = Instant::now();
            let (stopped, evidence) = hosts::stop_server(host)?;
            Ok(Happened { at, evidence, undo: Undo::Continue(stopped) })
        }
        Kind::HostKill | Kind::HostRestart => {
            there("an agent", || program(host, "agent")).await?;
            let (at, evidence, heal) = hosts::kill_hosts(scene.cluster, &[(node, host)], kind == Kind::HostRestart)?;
            Ok(Happened { at, evidence, undo: Undo::Hosts(heal) })
        }
        Kind::EveryHostRestart => {
            let all: Vec<(&NodeId, &Host)> = scene.cluster.hosts.iter().collect();
            let (at, evidence, heal) = hosts::kill_hosts(scene.cluster, &all, true)?;
            Ok(Happened { at, evidence, undo: Undo::Hosts(heal) })
        }
        Kind::HostFreeze | Kind::HostPause => {
            there("an agent", || program(host, "agent")).await?;
            let at = Instant::now();
            let (frozen, evidence) = Frozen::new(host)?;
            Ok(Happened { at, evidence, undo: Undo::Thaw(frozen) })
        }
        Kind::AgentsLost => stop_most_agents(scene, node),
        Kind::BackendKill => kill_backend(scene, node, host).await,
        Kind::WorkerStop => stop_worker(node, host).await,
        Kind::OutOfMemory => out_of_memory(scene, node, host).await,
        _ => bail!("{} is no fault of processes", kind.name()),
    }
}

fn kill(what: &str, node: &NodeId, pid: u32) -> Result<Happened> {
    let at = kill_all(&[pid], &[])?;
    Ok(Happened { at, evidence: format!("the {what} of {node}, process {pid}, is gone"), undo: Undo::Nothing })
}

pub(crate) fn stopped(pid: u32) -> Result<Pinned> {
    let process = Pinned::new(pid)?;
    process.signal(Signal::STOP)?;
    let begun = Instant::now();
    while state(pid) != Some('T') {
        if begun.elapsed() > Duration::from_secs(2) {
            bail!("process {pid} does not stop but is {:?}", state(pid));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(process)
}

fn stop(what: &str, node: &NodeId, pid: u32) -> Result<Happened> {
    let at = Instant::now();
    let process = stopped(pid)?;
    let evidence = format!("the {what} of {node}, process {pid}, is stopped");
    Ok(Happened { at, evidence, undo: Undo::Continue(vec![process]) })
}

/// So many agents are stopped that the rest is no majority. Servers go on until their leases run out.
fn stop_most_agents(scene: &Scene<'_>, first: &NodeId) -> Result<Happened> {
    let most = scene.cluster.hosts.len() / 2 + 1;
    let mut order = vec![(first, scene.cluster.host(first)?)];
    order.extend(scene.others(first));
    let at = Instant::now();
    let mut processes = Vec::new();
    for (node, host) in order.into_iter().take(most) {
        processes.push(stopped(program(host, "agent").with_context(|| format!("no agent on {node}"))?)?);
    }
    let evidence = format!("{most} of {} agents are stopped", scene.cluster.hosts.len());
    Ok(Happened { at, evidence, undo: Undo::Continue(processes) })
}

/// The title that a server's process gives itself, `postgres: checkpointer` …
fn title(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// The same as `backend_now`, as soon as the server takes connections: another fault may have ended it a moment ago.
async fn backend(scene: &Scene<'_>, host: &Host) -> Result<(tokio_postgres::Client, u32)> {
    let begun = Instant::now();
    loop {
        match backend_now(scene, host).await {
            Ok(found) => return Ok(found),
            Err(error) if begun.elapsed() > ANSWERS => return Err(error.context("a session at the node's own server")),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A session at a node's own server, and the number of its backend outside.
async fn backend_now(scene: &Scene<'_>, host: &Host) -> Result<(tokio_postgres::Client, u32)> {
    let config = ledger::config(&scene.cluster.server_uri(host))?;
    let asked = async move {
        let (client, _) = ledger::connect(&config).await?;
        let row = client.query_one("SELECT pg_backend_pid()", &[]).await?;
        anyhow::Ok((client, row.get::<_, i32>(0)))
    };
    let (client, inner) = scene.client.run(asked).await??;
    Ok((client, host.outer(u32::try_from(inner)?)?))
}

/// SIGKILL to one backend: the server takes all others down with it.
async fn kill_backend(scene: &Scene<'_>, node: &NodeId, host: &Host) -> Result<Happened> {
    let (_client, pid) = backend(scene, host).await?;
    let before = there("the server", || server(host)).await?;
    let at = kill_all(&[pid], &[])?;
    there("the end of the server", || (server(host) != Some(before)).then_some(())).await?;
    Ok(Happened {
        at,
        evidence: format!("a backend of {node} was killed, and server {before} ended"),
        undo: Undo::Nothing,
    })
}

/// One process of the server's own stops: it writes, sends or replays nothing, and everything else goes on.
async fn stop_worker(node: &NodeId, host: &Host) -> Result<Happened> {
    let wanted = ["walsender", "walreceiver", "checkpointer"];
    let find = || {
        let all = hosts::server_processes(host);
        wanted
            .iter()
            .find_map(|word| all.iter().copied().find(|pid| title(*pid).contains(word)).map(|pid| (pid, *word)))
    };
    let (pid, word) = there("a process of the server's own", find).await?;
    stop(&format!("server's {word}"), node, pid)
}

/// A query takes more memory than its process may have: the kernel kills it, and the server ends.
async fn out_of_memory(scene: &Scene<'_>, node: &NodeId, host: &Host) -> Result<Happened> {
    let (client, pid) = backend(scene, host).await?;
    let limited = Limited::new(pid, MEMORY)?;
    let at = Instant::now();
    let query = async move { client.query_one("SELECT length(repeat('x', 400000000))", &[]).await.is_err() };
    let ended = scene.client.run(async move { tokio::time::timeout(Duration::from_secs(20), query).await }).await?;
    let kills = limited.kills();
    if kills == 0 || !matches!(ended, Ok(true)) {
        bail!("a backend of {node} did not run out of memory: {kills} kills, {ended:?}");
    }
    let evidence = format!("the kernel killed a backend of {node} that ran out of memory");
    Ok(Happened { at, evidence, undo: Undo::Nothing })
}
