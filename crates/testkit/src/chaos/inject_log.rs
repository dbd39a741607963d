//! The server's log on a volume of its own that is full, and a repository of the archive that hangs.

use super::inject::{Breach, Happened, Scene};
use super::undo::Undo;
use crate::hosts::HostCluster;
use crate::hosts::files::data_dir;
use crate::hosts::host::Host;
use crate::hosts::shared;
use crate::hosts::volume::{Freeze, fill_at};
use anyhow::{Context as _, Result, bail};
use mainstay_model::{Lsn, NodeId, Position};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Where the log's volume is mounted, and its size: little more than the log may have.
const PLACE: &str = "/var/lib/mainstay-log";
const VOLUME_MB: u32 = 500;
/// How long a node may take to do its part again after its log was moved.
const WHOLE: Duration = Duration::from_secs(90);
/// How long a planned change of the primary may take.
const MOVED: Duration = Duration::from_secs(40);
/// What was written while the repository hung must be archived within this time after it answers again.
const ARCHIVED: Duration = Duration::from_secs(90);
/// How long a write that was under way when the repository began to hang may take until it is told.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// How long the question how far the log is archived may take.
const ANSWER: Duration = Duration::from_secs(5);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// Lets a script run on a node's host while nothing else does.
fn alone(cluster: &HostCluster, node: &NodeId, script: &str) -> Result<String> {
    let host = cluster.host(node)?;
    cluster.keep(node, false)?;
    host.kill_everything()?;
    let said = host.run_now(&["sh", "-ec", script])?;
    cluster.keep(node, true)?;
    Ok(said)
}

/// The log of a node's server gets a volume of its own; the node is the primary again if it was; then that volume is full.
pub(crate) async fn full(scene: &Scene<'_>, node: &NodeId, host: &Host) -> Result<Happened> {
    let (cluster, data) = (scene.cluster, data_dir());
    let script = format!(
        "image='{}/log.img'; rm -f \"$image\"; truncate -s {VOLUME_MB}M \"$image\"; mkfs.ext4 -q \"$image\"; mkdir -p {PLACE}; mount -o loop \"$image\" {PLACE}
         mv {data}/pg_wal {PLACE}/pg_wal; ln -s {PLACE}/pg_wal {data}/pg_wal; chown -h --reference={data} {data}/pg_wal; chown --reference={data} {PLACE}",
        host.dir().display()
    );
    alone(cluster, node, &script)?;
    let status = cluster.healed(WHOLE).await.context("after the log was given a volume of its own")?;
    if *node == scene.primary && cluster.primary(&status)?.0 != *node {
        cluster.run(&["switchover", "--to", node.as_str(), "--yes"], MOVED).await?;
    }
    if host.run_now(&["readlink", &format!("{data}/pg_wal")]).is_err() {
        bail!("{node} has another log than the one that was moved: it was cloned anew");
    }
    let at = Instant::now();
    let evidence = fill_at(host, PLACE)?;
    Ok(Happened {
        at,
        evidence: format!("the log of {node} has a volume of its own, and {evidence}"),
        undo: Undo::Log(node.clone()),
    })
}

/// The volume has room; then the log lies on the node's volume again, unless that got another one meanwhile.
pub(crate) async fn put_back(cluster: &HostCluster, node: &NodeId) -> Result<()> {
    cluster.host(node)?.run_now(&["rm", "-rf", &format!("{PLACE}/filler")])?;
    cluster.healed(WHOLE).await.context("after the log's volume had room")?;
    let data = data_dir();
    let script = format!(
        "if [ -L {data}/pg_wal ]; then rm {data}/pg_wal; mv {PLACE}/pg_wal {data}/pg_wal; fi
         umount {PLACE}"
    );
    alone(cluster, node, &script).map(drop)
}

/// A repository that hangs, and how far the log was archived once it did.
pub(crate) struct Hanging {
    freeze: Freeze,
    archived: Option<Position>,
}

/// Everything that touches the repository waits, on every host.
pub(crate) async fn repository_hangs(scene: &Scene<'_>) -> Result<Happened> {
    let at = Instant::now();
    let freeze = Freeze::at(&scene.cluster.client, shared::PLACE)?;
    // What was on the disk a moment before is still to be told.
    tokio::time::sleep(UNDER_WAY).await;
    let archived = archived(scene.cluster).await?;
    let evidence = format!("the repository takes no writes and says nothing; archived {}", shown(archived));
    Ok(Happened { at, evidence, undo: Undo::Repository(Hanging { freeze, archived }) })
}

fn shown(position: Option<Position>) -> String {
    position.map_or_else(|| "nothing".to_owned(), |position| position.to_string())
}

/// How far the archive reaches, in what `archive status --json` says.
fn told(said: &str) -> Result<Option<Position>> {
    let line = said.lines().last().context("nothing was printed")?;
    let answer: Value = serde_json::from_str(line).with_context(|| format!("no status of the archive: {line}"))?;
    let archived = answer.get("archived").with_context(|| format!("no status of the archive: {line}"))?;
    Ok(serde_json::from_value(archived.clone())?)
}

/// Asked again where another fault keeps everybody from answering.
async fn archived(cluster: &HostCluster) -> Result<Option<Position>> {
    let begun = Instant::now();
    loop {
        match cluster.run(&["archive", "status", "--json"], ANSWER).await.and_then(|said| told(&said)) {
            Ok(position) => return Ok(position),
            Err(error) if begun.elapsed() > ANSWER => return Err(error.context("how far the log is archived")),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// A repository that hangs takes nothing: whatever came in shows that it did not hang.
fn hung(before: Option<Position>, at_the_end: Option<Position>) -> Result<()> {
    if before != at_the_end {
        let (from, to) = (shown(before), shown(at_the_end));
        bail!("archive-hangs did not happen: while the repository hung, what is archived went from {from} to {to}");
    }
    Ok(())
}

/// Where the primary's log ends now, as soon as there is one that says it.
async fn end_of_log(cluster: &HostCluster) -> Result<Lsn> {
    let begun = Instant::now();
    loop {
        let status = cluster.status().await?;
        let primary = status.nodes.iter().find(|node| Some(&node.name) == status.cluster.primary.as_ref());
        if let Some(position) = primary.and_then(|node| node.position) {
            return Ok(position);
        }
        if begun.elapsed() > WHOLE {
            bail!("no primary says where its log ends after {} s", WHOLE.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// All that was written until then is archived by itself: no more than a segment is open, and that is switched.
pub(crate) async fn answers_again(cluster: &HostCluster, hanging: Hanging) -> Result<()> {
    let at_the_end = archived(cluster).await;
    hanging.freeze.thaw()?;
    hung(hanging.archived, at_the_end?)?;
    let written = end_of_log(cluster).await?;
    let begun = Instant::now();
    loop {
        let said = cluster.run(&["archive", "status", "--json"], ANSWER).await;
        let reached = said.as_ref().ok().and_then(|said| told(said).ok().flatten());
        if reached.is_some_and(|reached| reached.lsn >= written) {
            return Ok(());
        }
        if begun.elapsed() > ARCHIVED {
            let seconds = ARCHIVED.as_secs();
            return Err(Breach(format!(
                "{seconds} s after the repository answers again the log is archived up to {}, and {written} was written while it hung: {said:?}",
                shown(reached)
            ))
            .into());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_that_took_something_did_not_hang() {
        let at = |text: &str| told(&format!("a word before\n{{\"archived\":{text}}}")).unwrap();
        let (none, some, more) =
            (at("null"), at(r#"{"timeline":1,"lsn":"0/3000000"}"#), at(r#"{"timeline":1,"lsn":"0/4000000"}"#));
        assert!(none.is_none() && some < more);
        assert!(hung(none, none).is_ok() && hung(some, some).is_ok());
        for (before, after) in [(none, some), (some, more)] {
            assert!(hung(before, after).unwrap_err().to_string().contains("did not happen"));
        }
        // An answer of another kind is not taken for nothing archived.
        assert!(told("{}").is_err() && told("").is_err());
    }
}
