//! Taking what the operator wants now. Every value is tried by the server's own program before it is taken, so that a mistake changes
//! nothing; a running server reloads and says itself what waits for a restart.

use crate::files;
use crate::options::{check_hba, check_parameter};
use crate::server::{Postgres, STATEMENT, failed};
use crate::sql::{Session, literal};
use mainstay_ports::engine::{Configured, EngineError, EngineSettings};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const CANDIDATE: &str = "candidate.conf";
/// How long the server's program may take to read a configuration.
const TRY: Duration = Duration::from_secs(10);
/// Under this name access lines are refused.
const HBA: &str = "postgres.hba";

type Refused = Vec<(String, String)>;

impl Postgres {
    /// See [`mainstay_ports::engine::Engine::configure`].
    pub(crate) async fn change_settings(&self, wanted: &EngineSettings) -> Result<Configured, EngineError> {
        let mut refused = refused_by_rule(wanted);
        if refused.is_empty() {
            refused = self.refused_by_program(wanted).await?;
        }
        if refused.is_empty() {
            refused = self.missing_libraries(wanted).await;
        }
        if !refused.is_empty() {
            return Ok(Configured { refused, ..Configured::default() });
        }
        let before = self.settings();
        self.set_settings(Arc::new(wanted.clone()));
        if self.server_pid().await?.is_none() {
            let written = self.write(None, |_| {}).await;
            if written.is_err() {
                self.set_settings(before);
            }
            return written.map(|_| Configured::default());
        }
        // A server that does not answer yet has the new files all the same, and reads them: the caller asks again how it goes by them.
        let session = self.apply(None, |_| {}).await?;
        let refused = self.refused_by_server(&session, wanted).await?;
        if refused.is_empty() {
            self.drop_strangers(&session).await?;
            return Ok(Configured { pending_restart: self.pending(&session).await?, refused });
        }
        self.set_settings(before);
        let session = self.apply(None, |_| {}).await?;
        Ok(Configured { pending_restart: self.pending(&session).await?, refused })
    }

    /// Has the server's program read the configuration as it would be.
    async fn refused_by_program(&self, wanted: &EngineSettings) -> Result<Refused, EngineError> {
        let conf = self.options.layout.conf();
        let text = self.text_with(wanted).await;
        let (dir, owner) = (conf.clone(), self.owner());
        let written = tokio::task::spawn_blocking(move || {
            files::ensure_dir(&dir, 0o700, owner)?;
            files::write_quickly(&dir, CANDIDATE, text.as_bytes(), 0o600, owner)
        });
        let say = |error: std::io::Error| failed(format!("{}/{CANDIDATE}: {error}", conf.display()));
        written.await.map_err(failed)?.map_err(say)?;
        let arguments = [
            "-C".to_owned(),
            "port".to_owned(),
            "-D".to_owned(),
            conf.display().to_string(),
            "-c".to_owned(),
            format!("config_file={}", conf.join(CANDIDATE).display()),
        ];
        let ran = self.run("postgres", &arguments, TRY).await;
        files::remove(&conf, CANDIDATE).map_err(say)?;
        let ran = ran?;
        Ok(if ran.success { Refused::new() } else { complaints(&ran.err, wanted) })
    }

    /// Libraries that a server would look for at its start, and not find: it would not start at all.
    async fn missing_libraries(&self, wanted: &EngineSettings) -> Refused {
        let is = |name: &str| name.eq_ignore_ascii_case("shared_preload_libraries");
        let elsewhere = wanted.parameters.keys().any(|name| name.eq_ignore_ascii_case("dynamic_library_path"));
        let Some((name, list)) = wanted.parameters.iter().find(|(name, _)| is(name)).filter(|_| !elsewhere) else {
            return Refused::new();
        };
        let said = self.run("pg_config", &["--pkglibdir".to_owned()], TRY).await;
        let said = said.ok().filter(|ran| ran.success).map(|ran| PathBuf::from(ran.out.trim()));
        let dir = said.unwrap_or_else(|| self.options.bin_dir.join("../lib"));
        let missing = list.split(',').map(|entry| entry.trim().trim_matches('"')).filter(|entry| !entry.is_empty());
        let missing = missing.filter(|entry| {
            let file = dir.join(entry.trim_start_matches("$libdir/"));
            !file.exists() && !file.with_extension("so").exists()
        });
        let say = |entry: &str| format!("no library {entry:?} in {}; install it on every node first", dir.display());
        missing.map(|entry| (name.clone(), say(entry))).collect()
    }

    /// What the running server says of the files that it has read.
    async fn refused_by_server(&self, session: &Session, wanted: &EngineSettings) -> Result<Refused, EngineError> {
        let file = self.options.layout.conf().join("postgresql.conf").display().to_string();
        let sql = format!(
            "select f.name, f.error from pg_file_settings f left join pg_settings s on lower(s.name) = lower(f.name) \
             where f.sourcefile = {} and f.error is not null and not coalesce(s.pending_restart, false)",
            literal(&file)
        );
        let mut refused = Refused::new();
        for row in session.rows(&sql, STATEMENT).await? {
            let text = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
            // What was there before and is none of the operator's is not a reason to refuse what is new.
            if wanted.parameters.keys().any(|name| name.eq_ignore_ascii_case(text(0))) {
                refused.push((text(0).to_owned(), format!("{}; {}", text(1), self.log_tail())));
            }
        }
        let wrong = self.wrong_access_lines(session).await?;
        refused.extend((!wrong.is_empty()).then(|| (HBA.to_owned(), wrong)));
        Ok(refused)
    }

    /// Access lines of the file that the server does not understand; empty: none.
    pub(crate) async fn wrong_access_lines(&self, session: &Session) -> Result<String, EngineError> {
        let sql = "select string_agg(format('line %s: %s', line_number, error), '; ') from pg_hba_file_rules \
             where error is not null";
        Ok(session.value(sql, STATEMENT).await?)
    }

    /// What waits for a restart; on a standby also what must stay higher until its primary has less.
    async fn pending(&self, session: &Session) -> Result<Vec<String>, EngineError> {
        let rows = session.rows("select name from pg_settings where pending_restart", STATEMENT).await?;
        let mut names: Vec<String> = rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
        names.extend(self.floors().above(&self.settings().parameters));
        names.sort();
        names.dedup();
        Ok(names)
    }
}

/// What can be told without the server.
fn refused_by_rule(wanted: &EngineSettings) -> Refused {
    let say = |name: &str, result: Result<(), crate::options::OptionsError>| {
        result.err().map(|error| (name.to_owned(), error.to_string()))
    };
    let parameters = wanted.parameters.iter().filter_map(|(name, value)| say(name, check_parameter(name, value)));
    let lines = wanted.hba.iter().filter_map(|line| say(HBA, check_hba(line)));
    let mut refused: Refused = parameters.chain(lines).collect();
    // A server refuses to start with these, although it accepts each value by itself.
    let number = |name: &str| {
        let found = wanted.parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.and_then(|(_, value)| value.trim().parse::<u64>().ok())
    };
    let reserved = number("superuser_reserved_connections").unwrap_or(8) + number("reserved_connections").unwrap_or(0);
    let connections = number("max_connections").unwrap_or(200);
    if reserved >= connections {
        let why = format!("no connection is left for clients: {reserved} of {connections} are reserved");
        refused.push(("max_connections".to_owned(), why));
    }
    // One of the slots is the archive's.
    let members = wanted.peers.len() as u64 + 2 + u64::from(wanted.archived);
    for name in ["max_wal_senders", "max_replication_slots"] {
        if let Some(value) = number(name).filter(|value| *value < members) {
            refused
                .push((name.to_owned(), format!("{value} is too few for the cluster's nodes; take {members} or more")));
        }
    }
    refused
}

/// What the program said, each complaint under the name of the setting that it names.
fn complaints(said: &str, wanted: &EngineSettings) -> Refused {
    let mut all = Refused::new();
    for line in said.lines() {
        let Some((_, text)) = line.split_once("LOG:  ").or_else(|| line.split_once("FATAL:  ")) else { continue };
        let named = wanted.parameters.keys().find(|name| {
            let lower = text.to_ascii_lowercase();
            lower.contains(&format!("\"{}\"", name.to_ascii_lowercase()))
        });
        if let Some(name) = named {
            all.push((name.clone(), text.to_owned()));
        }
    }
    if all.is_empty() {
        all.push(("postgres.parameters".to_owned(), said.trim().replace('\n', " | ")));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_come_under_the_name_of_their_setting() {
        let wanted = EngineSettings { parameters: [("Work_Mem".into(), "x".into())].into(), ..Default::default() };
        let said = "2026-11-26 UTC [7] LOG:  invalid value for parameter \"work_mem\": \"x\"\n\
                    2026-11-26 UTC [7] FATAL:  configuration file \"/c\" contains errors\n";
        let expected = ("Work_Mem".to_owned(), "invalid value for parameter \"work_mem\": \"x\"".to_owned());
        assert_eq!(complaints(said, &wanted), [expected]);
        assert_eq!(complaints("LOG:  what\n", &wanted)[0].0, "postgres.parameters");
    }

    #[test]
    fn what_no_server_would_start_with_is_refused_by_rule() {
        let with = |name: &str, value: &str| {
            let parameters = [(name.to_owned(), value.to_owned())].into();
            let settings = EngineSettings { parameters, ..EngineSettings::default() };
            refused_by_rule(&settings).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(with("max_connections", "8"), ["max_connections"]);
        assert_eq!(with("max_wal_senders", "1"), ["max_wal_senders"]);
        assert_eq!(with("primary_conninfo", "x"), ["primary_conninfo"]);
        assert!(with("max_connections", "50").is_empty());
    }
}
