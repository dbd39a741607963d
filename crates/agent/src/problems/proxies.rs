//! What is wrong with proxies, as agents hear of it.

use super::{List, Look, certificate};
use std::collections::{BTreeMap, BTreeSet};

impl Look<'_> {
    /// Paused ones are told of. Those on hosts of their own have no status; what they show the agents tells when their certificates end. One that was renewed shows
    /// it to each agent in turn, so the latest end counts. A node's own proxy is told of with its node.
    pub(super) fn proxies(&self, list: &mut List) {
        let paused: BTreeSet<&String> = self.answers.values().flat_map(|answer| &answer.proxies_paused).collect();
        for name in paused {
            let evidence = format!("proxy {name}: PAUSE was said at its console; its clients wait");
            let hint = "RESUME at its console: psql to its port, database mainstay, as a superuser";
            list.add(("proxy-paused", "warning"), evidence, hint);
        }
        let mut ends: BTreeMap<&str, i64> = BTreeMap::new();
        for shown in self.answers.values().flat_map(|answer| &answer.proxies) {
            let until = ends.entry(&shown.purpose).or_insert(shown.until);
            *until = shown.until.max(*until);
        }
        ends.retain(|name, _| !self.spec.nodes.iter().any(|node| node.name.as_str() == *name));
        for (name, until) in ends {
            let way = format!(
                "`mainstay pki issue --proxy {name}` on the authority's host, `mainstay join --proxy {name} --again` on the proxy's: it is \
                 taken up while it runs"
            );
            certificate(&format!("proxy {name}: its certificate"), until, self.now_seconds(), &way, list);
        }
    }
}
