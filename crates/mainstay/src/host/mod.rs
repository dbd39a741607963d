//! What this host shows of itself, read and not judged: `mainstay_plan::doctor` says what is amiss. Whatever can not be read says why.
//!
//! Begin at [`gather`]. Nothing is changed, except that a file without a name is written to see how fast the disk is, where that is asked for.
//! Bounded: each program that is asked, each connection and each write has its time.

mod address;
mod disk;
mod memory;
pub(crate) mod mounts;
mod network;
mod papers;
mod places;
mod ports;
mod store;
pub(crate) mod system;

use crate::client::{Agents, decode};
use crate::session::Session;
use crate::target::Target;
use mainstay_model::api::Standing;
use mainstay_model::layout::NodeLayout;
use mainstay_model::spec::{Node, Spec};
use mainstay_model::status::Status;
use mainstay_plan::doctor::facts::{Existing, HostFacts, OwnPort, Reading, Server, Stage};
use mainstay_ports::clock::wall_now_ms;
use std::fmt::Display;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// How long a program that is asked may take.
const PROGRAM: Duration = Duration::from_secs(5);
/// Files of the system are not longer.
const TEXT_BYTES_MAX: u64 = 4 << 20;

/// A cluster as this host sees it.
pub(crate) struct Seen {
    /// The file; `spec` is the specification in force if an agent told it.
    pub(crate) target: Target,
    /// The number of that specification.
    pub(crate) generation: Option<u64>,
    /// With what agents are asked, or why they can not be.
    agents: Result<Agents, String>,
    /// What they say of the cluster.
    status: Option<Status>,
}

impl Seen {
    /// Reads the file, and asks the agents for the specification in force, if there is a certificate to ask with.
    ///
    /// # Errors
    /// When there is no such file, it holds mistakes, or a certificate was named that can not be used.
    pub(crate) async fn look(which: &crate::cli::Which) -> crate::failure::Outcome<Seen> {
        let target = Target::find(which)?;
        crate::identity::check_named(&target)?;
        Ok(Self::of(target).await)
    }

    /// The same for a file that has been read, also one that is not on this host yet.
    pub(crate) async fn of(target: Target) -> Seen {
        match Session::of(target.clone()).await {
            Ok(session) => {
                let status = session.status().await.ok();
                let generation = session.stored().map(|stored| stored.generation);
                Seen { target: session.target, generation, agents: Ok(session.agents), status }
            }
            Err(failure) => Seen { target, generation: None, agents: Err(failure.error), status: None },
        }
    }

    fn spec(&self) -> &Spec {
        &self.target.spec
    }

    /// What one agent knows by itself.
    async fn standing(&self, node: &Node) -> Result<Standing, String> {
        let agents = self.agents.as_ref().map_err(Clone::clone)?;
        let answer = agents.ask(&node.name, "GET", "/v1/standing", None).await?;
        decode(&answer).ok_or_else(|| answer.error())
    }

    /// The process of a node's agent, as it said.
    fn agent_pid(&self, node: &Node) -> Option<u32> {
        let nodes = &self.status.as_ref()?.nodes;
        nodes.iter().find(|known| known.name == node.name)?.agent_pid
    }
}

/// Everything that this host shows of this node. `writing`: how fast the disk is, too.
pub(crate) async fn gather(seen: &Seen, node: &Node, writing: bool) -> HostFacts {
    let spec = seen.spec();
    let layout = NodeLayout::new(spec.node_dir(node));
    let ports = ports::own(spec, node);
    let (stage, asked) = stage(seen, node, &layout, &ports).await;
    let agent = if stage == Stage::Running { seen.agent_pid(node) } else { None };
    let owners = places::Owners::of(&layout, node.witness, agent);
    let server = if node.witness { Err("a witness has none".to_owned()) } else { server(spec) };
    let collations = match (&server, stage) {
        (Ok(server), Stage::Running) => Some(network::collations(server, &layout, node.port).await),
        _ => None,
    };
    HostFacts {
        node: node.name.clone(),
        stage,
        asked,
        config: seen.target.config.display().to_string(),
        now: i64::try_from(wall_now_ms() / 1000).unwrap_or(i64::MAX),
        system: system::read(&seen.target, node, &owners, agent).await,
        server,
        user: owners.reach(layout.dir()),
        places: places::read(spec, node, &layout, stage, &owners),
        ports,
        memory: memory::read(),
        volume: disk::read(layout.dir(), writing),
        data: if node.witness { Ok(Existing::Nothing) } else { places::data(&layout.data()) },
        papers: if stage == Stage::New { Vec::new() } else { papers::read(spec, node, &layout) },
        peers: network::peers(seen, node, stage).await,
        collations,
        etcd: store::read(spec, node, &layout).await,
        address: address::read(seen, node).await,
        runbook: None,
    }
}

/// How far the node is. Without a certificate to ask with nobody knows whether its agent answers, only whether somebody listens there.
async fn stage(seen: &Seen, node: &Node, layout: &NodeLayout, ports: &[OwnPort]) -> (Stage, Reading<()>) {
    let answer = seen.standing(node).await.map(drop);
    let listens = ports.iter().any(|port| port.port == node.agent_port && port.busy == Ok(true));
    match (answer, there(&layout.node_cert())) {
        (Ok(()), _) => (Stage::Running, Ok(())),
        (Err(_), Ok(false)) => (Stage::New, Ok(())),
        (Err(why), _) if seen.agents.is_err() && listens => (Stage::Running, Err(why)),
        (Err(_), _) => (Stage::Joined, Ok(())),
    }
}

fn server(spec: &Spec) -> Reading<Server> {
    let programs = crate::local::engine::find(spec.postgres.bin_dir.as_deref()).map_err(|failure| failure.error)?;
    Ok(Server { programs: programs.bin_dir.display().to_string(), major: u64::from(programs.major) })
}

/// Is there anything? A place that this user may not look into is not nothing.
fn there(path: &Path) -> std::io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn why(path: &str, error: &impl Display) -> String {
    format!("{path}: {error}")
}

/// A file of the system.
fn text(path: &str) -> Reading<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| why(path, &error))?;
    file.take(TEXT_BYTES_MAX).read_to_string(&mut text).map_err(|error| why(path, &error))?;
    Ok(text)
}

/// A file of the system that holds one number.
fn number(path: &str) -> Reading<u64> {
    let text = text(path)?;
    text.trim().parse().map_err(|_| format!("{path} holds no number: {:?}", text.trim()))
}

/// What a program prints. One that does not know is asked in vain, not for ever.
async fn said(program: impl AsRef<Path>, arguments: &[&str]) -> Reading<String> {
    let program = program.as_ref();
    let name = program.display();
    let asked = tokio::process::Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .env_remove("PGOPTIONS")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(PROGRAM, asked).await {
        Ok(output) => output.map_err(|error| format!("{name} can not be run: {error}"))?,
        Err(_) => return Err(format!("{name} gave no answer within {} s", PROGRAM.as_secs())),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() || !text(&output.stdout).is_empty() {
        return Ok(text(&output.stdout));
    }
    let complaint = text(&output.stderr);
    Err(format!("{name}: {}", complaint.lines().next().unwrap_or("it failed and said nothing")))
}
