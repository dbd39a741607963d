//! What a change of the specification means, beyond its keys: what it costs, when it takes effect, and what is not changed this way.

use crate::failure::{Failure, Outcome};
use mainstay_model::config_assign::Difference;
use mainstay_model::config_reference::{Effect, Key, find};
use mainstay_model::spec::Spec;
use mainstay_model::{Durability, SystemId};

/// The key's entry in the table of all keys: a node's keys without its name.
fn entry(key: &str) -> Option<&'static Key> {
    let of_node = || {
        key.strip_prefix("node.")
            .and_then(|rest| rest.split_once('.'))
            .and_then(|(_, field)| find(&format!("node.{field}")))
    };
    let of_repository = || {
        key.strip_prefix("vault.repository.")
            .and_then(|rest| rest.split_once('.'))
            .and_then(|(_, field)| find(&format!("vault.repository.{field}")))
    };
    find(key)
        .or_else(of_node)
        .or_else(of_repository)
        .or_else(|| key.starts_with("postgres.parameters.").then(|| find("postgres.parameters")).flatten())
}

/// Refuses what `set` does not change; an edited file may try.
///
/// # Errors
/// Names each such key and what to use instead.
pub(crate) fn refuse(old: &Spec, new: &Spec, differences: &[Difference]) -> Outcome {
    let mut found = Vec::new();
    for node in &new.nodes {
        if old.node(&node.name).is_none() {
            found.push(format!("{} is a new node: `mainstay node add {} --host {}`", node.name, node.name, node.host));
        }
    }
    for node in &old.nodes {
        if new.node(&node.name).is_none() {
            found.push(format!("{} is missing: `mainstay node remove {}`", node.name, node.name));
        }
    }
    let in_both = |key: &str| {
        let name = key.strip_prefix("node.").and_then(|rest| rest.split_once('.')).map(|(name, _)| name);
        let has = |spec: &Spec| spec.nodes.iter().any(|node| Some(node.name.as_str()) == name);
        name.is_none() || (has(old) && has(new))
    };
    for difference in differences.iter().filter(|difference| in_both(&difference.key)) {
        if let Some(Effect::Elsewhere(instead)) = entry(&difference.key).map(|key| key.effect) {
            found.push(format!("{difference}: {instead}"));
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    Err(Failure::usage(format!("not changed by `mainstay set`:\n{}", found.join("\n"))).hint("nothing was changed"))
}

/// Would this take an existing server's data out that are to be the first copy, while there is none? Another node would make an empty one.
pub(crate) fn takes_first_copy(old: &Spec, new: &Spec) -> bool {
    let named = |spec: &Spec| {
        spec.founder().and_then(|node| spec.node(node)).map(|node| (node.name.clone(), node.adopt.clone()))
    };
    let before = named(old);
    before.is_some() && before != named(new)
}

/// Refuses that as long as nothing shows a first copy: `data`, its identity by the record.
///
/// # Errors
/// Says what would happen, and how it is done.
pub(crate) fn keep_first_copy(old: &Spec, new: &Spec, data: Option<SystemId>) -> Outcome {
    let Some(founder) = old.founder().filter(|_| data.is_none() && takes_first_copy(old, new)) else { return Ok(()) };
    Err(Failure::not_now(format!(
        "the server that {founder} adopts is to be the first copy, and there is none yet: without that line another node would make an empty one, beside its data"
    ))
    .hint("nothing was changed; let it be adopted (`mainstay apply`), or take the line out of the file and apply that: it looks first where the data are"))
}

/// What to know before it is confirmed.
pub(crate) fn notes(old: &Spec, new: &Spec, differences: &[Difference]) -> Vec<String> {
    let mut found = Vec::new();
    if old.cluster.durability != new.cluster.durability {
        found.push(match new.cluster.durability {
            Durability::Strict => "Durability strict: with too few replicas, writes are blocked rather than acknowledged.",
            Durability::Available => {
                "Durability available: when no replica is left, the primary goes on alone and says so; if it then fails for good, what it alone holds is lost."
            }
            Durability::Async => {
                "Durability async: no commit waits for a replica; a take-over may lose the newest commits, and reports them."
            }
        }.to_owned());
    }
    let mut starts: Vec<String> = differences
        .iter()
        .filter_map(|difference| match entry(&difference.key)?.effect {
            Effect::NextStart(what) => Some(format!("with the next start of {what}")),
            Effect::Soon(what) => Some(format!("within seconds at {what}")),
            Effect::AtOnce | Effect::Elsewhere(_) => None,
        })
        .collect();
    starts.sort_unstable();
    starts.dedup();
    found.extend(starts.into_iter().map(|when| format!("Takes effect {when}.")));
    let times = ["failover.ping_ms", "failover.suspicion_ms", "failover.lease_ms"];
    if differences.iter().any(|difference| times.contains(&difference.key.as_str())) {
        found.push(format!(
            "A silent primary is then suspected after {} ms, and without synchronous replicas replaced after its lease of {} ms.",
            new.failover.suspicion_ms, new.failover.lease_ms
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::config::parse;
    use mainstay_model::config_assign::difference;

    const FILE: &str = "[cluster]\nname = \"a\"\n[[node]]\nname = \"db1\"\nhost = \"10.0.0.1\"\n[[node]]\nname = \"db2\"\nhost = \"10.0.0.2\"\n";

    fn changed(edit: impl Fn(&str) -> String) -> (Spec, Spec, Vec<Difference>) {
        let (old, new) = (parse(FILE, &[]).unwrap(), parse(&edit(FILE), &[]).unwrap());
        let differences = difference(&old, &new);
        (old, new, differences)
    }

    fn refused(edit: impl Fn(&str) -> String) -> String {
        let (old, new, differences) = changed(edit);
        refuse(&old, &new, &differences).map_or_else(|failure| failure.error, |()| String::new())
    }

    #[test]
    fn a_file_does_not_smuggle_in_what_set_refuses() {
        assert!(refused(|file| file.replace("\"a\"", "\"b\"")).contains("keeps its name"));
        assert!(refused(|file| file.replace("10.0.0.2", "10.0.0.3")).contains("mainstay node replace"));
        assert!(
            refused(|file| format!("{file}[[node]]\nname = \"db3\"\nhost = \"10.0.0.3\"\n"))
                .contains("mainstay node add db3 --host 10.0.0.3")
        );
        assert!(
            refused(|file| file.replace("[[node]]\nname = \"db2\"\nhost = \"10.0.0.2\"\n", ""))
                .contains("mainstay node remove db2")
        );
        assert_eq!(refused(|file| format!("{file}zone = \"b\"\n[failover]\nlease_ms = 4000\n")), "");
    }

    #[test]
    fn what_is_to_be_the_first_copy_stays_named_until_there_is_one() {
        let named = FILE.replace("host = \"10.0.0.1\"\n", "host = \"10.0.0.1\"\nadopt = \"/srv/main\"\n");
        let read = |text: &str| parse(text, &[]).unwrap();
        let (old, out, other) = (read(&named), read(FILE), read(&named.replace("/srv/main", "/srv/other")));
        for new in [&out, &other] {
            assert!(keep_first_copy(&old, new, None).unwrap_err().error.contains("an empty one"));
            assert!(keep_first_copy(&old, new, Some(SystemId(7))).is_ok());
        }
        assert!(keep_first_copy(&out, &old, None).is_ok() && keep_first_copy(&old, &old, None).is_ok());
    }

    #[test]
    fn costs_and_effects_are_said() {
        let noted = |text: &str| {
            let (old, new, differences) = changed(|file| format!("{file}{text}"));
            notes(&old, &new, &differences).join("\n")
        };
        assert!(noted("[failover]\nlease_ms = 4000\n").contains("its lease of 4000 ms"));
        assert!(noted("[proxy]\nhold_ms = 1\n").contains("within seconds at each proxy"));
        assert!(noted("[proxy]\nthreads = 2\n").contains("next start of each proxy"));
        assert!(noted("[postgres.parameters]\nmax_connections = 300\n").contains("for parameters that need it"));
        let (old, new, differences) = changed(|file| file.replace("\"a\"\n", "\"a\"\ndurability = \"async\"\n"));
        assert!(notes(&old, &new, &differences)[0].contains("may lose the newest commits"));
    }
}
