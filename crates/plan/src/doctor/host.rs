//! The system, the users and directories, the ports, and what the kernel does with memory.

use super::facts::{HostFacts, Keeper, Place, Stage};
use super::{Findings, Severity, bytes, sysctl};
use mainstay_model::spec::{Node, Spec};

/// The guard watches processes by pidfd.
const KERNEL_OLDEST: (u64, u64) = (5, 4);

pub(super) fn system(node: &Node, facts: &HostFacts, found: &mut Findings) {
    let system = &facts.system;
    if let Some(who) = &system.not_root {
        let text = format!("this runs as {who}, not as root");
        let why = "what only root may see was not seen; as root, agents run servers as the user postgres";
        found.say(Severity::Advice, "user", text, why, [format!("sudo mainstay doctor --config {}", facts.config)]);
    }
    if let Some(kernel) = found.read("kernel", "the kernel's version", &system.kernel) {
        let mut numbers = kernel.split(['.', '-']).map(|part| part.parse::<u64>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version >= KERNEL_OLDEST {
            found.fine("kernel", format!("Linux {kernel}"));
        } else {
            let why = "the guard watches processes in a way that older kernels do not know";
            found.say(
                Severity::Problem,
                "kernel",
                format!("Linux {kernel}; 5.4 is the oldest that works"),
                why,
                ["upgrade the host's distribution"],
            );
        }
    }
    if let Some(libc) = found.read("libc", "the C library's version", &system.libc) {
        found.fine("libc", libc.clone());
    }
    if system.address_here {
        found.fine("address", format!("{} is an address of this host", node.host));
    } else {
        let text = format!("{}, the host of {}, is no address of this host", node.host, node.name);
        let why = "the other nodes look for this one there, and its agent listens there";
        let mend = [format!(
            "run it on {}, or mend the node's host in {}; ip address shows this host's",
            node.host, facts.config
        )];
        found.say(Severity::Problem, "address", text, why, mend);
    }
    agent(facts, found);
    services(facts, found);
    if !node.witness
        && let Some(server) = found_server(facts, found)
    {
        found.fine("server", server);
    }
    if let Some(limit) = found.read("open-files", "the limit of open files", &system.open_files) {
        let text = format!("{limit} files may be open");
        let why =
            "each client, each server process and each table needs some; beyond the limit connections are refused";
        let mend = ["in the unit: LimitNOFILE=65536 (systemctl edit mainstay-agent), then systemctl restart mainstay-agent; without systemd: ulimit -n 65536 before the agent starts".to_owned()];
        found.advise("open-files", *limit >= 8192, text, why, mend);
    }
}

/// Does it answer? A node that has not joined has none.
fn agent(facts: &HostFacts, found: &mut Findings) {
    match facts.stage {
        Stage::New => {}
        Stage::Running => {
            if found.read("agent", "the agent's answer", &facts.asked).is_some() {
                found.fine("agent", format!("the agent of {} answers", facts.node));
            }
        }
        Stage::Joined => {
            let mend = match facts.system.keeper {
                Keeper::Supervisor => ["mainstay up, for this cluster".to_owned(), String::from("mainstay status")],
                _ => [
                    "systemctl enable --now mainstay-agent".to_owned(),
                    "journalctl -u mainstay-agent -n 50".to_owned(),
                ],
            };
            let text = format!("{} has joined, and its agent does not answer", facts.node);
            let why = "nothing keeps the node in the cluster: it does not vote, and its server has no guard";
            found.say(Severity::Problem, "agent", text, why, mend);
        }
    }
}

fn found_server(facts: &HostFacts, found: &mut Findings) -> Option<String> {
    match &facts.server {
        Ok(server) => Some(format!("PostgreSQL {} in {}", server.major, server.programs)),
        Err(why) => {
            let mend = [
                "mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' >> /etc/postgresql-common/createcluster.conf",
                "apt-get install postgresql",
            ];
            found.say(
                Severity::Problem,
                "server",
                why.clone(),
                "a node that holds data runs PostgreSQL 15 or newer",
                mend,
            );
            None
        }
    }
}

fn services(facts: &HostFacts, found: &mut Findings) {
    let system = &facts.system;
    match found.read("clock-kept", "whether a time service keeps the clock", &system.clock_kept) {
        Some(true) => found.fine("clock-kept", "a time service keeps the wall clock"),
        Some(false) => {
            let why = "nothing is decided by it, but certificates have dates, and the order of events is read by it";
            found.say(
                Severity::Problem,
                "clock-kept",
                "no time service keeps the wall clock",
                why,
                ["apt-get install chrony", "systemctl enable --now chrony"],
            );
        }
        None => {}
    }
    let unit = match &system.keeper {
        Keeper::Systemd(unit) => unit,
        Keeper::Supervisor => return found.fine("unit", "`mainstay up` keeps the agent, as long as this machine runs"),
        Keeper::Nobody => {
            let why = "after a crash of the agent or a start of the host something must start the agent again";
            let mend =
                [format!("let your supervisor keep: mainstay agent --config {} --node {}", facts.config, facts.node)];
            let fine = facts.stage == Stage::New;
            return found.advise("unit", fine, "this host has no systemd", why, mend);
        }
    };
    if let Some(state) = found.read("unit", "the state of mainstay-agent.service", unit) {
        let enabled = state == "enabled" || facts.stage == Stage::New;
        let why = "an agent that is not enabled does not come back when the host starts";
        found.advise(
            "unit",
            enabled,
            format!("mainstay-agent.service is {state}"),
            why,
            [
                format!("echo MAINSTAY_NODE={} > /etc/mainstay/agent.env", facts.node),
                "systemctl enable --now mainstay-agent".to_owned(),
            ],
        );
    }
}

pub(super) fn places(facts: &HostFacts, found: &mut Findings) {
    if let Err(why) = &facts.user {
        let mend = [
            "apt-get install postgresql (it makes the user), or open the directory that is named: chmod o+x DIRECTORY",
        ];
        found.say(Severity::Problem, "server-user", why.clone(), "database servers never run as root", mend);
    } else {
        found.fine("server-user", "servers have a user of their own who reaches the node's directory");
    }
    let mut well = 0_usize;
    for place in &facts.places {
        let Some(state) = found.read("directories", &place.path, &place.found) else { continue };
        match wrong(place, *state, facts.stage) {
            None => well += 1,
            Some((text, mend)) => {
                let why = "the agent keeps its keys from the database's user, and the server refuses directories that others may read";
                found.say(Severity::Problem, "directories", text, why, [mend]);
            }
        }
    }
    if well == facts.places.len() {
        let text = if facts.stage == Stage::New {
            "nothing is there yet that is in the way"
        } else {
            "each has its owner and mode"
        };
        found.fine("directories", format!("{well} paths of the node: {text}"));
    }
}

/// What is wrong with a path, and what mends it.
fn wrong(place: &Place, state: Option<super::facts::Found>, stage: Stage) -> Option<(String, String)> {
    let (path, (owner, uid)) = (&place.path, &place.owner);
    let Some(state) = state else {
        let mend = "mainstay join --again makes what is missing; see docs/three-hosts.md".to_owned();
        return (stage > Stage::New).then(|| (format!("{path} does not exist"), mend));
    };
    if !state.right_kind {
        let mend = format!("look at it, then move it away: mv {path} {path}.old");
        return Some((format!("{path} is a link, or not what it should be"), mend));
    }
    if state.uid != *uid {
        let text = format!("{path} belongs to user number {}, not to {owner}", state.uid);
        return Some((text, format!("if it is this cluster's: chown -R {owner} {path}")));
    }
    // Stricter is fine; what others may do besides is not.
    let besides = state.mode & 0o7777 & !place.mode;
    (besides != 0).then(|| {
        (
            format!("{path} has mode {:03o}, it must be {:03o}", state.mode & 0o7777, place.mode),
            format!("chmod {:03o} {path}", place.mode),
        )
    })
}

pub(super) fn ports(facts: &HostFacts, found: &mut Findings) {
    let mut as_expected = Vec::new();
    for port in &facts.ports {
        let Some(busy) = found.read("ports", &format!("port {}", port.port), &port.busy) else { continue };
        if *busy && facts.stage < Stage::Running {
            let text = format!("port {} ({}) is in use although the agent does not answer", port.port, port.of);
            let why = "the agent, its server or its proxy can not listen there";
            found.say(
                Severity::Problem,
                "ports",
                text,
                why,
                [
                    format!("ss -ltnp 'sport = :{}'", port.port),
                    format!("end that program, or give the node another port in {}", facts.config),
                ],
            );
        } else if !*busy && facts.stage == Stage::Running {
            let text = format!("nobody listens on port {} ({}) although the agent answers", port.port, port.of);
            let why = "whoever comes there is refused: clients, replicas or monitoring";
            let mend = [
                format!("mainstay why --config {} --node {}", facts.config, facts.node),
                format!("mainstay status --config {}", facts.config),
            ];
            found.say(Severity::Problem, "ports", text, why, mend);
        } else {
            as_expected.push(port.port.to_string());
        }
    }
    if as_expected.len() == facts.ports.len() {
        let state = if facts.stage == Stage::Running { "this node's" } else { "free" };
        found.fine("ports", format!("{}: {state}", as_expected.join(", ")));
    }
}

pub(super) fn memory(spec: &Spec, node: &Node, facts: &HostFacts, found: &mut Findings) {
    let memory = &facts.memory;
    let Some(total_kb) = found.read("memory", "the host's memory", &memory.total_kb).copied() else { return };
    let asked = spec.requirements.memory_gb;
    let enough = node.witness || spec.requirements == Default::default() || total_kb * 10 >= asked * 1024 * 1024 * 9;
    let text = format!("{} of memory", bytes(total_kb * 1024));
    let why = format!("[requirements] says memory_gb = {asked}, and parameters were derived from that");
    found.advise("memory", enough, text, &why, ["mainstay plan, with what the host really has".to_owned()]);
    if node.witness {
        return;
    }
    swap(facts, total_kb, found);
    if let Some(mode) = found.read("overcommit", "vm.overcommit_memory", &memory.overcommit) {
        let why = "the kernel promises more memory than there is, and kills a process when it is asked for; a killed server process restarts the whole server";
        found.advise(
            "overcommit",
            *mode == 2,
            format!("vm.overcommit_memory = {mode}"),
            why,
            [sysctl("vm.overcommit_memory", 2)],
        );
    }
    dirty(facts, found);
    huge(facts, total_kb, found);
    if let Some(size) = found.read("shared-memory", "the size of /dev/shm", &memory.shared_bytes) {
        let why = "parallel queries put their memory there, and fail when it is full";
        let fine = *size >= 256 << 20 || *size * 4 >= total_kb * 1024;
        found.advise(
            "shared-memory",
            fine,
            format!("/dev/shm holds {}", bytes(*size)),
            why,
            ["mount -o remount,size=25% /dev/shm (a container: --shm-size)".to_owned()],
        );
    }
}

fn swap(facts: &HostFacts, total_kb: u64, found: &mut Findings) {
    let memory = &facts.memory;
    let Some(swap_kb) = found.read("swap", "the size of swap", &memory.swap_kb).copied() else { return };
    let why = "without any, a short peak of memory kills a process";
    let text = format!("{} of swap", bytes(swap_kb * 1024));
    found.advise(
        "swap",
        swap_kb > 0 || total_kb >= 32 << 20,
        text,
        why,
        ["fallocate -l 2G /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile".to_owned()],
    );
    if let Some(value) = found.read("swappiness", "vm.swappiness", &memory.swappiness) {
        let why = "the kernel moves memory of the server to disk to make room for file cache; a query then waits for the disk";
        let fine = *value <= 10 || swap_kb == 0;
        found.advise("swappiness", fine, format!("vm.swappiness = {value}"), why, [sysctl("vm.swappiness", 1)]);
    }
}

fn dirty(facts: &HostFacts, found: &mut Findings) {
    let memory = &facts.memory;
    if let Some(count) = found.read("dirty-background", "vm.dirty_background_bytes", &memory.dirty_background_bytes) {
        let why = "so much may wait unwritten before the kernel begins; then a checkpoint's fsync writes it all at once and commits stand still";
        found.advise(
            "dirty-background",
            *count <= 512 << 20,
            format!("writing in the background begins at {} of unwritten pages", bytes(*count)),
            why,
            [sysctl("vm.dirty_background_bytes", 256 << 20)],
        );
    }
    if let Some(count) = found.read("dirty", "vm.dirty_bytes", &memory.dirty_bytes) {
        let why = "the more may wait unwritten, the longer every program stands still once that much is reached";
        found.advise(
            "dirty",
            *count <= 2 << 30,
            format!("writers are held at {} of unwritten pages", bytes(*count)),
            why,
            [sysctl("vm.dirty_bytes", 1 << 30)],
        );
    }
}

fn huge(facts: &HostFacts, total_kb: u64, found: &mut Findings) {
    let memory = &facts.memory;
    if let Some(pages) = found.read("huge-pages", "vm.nr_hugepages", &memory.huge_pages) {
        // A quarter of the memory for shared buffers and a little more, in pages of 2 MB.
        let wanted = total_kb / 4 / 2048 * 21 / 20;
        let why = "with large shared buffers each connection keeps megabytes of page tables; huge pages save them, and can not be swapped";
        let fine = *pages > 0 || total_kb < 32 << 20;
        found.advise(
            "huge-pages",
            fine,
            format!("vm.nr_hugepages = {pages}"),
            why,
            [sysctl("vm.nr_hugepages", wanted)],
        );
    }
    if let Some(mode) = found.read("transparent-huge-pages", "transparent_hugepage/enabled", &memory.transparent) {
        let why = "the kernel gathers pages while the server works, and queries stand still for it";
        found.advise("transparent-huge-pages", mode != "always", format!("transparent huge pages: {mode}"), why, [
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (at each start: transparent_hugepage=madvise on the kernel's command line)".to_owned(),
        ]);
    }
}
