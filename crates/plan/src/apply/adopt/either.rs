//! What is asked of either, the server that is adopted and a standby that comes along: how its data lie, what would start it again, whether it answers.

use super::{Existing, Told};
use crate::apply::facts::{Inventory, Wanted};
use mainstay_model::shell::quote;
use mainstay_model::spec::Node;

/// What it says of itself; what else is told if it does not. `stopped`: if it does not run, and no earlier run has stopped it, when it was asked.
pub(super) fn answers<'a>(
    existing: &'a Existing,
    stopped: (String, String),
    say: &mut impl FnMut(String, String),
) -> Option<&'a Told> {
    let dir = &existing.directory;
    match (&existing.told, existing.pid) {
        (Some(Ok(told)), _) => return Some(told),
        (Some(Err(why)), _) => say(
            format!("the server of {dir} does not answer as postgres on its own socket: {why}"),
            format!(
                "let the operating-system user of {dir} in as postgres: the line `local all postgres peer` of its pg_hba.conf, first; then reload it. One that an \
                 earlier run has told to stop answers nobody: wait until it has ended (its log says for what it waits), then apply again"
            ),
        ),
        (None, Some(pid)) => say(
            format!("process {pid} works in {dir} and is no server that answers"),
            format!("look at it: ps -p {pid} -f"),
        ),
        (None, None) if existing.noted.is_none() => say(stopped.0, stopped.1),
        (None, None) => {}
    }
    None
}

pub(super) fn not_there(existing: &Existing, key: &str, say: &mut impl FnMut(String, String)) {
    let (dir, why) = (&existing.directory, existing.no_data.as_deref().unwrap_or_default());
    let mend = format!(
        "name the data directory itself with `{key}` (psql: show data_directory); if the adoption is long over, take the line out of the file"
    );
    say(format!("the server that is to be adopted is not there: {dir} {why}"), mend);
}

pub(super) fn runs_again(existing: &Existing, say: &mut impl FnMut(String, String)) {
    for manager in &existing.managers {
        let mend = format!(
            "end it and let it not be started again, its server untouched (systemctl disable --now {manager}; first, where it has a mode for that, let it go: patronictl pause)"
        );
        say(format!("{manager} runs there: it would start the server of {} again", existing.directory), mend);
    }
}

/// `of_standby`: it is to be one.
pub(super) fn on_disk(
    wanted: &Wanted<'_>,
    inventory: &Inventory,
    node: &Node,
    existing: &Existing,
    of_standby: bool,
    say: &mut impl FnMut(String, String),
) {
    let dir = &existing.directory;
    match (existing.system, existing.noted) {
        (None, _) => say(
            format!("the control file of {dir} can not be read: whose data those are is not known"),
            format!("see what pg_controldata -D {} says there, with the programs of that version", quote(dir)),
        ),
        (Some(system), Some(noted)) if system != noted => say(
            format!("{dir} holds other data than those whose adoption began (system identifier {system})"),
            "look where those are; the note is agent/adopted.json in the node's directory".into(),
        ),
        _ => {}
    }
    if let Some(programs) =
        inventory.host(&node.name).and_then(|host| host.server).filter(|major| *major != existing.major)
    {
        say(
            format!("{dir} is of PostgreSQL {}, and servers of this node are PostgreSQL {programs}", existing.major),
            format!(
                "name the programs of PostgreSQL {} with bin_dir under [postgres], and install them on every node",
                existing.major
            ),
        );
    }
    if existing.major < 15 {
        say(
            format!("{dir} is of PostgreSQL {}: 15 is the oldest that is supported", existing.major),
            "upgrade that server first (pg_upgradecluster)".into(),
        );
    }
    if let Some((theirs, ours)) = &existing.owner {
        say(
            format!("{dir} belongs to {theirs}, and servers run as {ours} here"),
            format!("with that server stopped: chown -R {} {}", quote(ours), quote(dir)),
        );
    }
    if let Some(mode) = existing.mode {
        say(format!("{dir} has mode {mode:o}, with which no server starts"), format!("chmod 700 {}", quote(dir)));
    }
    if let Some(why) = &existing.elsewhere {
        let shown = wanted.spec.node_dir(node);
        say(
            format!("{dir} can not be moved into {} in one step: {why}", shown.display()),
            "give the node a directory on the same file system: `dir` of that [[node]], for example a new directory beside the data; nothing is copied".into(),
        );
    }
    for (name, target) in &existing.links {
        say(
            format!("{name} in {dir} leads to {target}: a server with places outside its directory is not adopted"),
            "bring it back first: ALTER TABLE … SET TABLESPACE pg_default and DROP TABLESPACE; for pg_wal, with the server stopped, move the directory back into its place".into(),
        );
    }
    left_in_order(existing, of_standby, say);
}

fn left_in_order(existing: &Existing, of_standby: bool, say: &mut impl FnMut(String, String)) {
    let dir = &existing.directory;
    let wanted = if of_standby { "shut down in recovery" } else { "shut down" };
    let clean = existing.pid.is_some() || existing.state == wanted;
    if !clean && (of_standby || !existing.standby) {
        say(
            format!("the server of {dir} was not shut down in order (it is {})", existing.state),
            first(existing, "start it by its own means, then apply again"),
        );
    }
    let recovers = existing.told.as_ref().and_then(|told| told.as_ref().ok()).is_some_and(|told| told.in_recovery);
    if !of_standby && (existing.standby || recovers) {
        say(
            format!("the server of {dir} is a standby"),
            "name its primary with `adopt`, on that server's node, and this one with `adopt_standby`".into(),
        );
    }
}

/// An interrupted adoption has seen to it that nobody starts the server: that is taken back first.
pub(super) fn first(existing: &Existing, mend: &str) -> String {
    match existing.undo.as_slice() {
        [] => mend.to_owned(),
        undo => format!("{}; then {mend}", undo.join("; ")),
    }
}

/// What keeps the directory, and nothing but the directory, from going where it is to go.
pub(super) fn places(existing: &Existing, say: &mut impl FnMut(String, String)) {
    let dir = &existing.directory;
    for mount in &existing.mounts {
        say(
            format!("a file system is mounted at {mount}: it does not go with {dir}"),
            "with that server stopped, bring what it holds into the directory below it, and take the mount away (also from /etc/fstab)".into(),
        );
    }
    if let Some(place) = &existing.occupied {
        say(
            format!("{place}, where the data of {dir} will lie, is not empty"),
            format!(
                "it may be what an interrupted start made: look at it; then, with the agent there stopped, mv {} {}",
                quote(place),
                quote(&format!("{place}.old"))
            ),
        );
    }
    for stranger in &existing.strangers {
        say(
            format!("{stranger} works in {dir} and is not of its server: the stop would wait for it"),
            "let it leave that directory, or end it".into(),
        );
    }
}
