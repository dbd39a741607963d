//! The hosts of a run: connections, the program on each, and running it there.

use super::ssh::{Become, Input, Remote, Ssh};
use crate::cli::Apply;
use crate::failure::{Failure, Outcome};
use crate::on_host::{PACKAGED, PROGRAM, STAGED, Task};
use mainstay_model::NodeId;
use mainstay_model::spec::Node;
use mainstay_plan::apply::facts::{Host, Unseen};
use ring::digest::{Context, SHA256};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::Poll;
use std::time::Duration;

/// How long carrying the program may take: some tens of megabytes over a slow line.
const CARRY: Duration = Duration::from_secs(900);
/// How long a look may take: a doctor's programs, connections and writes have their own times.
const LOOK: Duration = Duration::from_secs(90);
const SMALL: Duration = Duration::from_secs(30);
/// Receives a program beside its place; what an interrupted run left there goes.
const RECEIVE: &str = r#"set -e; umask 022; mkdir -p /usr/local/bin; cd /usr/local/bin; rm -f .mainstay.part.*; cat > .mainstay.part.$$; chmod 755 .mainstay.part.$$; sha256sum .mainstay.part.$$ | cut -c1-64; mv -f .mainstay.part.$$ .mainstay.staged"#;

/// The program that hosts are to have.
#[derive(Clone, Debug)]
pub(super) struct Program {
    path: PathBuf,
    /// Its hash.
    pub(super) sha: String,
    /// It is this program: of this machine's architecture.
    own: bool,
}

impl Program {
    /// Reads it: another one, or else this one, whatever became of its file.
    ///
    /// # Errors
    /// When it can not be read.
    pub(super) fn read(other: Option<PathBuf>) -> Outcome<Program> {
        let own = other.is_none();
        let path = other.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
        let wrong = |error: std::io::Error| Failure::usage(format!("the program {}: {error}", path.display()));
        let (mut file, mut hash) = (File::open(&path).map_err(wrong)?, Context::new(&SHA256));
        if !file.metadata().map_err(wrong)?.is_file() {
            // A device may have no end.
            return Err(Failure::usage(format!("the program {}: it is no file", path.display())));
        }
        let mut buffer = vec![0u8; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(wrong)? {
                0 => break,
                count => hash.update(buffer.get(..count).unwrap_or_default()),
            }
        }
        let sha = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Program { path, sha, own })
    }
}

/// The hosts.
pub(super) struct Fleet {
    ssh: Ssh,
    /// The program.
    pub(super) program: Program,
    password_file: Option<PathBuf>,
    /// Connections, by node.
    remotes: BTreeMap<NodeId, Remote>,
    /// Nodes on whose hosts the program is in its place.
    installed: Mutex<BTreeSet<NodeId>>,
    /// Nodes on whose hosts it was put beside it by this run.
    staged: Mutex<BTreeSet<NodeId>>,
    ways: Mutex<BTreeMap<NodeId, SocketAddr>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nobody panics while holding it; what it holds is whole in any case.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One of several works, and what came of it.
struct Each<F: Future> {
    work: Pin<Box<F>>,
    out: Option<F::Output>,
}

/// All of them side by side, each to its end, in this thread.
pub(super) async fn together<F: Future>(work: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut all: Vec<Each<F>> = work.into_iter().map(|work| Each { work: Box::pin(work), out: None }).collect();
    std::future::poll_fn(|context| {
        let mut waits = false;
        for each in all.iter_mut().filter(|each| each.out.is_none()) {
            match each.work.as_mut().poll(context) {
                Poll::Ready(out) => each.out = Some(out),
                Poll::Pending => waits = true,
            }
        }
        if waits { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    all.into_iter().filter_map(|each| each.out).collect()
}

impl Fleet {
    /// No connection yet.
    ///
    /// # Errors
    /// When nothing can be prepared.
    pub(super) fn new(options: &Apply, program: Program) -> Outcome<Fleet> {
        let ssh = Ssh::new(options.ssh_config.as_deref(), options.user.as_deref())?;
        Ok(Fleet {
            ssh,
            program,
            password_file: options.sudo_password.clone(),
            remotes: BTreeMap::new(),
            installed: Mutex::default(),
            staged: Mutex::default(),
            ways: Mutex::default(),
        })
    }

    /// Opens connections that are not open yet, and asks for a password if sudo wants one. Returns why hosts can not be reached.
    ///
    /// # Errors
    /// When there is no password.
    pub(super) async fn connect(&mut self, nodes: &[Node]) -> Outcome<BTreeMap<NodeId, Unseen>> {
        let new: Vec<&Node> = nodes.iter().filter(|node| !self.remotes.contains_key(&node.name)).collect();
        let begin = self.remotes.len();
        let ssh = &self.ssh;
        let opened = together(
            new.iter()
                .enumerate()
                .map(|(place, node)| async move { (node.name.clone(), ssh.open(begin + place, &node.host).await) }),
        )
        .await;
        let mut unseen = BTreeMap::new();
        for (node, opened) in opened {
            match opened.and_then(|remote| self.fits(remote)) {
                Ok(remote) => {
                    let there = if remote.packaged.is_some() { &remote.packaged } else { &remote.program };
                    if there.as_deref() == Some(self.program.sha.as_str()) {
                        lock(&self.installed).insert(node.clone());
                    }
                    self.remotes.insert(node, remote);
                }
                Err(why) => drop(unseen.insert(node, why)),
            }
        }
        if unseen.is_empty() {
            unseen.extend(self.passwords().await?);
        }
        Ok(unseen)
    }

    fn fits(&self, remote: Remote) -> Result<Remote, Unseen> {
        let packaged = remote.packaged.as_ref().filter(|sha| **sha != self.program.sha);
        if packaged.is_some() {
            return Err(Unseen {
                error: "the package mainstay is installed there, of another version than this program".into(),
                hint: "install the same package on every host and here, and run apply with that; or remove it there: apt-get remove mainstay".into(),
            });
        }
        let here = std::env::consts::ARCH;
        if !self.program.own || remote.machine.is_empty() || remote.machine == here {
            return Ok(remote);
        }
        Err(Unseen {
            error: format!("the host is {}, and this program is for {here}", remote.machine),
            hint: "name a program for it: --program FILE".into(),
        })
    }

    async fn passwords(&mut self) -> Outcome<BTreeMap<NodeId, Unseen>> {
        let needs = |remote: &Remote| remote.become_root == Become::SudoWith && remote.password.is_none();
        let names: Vec<String> =
            self.remotes.iter().filter(|(_, remote)| needs(remote)).map(|(node, _)| node.to_string()).collect();
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let known = self.remotes.values().find_map(|remote| remote.password.clone());
        let secret = match known {
            Some(secret) => secret,
            None => super::password::read(self.password_file.as_deref(), &names)?,
        };
        self.remotes
            .values_mut()
            .filter(|remote| needs(remote))
            .for_each(|remote| remote.password = Some(secret.clone()));
        // Tried at once with nothing that matters: a wrong one must not be found half-way.
        let tried = together(
            self.remotes
                .iter()
                .filter(|(node, _)| names.contains(&node.to_string()))
                .map(|(node, remote)| async move { (node.clone(), remote.try_password().await) }),
        )
        .await;
        let wrong = tried.into_iter().filter_map(|(node, tried)| Some((node, tried.err()?)));
        Ok(wrong
            .map(|(node, failure)| (node, Unseen { error: failure.error, hint: failure.hint.unwrap_or_default() }))
            .collect())
    }

    /// A host's connection.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn remote(&self, node: &NodeId) -> Outcome<&Remote> {
        self.remotes.get(node).ok_or_else(|| Failure::failed(format!("the host of {node} is not connected")))
    }

    /// Is its host connected?
    pub(super) fn has(&self, node: &NodeId) -> bool {
        self.remotes.contains_key(node)
    }

    /// Nodes whose hosts are connected.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.remotes.keys()
    }

    /// The program of a host, in its place.
    ///
    /// # Errors
    /// When the host is not connected.
    pub(super) fn program_of(&self, node: &NodeId) -> Outcome<&'static str> {
        self.remote(node).map(|remote| if remote.packaged.is_some() { PACKAGED } else { PROGRAM })
    }

    /// Where the program can be run there, carried there first if need be: beside its place, where nobody runs it by its name.
    async fn there(&self, node: &NodeId) -> Outcome<&'static str> {
        let remote = self.remote(node)?;
        if lock(&self.installed).contains(node) {
            return Ok(if remote.packaged.is_some() { PACKAGED } else { PROGRAM });
        }
        if lock(&self.staged).contains(node) {
            return Ok(STAGED);
        }
        if remote.staged.as_deref() != Some(self.program.sha.as_str()) {
            let sha = remote.run(&["sh", "-c", RECEIVE], Input::File(&self.program.path), CARRY).await?;
            if sha.trim() != self.program.sha {
                return Err(Failure::failed("the program did not arrive whole")
                    .hint("try again; is the disk of /usr/local full?"));
            }
        }
        lock(&self.staged).insert(node.clone());
        Ok(STAGED)
    }

    /// Runs a part of apply on a host.
    ///
    /// # Errors
    /// Why it failed there.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        node: &NodeId,
        verb: &str,
        told: &impl Serialize,
        at_most: Duration,
    ) -> Outcome<T> {
        let program = self.there(node).await?;
        let told = serde_json::to_string(told).map_err(|error| Failure::failed(error.to_string()))?;
        let words = [program, "host", verb, "--json"];
        let said = self.remote(node)?.run(&words, Input::Text(&told), at_most).await?;
        let line = said.lines().last().unwrap_or_default();
        serde_json::from_str(line)
            .map_err(|error| Failure::failed(format!("the answer of {node} is not understood: {error}")))
    }

    /// What a host shows.
    ///
    /// # Errors
    /// Why nothing is known of it.
    pub(super) async fn look(&self, node: &NodeId, task: &Task) -> Result<Host, Unseen> {
        let looked: Outcome<Host> = self.ask(node, "look", task, LOOK).await;
        let mut host =
            looked.map_err(|failure| Unseen { error: failure.error, hint: failure.hint.unwrap_or_default() })?;
        host.program = if lock(&self.installed).contains(node) {
            Some(self.program.sha.clone())
        } else {
            self.remotes.get(node).and_then(|remote| remote.program.clone())
        };
        Ok(host)
    }

    /// Puts the program in its place.
    ///
    /// # Errors
    /// Why not.
    pub(super) async fn install(&self, node: &NodeId) -> Outcome {
        let _: serde_json::Value = self.ask(node, "install", &(), SMALL).await?;
        lock(&self.installed).insert(node.clone());
        lock(&self.staged).remove(node);
        Ok(())
    }

    /// Ways to the agents through the hosts' connections, for a machine that reaches hosts by ssh alone. Made once.
    pub(super) async fn ways(&self, nodes: &[Node]) -> BTreeMap<NodeId, SocketAddr> {
        for node in nodes.iter().filter(|node| !lock(&self.ways).contains_key(&node.name)) {
            let Some(remote) = self.remotes.get(&node.name) else { continue };
            // A host that does not allow it is asked directly, as before.
            if let Ok(address) = remote.forward(&node.host, node.agent_port).await {
                lock(&self.ways).insert(node.name.clone(), address);
            }
        }
        self.known_ways()
    }

    /// Those that were made.
    pub(super) fn known_ways(&self) -> BTreeMap<NodeId, SocketAddr> {
        lock(&self.ways).clone()
    }

    /// Takes back what was put beside its place.
    pub(super) async fn tidy(&self) {
        let staged: Vec<NodeId> = std::mem::take(&mut *lock(&self.staged)).into_iter().collect();
        let remotes = staged.iter().filter_map(|node| self.remotes.get(node));
        // One that stays is used, or replaced, by the next run.
        drop(together(remotes.map(|remote| remote.run(&["rm", "-f", STAGED], Input::Text(""), SMALL))).await);
    }
}
