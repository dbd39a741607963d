//! The steps and their order.

use super::facts::{Host, Inventory, Papers, Wanted};
use mainstay_model::config_assign::{Difference, difference};
use mainstay_model::spec::Spec;
use mainstay_model::stored_spec::FileState;
use mainstay_model::{NodeId, SystemId};
use std::net::IpAddr;

/// Certificates that end sooner are renewed. Seconds.
const RENEW_BEFORE: i64 = 30 * 86_400;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the authority beside the file.
    Authority,
    /// Install the engine's packages.
    Packages(NodeId),
    /// Put the program in place.
    Program(NodeId),
    /// Write the file, the agent's settings and its unit, whatever of it differs.
    Configure(NodeId),
    /// Write a generation with this node.
    Add(NodeId),
    /// Have the keys that the host makes certified.
    Join(NodeId),
    /// The same over certificates that are there.
    Renew(NodeId),
    /// Stop the server that exists there, let it not be started again, and move its data into the node's directory.
    Adopt {
        /// On whose host.
        node: NodeId,
        /// The data directory.
        directory: String,
        /// The identity of the data: others are left alone.
        system: SystemId,
        /// The nodes whose standbys of it are stopped after it, and their data moved as well.
        standbys: Vec<NodeId>,
        /// The slots through which these follow it: they go once they follow as replicas.
        slots: Vec<String>,
        /// An earlier run has stopped it: clients are away.
        stopped: bool,
    },
    /// Start the agent if it does not run, and let it be kept.
    Start(NodeId),
    /// Wait until a node that was added votes and does its part.
    Await(NodeId),
    /// Write a generation with the file's settings.
    Change(Vec<String>),
    /// Restart servers for parameters that wait for it, in an order that keeps the cluster in service.
    Restart,
    /// Let the agent begin anew with program and file, its server untouched.
    Reload(NodeId),
    /// End agent and server in order and start them again, because the program is in another place now.
    Move(NodeId),
    /// Write a generation without this node, and wait until nothing counts on it.
    Remove(NodeId),
    /// End the agent of a node that was taken out; its data stay.
    Retire(NodeId),
}

impl Step {
    /// The node whose host it is done on.
    #[must_use]
    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Self::Packages(node) | Self::Program(node) | Self::Configure(node) | Self::Add(node) => Some(node),
            Self::Adopt { node, .. } => Some(node),
            Self::Join(node) | Self::Renew(node) | Self::Start(node) | Self::Await(node) => Some(node),
            Self::Reload(node) | Self::Move(node) | Self::Remove(node) | Self::Retire(node) => Some(node),
            Self::Authority | Self::Change(_) | Self::Restart => None,
        }
    }

    /// Its name for programs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Packages(_) => "packages",
            Self::Program(_) => "program",
            Self::Configure(_) => "configure",
            Self::Add(_) => "add",
            Self::Join(_) => "join",
            Self::Renew(_) => "renew",
            Self::Adopt { .. } => "adopt",
            Self::Start(_) => "start",
            Self::Await(_) => "await",
            Self::Change(_) => "change",
            Self::Restart => "restart",
            Self::Reload(_) => "reload",
            Self::Move(_) => "move",
            Self::Remove(_) => "remove",
            Self::Retire(_) => "retire",
        }
    }

    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Authority => "make the cluster's authority and the application's password".into(),
            Self::Packages(_) => "install PostgreSQL from the distribution, without a server of its own".into(),
            Self::Program(_) => "put the program in place".into(),
            Self::Configure(_) => "write file, settings and unit".into(),
            Self::Add(_) => "add it to the nodes".into(),
            Self::Join(_) => "make keys there and certify them".into(),
            Self::Renew(_) => "make new keys there and certify them".into(),
            Self::Adopt { directory, standbys, .. } if standbys.is_empty() => {
                format!("stop the server of {directory} and move its data here")
            }
            Self::Adopt { directory, standbys, .. } => {
                let names: Vec<&str> = standbys.iter().map(NodeId::as_str).collect();
                format!(
                    "stop the server of {directory}, then its standby at {}, and move the data of each into its node",
                    names.join(" and ")
                )
            }
            Self::Start(_) => "start the agent".into(),
            Self::Await(_) => "wait until it votes and does its part".into(),
            Self::Change(keys) => format!("change {}", keys.join(", ")),
            Self::Restart => "restart servers one after the other, if a parameter waits for it".into(),
            Self::Reload(_) => "let the agent begin anew, its server untouched".into(),
            Self::Move(_) => "restart agent and server, a primary handing over first".into(),
            Self::Remove(_) => "take it out of the nodes".into(),
            Self::Retire(_) => "end its agent; its data stay".into(),
        }
    }
}

/// A step with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reasoned {
    /// What.
    pub step: Step,
    /// Why.
    pub why: String,
}

/// All steps: stages one after the other, the steps of a stage side by side on their hosts, those of one host in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// The stages.
    pub stages: Vec<Vec<Reasoned>>,
    /// More can be known only once these are done: look again then.
    pub again: bool,
}

impl Work {
    /// Is there nothing to do?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// Every step, in order.
    pub fn steps(&self) -> impl Iterator<Item = &Reasoned> {
        self.stages.iter().flatten()
    }

    fn stage(&mut self, steps: Vec<Reasoned>) {
        if !steps.is_empty() {
            self.stages.push(steps);
        }
    }
}

fn because(step: Step, why: impl Into<String>) -> Reasoned {
    Reasoned { step, why: why.into() }
}

/// A host on which the node has never been.
pub(super) fn is_new(host: &Host) -> bool {
    !host.store && !matches!(host.papers, Papers::Whole { .. })
}

/// A node of the cluster that is to be taken out.
pub(super) fn set_aside(inventory: &Inventory, node: &NodeId) -> bool {
    inventory.host(node).is_some_and(|host| host.removed && host.store)
}

/// What is done, given that nothing stands in the way.
pub(super) fn order(wanted: &Wanted<'_>, inventory: &Inventory) -> Work {
    let mut work = Work::default();
    let began = wanted.spec.nodes.iter().filter_map(|node| inventory.host(&node.name)).any(|host| host.store);
    if wanted.authority.is_none() {
        work.stage(vec![because(Step::Authority, "there is none beside the file")]);
    }
    match &inventory.in_force {
        Some(stored) => running(wanted, inventory, &stored.spec, &mut work),
        None => from_the_start(wanted, inventory, began, &mut work),
    }
    work
}

/// Nobody tells what is in force: a new cluster, or one whose agents do not run.
fn from_the_start(wanted: &Wanted<'_>, inventory: &Inventory, began: bool, work: &mut Work) {
    let (mut prepared, mut started) = (Vec::new(), Vec::new());
    for node in &wanted.spec.nodes {
        let Some(host) = inventory.host(&node.name) else { continue };
        // A node that the cluster does not know yet waits until the others tell what is in force.
        if began && !host.store {
            continue;
        }
        prepare(wanted, &node.name, host, &mut prepared);
        if !began {
            let configured = configured(wanted, &node.name, host);
            if configured.is_some() && host.agent.is_some() {
                let step = Step::Reload(node.name.clone());
                // Founders' files must list the same nodes.
                started.push(because(step, "it waits for the others with another file"));
            }
            prepared.extend(configured);
        }
        prepared.extend(certified(wanted, &node.name, host));
        if host.agent.is_none() {
            let why = if began { "its agent does not run" } else { "the node is new" };
            started.push(because(Step::Start(node.name.clone()), why));
        } else {
            started.extend(unkept(&node.name, host));
        }
    }
    work.stage(prepared);
    // In the order of the file, one after the other: the first one is the first to ask for the primary's role.
    started.into_iter().for_each(|step| work.stage(vec![step]));
    // What a store that exists has in force is known once its agents run: whether it names the server is looked at then.
    if !began {
        work.stage(adopted(wanted, inventory, work).into_iter().collect());
    }
    work.again = !work.is_empty();
}

fn running(wanted: &Wanted<'_>, inventory: &Inventory, in_force: &Spec, work: &mut Work) {
    let hosts = || wanted.spec.nodes.iter().filter_map(|node| Some((&node.name, inventory.host(&node.name)?)));
    let known = |node: &NodeId| in_force.node(node).is_some();
    // An agent that runs goes by what is in force: its file follows that. One that is to be started needs its file before.
    let first = |node: &NodeId, host: &Host| !known(node) || host.agent.is_none();
    let mut prepared = Vec::new();
    for (node, host) in hosts() {
        prepare(wanted, node, host, &mut prepared);
        if first(node, host) {
            prepared.extend(configured(wanted, node, host));
        }
    }
    work.stage(prepared);
    let started = hosts().filter(|(node, host)| known(node) && host.agent.is_none());
    for (node, host) in started {
        work.stage(certified(wanted, node, host).into_iter().collect());
        work.stage(vec![because(Step::Start(node.clone()), "its agent does not run")]);
    }
    let adopts = adopted(wanted, inventory, work);
    let changed = changes(in_force, wanted.spec);
    if adopts.is_some() {
        // That node alone may make the first copy as soon as every agent has read so, and none is to make one while the old server stops.
        work.stage(change(&changed));
    }
    work.stage(adopts.clone().into_iter().collect());
    for (node, host) in hosts().filter(|(node, _)| !known(node)) {
        work.stage(vec![because(Step::Add(node.clone()), "the file lists it, and it is not in force")]);
        work.stage(certified(wanted, node, host).into_iter().collect());
        work.stage(vec![because(Step::Start(node.clone()), "the node is new")]);
        work.stage(vec![because(Step::Await(node.clone()), "a node is added when the one before it does its part")]);
    }
    for (node, host) in hosts().filter(|(node, _)| known(node) && !inventory.voters.contains(node)) {
        work.stage(vec![because(
            Step::Await(node.clone()),
            if host.agent.is_some() { "it has not come in yet" } else { "it is started" },
        )]);
    }
    if adopts.is_none() {
        work.stage(change(&changed));
    }
    for node in in_force.nodes.iter().filter(|node| wanted.spec.node(&node.name).is_none()) {
        work.stage(vec![because(Step::Remove(node.name.clone()), "the file does not list it")]);
        // A host that serves another node by now, or another cluster, has no agent of this one: its unit is left alone.
        let own = |host: &Host| {
            host.named.as_deref() == Some(node.name.as_str())
                && host.config_of.as_deref() == Some(wanted.spec.cluster.name.as_str())
        };
        if inventory.host(&node.name).is_some_and(own) {
            work.stage(vec![because(Step::Retire(node.name.clone()), "it is taken out")]);
        }
    }
    // A node that leaves is gone before: the primary, restarting, would hand over to it, and a primary is not taken out.
    if adopts.is_none() {
        restart(wanted, inventory, &changed, work);
    }
    // Last: a file is what is in force when it is written.
    let configured_too = hosts().filter(|(node, host)| !first(node, host));
    work.stage(configured_too.filter_map(|(node, host)| configured(wanted, node, host)).collect());
    for (node, host) in hosts().filter(|(node, host)| known(node) && host.agent.is_some()) {
        work.stage(certified(wanted, node, host).into_iter().collect());
        work.stage(unkept(node, host).into_iter().collect());
        work.stage(reload(wanted, inventory, node, host).into_iter().collect());
    }
}

/// The server that the file names and that is not brought yet: last, when every agent runs and waits for it, because clients are away from there
/// on. Not before its own node's agent runs or is started.
fn adopted(wanted: &Wanted<'_>, inventory: &Inventory, before: &Work) -> Option<Reasoned> {
    let (node, existing) = super::adopt::pending(wanted, inventory)?;
    let runs = |node: &NodeId| {
        let now = inventory.host(node).is_some_and(|host| host.agent.is_some());
        now || before.steps().any(|each| each.step == Step::Start(node.clone()))
    };
    if !runs(&node) {
        return None;
    }
    let standbys = super::adopt::standbys(wanted, inventory).into_iter().map(|(standby, _)| standby);
    let standbys: Vec<NodeId> = standbys.filter(runs).collect();
    let (directory, system) = (existing.directory.clone(), existing.system?);
    let why = if existing.noted.is_some() { "it was begun" } else { "the file says that its data are the first copy" };
    let stopped = existing.noted.is_some() && existing.pid.is_none();
    let slots = super::adopt::slots_of_standbys(wanted, inventory);
    Some(because(Step::Adopt { node, directory, system, standbys, slots, stopped }, why))
}

/// An agent that runs, and that nobody starts again.
fn unkept(node: &NodeId, host: &Host) -> Option<Reasoned> {
    host.agent?;
    let why = if !host.kept {
        "nobody starts its agent again when that dies"
    } else if host.systemd && !host.enabled {
        "its agent is not started with the host"
    } else {
        return None;
    };
    Some(because(Step::Start(node.clone()), why))
}

/// Program and packages: nothing of the cluster sees them yet.
fn prepare(wanted: &Wanted<'_>, node: &NodeId, host: &Host, steps: &mut Vec<Reasoned>) {
    if wanted.packages
        && host.findings.iter().any(|said| said.problem && ["server", "server-user"].contains(&said.check.as_str()))
    {
        steps.push(because(Step::Packages(node.clone()), "there is no PostgreSQL"));
    }
    match &host.program {
        Some(there) if there == wanted.program => {}
        Some(_) => steps.push(because(Step::Program(node.clone()), "the program there is another one")),
        None => steps.push(because(Step::Program(node.clone()), "there is none")),
    }
}

fn configured(wanted: &Wanted<'_>, node: &NodeId, host: &Host) -> Option<Reasoned> {
    let mut why = Vec::new();
    if host.config.as_deref() != Some(wanted.text) {
        why.push(if host.config.is_some() { "its file is another" } else { "it has no file" });
    }
    if host.named.as_deref() != Some(node.as_str()) {
        why.push("its settings do not name it");
    }
    if host.systemd && host.unit.as_deref() != Some(wanted.unit) {
        why.push(if host.unit.is_some() { "its unit is another" } else { "it has no unit" });
    }
    (!why.is_empty()).then(|| because(Step::Configure(node.clone()), why.join(", ")))
}

/// Joins, or renews what ends soon or does not name every host.
fn certified(wanted: &Wanted<'_>, node: &NodeId, host: &Host) -> Option<Reasoned> {
    let (until, names) = match &host.papers {
        Papers::None => return Some(because(Step::Join(node.clone()), "it has no certificates")),
        Papers::Some(what) => return Some(because(Step::Renew(node.clone()), what.clone())),
        Papers::Whole { until, names, .. } => (*until, names),
    };
    if until - wanted.now < RENEW_BEFORE {
        return Some(because(Step::Renew(node.clone()), "its certificates end within 30 days"));
    }
    let witness = wanted.spec.node(node).is_some_and(|node| node.witness);
    let missing = wanted.spec.client_hosts().into_iter().find(|host| !names.iter().any(|name| same_host(name, host)));
    missing.filter(|_| !witness).map(|other| {
        because(
            Step::Renew(node.clone()),
            format!("its server's certificate does not name {}, through which clients come", other),
        )
    })
}

/// Are these names of one host? An address has several spellings.
fn same_host(one: &str, other: &str) -> bool {
    match (one.parse::<IpAddr>(), other.parse::<IpAddr>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one.eq_ignore_ascii_case(other),
    }
}

fn change(changed: &[Difference]) -> Vec<Reasoned> {
    if changed.is_empty() {
        return Vec::new();
    }
    let keys = changed.iter().map(ToString::to_string).collect();
    vec![because(Step::Change(keys), "the file says so, and it is not in force")]
}

fn restart(wanted: &Wanted<'_>, inventory: &Inventory, changed: &[Difference], work: &mut Work) {
    let mut waiting = inventory.waiting.iter().filter(|(node, _)| wanted.spec.node(node).is_some());
    if changed.iter().any(|change| change.key.starts_with("postgres.parameters.")) {
        work.stage(vec![because(Step::Restart, "parameters changed")]);
    } else if let Some((node, names)) = waiting.next() {
        let why = format!("{} waits for it on {node}", names.join(", "));
        work.stage(vec![because(Step::Restart, why)]);
    }
}

/// What differs besides nodes that come and go, which have steps of their own.
fn changes(in_force: &Spec, file: &Spec) -> Vec<Difference> {
    difference(in_force, &kept(in_force, file))
}

/// The file's settings on the nodes that are in force.
#[must_use]
pub fn kept(in_force: &Spec, file: &Spec) -> Spec {
    let mut spec = file.with_store_of(in_force);
    spec.nodes = in_force.nodes.iter().map(|node| file.node(&node.name).unwrap_or(node).clone()).collect();
    spec
}

fn reload(wanted: &Wanted<'_>, inventory: &Inventory, node: &NodeId, host: &Host) -> Option<Reasoned> {
    let agent = host.agent?;
    if agent.elsewhere {
        return Some(because(Step::Move(node.clone()), "its program is in another place now"));
    }
    let why = if host.program.as_deref() != Some(wanted.program) || !agent.current {
        "it runs another program"
    } else if host.config.as_deref() != Some(wanted.text) {
        "its file is replaced"
    } else if inventory.files.get(node).is_some_and(|state| *state != FileState::Same) {
        "it has not read its file since that was replaced"
    } else {
        return None;
    };
    Some(because(Step::Reload(node.clone()), why))
}
