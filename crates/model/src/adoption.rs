//! What is noted of a server that was adopted, so that an interrupted adoption goes on, and its server can be handed back.

use crate::SystemId;
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
}

impl Adoption {
    /// Commands that let the server be started by its own means again, as they did before.
    #[must_use]
    pub fn undo(&self) -> Vec<String> {
        if let Some((path, said)) = &self.start_conf {
            let said = said.lines().find(|line| !line.starts_with('#') && !line.trim().is_empty()).unwrap_or("auto");
            let mut ways = vec![format!("echo {said} > {}", path.display())];
            if self.unit.is_some() {
                ways.push("systemctl daemon-reload".into());
            }
            return ways;
        }
        let enabled = self.unit.iter().filter(|_| self.enabled);
        enabled.map(|unit| format!("systemctl enable {unit}")).collect()
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
        };
        assert_eq!(unit.undo(), ["systemctl enable pg.service"]);
        assert!(Adoption { enabled: false, ..unit.clone() }.undo().is_empty());
        let debian = Adoption { start_conf: Some(("/etc/start.conf".into(), "# how\n\nmanual\n".into())), ..unit };
        assert_eq!(debian.undo(), ["echo manual > /etc/start.conf", "systemctl daemon-reload"]);
        // Notes of an earlier version say less.
        let before = r#"{"directory":"/srv/main","system":7}"#;
        assert!(serde_json::from_str::<Adoption>(before).is_ok_and(|noted| noted.undo().is_empty()));
    }
}
