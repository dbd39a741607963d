//! Standbys of the adopted server that the file names (`adopt_standby`): their data become replicas without a clone (docs/adr/0045). They follow the
//! old server to its end, so that they have all of its log; only then they are stopped.

use super::either::{answers, first, not_there, on_disk, places, runs_again};
use super::{Adopt, Existing, Fate, Setting, Stream, Told, access, carried, has_data, of, pending, slots, toml, words};
use crate::apply::facts::{Inventory, Wanted};
use crate::apply::obstacles::Obstacle;
use mainstay_model::NodeId;
use mainstay_model::shell::quote;
use mainstay_model::spec::Node;
use std::collections::BTreeMap;

/// The standbys whose data are still to be brought: to which node, and what is known of each.
#[must_use]
pub fn standbys<'a>(wanted: &Wanted<'_>, inventory: &'a Inventory) -> Vec<(NodeId, &'a Existing)> {
    let Some((_, primary)) = pending(wanted, inventory) else { return Vec::new() };
    let named = wanted.spec.data_nodes().filter(|node| node.adopt_standby.is_some());
    let known = |node: &Node| match inventory.host(&node.name)?.adopt.as_ref()? {
        Adopt::Named(existing) if is_halfway(primary) && !comes_along(primary, existing) => None,
        Adopt::Named(existing) => Some((node.name.clone(), &**existing)),
        Adopt::Taken | Adopt::Unnamed { .. } => None,
    };
    named.filter_map(known).collect()
}

/// An earlier run has stopped the primary: clients are away, and nothing of a standby is a reason to keep them waiting. One that can not be brought
/// is left where it is.
fn is_halfway(primary: &Existing) -> bool {
    primary.noted.is_some() && primary.pid.is_none()
}

fn comes_along(primary: &Existing, existing: &Existing) -> bool {
    let fits = existing.no_data.is_none() && existing.standby && existing.system == primary.system;
    fits && (existing.pid.is_some() || existing.state == "shut down in recovery")
}

/// Those of them that follow the adopted server now, itself: one behind another standby is none of those that it sees.
pub(super) fn followers<'a>(wanted: &Wanted<'_>, inventory: &'a Inventory, primary: &Existing) -> Vec<&'a Told> {
    let all = standbys(wanted, inventory).into_iter().filter(|(_, existing)| existing.system == primary.system);
    let told = all.filter_map(|(_, existing)| existing.told.as_ref()?.as_ref().ok());
    told.filter(|told| told.receives && follows(told, primary)).collect()
}

/// Does the adopted server see this standby? One that can not be asked has said nothing against it.
fn follows(told: &Told, primary: &Existing) -> bool {
    match &primary.told {
        Some(Ok(theirs)) => theirs.standbys.iter().any(|stream| stream.is(told)),
        _ => true,
    }
}

/// The slots through which they do so.
#[must_use]
pub fn slots_of_standbys(wanted: &Wanted<'_>, inventory: &Inventory) -> Vec<String> {
    let Some((_, primary)) = pending(wanted, inventory) else { return Vec::new() };
    followers(wanted, inventory, primary).into_iter().filter_map(|told| told.slot.clone()).collect()
}

/// What stands in the way of one.
pub(super) fn obstacles(wanted: &Wanted<'_>, inventory: &Inventory, node: &Node, found: &mut Vec<Obstacle>) {
    if node.adopt_standby.is_some() && wanted.spec.founder().is_none() && !has_data(inventory) {
        found.push(Obstacle::on(
            &node.name,
            "a standby is named with adopt_standby, and no node names its primary with adopt",
            "name that server's data directory in the [[node]] on its host; or take the line out",
        ));
    }
    let all = standbys(wanted, inventory);
    let Some((_, existing)) = all.iter().find(|(name, _)| *name == node.name) else { return };
    let Some((_, primary)) = pending(wanted, inventory).filter(|(_, primary)| !is_halfway(primary)) else { return };
    let mut say = |what: String, mend: String| found.push(Obstacle::on(&node.name, what, mend));
    let dir = &existing.directory;
    if existing.no_data.is_some() {
        return not_there(existing, "adopt_standby", &mut say);
    }
    if inventory.in_force.as_ref().is_some_and(|stored| stored.spec.node(&node.name).is_none()) {
        say(
            format!("the standby of {dir} is to come along, and its node is not one of the cluster's yet"),
            "take the line out for now: the node then becomes a copy by a clone".into(),
        );
    }
    on_disk(wanted, inventory, node, existing, true, &mut say);
    places(existing, &mut say);
    runs_again(existing, &mut say);
    if primary.no_data.is_none() && existing.system != primary.system {
        say(
            format!("{dir} is no standby of the adopted server: it has another system identifier"),
            "name its standby's data directory; or take the line out: the node then becomes a copy by a clone".into(),
        );
    }
    let stopped = (
        format!("the standby of {dir} does not run: it must follow the adopted server to its end"),
        first(
            existing,
            "start it by its own means, and let it catch up; or take the line out: the node then becomes a copy by a clone",
        ),
    );
    let Some(told) = answers(existing, stopped, &mut say) else { return };
    as_told(wanted, existing, told, &mut say);
    beside(wanted, existing, told, primary, &mut say);
}

/// What shows only where both are looked at.
fn beside(
    wanted: &Wanted<'_>,
    existing: &Existing,
    told: &Told,
    primary: &Existing,
    say: &mut impl FnMut(String, String),
) {
    let dir = &existing.directory;
    if told.receives && existing.system == primary.system && !follows(told, primary) {
        let from = told.source.as_deref().unwrap_or("somewhere");
        say(
            format!("the standby of {dir} does not follow the adopted server itself: its log comes from {from}, over a connection that the adopted server does not see"),
            "let it follow that server directly (primary_conninfo): not another standby, nor through what translates addresses; or it has just connected anew: \
             apply again; or take the line out: the node then becomes a copy by a clone"
                .into(),
        );
    }
    if let Some(Ok(theirs)) = &primary.told {
        otherwise(dir, told, theirs, say);
        of_its_own(wanted, dir, told, theirs, say);
    }
}

fn as_told(wanted: &Wanted<'_>, existing: &Existing, told: &Told, say: &mut impl FnMut(String, String)) {
    let dir = &existing.directory;
    if !told.in_recovery {
        let mend = "find out which of the two has the writes that count, before anything else; name that one's directory with `adopt`";
        return say(format!("the server of {dir} is no standby: it takes writes of its own"), mend.into());
    }
    if !told.receives {
        say(
            format!("the standby of {dir} receives nothing from its primary: it would not have all of its log"),
            "see in its log why; or take the line out: the node then becomes a copy by a clone".into(),
        );
    }
    let delay = |setting: &&Setting| setting.name.eq_ignore_ascii_case("recovery_min_apply_delay");
    if let Some(delay) = told.settings.iter().find(delay).filter(|setting| setting.value != "0") {
        say(
            format!("the standby of {dir} applies its log late (recovery_min_apply_delay = {}): as a node it would not any more", delay.value),
            "keep it as it is, for another cluster's sake or as a protection, and take the line out: the node then becomes a copy by a clone".into(),
        );
    }
    for standby in &told.standbys {
        let mend = "let it follow the primary itself, or stop it";
        say(format!("a standby follows the standby of {dir}: {standby}"), mend.into());
    }
    slots(&told.slots, dir, &[], say);
    // It goes with the data, and counts before the file once this node is the primary.
    carried::files(told, dir, say);
    carried::automatic(wanted.spec, told, dir, say);
}

/// What ALTER SYSTEM has set on one of the two only would change with each take-over.
fn otherwise(dir: &str, told: &Told, primary: &Told, say: &mut impl FnMut(String, String)) {
    fn automatic(told: &Told) -> BTreeMap<&str, &str> {
        let counts = told.settings.iter().filter(|setting| setting.automatic && !setting.owned);
        counts.map(|setting| (setting.name.as_str(), setting.value.as_str())).collect()
    }
    let (its, theirs) = (automatic(told), automatic(primary));
    let names = its.keys().chain(theirs.keys()).filter(|name| its.get(*name) != theirs.get(*name));
    let mut names: Vec<&str> = names.copied().collect();
    names.sort_unstable();
    names.dedup();
    if !names.is_empty() {
        say(
            format!("the standby of {dir} has by ALTER SYSTEM other values than its primary: {}", names.join(", ")),
            "make them the same, with ALTER SYSTEM on the standby as well, and reload it: they go with the data, and count before the file".into(),
        );
    }
}

/// What stands in its own files and nobody was asked about with its primary: as a node it has what the file says, as all have.
fn of_its_own(wanted: &Wanted<'_>, dir: &str, told: &Told, primary: &Told, say: &mut impl FnMut(String, String)) {
    let theirs = |one: &Setting| {
        let mut open = of(&primary.settings, wanted.spec, Fate::Open).into_iter();
        open.find(|theirs| theirs.name.eq_ignore_ascii_case(&one.name))
    };
    let (mut shown, mut lines) = (Vec::new(), Vec::new());
    for one in of(&told.settings, wanted.spec, Fate::Open) {
        match theirs(one) {
            Some(theirs) if theirs.value == one.value => {}
            // Which line could be pasted is told with the primary: one value is to be decided on.
            Some(_) => shown.push(format!("{} (another value than its primary's)", words::setting(one))),
            None => {
                shown.push(words::setting(one));
                lines.push(words::line(one, wanted.spec));
            }
        }
    }
    if !shown.is_empty() {
        let lines =
            if lines.is_empty() { String::new() } else { format!("; as they are there:\n{}", lines.join("\n")) };
        say(
            format!("the standby of {dir} has parameters that the file does not mention: {}", shown.join(", ")),
            format!("every node has what the file says: write under [postgres.parameters] what each is to be{lines}"),
        );
    }
    let lines: Vec<_> = told.access.iter().filter(|line| !primary.access.contains(line)).cloned().collect();
    access(wanted.spec, &lines, dir, say);
}

/// Standbys of the adopted server that would be left behind.
pub(super) fn left_behind(existing: &Existing, told: &Told, followers: &[&Told], say: &mut impl FnMut(String, String)) {
    let named = |stream: &&Stream| followers.iter().any(|known| stream.is(known));
    let left: Vec<String> = told.standbys.iter().filter(|stream| !named(stream)).map(ToString::to_string).collect();
    if left.is_empty() {
        return;
    }
    let dir = &existing.directory;
    say(
        format!("standbys stream from the server of {dir} that the file does not name: {}", left.join(", ")),
        format!(
            "name each one's data directory in the [[node]] on its host, and it is taken over without a copy: adopt_standby = {}; or stop it, and drop \
             its slot: nodes of the file are cloned anew, and others can not follow any more",
            toml("/var/lib/postgresql/15/main")
        ),
    );
}

/// What is told of them before anybody is asked.
pub(super) fn told(wanted: &Wanted<'_>, inventory: &Inventory) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, existing) in standbys(wanted, inventory) {
        let Some(node) = wanted.spec.node(&name) else { continue };
        let (dir, to) = (&existing.directory, wanted.spec.node_dir(node).join("data"));
        lines.push(format!("{name}: the standby of {dir} becomes its copy, without a clone"));
        lines.push(format!(
            "  it follows the old server to its end, is stopped then, and its data are moved to {} by a rename; until then it answers reads",
            to.display()
        ));
        lines.extend(existing.keepers.iter().map(|keeper| format!("  it is not started there again: {keeper}")));
        lines.push(format!(
            "  if its log is no beginning of the primary's after all, its data stay in {} and a clone is made",
            quote(&wanted.spec.node_dir(node).join("data.adopted").display().to_string())
        ));
    }
    lines
}
