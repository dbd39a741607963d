//! A restored copy takes the data's place: the whole cluster is brought back to an earlier moment (docs/adr/0031). The old data are moved aside
//! and never removed by Mainstay; whoever looks after the cluster does that.
//!
//! Each step leaves something from which the same call goes on:
//! ```text
//! data.restored-COPY is whole  →  data becomes data.before-restore-N  →  data.restored-COPY becomes data
//! ```

use crate::files;
use crate::server::{Postgres, failed};
use crate::source::ASK;
use crate::tools::system_id;
use mainstay_model::layout::{KEPT_MAX, NodeLayout};
use mainstay_model::{CopyId, Timeline};
use mainstay_ports::engine::EngineError;
use std::path::{Path, PathBuf};

impl Postgres {
    /// See [`mainstay_ports::engine::Engine::adopt_restored`].
    pub(crate) async fn adopt(&self, copy: CopyId, timeline: Timeline) -> Result<(), EngineError> {
        if self.server_pid().await?.is_some() {
            self.fence("its data are replaced by a restored copy".into()).await?;
        }
        let ready = self.options.layout.restored(copy);
        // One that can not be seen just now is not gone.
        let there = ready.try_exists();
        if !there.map_err(|error| failed(format!("{} can not be looked at: {error}", ready.display())))? {
            return self.adopted_before(copy, timeline).await;
        }
        let Ok(_aside) = tokio::time::timeout(ASK, self.aside.lock()).await else {
            return Err(crate::server::not_yet("an old copy is still being removed"));
        };
        let control = self.control_of(&ready).await?;
        if !control.is_clean() || control.timeline != timeline {
            let (is, on) = (&control.state, control.timeline);
            return Err(failed(format!(
                "{} is not the restored copy that was prepared: it is {is} on timeline {on}, not shut down on {timeline}; restore again",
                ready.display()
            )));
        }
        self.make_ours(&ready).await?;
        self.write(None, |live| {
            live.copy = Some(copy);
            live.upstream = None;
        })
        .await?;
        self.note_clone(&ready, None)?;
        let (layout, data) = (self.options.layout.clone(), self.data());
        let swapped = tokio::task::spawn_blocking(move || swap(&layout, &data, &ready)).await.map_err(failed)?;
        let kept = swapped.map_err(|error| failed(format!("could not put the restored copy in its place: {error}")))?;
        if let Some(kept) = kept {
            tracing::warn!(kept = %kept.display(), "the data of before the restore are kept");
        }
        self.unmark(copy);
        Ok(())
    }

    /// No copy lies ready: it must be in its place already. Its timeline is nobody else's.
    async fn adopted_before(&self, copy: CopyId, timeline: Timeline) -> Result<(), EngineError> {
        let control = match system_id(&self.data()) {
            Some(_) => self.control().await.ok(),
            None => None,
        };
        if control.is_some_and(|control| control.newest_timeline() == timeline) {
            self.unmark(copy);
            return Ok(());
        }
        Err(failed(format!(
            "the restored copy {} is gone; the data of before are untouched. Restore again: `mainstay restore --in-place`",
            self.options.layout.restored(copy).display()
        )))
    }

    /// It is in its place: nothing waits for it any more.
    fn unmark(&self, copy: CopyId) {
        let mark = self.options.layout.given(copy);
        if let Err(error) = std::fs::remove_file(&mark)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(mark = %mark.display(), %error, "the mark of a copy that is in its place can not be removed");
        }
    }
}

/// Says where the old data are, if there were any.
fn swap(layout: &NodeLayout, data: &Path, ready: &Path) -> std::io::Result<Option<PathBuf>> {
    let (dir, mut kept) = (layout.dir(), None);
    if std::fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_some()) {
        let free = layout.kept().find(|place| place.symlink_metadata().is_err());
        let full = || {
            std::io::Error::other(format!(
                "{KEPT_MAX} old copies lie in {}: remove those that nobody needs",
                dir.display()
            ))
        };
        let place = free.ok_or_else(full)?;
        std::fs::rename(data, &place)?;
        files::sync_dir(dir)?;
        kept = Some(place);
    } else if data.exists() {
        std::fs::remove_dir(data)?;
    }
    std::fs::rename(ready, data)?;
    files::sync_dir(dir)?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_data_are_kept_and_a_swap_that_broke_off_is_gone_on_with() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path();
        let layout = NodeLayout::new(dir);
        let name = |name: &str| dir.join(name);
        let fill = |path: &Path, what: &str| {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("what"), what).unwrap();
        };
        let what = |path: &Path| std::fs::read_to_string(path.join("what")).unwrap();
        let (data, ready) = (name("data"), name("data.restored-1"));
        fill(&data, "old");
        fill(&ready, "new");
        assert_eq!(swap(&layout, &data, &ready).unwrap(), Some(name("data.before-restore-1")));
        assert_eq!((what(&data), what(&name("data.before-restore-1"))), ("new".into(), "old".into()));
        // Between the renames.
        fill(&ready, "newer");
        std::fs::rename(&data, name("data.before-restore-2")).unwrap();
        assert_eq!(swap(&layout, &data, &ready).unwrap(), None);
        assert_eq!((what(&data), what(&name("data.before-restore-2"))), ("newer".into(), "new".into()));
        // Nothing is written over, and nothing is removed to make room.
        (3..=KEPT_MAX).for_each(|number| fill(&name(&format!("data.before-restore-{number}")), "kept"));
        fill(&ready, "newest");
        let error = swap(&layout, &data, &ready).unwrap_err().to_string();
        assert!(error.contains("32 old copies"), "{error}");
        assert_eq!((what(&data), what(&ready)), ("newer".into(), "newest".into()));
    }
}
