//! A new copy from the running primary. The old data is moved aside, not removed, and the new one takes its place by a rename when it
//! is whole and durable.

use crate::config::copy_name;
use crate::files;
use crate::server::{Postgres, failed, not_yet, process_failed};
use mainstay_model::{CopyId, NodeId};
use mainstay_ports::engine::EngineError;
use std::path::Path;
use std::time::Duration;

/// How long a clone may take.
const CLONE: Duration = Duration::from_secs(24 * 3600);

impl Postgres {
    /// See [`mainstay_ports::engine::Engine::clone_from`].
    pub(crate) async fn clone_source(&self, source: &NodeId, copy: CopyId) -> Result<(), EngineError> {
        let there = self.source(source).await?;
        if self.server_pid().await?.is_some() {
            self.process.fence("its data is replaced by a clone".into()).await.map_err(process_failed)?;
        }
        let dir = self.options.layout.dir().to_owned();
        let (data, new, old) = (self.data(), dir.join("data.new"), dir.join("data.old"));
        let say = |error: std::io::Error| failed(format!("could not prepare {}: {error}", new.display()));
        remove_tree(&new).map_err(say)?;
        files::ensure_dir(&new, 0o700, self.owner()).map_err(say)?;
        self.base_backup(source, copy, &new).await?;
        let control = self.control_of(&new).await?;
        if control.system != there.system {
            return Err(not_yet(format!(
                "the clone is of cluster {}, {source} is of {}",
                control.system, there.system
            )));
        }
        self.make_ours(&new).await?;
        self.write(None, |live| {
            live.copy = Some(copy);
            live.upstream = None;
        })
        .await?;
        let swapped = tokio::task::spawn_blocking(move || {
            if std::fs::read_dir(&data).is_ok_and(|mut entries| entries.next().is_some()) {
                remove_tree(&old)?;
                std::fs::rename(&data, &old)?;
            } else if data.exists() {
                std::fs::remove_dir(&data)?;
            }
            std::fs::rename(&new, &data)?;
            files::sync_dir(&dir)
        });
        let swapped = swapped.await.map_err(failed)?;
        swapped.map_err(|error| failed(format!("could not put the clone in its place: {error}")))
    }

    async fn base_backup(&self, source: &NodeId, copy: CopyId, into: &Path) -> Result<(), EngineError> {
        // Not a copy's name: what this connection reports as flushed is no copy yet.
        let name =
            format!("mainstay_clone_{}", copy_name(&self.options.node, copy).chars().take(40).collect::<String>());
        let conninfo = self.source_conninfo(source, &name, "")?;
        let arguments =
            ["-D", &into.display().to_string(), "-d", &conninfo, "-X", "stream", "-c", "fast", "--no-password"]
                .map(str::to_owned);
        let ran = self.run("pg_basebackup", &arguments, CLONE).await?;
        if ran.success {
            return Ok(());
        }
        Err(not_yet(format!("pg_basebackup from {source}: {}", ran.err.trim().replace('\n', " | "))))
    }
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
