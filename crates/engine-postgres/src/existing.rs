//! The cluster's first copy is made of an existing server's data (docs/adr/0037), and replicas of those of its standbys (docs/adr/0045).
//! `mainstay apply` has stopped these servers and moved their data beside ours; here they are looked at again and take their place. Nothing
//! of them is ever removed.
//!
//! The order is given before they are here: the old server is stopped only once this node holds the right to make the first copy.
//!
//! Each step leaves something from which the same call goes on:
//! ```text
//! data.adopted is whole  →  data.adopted becomes data  →  the server has run on them  →  the cluster's record names the copy
//! ```

use crate::bootstrap::HALF_MADE;
use crate::files;
use crate::inspect::inspect_data;
use crate::server::{Postgres, STATEMENT, failed, not_yet};
use crate::source::Source;
use crate::sql::{Session, literal};
use crate::tools::system_id;
use mainstay_model::adoption::Adoption;
use mainstay_model::{CopyId, NodeId};
use mainstay_ports::engine::EngineError;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

/// How long one order waits for the data: its deadline must still lie ahead when the server starts. It is given again.
const BROUGHT: Duration = Duration::from_secs(1);
const EACH: Duration = Duration::from_millis(100);
/// With these a server would not start as a primary.
const STANDBY: [&str; 2] = ["standby.signal", "recovery.signal"];
/// There from before an adopted standby's data take their place until a server starts on them: whoever was interrupted in between, and is told to
/// clone again, has them already.
const TAKEN: &str = "standby-taken";

impl Postgres {
    /// Are the first copy's data to be an existing server's? What is noted counts also where the file has lost the line: data that wait
    /// there must not be passed over.
    pub(crate) fn adopts(&self) -> bool {
        let layout = &self.options.layout;
        self.options.adopt.is_some() || layout.adoption().exists() || layout.adopted().exists()
    }

    /// Waits until they are here.
    pub(crate) async fn await_existing(&self) -> Result<(), EngineError> {
        let (ready, data) = (self.options.layout.adopted(), self.data());
        let until = tokio::time::Instant::now() + BROUGHT;
        while !ready.exists() && system_id(&data).is_none() {
            if tokio::time::Instant::now() >= until {
                let named = self.options.adopt.as_ref().map(|named| format!(" of {}", named.display()));
                return Err(not_yet(format!(
                    "the first copy is to be made of the data{}, and they were not brought here yet: type `mainstay apply`",
                    named.unwrap_or_default()
                )));
            }
            tokio::time::sleep(EACH).await;
        }
        Ok(())
    }

    /// Puts the adopted data in their place, or finds them there.
    pub(crate) async fn take_existing(&self) -> Result<(), EngineError> {
        let noted = self.noted_adoption()?;
        let (ready, data, conf) = (self.options.layout.adopted(), self.data(), self.options.layout.conf());
        let waits = ready.try_exists();
        let waits = waits.map_err(|error| failed(format!("{} can not be looked at: {error}", ready.display())))?;
        let place = if waits { &ready } else { &data };
        if system_id(place) != Some(noted.system) {
            return Err(failed(format!(
                "{} is not the data of {} (system identifier {}): nothing was touched; type `mainstay apply` again",
                place.display(),
                noted.directory.display(),
                noted.system
            )));
        }
        if let Some(found) = inspect_data(place, self.owner(), false).first() {
            return Err(failed(found));
        }
        if let Some(signal) = STANDBY.iter().map(|name| place.join(name)).find(|path| path.exists()) {
            return Err(failed(format!("{} is there: these data are a standby's, not a primary's", signal.display())));
        }
        if !waits {
            return Ok(());
        }
        let control = self.control_of(&ready).await?;
        if control.state != "shut down" {
            return Err(failed(format!(
                "the data in {} were not shut down in order (they are {}): nothing was touched",
                ready.display(),
                control.state
            )));
        }
        let owner = self.owner();
        let (from, to) = (ready.clone(), data.clone());
        let moved = tokio::task::spawn_blocking(move || put(&from, &to, &conf, owner)).await.map_err(failed)?;
        moved.map_err(|error| failed(format!("could not move {} to {}: {error}", ready.display(), data.display())))?;
        tracing::info!(from = %noted.directory.display(), "the adopted server's data are in their place");
        Ok(())
    }

    /// Takes an adopted standby's data for the copy that a clone of `source` would make; `false`: there are none, or a clone it must be. Those
    /// data stay where they are then. They must be a beginning of the source's log, as what a replica holds that returns.
    pub(crate) async fn take_standby(
        &self,
        source: &NodeId,
        copy: CopyId,
        there: &Source,
    ) -> Result<bool, EngineError> {
        let (ready, data, conf) = (self.options.layout.adopted(), self.data(), self.options.layout.conf());
        let empty = std::fs::read_dir(&data).map_or(true, |mut entries| entries.next().is_none());
        let place = match (ready.exists(), empty) {
            (true, true) => &ready,
            (false, false) if conf.join(TAKEN).exists() => &data,
            _ => return Ok(false),
        };
        if let Err(why) = self.fits_behind(there, place).await {
            tracing::warn!(%why, data = %place.display(), "the adopted standby's data are of no use here and stay where they are: a clone is made");
            return Ok(false);
        }
        // From here on its slot over there keeps what comes next.
        self.reserve_log_at(source).await?;
        self.make_ours(place).await?;
        self.write(None, |live| {
            live.copy = Some(copy);
            live.upstream = None;
        })
        .await?;
        if place == &ready {
            let (from, to, owner) = (ready.clone(), data.clone(), self.owner());
            let moved = tokio::task::spawn_blocking(move || take(&from, &to, &conf, owner)).await.map_err(failed)?;
            moved.map_err(|error| {
                failed(format!("could not move {} to {}: {error}", ready.display(), data.display()))
            })?;
        }
        tracing::info!(data = %data.display(), "the adopted standby's data are in their place: nothing was copied");
        Ok(true)
    }

    /// A server is to run on what lies here: from now on it is a copy like others, and one that is to be cloned anew is cloned.
    pub(crate) fn forget_taken(&self) -> Result<(), EngineError> {
        let conf = self.options.layout.conf();
        let forgotten = files::remove(&conf, TAKEN).and_then(|was| if was { files::sync_dir(&conf) } else { Ok(()) });
        forgotten.map_err(|error| failed(format!("{}/{TAKEN}: {error}", conf.display())))
    }

    /// Why not?
    async fn fits_behind(&self, there: &Source, ready: &Path) -> Result<(), String> {
        let noted = self.noted_adoption().map_err(|error| error.to_string())?;
        if system_id(ready) != Some(noted.system) || noted.system != there.system {
            return Err(format!("they are not of the system {}, as the primary's are", there.system));
        }
        if let Some(found) = inspect_data(ready, self.owner(), false).first() {
            return Err(found.to_string());
        }
        let control = self.control_of(ready).await.map_err(|error| error.to_string())?;
        if control.state != "shut down in recovery" || !ready.join("standby.signal").exists() {
            return Err(format!("they are not a standby's that was shut down in order ({})", control.state));
        }
        let end = self.scan_in(ready.to_owned(), control.checkpoint, control.newest_timeline()).await;
        let end = end.map_err(|error| error.to_string())?;
        if end.position.lsn < control.min_recovery {
            return Err(format!("their log ends at {}, before {}", end.position, control.min_recovery));
        }
        if !there.lineage.contains(end.position, there.timeline, there.end) {
            return Err(format!("their log, which ends at {}, is no beginning of the primary's", end.position));
        }
        Ok(())
    }

    /// Standbys that came along follow through other slots: theirs of before would keep log for nobody.
    pub(crate) async fn drop_slots_of_before(&self, session: &Session) -> Result<(), EngineError> {
        if !self.options.layout.adoption().exists() {
            return Ok(());
        }
        let names: Vec<String> = self.noted_adoption()?.slots.iter().map(|name| literal(name)).collect();
        if names.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "select count(pg_drop_replication_slot(slot_name)) from pg_replication_slots \
             where slot_type = 'physical' and not active and slot_name = any(array[{}])",
            names.join(",")
        );
        session.value(&sql, STATEMENT).await.map(drop).map_err(EngineError::from)
    }

    fn noted_adoption(&self) -> Result<Adoption, EngineError> {
        let path = self.options.layout.adoption();
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(failed(format!(
                    "{} is missing: nobody knows whose data those here are; type `mainstay apply`",
                    path.display()
                )));
            }
            read => read.map_err(|error| failed(format!("{}: {error}", path.display())))?,
        };
        serde_json::from_str(&text).map_err(|error| failed(format!("{} is not understood: {error}", path.display())))
    }
}

/// The mark of a half-made first copy goes first: beside it, data may be wiped.
fn put(ready: &Path, data: &Path, conf: &Path, owner: files::Owner) -> std::io::Result<()> {
    files::ensure_dir(conf, 0o700, owner)?;
    if files::remove(conf, HALF_MADE)? {
        files::sync_dir(conf)?;
    }
    match std::fs::remove_dir(data) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::rename(ready, data)?;
    let dir = data.parent().ok_or_else(|| std::io::Error::other("no directory"))?;
    files::sync_dir(dir)
}

/// The same of a standby's.
fn take(ready: &Path, data: &Path, conf: &Path, owner: files::Owner) -> std::io::Result<()> {
    files::ensure_dir(conf, 0o700, owner)?;
    files::write_atomic(conf, TAKEN, b"", 0o600, owner)?;
    put(ready, data, conf, owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_take_an_empty_place_only_and_the_mark_of_half_made_data_goes_before() {
        let place = tempfile::tempdir().unwrap();
        let [ready, data, conf] = ["data.adopted", "data", "conf"].map(|name| place.path().join(name));
        for dir in [&ready, &data, &conf] {
            std::fs::create_dir(dir).unwrap();
        }
        std::fs::write(ready.join("what"), "theirs").unwrap();
        std::fs::write(conf.join(HALF_MADE), "").unwrap();
        std::fs::write(data.join("something"), "ours").unwrap();
        assert!(put(&ready, &data, &conf, None).is_err());
        assert!(ready.join("what").exists() && data.join("something").exists());
        std::fs::remove_file(data.join("something")).unwrap();
        std::fs::write(conf.join(HALF_MADE), "").unwrap();
        put(&ready, &data, &conf, None).unwrap();
        assert_eq!(std::fs::read_to_string(data.join("what")).unwrap(), "theirs");
        assert!(!ready.exists() && !conf.join(HALF_MADE).exists());
    }
}
