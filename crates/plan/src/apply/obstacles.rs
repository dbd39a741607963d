//! What stands in the way. Everything that is found is told, not the first alone: who mends a host wants to do it once.

use super::facts::{Host, Inventory, Papers, Wanted};
use super::steps::{is_new, set_aside};
use mainstay_model::NodeId;
use mainstay_model::spec::Node;
use mainstay_model::stored_spec::FileState;
use serde::Serialize;
use std::collections::BTreeMap;

/// Findings that keep a new node from being made; others are told, and mended when there is time.
const BLOCKING: [&str; 9] =
    ["kernel", "address", "server", "server-user", "directories", "ports", "file-system", "space", "data"];
/// Those among them that packages mend.
const PACKAGES: [&str; 2] = ["server", "server-user"];

/// Something that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    /// On which node's host; `None`: it concerns the cluster.
    pub node: Option<NodeId>,
    /// What.
    pub what: String,
    /// What to do about it.
    pub mend: String,
}

impl Obstacle {
    pub(super) fn on(node: &NodeId, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { node: Some(node.clone()), what: what.into(), mend: mend.into() }
    }

    fn of_all(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { node: None, what: what.into(), mend: mend.into() }
    }
}

/// Everything that stands in the way.
pub(super) fn find(wanted: &Wanted<'_>, inventory: &Inventory) -> Vec<Obstacle> {
    let mut found = same_host(wanted);
    for node in &wanted.spec.nodes {
        match inventory.hosts.get(&node.name) {
            Some(Ok(host)) => on_host(wanted, inventory, node, host, &mut found),
            Some(Err(unseen)) => found.push(Obstacle::on(&node.name, &unseen.error, &unseen.hint)),
            None => found.push(Obstacle::on(&node.name, "it was not looked at", "")),
        }
    }
    versions(wanted, inventory, &mut found);
    if found.is_empty() {
        cluster(wanted, inventory, &mut found);
    }
    found
}

/// Copies of one database are of one major version.
fn versions(wanted: &Wanted<'_>, inventory: &Inventory, found: &mut Vec<Obstacle>) {
    let data = wanted.spec.nodes.iter().filter(|node| !node.witness);
    let mut known = data.filter_map(|node| Some((&node.name, inventory.host(&node.name)?.server?)));
    let Some((first, major)) = known.next() else { return };
    for (node, other) in known.filter(|(_, other)| *other != major) {
        let what = format!("PostgreSQL {other} is there, and PostgreSQL {major} on {first}");
        let mend = "install the same major version on every node, or name its programs with bin_dir under [postgres]";
        found.push(Obstacle::on(node, what, mend));
    }
}

fn same_host(wanted: &Wanted<'_>) -> Vec<Obstacle> {
    let mut by_host: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in &wanted.spec.nodes {
        by_host.entry(&node.host).or_default().push(node.name.as_str());
    }
    let shared = by_host.into_iter().filter(|(_, nodes)| nodes.len() > 1);
    let words = |(host, nodes): (&str, Vec<&str>)| {
        let mend = "one node per host is set up here; for a cluster on one machine there is `mainstay up`";
        Obstacle::of_all(format!("{} have the same host {host}", nodes.join(" and ")), mend)
    };
    shared.map(words).collect()
}

fn on_host(wanted: &Wanted<'_>, inventory: &Inventory, node: &Node, host: &Host, found: &mut Vec<Obstacle>) {
    let (name, cluster) = (&node.name, wanted.spec.cluster.name.as_str());
    let file = "/etc/mainstay/mainstay.toml";
    match (&host.config, &host.config_of) {
        (Some(_), Some(other)) if other != cluster => {
            let what = format!("the host is of another cluster: its {file} is of {other}, not of {cluster}");
            found.push(Obstacle::on(
                name,
                what,
                "use another host; or, if that cluster is given up, take its node out of it and move that file away",
            ));
        }
        (Some(_), None) => {
            let what = format!("its {file} is none that can be read");
            found.push(Obstacle::on(name, what, format!("look at it, then move it away: mv {file} {file}.old")));
        }
        _ => {}
    }
    if let Some(named) = host.named.as_ref().filter(|named| *named != name.as_str()) {
        let what = format!("the host is the node {named}: /etc/mainstay/agent.env says so");
        found.push(Obstacle::on(name, what, "give each node a host of its own, and keep a node's name with its host"));
    }
    papers(wanted, node, host, found);
    if is_new(host)
        && let Some(data) = &host.data
    {
        let dir = wanted.spec.node_dir(node).join("data");
        let dir = dir.display();
        let what = format!("there is data that is not this cluster's: {dir} holds {data}");
        let mend = format!(
            "nothing there is touched; if it may go: mv {dir} {dir}.old on that host; or set another `dir` for the node"
        );
        found.push(Obstacle::on(name, what, mend));
    }
    super::adopt::obstacles(wanted, inventory, node, found);
    // A server that loads what is not there does not start; that is found before the old one is stopped.
    if super::adopt::pending(wanted, inventory).is_some() {
        for library in &host.libraries {
            let mend = "install its package there (it is where the adopted server loads it from), or take it out of shared_preload_libraries";
            found.push(Obstacle::on(name, format!("there is no library {library:?} for its server"), mend));
        }
        super::adopt::room(wanted, inventory, node, found);
    }
    if host.agent.is_some() && matches!(host.papers, Papers::None) {
        let what = "an agent runs there that has no certificates";
        found.push(Obstacle::on(name, what, "look at it: mainstay doctor on that host"));
    }
    let blocks =
        |check: &str| BLOCKING.contains(&check) && !(wanted.packages && PACKAGES.contains(&check)) && check != "data";
    if host.agent.is_none() && !set_aside(inventory, name) {
        for said in host.findings.iter().filter(|said| said.problem && blocks(&said.check)) {
            // What is missing of a node that has joined is made; its ports may be its own server's, whose agent has just died.
            if !is_new(host) && said.check != "address" {
                continue;
            }
            // Whose the directories are is no question where the data in them is another's.
            if host.data.is_some() && said.check == "directories" {
                continue;
            }
            let mut mend = said.mend.join("\n");
            if PACKAGES.contains(&said.check.as_str()) {
                mend = format!("{mend}\nor let apply install it: --packages");
            }
            found.push(Obstacle::on(name, &said.found, mend));
        }
    }
}

fn papers(wanted: &Wanted<'_>, node: &Node, host: &Host, found: &mut Vec<Obstacle>) {
    let Papers::Whole { authority, node: of, .. } = &host.papers else { return };
    let name = &node.name;
    if of != name.as_str() {
        let what = format!("the host has the certificates of the node {of}");
        found.push(Obstacle::on(name, what, "give each node a host of its own, and keep a node's name with its host"));
    }
    match wanted.authority {
        Some(ours) if ours != authority => {
            let what = "the host has joined another authority than the one beside this file";
            let mend = "run apply where that authority is, with its file; or, if its cluster is given up, move the node's directory away";
            found.push(Obstacle::on(name, what, mend));
        }
        None => {
            let what = "the host has joined already, and the authority that it joined is not beside this file";
            let mend = "run apply where the cluster's pki/ and secrets/ are: they lie beside the file that made it";
            found.push(Obstacle::on(name, what, mend));
        }
        Some(_) => {}
    }
}

/// What concerns the cluster that runs.
fn cluster(wanted: &Wanted<'_>, inventory: &Inventory, found: &mut Vec<Obstacle>) {
    let began = wanted.spec.nodes.iter().filter_map(|node| inventory.host(&node.name)).any(|host| host.store);
    let Some(stored) = &inventory.in_force else {
        let stopped = wanted.spec.nodes.iter().filter_map(|node| inventory.host(&node.name));
        if began && stopped.into_iter().filter(|host| host.store).all(|host| host.agent.is_some()) {
            let what = "the cluster exists, its agents run, and none tells the specification in force";
            let mend = "more than half of the nodes must answer; see mainstay status, mainstay why, and the agents' logs (journalctl -u mainstay-agent)";
            found.push(Obstacle::of_all(what, mend));
        }
        return;
    };
    if let FileState::Older(generation) = stored.compare(wanted.spec)
        && !wanted.back
    {
        let what = format!(
            "the file is an old one: it says what generation {generation} said, and generation {} is in force ({}, by {})",
            stored.generation,
            if stored.change.is_empty() { "no words" } else { &stored.change },
            stored.by
        );
        let mend =
            "take over what is in force: mainstay set > mainstay.toml.new, and compare; or, to go back to it: --back";
        found.push(Obstacle::of_all(what, mend));
    }
    for node in stored.spec.nodes.iter().filter(|node| wanted.spec.node(&node.name).is_none()) {
        if !wanted.remove {
            let what = format!("{} is one of the nodes, and the file does not list it", node.name);
            found.push(Obstacle::of_all(
                what,
                "to take it out of the cluster: --remove; else put it back into the file",
            ));
        } else if inventory.primary.is_none() {
            let what = format!("no primary is known, and {} could be it: the file does not list it", node.name);
            let mend = "mainstay status and mainstay why say what the cluster waits for; then apply again";
            found.push(Obstacle::of_all(what, mend));
        } else if inventory.primary.as_ref() == Some(&node.name) {
            let what = format!("{} is the primary, and the file does not list it", node.name);
            found.push(Obstacle::of_all(what, "hand its role over first: mainstay switchover"));
        }
    }
    if wanted.spec.cluster.name != stored.spec.cluster.name {
        let what = format!("the cluster that answers is called {}", stored.spec.cluster.name);
        found.push(Obstacle::of_all(what, "a cluster keeps its name"));
    }
    for node in &stored.spec.nodes {
        if let Some(now) = wanted.spec.node(&node.name).filter(|now| now.host != node.host) {
            let what = format!("{} moves from {} to {}", node.name, node.host, now.host);
            let mend = format!("mainstay node replace {} --host {}; then apply", node.name, now.host);
            found.push(Obstacle::on(&node.name, what, mend));
        }
    }
}

/// What is amiss on hosts and does not stop apply: by node, in words.
#[must_use]
pub fn notes(wanted: &Wanted<'_>, inventory: &Inventory) -> Vec<(NodeId, String)> {
    let mut notes = Vec::new();
    for node in &wanted.spec.nodes {
        let Some(host) = inventory.host(&node.name) else { continue };
        // What others do not answer yet, and what has not joined, is what apply is there for.
        let expected = |check: &str| ["reach", "agent", "unit", "directories", "certificates"].contains(&check);
        let covered = |check: &str| wanted.packages && PACKAGES.contains(&check);
        let told = host.findings.iter().filter(|said| said.problem && !expected(&said.check) && !covered(&said.check));
        notes.extend(told.map(|said| (node.name.clone(), said.found.clone())));
    }
    notes
}
