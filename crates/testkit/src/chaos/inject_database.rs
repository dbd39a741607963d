//! What a database does to itself, and its clients to it.

use super::fault::Kind;
use super::inject::{Happened, Scene, program, server, there};
use super::inject_network::cut_port;
use super::undo::Undo;
use crate::hosts::files;
use crate::hosts::host::Host;
use crate::hosts::inject::ask;
use crate::ledger;
use crate::processes::{Pinned, kill_all};
use anyhow::{Context as _, Result, bail};
use mainstay_model::NodeId;
use rustix::process::Signal;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::time::{Duration, Instant};

/// More connections than a server takes.
const CONNECTIONS: usize = 400;
/// How long commits may take to wait once nobody can confirm them.
const WAITS: Duration = Duration::from_secs(8);
/// How long an operator's command may take.
const OPERATOR: Duration = Duration::from_secs(60);
/// One page of the log.
const PAGE: usize = 8192;

pub(crate) async fn inject(scene: &Scene<'_>, kind: Kind, node: &NodeId, host: &Host) -> Result<Happened> {
    match kind {
        Kind::CrashInRecovery => crash_in_recovery(node, host).await,
        Kind::SlotsExhausted => exhaust_slots(scene, node, host).await,
        Kind::LongTransaction => switch_over_with_a_transaction_open(scene).await,
        Kind::CancelledWaits => cancel_waits(scene, node, host).await,
        Kind::LogCorrupt => corrupt_log(node, host).await,
        _ => bail!("{} is no fault of the database", kind.name()),
    }
}

/// The server is killed, and again as soon as it reads its log.
async fn crash_in_recovery(node: &NodeId, host: &Host) -> Result<Happened> {
    let first = there("a server", || server(host)).await?;
    let at = kill_all(&[first], &[])?;
    let second = there("the server that reads its log", || server(host).filter(|pid| *pid != first)).await?;
    kill_all(&[second], &[])?;
    let evidence = format!("the server of {node}, process {first}, was killed, and {second} while it read the log");
    Ok(Happened { at, evidence, undo: Undo::Nothing })
}

/// Clients take every connection that the server gives.
async fn exhaust_slots(scene: &Scene<'_>, node: &NodeId, host: &Host) -> Result<Happened> {
    let config = ledger::config(&scene.cluster.server_uri(host))?;
    let at = Instant::now();
    let take = async move {
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            match ledger::connect(&config).await {
                Ok((client, _)) => held.push(client),
                Err(error) => {
                    let code = error.downcast_ref::<tokio_postgres::Error>().and_then(|error| error.code().cloned());
                    return (held, code.is_some_and(|code| code.code() == "53300"));
                }
            }
        }
        (held, false)
    };
    let (held, full) = scene.client.run(take).await?;
    if !full {
        bail!("{} connections to {node} were taken, and the server is not full", held.len());
    }
    let evidence = format!("{} connections are held at {node}, one more was refused", held.len());
    Ok(Happened { at, evidence, undo: Undo::Connections(held) })
}

/// A client has written and not committed when the primary is to change.
async fn switch_over_with_a_transaction_open(scene: &Scene<'_>) -> Result<Happened> {
    let config = ledger::config(&scene.cluster.uri())?;
    let begin = async move {
        let (client, _) = ledger::connect(&config).await?;
        let open = "CREATE TABLE IF NOT EXISTS mainstay_open (x integer); BEGIN; INSERT INTO mainstay_open VALUES (1)";
        tokio::time::timeout(WAITS, client.batch_execute(open)).await.context("no transaction in time")??;
        anyhow::Ok(client)
    };
    let client = scene.client.run(begin).await?.context("the transaction that is to be open")?;
    let at = Instant::now();
    let answer = match scene.cluster.run(&["switchover", "--yes"], OPERATOR).await {
        Ok(_) => "switchover has returned".to_owned(),
        Err(error) => format!("switchover was refused: {}", format!("{error:#}").lines().last().unwrap_or_default()),
    };
    let commit =
        async move { tokio::time::timeout(WAITS, client.batch_execute("COMMIT")).await.is_ok_and(|done| done.is_ok()) };
    let committed = scene.client.run(commit).await?;
    let evidence = format!("a transaction was open; {answer}; it could be committed: {committed}");
    Ok(Happened { at, evidence, undo: Undo::Nothing })
}

/// Nobody can confirm commits, and whoever waits for that is cancelled: its commit stays, with a warning.
async fn cancel_waits(scene: &Scene<'_>, node: &NodeId, host: &Host) -> Result<Happened> {
    let cut = cut_port(node, host, &scene.others(node), 5432, 7420)?;
    let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let (begun, mut cancelled) = (Instant::now(), 0u32);
    while begun.elapsed() < WAITS && cancelled < 8 {
        cancelled += ask(host, cancel).await?.parse::<u32>().unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if cancelled == 0 {
        cut.undo.apply(scene.cluster).await?;
        bail!("no commit waited on {node} although nobody could confirm it");
    }
    Ok(Happened { at: cut.at, evidence: format!("{}; {cancelled} waits were cancelled", cut.evidence), undo: cut.undo })
}

/// A replica's server dies, and the end of its log has rotted. Its agent looks away meanwhile.
async fn corrupt_log(node: &NodeId, host: &Host) -> Result<Happened> {
    let agent = Pinned::new(program(host, "agent").context("the replica has no agent")?)?;
    agent.signal(Signal::STOP)?;
    let done = (|| {
        let at = kill_all(&[server(host).context("the replica has no server")?], &[])?;
        anyhow::Ok((at, spoil_last_page(host)?))
    })();
    agent.signal(Signal::CONT)?;
    let (at, what) = done?;
    Ok(Happened { at, evidence: format!("the server of {node} is gone, and {what}"), undo: Undo::Nothing })
}

/// Writes rubbish into the middle of the last page that holds records.
fn spoil_last_page(host: &Host) -> Result<String> {
    let dir = host.path(&format!("{}/pg_wal", files::data_dir()));
    let mut segments: Vec<_> = std::fs::read_dir(&dir)?.flatten().map(|entry| entry.path()).collect();
    segments.retain(|path| path.file_name().is_some_and(|name| name.len() == 24));
    // Segments that are kept to be used again bear later names, and hold old pages: the newest written is the one.
    segments.sort_by_key(|path| std::fs::metadata(path).and_then(|data| data.modified()).ok());
    let path = segments.last().context("the replica has no log")?;
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let last = bytes.chunks(PAGE).rposition(|page| page.iter().any(|byte| *byte != 0)).context("the log is empty")?;
    let at = u64::try_from(last.saturating_sub(1) * PAGE + PAGE / 2)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&[0x5A; 512])?;
    file.sync_all()?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(format!("512 bytes of {name} at {at} are rubbish"))
}
