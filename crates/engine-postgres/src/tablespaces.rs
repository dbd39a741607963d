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
    let mut used = Vec::new();
    for entry in all.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with("data")) {
        let links = entry.path().join("pg_tblspc");
        match pointed_to(&links) {
            Ok(places) => used.extend(places),
            // What it points to is not known, and may be all that is left of it.
            Err(error) => {
                tracing::warn!(links = %links.display(), %error, "no directory of tablespaces is removed: where these point can not be read");
                return Ok(());
            }
        }
    }
    for place in std::fs::read_dir(dir.join(PLACES)).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if !used.iter().any(|link| link.starts_with(&place)) {
            std::fs::remove_dir_all(&place)?;
        }
    }
    Ok(())
}

/// Where the links of a directory point; none if it is not there.
fn pointed_to(links: &Path) -> std::io::Result<Vec<PathBuf>> {
    let absent = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let entries = match std::fs::read_dir(links) {
        Err(error) if absent(&error) => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut places = Vec::new();
    for entry in entries {
        let entry = entry?;
        // A tablespace may lie right there, too.
        if !entry.file_type()?.is_symlink() {
            continue;
        }
        match std::fs::read_link(entry.path()) {
            Err(error) if absent(&error) => {}
            place => places.push(place?),
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_points_to_is_removed_and_nothing_is_where_that_can_not_be_read() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        let (kept, left) = (dir.join(PLACES).join("kept"), dir.join(PLACES).join("left"));
        for made in [&dir.join("data/pg_tblspc/16384"), &dir.join("data.new"), &kept, &left] {
            std::fs::create_dir_all(made).unwrap();
        }
        std::os::unix::fs::symlink(kept.join("16385"), dir.join("data/pg_tblspc/16385")).unwrap();
        // No directory, so its links can not be listed.
        let unreadable = dir.join("data.old");
        std::fs::create_dir(&unreadable).unwrap();
        std::fs::write(unreadable.join("pg_tblspc"), "").unwrap();
        sweep(dir).unwrap();
        assert!(kept.exists() && left.exists());
        std::fs::remove_dir_all(&unreadable).unwrap();
        sweep(dir).unwrap();
        assert!(kept.exists() && !left.exists());
    }
}
