//! Is the last runbook still true? A copy on paper shows nobody that it is not.

use super::{List, Look};
use crate::status::rfc3339;
use mainstay_model::config_assign::difference;

/// So many changed keys are named.
const KEYS_SHOWN: usize = 4;

impl Look<'_> {
    pub(super) fn runbook(&self, list: &mut List) {
        let Some(made) = &self.beside.runbook else { return };
        let both = |node: &str| {
            [&made.spec, self.spec].iter().all(|spec| spec.nodes.iter().any(|one| one.name.as_str() == node))
        };
        // A node that came or went is one change, not one for each of its keys.
        let key = |key: String| match key.strip_prefix("node.").and_then(|rest| rest.split_once('.')) {
            Some((node, _)) if !both(node) => format!("node.{node}"),
            _ => key,
        };
        let mut changed: Vec<String> = difference(&made.spec, self.spec).into_iter().map(|one| key(one.key)).collect();
        changed.dedup();
        if changed.is_empty() {
            return;
        }
        let more = changed.len().saturating_sub(KEYS_SHOWN);
        changed.truncate(KEYS_SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let day: String = rfc3339(made.wall_ms).chars().take(10).collect();
        let evidence = format!(
            "the last runbook, made by {} on {day} from generation {}, says what was then; changed since: {}{more}",
            made.by,
            made.generation,
            changed.join(", ")
        );
        let hint = "`mainstay runbook --html FILE` makes it anew: replace every copy, those on paper too; `mainstay runbook --forget` if nobody \
                    keeps one";
        list.add(("runbook-outdated", "warning"), evidence, hint);
    }
}
