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

/// The word in Debian's file, if it is one that it may hold. The file is the server's own user's, and root pastes what is made of it.
fn start_word(said: &str) -> Option<&'static str> {
    let mut lines = said.lines().map(str::trim);
    let said = lines.find(|line| !line.starts_with('#') && !line.is_empty())?;
    ["auto", "manual", "disabled"].into_iter().find(|known| *known == said)
}

impl Adoption {
    /// What is to be noted by an attempt after this one, which finds the server kept as `now`. What an earlier one has switched off is not taken
    /// for how it was before: nor is what a start as a node has left of `postgresql.auto.conf`, which `without_owned` takes ours out of (`None`: it held
    /// none of them).
    #[must_use]
    pub fn renewed(self, now: Adoption, without_owned: impl Fn(&str) -> Option<String>) -> Adoption {
        let switched_off = |before: &(PathBuf, String), now: &(PathBuf, String)| {
            before.0 == now.0 && start_word(&now.1) == Some("disabled")
        };
        let start_conf = match (self.start_conf, now.start_conf) {
            (Some(before), Some(now)) if switched_off(&before, &now) => Some(before),
            (before, now) => now.or(before),
        };
        let (unit, enabled) = match (self.unit, now.unit) {
            (Some(before), Some(unit)) if before == unit => (Some(unit), self.enabled || now.enabled),
            (_, Some(unit)) => (Some(unit), now.enabled),
            // It does not run, or somebody has started it by hand: how it was kept is what brings it back.
            (before, None) => (before, self.enabled),
        };
        let mut slots = self.slots;
        slots.extend(now.slots.into_iter().filter(|slot| !slots.contains(slot)).collect::<Vec<_>>());
        let left_of = |before: &str, now: &str| without_owned(before).is_some_and(|rest| rest.lines().eq(now.lines()));
        let auto_conf = match (self.auto_conf, now.auto_conf) {
            (Some(before), Some(now)) if left_of(&before, &now) => Some(before),
            (before, now) => now.or(before),
        };
        Adoption { directory: self.directory, system: self.system, unit, enabled, start_conf, auto_conf, slots }
    }

    /// Commands that let the server be started by its own means again, as they did before.
    #[must_use]
    pub fn undo(&self) -> Vec<String> {
        if let Some((path, said)) = &self.start_conf {
            let word = start_word(said).unwrap_or("auto");
            let mut ways = vec![format!("echo {word} > {}", quote(&path.display().to_string()))];
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

    /// The port is ours.
    fn without_owned(text: &str) -> Option<String> {
        let rest: String =
            text.lines().filter(|line| !line.starts_with("port")).map(|line| format!("{line}\n")).collect();
        (rest != text).then_some(rest)
    }

    #[test]
    fn a_note_follows_how_the_server_is_kept_and_forgets_nothing_that_was_switched_off() {
        let conf = |path: &str, said: &str| Some((PathBuf::from(path), said.to_owned()));
        let before = Adoption {
            directory: "/srv/main".into(),
            system: SystemId(7),
            unit: Some("pg.service".into()),
            enabled: true,
            start_conf: conf("/etc/start.conf", "manual\n"),
            auto_conf: Some("work_mem = 1\nport = 5433\n".into()),
            slots: vec!["a".into()],
        };
        // An attempt has switched it off and stopped it.
        let off = Adoption {
            unit: None,
            enabled: false,
            start_conf: conf("/etc/start.conf", "disabled\n"),
            slots: Vec::new(),
            ..before.clone()
        };
        assert_eq!(before.clone().renewed(off.clone(), without_owned), before);
        // The same one was started again, and is not enabled any more because of that attempt.
        let again = Adoption { unit: before.unit.clone(), ..off.clone() };
        assert_eq!(before.clone().renewed(again, without_owned), before);
        // It was put back, in another way, with other settings.
        let other = Adoption {
            unit: Some("other.service".into()),
            enabled: false,
            start_conf: conf("/etc/start.conf", "auto\n"),
            auto_conf: Some("work_mem = 2".into()),
            slots: vec!["a".into(), "b".into()],
            ..before.clone()
        };
        assert_eq!(before.clone().renewed(other.clone(), without_owned), other);
        let elsewhere = Adoption { start_conf: conf("/etc/other.conf", "disabled\n"), ..off };
        assert_eq!(before.clone().renewed(elsewhere.clone(), without_owned).start_conf, elsewhere.start_conf);
        // Started as a node once, and put back: ours are gone from it, and are still how it was before.
        let started = Adoption { auto_conf: Some("work_mem = 1\n".into()), ..before.clone() };
        assert_eq!(before.clone().renewed(started, without_owned), before);
        // Somebody has changed it: that counts, with or without ours.
        for text in ["work_mem = 3\n", "work_mem = 1\nport = 5434\n", ""] {
            let set = Adoption { auto_conf: Some(text.into()), ..before.clone() };
            assert_eq!(before.clone().renewed(set.clone(), without_owned), set);
        }
        // What can not be read any more is not taken for nothing.
        let unread = Adoption { auto_conf: None, start_conf: None, ..before.clone() };
        assert_eq!(before.clone().renewed(unread, without_owned), before);
    }

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
