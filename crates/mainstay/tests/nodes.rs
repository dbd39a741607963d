//! Nodes come and go while a cluster runs, an agent is replaced under its server, and a store whose majority is lost is rebuilt. Starts
//! real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

use mainstay_model::api::{RecoverWish, SpecAnswer, SpecWish, Standing};
use mainstay_model::layout::{ClusterLayout, NodeLayout};
use mainstay_model::spec::{Node, Spec};
use mainstay_model::{ClaimState, NodeId, ServerState, Term};
use mainstay_net::{Authority, Credentials, Expect, Role, http, install_provider, write_file};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENT: Duration = Duration::from_secs(60);
const PROGRAM: &str = env!("CARGO_BIN_EXE_mainstay");

fn name(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// A cluster that is ended and removed whatever happens, and agents that this test started beside it.
struct Cluster {
    layout: ClusterLayout,
    nodes: Vec<Node>,
    own: Vec<Child>,
    runtime: tokio::runtime::Runtime,
    _home: tempfile::TempDir,
}

impl Cluster {
    fn up() -> Self {
        install_provider();
        let home = tempfile::Builder::new().prefix("ms").tempdir().unwrap();
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let layout = ClusterLayout::new(home.path().join("c"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut cluster = Self { layout, nodes: Vec::new(), own: Vec::new(), runtime, _home: home };
        assert!(cluster.run(&["up", "--nodes", "3", "--wait", "180", "--yes"]));
        cluster.nodes = cluster.file().nodes;
        cluster
    }

    fn run(&self, arguments: &[&str]) -> bool {
        let (verb, rest) = arguments.split_first().unwrap();
        let mut command = Command::new(PROGRAM);
        command.args([verb, "--dir", self.layout.dir().to_str().unwrap()]).args(rest).stdin(Stdio::null());
        command.status().unwrap().success()
    }

    fn file(&self) -> Spec {
        let text = std::fs::read_to_string(self.layout.config()).unwrap();
        mainstay_model::config::parse(&text, &[]).unwrap()
    }

    fn files(&self, node: &NodeId) -> NodeLayout {
        self.layout.node(node)
    }

    /// Asks one agent; `None`: it does not answer.
    fn ask(&self, node: &NodeId, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let known = self.nodes.iter().find(|known| known.name == *node).unwrap();
        let address = format!("{}:{}", known.host, known.agent_port).parse().unwrap();
        let cluster = self.file().cluster.name;
        let layout = &self.layout;
        let credentials =
            Credentials::load(&cluster, &layout.ca_cert(), &layout.admin_cert(), &layout.admin_key()).unwrap();
        let asked = http::request(&credentials, address, Expect::Node(node.clone()), (method, path), body, PATIENT / 4);
        let (status, bytes) = self.runtime.block_on(asked).ok()?;
        Some((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    fn get<T: DeserializeOwned>(&self, node: &NodeId, path: &str) -> Option<T> {
        let (status, body) = self.ask(node, "GET", path, None)?;
        (status == 200).then(|| serde_json::from_value(body).unwrap())
    }

    fn standing(&self, node: &NodeId) -> Option<Standing> {
        self.get(node, "/v1/standing")
    }

    /// Waits until this node stands so.
    fn wait(&self, node: &NodeId, what: &str, fits: impl Fn(&Standing) -> bool) -> Standing {
        let begun = Instant::now();
        loop {
            let standing = self.standing(node);
            if let Some(standing) = standing.clone().filter(|standing| fits(standing)) {
                return standing;
            }
            assert!(begun.elapsed() < PATIENT, "{node}: not {what} in time: {standing:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Changes the specification through this node; the status and the body of the answer.
    fn change(&self, node: &NodeId, change: impl FnOnce(&mut Spec)) -> (u16, Value) {
        let answer: SpecAnswer = self.get(node, "/v1/spec").unwrap();
        let mut spec = answer.stored.spec;
        change(&mut spec);
        let wish = SpecWish { parent: answer.stored.generation, spec, by: "test".into(), change: "nodes".into() };
        self.ask(node, "POST", "/v1/spec", Some(&json!(wish))).unwrap()
    }

    /// Files and certificates of a further node.
    fn make_node(&self, node: &NodeId, host: &str) {
        let files = self.files(node);
        let like = self.files(&self.nodes[0].name);
        let owner = std::fs::metadata(like.data()).unwrap();
        let owner = (owner.uid(), owner.gid());
        for (path, mode, servers) in [
            (files.dir().to_owned(), 0o711, false),
            (files.agent(), 0o700, false),
            (files.log(), 0o700, false),
            (files.diverged(), 0o700, false),
            (files.data(), 0o700, true),
            (files.conf(), 0o700, true),
            (files.run(), 0o700, true),
        ] {
            std::fs::create_dir(&path).unwrap();
            if servers {
                std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1)).unwrap();
            }
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let cluster = self.file().cluster.name;
        let authority = Authority::load(&cluster, &self.layout.ca_cert(), &self.layout.ca_key()).unwrap();
        let hosts = [host.to_owned()];
        self.give_proxy(node);
        let agent = authority.issue(&Role::Node(node.clone()), &hosts).unwrap();
        agent.write(&files.node_cert(), &files.node_key(), None, false).unwrap();
        let server = authority.issue(&Role::Server(node.clone()), &hosts).unwrap();
        server.write(&files.server_cert(), &files.server_key(), Some(owner), false).unwrap();
        let replication = authority.issue(&Role::Replication("mainstay_replicator".to_owned()), &[]).unwrap();
        replication.write(&files.replication_cert(), &files.replication_key(), Some(owner), false).unwrap();
        let ca = authority.cert_pem().as_bytes();
        write_file(&files.ca_cert(), ca, 0o644, None, false).unwrap();
        write_file(&files.server_ca(), ca, 0o644, Some(owner), false).unwrap();
    }

    /// The certificate of a node's own proxy.
    fn give_proxy(&self, node: &NodeId) {
        let cluster = self.file().cluster.name;
        let authority = Authority::load(&cluster, &self.layout.ca_cert(), &self.layout.ca_key()).unwrap();
        let files = self.files(node);
        let proxy = authority.issue(&Role::Proxy(node.to_string()), &[]).unwrap();
        proxy.write(&files.proxy_cert(), &files.proxy_key(), None, false).unwrap();
    }

    /// The process of a node's own proxy, once it answers; another one than `but`.
    fn proxy(&self, node: &NodeId, but: Option<i32>) -> i32 {
        let known = self.nodes.iter().find(|known| known.name == *node).unwrap();
        let address = (known.host.as_str(), self.file().proxy.write_port);
        let begun = Instant::now();
        loop {
            let pid = std::fs::read_to_string(self.files(node).proxy_lock()).ok();
            let pid = pid.and_then(|text| text.trim().parse().ok()).filter(|pid| Some(*pid) != but);
            if let (Some(pid), Ok(_)) = (pid, std::net::TcpStream::connect(address)) {
                return pid;
            }
            assert!(begun.elapsed() < PATIENT, "the proxy of {node} does not answer");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until this process has ended.
    fn gone(&self, pid: i32) {
        let begun = Instant::now();
        let runs = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
        };
        while runs() {
            assert!(begun.elapsed() < PATIENT, "process {pid} goes on");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn agent_pid(&self, through: &NodeId, node: &NodeId) -> Pid {
        let pid = self.status_of(through, node)["agent_pid"].as_i64().unwrap();
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }

    fn start_agent(&mut self, config: &Path, node: &NodeId) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.files(node).agent_log()).unwrap();
        let child = Command::new(PROGRAM)
            .args(["agent", "--config", config.to_str().unwrap(), "--node", node.as_str()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.own.push(child);
    }

    fn status_of(&self, through: &NodeId, node: &NodeId) -> Value {
        let (_, status) = self.ask(through, "GET", "/v1/status", None).unwrap();
        let nodes = status["nodes"].as_array().unwrap();
        nodes.iter().find(|shown| shown["name"] == node.as_str()).cloned().unwrap_or(Value::Null)
    }

    fn kill_node(&self, node: &NodeId, through: &NodeId) {
        let status = self.status_of(through, node);
        for key in ["agent_pid", "guard_pid", "server_pid"] {
            let pid = status[key].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).unwrap()));
            // A witness has neither guard nor server.
            let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                let log = std::fs::read_to_string(self.files(&node.name).agent_log()).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                println!(
                    "the end of the log of {}:\n{}",
                    node.name,
                    lines[lines.len().saturating_sub(25)..].join("\n")
                );
            }
        }
        let _ = self.run(&["down", "--destroy", "--yes"]);
        for child in &mut self.own {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Cluster {
    /// Makes a node, and starts its agent with a file that lists it.
    fn join(&mut self, new: &Node) {
        self.make_node(&new.name, &new.host);
        let mut spec = self.file();
        self.nodes.push(new.clone());
        spec.nodes.clone_from(&self.nodes);
        let config = self.layout.dir().join(format!("with-{}.toml", new.name));
        std::fs::write(&config, mainstay_model::config::render(&spec)).unwrap();
        self.start_agent(&config, &new.name);
    }
}

#[test]
fn a_node_comes_one_goes_and_the_store_is_rebuilt_from_the_last() {
    let mut cluster = Cluster::up();
    let (first, fourth) = (cluster.nodes[0].name.clone(), name("db4"));

    // A fourth node: its agent waits until the specification lists it.
    let like = cluster.nodes[0].clone();
    let new = Node {
        name: fourth.clone(),
        host: "127.0.0.9".to_owned(),
        dir: Some(cluster.files(&fourth).dir().to_owned()),
        ..like
    };
    cluster.join(&new);
    let waiting = cluster.wait(&fourth, "waiting", |standing| standing.store.joining);
    assert!(waiting.store.voters.is_empty() && waiting.copy.is_none(), "{waiting:?}");
    let (status, answer) = cluster.change(&first, |spec| spec.nodes.push(new));
    assert_eq!(status, 200, "{answer}");
    let joined = cluster.wait(&fourth, "a voter with a streaming copy", |standing| {
        standing.store.voters.len() == 4 && standing.server == ServerState::Standby && standing.copy.is_some()
    });
    assert!(joined.store.voters.contains(&fourth));
    let counts =
        |standing: &Standing| standing.record.as_ref().is_some_and(|(_, record)| record.members.contains_key(&fourth));
    cluster.wait(&first, "counting db4 for commits", counts);

    a_witness_comes(&mut cluster, &first);
    let gone = one_goes(&cluster, &first);
    the_primary_hands_over_at_its_end(&cluster, &fourth);
    two_of_three_are_lost(&cluster, &fourth, &gone);
    an_agent_is_replaced(&cluster, &fourth);
}

fn a_witness_comes(cluster: &mut Cluster, first: &NodeId) {
    let witness = name("w1");
    let new = Node {
        name: witness.clone(),
        host: "127.0.0.10".to_owned(),
        witness: true,
        dir: Some(cluster.files(&witness).dir().to_owned()),
        ..cluster.nodes[0].clone()
    };
    cluster.join(&new);
    cluster.wait(&witness, "waiting", |standing| standing.store.joining);
    let (status, answer) = cluster.change(first, |spec| spec.nodes.push(new));
    assert_eq!(status, 200, "{answer}");
    let votes = cluster.wait(&witness, "voting", |standing| standing.store.voters.len() == 5);
    assert_eq!((votes.copy, votes.server), (None, ServerState::Down));
    assert!(votes.record.is_some(), "it follows the record");
    assert!(!cluster.files(&witness).guard_socket().exists(), "a witness has nothing to guard");
}

fn one_goes(cluster: &Cluster, first: &NodeId) -> NodeId {
    // Not the primary, and not two.
    let standing = cluster.standing(first).unwrap();
    let primary = standing.record.unwrap().1.holder.unwrap();
    let (status, answer) = cluster.change(first, |spec| spec.nodes.retain(|node| node.name != primary));
    assert_eq!(status, 409, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("switch over"), "{answer}");
    let gone = [name("db1"), name("db2"), name("db3")].into_iter().find(|node| *node != primary).unwrap();
    let (status, answer) = cluster.change(&primary, |spec| spec.nodes.retain(|node| node.name != gone));
    assert_eq!(status, 200, "{answer}");
    cluster.wait(&primary, "without the removed node", |standing| {
        standing.store.voters.len() == 4
            && standing.record.as_ref().is_some_and(|(_, record)| !record.members.contains_key(&gone))
    });
    let removed = cluster.files(&gone).removed();
    let begun = Instant::now();
    while !removed.is_file() {
        assert!(begun.elapsed() < PATIENT, "{gone} does not end");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(cluster.files(&gone).data().join("PG_VERSION").is_file(), "its data stay");
    let again = Command::new(PROGRAM)
        .args(["agent", "--config", cluster.layout.config().to_str().unwrap(), "--node", gone.as_str()])
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(3), "a removed node does not start again");
    assert!(String::from_utf8_lossy(&again.stderr).contains("mainstay node add"));
    gone
}

fn the_primary_hands_over_at_its_end(cluster: &Cluster, through: &NodeId) {
    let holder = |standing: &Standing| standing.record.as_ref().and_then(|(_, record)| record.holder.clone());
    let before = cluster.wait(through, "with a holder", |standing| holder(standing).is_some());
    let (primary, term) = (holder(&before).unwrap(), before.record.unwrap().1.term);
    let agent = cluster.agent_pid(through, &primary);
    kill_process(agent, Signal::TERM).unwrap();
    let witness = name("w1");
    cluster.wait(&witness, "with another primary", |standing| {
        holder(standing).is_some_and(|holder| holder != primary)
            && standing.record.as_ref().is_some_and(|(_, record)| record.term > term)
    });
    cluster.gone(agent.as_raw_nonzero().get());
    let log = std::fs::read_to_string(cluster.files(&primary).agent_log()).unwrap();
    assert!(log.contains("another node is primary"), "it was not handed over but taken");
    // Started again by the supervisor or, if that did not start it, not needed any more.
    cluster.wait(through, "with an open primary", |standing| holder(standing).is_some());
}

/// All but one of those that are left are lost for ever; nothing starts them again.
fn two_of_three_are_lost(cluster: &Cluster, last: &NodeId, gone: &NodeId) {
    let (_, answer) = cluster.ask(last, "POST", "/v1/recover", Some(&recover(last))).unwrap();
    assert!(answer["error"].as_str().unwrap().contains("the store works"), "{answer}");
    let supervisor = std::fs::read_to_string(cluster.layout.supervisor_pid()).unwrap();
    kill_process(Pid::from_raw(supervisor.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    let lost = cluster.nodes.iter().map(|node| node.name.clone()).filter(|node| node != last && node != gone);
    for node in lost.collect::<Vec<_>>() {
        cluster.kill_node(&node, last);
    }
    cluster.wait(last, "without a store", |standing| standing.store.leader.is_none());
    // It may still seem to lead for a moment: then it says so, and is asked again.
    let begun = Instant::now();
    loop {
        let (status, answer) = cluster.ask(last, "POST", "/v1/recover", Some(&recover(last))).unwrap();
        if status == 202 {
            break;
        }
        assert!(begun.elapsed() < PATIENT, "{status} {answer}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let alone = cluster.wait(last, "primary of the rebuilt store", |standing| {
        standing.server == ServerState::Primary
            && standing.record.as_ref().is_some_and(|(_, record)| record.term > Term(1_000_000))
    });
    assert_eq!(alone.store.voters, std::slice::from_ref(last));
    assert_ne!(alone.store.group, 0);
    assert!(cluster.files(last).agent().join("raft.old-1").is_dir(), "the old store is kept");
}

/// Server and proxy of the node do not notice.
fn an_agent_is_replaced(cluster: &Cluster, last: &NodeId) {
    let (status, answer) = cluster.change(last, |spec| spec.proxy.on_nodes = true);
    assert_eq!(status, 200, "{answer}");
    let first_proxy = cluster.proxy(last, None);
    kill_process(Pid::from_raw(first_proxy).unwrap(), Signal::KILL).unwrap();
    let proxy = cluster.proxy(last, Some(first_proxy));
    let term = cluster.standing(last).unwrap().record.unwrap().1.term;
    // A file that can not be read is found out before the agent gives its place up.
    let config = cluster.layout.dir().join(format!("with-{last}.toml"));
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, "[cluster").unwrap();
    kill_process(cluster.agent_pid(last, last), Signal::HUP).unwrap();
    let log = || std::fs::read_to_string(cluster.files(last).agent_log()).unwrap();
    let begun = Instant::now();
    while !log().contains("not restarted") {
        assert!(begun.elapsed() < PATIENT, "a broken file is not found out");
        std::thread::sleep(Duration::from_millis(50));
    }
    std::fs::write(&config, text).unwrap();
    let before = cluster.status_of(last, last);
    kill_process(cluster.agent_pid(last, last), Signal::HUP).unwrap();
    let begun = Instant::now();
    let taken_over = || log().matches("the program on disk takes over\"").count();
    while taken_over() < 2 {
        assert!(begun.elapsed() < PATIENT, "the agent is not replaced");
        std::thread::sleep(Duration::from_millis(50));
    }
    // What its part of the store shows first may be older than what it had seen before.
    let after = cluster.wait(last, "back", |standing| {
        standing.server == ServerState::Primary
            && standing.record.as_ref().is_some_and(|(_, record)| record.term >= term)
    });
    assert_eq!(after.record.unwrap().1.term, term, "no take-over");
    assert_eq!(cluster.status_of(last, last)["server_pid"], before["server_pid"], "the same server");
    assert_eq!(cluster.proxy(last, None), proxy, "the same proxy");
    let (status, answer) = cluster.change(last, |spec| spec.proxy.on_nodes = false);
    assert_eq!(status, 200, "{answer}");
    cluster.gone(proxy);
}

fn recover(from: &NodeId) -> Value {
    json!(RecoverWish { from: from.clone(), lossy: false, term: Term(1_000_000), by: "test".into() })
}

/// Its agent comes back and is heard, its server can not: something else has its port. The term is given to somebody whose server runs.
#[test]
fn a_primary_whose_server_does_not_come_up_gives_its_term_back() {
    let cluster = Cluster::up();
    let holder = |standing: &Standing| standing.record.as_ref().and_then(|(_, record)| record.holder.clone());
    let counts = |standing: &Standing| standing.record.as_ref().is_some_and(|(_, record)| record.members.len() == 3);
    let before = cluster.wait(&cluster.nodes[0].name, "with three members", counts);
    let (primary, term) = (holder(&before).unwrap(), before.record.unwrap().1.term);
    let other = cluster.nodes.iter().find(|known| known.name != primary).unwrap().name.clone();
    let known = cluster.nodes.iter().find(|known| known.name == primary).unwrap();
    let address = format!("{}:{}", known.host, known.port);
    // The others are to hear of its agent before they suspect it.
    assert!(cluster.run(&["set", "failover.suspicion_ms=20000", "--yes"]));
    // All agents end, as when a rack loses power: nobody has seen the primary's server die.
    let pid = |node: &NodeId, key: &str| cluster.status_of(&other, node)[key].as_i64().unwrap();
    let mut pids = vec![pid(&primary, "server_pid")];
    pids.extend(cluster.nodes.iter().map(|node| pid(&node.name, "agent_pid")));
    for pid in pids {
        kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
    }
    let begun = Instant::now();
    let port = loop {
        match std::net::TcpListener::bind(&address) {
            Ok(listener) => break listener,
            Err(error) => assert!(begun.elapsed() < PATIENT, "{address}: {error}"),
        }
    };
    let after = cluster.wait(&other, "with another primary", |standing| {
        holder(standing).is_some_and(|holder| holder != primary)
            && standing
                .record
                .as_ref()
                .is_some_and(|(_, record)| record.term > term && record.state == ClaimState::Held)
    });
    println!(
        "{} holds the term {} ms after {primary}'s server died",
        holder(&after).unwrap(),
        begun.elapsed().as_millis()
    );
    let log = std::fs::read_to_string(cluster.files(&primary).agent_log()).unwrap();
    assert!(
        log.contains("this node holds the term and its server has not come up"),
        "it was taken, and not given back"
    );
    drop(port);
    cluster.wait(&primary, "a replica again", |standing| standing.server == ServerState::Standby && counts(standing));
}
