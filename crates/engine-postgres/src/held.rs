//! Settings that a standby must hold at least as high as its primary, or it can not follow the log. A standby starts with the higher of
//! the operator's value and what its control file says of the log; a primary goes by the operator's. So raising works replicas first and
//! lowering primary first, and neither order breaks a replica.

use crate::config::Live;
use crate::server::{Postgres, not_yet};
use crate::sql::Session;
use mainstay_ports::engine::EngineError;
use std::collections::BTreeMap;

/// The setting, what `pg_controldata` calls it, and the server's own default.
const HELD: [(&str, &str, u64); 5] = [
    ("max_connections", "max_connections setting", 100),
    ("max_locks_per_transaction", "max_locks_per_xact setting", 64),
    ("max_prepared_transactions", "max_prepared_xacts setting", 0),
    ("max_wal_senders", "max_wal_senders setting", 10),
    ("max_worker_processes", "max_worker_processes setting", 8),
];

/// What a standby must not have less of; empty for a primary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Floors(BTreeMap<&'static str, u64>);

impl Floors {
    /// From what `pg_controldata` prints.
    pub(crate) fn of_control(values: &BTreeMap<&str, &str>) -> Floors {
        let known = HELD.iter().filter_map(|(name, shown, _)| Some((*name, values.get(shown)?.parse().ok()?)));
        Floors(known.collect())
    }

    /// Lifts the settings that are below.
    pub(crate) fn lift(&self, all: &mut BTreeMap<String, String>) {
        for (name, floor) in &self.0 {
            if wanted(all, name) < *floor {
                all.insert((*name).to_owned(), floor.to_string());
            }
        }
    }

    /// The settings of which the operator wants less than this.
    pub(crate) fn above(&self, parameters: &BTreeMap<String, String>) -> Vec<String> {
        let lower = parameters.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        let above = self.0.iter().filter(|(name, floor)| given(&lower, name).is_some_and(|value| value < **floor));
        above.map(|(name, _)| (*name).to_owned()).collect()
    }

    /// Is anything higher here than there?
    fn exceeds(&self, other: &Floors) -> bool {
        self.0.iter().any(|(name, floor)| other.0.get(name).is_none_or(|had| floor > had))
    }

    /// In words: what is below this in `running`, the values of a server.
    fn missing(&self, running: &BTreeMap<String, u64>) -> Vec<String> {
        let below = self.0.iter().filter_map(|(name, floor)| {
            let has = running.get(*name).filter(|has| *has < floor)?;
            Some(format!("{name} is {has} here and {floor} at the primary"))
        });
        below.collect()
    }
}

fn given(all: &BTreeMap<String, String>, name: &str) -> Option<u64> {
    // A value that is not understood counts as too low; the server has the last word on it.
    all.get(name).map(|value| value.trim().parse().unwrap_or(0))
}

fn wanted(all: &BTreeMap<String, String>, name: &str) -> u64 {
    let default = || HELD.iter().find(|(held, ..)| *held == name).map_or(0, |(.., default)| *default);
    given(all, name).unwrap_or_else(default)
}

impl Postgres {
    /// Writes the configuration for a standby of the log at hand, and starts it. A log that raises a setting while it is read ends a
    /// server that is not consistent yet, but not before the control file knows the new value.
    pub(crate) async fn launch_standby(
        &self,
        open: Option<bool>,
        edit: impl Fn(&mut Live),
    ) -> Result<Session, EngineError> {
        let mut floors = self.control().await?.floors;
        loop {
            self.set_floors(floors.clone());
            self.write(open, &edit).await?;
            let before = self.log_length();
            let error = match self.launch(None).await {
                Ok(session) => return Ok(session),
                Err(error) => error,
            };
            if self.server_pid().await?.is_some() {
                return Err(error);
            }
            // Each round has higher values than the one before, taken from a log that ends.
            let now = self.control().await?.floors;
            if !now.exceeds(&floors) {
                return Err(judge(error, &self.log_since(before)));
            }
            floors = now;
        }
    }

    /// Why replay can not go on with the values that this standby was started with; `None`: they are not the reason.
    pub(crate) async fn too_low(&self, session: &Session) -> Result<Option<String>, EngineError> {
        let floors = self.control().await?.floors;
        let names: Vec<String> = HELD.iter().map(|(name, ..)| format!("'{name}'")).collect();
        let sql = format!("select name, setting from pg_settings where name in ({})", names.join(","));
        let rows = session.rows(&sql, crate::server::STATEMENT).await.map_err(not_yet)?;
        let running = rows.into_iter().filter_map(|row| {
            let mut row = row.into_iter();
            Some((row.next()??, row.next()??.parse().ok()?))
        });
        let missing = floors.missing(&running.collect());
        Ok((!missing.is_empty()).then(|| missing.join(", ")))
    }
}

/// What a server says that can not start from these data any more, however often it is tried.
const HOPELESS: &[&str] = &[
    "could not locate a valid checkpoint record",
    "could not locate required checkpoint record",
    "could not find redo location referenced by checkpoint record",
    "invalid checkpoint record",
    "is not a child of this server's history",
    "WAL ends before end of online backup",
    "WAL ends before consistent recovery point",
    "incorrect checksum in control file",
    "invalid data in file \"backup_label\"",
    "could not read file \"global/pg_control\"",
    "is not a valid data directory",
    "could not open file \"global/",
    "could not open file \"pg_",
    "could not open directory \"global",
    "could not open directory \"pg_",
];

fn judge(error: EngineError, said: &str) -> EngineError {
    let fatal = said.lines().filter(|line| line.contains("FATAL:  ") || line.contains("PANIC:  "));
    let mut hopeless = fatal.filter(|line| HOPELESS.iter().any(|text| line.contains(text)));
    match hopeless.next() {
        Some(line) => EngineError::Broken(format!("the server can not start from it: {}", line.trim())),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_floor_lifts_what_is_below_and_nothing_else() {
        let floors = Floors::of_control(&BTreeMap::from([
            ("max_connections setting", "300"),
            ("max_wal_senders setting", "10"),
            ("max_prepared_xacts setting", "5"),
        ]));
        let mut settings = all(&[("max_connections", "200"), ("max_wal_senders", "20"), ("work_mem", "1MB")]);
        floors.lift(&mut settings);
        let lifted = [
            ("max_connections", "300"),
            ("max_prepared_transactions", "5"),
            ("max_wal_senders", "20"),
            ("work_mem", "1MB"),
        ];
        assert_eq!(settings, all(&lifted));
        assert_eq!(floors.above(&all(&[("Max_Connections", "200"), ("max_wal_senders", "20")])), ["max_connections"]);
        assert!(floors.exceeds(&Floors::default()) && !Floors::default().exceeds(&floors));
    }
}
