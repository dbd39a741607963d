//! What is wrong with the cluster now: each condition has a stable name, its evidence, and a way out.
//!
//! | Name | Severity | When |
//! |---|---|---|
//! | `no-primary` | critical | no node is an open primary |
//! | `writes-blocked` | critical | strict: too few replicas confirm, commits wait |
//! | `degraded` | warning | available: commits are acknowledged with fewer replicas than wanted |
//! | `async` | info | commits never wait, by the operator's wish |
//! | `paused` | warning | take-over, restart and rejoin by themselves are switched off |
//! | `node-unreachable` | warning | a node's agent does not answer, and why |
//! | `node-stays-out` | critical | a node refuses to take part, and why |
//! | `superseded` | critical | a node is of a store that was rebuilt without it |
//! | `two-agents-one-name` | critical | two processes speak under one name |
//! | `server-silent` | warning | a server gives no sign of life |
//! | `replica-not-streaming` | warning | a replica does not stream |
//! | `replica-lagging` | warning | a replica is further behind than readers are sent to |
//! | `certificate-expired`, `certificate-expiring` | critical, warning | a certificate has ended, or ends within 30 days |
//! | `certificate-not-taken` | warning | changed certificate files of a running agent can not be used |
//! | `proxy-down` | warning | a node's own proxy does not stay up |
//! | `proxy-paused` | warning | somebody at a proxy's console holds its clients' work back |
//! | `address-missing` | critical | the primary's host has not the virtual address |
//! | `address-troubled` | warning | the primary's host has the virtual address, and can not announce it, or prolong it |
//! | `address-doubled` | warning | several hosts have the virtual address, by their agents or by somebody else's hand |
//! | `clock-off` | warning | a node's wall clock differs by more than two seconds |
//! | `disk-nearly-full` | warning, critical | little room, nearly none, on a data volume (`Room`) |
//! | `file-older`, `file-differs` | info, warning | a node's file is not what is in force |
//! | `restart-pending` | info | server parameters wait for a restart |
//! | `store-no-quorum` | critical | no node knows a leader of the store, or reaches the etcd that it is |
//! | `store-member-lost` | warning | a member of the store does not work or does not answer |
//! | `store-distrusted` | critical | an etcd shows less than nodes have seen, or another cluster's keys |
//! | `store-alarm` | critical | an etcd has raised an alarm, and takes no writes |
//! | `store-cut-off` | warning | a node does not reach the etcd that others reach |
//! | `archive-lagging` | warning | the log can not be archived, or is archived late |
//! | `archive-conflict` | critical | the archive holds other content under a name of the log, or the log is damaged |
//! | `backup-overdue` | warning | a backup should have begun long ago, by the schedule |
//! | `backup-corrupt` | critical | the newest backup holds blocks that were damaged on the server |
//! | `old-data-kept` | info | a node keeps the data of before a restore in place, or a copy for one that did not come about |
//! | `backup-unscheduled` | warning | much log is archived, and nothing makes backups by itself |
//! | `drill-failed` | critical | the last restore drill did not bring back a sound copy |
//! | `drill-overdue` | warning | a restore drill should have been held long ago, by the schedule |
//! | `archive-gap` | critical | a part of the log is neither archived nor on the primary any more |
//! | `runbook-outdated` | warning | the specification has changed since the last runbook was made |

mod etcd;
#[cfg(test)]
mod names;
mod proxies;
mod runbook;
mod vault;

use crate::shelves::Shelf;
use crate::status::{LocalStatus, rfc3339};
use mainstay_model::layout::RESTORED_PREFIX;
use mainstay_model::record::Durability;
use mainstay_model::spec::{Node, Spec};
use mainstay_model::status::Problem;
use mainstay_model::stored_spec::{FileState, RunbookMade};
use mainstay_model::vault::{ArchiveState, BackupState};
use mainstay_model::{ClaimState, NodeId, Room, ServerState};
use mainstay_net::reason::says_expired;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A wall clock that differs by more than this, beyond the round trip, is off. Milliseconds.
const CLOCK_MS: i64 = 2000;
/// A certificate that ends sooner is said. Seconds.
const EXPIRING: i64 = 30 * 86_400;
/// For a volume whose size is not known: an agent of an earlier version.
const SIZE_UNKNOWN: u64 = 10 << 30;
/// The way out when the authority itself ends.
const NEW_AUTHORITY: &str = "`mainstay pki init` beside a copy of the file makes another authority; every host, proxy and person joins it with `mainstay join \
                             --again`, then `systemctl reload mainstay-agent` on each node";

/// What the asking agent knows beside the answers.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Why a node did not answer.
    pub unreachable: BTreeMap<NodeId, String>,
    /// Nodes under whose name two processes speak, and from where they are connected.
    pub doubled: BTreeMap<NodeId, Vec<IpAddr>>,
    /// How far the operator's own command has brought the log.
    pub command: Option<ArchiveState>,
    /// The repositories, and how the archive stands in each.
    pub shelves: Vec<Shelf>,
    /// How backups stand.
    pub backup: BackupState,
    /// What the last runbook was made from, if one was.
    pub runbook: Option<RunbookMade>,
    /// The asking agent's wall clock, milliseconds since 1970.
    pub now_ms: u64,
}

struct List(Vec<Problem>);

/// What is being looked at.
struct Look<'a> {
    spec: &'a Spec,
    answers: &'a BTreeMap<NodeId, LocalStatus>,
    primary: Option<&'a LocalStatus>,
    beside: &'a Beside,
}

impl List {
    fn add(&mut self, (name, severity): (&str, &str), evidence: String, hint: impl Into<String>) {
        self.dated((name, severity), evidence, hint, None);
    }

    fn dated(&mut self, (name, severity): (&str, &str), evidence: String, hint: impl Into<String>, since: Option<u64>) {
        let (name, severity, hint) = (name.to_owned(), severity.to_owned(), hint.into());
        self.0.push(Problem { name, severity, evidence, hint, since: since.map(rfc3339) });
    }
}

/// Everything that is wrong, the gravest of the whole cluster first, then node by node.
#[must_use]
pub fn find(
    spec: &Spec,
    answers: &BTreeMap<NodeId, LocalStatus>,
    primary: Option<&LocalStatus>,
    beside: &Beside,
) -> Vec<Problem> {
    let look = Look { spec, answers, primary, beside };
    let mut list = List(Vec::new());
    look.writes(&mut list);
    look.wishes(&mut list);
    look.store(&mut list);
    look.archive(&mut list);
    look.archive_command(&mut list);
    look.backups(&mut list);
    look.drills(&mut list);
    look.runbook(&mut list);
    for node in &spec.nodes {
        look.node(node, &mut list);
    }
    look.proxies(&mut list);
    look.address(&mut list);
    list.0
}

impl Look<'_> {
    fn writes(&self, list: &mut List) {
        match self.primary {
            None => {
                let newest = self.answers.values().max_by_key(|answer| answer.term);
                if let Some(waits) = newest.and_then(|answer| self.waits_for_replicas(answer.claim.as_ref())) {
                    let hint = "bring a replica back; `mainstay set cluster.durability=available` lets writes go on, less protected";
                    list.add(("no-primary", "critical"), waits, hint);
                    return self.mode(list);
                }
                let claim = match newest.and_then(|answer| answer.claim.clone()) {
                    None => "the store shows no record".to_owned(),
                    Some((ClaimState::Founding, _)) => "the first copy is being made".to_owned(),
                    Some((ClaimState::Free, _)) => "the last primary has given the term back".to_owned(),
                    Some((_, None)) => "the record names no holder of the term".to_owned(),
                    Some((ClaimState::Electing, Some(holder))) => format!("{holder} stands for election"),
                    Some((ClaimState::Held, Some(holder))) => format!("{holder} holds the term"),
                };
                let hint =
                    "`mainstay why` tells what each node waits for; with too few nodes up, start the others first";
                list.add(("no-primary", "critical"), format!("no node is an open primary; {claim}"), hint);
            }
            Some(primary) if primary.blocked => {
                let evidence =
                    format!("{} has too few replicas that confirm: commits wait (durability strict)", primary.node);
                let hint = "bring a replica back; `mainstay set cluster.durability=available` lets writes go on, less protected";
                list.add(("writes-blocked", "critical"), evidence, hint);
            }
            Some(primary) if primary.degraded => {
                let evidence = format!("{} acknowledges commits with fewer replicas than wanted", primary.node);
                let hint = "bring a replica back: those that do not confirm can not take over until they do; what was acknowledged is \
                            lost only if the primary's disk is lost";
                list.add(("degraded", "warning"), evidence, hint);
            }
            Some(_) => {}
        }
        self.mode(list);
    }

    /// The holder of the term may not open: too few others are there to hold the end of its log first.
    fn waits_for_replicas(&self, claim: Option<&(ClaimState, Option<NodeId>)>) -> Option<String> {
        let Some((ClaimState::Held, Some(holder))) = claim else { return None };
        let needed = self.spec.sync_replicas();
        let data = |node: &NodeId| self.spec.node(node).is_some_and(|node| !node.witness);
        let others = self.answers.keys().filter(|node| *node != holder && data(node)).count();
        let strict = self.spec.cluster.durability == Durability::Strict;
        let led = self.answers.values().any(etcd::store_works);
        (strict && led && self.answers.contains_key(holder) && others < needed as usize).then(|| {
            format!("no node is an open primary; {holder} holds the term and {others} of {needed} replicas that a commit needs answer (durability strict)")
        })
    }

    fn mode(&self, list: &mut List) {
        if self.spec.cluster.durability == Durability::Async {
            let evidence = "durability async: a take-over may lose the newest commits, and reports them".to_owned();
            list.add(
                ("async", "info"),
                evidence,
                "`mainstay set cluster.durability=strict` (or available) lets commits wait for replicas",
            );
        }
    }

    fn wishes(&self, list: &mut List) {
        let newest = self.answers.values().max_by_key(|answer| answer.generation);
        if let Some(paused) = newest.and_then(|answer| answer.paused.as_ref()) {
            let note = if paused.note.is_empty() { String::new() } else { format!(" ({})", paused.note) };
            let evidence =
                format!("{} paused the cluster{note}: no take-over, restart or rejoin happens by itself", paused.by);
            list.dated(("paused", "warning"), evidence, "`mainstay resume` ends it", Some(paused.wall_ms));
        }
    }

    fn store(&self, list: &mut List) {
        if self.spec.store.is_etcd() {
            return etcd::find(self.answers, list);
        }
        let (known, all) = (self.answers.len(), self.spec.nodes.len());
        if known > 0 && self.answers.values().all(|answer| answer.store_leader.is_none()) {
            let evidence = format!("none of the {known} nodes that answer (of {all}) knows a leader of the store");
            let hint = if known * 2 > all {
                "if it does not pass in seconds: are the agents' ports open between the nodes?"
            } else {
                "start more nodes; if a majority is lost for ever: `mainstay recover --from NODE`"
            };
            list.add(("store-no-quorum", "critical"), evidence, hint);
        }
        let members: BTreeSet<&NodeId> =
            self.answers.values().filter_map(|answer| answer.store.as_ref()).flat_map(|store| &store.voters).collect();
        for lost in members.iter().filter(|node| !self.answers.contains_key(**node)) {
            let (up, count) = (members.iter().filter(|node| self.answers.contains_key(**node)).count(), members.len());
            let evidence = format!("{lost} votes in the store and does not answer: {up} of {count} voters are up");
            // A change of nodes is itself a write of the store.
            let hint = if up * 2 > count {
                format!(
                    "start it; if its host is lost: `mainstay node replace {lost}`, or `mainstay node remove {lost}`"
                )
            } else {
                "start it: without a majority no node can be replaced or removed; if a majority is lost for ever: `mainstay recover --from \
                 NODE`"
                    .to_owned()
            };
            list.add(("store-member-lost", "warning"), evidence, hint);
        }
        for answer in self.answers.values() {
            let Some(failure) = answer.store.as_ref().and_then(|store| store.failure.as_ref()) else { continue };
            let evidence = format!("{}: its part of the store does not work: {failure}", answer.node);
            let hint = format!(
                "was its volume full: make room, it starts anew by itself; else mend the disk and restart its agent (`systemctl restart \
                 mainstay-agent`), or let it join anew: `mainstay node replace {}`",
                answer.node
            );
            list.add(("store-member-lost", "warning"), evidence, hint);
        }
    }

    fn node(&self, node: &Node, list: &mut List) {
        if let Some(places) = self.beside.doubled.get(&node.name) {
            let places: Vec<String> = places.iter().map(ToString::to_string).collect();
            let from = if places.is_empty() { String::new() } else { format!(", from {}", places.join(" and ")) };
            let evidence = format!("{}: two agents speak under this name, in turn{from}", node.name);
            let hint = "end one of them: which hosts run `mainstay agent` with this --node?";
            list.add(("two-agents-one-name", "critical"), evidence, hint);
        }
        let Some(answer) = self.answers.get(&node.name) else {
            self.unreachable(node, list);
            return;
        };
        self.standing(answer, list);
        self.lag(answer, list);
        self.host(answer, list);
        certificates(answer, self.now_seconds(), list);
        if let Some(why) = &answer.proxy_down {
            let evidence = format!("{}: its proxy does not stay up: {why}", node.name);
            let hint = "put that right there: it is started again by itself; clients connect to another node's proxy meanwhile";
            list.add(("proxy-down", "warning"), evidence, hint);
        }
        file(answer, list);
    }

    fn now_seconds(&self) -> i64 {
        i64::try_from(self.beside.now_ms / 1000).unwrap_or(i64::MAX)
    }

    fn unreachable(&self, node: &Node, list: &mut List) {
        let why = self.beside.unreachable.get(&node.name).map(|why| format!(": {why}")).unwrap_or_default();
        let evidence = format!("{}: its agent at {}:{} does not answer{why}", node.name, node.host, node.agent_port);
        let (expired, ours) = (says_expired(&why), why.contains("our certificate"));
        let hint = if expired && ours {
            format!(
                "the certificate of the node that was asked has ended: renew that one; or is the clock of {} wrong?",
                node.name
            )
        } else if expired {
            renew(&node.name)
        } else if why.contains("another cluster") || why.contains("is not of the cluster") {
            "one of the two joined another authority: `mainstay join --again` with a token of this one".to_owned()
        } else if why.contains("refused") {
            "start its agent: `systemctl status mainstay-agent` there says why it ended".to_owned()
        } else {
            "is its host up, and its agent's port open from here?".to_owned()
        };
        list.add(("node-unreachable", "warning"), evidence, hint);
        // Our own shows itself among our certificates.
        if expired && !ours {
            let evidence = format!("{}{why}", node.name);
            list.add(("certificate-expired", "critical"), evidence, renew(&node.name));
        }
    }

    fn standing(&self, answer: &LocalStatus, list: &mut List) {
        let (name, since) = (&answer.node, Some(answer.since_ms));
        let newest = self.answers.values().map(|answer| answer.term.incarnation()).max().unwrap_or_default();
        if answer.term.incarnation() < newest {
            let evidence = format!("{name} is of a store that was rebuilt without it (term {})", answer.term);
            let hint = format!("`mainstay reinit {name}` lets it join; what it alone has is kept");
            list.dated(("superseded", "critical"), evidence, hint, since);
        } else if let Some(problem) = &answer.problem {
            let hint = format!("`mainstay why --node {name}` tells more; `mainstay reinit {name}` clones it anew");
            list.dated(("node-stays-out", "critical"), format!("{name}: {problem}"), hint, since);
        } else if let Some(symptom) = &answer.observed.symptom {
            let hint = match answer.observed.state {
                // What is not fit names the way out itself.
                ServerState::Down => "put that right there; its server is started then, and `mainstay why` tells more",
                _ => "look at that host's disk and load; the cluster takes over by itself where it must",
            };
            list.add(("server-silent", "warning"), format!("{name}: {symptom}"), hint);
        } else if !answer.standing.healthy() && self.primary.is_some_and(|primary| primary.node != *name) {
            let evidence = format!("{name} is {}", answer.standing.state);
            let hint = format!("it comes back by itself; if it does not: `mainstay why --node {name}`");
            list.dated(("replica-not-streaming", "warning"), evidence, hint, since);
        }
    }

    fn lag(&self, answer: &LocalStatus, list: &mut List) {
        let Some(primary) = self.primary else { return };
        let sender = primary.observed.walsenders.iter().find(|sender| sender.node == answer.node);
        let (Some(sender), Some(end)) = (sender, primary.observed.end) else { return };
        let (behind, most) = (end.0.saturating_sub(sender.replay.0), self.spec.proxy.max_lag_bytes);
        if behind > most {
            let evidence = format!(
                "{} has replayed {behind} bytes less than the primary has written ({most} are allowed)",
                answer.node
            );
            let hint = "it gets no reads meanwhile; look for a long query or a slow disk there";
            list.add(("replica-lagging", "warning"), evidence, hint);
        }
    }

    fn host(&self, answer: &LocalStatus, list: &mut List) {
        let name = &answer.node;
        if answer.clock_off_ms.abs() > CLOCK_MS {
            let (by, which) =
                (answer.clock_off_ms.unsigned_abs(), if answer.clock_off_ms > 0 { "ahead" } else { "behind" });
            let evidence = format!("{name}: its wall clock is {by} ms {which} of the asked agent's");
            let hint = "nothing is decided by it, but logs and certificates are judged by it: set the clocks by NTP";
            list.add(("clock-off", "warning"), evidence, hint);
        }
        let (free, size) = (answer.observed.disk_free, answer.observed.disk_size);
        if let Some((free, room)) = free.and_then(|free| Some((free, Room::of(free, size.unwrap_or(SIZE_UNKNOWN))?))) {
            let severity = if room == Room::NearlyNone { "critical" } else { "warning" };
            let of = size.map_or_else(String::new, |size| format!(" of {}", size >> 20));
            let evidence = format!("{name}: {}{of} MiB are free on its data volume", free >> 20);
            let hint = "free space or enlarge the volume: a server whose log finds no room ends";
            list.add(("disk-nearly-full", severity), evidence, hint);
        }
        for place in &answer.kept {
            let named = place.rsplit('/').next().unwrap_or(place);
            let (what, remove) = match named.starts_with(RESTORED_PREFIX) {
                true => (
                    "a copy that was handed over for a restore in place which did not come about",
                    format!("{place} {place}.given"),
                ),
                false => ("the data of before a restore in place", place.clone()),
            };
            let evidence = format!("{name} keeps {what}: {place}");
            let hint =
                format!("nothing removes them but you: when nobody needs them any more, `rm -r {remove}` on that host");
            list.add(("old-data-kept", "info"), evidence, hint);
        }
        if !answer.pending_restart.is_empty() {
            let evidence = format!("{name}: waiting for a restart: {}", answer.pending_restart.join(", "));
            let hint = format!("`mainstay restart {name}`, or `mainstay restart` for all in the safe order");
            list.add(("restart-pending", "info"), evidence, hint);
        }
    }
}

fn renew(node: &NodeId) -> String {
    format!(
        "`mainstay pki issue {node}` on the authority's host, `mainstay join --node {node} --again` on that host: it is taken up while it runs"
    )
}

fn certificates(answer: &LocalStatus, now: i64, list: &mut List) {
    if let Some(why) = &answer.not_taken {
        let evidence = format!("{}: its changed certificate files are not in use: {why}", answer.node);
        list.add(("certificate-not-taken", "warning"), evidence, renew(&answer.node));
    }
    for certificate in &answer.certificates {
        let of = format!("{}: the certificate of its {}", answer.node, certificate.purpose);
        let way = match certificate.purpose.as_str() {
            "authority" => NEW_AUTHORITY.to_owned(),
            _ => renew(&answer.node),
        };
        self::certificate(&of, certificate.until, now, &way, list);
    }
}

fn certificate(of: &str, until: i64, now: i64, way: &str, list: &mut List) {
    let left = until.saturating_sub(now);
    let moment = rfc3339(u64::try_from(until).unwrap_or(0).saturating_mul(1000));
    if left <= 0 {
        list.add(("certificate-expired", "critical"), format!("{of} has expired ({moment})"), way);
    } else if left < EXPIRING {
        let within = if left < 86_400 { "within a day".to_owned() } else { format!("in {} days", left / 86_400) };
        list.add(("certificate-expiring", "warning"), format!("{of} ends {within} ({moment})"), way);
    }
}

fn file(answer: &LocalStatus, list: &mut List) {
    let (name, generation) = (&answer.node, answer.generation);
    match answer.file {
        Some(FileState::Older(older)) => {
            let evidence = format!("{name}: its file says what generation {older} said; {generation} is in force");
            let hint = "harmless: what is in force counts; `mainstay set` without arguments prints it for the file, which is looked at \
                        when the agent starts (`systemctl reload mainstay-agent`; its server goes on)";
            list.add(("file-older", "info"), evidence, hint);
        }
        Some(FileState::Differs) => {
            let evidence = format!("{name}: its file differs from generation {generation} and was never applied");
            let hint = "apply it with `mainstay set`, or put what is in force into the file";
            list.add(("file-differs", "warning"), evidence, hint);
        }
        Some(FileState::Same) | None => {}
    }
}
