//! Contradictions between what is asked and what the cluster can do, each with the nearest plans that work.

use crate::engine;
use crate::facts::Facts;
use crate::layout::{Layout, Place};
use crate::objectives::{missed, span};
use crate::parameters::{size, sizes, tenths};
use mainstay_model::requirements::{Disk, Requirements};
use mainstay_model::{Durability, NodeId};

/// One contradiction.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Contradiction {
    /// What contradicts what.
    pub text: String,
    /// What would do.
    pub nearest: Vec<String>,
}

/// A layout near the one of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearby {
    /// It.
    pub layout: Layout,
    /// What to change.
    pub change: String,
    cost: usize,
}

/// How many nearby plans are shown.
const SHOWN: usize = 3;

/// Everything that contradicts itself. Empty: the plan is accepted.
#[must_use]
pub fn contradictions(facts: &Facts<'_>) -> Vec<Contradiction> {
    let layout = Layout::of(facts.spec);
    let mut found = Vec::new();
    let misses = missed(facts, &layout);
    if !misses.is_empty() {
        let nearby = nearby(facts, &layout);
        for miss in misses {
            let mut nearest: Vec<String> = nearby.iter().map(|near| near.change.clone()).collect();
            if let Some(seconds) = miss.instead {
                nearest.push(format!("ask for less: {} = {seconds} ({})", miss.key, span(seconds)));
            } else if nearest.is_empty() {
                nearest.push(format!("leave {} out", miss.key));
            }
            found.push(Contradiction { text: miss.text, nearest });
        }
    }
    found.extend(
        engine::unsuited(facts.asked())
            .into_iter()
            .map(|(text, instead)| Contradiction { text, nearest: vec![instead] }),
    );
    found.extend(no_loss(facts));
    found.extend(latency(facts, &layout));
    found.extend(network(facts, &layout));
    found.extend(room(facts));
    found.extend(memory(facts));
    found.extend(clients(facts));
    found
}

/// Layouts near this one that miss nothing, the cheapest first.
#[must_use]
pub fn nearby(facts: &Facts<'_>, layout: &Layout) -> Vec<Nearby> {
    let budget = facts.asked().hosts.map_or(usize::MAX, |hosts| usize::try_from(hosts).unwrap_or(usize::MAX));
    let mut found: Vec<Nearby> = candidates(layout)
        .into_iter()
        .filter(|near| near.layout.votes() <= budget.max(layout.votes()) && missed(facts, &near.layout).is_empty())
        .collect();
    found.sort_by_key(|near| near.cost);
    found.truncate(SHOWN);
    found
}

fn candidates(layout: &Layout) -> Vec<Nearby> {
    let mut zones: Vec<Option<String>> = vec![None];
    if let Some(known) = layout.zones() {
        zones = known.iter().map(|zone| Some((*zone).to_owned())).collect();
        let fresh = ('a'..='z').map(String::from).find(|name| !known.contains(name.as_str()));
        zones.push(fresh);
    }
    let mut found = Vec::new();
    for durability in [Durability::Strict, Durability::Available, Durability::Async] {
        let changed = usize::from(durability != layout.durability) * 3;
        found.push(with(layout, durability, &[], changed));
        for (zone, witness) in choices(&zones) {
            let one = (zone, witness);
            found.push(with(layout, durability, std::slice::from_ref(&one), changed));
            for (zone, witness) in choices(&zones) {
                found.push(with(layout, durability, &[one.clone(), (zone, witness)], changed));
            }
        }
    }
    found
}

fn choices(zones: &[Option<String>]) -> Vec<(Option<String>, bool)> {
    zones.iter().flat_map(|zone| [(zone.clone(), true), (zone.clone(), false)]).collect()
}

fn with(layout: &Layout, durability: Durability, added: &[(Option<String>, bool)], changed: usize) -> Nearby {
    let mut places = layout.places.clone();
    let mut words = Vec::new();
    let mut cost = changed;
    for (zone, witness) in added {
        let number = (1..).find_map(|number| {
            let name = NodeId::new(format!("{}{number}", if *witness { "w" } else { "db" })).ok()?;
            (!places.iter().any(|place| place.name == name)).then_some(name)
        });
        let Some(name) = number else { continue };
        let new_zone = !layout.places.iter().any(|place| place.zone == *zone);
        cost += if *witness { 10 } else { 12 } + usize::from(new_zone) * 2;
        let at = zone.as_ref().map(|zone| format!(" in {}zone {zone}", if new_zone { "a new " } else { "" }));
        words.push(format!(
            "add {} {name}{}",
            if *witness { "the witness" } else { "the data node" },
            at.unwrap_or_default()
        ));
        places.push(Place { name, zone: zone.clone(), witness: *witness });
    }
    let mut near = Layout { places, durability, waits: 0 };
    near.waits = match durability {
        Durability::Async => 0,
        _ => (near.data() / 2).min(near.data().saturating_sub(1)),
    };
    if durability != layout.durability {
        words.push(format!("durability = \"{durability}\" instead of \"{}\"", layout.durability));
    }
    Nearby { layout: near, change: words.join(", and "), cost }
}

fn no_loss(facts: &Facts<'_>) -> Option<Contradiction> {
    let wanted = facts.asked().needs.iter().any(|need| need == "no-loss");
    (wanted && facts.spec.cluster.durability == Durability::Async).then(|| Contradiction {
        text: "requirements.needs says \"no-loss\", and cluster.durability = \"async\" waits for no replica".to_owned(),
        nearest: vec!["durability = \"strict\"".to_owned(), "take \"no-loss\" out of needs".to_owned()],
    })
}

/// What the disk takes to make a commit durable: typical of its kind, in microseconds.
#[must_use]
pub fn flush_us(disk: Disk) -> u64 {
    match disk {
        Disk::Nvme => 100,
        Disk::Ssd => 1000,
        Disk::Network => 3000,
        Disk::Rotating => 12_000,
    }
}

/// What a commit takes without load, in microseconds.
#[must_use]
pub fn commit_us(facts: &Facts<'_>, layout: &Layout) -> u64 {
    let flush = flush_us(facts.asked().disk);
    if layout.waits == 0 {
        return flush;
    }
    let zones = layout.zones().is_some_and(|zones| zones.len() > 1);
    let trip = if zones { facts.asked().zone_round_trip_us } else { 200 };
    flush * 2 + trip
}

fn latency(facts: &Facts<'_>, layout: &Layout) -> Option<Contradiction> {
    let (takes, asked) = (commit_us(facts, layout), facts.asked().write_latency_ms * 1000);
    (takes > asked).then(|| Contradiction {
        text: format!(
            "requirements.write_latency_ms = {}, but a commit takes about {}.{} ms: the disk's flush{}",
            asked / 1000,
            takes / 1000,
            takes % 1000 / 100,
            if layout.waits == 0 { "" } else { ", the way to a replica and back, and the replica's flush" }
        ),
        nearest: vec![
            format!("write_latency_ms = {}", takes.div_ceil(1000)),
            "disk = \"nvme\", if the hosts have it; or zones that are nearer to each other".to_owned(),
        ],
    })
}

fn network(facts: &Facts<'_>, layout: &Layout) -> Option<Contradiction> {
    let replicas = layout.data().saturating_sub(1) as u64;
    let needed = facts.log_kb_per_s() * 8 * replicas / 1024;
    let link = facts.asked().link_mbit_s;
    (needed * 10 > link * 7).then(|| Contradiction {
        text: format!(
            "{} MB/s of log to {replicas} replica(s) are {needed} Mbit/s, more than seven tenths of link_mbit_s = {link}",
            tenths(facts.log_kb_per_s())
        ),
        nearest: vec![format!("link_mbit_s = {}", (needed * 10).div_ceil(7)), "fewer replicas".to_owned()],
    })
}

/// What the data directory needs now, and in so many months.
#[must_use]
pub fn needed_gb(facts: &Facts<'_>, months: u64) -> u64 {
    let asked = facts.asked();
    // Log beside max_wal_size: what slots keep for a replica that is away.
    asked.size_gb + asked.growth_gb_per_month * months + (sizes(facts).wal_mb * 2).div_ceil(1024)
}

fn room(facts: &Facts<'_>) -> Option<Contradiction> {
    let (needed, disk) = (needed_gb(facts, 0), facts.disk_gb().0);
    (needed * 100 > disk * 85).then(|| Contradiction {
        text: format!("data and log need {needed} GB now, more than 85 % of disk_gb = {disk}"),
        nearest: vec![format!("disk_gb = {} (for the growth of two years)", (needed_gb(facts, 24) * 100).div_ceil(80))],
    })
}

fn too_little_memory(facts: &Facts<'_>) -> bool {
    let sizes = sizes(facts);
    sizes.worst_mb() * 10 > sizes.memory_mb * 9
}

/// The same with other requirements.
fn asking(facts: &Facts<'_>, change: impl Fn(&mut Requirements)) -> bool {
    let mut spec = facts.spec.clone();
    change(&mut spec.requirements);
    !too_little_memory(&Facts { spec: &spec, machines: &[], ..facts.clone() })
}

fn memory(facts: &Facts<'_>) -> Option<Contradiction> {
    if !too_little_memory(facts) {
        return None;
    }
    let (sizes, memory_gb) = (sizes(facts), facts.memory_gb().0);
    let fewer = |clients: &u64| asking(facts, |asked| (asked.clients, asked.memory_gb) = (*clients, memory_gb));
    let fewer = [5000, 2000, 1000, 500, 200, 100, 50, 20, 10]
        .into_iter()
        .filter(|clients| *clients < facts.asked().clients)
        .find(fewer);
    let more =
        (1..=20).map(|double| memory_gb << double).find(|memory| asking(facts, |asked| asked.memory_gb = *memory));
    let mut nearest = Vec::new();
    nearest.extend(fewer.map(|clients| format!("clients = {clients}, with pools in the applications")));
    nearest.extend(more.map(|memory| format!("hosts with memory_gb = {memory}")));
    Some(Contradiction {
        text: format!(
            "{} connections need up to {} of {} memory: too little would be left for the file cache",
            sizes.connections,
            size(sizes.worst_mb()),
            size(sizes.memory_mb)
        ),
        nearest,
    })
}

fn clients(facts: &Facts<'_>) -> Option<Contradiction> {
    let (clients, most) = (facts.asked().clients, u64::from(facts.spec.proxy.max_connections));
    (clients > most).then(|| Contradiction {
        text: format!("requirements.clients = {clients}, but each proxy takes proxy.max_connections = {most} at most, and all may come to one"),
        nearest: vec![format!("proxy.max_connections = {}", (clients + clients / 4).div_ceil(100) * 100)],
    })
}
