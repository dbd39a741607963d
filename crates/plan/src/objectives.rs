//! What is reached for each class of failure, held against what is asked.

use crate::backup;
use crate::facts::Facts;
use crate::layout::{Layout, Pace, Writes};
use crate::parameters::{REPLAY_MB_PER_S, sizes};
use crate::whatif::Ended;
use mainstay_model::Durability;
use std::collections::BTreeSet;

/// How long it takes until a person is there and has decided.
pub const BY_HAND_S: u64 = 1800;
/// What clients need to connect again, and servers to warm up, beside what the rehearsal counts.
const CLIENTS_S: u64 = 1;
/// What a copy of the log outside the cluster is behind at most when it is streamed.
const STREAMED_LOG_S: u64 = 60;

/// The classes of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The database server's process.
    Server,
    /// A host with its disk.
    Host,
    /// A zone.
    Zone,
    /// All hosts.
    Site,
    /// A mistake of people or programs.
    Human,
}

/// All of them.
pub const CLASSES: [Class; 5] = [Class::Server, Class::Host, Class::Zone, Class::Site, Class::Human];

impl Class {
    /// As the keys name it.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Host => "host",
            Self::Zone => "zone",
            Self::Site => "site",
            Self::Human => "human",
        }
    }

    /// For people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Server => "a database server dies",
            Self::Host => "a host is lost",
            Self::Zone => "a zone is lost",
            Self::Site => "all hosts are lost",
            Self::Human => "data deleted or changed by mistake",
        }
    }
}

/// What may be lost of acknowledged writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing.
    Nothing,
    /// Usually less than this; more while replicas are behind.
    Usually(u64),
    /// At most this, if backups are made as section 6 says.
    FromBackup(u64),
    /// It can not be told.
    Unknown,
}

/// How long there is no service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Mainstay acts by itself.
    Automatic(u64),
    /// Until a person acted.
    ByHand(u64),
    /// Until a backup is restored.
    Restore(u64),
    /// It can not be told.
    Unknown,
}

impl Loss {
    /// For people.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Self::Nothing => "nothing".to_owned(),
            Self::Usually(seconds) => format!("usually less than {seconds} s, not bounded"),
            Self::FromBackup(seconds) => format!("{seconds} s, with backups as in section 6"),
            Self::Unknown => "not known: nodes without zone".to_owned(),
        }
    }
    fn within(self, asked: u64) -> bool {
        match self {
            Self::Nothing => true,
            Self::Usually(seconds) => asked > seconds,
            Self::FromBackup(seconds) => asked >= seconds,
            Self::Unknown => false,
        }
    }
}

impl Outage {
    /// For people.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Self::Automatic(seconds) => format!("{seconds} s, by itself"),
            Self::ByHand(seconds) => format!("until a person acts, taken as {}", span(seconds)),
            Self::Restore(seconds) => format!("{}, restored from a backup as in section 6", span(seconds)),
            Self::Unknown => "not known: nodes without zone".to_owned(),
        }
    }
    /// Seconds, for comparison.
    #[must_use]
    pub const fn seconds(self) -> Option<u64> {
        match self {
            Self::Automatic(seconds) | Self::ByHand(seconds) | Self::Restore(seconds) => Some(seconds),
            Self::Unknown => None,
        }
    }
}

/// A length of time for people.
#[must_use]
pub fn span(seconds: u64) -> String {
    match seconds {
        0..=180 => format!("{seconds} s"),
        181..=7200 => format!("{} min", seconds.div_ceil(60)),
        7201..=172_800 => format!("{} h", seconds.div_ceil(3600)),
        _ => format!("{} d", seconds.div_ceil(86_400)),
    }
}

/// What is reached for a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The class.
    pub class: Class,
    /// What may be lost.
    pub loss: Loss,
    /// How long there is no service.
    pub outage: Outage,
    /// Why.
    pub why: String,
}

/// What is asked for a class: loss, outage.
#[must_use]
pub fn asked(facts: &Facts<'_>, class: Class) -> (Option<u64>, Option<u64>) {
    let asked = facts.asked();
    match class {
        Class::Server => (asked.loss_server_s, asked.outage_server_s),
        Class::Host => (asked.loss_host_s, asked.outage_host_s),
        Class::Zone => (asked.loss_zone_s, asked.outage_zone_s),
        Class::Site => (asked.loss_site_s, asked.outage_site_s),
        Class::Human => (asked.loss_human_s, asked.outage_human_s),
    }
}

/// Seconds that a take-over costs clients: as rehearsed if this layout was, else by the times of the file.
#[must_use]
pub fn take_over_s(facts: &Facts<'_>, layout: &Layout) -> u64 {
    let rehearsed = if *layout == Layout::of(facts.spec) { facts.what_if } else { &[] };
    let gaps = rehearsed.iter().filter(|case| case.failed.len() == 1).filter_map(|case| match case.ended {
        Ended::Serves { gap_ms } => Some(gap_ms),
        Ended::Stopped => None,
    });
    let times = &facts.spec.failover;
    // A replica that takes over without synchronous commits waits for the lease.
    let wait = if layout.durability == Durability::Async { times.lease_ms } else { 0 };
    gaps.max().unwrap_or(times.suspicion_ms + wait + 2500).div_ceil(1000) + CLIENTS_S
}

/// What this layout reaches for each class.
#[must_use]
pub fn reached(facts: &Facts<'_>, layout: &Layout) -> Vec<Reached> {
    CLASSES.iter().map(|class| one(facts, layout, *class)).collect()
}

fn one(facts: &Facts<'_>, layout: &Layout, class: Class) -> Reached {
    let restore = |why: String| Reached {
        class,
        loss: Loss::FromBackup(STREAMED_LOG_S),
        outage: Outage::Restore(backup::schedule(facts).restore_s + if class == Class::Human { 0 } else { BY_HAND_S }),
        why,
    };
    match class {
        Class::Server => server(facts, layout),
        Class::Host => {
            let nodes = layout.places.iter().map(|place| BTreeSet::from([place.name.clone()]));
            fails(facts, layout, class, nodes.collect()).unwrap_or_else(|| restore("the only copy of the data is on that host".to_owned()))
        }
        Class::Zone => match layout.zones() {
            Some(zones) if !zones.is_empty() => {
                let zones = zones.into_iter().map(|zone| layout.zone(zone)).collect();
                fails(facts, layout, class, zones).unwrap_or_else(|| restore("all copies of the data are in one zone".to_owned()))
            }
            _ => Reached { class, loss: Loss::Unknown, outage: Outage::Unknown, why: "give each [[node]] its zone".to_owned() },
        },
        Class::Site => restore("nothing of the cluster is left: new hosts, the newest backup, and the log that was streamed to it".to_owned()),
        Class::Human => Reached {
            loss: Loss::FromBackup(1),
            ..restore("replicas repeat a mistake within milliseconds; only a restore to the moment before it brings data back".to_owned())
        },
    }
}

fn server(facts: &Facts<'_>, layout: &Layout) -> Reached {
    let replicas = layout.data() > 1 && layout.durability != Durability::Async;
    let recovery = (sizes(facts).wal_mb / REPLAY_MB_PER_S).max(1) + 2;
    let (outage, why) = if replicas {
        (
            take_over_s(facts, layout).min(recovery.max(3)),
            "its host lives: a synchronous replica takes over at once, without waiting for the suspicion".to_owned(),
        )
    } else {
        (
            recovery,
            format!("it is started again in place, and replays at most max_wal_size of log at {REPLAY_MB_PER_S} MB/s"),
        )
    };
    Reached { class: Class::Server, loss: Loss::Nothing, outage: Outage::Automatic(outage), why }
}

/// The worst of these failures; `None` when one of them takes every copy.
fn fails(
    facts: &Facts<'_>,
    layout: &Layout,
    class: Class,
    cases: Vec<BTreeSet<mainstay_model::NodeId>>,
) -> Option<Reached> {
    let mut worst = Writes::GoOn;
    let mut at = String::new();
    for failed in &cases {
        let with_data = layout.places.iter().any(|place| !place.witness && failed.contains(&place.name));
        let after = layout.after(failed, with_data, Pace::AtOnce);
        if after == Writes::NoData {
            return None;
        }
        if after != Writes::GoOn && worst == Writes::GoOn {
            worst = after;
            at = failed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        }
    }
    let lost = cases
        .iter()
        .map(|failed| layout.places.iter().filter(|place| !place.witness && failed.contains(&place.name)).count())
        .max();
    let loss = match layout.durability {
        Durability::Async => Loss::Usually(1),
        _ if lost.unwrap_or(0) >= layout.copies() => Loss::FromBackup(STREAMED_LOG_S),
        _ => Loss::Nothing,
    };
    let (outage, why) = if worst == Writes::GoOn {
        (
            Outage::Automatic(take_over_s(facts, layout)),
            "a replica takes over; commits find their replicas among those that are left".to_owned(),
        )
    } else {
        (Outage::ByHand(BY_HAND_S), format!("without {at}, {}", worst.words()))
    };
    Some(Reached { class, loss, outage, why })
}

/// An objective that is not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The key.
    pub key: String,
    /// Why.
    pub text: String,
    /// What could be asked instead, if anything.
    pub instead: Option<u64>,
}

/// The objectives that this layout misses.
#[must_use]
pub fn missed(facts: &Facts<'_>, layout: &Layout) -> Vec<Missed> {
    let mut found = Vec::new();
    for reached in reached(facts, layout) {
        let (loss, outage) = asked(facts, reached.class);
        if let Some(most) = loss.filter(|most| !reached.loss.within(*most)) {
            let key = format!("requirements.loss_{}_s", reached.class.key());
            let text = format!(
                "{key} = {most}, but when {}, what may be lost is {}: {}",
                reached.class.words(),
                reached.loss.words(),
                reason(&reached, layout)
            );
            let instead = match reached.loss {
                Loss::FromBackup(seconds) => Some(seconds),
                Loss::Usually(seconds) => Some(seconds + 1),
                Loss::Nothing | Loss::Unknown => None,
            };
            found.push(Missed { key, text, instead });
        }
        if let Some(most) = outage.filter(|most| reached.outage.seconds().is_none_or(|seconds| seconds > *most)) {
            let key = format!("requirements.outage_{}_s", reached.class.key());
            let text = format!(
                "{key} = {most}, but when {}, the outage is {}: {}",
                reached.class.words(),
                reached.outage.words(),
                reached.why
            );
            found.push(Missed { key, text, instead: reached.outage.seconds() });
        }
    }
    found
}

fn reason(reached: &Reached, layout: &Layout) -> String {
    match reached.loss {
        Loss::Usually(_) => "durability async waits for no replica".to_owned(),
        Loss::FromBackup(_) if matches!(reached.class, Class::Host | Class::Zone) && layout.data() > 1 => format!(
            "an acknowledged commit is in {} cop{}, and all of them may be lost together",
            layout.copies(),
            if layout.copies() == 1 { "y" } else { "ies" }
        ),
        _ => reached.why.clone(),
    }
}
