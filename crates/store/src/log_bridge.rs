//! Hands the Raft crate's log lines to `tracing`. They are for developers: nothing above debug, but for its warnings.

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, o};

struct Bridge;

impl Drain for Bridge {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "mainstay_store::raft", "{}", record.msg()),
            Level::Warning => tracing::warn!(target: "mainstay_store::raft", "{}", record.msg()),
            Level::Info => tracing::debug!(target: "mainstay_store::raft", "{}", record.msg()),
            Level::Debug | Level::Trace => tracing::trace!(target: "mainstay_store::raft", "{}", record.msg()),
        }
        Ok(())
    }
}

/// The logger to give to the Raft crate.
pub(crate) fn logger() -> Logger {
    Logger::root(Bridge, o!())
}
