//! What a spec must satisfy beyond its types: names and addresses that do not clash, numbers within bounds, a commit that some
//! replica can confirm. Nothing here reads a file or resolves a name.

use crate::config::{ConfigProblem, nearest};
use crate::spec::{Node, Spec};
use crate::virtual_address::is_interface;
use crate::{Durability, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Checks a spec. `owned` are the server parameters that the engine keeps for itself. The problems carry no line.
#[must_use]
pub fn check(spec: &Spec, owned: &[&str]) -> Vec<ConfigProblem> {
    let mut found = Found::default();
    nodes(spec, &mut found);
    addresses(spec, &mut found);
    commits(spec, &mut found);
    failover(spec, &mut found);
    crate::config_check_store::store(&spec.store, &mut |key, text| found.add(key, text));
    proxy(spec, &mut found);
    postgres(spec, owned, &mut found);
    crate::config_check_vault::vault(spec, &mut |key, text| found.add(key, text));
    requirements(spec, &mut found);
    found.0
}

#[derive(Default)]
struct Found(Vec<ConfigProblem>);

impl Found {
    fn add(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.0.push(ConfigProblem { line: None, key: key.into(), text: text.into() });
    }

    /// Bounds stand in the table of all keys.
    fn bounds(&mut self, key: &str, value: u64) {
        let Some((least, most)) = crate::config_reference::find(key).and_then(|known| known.bounds) else { return };
        if value < least || value > most {
            self.add(key, format!("{key} = {value} is out of bounds: {least} to {most}"));
        }
    }
}

fn nodes(spec: &Spec, found: &mut Found) {
    if spec.data_nodes().next().is_none() {
        found.add("node", "no node holds data: add a [[node]] with a name and a host (witnesses hold none)");
    }
    let mut names: BTreeSet<&NodeId> = BTreeSet::new();
    for (place, node) in spec.nodes.iter().enumerate() {
        if !names.insert(&node.name) {
            found.add(format!("node.{place}.name"), format!("a second node is called {:?}", node.name.as_str()));
        }
        if let Err(why) = check_host(&node.host) {
            found.add(format!("node.{place}.host"), why);
        }
        if let Some(dir) = &node.dir
            && !dir.is_absolute()
        {
            found.add(format!("node.{place}.dir"), format!("dir = {:?} must be an absolute path", dir.display()));
        }
        if let Some((key, why)) = adoption(spec, node) {
            found.add(format!("node.{place}.{key}"), why);
        }
        if let Some(interface) = &node.interface
            && !is_interface(interface)
        {
            found.add(
                format!("node.{place}.interface"),
                format!("interface = {interface:?} is no name of an interface, as eth0"),
            );
        }
        if node.zone.as_deref() == Some("") {
            found.add(format!("node.{place}.zone"), "zone is empty: name it, or leave it out");
        }
    }
}

/// Is this an address, or a name that may resolve to one?
fn check_host(host: &str) -> Result<(), String> {
    if let Ok(address) = host.parse::<IpAddr>() {
        let usable = !address.is_unspecified() && !address.is_multicast();
        return if usable { Ok(()) } else { Err(format!("host = {host:?} is no address that others can reach")) };
    }
    if let Some((name, port)) = host.rsplit_once(':')
        && !name.is_empty()
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Err(format!("host = {host:?} holds a port: write host = {name:?} and port = {port}"));
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric_end = host.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    if host.len() <= 253 && host.split('.').all(label) && !numeric_end {
        return Ok(());
    }
    Err(format!("host = {host:?} is neither an IP address nor a host name"))
}

/// Who listens where: no two on one host and port.
fn addresses(spec: &Spec, found: &mut Found) {
    let mut taken: BTreeMap<(String, u16), String> = BTreeMap::new();
    let mut claim = |host: &str, port: u16, what: String, key: String, found: &mut Found| {
        if port == 0 {
            found.add(key, format!("{what}: 0 is no port; 1 to 65535"));
            return;
        }
        if let Some(other) = taken.insert((host.to_ascii_lowercase(), port), what.clone()) {
            found.add(key, format!("{what} is {port} on host {host}, which is taken by {other}"));
        }
    };
    for (place, node) in spec.nodes.iter().enumerate() {
        for (field, port) in node_ports(node) {
            claim(&node.host, port, format!("{field} of {}", node.name), format!("node.{place}.{field}"), found);
        }
    }
    let proxy = &spec.proxy;
    let mut hosts: BTreeSet<&str> = BTreeSet::new();
    if proxy.on_nodes {
        hosts.extend(spec.nodes.iter().map(|node| node.host.as_str()));
    }
    hosts.extend(proxy.host.as_deref());
    for host in hosts {
        claim(host, proxy.write_port, "write_port of the proxy".into(), "proxy.write_port".into(), found);
        claim(host, proxy.read_port, "read_port of the proxy".into(), "proxy.read_port".into(), found);
        if let Some(port) = proxy.metrics_port {
            claim(host, port, "metrics_port of the proxy".into(), "proxy.metrics_port".into(), found);
        }
    }
}

/// What is wrong with the server that a node is to adopt.
fn adoption(spec: &Spec, node: &Node) -> Option<(&'static str, String)> {
    let key = if node.adopt.is_some() { "adopt" } else { "adopt_standby" };
    let adopt = node.taken_over()?;
    let shown = adopt.display();
    let own = spec.node_dir(node);
    let why = if !adopt.is_absolute() {
        " must be an absolute path".to_owned()
    } else if node.witness {
        ": a witness holds no data".to_owned()
    } else if node.adopt.is_some() && node.adopt_standby.is_some() {
        ": a node takes the data of one server, and adopt_standby names another".to_owned()
    } else if node.adopt.is_some() && spec.founder() != Some(&node.name) {
        ": one server is adopted; the others become copies of it, and name its standby with adopt_standby, if one is there".to_owned()
    } else if adopt.starts_with(&own) || own.starts_with(adopt) {
        format!(": the node's own directory is {}; name the other one", own.display())
    } else {
        return None;
    };
    Some((key, format!("{key} = {shown:?}{why}")))
}

fn node_ports(node: &Node) -> Vec<(&'static str, u16)> {
    let mut ports = vec![("agent_port", node.agent_port), ("health_port", node.health_port)];
    if !node.witness {
        ports.push(("port", node.port));
    }
    ports
}

/// Can the replicas that a commit waits for exist?
fn commits(spec: &Spec, found: &mut Found) {
    let Some(wanted) = spec.failover.sync_replicas else { return };
    let data = spec.data_nodes().count();
    let replicas = u32::try_from(data).unwrap_or(u32::MAX).saturating_sub(1);
    let key = "failover.sync_replicas";
    if wanted > replicas {
        found.add(
            key,
            format!(
                "sync_replicas = {wanted}, but {data} data node{} can have {replicas} replica{} at most",
                plural(data),
                plural(replicas as usize)
            ),
        );
    } else if wanted == 0 && replicas > 0 && spec.cluster.durability != Durability::Async {
        found.add(
            key,
            format!(
                "sync_replicas = 0 protects no commit, and durability is {:?}: say durability = \"async\", or at least 1",
                spec.cluster.durability.as_str()
            ),
        );
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn failover(spec: &Spec, found: &mut Found) {
    let times = &spec.failover;
    found.bounds("failover.ping_ms", times.ping_ms);
    found.bounds("failover.suspicion_ms", times.suspicion_ms);
    found.bounds("failover.lease_ms", times.lease_ms);
    found.bounds("failover.margin_percent", times.margin_percent);
    if times.suspicion_ms < times.ping_ms.saturating_mul(2) {
        found.add(
            "failover.suspicion_ms",
            format!(
                "suspicion_ms = {} would suspect a primary after one lost ping: at least twice ping_ms ({})",
                times.suspicion_ms, times.ping_ms
            ),
        );
    }
    if times.lease_ms < times.ping_ms.saturating_mul(3) {
        found.add(
            "failover.lease_ms",
            format!("lease_ms = {} is too short to be renewed in time: at least three times ping_ms", times.lease_ms),
        );
    }
}

fn proxy(spec: &Spec, found: &mut Found) {
    let proxy = &spec.proxy;
    if let Some(host) = &proxy.host
        && let Err(why) = check_host(host)
    {
        found.add("proxy.host", why);
    }
    virtual_address(spec, found);
    found.bounds("proxy.hold_ms", proxy.hold_ms);
    found.bounds("proxy.max_connections", u64::from(proxy.max_connections));
    found.bounds("proxy.pool_size", u64::from(proxy.pool_size));
    found.bounds("proxy.pool_reserve", u64::from(proxy.pool_reserve));
    found.bounds("proxy.queue_ms", proxy.queue_ms);
    found.bounds("proxy.threads", u64::from(proxy.threads));
}

/// The address that goes with the primary is nobody's own, and leads to proxies.
fn virtual_address(spec: &Spec, found: &mut Found) {
    let Some(address) = spec.proxy.address else { return };
    let (key, own) = ("proxy.address", address.address.to_string());
    if let Some(node) = spec.nodes.iter().find(|node| node.host == own) {
        found.add(
            key,
            format!("address = \"{address}\" is the own address of {}: take one that no host has", node.name),
        );
    }
    if spec.proxy.host.as_deref() == Some(&own) {
        found.add(
            key,
            format!("address = \"{address}\" is that of the proxy on a host of its own: take one that no host has"),
        );
    }
    if !spec.proxy.on_nodes {
        found.add(key, "address leads to the nodes' own proxies: leave it out, or leave out on_nodes = false");
    }
}

/// Bytes; PostgreSQL itself takes what fits into a line for the shell.
const COMMAND_MAX: usize = 1000;

fn postgres(spec: &Spec, owned: &[&str], found: &mut Found) {
    let postgres = &spec.postgres;
    if let Some(dir) = &postgres.bin_dir
        && !dir.is_absolute()
    {
        found.add("postgres.bin_dir", format!("bin_dir = {:?} must be an absolute path", dir.display()));
    }
    for (name, value) in &postgres.parameters {
        let key = format!("postgres.parameters.{name}");
        let lower = name.to_ascii_lowercase();
        if owned.iter().any(|own| own.eq_ignore_ascii_case(name)) {
            let text = if lower == "archive_command" {
                "say archive_command = \"…\" under [postgres] itself: Mainstay watches it there".to_owned()
            } else {
                format!("parameter {lower:?} is Mainstay's own: it would break replication or take-over; remove it")
            };
            found.add(key, text);
        } else if !parameter_name(&lower) {
            let near = nearest(&lower, owned).map(|near| format!(" ({near:?} is Mainstay's own)")).unwrap_or_default();
            found.add(key, format!("{name:?} is not the name of a server parameter{near}"));
        } else if value.contains(['\n', '\r', '\0']) {
            found.add(key, format!("the value of {name:?} holds a line break"));
        } else if lower == "synchronous_commit" && spec.cluster.durability != Durability::Async && !waits(value) {
            let mode = spec.cluster.durability.as_str();
            found.add(
                key,
                format!(
                    "synchronous_commit = {value:?} would acknowledge commits that no replica holds, and durability is {mode}: take it out, or say \
                     durability = \"async\""
                ),
            );
        }
    }
    if let Some(command) = &postgres.archive_command {
        let wrong = if command.contains(['\n', '\r', '\0']) {
            Some("holds a line break")
        } else if command.len() > COMMAND_MAX {
            Some("is longer than 1000 bytes")
        } else if !command.contains("%p") {
            Some("names no %p, which stands for the file that is to be archived")
        } else {
            None
        };
        if let Some(wrong) = wrong {
            found.add("postgres.archive_command", format!("the command {wrong}"));
        }
    }
    for (place, line) in postgres.hba.iter().enumerate() {
        let first = line.split_whitespace().next().unwrap_or("");
        let known = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"].contains(&first);
        if !known || line.contains(['\n', '\r', '\0']) {
            found.add(
                format!("postgres.hba.{place}"),
                format!("{line:?} is not one line of pg_hba.conf, as \"hostssl all all 10.0.0.0/8 scram-sha-256\""),
            );
        }
    }
}

/// Does a commit wait until a replica has it on its disk? (`remote_write` waits for less, `local` and `off` for no replica.)
#[must_use]
pub fn waits(value: &str) -> bool {
    // As PostgreSQL reads them: words of a boolean may be shortened.
    let value = value.trim().to_ascii_lowercase();
    ["on", "remote_apply", "1"].contains(&value.as_str())
        || ["true", "yes"].iter().any(|word| !value.is_empty() && word.starts_with(&value))
}

/// Bounds of numbers that are there; the texts are checked where they are made.
fn requirements(spec: &Spec, found: &mut Found) {
    let Ok(table) = toml::Table::try_from(&spec.requirements) else { return };
    for (key, value) in &table {
        if let Some(number) = value.as_integer().and_then(|number| u64::try_from(number).ok()) {
            found.bounds(&format!("requirements.{key}"), number);
        }
    }
    found.0.extend(crate::requirements::check(&spec.requirements));
}

fn parameter_name(name: &str) -> bool {
    !name.is_empty()
        && name.split('.').all(|part| {
            part.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$')
        })
}
