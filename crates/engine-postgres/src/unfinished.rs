//! A note, outside the data directory, that a rewind has begun, with what it was to report. Without it a data directory that a rewind
//! left half-way looks like one that was shut down in order; and what a diverged log held would go unreported if the node died between
//! the end of a rewind and its answer.

use crate::files;
use crate::server::{Postgres, failed};
use mainstay_model::Lost;
use mainstay_ports::engine::EngineError;
use serde::{Deserialize, Serialize};

const NOTE: &str = "rewinding.json";

/// A rewind that nobody has heard the end of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unfinished {
    /// It has not ended: the data directory is neither what it was nor what it should become.
    pub(crate) half: bool,
    /// What it kept.
    pub(crate) lost: Lost,
}

impl Postgres {
    /// The note, if there is one. One that can not be read is taken for that of a half-done rewind: the safe side is a clone.
    pub(crate) fn unfinished(&self) -> Option<Unfinished> {
        let bytes = match std::fs::read(self.options.layout.conf().join(NOTE)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(_) => Vec::new(),
        };
        Some(serde_json::from_slice(&bytes).unwrap_or(Unfinished { half: true, lost: Lost::default() }))
    }

    pub(crate) fn note_unfinished(&self, half: bool, lost: &Lost) -> Result<(), EngineError> {
        let json = serde_json::to_vec(&Unfinished { half, lost: lost.clone() }).map_err(failed)?;
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
