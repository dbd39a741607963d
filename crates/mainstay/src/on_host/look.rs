//! What there is of a node on this host. Changes nothing.

use super::{CONFIG, PACKAGED, PROGRAM, Task, UNIT, program, systemd, target, whole_unit};
use crate::failure::{Failure, Outcome};
use crate::host::{Seen, gather};
use crate::local::keys::Member;
use crate::local::processes::running_agent;
use crate::target::Target;
use mainstay_model::layout::NodeLayout;
use mainstay_model::spec::Node;
use mainstay_net::pki;
use mainstay_plan::apply::adopt::Adopt;
use mainstay_plan::apply::facts::{Agent, Host, Papers, Said};
use mainstay_plan::doctor::facts::{Existing, Stage};
use mainstay_plan::doctor::{Severity, examine};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Looks.
///
/// # Errors
/// When the file does not list the node.
pub(crate) async fn look(task: &Task) -> Outcome<Host> {
    let target = target(&task.file)?;
    let node = target.spec.node(&task.node).cloned();
    let node = node.ok_or_else(|| Failure::usage(format!("the file does not list {}", task.node)))?;
    let layout = NodeLayout::new(target.spec.node_dir(&node));
    let agent = running_agent(&node.name, Path::new(CONFIG));
    let systemd = systemd();
    let text = |path: &str| std::fs::read_to_string(path).ok();
    let config = text(CONFIG);
    let address = target.spec.proxy.address.is_some();
    let papers = papers(&target, &node, &layout)?;
    // A doctor asks the other nodes' ports, too: what they answer matters once this node has joined.
    let seen = Seen::of(target).await;
    let mut facts = gather(&seen, &node, false).await;
    let adopt = super::existing::look(&seen.target.spec, &node, &layout).await;
    if facts.stage != Stage::Running
        && let Some(Adopt::Named(existing)) = &adopt
        && let Some(Ok(told)) = &existing.told
    {
        // The server that is to be adopted has this node's port until it is stopped. Where the agent runs, somebody should have it.
        facts
            .ports
            .iter_mut()
            .filter(|port| port.of == "server" && port.port == told.port)
            .for_each(|port| port.busy = Ok(false));
    }
    let findings =
        examine(&seen.target.spec, &node, &facts).into_iter().filter(|finding| finding.severity != Severity::Fine);
    let said = |finding: mainstay_plan::doctor::Finding| Said {
        check: finding.check.to_owned(),
        problem: finding.severity == Severity::Problem,
        found: finding.found,
        mend: finding.mend,
    };
    Ok(Host {
        program: None,
        config,
        config_of: super::config_of(),
        named: super::named(),
        systemd,
        unit: if systemd { whole_unit(address) } else { None },
        enabled: systemd && super::service::systemctl(&["is-enabled", "--quiet", UNIT]).await.is_ok(),
        kept: super::service::kept(&seen.target).await,
        agent: agent.map(|pid| Agent {
            pid,
            current: is_current(pid),
            elsewhere: is_elsewhere(pid),
            addressless: systemd && address && !may_address(&text(&format!("/proc/{pid}/status")).unwrap_or_default()),
        }),
        papers,
        store: layout.spec_cache().exists(),
        removed: layout.removed().exists(),
        server: facts.server.as_ref().ok().map(|server| server.major),
        data: match facts.data {
            Ok(Existing::Nothing) => None,
            Ok(Existing::Database(major)) => Some(format!("a PostgreSQL {major} database")),
            Ok(Existing::Other(names)) => Some(names.join(", ")),
            Err(why) => Some(format!("what can not be read ({why})")),
        },
        libraries: super::existing::missing_libraries(&seen.target.spec).await,
        identity: super::existing::identity(&layout),
        adopt,
        free: facts.volume.space.as_ref().ok().map(|(_, free)| *free),
        findings: findings.map(said).collect(),
    })
}

/// Does the process run the program that is installed?
fn is_current(pid: u32) -> bool {
    let file = |path: PathBuf| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let running = file(PathBuf::from(format!("/proc/{pid}/exe")));
    running.is_some() && running == file(PathBuf::from(program()))
}

/// May a process of this status give its host an address, and announce it? One that does not say it is believed: it is gone.
fn may_address(status: &str) -> bool {
    // CAP_NET_ADMIN and CAP_NET_RAW.
    const BOTH: u64 = 1 << 12 | 1 << 13;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|held| u64::from_str_radix(held.trim(), 16).ok()).is_none_or(|held| held & BOTH == BOTH)
}

/// Was the process started from another place than the program's?
fn is_elsewhere(pid: u32) -> bool {
    let place = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    // The kernel says so of a file that was replaced.
    let place = place.as_ref().and_then(|place| place.to_str()).map(|place| place.trim_end_matches(" (deleted)"));
    place.is_some_and(|place| [PROGRAM, PACKAGED].contains(&place) && place != program())
}

/// The certificates that `join` makes.
fn papers(target: &Target, node: &Node, layout: &NodeLayout) -> Outcome<Papers> {
    let member = Member::node(&target.spec, node);
    let mut wanted = vec![layout.ca_cert()];
    for purpose in member.purposes().into_keys() {
        let pair = match purpose {
            "node" => [layout.node_cert(), layout.node_key()],
            "proxy" => [layout.proxy_cert(), layout.proxy_key()],
            "server" => [layout.server_cert(), layout.server_key()],
            _ => [layout.replication_cert(), layout.replication_key()],
        };
        wanted.extend(pair);
    }
    if member.needs_verifier() {
        wanted.push(layout.app_verifier());
    }
    let (there, missing): (Vec<PathBuf>, Vec<PathBuf>) = wanted.into_iter().partition(|path| path.exists());
    if there.is_empty() {
        return Ok(Papers::None);
    }
    if let Some(missing) = missing.first() {
        return Ok(Papers::Some(format!("{} is missing", missing.display())));
    }
    whole(layout, node.witness).map_or_else(|why| Ok(Papers::Some(why)), Ok)
}

fn whole(layout: &NodeLayout, witness: bool) -> Result<Papers, String> {
    let read = |path: PathBuf| std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()));
    let wrong = |error: mainstay_net::NetError| error.to_string();
    let authority = pki::fingerprint(&read(layout.ca_cert())?).map_err(wrong)?;
    let own = read(layout.node_cert())?;
    let (identity, mut until) = pki::describe(&own).map_err(wrong)?;
    let mut names = Vec::new();
    let pairs = [
        (layout.node_cert(), layout.node_key()),
        (layout.proxy_cert(), layout.proxy_key()),
        (layout.server_cert(), layout.server_key()),
        (layout.replication_cert(), layout.replication_key()),
    ];
    for (cert, key) in pairs.into_iter().take(if witness { 2 } else { 4 }) {
        let (pem, shown) = (read(cert.clone())?, cert.display());
        // A renewal that lost its power half-way.
        if !pki::belongs(&pem, &read(key)?).map_err(wrong)? {
            return Err(format!("{shown} is not for the key beside it"));
        }
        until = until.min(pki::valid_until(&pem).map_err(wrong)?);
    }
    if !witness {
        names = pki::hosts(&read(layout.server_cert())?).map_err(wrong)?;
    }
    Ok(Papers::Whole { authority, node: identity.role.name().to_owned(), until, names })
}

#[cfg(test)]
mod tests {
    use super::may_address;

    #[test]
    fn a_process_shows_whether_it_may_give_an_address() {
        let held = |bits: &str| {
            may_address(&format!("Name:\tmainstay\nCapPrm:\t0000000000000000\nCapEff:\t{bits}\nCapBnd:\t{bits}\n"))
        };
        assert!(held("000001ffffffffff") && held("0000000000003000"));
        // One of the two is not enough.
        assert!(!held("0000000000001000") && !held("0000000000002000") && !held("0000000000000000"));
        assert!(may_address(""));
    }
}
