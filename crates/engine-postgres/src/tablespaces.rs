//! Tablespaces of a clone: each gets a directory of its own beside the data directory, because the place that the source names may be
//! taken, by the old copy or by another node of the same host.

use crate::files;
use crate::server::{Postgres, failed};
use mainstay_model::{CopyId, NodeId};
use mainstay_ports::engine::EngineError;
use std::path::{Path, PathBuf};

const PLACES: &str = "tablespaces";

impl Postgres {
    /// Arguments for the clone's tool, and the directory that holds the clone's tablespaces; it is made only if there are any.
    pub(crate) async fn place_tablespaces(
        &self,
        source: &NodeId,
        copy: CopyId,
    ) -> Result<(Vec<String>, PathBuf), EngineError> {
        let all = self.options.layout.dir().join(PLACES);
        let place = all.join(copy.to_string());
        let sql = "select oid::text || '=' || pg_tablespace_location(oid) from pg_tablespace \
             where pg_tablespace_location(oid) like '/%'";
        let said = self.ask_source(source, "dbname=postgres", sql, crate::source::ASK).await?;
        let escaped = |path: &str| path.replace('\\', "\\\\").replace('=', "\\=");
        let mut arguments = Vec::new();
        for (oid, from) in said.lines().filter_map(|line| line.split_once('=')) {
            let to = place.join(oid);
            arguments.push(format!("--tablespace-mapping={}={}", escaped(from), escaped(&to.display().to_string())));
        }
        if !arguments.is_empty() {
            files::ensure_dir(&all, 0o700, self.owner())
                .and_then(|()| files::ensure_dir(&place, 0o700, self.owner()))
                .map_err(|error| failed(format!("{}: {error}", place.display())))?;
        }
        Ok((arguments, place))
    }
}

/// Removes the places of tablespaces in `dir` that no data directory there points into, whether in use, aside, or being made.
pub(crate) fn sweep(dir: &Path) -> std::io::Result<()> {
    let all = std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    let dirs =
        all.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with("data")).map(|entry| entry.path());
    let links = dirs.flat_map(|data| std::fs::read_dir(data.join("pg_tblspc")).into_iter().flatten().flatten());
    let used: Vec<PathBuf> = links.filter_map(|link| std::fs::read_link(link.path()).ok()).collect();
    for place in std::fs::read_dir(dir.join(PLACES)).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if !used.iter().any(|link| link.starts_with(&place)) {
            std::fs::remove_dir_all(&place)?;
        }
    }
    Ok(())
}
