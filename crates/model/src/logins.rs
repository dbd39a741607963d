//! Who may log in, as the cluster's own servers know it: what an agent tells proxies, so that these need no list of users.
//!
//! A verifier proves a password and does not give it away, but it is worth as much as the line of `pg_authid` that it is: it goes to
//! proxies of the cluster only, and is never written down there.

use crate::SystemId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A role that can log in with a password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginRole {
    /// Its name.
    pub name: String,
    /// What the server checks its password against: `SCRAM-SHA-256$…`.
    pub verifier: String,
    /// May do everything.
    #[serde(default)]
    pub superuser: bool,
    /// May look at everything (a member of `pg_monitor`).
    #[serde(default)]
    pub monitor: bool,
}

impl fmt::Debug for LoginRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginRole").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logins {
    /// Whose they are: the servers that may carry work are these.
    pub system: Option<SystemId>,
    /// The roles.
    pub roles: Vec<LoginRole>,
}
