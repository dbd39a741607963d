//! Where a node's and a cluster's files lie. Names only; nothing here touches a disk.
//!
//! A node's directory:
//! ```text
//! agent/     agent's user only: durable.json, spec.json, raft/ or etcd.json, node.crt, node.key, ca.crt, proxy.crt, proxy.key, app.verifier, guard.sock
//! data/      the database server's data directory (its user only)
//! conf/      its configuration and TLS files (its user only), outside the data directory so that a rewind never overwrites them
//! run/       its Unix socket
//! log/       server.log, agent.log, guard.log, audit.log
//! diverged/  logs kept before a rewind or re-clone (the agent's user only)
//! proof/     the copy of a restore drill, while one is held
//! data.adopted/         an existing server's data on their way to become the first copy (`agent/adopted.json` says whose)
//! data.before-restore-N/  the data of before a restore in place
//! data.restored-COPY/     a copy for a restore in place; data.restored-COPY.given: it was handed over
//! ```
//! A cluster made by `mainstay up`:
//! ```text
//! mainstay.toml   pki/{ca,admin,proxy}.{crt,key}   secrets/app.password   nodes/NAME/   vault/   log/   run/supervisor.pid
//! ```
//! Where `mainstay pki init` made the authority, `pki/` also holds `issued.jsonl` (what was issued, until when) and `tokens/`. Where a
//! person or a proxy joined, `pki/` holds `ca.crt` and that role's certificate and key.

use crate::CopyId;
use std::path::{Path, PathBuf};

/// How directories in a node's begin that hold the data of before a restore in place. Mainstay never removes them.
pub const KEPT_PREFIX: &str = "data.before-restore-";
/// How directories in a node's begin in which a copy for a restore in place is prepared.
pub const RESTORED_PREFIX: &str = "data.restored-";
/// So many old copies lie beside the data at most; then somebody must look at them.
pub const KEPT_MAX: u32 = 32;

/// One node's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLayout {
    /// The directory itself.
    pub dir: PathBuf,
}

/// A local cluster's directory (`mainstay up`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterLayout {
    /// The directory itself.
    pub dir: PathBuf,
}

macro_rules! paths {
    ($type:ident { $($name:ident => $path:literal, $doc:literal;)* }) => {
        impl $type {
            /// The layout of this directory.
            #[must_use]
            pub fn new(dir: impl Into<PathBuf>) -> Self {
                Self { dir: dir.into() }
            }
            /// The directory.
            #[must_use]
            pub fn dir(&self) -> &Path {
                &self.dir
            }
            $(#[doc = $doc]
            #[must_use]
            pub fn $name(&self) -> PathBuf {
                self.dir.join($path)
            })*
        }
    };
}

paths!(NodeLayout {
    agent => "agent", "Only the agent's user may read it.";
    durable => "agent/durable.json", "Promise, upstream, copy.";
    raft => "agent/raft", "The embedded store's files.";
    etcd => "agent/etcd.json", "What the node has seen of the etcd that is the store.";
    spec_cache => "agent/spec.json", "The newest specification that the node has seen.";
    intent => "agent/intent.json", "What the agent does to its part of the store at its next start.";
    drill => "agent/drill.json", "The fault of a drill that is in force: the next agent ends it, should this one not.";
    removed => "agent/removed.json", "The node was removed from the cluster: the agent does not start.";
    proxy_cert => "agent/proxy.crt", "The certificate with which the node's proxy asks for the route.";
    proxy_key => "agent/proxy.key", "Its key.";
    proxy_lock => "agent/proxy.lock", "Held by the node's proxy; its process id.";
    proxy_log => "log/proxy.log", "The log of the node's proxy (JSON lines).";
    node_cert => "agent/node.crt", "The agent's certificate (PEM).";
    node_key => "agent/node.key", "The agent's key (PEM).";
    ca_cert => "agent/ca.crt", "The cluster authority (PEM).";
    app_verifier => "agent/app.verifier", "SCRAM verifier of the application role, for the first copy.";
    adopted => "data.adopted", "An existing server's data on their way to become the first copy.";
    adoption => "agent/adopted.json", "Which server was adopted, and how it was kept before.";
    guard_socket => "agent/guard.sock", "Where the guard listens.";
    data => "data", "The server's data directory.";
    conf => "conf", "The server's configuration.";
    server_cert => "conf/server.crt", "The server's certificate.";
    server_key => "conf/server.key", "The server's key.";
    replication_cert => "conf/replication.crt", "The certificate with which this node's server replicates from others.";
    replication_key => "conf/replication.key", "Its key.";
    server_ca => "conf/ca.crt", "The cluster authority, readable by the server.";
    run => "run", "The server's Unix socket.";
    log => "log", "Logs.";
    server_log => "log/server.log", "What the server prints.";
    agent_log => "log/agent.log", "The agent's log (JSON lines).";
    guard_log => "log/guard.log", "The guard's log.";
    audit_log => "log/audit.log", "Every change that was asked for at this agent (JSON lines).";
    restore_drill => "proof", "Where a restore drill makes its copy; removed afterwards.";
    diverged => "diverged", "Logs kept before a rewind or re-clone.";
});

paths!(ClusterLayout {
    config => "mainstay.toml", "The file that describes the cluster.";
    pki => "pki", "The cluster authority and the certificates of people and proxies.";
    ca_cert => "pki/ca.crt", "The cluster authority (PEM).";
    ca_key => "pki/ca.key", "Its key: only its owner reads it.";
    admin_cert => "pki/admin.crt", "With it the commands call the API.";
    admin_key => "pki/admin.key", "Its key.";
    operator_cert => "pki/operator.crt", "With it an operator's commands call the API.";
    operator_key => "pki/operator.key", "Its key.";
    reader_cert => "pki/reader.crt", "With it a reader's commands call the API.";
    reader_key => "pki/reader.key", "Its key.";
    issued => "pki/issued.jsonl", "What the authority issued: one JSON line each.";
    tokens => "pki/tokens", "Join tokens: their hashes only.";
    proxy_cert => "pki/proxy.crt", "With it the proxy asks for the route.";
    proxy_key => "pki/proxy.key", "Its key.";
    secrets => "secrets", "The application role's password.";
    vault => "vault", "The repository of a cluster made by `up`: the archive of the log.";
    app_password => "secrets/app.password", "The application role's password: only its owner reads it.";
    log => "log", "Logs of the supervisor and the proxy.";
    run => "run", "Process ids.";
    supervisor_pid => "run/supervisor.pid", "The supervisor's process id.";
    proxy_pid => "run/proxy.pid", "The proxy's process id.";
});

impl NodeLayout {
    /// Where a copy for a restore in place is prepared.
    #[must_use]
    pub fn restored(&self, copy: CopyId) -> PathBuf {
        self.dir.join(format!("{RESTORED_PREFIX}{copy}"))
    }
    /// While this file is there the copy was handed over: the record may name it, and nothing of Mainstay removes it.
    #[must_use]
    pub fn given(&self, copy: CopyId) -> PathBuf {
        self.dir.join(format!("{RESTORED_PREFIX}{copy}.given"))
    }
    /// Where the data of before a restore in place can be kept: the first of these that is free.
    pub fn kept(&self) -> impl Iterator<Item = PathBuf> {
        (1..=KEPT_MAX).map(|number| self.dir.join(format!("{KEPT_PREFIX}{number}")))
    }
    /// Where the tablespaces of a copy lie.
    #[must_use]
    pub fn tablespaces(&self, copy: CopyId) -> PathBuf {
        self.dir.join("tablespaces").join(copy.to_string())
    }
}

impl ClusterLayout {
    /// A node's directory inside it.
    #[must_use]
    pub fn node(&self, name: &crate::NodeId) -> NodeLayout {
        NodeLayout::new(self.dir.join("nodes").join(name.as_str()))
    }
}
