//! Settings of a session, carried from server to server: each by the statement that makes it. Equal ones are one object, so that
//! comparing a client's with a server's costs nothing. Absent: values; only the server knows what a text means.

use mainstay_model::Lsn;
use mainstay_wire::text::{Change, is_followed};
use std::collections::HashSet;
use std::rc::Rc;

/// Settings of one session, at most.
const SETTINGS_MAX: usize = 64;
/// Names the position that reads of this session have to see.
pub(crate) const READ_AFTER: &str = "mainstay.read_after";
/// Has two parts, and a statement may set one of them only.
pub(crate) const DATE_STYLE: &str = "datestyle";
/// Unused objects are looked for when there are more than this.
const KEPT: usize = 1024;

/// Name and statement, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Settings(Vec<(String, String)>);

/// All that are in use.
#[derive(Debug, Default)]
pub(crate) struct AllSettings(HashSet<Rc<Settings>>);

impl AllSettings {
    pub(crate) fn intern(&mut self, settings: Settings) -> Rc<Settings> {
        if let Some(known) = self.0.get(&settings) {
            return Rc::clone(known);
        }
        if self.0.len() >= KEPT {
            self.0.retain(|known| Rc::strong_count(known) > 1);
        }
        let new = Rc::new(settings);
        self.0.insert(Rc::clone(&new));
        new
    }
}

impl Settings {
    /// What a client asks for in its start-up packet; `Err` names what it may not ask for.
    pub(crate) fn of_startup(parameters: &[(String, String)]) -> Result<Self, String> {
        let mut settings = Self::default();
        for (name, value) in parameters {
            match name.as_str() {
                "user" | "database" | "replication" => {}
                "options" => settings.options(value)?,
                name if name.starts_with("_pq_.") => {}
                name => settings.ask(name, value)?,
            }
        }
        Ok(settings)
    }

    fn options(&mut self, options: &str) -> Result<(), String> {
        let mut words = options.split_ascii_whitespace();
        while let Some(word) = words.next() {
            let setting = match word {
                "-c" => words.next(),
                word => word.strip_prefix("--").or_else(|| word.strip_prefix("-c")),
            };
            let (name, value) = setting.and_then(|setting| setting.split_once('=')).ok_or("options")?;
            if value.contains('\\') {
                return Err("options with a backslash".to_owned());
            }
            self.ask(&name.replace('-', "_"), value)?;
        }
        Ok(())
    }

    fn ask(&mut self, name: &str, value: &str) -> Result<(), String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
        let sql = format!("SET {name} TO '{}'", value.replace('\'', "''"));
        let name = name.to_ascii_lowercase();
        if name.is_empty() || !name.bytes().all(plain) || !is_followed(&name, &sql) || self.0.len() >= SETTINGS_MAX {
            return Err(name);
        }
        // A list of names must stay a list.
        let sql = if name == "search_path" {
            format!("SELECT pg_catalog.set_config('search_path', '{}', false)", value.replace('\'', "''"))
        } else {
            sql
        };
        self.set(name, sql);
        Ok(())
    }

    /// The position that reads have to see, if the session names one; `Err`: what it names is none, or can not be told for certain.
    pub(crate) fn read_after(&self) -> Result<Option<Lsn>, String> {
        let Ok(at) = self.0.binary_search_by(|(known, _)| known.as_str().cmp(READ_AFTER)) else { return Ok(None) };
        let sql = &self.0[at].1;
        let unclear = || sql.clone();
        // Found twice, the one in a comment may be taken for the other.
        let low = sql.to_ascii_lowercase();
        let mut found = low.match_indices(READ_AFTER);
        let (Some((name, _)), None) = (found.next(), found.next()) else { return Err(unclear()) };
        let value = sql[name + READ_AFTER.len()..].trim_start();
        let to = || value.get(..2).filter(|to| to.eq_ignore_ascii_case("to")).map(|_| &value[2..]);
        let value = value.strip_prefix('=').or_else(to).ok_or_else(unclear)?.trim();
        let text = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\''));
        if text == Some("") || value.eq_ignore_ascii_case("default") {
            return Ok(None);
        }
        let value = text.unwrap_or(value);
        value.parse().map(Some).map_err(|_| value.to_owned())
    }

    fn set(&mut self, name: String, sql: String) {
        match self.0.binary_search_by(|(known, _)| known.cmp(&name)) {
            Ok(at) => self.0[at].1 = sql,
            Err(at) => self.0.insert(at, (name, sql)),
        }
    }

    /// With these changes; `start` is what a reset goes back to. `None`: too many.
    pub(crate) fn with(&self, changes: &[Change], start: &Settings) -> Option<Self> {
        let mut next = self.clone();
        for change in changes {
            match change {
                Change::Set { name, sql } => next.set(name.clone(), sql.clone()),
                Change::ResetAll => next = start.clone(),
                Change::Reset(name) => {
                    next.0.retain(|(known, _)| known != name);
                    if let Some((name, sql)) = start.0.iter().find(|(known, _)| known == name) {
                        next.set(name.clone(), sql.clone());
                    }
                }
            }
        }
        (next.0.len() <= SETTINGS_MAX).then_some(next)
    }

    /// The statements that lead from these settings to those.
    pub(crate) fn way_to(&self, to: &Settings) -> String {
        let mut statements: Vec<String> = Vec::new();
        // A role may be less than what the next setting takes: back first, forth last.
        let role = |settings: &Settings| settings.0.iter().find(|(name, _)| name == "role").cloned();
        let (old_role, new_role) = (role(self), role(to));
        if old_role.is_some() && (old_role != new_role || self != to) {
            statements.push("RESET role".to_owned());
        }
        let has = |settings: &Settings, name: &str| settings.0.iter().any(|(known, _)| known == name);
        let left = |pair: &&(String, String)| !has(to, &pair.0) || pair.0 == DATE_STYLE && !to.0.contains(pair);
        for (name, _) in self.0.iter().filter(|(name, _)| name != "role").filter(left) {
            statements.push(format!("RESET {name}"));
        }
        statements
            .extend(to.0.iter().filter(|pair| pair.0 != "role" && !self.0.contains(pair)).map(|pair| pair.1.clone()));
        statements.extend(new_role.map(|(_, sql)| sql));
        // A statement may end in a comment, which would swallow what follows in its line.
        statements.join("\n;\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, sql: &str) -> Change {
        Change::Set { name: name.into(), sql: sql.into() }
    }

    #[test]
    fn the_way_resets_what_is_too_much_and_sets_what_lacks() {
        let start = Settings::of_startup(&[("TimeZone".into(), "it's".into()), ("user".into(), "a".into())]).unwrap();
        assert_eq!(Settings::default().way_to(&start), "SET TimeZone TO 'it''s'");
        let changes = [set("a.b", "set a.b = 1"), set("role", "set role r"), set("a.b", "set a.b = 2 -- x")];
        let next = start.with(&changes, &start).unwrap();
        assert_eq!(start.way_to(&next), "set a.b = 2 -- x\n;\nset role r");
        assert_eq!(next.way_to(&start), "RESET role\n;\nRESET a.b");
        assert_eq!(next.way_to(&Settings::default()), "RESET role\n;\nRESET a.b\n;\nRESET timezone");
        let back = next.with(&[Change::Reset("a.b".into()), Change::Reset("role".into())], &start).unwrap();
        assert_eq!(back, start);
        assert_eq!(next.with(&[Change::ResetAll], &start), Some(start.clone()));
        let style = |sql: &str| start.with(&[set(DATE_STYLE, sql)], &start).unwrap();
        let (one, two) = (style("set datestyle to iso"), style("SET DateStyle TO 'SQL, DMY'"));
        assert_eq!(two.way_to(&one), "RESET datestyle\n;\nset datestyle to iso", "nothing of the other's stays");
        let mut all = AllSettings::default();
        assert!(Rc::ptr_eq(&all.intern(start), &all.intern(back)));
    }

    #[test]
    fn a_position_to_read_after_is_found_however_it_is_said() {
        let after = |sql: &str| {
            let changes = [set("a.b", "set a.b = 1"), set(READ_AFTER, sql)];
            Settings::default().with(&changes, &Settings::default()).unwrap().read_after()
        };
        for sql in [
            "set mainstay.read_after = '1/A0'",
            "SET Mainstay.Read_After TO  '1/a0'",
            "set mainstay.read_after='1/A0'",
            "SET /* a.b */ mainstay.read_after\n=\t'1/A0'",
        ] {
            assert_eq!(after(sql), Ok(Some(Lsn(0x1_0000_00a0))), "{sql}");
        }
        for sql in ["set mainstay.read_after = ''", "set mainstay.read_after to default"] {
            assert_eq!(after(sql), Ok(None), "{sql}");
        }
        for sql in [
            "set mainstay.read_after = 7",
            "set mainstay.read_after = '1/A0' -- x",
            "set mainstay.read_after = 'x/y'",
            "set mainstay.read_after /* x */ = '1/A0'",
            "set mainstay.read_after = '1/A0' -- mainstay.read_after=''",
            "set mainstay.read_after = -- ''",
            "set mainstay.read_after",
            "set mainstay . read_after = '1/A0'",
            "set mainstay.\"read_after\" = ''",
        ] {
            assert!(after(sql).is_err(), "{sql}");
        }
        assert_eq!(Settings::default().read_after(), Ok(None));
        let started = Settings::of_startup(&[("mainstay.read_after".into(), "0/7".into())]).unwrap();
        assert_eq!(started.read_after(), Ok(Some(Lsn(7))));
    }

    #[test]
    fn names_that_are_none_and_options_that_are_none_are_refused() {
        let ask = |name: &str, value: &str| Settings::of_startup(&[(name.to_owned(), value.to_owned())]);
        for (name, value) in [
            ("a b", "1"),
            ("x;drop table y", "1"),
            ("session_authorization", "bob"),
            ("standard_conforming_strings", "off"),
            ("options", "-c a\\ b=c"),
            ("options", "-e"),
            ("client_encoding", "SJIS"),
        ] {
            assert!(ask(name, value).is_err(), "{name}");
        }
        let options = ask("options", "-c geqo=off --work-mem=1MB -cenable_sort=off").unwrap();
        assert_eq!(options.0.len(), 3);
        assert_eq!(options.0[2], ("work_mem".to_owned(), "SET work_mem TO '1MB'".to_owned()));
    }
}
