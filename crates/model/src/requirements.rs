//! What the cluster is for and what is asked of it: `[requirements]` of `mainstay.toml`. Only plans read it; nothing that runs is steered by it.
//!
//! Every key has a default, so that three host names make a plan. An objective that is left out is not zero: the plan then says what is reached.

use crate::config::{ConfigProblem, nearest};
use serde::{Deserialize, Serialize};

/// The whole table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Requirements {
    /// What the data is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// Who may see it.
    pub classification: Classification,
    /// Who answers for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Who is called, in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub on_call: Vec<String>,
    /// What the applications need of a database.
    pub needs: Vec<String>,
    /// Most seconds of acknowledged writes that may be lost when a database server dies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_server_s: Option<u64>,
    /// The same, when a host is lost with its disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_host_s: Option<u64>,
    /// The same, when a zone is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_zone_s: Option<u64>,
    /// The same, when all hosts are lost at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_site_s: Option<u64>,
    /// The same, when people or programs deleted or changed what they should not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_human_s: Option<u64>,
    /// Most seconds without writes when a database server dies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outage_server_s: Option<u64>,
    /// The same, when a host is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outage_host_s: Option<u64>,
    /// The same, when a zone is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outage_zone_s: Option<u64>,
    /// The same, when all hosts are lost at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outage_site_s: Option<u64>,
    /// The same, until data is back that was deleted by mistake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outage_human_s: Option<u64>,
    /// How large the data is now.
    pub size_gb: u64,
    /// How much it grows.
    pub growth_gb_per_month: u64,
    /// How much of it is in use all the time; default: a quarter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_set_gb: Option<u64>,
    /// Transactions that write, a second, at the busiest hour.
    pub writes_per_s: u64,
    /// Transactions that only read, a second, at the busiest hour.
    pub reads_per_s: u64,
    /// How much write-ahead log a writing transaction makes.
    pub log_kb_per_write: u64,
    /// Connections that the applications keep open, all together.
    pub clients: u64,
    /// What most of the work is.
    pub workload: Workload,
    /// How long a commit may take.
    pub write_latency_ms: u64,
    /// How many hosts there may be; default: those that are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<u64>,
    /// Cores of the smallest host.
    pub cores: u64,
    /// Memory of the smallest host.
    pub memory_gb: u64,
    /// Disk of the smallest host, for the data and its log.
    pub disk_gb: u64,
    /// What kind of disk.
    pub disk: Disk,
    /// The slowest network link between the hosts.
    pub link_mbit_s: u64,
    /// Round trip between two zones, in microseconds.
    pub zone_round_trip_us: u64,
    /// A host fails about once in so many days.
    pub host_fails_every_days: u64,
    /// How long it takes until a failed host is repaired or replaced.
    pub repair_hours: u64,
    /// A zone fails about once in so many days.
    pub zone_fails_every_days: u64,
    /// When maintenance is done.
    pub window: String,
    /// In which time zone that is.
    pub time_zone: String,
    /// How far back the data must be restorable.
    pub retention_days: u64,
    /// The major version; default: the one that is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres_version: Option<u64>,
}

impl Default for Requirements {
    fn default() -> Self {
        Self {
            purpose: None,
            classification: Classification::default(),
            owner: None,
            on_call: Vec::new(),
            needs: vec!["transactions".to_owned()],
            loss_server_s: None,
            loss_host_s: None,
            loss_zone_s: None,
            loss_site_s: None,
            loss_human_s: None,
            outage_server_s: None,
            outage_host_s: None,
            outage_zone_s: None,
            outage_site_s: None,
            outage_human_s: None,
            size_gb: 20,
            growth_gb_per_month: 1,
            working_set_gb: None,
            writes_per_s: 100,
            reads_per_s: 1000,
            log_kb_per_write: 8,
            clients: 200,
            workload: Workload::default(),
            write_latency_ms: 50,
            hosts: None,
            cores: 4,
            memory_gb: 16,
            disk_gb: 200,
            disk: Disk::default(),
            link_mbit_s: 1000,
            zone_round_trip_us: 1000,
            host_fails_every_days: 365,
            repair_hours: 8,
            zone_fails_every_days: 1825,
            window: "sun 02:00-04:00".to_owned(),
            time_zone: "UTC".to_owned(),
            retention_days: 14,
            postgres_version: None,
        }
    }
}

impl Requirements {
    /// Does it say nothing? Then it is not written, and programs that do not know the table read the file too.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// How much of the data is in use all the time.
    #[must_use]
    pub fn working_set_gb(&self) -> u64 {
        self.working_set_gb.unwrap_or((self.size_gb / 4).max(1))
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$inner])* $variant),+ }

        impl $name {
            /// The word, as the file writes it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// Who may see the data.
    Classification {
        /// Anybody.
        Public = "public",
        /// The organisation.
        #[default]
        Internal = "internal",
        /// Data about people.
        Personal = "personal",
        /// Whoever needs it.
        Secret = "secret",
    }
}

words! {
    /// What most of the work is.
    Workload {
        /// Many short transactions.
        #[default]
        Transactions = "transactions",
        /// Short transactions, and reports over much data.
        Mixed = "mixed",
        /// Few long queries over much data.
        Analytics = "analytics",
    }
}

words! {
    /// The kind of disk.
    Disk {
        /// NVMe in the host.
        Nvme = "nvme",
        /// Solid state, or a volume that behaves as one.
        #[default]
        Ssd = "ssd",
        /// A volume behind a network.
        Network = "network",
        /// Rotating.
        Rotating = "rotating",
    }
}

/// What an application may need of a database: the words of `needs`, each with what it means.
pub const NEEDS: &[(&str, &str)] = &[
    ("transactions", "transactions over several rows and tables"),
    ("joins", "queries that join many tables"),
    ("constraints", "foreign keys and checks that the database enforces"),
    ("documents", "documents without a fixed schema"),
    ("geometry", "places, distances and areas"),
    ("full-text", "search in texts"),
    ("vectors", "search for similar vectors"),
    ("time-series", "measurements by time, kept for a while"),
    ("schema-changes", "changes of large tables without blocking writes"),
    ("many-clients", "more than a thousand client connections"),
    ("sharding", "more writes than one host can take"),
    ("many-writers", "writes accepted by several nodes at once"),
    ("no-loss", "no acknowledged write lost when a host dies"),
];

/// When maintenance is done: a day, from, to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// 0 is Monday; `None`: every day.
    pub day: Option<u8>,
    /// Minutes after midnight.
    pub from: u16,
    /// Minutes after midnight; smaller than `from` when it goes over midnight.
    pub to: u16,
}

/// The days of the week, as a window names them.
pub const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

impl Window {
    /// Reads `sun 02:00-04:00` or `daily 02:00-04:00`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Window> {
        let (day, times) = text.split_once(' ')?;
        let day = match day {
            "daily" => None,
            day => Some(u8::try_from(DAYS.iter().position(|known| *known == day)?).ok()?),
        };
        let (from, to) = times.trim().split_once('-')?;
        let window = Window { day, from: minutes(from)?, to: minutes(to)? };
        (window.from != window.to).then_some(window)
    }

    /// How long it is.
    #[must_use]
    pub fn length_minutes(self) -> u16 {
        (self.to + 24 * 60 - self.from) % (24 * 60)
    }
}

fn minutes(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let digits = |text: &str| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    let (hours, minutes): (u16, u16) =
        (digits(hours).then(|| hours.parse().ok())??, digits(minutes).then(|| minutes.parse().ok())??);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

/// What is wrong with the texts of the table (numbers are checked by their bounds).
#[must_use]
pub(crate) fn check(requirements: &Requirements) -> Vec<ConfigProblem> {
    let mut found = Vec::new();
    let mut add = |key: String, text: String| found.push(ConfigProblem { line: None, key, text });
    let known: Vec<&str> = NEEDS.iter().map(|(word, _)| *word).collect();
    for (place, need) in requirements.needs.iter().enumerate() {
        if !known.contains(&need.as_str()) {
            let near = nearest(need, &known).map(|near| format!("did you mean {near:?}? ")).unwrap_or_default();
            add(
                format!("requirements.needs.{place}"),
                format!("unknown need {need:?}; {near}known: {}", known.join(", ")),
            );
        }
    }
    if Window::parse(&requirements.window).is_none() {
        let text = format!(
            "window = {:?} is not a window: write a day (mon to sun, or daily) and two times, as \"sun 02:00-04:00\"",
            requirements.window
        );
        add("requirements.window".to_owned(), text);
    }
    if requirements.working_set_gb.is_some_and(|set| set > requirements.size_gb) {
        let text = format!(
            "working_set_gb = {} is more than the data (size_gb = {})",
            requirements.working_set_gb(),
            requirements.size_gb
        );
        add("requirements.working_set_gb".to_owned(), text);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows() {
        let window = Window::parse("sun 23:30-01:00").unwrap();
        assert_eq!((window.day, window.from, window.to, window.length_minutes()), (Some(6), 1410, 60, 90));
        assert_eq!(
            Window::parse("daily 02:00-04:00").map(|window| (window.day, window.length_minutes())),
            Some((None, 120))
        );
        for text in
            ["", "sun", "sunday 02:00-04:00", "sun 2:00-4:00", "sun 24:00-01:00", "sun 02:00", "sun 02:00-02:00"]
        {
            assert_eq!(Window::parse(text), None, "{text}");
        }
    }
}
