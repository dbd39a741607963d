//! The server's log on a volume of its own that is full, and a repository of the archive that hangs.

use super::inject::{Breach, Happened, Scene};
use super::undo::Undo;
use crate::hosts::HostCluster;
use crate::hosts::files::data_dir;
use crate::hosts::host::Host;
use crate::hosts::shared;
use crate::hosts::volume::{Freeze, fill_at};
use anyhow::{Context as _, Result, bail};
use mainstay_model::NodeId;
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

/// Everything that touches the repository waits, on every host.
pub(crate) fn repository_hangs(scene: &Scene<'_>) -> Result<Happened> {
    let at = Instant::now();
    let undo = Undo::Repository(Freeze::at(&scene.cluster.client, shared::PLACE)?);
    Ok(Happened { at, evidence: "the repository takes no writes and says nothing".to_owned(), undo })
}

/// What was written meanwhile is archived by itself.
pub(crate) async fn answers_again(cluster: &HostCluster, freeze: Freeze) -> Result<()> {
    freeze.thaw()?;
    let begun = Instant::now();
    loop {
        let said = cluster.run(&["archive", "status", "--json"], PAUSE * 20).await;
        let lag = said.as_ref().ok().and_then(|said| {
            let answer: serde_json::Value = serde_json::from_str(said.lines().last()?).ok()?;
            answer["lag_segments"].as_u64()
        });
        if lag.is_some_and(|lag| lag <= 1) {
            return Ok(());
        }
        if begun.elapsed() > ARCHIVED {
            let seconds = ARCHIVED.as_secs();
            return Err(Breach(format!(
                "{seconds} s after the repository answers again the log is not archived: {said:?}"
            ))
            .into());
        }
        tokio::time::sleep(PAUSE).await;
    }
}
