//! Who may log in with a password, as the server itself stores it. Absent: passwords, and roles that have none.

use crate::server::{Postgres, STATEMENT};
use mainstay_model::SystemId;
use mainstay_model::logins::{LoginRole, Logins};
use mainstay_ports::engine::EngineError;

/// Roles that are told, at most.
const ROLES_MAX: usize = 10_000;

impl Postgres {
    pub(crate) async fn who_may_log_in(&self) -> Result<Logins, EngineError> {
        let session = self.session(STATEMENT).await?;
        let system = session.value("select system_identifier from pg_control_system()", STATEMENT).await?;
        // The column is text of the server's own making: nothing in it is anybody's input.
        let sql = format!(
            "select rolname, rolpassword, rolsuper, pg_has_role(oid, 'pg_monitor', 'MEMBER') from pg_authid \
             where rolcanlogin and rolpassword like 'SCRAM-SHA-256$%' \
             and (rolvaliduntil is null or rolvaliduntil > now()) order by 1 limit {ROLES_MAX}"
        );
        let rows = session.rows(&sql, STATEMENT).await?;
        let role = |row: Vec<Option<String>>| {
            let mut values = row.into_iter();
            let mut next = || values.next().flatten();
            Some(LoginRole { name: next()?, verifier: next()?, superuser: next()? == "t", monitor: next()? == "t" })
        };
        Ok(Logins { system: system.parse().ok().map(SystemId), roles: rows.into_iter().filter_map(role).collect() })
    }
}
