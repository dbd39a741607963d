//! The volume of the data: file system, space, how long it takes to make a write durable, and what lies there already.

use super::facts::{Existing, HostFacts, Mount, Stage, Writing};
use super::{Findings, Severity, bytes};
use mainstay_model::Room;
use mainstay_model::spec::{Node, Spec};

/// File systems on other hosts, or made by a program: what they call durable is not theirs to promise.
const FAR: [&str; 8] = ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse.s3fs", "virtiofs"];
/// File systems in memory.
const FLEETING: [&str; 2] = ["tmpfs", "ramfs"];
/// Each changed page is written elsewhere.
const COPYING: [&str; 2] = ["btrfs", "zfs"];

pub(super) fn examine(spec: &Spec, node: &Node, facts: &HostFacts, found: &mut Findings) {
    let volume = &facts.volume;
    if let Some(mount) = found.read("file-system", "the mount table", &volume.mount) {
        file_system(&volume.at, mount, found);
    }
    if let Some(space) = found.read("space", "the free space", &volume.space) {
        space_left(spec, node, facts, *space, found);
    }
    if let Some((free, all)) = found.read("inodes", "the number of files that may be made", &volume.inodes) {
        let short = *all > 0 && *free < all / 20;
        let why = "a volume on which no file can be made is a full one, however much space is left";
        let mend = [format!("find {} -xdev -type d -size +1M", volume.at)];
        let text = if *all == 0 {
            "no bound on the number of files".to_owned()
        } else {
            format!("{free} of {all} files may still be made")
        };
        found.advise("inodes", !short, text, why, mend);
    }
    if let Some(writing) = &volume.writing
        && let Some(writing) = found.read("disk", "how long writing takes", writing)
    {
        disk(spec, &volume.at, *writing, found);
    }
    if !node.witness
        && let Some(existing) = found.read("data", "the data directory", &facts.data)
    {
        data(facts, existing, found);
    }
}

fn file_system(at: &str, mount: &Mount, found: &mut Findings) {
    let text = format!("{at} lies on {} ({})", mount.point, mount.kind);
    let has = |option: &str| mount.options.iter().any(|each| each == option);
    let kind = mount.kind.as_str();
    if FAR.contains(&kind) || kind.starts_with("fuse.") {
        let why =
            "the guard can not end a server that waits for another host, and durable means what that host makes of it";
        return found.say(
            Severity::Problem,
            "file-system",
            text,
            why,
            ["put the node's directory on a disk of this host: dir = \"…\" under [[node]]"],
        );
    }
    if FLEETING.contains(&kind) {
        let why = "it is memory: everything is gone when the host restarts, promises of the take-over included";
        return found.say(
            Severity::Problem,
            "file-system",
            text,
            why,
            ["put the node's directory on a disk: dir = \"…\" under [[node]]"],
        );
    }
    if has("ro") {
        let why = "nothing can be written; a file system that met an error is often mounted so";
        return found.say(
            Severity::Problem,
            "file-system",
            format!("{text}, read-only"),
            why,
            ["dmesg | tail -50".to_owned(), format!("mount -o remount,rw {}", mount.point)],
        );
    }
    if has("nobarrier") || has("barrier=0") {
        let why = "what was reported durable may be lost with the power, and acknowledged commits with it";
        return found.say(
            Severity::Problem,
            "file-system",
            format!("{text}, without write barriers"),
            why,
            [format!("mount -o remount,barrier=1 {} (and in /etc/fstab)", mount.point)],
        );
    }
    if COPYING.contains(&kind) || kind == "overlay" {
        let why = if kind == "overlay" {
            "a container's own layer goes with the container, and each first change of a file copies it whole"
        } else {
            "each changed page is written elsewhere: data scatter, and full_page_writes is done twice"
        };
        return found.say(
            Severity::Advice,
            "file-system",
            text,
            why,
            ["ext4 or xfs on a volume of its own for the node's directory"],
        );
    }
    if mount.point == "/" {
        let why = "logs of other programs can fill the database's disk, and the database's log the system's";
        return found.say(
            Severity::Advice,
            "file-system",
            text,
            why,
            [format!("a volume of its own, mounted at {at}")],
        );
    }
    found.fine("file-system", text);
}

fn space_left(spec: &Spec, node: &Node, facts: &HostFacts, (size, free): (u64, u64), found: &mut Findings) {
    let text = format!("{} of {} are free on the volume of {}", bytes(free), bytes(size), facts.volume.at);
    let why = "a server whose disk is full ends, and a replica takes over";
    let mend = [format!("du -xsh {}/* | sort -h", facts.volume.at), "enlarge the volume".to_owned()];
    let asked = &spec.requirements;
    let fresh = !node.witness && matches!(facts.data, Ok(Existing::Nothing));
    if Room::of(free, size).is_some() {
        found.say(Severity::Problem, "space", text, why, mend);
    } else if fresh && !asked.is_default() && free >> 30 < asked.size_gb {
        let why = format!("[requirements] says size_gb = {}: they do not fit", asked.size_gb);
        found.say(Severity::Problem, "space", text, why, mend);
    } else if free < size / 7 {
        found.say(Severity::Advice, "space", text, why, mend);
    } else {
        found.fine("space", text);
    }
}

fn disk(spec: &Spec, at: &str, writing: Writing, found: &mut Findings) {
    let text = format!(
        "a durable write of 8 kB takes {} µs (slowest of {}: {} µs), one of {} a second in one go, in {at}",
        writing.median_us,
        writing.count,
        writing.worst_us,
        bytes(writing.bytes_per_s)
    );
    let look = [format!("pg_test_fsync -s 2 -f {at}/pg_test_fsync.out"), "iostat -x 1 10".to_owned()];
    let suspicion_us = spec.failover.suspicion_ms * 1000;
    if writing.worst_us >= suspicion_us {
        let why = format!(
            "a primary whose disk stands still for {} ms is suspected, and may be replaced",
            spec.failover.suspicion_ms
        );
        found.say(Severity::Problem, "disk", text, why, look);
    } else if writing.median_us < 20 {
        let why = "no disk is so fast: something says \"durable\" before it is, and acknowledged commits may go with the power";
        found.say(Severity::Advice, "disk", text, why, look);
    } else if writing.median_us > 10_000 || writing.worst_us >= suspicion_us / 2 {
        let why = "each commit waits for one such write, here and on the replicas that confirm it";
        found.say(Severity::Advice, "disk", text, why, look);
    } else {
        found.fine("disk", text);
    }
}

fn data(facts: &HostFacts, existing: &Existing, found: &mut Findings) {
    let major = facts.server.as_ref().map(|server| server.major);
    match (existing, facts.stage) {
        (Existing::Nothing, Stage::Running) => found.fine("data", "no data yet: the agent makes or clones a copy"),
        (Existing::Nothing, _) => found.fine("data", "no data yet"),
        (Existing::Database(version), _) if major.as_ref().is_ok_and(|major| major != version) => {
            let text = format!("the data are PostgreSQL {version}'s, the programs another version's");
            let why = "data of one major version do not start with the programs of another";
            found.say(
                Severity::Problem,
                "data",
                text,
                why,
                [
                    format!("apt-get install postgresql-{version}"),
                    format!(
                        "and say where it is: [postgres] bin_dir = \"/usr/lib/postgresql/{version}/bin\" in {}",
                        facts.config
                    ),
                ],
            );
        }
        (Existing::Database(version), Stage::New) => {
            let text =
                format!("the data directory holds a database of PostgreSQL {version}, and the node has not joined");
            let why = "the agent does not touch what is not its cluster's: the node will not start a server beside it";
            found.say(
                Severity::Problem,
                "data",
                text,
                why,
                [format!(
                    "if it is of no use any more: mv DIRECTORY/data DIRECTORY/data.old (DIRECTORY: the node's, {})",
                    facts.volume.at
                )],
            );
        }
        (Existing::Database(version), _) => found.fine("data", format!("a database of PostgreSQL {version}")),
        (Existing::Other(names), _) => {
            let text = format!("the data directory holds what is no database: {}", names.join(", "));
            let why = "the agent removes nothing that it did not make, so it makes no copy here";
            found.say(Severity::Problem, "data", text, why, ["look at it, then move it away"]);
        }
    }
}
