//! An existing server that the file names for a node (`adopt`): what its host shows of it, what stands in the way, and what is told before
//! anybody is asked (docs/adr/0037).

mod carried;
mod claim;
mod either;
mod standbys;
mod told;
mod words;

pub use carried::Habit;
pub use claim::{Claim, Seat, Seen};
pub use standbys::{slots_of_standbys, standbys};
pub use told::told;

use super::facts::{Inventory, Wanted};
use super::obstacles::Obstacle;
use crate::patroni::secrets::is_secret;
use carried::breaks;
use either::{answers, first, not_there, on_disk, places, runs_again};
use mainstay_model::config::quoted as toml;
use mainstay_model::spec::{Node, Spec};
use mainstay_model::{Durability, NodeId, SystemId};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The pace at which a copy is made, as a guess that is told as one.
const COPY_BYTES_S: u64 = 100_000_000;
/// For longer nobody's commits are held until a copy exists.
const BLOCKED_S: u64 = 60;
/// Room for the log that is written while a copy is made.
const SPARE: u64 = 256 << 20;
/// The smallest number that counts as much as the one that there was: more of these does no harm.
const CAPACITY: [&str; 7] = [
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_replication_slots",
    "max_wal_senders",
    "max_worker_processes",
    "superuser_reserved_connections",
];
/// What concerns the old server's own surroundings: its log files, its process, its sockets. Not what an application sees.
const SURROUNDINGS: [&str; 8] = [
    "bonjour_name",
    "dynamic_shared_memory_type",
    "external_pid_file",
    "lc_messages",
    "shared_memory_type",
    "stats_temp_directory",
    "syslog_facility",
    "syslog_ident",
];

/// Where the adoption stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Adopt {
    /// Its data lie in the node's directory.
    Taken,
    /// Its data lie where the file says, or should.
    Named(Box<Existing>),
    /// The adoption of this directory was begun, the data lie at `place`, and the file does not name it any more.
    Unnamed {
        /// Where its server had them.
        directory: String,
        /// Where they are.
        place: String,
    },
}

/// What a host shows of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Existing {
    /// Its data directory.
    pub directory: String,
    /// Why that is no directory with a database: not there, a link, something else.
    pub no_data: Option<String>,
    /// Its identity; `None`: its control file can not be read.
    pub system: Option<SystemId>,
    /// An adoption that was interrupted has noted this identity.
    pub noted: Option<SystemId>,
    /// Its major version.
    pub major: u64,
    /// Whose the directory is, if not the user's as which servers run here: theirs, and whose it must be.
    pub owner: Option<(String, String)>,
    /// Its mode, if a server would not start with it.
    pub mode: Option<u32>,
    /// Why it can not be moved into the node's directory by a rename.
    pub elsewhere: Option<String>,
    /// Links in it that lead out of it: tablespaces, the log. Name and target.
    pub links: Vec<(String, String)>,
    /// File systems that are mounted on it or in it.
    pub mounts: Vec<String>,
    /// Where the node's data will lie there is something already.
    pub occupied: Option<String>,
    /// Processes that work in it and are not the server's, in words.
    pub strangers: Vec<String>,
    /// What lets it be started by its own means again, if an interrupted adoption has taken that away: commands.
    pub undo: Vec<String>,
    /// A file in it makes it a standby.
    pub standby: bool,
    /// How it was left, in the words of `pg_controldata`.
    pub state: String,
    /// Its pages have checksums.
    pub checksums: bool,
    /// Its process.
    pub pid: Option<u32>,
    /// What starts it, in words.
    pub keepers: Vec<String>,
    /// Programs that run here and would start it again.
    pub managers: Vec<String>,
    /// What it answered, if it runs.
    pub told: Option<Result<Told, String>>,
}

/// What a running server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// It is a standby.
    pub in_recovery: bool,
    /// Where it listens.
    pub port: u16,
    /// `postgres` is a superuser that may log in.
    pub superuser: bool,
    /// Bytes of all databases.
    pub bytes: u64,
    /// Clients that are connected.
    pub clients: u64,
    /// Parameters that somebody has set.
    pub settings: Vec<Setting>,
    /// Lines of its files that it can not read, each with its place and why: what comes after them it does not show.
    #[serde(default)]
    pub unread: Vec<String>,
    /// `postgresql.auto.conf` was changed after it was last read.
    #[serde(default)]
    pub stale: bool,
    /// What roles and databases have set for their sessions.
    #[serde(default)]
    pub habits: Vec<Habit>,
    /// Access lines for other hosts, as text, and their method.
    pub access: Vec<(String, String)>,
    /// Replication slots.
    pub slots: Vec<String>,
    /// Standbys that stream from it.
    pub standbys: Vec<Stream>,
    /// It is a standby, and receives its primary's log.
    #[serde(default)]
    pub receives: bool,
    /// The slot through which it does so.
    #[serde(default)]
    pub slot: Option<String>,
    /// Where it asks for that, in words.
    #[serde(default)]
    pub source: Option<String>,
    /// Its own end of the connection: whom it follows sees a standby there.
    #[serde(default)]
    pub end: Option<SocketAddr>,
    /// Transactions that are prepared.
    pub prepared: u64,
    /// Roles whose passwords are MD5 hashes.
    pub md5: Vec<String>,
    /// There is a role `app`.
    pub app: bool,
}

/// A standby as the server sees it from which it streams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// What it calls itself.
    pub name: String,
    /// Where its connection comes from; without: the server's own socket.
    pub at: Option<SocketAddr>,
}

impl Stream {
    /// Is it this one?
    fn is(&self, standby: &Told) -> bool {
        self.at.is_some() && self.at == standby.end
    }
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.at {
            Some(at) => write!(f, "{} at {}", self.name, at.ip()),
            None => write!(f, "{} at its socket", self.name),
        }
    }
}

/// A parameter that somebody has set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value, as it would be written.
    pub value: String,
    /// That is what the program has built in.
    pub built_in: bool,
    /// It stands in `postgresql.auto.conf`, which goes with the data.
    pub automatic: bool,
    /// What stands in a file is not what the server runs with: it waits for a restart, can not be, or the command line says something else.
    #[serde(default)]
    pub pending: bool,
    /// What a server of ours has, if it sets it and the file does not.
    pub ours: Option<String>,
    /// Mainstay sets it itself.
    pub owned: bool,
}

/// What becomes of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It stays as it is, or as good.
    Stays,
    /// The file says what it is to be.
    Decided,
    /// It is gone, and nobody's query sees that.
    Goes,
    /// Mainstay sets it itself.
    Owned,
    /// Somebody must say what it is to be.
    Open,
    /// It goes with the data, counts before the file, and must not: the file's promises would not be kept, or what counts is not what was seen.
    Refused,
}

fn fate(setting: &Setting, spec: &Spec) -> Fate {
    let name = setting.name.to_ascii_lowercase();
    let in_file = spec.postgres.parameters.keys().any(|known| known.eq_ignore_ascii_case(&name));
    if setting.owned {
        return Fate::Owned;
    }
    // The file's line has no effect beside it; it is the data's.
    if setting.automatic {
        return if setting.pending || breaks(&name, &setting.value) { Fate::Refused } else { Fate::Stays };
    }
    if in_file {
        return Fate::Decided;
    }
    if setting.pending {
        return Fate::Open;
    }
    if name.starts_with("log_") || name.starts_with("ssl_") || SURROUNDINGS.contains(&name.as_str()) {
        return Fate::Goes;
    }
    match &setting.ours {
        Some(ours) if same_value(&name, ours, &setting.value) => Fate::Stays,
        None if setting.built_in => Fate::Stays,
        _ => Fate::Open,
    }
}

fn same_value(name: &str, ours: &str, theirs: &str) -> bool {
    if CAPACITY.contains(&name)
        && let (Ok(ours), Ok(theirs)) = (ours.parse::<u64>(), theirs.parse::<u64>())
    {
        return ours >= theirs;
    }
    let utc = |zone: &str| ["UTC", "Etc/UTC"].iter().any(|known| known.eq_ignore_ascii_case(zone));
    ours.eq_ignore_ascii_case(theirs) || (name == "timezone" && utc(ours) && utc(theirs))
}

fn of<'a>(settings: &'a [Setting], spec: &Spec, wanted: Fate) -> Vec<&'a Setting> {
    settings.iter().filter(|setting| fate(setting, spec) == wanted).collect()
}

/// The server that is still to be brought: on which node, and what is known of it. `None`: nothing is adopted, or it was done.
#[must_use]
pub fn pending<'a>(wanted: &Wanted<'_>, inventory: &'a Inventory) -> Option<(NodeId, &'a Existing)> {
    // Once a cluster has its data, what the line said is over.
    if has_data(inventory) {
        return None;
    }
    let node = wanted.spec.founder()?;
    match inventory.host(node)?.adopt.as_ref()? {
        Adopt::Named(existing) => Some((node.clone(), existing)),
        Adopt::Taken | Adopt::Unnamed { .. } => None,
    }
}

/// Is there a first copy? Nodes have noted its identity, also while none of them is the primary.
fn has_data(inventory: &Inventory) -> bool {
    inventory.primary.is_some() || identities(inventory).next().is_some()
}

fn identities(inventory: &Inventory) -> impl Iterator<Item = SystemId> {
    inventory.hosts.values().flatten().filter_map(|host| host.identity)
}

/// An adoption that came too late, or whose line was taken out half-way: clients would be led to a cluster without the data that wait there.
fn passed_over(inventory: &Inventory, node: &Node, found: &mut Vec<Obstacle>) {
    match inventory.host(&node.name).and_then(|host| host.adopt.as_ref()) {
        Some(Adopt::Unnamed { directory, place }) => found.push(Obstacle::on(
            &node.name,
            format!("the server of {directory} was to be adopted, and the file does not say so any more: its data are in {place}"),
            format!(
                "put the line back: adopt = {} (adopt_standby, if it was a standby); or hand the data back first, as docs/adopt.md says under \"The way back\", and remove agent/adopted.json from the node's directory",
                toml(directory)
            ),
        )),
        Some(Adopt::Named(existing)) if has_data(inventory) && existing.no_data.is_none() => {
            // What is noted here was adopted; a directory that is there again was made later.
            let known = |system: SystemId| identities(inventory).any(|known| known == system);
            if existing.system.is_some_and(known) || existing.noted.is_some_and(known) {
                return;
            }
            found.push(Obstacle::on(
                &node.name,
                format!("the cluster has other data already: the server of {} comes too late to be adopted, and was not touched", existing.directory),
                "to leave it as it is, take `adopt` out of the file; for a cluster of its data, give this one up first (mainstay status shows what it holds) and make a new one",
            ));
        }
        _ => {}
    }
}

/// What stands in the way of it.
pub(super) fn obstacles(wanted: &Wanted<'_>, inventory: &Inventory, node: &Node, found: &mut Vec<Obstacle>) {
    passed_over(inventory, node, found);
    standbys::obstacles(wanted, inventory, node, found);
    let Some((_, existing)) = pending(wanted, inventory).filter(|(name, _)| *name == node.name) else { return };
    let mut say = |what: String, mend: String| found.push(Obstacle::on(&node.name, what, mend));
    let dir = &existing.directory;
    if existing.no_data.is_some() {
        return not_there(existing, "adopt", &mut say);
    }
    on_disk(wanted, inventory, node, existing, false, &mut say);
    places(existing, &mut say);
    runs_again(existing, &mut say);
    let stopped = (
        format!("the server of {dir} does not run: what is to be kept of it can not be seen"),
        first(existing, "start it by its own means (pg_ctlcluster, systemctl), then apply again"),
    );
    if let Some(told) = answers(existing, stopped, &mut say) {
        as_told(wanted, inventory, existing, told, &mut say);
    }
}

fn slots(all: &[String], dir: &str, known: &[String], say: &mut impl FnMut(String, String)) {
    for slot in all.iter().filter(|slot| !known.contains(slot)) {
        let mend = format!("when nobody needs it any more: select pg_drop_replication_slot({})", quoted(slot));
        say(format!("the server of {dir} has the replication slot {slot}, which would keep its log for nobody"), mend);
    }
}

fn as_told(
    wanted: &Wanted<'_>,
    inventory: &Inventory,
    existing: &Existing,
    told: &Told,
    say: &mut impl FnMut(String, String),
) {
    let (spec, dir) = (wanted.spec, &existing.directory);
    let followers = standbys::followers(wanted, inventory, existing);
    if !told.superuser {
        say(
            format!("the server of {dir} has no superuser called postgres that may log in"),
            "as its superuser: create role postgres superuser login".into(),
        );
    }
    standbys::left_behind(existing, told, &followers, say);
    // Those go once the standbys follow as replicas.
    slots(&told.slots, dir, &standbys::slots_of_standbys(wanted, inventory), say);
    if told.prepared > 0 {
        let mend = "commit or roll back each: select gid from pg_prepared_xacts";
        say(format!("{} prepared transactions wait in the server of {dir}", told.prepared), mend.into());
    }
    let open = of(&told.settings, spec, Fate::Open);
    if !open.is_empty() {
        let (shown, lines): (Vec<String>, Vec<String>) =
            open.iter().map(|setting| (words::setting(setting), words::line(setting, spec))).unzip();
        say(
            format!("the server of {dir} has parameters that the file does not mention: {}", shown.join(", ")),
            format!("write under [postgres.parameters] what each is to be; as they are now:\n{}", lines.join("\n")),
        );
    }
    carried::files(told, dir, say);
    carried::automatic(spec, told, dir, say);
    carried::habits(told, dir, say);
    access(spec, &told.access, dir, say);
    if !told.md5.is_empty() && !spec.postgres.hba.iter().any(|line| line.split_whitespace().any(|word| word == "md5")) {
        say(
            format!("roles have passwords of the kind MD5, with which the usual access lines let nobody in: {}", told.md5.join(", ")),
            "set each password anew with password_encryption = scram-sha-256; or write a line with md5 into hba under [postgres]".into(),
        );
    }
    if blocks(spec, followers.len()) && copy_s(told.bytes) > BLOCKED_S {
        say(
            format!("with durability strict no commit would return before the first copy is made, about {} min for {}", copy_s(told.bytes).div_ceil(60), size(told.bytes)),
            "write durability = \"available\" under [cluster] for now, and once the replicas stream: mainstay set cluster.durability=strict (and in the file)".into(),
        );
    }
    if told.app && wanted.authority.is_none() {
        say(
            format!("the server of {dir} has a role app, as which Mainstay proves writes: its password is not known here"),
            "mainstay pki init --config FILE, then write that role's password into secrets/app.password beside the file (does nobody know it any more: alter role app password '…', and that one); the role stays as it is".into(),
        );
    }
}

fn access(spec: &Spec, lines: &[(String, String)], dir: &str, say: &mut impl FnMut(String, String)) {
    let strange: Vec<&str> =
        lines.iter().filter(|(_, method)| !by_password(method)).map(|(line, _)| line.as_str()).collect();
    if strange.is_empty() || !spec.postgres.hba.is_empty() {
        return;
    }
    let shown: Vec<String> = strange.iter().map(|line| words::access(line)).collect();
    let (secret, open): (Vec<&str>, Vec<&str>) = strange.iter().partition(|line| is_secret("", line));
    let lines: Vec<String> = open.iter().map(|line| toml(line)).collect();
    let kept = if secret.is_empty() {
        ""
    } else {
        "\nA line that holds a password is not among them: the file is read by many. Let those clients come by their own passwords"
    };
    say(
        format!("the server of {dir} lets clients in by other ways than passwords: {}", shown.join("; ")),
        format!(
            "write under [postgres] which lines are to be (the usual ones come after them):\nhba = [{}]{kept}",
            lines.join(", ")
        ),
    );
}

/// How long a copy takes that is made at a usual pace, in seconds.
fn copy_s(bytes: u64) -> u64 {
    bytes / COPY_BYTES_S
}

/// Does no commit return before a copy is made, while clients wait? Not if as many standbys come along as must confirm.
fn blocks(spec: &Spec, standbys: usize) -> bool {
    spec.cluster.durability == Durability::Strict && spec.sync_replicas() as usize > standbys
}

/// A copy must fit where it is to be made.
pub(super) fn room(wanted: &Wanted<'_>, inventory: &Inventory, node: &Node, found: &mut Vec<Obstacle>) {
    let Some((founder, Existing { told: Some(Ok(told)), .. })) = pending(wanted, inventory) else { return };
    let needed = told.bytes + told.bytes / 10 + SPARE;
    let there = inventory.host(&node.name).is_some_and(|host| host.adopt == Some(Adopt::Taken));
    if there || standbys(wanted, inventory).iter().any(|(name, _)| *name == node.name) {
        return;
    }
    let free = inventory.host(&node.name).and_then(|host| host.free);
    if let Some(free) = free.filter(|free| !node.witness && node.name != founder && *free < needed) {
        let dir = wanted.spec.node_dir(node);
        let what = format!(
            "the copy does not fit: {} are free at {}, and it takes {}",
            size(free),
            dir.display(),
            size(needed)
        );
        found.push(Obstacle::on(
            &node.name,
            what,
            "free some space, enlarge the volume, or give the node a `dir` on a larger one",
        ));
    }
}

fn by_password(method: &str) -> bool {
    ["scram-sha-256", "md5", "password", "reject"].contains(&method)
}

/// Text for SQL.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999_999_999 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}
