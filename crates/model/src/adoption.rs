//! What is noted of a server that was adopted, so that an interrupted adoption goes on, and its server can be handed back.

use crate::SystemId;
use crate::shell::quote;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which server was adopted, and how it was kept before. Written before anything of it is touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// Where its data lay.
    pub directory: PathBuf,
    /// Its identity: data of another are never taken for it.
    pub system: SystemId,
    /// What started it: a unit of systemd, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// That unit was started with the host.
    #[serde(default)]
    pub enabled: bool,
    /// Debian's file that says whether it is started with the host, and what that said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_conf: Option<(PathBuf, String)>,
    /// Its `postgresql.auto.conf` as it was: what Mainstay owns is taken out of it when the server starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_conf: Option<String>,
    /// Replication slots of its standbys that come along: they are dropped, as these follow through others then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<String>,
}

impl Adoption {
    /// Commands that let the server be started by its own means again, as they did before.
    #[must_use]
    pub fn undo(&self) -> Vec<String> {
        if let Some((path, said)) = &self.start_conf {
            let mut lines = said.lines().map(str::trim);
            let said = lines.find(|line| !line.starts_with('#') && !line.is_empty());
            // The file is the server's own user's, and root pastes this: only the words that it may hold are taken from it.
            let known = said.and_then(|said| ["auto", "manual", "disabled"].into_iter().find(|known| *known == said));
            let mut ways = vec![format!("echo {} > {}", known.unwrap_or("auto"), quote(&path.display().to_string()))];
            if self.unit.is_some() {
                ways.push("systemctl daemon-reload".into());
            }
            return ways;
        }
        let enabled = self.unit.iter().filter(|_| self.enabled);
        enabled.map(|unit| format!("systemctl enable {}", quote(unit))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kept_a_server_before_is_what_brings_it_back() {
        let unit = Adoption {
            directory: "/srv/main".into(),
            system: SystemId(7),
            unit: Some("pg.service".into()),
            enabled: true,
            start_conf: None,
            auto_conf: None,
            slots: Vec::new(),
        };
        assert_eq!(unit.undo(), ["systemctl enable pg.service"]);
        assert!(Adoption { enabled: false, ..unit.clone() }.undo().is_empty());
        let debian = Adoption { start_conf: Some(("/etc/start.conf".into(), "# how\n\nmanual\n".into())), ..unit };
        assert_eq!(debian.undo(), ["echo manual > /etc/start.conf", "systemctl daemon-reload"]);
        // The file, and what it is called, are as the server's user has written them.
        let path = "/etc/postgresql/15/a;reboot/start.conf";
        let odd = Adoption { start_conf: Some((path.into(), "auto; reboot\n".into())), ..debian };
        assert_eq!(odd.undo()[0], format!("echo auto > '{path}'"));
        // Notes of an earlier version say less.
        let before = r#"{"directory":"/srv/main","system":7}"#;
        assert!(serde_json::from_str::<Adoption>(before).is_ok_and(|noted| noted.undo().is_empty()));
    }
}
