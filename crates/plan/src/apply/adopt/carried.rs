//! Settings that go along with an existing server's data and count before the file: those of `postgresql.auto.conf`, and those of roles and
//! databases.

use super::{Fate, Setting, Told, fate, words};
use mainstay_model::config_check::waits;
use mainstay_model::spec::Spec;
use serde::{Deserialize, Serialize};

/// A parameter that a role or a database has set for its sessions (`pg_db_role_setting`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Habit {
    /// Whose sessions; without: everybody's.
    pub role: Option<String>,
    /// In which database; without: in all.
    pub database: Option<String>,
    /// The parameter.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl Habit {
    /// The beginning of the command that has set it, and that takes it back.
    fn command(&self) -> String {
        match (&self.role, &self.database) {
            (Some(role), None) => format!("ALTER ROLE {}", identifier(role)),
            (Some(role), Some(database)) => {
                format!("ALTER ROLE {} IN DATABASE {}", identifier(role), identifier(database))
            }
            (None, Some(database)) => format!("ALTER DATABASE {}", identifier(database)),
            (None, None) => "ALTER ROLE ALL".into(),
        }
    }
}

/// A name for SQL, whatever it is.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Does it break what the file promises, or keep a server elsewhere from its start, wherever the data go? The file can not mend it.
pub(super) fn breaks(name: &str, value: &str) -> bool {
    match name {
        // A commit would be acknowledged that no replica holds.
        "synchronous_commit" => !waits(value),
        "default_transaction_read_only" => !value.eq_ignore_ascii_case("off"),
        // Which of them are there is looked at for the file's.
        _ => name.ends_with("_preload_libraries") && !value.trim().is_empty(),
    }
}

/// What hides from the look, and from the server, what its files would make of it.
pub(super) fn files(told: &Told, dir: &str, say: &mut impl FnMut(String, String)) {
    if !told.unread.is_empty() {
        say(
            format!(
                "the server of {dir} can not read its files, and what ALTER SYSTEM has set is not seen: {}",
                told.unread.join("; ")
            ),
            "correct those lines; then, as its superuser: select pg_reload_conf()".into(),
        );
    }
    if told.stale {
        say(
            format!("postgresql.auto.conf in {dir} was changed after its server read it: how that works was not seen"),
            "as its superuser: select pg_reload_conf(); or take it back with ALTER SYSTEM RESET first".into(),
        );
    }
}

/// What stands in `postgresql.auto.conf` and can not go along.
pub(super) fn automatic(spec: &Spec, told: &Told, dir: &str, say: &mut impl FnMut(String, String)) {
    let found: Vec<&Setting> = told.settings.iter().filter(|setting| fate(setting, spec) == Fate::Refused).collect();
    if found.is_empty() {
        return;
    }
    let say_one = |setting: &&Setting| {
        let why = if setting.pending { ", which is not what it runs with" } else { "" };
        format!("{}{why}", words::setting(setting))
    };
    let shown: Vec<String> = found.iter().map(say_one).collect();
    let reset: Vec<String> = found.iter().map(|setting| format!("alter system reset {};", setting.name)).collect();
    say(
        format!("the server of {dir} has by ALTER SYSTEM what must not count before the file: {}", shown.join("; ")),
        format!(
            "as its superuser: {} select pg_reload_conf(); then write what is wanted of it under [postgres.parameters]",
            reset.join(" ")
        ),
    );
}

/// What roles and databases have set and can not go along: a session would have it whatever the file says.
pub(super) fn habits(told: &Told, dir: &str, say: &mut impl FnMut(String, String)) {
    let breaking = |habit: &&Habit| breaks(&habit.name.to_ascii_lowercase(), &habit.value);
    let found: Vec<&Habit> = told.habits.iter().filter(breaking).collect();
    if found.is_empty() {
        return;
    }
    let shown: Vec<String> = found
        .iter()
        .map(|habit| format!("{} SET {}", habit.command(), words::pair(&habit.name, &habit.value)))
        .collect();
    let reset: Vec<String> = found.iter().map(|habit| format!("{} RESET {};", habit.command(), habit.name)).collect();
    say(
        format!(
            "roles or databases of the server of {dir} have set what must not count before the file: {}",
            shown.join("; ")
        ),
        format!("as its superuser: {}", reset.join(" ")),
    );
}
