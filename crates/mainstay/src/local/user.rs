//! Which operating-system users are involved: who runs this, and as whom database servers run.

use crate::failure::{Failure, Outcome};
use std::path::Path;

/// An operating-system user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    /// Its name.
    pub(crate) name: String,
    /// Its number.
    pub(crate) uid: u32,
    /// Its main group.
    pub(crate) gid: u32,
}

/// The user that database servers run as when root starts them.
const SERVER_USER: &str = "postgres";

fn find(passwd: &str, wanted: impl Fn(&User) -> bool) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(User { name, uid, gid }).filter(&wanted)
    })
}

fn passwd() -> String {
    std::fs::read_to_string(Path::new("/etc/passwd")).unwrap_or_default()
}

/// Who runs this. A user without an entry in `/etc/passwd` goes by its number.
pub(crate) fn me() -> User {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    find(&passwd(), |user| user.uid == uid).unwrap_or_else(|| User { name: uid.to_string(), uid, gid })
}

/// Does root run this?
pub(crate) fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// As whom servers are to run by this name: as whoever starts them (`None`), unless root does.
///
/// # Errors
/// When there is no such user, or only root could start servers as that user.
pub(crate) fn named(name: &str) -> Outcome<Option<User>> {
    if !am_root() {
        let me = me();
        if name == SERVER_USER || name == me.name {
            return Ok(None);
        }
        return Err(Failure::usage(format!(
            "servers of user {name:?} can be prepared by root only; this is {}",
            me.name
        )));
    }
    if name == SERVER_USER {
        return server_user();
    }
    match find(&passwd(), |user| user.name == name) {
        Some(user) if user.uid == 0 => Err(Failure::usage("servers must not run as root: name another --user")),
        Some(user) => Ok(Some(user)),
        None => Err(Failure::usage(format!("there is no user {name:?} on this host"))),
    }
}

/// The user of this number; one without an entry in `/etc/passwd` goes by its number.
pub(crate) fn numbered(uid: u32) -> User {
    find(&passwd(), |user| user.uid == uid).unwrap_or_else(|| User { name: uid.to_string(), uid, gid: uid })
}

/// The user that servers of root's agents run as, whoever asks.
pub(crate) fn of_servers() -> Option<User> {
    find(&passwd(), |user| user.name == SERVER_USER)
}

/// As whom servers run: `postgres` when root starts them, else (`None`) as whoever starts them.
///
/// # Errors
/// When root starts them and there is no such user.
pub(crate) fn server_user() -> Outcome<Option<User>> {
    if !am_root() {
        return Ok(None);
    }
    find(&passwd(), |user| user.name == SERVER_USER).map(Some).ok_or_else(|| {
        Failure::failed(format!("there is no user {SERVER_USER:?}: servers must not run as root"))
            .hint("install the package postgresql, which makes that user, or run this as an ordinary user")
    })
}

/// `user@host`, for the record of who asked.
pub(crate) fn who() -> String {
    let behind = std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}@{}", behind.unwrap_or_else(|| me().name), host.trim())
}

#[cfg(test)]
mod tests {
    use super::{User, find};

    #[test]
    fn users_are_found_by_name() {
        let text = "root:x:0:0:root:/root:/bin/bash\nbroken\npostgres:x:101:104:PG:/var/lib/postgresql:/bin/bash\n";
        let user = find(text, |user| user.name == "postgres");
        assert_eq!(user, Some(User { name: "postgres".into(), uid: 101, gid: 104 }));
        assert_eq!(find(text, |user| user.name == "mysql"), None);
    }
}
