//! Makes a cluster's directory: plan first (nothing is touched), then directories, certificates, secrets, and the file last.
//! What was made is removed again when something fails half-way.

use super::keys::{self, Keys, Member, write};
use super::node_dir::{first_missing, make_dir, make_node, make_parents};
use super::place::{self, Place, UNFINISHED};
use super::user::User;
use super::{engine, ports};
use crate::cli::Up;
use crate::failure::{Failure, Outcome};
use crate::output::progress::Progress;
use crate::target;
use mainstay_model::layout::ClusterLayout;
use mainstay_model::spec::{Cluster, EngineKind, Failover, Node, Postgres, Proxy, Spec, Store, StoreKind, Vault};
use mainstay_model::{ClusterName, NodeId, config, config_check};
use mainstay_net::Role;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// How many nodes a cluster has when nobody said.
pub(crate) const NODES: u8 = 3;
/// Where the proxy listens.
const PROXY_HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// What is going to be made.
pub(crate) struct Plan {
    /// Where.
    pub(crate) layout: ClusterLayout,
    /// What.
    pub(crate) spec: Spec,
    /// As whom the servers run; `None`: as whoever starts them.
    user: Option<User>,
    /// Held until the ports are in use.
    _turn: ports::Turn,
}

/// Works out what to make, and checks that it can be made. Touches nothing.
///
/// # Errors
/// When a name, an option, the directory or this machine does not allow it.
pub(crate) fn plan(up: &Up, dir: &Path) -> Outcome<Plan> {
    place::check_length(dir)?;
    let user = super::user::server_user()?;
    let programs = engine::find(up.bin_dir.as_deref())?;
    place::check_reachable(dir, user.as_ref())?;
    let count = up.nodes.unwrap_or(NODES);
    let hosts: Vec<Ipv4Addr> = (0..count).map(ports::loopback).collect();
    let turn = ports::Turn::take();
    let ports = ports::choose(&turn, &hosts, &neighbours(dir))?;
    let spec = spec(up, dir, &hosts, ports, up.bin_dir.is_some().then_some(programs.bin_dir))?;
    let problems = config_check::check(&spec, engine::owned_parameters());
    if let Some(problem) = problems.first() {
        return Err(Failure::usage(problem.to_string()));
    }
    Ok(Plan { layout: ClusterLayout::new(dir), spec, user, _turn: turn })
}

fn spec(up: &Up, dir: &Path, hosts: &[Ipv4Addr], ports: ports::Ports, bin_dir: Option<PathBuf>) -> Outcome<Spec> {
    let wrong = |error: mainstay_model::ids::BadName| Failure::usage(error.to_string());
    let layout = ClusterLayout::new(dir);
    let nodes = hosts.iter().zip(1..).map(|(host, number)| {
        let name = NodeId::new(format!("db{number}")).map_err(wrong)?;
        Ok(Node {
            dir: Some(layout.node(&name).dir().to_owned()),
            name,
            host: host.to_string(),
            zone: None,
            witness: false,
            port: ports.server,
            agent_port: ports.agent,
            health_port: ports.health,
            adopt: None,
            adopt_standby: None,
            interface: None,
        })
    });
    let name = match &up.name {
        Some(name) => name.clone(),
        None => ClusterName::new(target::DEFAULT_NAME).map_err(wrong)?,
    };
    Ok(Spec {
        cluster: Cluster {
            name,
            engine: EngineKind::Postgres,
            durability: up.durability.map(Into::into).unwrap_or_default(),
        },
        nodes: nodes.collect::<Outcome<Vec<Node>>>()?,
        failover: Failover::default(),
        store: match up.etcd.is_empty() {
            true => Store::default(),
            false => Store { kind: StoreKind::Etcd, endpoints: up.etcd.clone(), ..Store::default() },
        },
        proxy: Proxy {
            on_nodes: false,
            host: Some(PROXY_HOST.to_string()),
            write_port: ports.write,
            read_port: ports.read,
            ..Proxy::default()
        },
        postgres: Postgres { bin_dir, ..Postgres::default() },
        vault: Vault { repository: layout.vault().into(), ..Vault::default() },
        requirements: mainstay_model::requirements::Requirements::default(),
    })
}

/// Ports that stopped clusters beside this one have in their files.
fn neighbours(dir: &Path) -> BTreeSet<u16> {
    let Some(place) = dir.parent() else { return BTreeSet::new() };
    let specs = target::clusters_in(place)
        .into_iter()
        .filter_map(|neighbour| target::Target::read(&ClusterLayout::new(neighbour).config()).ok());
    let ports = specs.flat_map(|found| {
        let proxy = [found.spec.proxy.write_port, found.spec.proxy.read_port];
        found
            .spec
            .nodes
            .into_iter()
            .flat_map(|node| [node.port, node.agent_port, node.health_port])
            .chain(proxy)
            .collect::<Vec<_>>()
    });
    ports.collect()
}

/// Makes what was planned.
///
/// # Errors
/// When the disk refuses or randomness is missing; what was made is removed again, or what is left is named.
pub(crate) fn make(plan: &Plan, progress: &mut Progress) -> Outcome<super::processes::Lock> {
    let dir = plan.layout.dir();
    let made = first_missing(dir);
    make_parents(dir)?;
    let lock = super::processes::Lock::directory(dir)?
        .ok_or_else(|| Failure::not_now(format!("another `mainstay up` is at work in {}", dir.display())))?;
    match place::look(dir)? {
        Place::Empty => {}
        Place::Unfinished => {
            progress.say(&format!("{}: an earlier `up` was interrupted; starting over", dir.display()));
            empty(dir)?;
        }
        Place::Ours | Place::Absent => {
            return Err(Failure::not_now(format!("another `mainstay up` has just used {}", dir.display())));
        }
    }
    match fill(plan, progress) {
        Ok(()) => Ok(lock),
        Err(failure) => {
            progress.fail();
            Err(undo(failure, dir, made.as_deref()))
        }
    }
}

/// Removes what was made; says so, or what is left.
fn undo(failure: Failure, dir: &Path, made: Option<&Path>) -> Failure {
    let removed = match made {
        Some(top) => std::fs::remove_dir_all(top).map_err(|error| format!("{}: {error}", top.display())),
        None => empty(dir).map_err(|left| left.error),
    };
    match removed {
        Ok(()) => failure.hint("what had been made was removed again"),
        Err(left) => {
            failure.hint(format!("what had been made could not be removed ({left}): remove {} yourself", dir.display()))
        }
    }
}

/// Removes everything inside a directory.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn empty(dir: &Path) -> Outcome {
    let wrong = |error: std::io::Error| Failure::failed(format!("{} can not be emptied: {error}", dir.display()));
    for entry in std::fs::read_dir(dir).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        let is_dir = std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
        if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }.map_err(wrong)?;
    }
    Ok(())
}

fn fill(plan: &Plan, progress: &mut Progress) -> Outcome {
    let layout = &plan.layout;
    write(&layout.dir().join(UNFINISHED), b"", 0o600)?;
    progress.step("Making directories");
    std::fs::set_permissions(layout.dir(), std::fs::Permissions::from_mode(0o711))
        .map_err(|error| Failure::failed(format!("{}: {error}", layout.dir().display())))?;
    for path in [layout.run(), layout.log()] {
        make_dir(&path, 0o700, None)?;
    }
    make_dir(&layout.dir().join("nodes"), 0o711, None)?;
    for node in &plan.spec.nodes {
        make_node(&layout.node(&node.name), node.witness, plan.user.as_ref())?;
    }
    progress.step("Making certificates and the application's password");
    let keys = Keys::found(layout, &plan.spec.cluster.name, "up")?;
    let mut proxy = Member::plain(&Role::Proxy(crate::commands::PROXY_NAME.to_owned()));
    // The names under which clients reach it.
    proxy.server_hosts = plan.spec.proxy.host.iter().cloned().chain(["localhost".to_owned()]).collect();
    keys::write_all(&keys.material(&proxy, "up")?.files_of_proxy(layout), false)?;
    for node in &plan.spec.nodes {
        let material = keys.material(&Member::node(&plan.spec, node), "up")?;
        keys::write_all(&material.files_of_node(&layout.node(&node.name), plan.user.as_ref()), false)?;
    }
    write(&layout.config(), config::render(&plan.spec).as_bytes(), 0o644)?;
    std::fs::remove_file(layout.dir().join(UNFINISHED))
        .map_err(|error| Failure::failed(format!("{}: {error}", layout.dir().display())))?;
    progress.finish("");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Plan, ports, spec};
    use crate::cli::{Cli, Command};
    use crate::output::progress::Progress;
    use clap::Parser as _;
    use mainstay_model::layout::ClusterLayout;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;

    fn plan(dir: &Path) -> Plan {
        let Command::Up(up) = Cli::parse_from(["mainstay", "up", "--nodes", "2"]).command else { panic!("not up") };
        let hosts = [ports::loopback(0), ports::loopback(1)];
        let turn = ports::Turn::take();
        let ports = ports::choose(&turn, &hosts, &std::collections::BTreeSet::new()).unwrap();
        let spec = spec(&up, dir, &hosts, ports, None).unwrap();
        Plan { layout: ClusterLayout::new(dir), spec, user: None, _turn: turn }
    }

    #[test]
    fn secrets_are_closed_and_the_file_reads_back() {
        let home = tempfile::tempdir().unwrap();
        let plan = plan(&home.path().join("deep/er/c"));
        super::make(&plan, &mut Progress::new()).unwrap();
        let layout = &plan.layout;
        let node = layout.node(&plan.spec.nodes[1].name);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        for secret in [
            layout.ca_key(),
            layout.admin_key(),
            layout.app_password(),
            node.node_key(),
            node.server_key(),
            node.proxy_key(),
        ] {
            assert_eq!(mode(&secret), 0o600, "{}", secret.display());
        }
        assert_eq!(
            (mode(layout.dir()), mode(node.dir()), mode(&node.agent()), mode(&layout.pki())),
            (0o711, 0o711, 0o700, 0o700)
        );
        let password = std::fs::read_to_string(layout.app_password()).unwrap();
        let verifier = std::fs::read_to_string(node.app_verifier()).unwrap();
        assert!(verifier.starts_with("SCRAM-SHA-256$") && !verifier.contains(password.trim()));
        let read = crate::target::Target::read(&layout.config()).unwrap();
        assert_eq!(read.spec, plan.spec);
        assert_eq!(super::place::look(layout.dir()).unwrap(), super::Place::Ours);
    }

    #[test]
    fn what_was_half_made_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let mut plan = plan(&home.path().join("deep/er/c"));
        // The second node finds its keys taken: a failure in the middle.
        plan.spec.nodes[1].name = plan.spec.nodes[0].name.clone();
        let failure = super::make(&plan, &mut Progress::new()).unwrap_err();
        assert!(failure.error.contains("File exists"), "{}", failure.error);
        assert!(failure.hint.unwrap().contains("was removed again"));
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_interrupted_making_is_begun_anew() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("c");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join(super::UNFINISHED), "").unwrap();
        std::fs::create_dir_all(dir.join("nodes/db1/data/base")).unwrap();
        let plan = plan(&dir);
        super::make(&plan, &mut Progress::new()).unwrap();
        assert_eq!(super::place::look(&dir).unwrap(), super::Place::Ours);
        assert!(!dir.join("nodes/db1/data/base").exists());
    }
}
