//! How a copy that follows stands: written by the program that feeds it, read by whoever asks.

use super::STATE;
use crate::postgres::place::Place;
use crate::repository::VaultError;
use mainstay_model::{Lsn, Timeline};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Nothing larger is a state.
const STATE_MAX: u64 = 64 << 10;
/// A repository that was not read for so long is told. Milliseconds.
const UNREAD_MS: u64 = 120_000;
/// What was archived is replayed within this, if the server is not told to wait by those who read. Milliseconds.
const STANDS_MS: u64 = 120_000;
/// Who writes the state writes it more often. Milliseconds.
const SILENT_MS: u64 = 60_000;

/// How it stands. Times are milliseconds since 1970, but for commits (microseconds).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The process that feeds it.
    pub pid: u32,
    /// When this was written.
    pub written_ms: u64,
    /// The server answers.
    pub serves: bool,
    /// Why it does not.
    pub server: Option<String>,
    /// Up to where it has replayed.
    pub replayed: Lsn,
    /// Since when it is there.
    pub replayed_ms: u64,
    /// The timeline that it follows.
    pub timeline: Timeline,
    /// The last commit that it replayed; without any, the end of its backup.
    pub commit: i64,
    /// So far the log is archived without a hole.
    pub reaches: Lsn,
    /// The newest timeline of which anything is archived.
    pub newest: Timeline,
    /// When the repository was last read.
    pub read_ms: u64,
    /// Why it can not be read.
    pub unread: Option<String>,
    /// What keeps it from going on.
    pub trouble: Option<String>,
    /// Only a new copy mends that.
    pub left: bool,
    /// It is being promoted.
    pub promotes: Option<Promotes>,
}

/// With what a promotion began: whoever brings one to its end that broke off tells it, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotes {
    /// Onto this timeline.
    pub timeline: Timeline,
    /// All that the repository held was replayed.
    pub whole: bool,
    /// The repository was read.
    pub read: bool,
}

impl State {
    /// Writes it.
    ///
    /// # Errors
    /// When it can not be written.
    pub fn write(&self, data: &Path, user: Option<(u32, u32)>) -> Result<(), VaultError> {
        let text = serde_json::to_vec_pretty(self).map_err(|e| VaultError::Crypto(e.to_string()))?;
        Place::open(data, user)?.whole(STATE, &text, false)
    }

    /// The last one that was written.
    ///
    /// # Errors
    /// When it can not be read.
    pub fn read(data: &Path) -> Result<Option<State>, VaultError> {
        let Some(text) = Place::open(data, None)?.read(STATE, STATE_MAX)? else { return Ok(None) };
        let wrong = |e| VaultError::Damaged(format!("{}: {e}", data.join(STATE).display()));
        serde_json::from_slice(&text).map(Some).map_err(wrong)
    }

    /// How much log is archived and not replayed, bytes.
    #[must_use]
    pub fn behind(&self) -> u64 {
        self.reaches.0.saturating_sub(self.replayed.0)
    }

    /// How old its data are, seconds: since the last commit that it replayed.
    #[must_use]
    pub fn age_s(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(u64::try_from(self.commit / 1000).unwrap_or(0)) / 1000
    }

    /// Why it stands still; nothing: it does not. `segment_size`: less than one is no standing back.
    #[must_use]
    pub fn problems(&self, now_ms: u64, segment_size: u64) -> Vec<String> {
        let mut all = Vec::new();
        let since = |then: u64| now_ms.saturating_sub(then);
        if since(self.written_ms) > SILENT_MS {
            all.push(format!("the program that feeds it has told nothing for {} s", since(self.written_ms) / 1000));
        }
        if !self.serves {
            all.push(self.server.clone().unwrap_or_else(|| "its server does not answer yet".to_owned()));
        }
        if let Some(says) = self.unread.as_ref().filter(|_| since(self.read_ms) > UNREAD_MS || self.read_ms == 0) {
            let times = if self.read_ms == 0 {
                "never".to_owned()
            } else {
                format!("not for {} s", since(self.read_ms) / 1000)
            };
            all.push(format!("the repository was read {times}: {says}"));
        }
        all.extend(self.trouble.clone());
        let stands = self.serves && self.trouble.is_none() && since(self.replayed_ms) > STANDS_MS;
        if stands && self.behind() >= segment_size {
            let (at, reaches) = (self.replayed, self.reaches);
            let s = since(self.replayed_ms) / 1000;
            all.push(format!("it has replayed nothing for {s} s: it is at {at}, and the archive reaches {reaches}"));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000_000;

    fn well() -> State {
        State {
            serves: true,
            written_ms: NOW - 1000,
            read_ms: NOW - 3000,
            replayed_ms: NOW - 500_000,
            replayed: Lsn(0x0300_0000),
            reaches: Lsn(0x0300_0000),
            commit: i64::try_from(NOW - 7000).unwrap() * 1000,
            ..State::default()
        }
    }

    #[test]
    fn an_idle_copy_is_well_and_one_that_stands_still_is_told() {
        let told = |state: State| state.problems(NOW, 1 << 24);
        assert!(told(well()).is_empty());
        assert_eq!((well().age_s(NOW), well().behind()), (7, 0));
        let behind = State { reaches: Lsn(0x0500_0000), ..well() };
        assert!(told(behind.clone())[0].contains("0/3000000"));
        assert!(told(State { replayed_ms: NOW - 5000, ..behind }).is_empty());
        assert!(told(State { serves: false, ..well() })[0].contains("does not answer"));
        assert!(told(State { trouble: Some("a hole".into()), ..well() })[0].contains("a hole"));
        assert!(told(State { written_ms: 0, ..well() })[0].contains("told nothing"));
        // One look that failed is none yet.
        let away = State { unread: Some("away".into()), ..well() };
        assert!(told(away.clone()).is_empty());
        assert!(told(State { read_ms: NOW - 200_000, ..away })[0].contains("not for 200 s: away"));
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(State::read(home.path()).unwrap(), None);
        well().write(home.path(), None).unwrap();
        assert_eq!(State::read(home.path()).unwrap(), Some(well()));
    }
}
