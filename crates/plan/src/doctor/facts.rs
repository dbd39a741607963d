//! What a host showed of itself and of the way to the others, as it was read. A fact that could not be read says why: it is never taken for fine.

use crate::stamp::Stamp;
use mainstay_model::NodeId;
use mainstay_model::etcd::EtcdStanding;
use serde::Serialize;

/// What was read, or why it could not be.
pub type Reading<T> = Result<T, String>;

/// How far this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It has no certificates yet.
    New,
    /// It has joined; its agent does not answer.
    Joined,
    /// Its agent answers.
    Running,
}

/// Everything that is known of one host.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// Which node it is.
    pub node: NodeId,
    /// How far it is.
    pub stage: Stage,
    /// Was its agent asked? If it could not be, and somebody listens on its port, it is taken for running.
    pub asked: Reading<()>,
    /// The file, as commands are to name it.
    pub config: String,
    /// The wall clock, in seconds since 1970.
    pub now: i64,
    /// The system.
    pub system: System,
    /// The engine's programs; nothing is asked of a witness.
    pub server: Reading<Server>,
    /// Does the user exist as which servers run, and may it pass to the node's directory?
    pub user: Reading<()>,
    /// The node's directories and keys that are there, or must be.
    pub places: Vec<Place>,
    /// Its ports.
    pub ports: Vec<OwnPort>,
    /// Memory and what the kernel does with it.
    pub memory: Memory,
    /// The volume of the data.
    pub volume: Volume,
    /// What lies in the data directory.
    pub data: Reading<Existing>,
    /// Its certificates, as many as there must be.
    pub papers: Vec<Paper>,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// Databases whose collation is of another version than the system's; `None`: there is no running server to ask.
    pub collations: Option<Reading<Vec<Collation>>>,
    /// The etcd that is the store, as this host reaches it with the node's files; `None`: the nodes themselves are the store.
    pub etcd: Option<Reading<EtcdStanding>>,
    /// The way of the virtual address; `None`: there is to be none, or not here.
    pub address: Option<Reading<AddressWay>>,
    /// A runbook that was to be looked at.
    pub runbook: Option<Book>,
}

/// What a host shows of the virtual address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressWay {
    /// The interface that would take it.
    pub interface: String,
    /// That interface's other addresses.
    pub own: Vec<std::net::Ipv4Addr>,
    /// This host has the address, by its agent's hand.
    pub held: bool,
    /// This host has the address, and not by its agent's hand: on the interface of this number.
    pub foreign: Option<u32>,
    /// Who answers for it in the network. Nobody does on the host that has it.
    pub answers: Option<Answering>,
    /// Who has it, as agents say; `None`: none was asked, or they go by another address.
    pub holders: Option<Vec<NodeId>>,
}

/// Who answers for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answering {
    /// The hardware address.
    pub hardware: String,
    /// The node whose own address has that hardware address too.
    pub node: Option<NodeId>,
}

/// The operating system.
#[derive(Clone, Debug)]
pub struct System {
    /// Who runs this, if it is not root.
    pub not_root: Option<String>,
    /// `6.1.0-13-amd64`.
    pub kernel: Reading<String>,
    /// `glibc 2.36`.
    pub libc: Reading<String>,
    /// Is the node's address one of this host's?
    pub address_here: bool,
    /// Who starts the agent again.
    pub keeper: Keeper,
    /// Is the wall clock kept by a time service?
    pub clock_kept: Reading<bool>,
    /// How many files the agent may have open (or, if it does not run, this program).
    pub open_files: Reading<u64>,
}

/// Who starts the agent again when it ends, or when the host starts.
#[derive(Clone, Debug)]
pub enum Keeper {
    /// systemd: the state of the agent's unit.
    Systemd(Reading<String>),
    /// The supervisor of a cluster that is on one machine.
    Supervisor,
    /// Nobody who is known: there is no systemd.
    Nobody,
}

/// The engine's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where they are.
    pub programs: String,
    /// Their major version.
    pub major: u64,
}

/// A directory or a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where.
    pub path: String,
    /// Whose it must be: name and number.
    pub owner: (String, u32),
    /// The mode that it must have.
    pub mode: u32,
    /// What is there; `None`: nothing.
    pub found: Reading<Option<Found>>,
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Whose it is.
    pub uid: u32,
    /// Its mode.
    pub mode: u32,
    /// A directory or a plain file, as expected; not a link.
    pub right_kind: bool,
}

/// A port of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPort {
    /// Its number.
    pub port: u16,
    /// Whose: `agent`, `server` …
    pub of: &'static str,
    /// Is it in use?
    pub busy: Reading<bool>,
}

/// Memory and what the kernel does with it.
#[derive(Clone, Debug)]
pub struct Memory {
    /// All of it, in kilobytes.
    pub total_kb: Reading<u64>,
    /// Swap, in kilobytes.
    pub swap_kb: Reading<u64>,
    /// `vm.swappiness`.
    pub swappiness: Reading<u64>,
    /// `vm.overcommit_memory`.
    pub overcommit: Reading<u64>,
    /// `vm.dirty_background_bytes`, or what the ratio makes of the memory.
    pub dirty_background_bytes: Reading<u64>,
    /// `vm.dirty_bytes`, or what the ratio makes of the memory.
    pub dirty_bytes: Reading<u64>,
    /// `vm.nr_hugepages`.
    pub huge_pages: Reading<u64>,
    /// The word in brackets of `transparent_hugepage/enabled`.
    pub transparent: Reading<String>,
    /// The size of `/dev/shm`.
    pub shared_bytes: Reading<u64>,
}

/// The volume of the data.
#[derive(Clone, Debug)]
pub struct Volume {
    /// The directory that was looked at: the node's, or what exists above it.
    pub at: String,
    /// Where it is mounted.
    pub mount: Reading<Mount>,
    /// Size and free space in bytes.
    pub space: Reading<(u64, u64)>,
    /// Files that may still be made, of how many; `(0, 0)` where the file system has no such bound.
    pub inodes: Reading<(u64, u64)>,
    /// What writing to it took; `None`: it was not asked for.
    pub writing: Option<Reading<Writing>>,
}

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub point: String,
    /// `ext4` …
    pub kind: String,
    /// Options of mount and file system.
    pub options: Vec<String>,
}

/// What small writes, each made durable, and one large one took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Writing {
    /// How many small ones.
    pub count: u64,
    /// Half of them were faster.
    pub median_us: u64,
    /// The slowest.
    pub worst_us: u64,
    /// Written in one go and made durable, in bytes a second.
    pub bytes_per_s: u64,
}

/// What lies in the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Nothing.
    Nothing,
    /// A database of this major version.
    Database(u64),
    /// Something else: the first names.
    Other(Vec<String>),
}

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paper {
    /// Its file.
    pub path: String,
    /// What is wrong with whom it names, its key or its authority; `None`: nothing is.
    pub state: Reading<PaperState>,
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaperState {
    /// When it ends, in seconds since 1970.
    pub until: i64,
    /// What does not fit: the name, the key beside it, the authority, a host that it should name.
    pub wrong: Vec<String>,
}

/// A runbook, and what it must fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Book {
    /// Its file.
    pub path: String,
    /// What it was made from; `None`: it does not say.
    pub made_from: Reading<Option<Stamp>>,
    /// What holds now.
    pub now: Stamp,
}

/// Another node.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name.
    pub node: NodeId,
    /// Its host.
    pub host: String,
    /// Each of its ports.
    pub ports: Vec<PeerPort>,
    /// The usual time of a connection, in microseconds, if any answered.
    pub round_trip_us: Option<u64>,
    /// What its agent told; `None`: this host has no certificate to ask with, or nobody listens there.
    pub told: Option<Reading<Told>>,
}

/// A port of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPort {
    /// Its number.
    pub port: u16,
    /// Whose.
    pub of: &'static str,
    /// What a connection to it led to.
    pub knock: Knock,
}

/// What a connection led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Knock {
    /// Somebody listens.
    Open,
    /// The host answers, nobody listens.
    Refused,
    /// Nothing came back, or the way is closed: why.
    Lost(String),
}

/// What an agent told of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its wall clock minus this host's, in milliseconds; `None`: an older agent.
    pub clock_ms: Option<i64>,
    /// How far the difference may be wrong: half of the question's time.
    pub about_ms: i64,
    /// Its C library; `None`: an older agent, or one that does not know.
    pub libc: Option<String>,
}

/// A database whose texts were sorted by another version than the system has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collation {
    /// The database.
    pub database: String,
    /// What it was made with.
    pub recorded: String,
    /// What the system has.
    pub actual: String,
}
