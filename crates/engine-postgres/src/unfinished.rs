//! A note, outside the data directory, of a rewind or clone whose end nobody has heard of, with what it was to report. Without it a data
//! directory that a rewind left half-way looks like one that was shut down in order; and what a diverged log held would go unreported if
//! the node died between the end of a rewind or clone and its answer.
//!
//! It goes when the server is started as a standby: that is ordered only once the outcome was taken.

use crate::files;
use crate::server::{Postgres, failed};
use mainstay_model::Lost;
use mainstay_ports::engine::EngineError;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const NOTE: &str = "rewinding.json";

/// A rewind or clone that nobody has heard the end of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unfinished {
    /// A rewind has not ended: the data directory is neither what it was nor what it should become.
    pub(crate) half: bool,
    /// What was taken out of the data, and is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lost: Option<Lost>,
    /// A clone that is about to take the data's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clone: Option<Incoming>,
}

/// What is so once this directory is the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Incoming {
    /// Its number in the file system, which a rename leaves as it is.
    inode: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lost: Option<Lost>,
}

fn inode(dir: &Path) -> Option<u64> {
    std::fs::symlink_metadata(dir).ok().map(|is| is.ino())
}

impl Unfinished {
    /// As it stands for the data directory that is in place now.
    fn seen_from(self, data: &Path) -> Self {
        match self.clone {
            Some(clone) if inode(data) == Some(clone.inode) => Self { lost: clone.lost, ..Self::default() },
            _ => Self { clone: None, ..self },
        }
    }
}

impl Postgres {
    /// The note, if it says anything. One that can not be read is taken for that of a half-done rewind: the safe side is a clone.
    pub(crate) fn unfinished(&self) -> Option<Unfinished> {
        let bytes = match std::fs::read(self.options.layout.conf().join(NOTE)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(_) => Vec::new(),
        };
        let unreadable = Unfinished { half: true, ..Unfinished::default() };
        let noted: Unfinished = serde_json::from_slice(&bytes).unwrap_or(unreadable);
        Some(noted.seen_from(&self.data())).filter(|noted| noted.half || noted.lost.is_some())
    }

    /// What was lost before, and nobody has heard of.
    pub(crate) fn untold(&self) -> Option<Lost> {
        self.unfinished().and_then(|unfinished| unfinished.lost)
    }

    /// Says this of the data in place from now on, durably.
    pub(crate) fn note_unfinished(&self, half: bool, lost: Option<&Lost>) -> Result<(), EngineError> {
        if !half && lost.is_none() {
            return self.forget_unfinished();
        }
        self.write_note(&Unfinished { half, lost: lost.cloned(), clone: None })
    }

    /// A clone in this directory is about to take the data's place: what stands for them stays until then, and this is said afterwards.
    pub(crate) fn note_clone(&self, new: &Path, lost: Option<&Lost>) -> Result<(), EngineError> {
        let before = self.unfinished();
        if before.is_none() && lost.is_none() {
            return self.forget_unfinished();
        }
        let inode = inode(new).ok_or_else(|| failed(format!("{} is gone", new.display())))?;
        let clone = Some(Incoming { inode, lost: lost.cloned() });
        self.write_note(&Unfinished { clone, ..before.unwrap_or_default() })
    }

    fn write_note(&self, note: &Unfinished) -> Result<(), EngineError> {
        let json = serde_json::to_vec(note).map_err(failed)?;
        let conf = self.options.layout.conf();
        files::write_atomic(&conf, NOTE, &json, 0o600, self.owner())
            .map_err(|error| failed(format!("{}/{NOTE}: {error}", conf.display())))
    }

    pub(crate) fn forget_unfinished(&self) -> Result<(), EngineError> {
        let conf = self.options.layout.conf();
        let gone = files::remove(&conf, NOTE).and_then(|was| if was { files::sync_dir(&conf) } else { Ok(()) });
        gone.map_err(|error| failed(format!("{}/{NOTE}: {error}", conf.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_counts_from_the_rename_on() {
        let place = tempfile::tempdir().unwrap();
        let [data, new, old] = ["data", "data.new", "data.old"].map(|name| place.path().join(name));
        std::fs::create_dir(&data).unwrap();
        std::fs::create_dir(&new).unwrap();
        let lost = |kept: &str| Some(Lost { kept: kept.to_owned(), ..Lost::default() });
        let clone = Some(Incoming { inode: inode(&new).unwrap(), lost: lost("both") });
        let noted = Unfinished { half: true, lost: lost("first"), clone };
        assert_eq!(noted.clone().seen_from(&data), Unfinished { half: true, lost: lost("first"), clone: None });
        std::fs::rename(&data, &old).unwrap();
        assert_eq!(noted.clone().seen_from(&data), Unfinished { half: true, lost: lost("first"), clone: None });
        std::fs::rename(&new, &data).unwrap();
        assert_eq!(noted.seen_from(&data), Unfinished { half: false, lost: lost("both"), clone: None });
    }

    #[test]
    fn a_note_of_the_earlier_format_is_read() {
        let lost = Lost { kept: "there".to_owned(), ..Lost::default() };
        let text = serde_json::json!({ "half": false, "lost": lost }).to_string();
        let read: Unfinished = serde_json::from_str(&text).unwrap();
        assert_eq!(read, Unfinished { half: false, lost: Some(lost), clone: None });
    }
}
