//! What can happen to this cluster, and what to type then: the material of the recovery matrix and of the runbook. Real names and addresses, and
//! only commands that exist.

use crate::by_hand::{self, AS_SERVER, restore_commands};
use crate::facts::Facts;
use crate::layout::Layout;
use crate::objectives::{Class, reached, span};
use crate::store_lost;
use crate::vaulted;
use mainstay_model::drill::DrillKind;
use mainstay_model::spec::{Node, Spec};

/// One thing that can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// For links and programs.
    pub key: &'static str,
    /// Its name.
    pub title: &'static str,
    /// How it shows.
    pub seen: String,
    /// Who decides.
    pub decides: &'static str,
    /// When not to go on.
    pub stop_if: String,
    /// What Mainstay does by itself.
    pub itself: String,
    /// What to type, with comments.
    pub commands: String,
    /// How long it takes.
    pub time: String,
    /// What is lost.
    pub loss: String,
    /// How to see that it worked.
    pub verify: String,
    /// How to go back.
    pub back: String,
}

/// Texts that many scenarios need.
pub(crate) struct Names<'a> {
    spec: &'a Spec,
    pub(crate) replica: String,
    pub(crate) primary: String,
}

impl<'a> Names<'a> {
    /// Of this cluster; the running primary's name, if it is known.
    pub(crate) fn of(facts: &Facts<'a>) -> Names<'a> {
        let data: Vec<&Node> = facts.spec.data_nodes().collect();
        let first = data.first().map(|node| node.name.to_string()).unwrap_or_default();
        let primary = facts.running.and_then(|running| running.primary.clone()).unwrap_or(first);
        let replica = data
            .iter()
            .map(|node| node.name.to_string())
            .find(|name| *name != primary)
            .unwrap_or_else(|| primary.clone());
        Names { spec: facts.spec, replica, primary }
    }

    pub(crate) fn node(&self, name: &str) -> Option<&'a Node> {
        self.spec.nodes.iter().find(|node| node.name.as_str() == name)
    }

    pub(crate) fn host(&self, name: &str) -> String {
        self.node(name).map(|node| node.host.clone()).unwrap_or_default()
    }

    /// The superuser's way in, on the primary's host.
    pub(crate) fn superuser(&self) -> String {
        self.node(&self.primary).map(|node| superuser(self.spec, node)).unwrap_or_default()
    }

    /// One of the server's own programs on the primary's host; several of them are on nobody's path.
    pub(crate) fn tool(&self, facts: &Facts<'_>, name: &str) -> String {
        let node = self.node(&self.primary);
        let place = node.map(|node| format!(" -h {}/run -p {}", self.spec.node_dir(node).display(), node.port));
        format!("{}/{name}{}", by_hand::programs(facts), place.unwrap_or_default())
    }

    /// All data hosts, for libpq.
    pub(crate) fn any_host(&self) -> String {
        let hosts: Vec<&str> = self.spec.data_nodes().map(|node| node.host.as_str()).collect();
        let ports: Vec<String> = self.spec.data_nodes().map(|node| node.port.to_string()).collect();
        format!("host={} port={}", hosts.join(","), ports.join(","))
    }
}

/// psql as the superuser, on this node's host and as the agent's user.
pub(crate) fn superuser(spec: &Spec, node: &Node) -> String {
    format!("psql -h {}/run -p {} -U postgres", spec.node_dir(node).display(), node.port)
}

/// All of them.
#[must_use]
pub fn scenarios(facts: &Facts<'_>) -> Vec<Scenario> {
    let names = Names::of(facts);
    let layout = Layout::of(facts.spec);
    let mut all = hosts(facts, &layout, &names);
    all.extend(store_lost::scenarios(facts, &layout, &names));
    all.extend(places(facts, &layout));
    all.extend(disks(facts, &names));
    all.extend(mistakes(facts, &names));
    all.extend(keys(facts, &names));
    all.push(proxy_down(facts, &names));
    all.extend(service(facts, &names));
    all
}

/// Drills that show what the end of a server or a host costs.
const TAKE_OVERS: [DrillKind; 3] = [DrillKind::KillServer, DrillKind::StopServer, DrillKind::IsolatePrimary];

fn of_class(facts: &Facts<'_>, layout: &Layout, class: Class) -> (String, String, String) {
    let found = reached(facts, layout).into_iter().find(|reached| reached.class == class);
    found.map_or_else(Default::default, |reached| (reached.outage.words(), reached.loss.words(), reached.why))
}

fn hosts(facts: &Facts<'_>, layout: &Layout, names: &Names<'_>) -> Vec<Scenario> {
    let (primary, replica) = (&names.primary, &names.replica);
    let host = of_class(facts, layout, Class::Host);
    vec![
        Scenario {
            key: "node-dead", title: "A node is dead",
            seen: "node-unreachable in mainstay status; an alert that fewer replicas stream".into(),
            decides: "whoever is on call",
            stop_if: format!("another node is missing too: see \"{}\".", store_lost::title(facts.spec)),
            itself: format!("If it was the primary: {}.", host.2),
            commands: format!("mainstay status\nmainstay history\n# its host ({replica} taken as the example) answers, its agent does not:\nssh {} systemctl status mainstay-agent\nssh {} systemctl start mainstay-agent\n# the host or its disk is gone for ever: a new host takes the name\nmainstay node replace {replica} --host NEW_ADDRESS\n# no new host:\nmainstay node remove {replica}", names.host(replica), names.host(replica)),
            time: host.0.clone() + &facts.measured(&TAKE_OVERS), loss: host.1.clone(),
            verify: "mainstay status shows the node as streaming, and no problem".into(),
            back: "A node that returns becomes a replica by itself; what its log alone held is kept under diverged/ and named by mainstay history.".into(),
        },
        Scenario {
            key: "primary-hung", title: "The primary hangs",
            seen: "writes time out while its host answers; server-silent in mainstay status".into(),
            decides: "whoever is on call",
            stop_if: "mainstay status shows another primary already: it has taken over.".into(),
            itself: format!("A server that gives no sign of life for {} ms is ended and replaced.", facts.spec.failover.suspicion_ms * 2),
            commands: format!("mainstay why\nmainstay why --node {primary}\n# it still answers a little: in order\nmainstay switchover --to {replica}\n# it does not: without its help\nmainstay failover --to {replica}"),
            time: host.0.clone() + &facts.measured(&[DrillKind::StopServer]), loss: host.1.clone(),
            verify: "mainstay connect -- -c 'select pg_is_in_recovery(), now()' answers f".into(),
            back: format!("mainstay switchover --to {primary}, once it streams again"),
        },
        Scenario {
            key: "split-brain", title: "Two primaries are suspected",
            seen: "GET /primary answers 200 on two nodes, or clients see different data".into(),
            decides: "whoever is on call",
            stop_if: "you are about to delete a data directory: both may hold writes that the other lacks.".into(),
            itself: "A primary that can not renew its claim ends its server within the lease; proxies follow the higher term only.".into(),
            commands: format!("{}\nmainstay status --json\nmainstay history --all --since 1h\n# two agents under one name (a cloned image) are named as two-agents-one-name: stop the wrong one\nssh WRONG_HOST systemctl stop mainstay-agent", curl_all(facts.spec)),
            time: format!("{} ms at most until the older one has ended", facts.spec.failover.lease_ms),
            loss: "what the older one acknowledged after its term was overtaken; with durability strict it can acknowledge nothing then".into(),
            verify: "exactly one node answers 200 at /primary".into(),
            back: "The log of the one that stepped down is kept under diverged/ before it is rewound.".into(),
        },
    ]
}

/// A zone, or everything, is lost.
fn places(facts: &Facts<'_>, layout: &Layout) -> Vec<Scenario> {
    let (zone, site) = (of_class(facts, layout, Class::Zone), of_class(facts, layout, Class::Site));
    let itself = if layout.zones().is_some() {
        sentence(&zone.2) + "."
    } else {
        let decides = if facts.spec.store.is_etcd() {
            "etcd works without the zone, and enough copies are elsewhere"
        } else {
            "a majority of the votes and enough copies are elsewhere"
        };
        format!("Which nodes share a zone is not said ([[node]] zone): a replica takes over if {decides}.")
    };
    let mut all = Vec::new();
    all.push(Scenario {
        key: "zone-lost", title: "A zone is lost",
        seen: "all nodes of one zone are node-unreachable".into(),
        decides: "whoever is on call",
        stop_if: "the zone is only cut off from you: look at it from another zone first.".into(),
        itself,
        commands: format!("mainstay status\nmainstay history\n# writes are blocked for want of replicas, and the owner wants to write with fewer copies:\nmainstay set cluster.durability=available\n# when the zone is back:\nmainstay set cluster.durability={}", facts.spec.cluster.durability),
        time: zone.0, loss: zone.1,
        verify: "mainstay status; a write through each remaining proxy".into(),
        back: "Nodes of the zone become replicas again by themselves.".into(),
    });
    all.push(Scenario {
        key: "site-lost",
        title: "All hosts are lost",
        seen: "nothing answers".into(),
        decides: "the owner of the data",
        stop_if: "one host of the cluster may still be started: its disk is newer than any backup.".into(),
        itself: "Nothing: there is nobody left.".into(),
        commands: if vaulted::is(facts) { vaulted::lost(facts) } else { restore_commands(facts) },
        time: site.0,
        loss: site.1,
        verify: "select max(written_at) from a table that is always written; compare with what applications logged"
            .into(),
        back: "The lost hosts must not be started beside the restored cluster.".into(),
    });
    all
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().collect::<String>() + letters.as_str()).unwrap_or_default()
}

fn curl_all(spec: &Spec) -> String {
    let lines: Vec<String> = spec
        .data_nodes()
        .map(|node| {
            format!(
                "curl -s -o /dev/null -w '{} %{{http_code}}\\n' http://{}:{}/primary",
                node.name, node.host, node.health_port
            )
        })
        .collect();
    lines.join("\n")
}

fn disks(facts: &Facts<'_>, names: &Names<'_>) -> Vec<Scenario> {
    let (primary, replica) = (&names.primary, &names.replica);
    let dir = names.node(primary).map(|node| facts.spec.node_dir(node).display().to_string()).unwrap_or_default();
    let schedule = crate::backup::schedule(facts);
    vec![
        Scenario {
            key: "disk-full", title: "A disk is full, or fills with log",
            seen: "disk-nearly-full; or the primary moved and the old one is down".into(), decides: "whoever is on call",
            stop_if: "you are about to delete files in pg_wal: that destroys the server. Free space elsewhere, or enlarge the volume.".into(),
            itself: "A server whose disk is full ends, and a replica takes over. What slots may keep is bounded by the free space, so a dead replica does not fill it.".into(),
            commands: format!("ssh {} 'df -h {dir}; du -xsh {dir}/* | sort -h'\n{} -c \"select slot_name, active, pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) from pg_replication_slots order by restart_lsn\"\n# logs of old histories, after a look at them\nssh {} ls -l {dir}/diverged", names.host(primary), names.superuser(), names.host(primary)),
            time: "the take-over by itself; freeing space as long as it takes".into(), loss: "nothing".into(),
            verify: "mainstay status shows no disk-nearly-full, and the node streams".into(), back: "The node returns by itself once there is room.".into(),
        },
        Scenario {
            key: "corruption", title: "A page or an index is damaged",
            seen: "\"invalid page in block\", checksum failures in pg_stat_database, or a query whose result changes with the index".into(), decides: "the owner of the data",
            stop_if: "backups are about to be removed by their retention: stop that first; the last good copy may be among them.".into(),
            itself: "Nothing: the server answers with an error for a damaged page, and other pages are served.".into(),
            commands: format!("# which tables; the extension comes with the server's contrib package\n{} -d app -c 'create extension if not exists amcheck'\n{} -U postgres -d app --heapallindexed\n# an index: built anew, without blocking writes\n{} -d app -c 'reindex index concurrently INDEX'\n# a page of the primary's copy only: let a replica serve, and clone the damaged copy anew\nmainstay switchover --to {replica}\nmainstay reinit {primary}", names.superuser(), names.tool(facts, "pg_amcheck"), names.superuser()),
            time: "the switchover about a second; the clone as long as copying the data".into(), loss: "nothing if a replica's copy is whole; else see \"Data deleted by mistake\"".into(),
            verify: "pg_amcheck says nothing on the new primary".into(), back: "reinit moves the damaged data aside, it does not delete it.".into(),
        },
        Scenario {
            key: "backup-gap", title: "The backup or its log stopped, has a gap, or was deleted",
            seen: format!("no base backup for {} h, no log for 5 min, or files missing in the repository", schedule.every_h * 3 / 2), decides: "whoever is on call",
            stop_if: "it was deleted on purpose by somebody else: treat it as an attack, take the repository's credentials away first.".into(),
            itself: "Nothing; the cluster goes on.".into(),
            commands: if vaulted::is(facts) { vaulted::GAP.to_owned() } else { format!("systemctl status pg-receivewal\n# a new base at once: moments after it can be restored whatever was lost before\n{}", base_backup(names)) },
            time: format!("{} for a new base", span(schedule.copy_s.max(60))), loss: "no data; moments before the new base may not be restorable any more".into(),
            verify: "restore the new base on a scratch host (section 14)".into(), back: "none needed".into(),
        },
    ]
}

/// One base backup by hand.
pub(crate) fn base_backup(names: &Names<'_>) -> String {
    format!(
        "{AS_SERVER} pg_basebackup -d \"{} user=backup sslmode=require passfile=/backup/.pgpass\" -D /backup/base/$(date +%F-%H%M) -Ft -z -X stream -c fast -w",
        names.any_host()
    )
}

fn mistakes(facts: &Facts<'_>, names: &Names<'_>) -> Vec<Scenario> {
    let human = of_class(facts, &Layout::of(facts.spec), Class::Human);
    let replica = &names.replica;
    vec![
        Scenario {
            key: "data-deleted", title: "Data deleted by mistake (DELETE, DROP, a wrong deployment)",
            seen: "people or applications miss data".into(), decides: "the owner of the data",
            stop_if: "nobody knows the minute in which it happened: find it in the applications' logs first; restoring to the wrong minute costs a whole restore.".into(),
            itself: "Nothing: replicas repeat it within milliseconds.".into(),
            commands: if vaulted::is(facts) { vaulted::deleted(facts, names) } else { format!("# keep applications from writing more, if that makes it worse: take their role's right to log in, and end the sessions that there are\n{} -c 'alter role app nologin' -c \"select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'\"\n# restore beside the cluster, to the moment before\n{}\n# copy back what is missing, table by table\n{AS_SERVER} pg_dump -h /tmp -p 5499 -d app -t TABLE --data-only > table.sql\n{} -d app --single-transaction -f table.sql\n# let applications in again\n{} -c 'alter role app login'", names.superuser(), restore_commands(facts), names.superuser(), names.superuser()) },
            time: human.0, loss: "what was written to the same rows since".into(),
            verify: "counts and sums of the table, before and after; the application's own checks".into(),
            back: "Data of the cluster are not changed before table.sql is loaded, which is one transaction. alter role app login lets applications in again.".into(),
        },
        Scenario {
            key: "failed-upgrade", title: "An update of PostgreSQL or Mainstay went wrong",
            seen: "a server does not start, or behaves otherwise, after its packages changed".into(), decides: "whoever does the update",
            stop_if: "it was a change of the major version: data of the new one do not start with the old programs.".into(),
            itself: "A replica that does not start is named in mainstay status; the primary goes on.".into(),
            commands: format!("mainstay status\nmainstay why --node {replica}\n# minor version: put the old package back on that host, and restart its server\nssh {} 'apt-get install --allow-downgrades postgresql-VERSION=OLD'\nmainstay restart {replica}", names.host(replica)),
            time: "minutes for each host; replicas first, so that writes go on".into(), loss: "nothing".into(),
            verify: "mainstay status; select version()".into(), back: "that is the way back".into(),
        },
    ]
}

fn keys(facts: &Facts<'_>, names: &Names<'_>) -> Vec<Scenario> {
    let replica = &names.replica;
    vec![
        Scenario {
            key: "certificates",
            title: "Certificates have ended",
            seen: "certificate-expiring 30 days before; \"has expired\" in node-unreachable".into(),
            decides: "whoever has the authority's key",
            stop_if: "the host's clock is wrong: set it first.".into(),
            itself: "Nothing. Running servers go on; agents refuse each other, so the lease may end.".into(),
            commands: format!(
                "# where the authority's key is\nmainstay pki list\nmainstay pki issue {replica}\nmainstay pki serve\n# on {replica} ({}), with the token that was printed\nmainstay join --again --config /etc/mainstay/mainstay.toml --node {replica} --token - --at AUTHORITY_HOST\n# nothing more: what runs takes it up within seconds",
                names.host(replica)
            ),
            time: "a few minutes for each node".into(),
            loss: "nothing".into(),
            verify: "mainstay pki list; mainstay status".into(),
            back: "none needed".into(),
        },
        Scenario {
            key: "password-leak",
            title: "A password or key leaked",
            seen: "it was found where it must not be".into(),
            decides: "the owner of the data",
            stop_if: "you do not know yet which applications use it: changing it locks them out.".into(),
            itself: "Nothing.".into(),
            commands: format!(
                "# a password: a second role beside the first, so that applications change over one by one\n{} -c \"create role app2 login in role app\"\n{} -c '\\password app2'\n# when all use it\n{} -c 'alter role app nologin'\n# sessions of the old one\n{} -c \"select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'\"",
                names.superuser(),
                names.superuser(),
                names.superuser(),
                names.superuser()
            ),
            time: "minutes, and as long as the applications need".into(),
            loss: "nothing; what was read with it stays read".into(),
            verify: "select usename, count(*) from pg_stat_activity group by 1".into(),
            back: "alter role app login".into(),
        },
        Scenario {
            key: "backup-keys",
            title: "The key of the backups is lost",
            seen: "a restore drill can not decrypt".into(),
            decides: "the owner of the data",
            stop_if: "the cluster is not healthy: it is the only copy now. Change nothing on it.".into(),
            itself: "Nothing.".into(),
            commands: if vaulted::is(facts) {
                vaulted::KEY.to_owned()
            } else {
                let says = "# a new base with a new key at once, the key kept in two places apart from the repository";
                format!("{says}\n{}", base_backup(names))
            },
            time: span(crate::backup::schedule(facts).copy_s.max(60)),
            loss: "no data; the moments before the new base".into(),
            verify: "restore it on a scratch host with the key from its second place".into(),
            back: "none".into(),
        },
    ]
}

fn proxy_down(facts: &Facts<'_>, names: &Names<'_>) -> Scenario {
    let spec = facts.spec;
    Scenario {
        key: "proxy-down",
        title: "Clients can not connect",
        seen: format!("connections to port {} fail while mainstay status is well", spec.proxy.write_port),
        decides: "whoever is on call",
        stop_if: "mainstay status shows no primary: then it is not the proxy.".into(),
        itself: "A node's own proxy is started again by its agent.".into(),
        commands: format!(
            "mainstay status\nssh {} systemctl status mainstay-agent\n# past the proxies, straight to whichever server is primary\npsql \"{} user=app dbname=app sslmode=require target_session_attrs=read-write\"",
            names.host(&names.primary),
            names.any_host()
        ),
        time: "seconds with clients that know several addresses".into(),
        loss: "nothing".into(),
        verify: "mainstay connect -- -c 'select 1'".into(),
        back: "none needed".into(),
    }
}

fn service(facts: &Facts<'_>, names: &Names<'_>) -> Vec<Scenario> {
    let replica = &names.replica;
    vec![
        Scenario {
            key: "replica-behind", title: "A replica is behind, or does not stream",
            seen: "replica-not-streaming, or a lag that grows".into(), decides: "whoever is on call",
            stop_if: "it is the only replica and commits wait for it (strict): cloning it anew takes it away for that long.".into(),
            itself: "It is started, rewound or cloned by itself; mainstay why says which. Proxies send it no reads while it is behind.".into(),
            commands: format!("mainstay why --node {replica}\n{} -c 'select application_name, state, sent_lsn, replay_lsn, replay_lag from pg_stat_replication'\n# a long query on the replica holds replay up\n{} -c \"select pid, now() - xact_start, query from pg_stat_activity where state <> 'idle' order by 2 desc limit 5\"\n# as a last resort\nmainstay reinit {replica}", names.superuser(), names.node(replica).map(|node| superuser(facts.spec, node)).unwrap_or_default()),
            time: format!("a clone: {} over the slowest link", span((facts.asked().size_gb * 8192 / facts.asked().link_mbit_s.max(1)).max(30))), loss: "nothing".into(),
            verify: "mainstay status shows it streaming".into(), back: "reinit moves the old data aside.".into(),
        },
        Scenario {
            key: "wraparound", title: "Transaction ids run out",
            seen: "\"database must be vacuumed within\" in the server's log; age(datfrozenxid) over 1 500 000 000".into(), decides: "whoever is on call",
            stop_if: "you are about to restart in single-user mode: it is not needed, vacuum works while writes are refused.".into(),
            itself: "autovacuum runs to prevent it, however busy the server is, unless something old holds it back.".into(),
            commands: format!("{} -c 'select datname, age(datfrozenxid) from pg_database order by 2 desc'\n# what holds it back: old transactions, prepared ones, slots\n{} -c 'select pid, age(backend_xmin), state, query from pg_stat_activity where backend_xmin is not null order by 2 desc limit 5'\n{} -c 'select gid, age(transaction) from pg_prepared_xacts'\n{} -c 'select slot_name, age(xmin), age(catalog_xmin) from pg_replication_slots'\n# end those, then\n{} -U postgres -d app --freeze --jobs 4", names.superuser(), names.superuser(), names.superuser(), names.superuser(), names.tool(facts, "vacuumdb")),
            time: "reading every table once".into(), loss: "nothing; the sessions that are ended".into(),
            verify: "age(datfrozenxid) falls below 200 000 000".into(), back: "none needed".into(),
        },
        by_hand::scenario(facts, names),
    ]
}
