//! Contradictions between what is asked and what the cluster can do, each with the nearest plans that work.

use crate::engine;
use crate::facts::Facts;
use crate::layout::{Layout, Place};
use crate::objectives::{missed, span};
use crate::parameters::{RESERVED, Sizes, derived, sizes, tenths, words};
use mainstay_model::requirements::{Disk, Requirements};
use mainstay_model::spec::ProxyMode;
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
    edits: Vec<Edit>,
    cost: usize,
}

/// One step away from the file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Edit {
    Durability(Durability),
    Add { witness: bool, zone: Option<String> },
    Move { name: NodeId, zone: String },
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
    found.extend(connections(facts));
    found
}

/// Layouts near this one that miss nothing, the cheapest first; none that only does more than another one.
#[must_use]
pub fn nearby(facts: &Facts<'_>, layout: &Layout) -> Vec<Nearby> {
    let budget = facts.asked().hosts.map_or(usize::MAX, |hosts| usize::try_from(hosts).unwrap_or(usize::MAX));
    let mut all: Vec<Nearby> = candidates(layout)
        .into_iter()
        .filter(|near| near.layout.votes() <= budget.max(layout.votes()) && missed(facts, &near.layout).is_empty())
        .collect();
    all.sort_by_key(|near| near.cost);
    let mut found: Vec<Nearby> = Vec::new();
    for near in all {
        let more = found.iter().any(|known| known.edits.iter().all(|edit| near.edits.contains(edit)));
        if !more && found.len() < SHOWN {
            found.push(near);
        }
    }
    found
}

/// Up to two nodes more, or one in another zone, each with every durability.
fn candidates(layout: &Layout) -> Vec<Nearby> {
    let mut zones: Vec<Option<String>> = vec![None];
    let mut moves = Vec::new();
    if let Some(known) = layout.zones() {
        let fresh = ('a'..='z').map(String::from).find(|name| !known.contains(name.as_str()));
        zones = known.iter().map(|zone| Some((*zone).to_owned())).chain([fresh]).collect();
        for place in &layout.places {
            let others = zones.iter().flatten().filter(|zone| place.zone.as_ref() != Some(*zone));
            moves.extend(others.map(|zone| vec![Edit::Move { name: place.name.clone(), zone: zone.clone() }]));
        }
    }
    let mut one: Vec<Edit> =
        zones.iter().flat_map(|zone| [true, false].map(|witness| Edit::Add { witness, zone: zone.clone() })).collect();
    // A witness has nothing to say where an etcd votes.
    one.retain(|edit| !layout.etcd || !matches!(edit, Edit::Add { witness: true, .. }));
    let mut choices: Vec<Vec<Edit>> = vec![Vec::new()];
    choices.extend(moves);
    for (place, first) in one.iter().enumerate() {
        choices.push(vec![first.clone()]);
        choices.extend(one.iter().skip(place).map(|second| vec![first.clone(), second.clone()]));
    }
    let mut found = Vec::new();
    for durability in [Durability::Strict, Durability::Available, Durability::Async] {
        let changed = (durability != layout.durability).then_some(Edit::Durability(durability));
        found.extend(
            choices.iter().map(|choice| edited(layout, choice.iter().cloned().chain(changed.clone()).collect())),
        );
    }
    found
}

fn edited(layout: &Layout, edits: Vec<Edit>) -> Nearby {
    let mut near = layout.clone();
    let mut words = Vec::new();
    let mut cost = 0;
    let in_zone = |zone: &str| {
        let known = layout.places.iter().any(|place| place.zone.as_deref() == Some(zone));
        (format!("{}zone {zone}", if known { "" } else { "a new " }), usize::from(!known) * 2)
    };
    for edit in &edits {
        match edit {
            Edit::Durability(durability) => {
                words.push(format!("durability = \"{durability}\" instead of \"{}\"", layout.durability));
                near.durability = *durability;
                cost += 3;
            }
            Edit::Move { name, zone } => {
                let (at, more) = in_zone(zone);
                words.push(format!("put {name} into {at}"));
                near.places
                    .iter_mut()
                    .filter(|place| place.name == *name)
                    .for_each(|place| place.zone = Some(zone.clone()));
                cost += 4 + more;
            }
            Edit::Add { witness, zone } => {
                let Some(name) = fresh_name(&near.places, *witness) else { continue };
                let (at, more) = zone.as_deref().map(in_zone).unwrap_or_default();
                let at = if at.is_empty() { at } else { format!(" in {at}") };
                words.push(format!("add {} {name}{at}", if *witness { "the witness" } else { "the data node" }));
                cost += more + if *witness { 10 } else { 12 };
                near.places.push(Place { name, zone: zone.clone(), witness: *witness });
            }
        }
    }
    near.waits = match near.durability {
        Durability::Async => 0,
        _ => (near.data() / 2).min(near.data().saturating_sub(1)),
    };
    Nearby { layout: near, change: words.join(", and "), edits, cost }
}

fn fresh_name(places: &[Place], witness: bool) -> Option<NodeId> {
    (1..1000).find_map(|number| {
        let name = NodeId::new(format!("{}{number}", if witness { "w" } else { "db" })).ok()?;
        (!places.iter().any(|place| place.name == name)).then_some(name)
    })
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

/// What surely is too much. Work memory that the file sets is a limit for each sort, whose use is only estimated: that is a risk to be told, no
/// contradiction.
fn least_sizes(facts: &Facts<'_>) -> Sizes {
    let sizes = sizes(facts);
    Sizes { work_mb: sizes.work_mb.min(derived(facts, Some(sizes.connections)).work_mb), ..sizes }
}

fn too_little_memory(facts: &Facts<'_>) -> bool {
    let sizes = least_sizes(facts);
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
    let (sizes, memory_gb) = (least_sizes(facts), facts.memory_gb().0);
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
    let set = ["max_connections", "shared_buffers", "maintenance_work_mem", "autovacuum_max_workers"];
    let mut set = set.into_iter().filter(|name| facts.spec.postgres.parameters.contains_key(*name)).peekable();
    if set.peek().is_some() {
        let names: Vec<&str> = set.collect();
        nearest.push(format!("[postgres.parameters] without {}: what fits is derived then", names.join(", ")));
    }
    Some(Contradiction {
        text: format!(
            "{} connections need up to {} of {} memory: too little would be left for the file cache",
            sizes.connections,
            words(sizes.worst_mb()),
            words(sizes.memory_mb)
        ),
        nearest,
    })
}

/// In session mode each client has a connection of the server for itself, and all may come to one server.
fn connections(facts: &Facts<'_>) -> Option<Contradiction> {
    let (clients, most) = (facts.asked().clients, sizes(facts).connections);
    let free = most.saturating_sub(RESERVED);
    (facts.spec.proxy.mode == ProxyMode::Session && clients > free).then(|| Contradiction {
        text: format!(
            "requirements.clients = {clients}, but max_connections = {most} in [postgres.parameters] leaves {free} beside the {RESERVED} reserved \
             ones, and in proxy.mode = \"session\" each client has one for itself"
        ),
        nearest: vec![
            format!("max_connections = {}", (clients + RESERVED).div_ceil(50) * 50),
            "proxy.mode = \"transaction\": few connections of the server serve many clients".to_owned(),
            format!("clients = {free}"),
        ],
    })
}

fn clients(facts: &Facts<'_>) -> Option<Contradiction> {
    let (clients, most) = (facts.asked().clients, u64::from(facts.spec.proxy.max_connections));
    (clients > most).then(|| Contradiction {
        text: format!("requirements.clients = {clients}, but each proxy takes proxy.max_connections = {most} at most, and all may come to one"),
        nearest: vec![format!("proxy.max_connections = {}", (clients + clients / 4).div_ceil(100) * 100)],
    })
}
