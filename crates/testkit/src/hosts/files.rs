//! What each host has on its disk before the cluster starts: the file, certificates, the application's password.

use super::cluster::Shape;
use super::host::{Host, VOLUME};
use anyhow::{Context as _, Result};
use mainstay_model::layout::{ClusterLayout, NodeLayout};
use mainstay_model::repositories::Repositories;
use mainstay_model::spec::{Cluster, EngineKind, Failover, Node, Postgres, Proxy, Spec};
use mainstay_model::virtual_address::VirtualAddress;
use mainstay_model::{ClusterName, NodeId, config};
use mainstay_net::{Authority, Role, write_file};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, lchown};
use std::path::Path;

/// The client's host.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
/// The address that goes with the primary, and the prefix of its network.
pub const ADDRESS: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 77, 0, 200), 24);
/// The cluster's file on every host.
pub(crate) const CONFIG: &str = "/etc/mainstay/mainstay.toml";
const CLUSTER: &str = "orders";
/// The database role with which servers replicate.
const REPLICATOR: &str = "mainstay_replicator";

/// What must not be told to others.
pub(crate) struct Secrets {
    cluster: ClusterName,
    authority: Authority,
    password: String,
    verifier: String,
    /// The servers' operating-system user.
    user: (u32, u32),
}

impl Secrets {
    pub(crate) fn uri(&self, host: Ipv4Addr, port: u16) -> String {
        format!("postgresql://app:{}@{host}:{port}/app", self.password)
    }
}

/// A node that holds no data, by its name.
pub(crate) fn is_witness(node: &NodeId) -> bool {
    node.as_str().starts_with('w')
}

/// A log in a node's directory.
pub(crate) fn log(name: &str) -> String {
    format!("{VOLUME}/{CLUSTER}/log/{name}")
}

/// A node's data directory, inside its host.
#[must_use]
pub(crate) fn data_dir() -> String {
    format!("{VOLUME}/{CLUSTER}/data")
}

/// The directory of a server's socket, inside its host.
#[must_use]
pub(crate) fn socket_dir() -> String {
    format!("{VOLUME}/{CLUSTER}/run")
}

fn node(name: String, last: u8, witness: bool) -> Result<Node> {
    Ok(Node {
        name: NodeId::new(name)?,
        host: Ipv4Addr::new(10, 77, 0, last).to_string(),
        zone: None,
        witness,
        port: 5432,
        agent_port: 7420,
        health_port: 7421,
        dir: None,
        adopt: None,
        adopt_standby: None,
        interface: None,
    })
}

/// The cluster's file, and secrets.
pub(crate) fn plan(shape: Shape, archived: bool) -> Result<(Spec, Secrets)> {
    let cluster = ClusterName::new(CLUSTER)?;
    let data = (1..=shape.data).map(|number| node(format!("db{number}"), 10 + number, false));
    let witnesses = (1..=shape.witnesses).map(|number| node(format!("w{number}"), 30 + number, true));
    let spec = Spec {
        cluster: Cluster { name: cluster.clone(), engine: EngineKind::Postgres, durability: shape.durability },
        nodes: data.chain(witnesses).collect::<Result<Vec<Node>>>()?,
        failover: Failover::default(),
        store: super::etcd::store(shape.store),
        proxy: Proxy {
            on_nodes: shape.address,
            host: Some(CLIENT.to_string()),
            address: shape.address.then_some(VirtualAddress { address: ADDRESS.0, prefix: ADDRESS.1 }),
            ..Proxy::default()
        },
        postgres: Postgres {
            // What is measured is the cluster, not encryption.
            hba: vec!["host all all 10.77.0.0/16 scram-sha-256".to_owned()],
            // Volumes are small.
            parameters: [("max_wal_size", "128MB"), ("wal_keep_size", "64MB"), ("shared_buffers", "32MB")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..Postgres::default()
        },
        vault: mainstay_model::spec::Vault {
            repository: if archived { super::shared::repository().as_str().into() } else { Repositories::None },
            // So often that a repository that hangs is noticed while it does.
            switch_s: if archived { 10 } else { 60 },
            ..Default::default()
        },
        requirements: mainstay_model::requirements::Requirements::default(),
    };
    let mut bytes = [0u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let password: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
    let authority = Authority::create(&cluster)?;
    Ok((spec, Secrets { cluster, authority, password, verifier, user: server_user()? }))
}

/// The user `postgres` of this machine.
fn server_user() -> Result<(u32, u32)> {
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let line = passwd.lines().find(|line| line.starts_with("postgres:"));
    let fields: Vec<&str> = line.context("this machine has no user `postgres`")?.split(':').collect();
    let id =
        |index: usize| fields.get(index).context("/etc/passwd is not understood")?.parse().context("a user's number");
    Ok((id(2)?, id(3)?))
}

/// Writes everything to every host.
pub(crate) fn lay_out(hosts: &BTreeMap<NodeId, Host>, client: &Host, spec: &Spec, secrets: &Secrets) -> Result<()> {
    let text = config::render(spec);
    let names: String = hosts.values().map(|host| format!("{} {}\n", host.address(), host.name())).collect();
    for host in hosts.values().chain([client]) {
        write_file(&host.path(CONFIG), text.as_bytes(), 0o644, None, true)?;
        let known = std::fs::read_to_string(host.path("/etc/hosts")).unwrap_or_default();
        std::fs::write(host.path("/etc/hosts"), format!("{known}{names}{} client\n", client.address()))?;
    }
    for (node, host) in hosts {
        lay_out_node(host, node, secrets)?;
    }
    let layout = ClusterLayout::new(client.path("/etc/mainstay"));
    make_dir(&layout.pki(), 0o700, None)?;
    make_dir(&layout.dir().join("secrets"), 0o700, None)?;
    write_file(&layout.ca_cert(), secrets.authority.cert_pem().as_bytes(), 0o644, None, false)?;
    write_file(&layout.app_password(), format!("{}\n", secrets.password).as_bytes(), 0o600, None, false)?;
    let admin = secrets.authority.issue(&Role::Admin("admin".to_owned()), &[])?;
    admin.write(&layout.admin_cert(), &layout.admin_key(), None, false)?;
    let proxy = secrets.authority.issue(&Role::Proxy("local".to_owned()), &[])?;
    Ok(proxy.write(&layout.proxy_cert(), &layout.proxy_key(), None, false)?)
}

/// A node's directories and certificates, on an empty volume.
pub(crate) fn lay_out_node(host: &Host, node: &NodeId, secrets: &Secrets) -> Result<()> {
    let (files, authority) = (NodeLayout::new(host.path(&format!("{VOLUME}/{}", secrets.cluster))), &secrets.authority);
    let owner = Some(secrets.user);
    make_dir(files.dir(), 0o711, None)?;
    for path in [files.agent(), files.log(), files.diverged()] {
        make_dir(&path, 0o700, None)?;
    }
    for path in [files.data(), files.conf(), files.run()] {
        make_dir(&path, 0o700, owner)?;
    }
    let address = host.address().to_string();
    let agent = authority.issue(&Role::Node(node.clone()), std::slice::from_ref(&address))?;
    agent.write(&files.node_cert(), &files.node_key(), None, false)?;
    write_file(&files.ca_cert(), authority.cert_pem().as_bytes(), 0o644, None, false)?;
    let proxy = authority.issue(&Role::Proxy(node.to_string()), std::slice::from_ref(&address))?;
    proxy.write(&files.proxy_cert(), &files.proxy_key(), None, false)?;
    if is_witness(node) {
        return Ok(());
    }
    let server = authority.issue(&Role::Server(node.clone()), &[address, CLIENT.to_string(), ADDRESS.0.to_string()])?;
    server.write(&files.server_cert(), &files.server_key(), owner, false)?;
    let replication = authority.issue(&Role::Replication(REPLICATOR.to_owned()), &[])?;
    replication.write(&files.replication_cert(), &files.replication_key(), owner, false)?;
    write_file(&files.server_ca(), authority.cert_pem().as_bytes(), 0o644, owner, false)?;
    Ok(write_file(&files.app_verifier(), secrets.verifier.as_bytes(), 0o600, None, false)?)
}

fn make_dir(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<()> {
    let made = std::fs::DirBuilder::new().mode(0o700).create(path);
    made.with_context(|| format!("make {}", path.display()))?;
    if let Some((user, group)) = owner {
        lchown(path, Some(user), Some(group))?;
    }
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}
