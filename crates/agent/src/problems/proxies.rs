//! What is wrong with proxies, as agents hear of it.

use super::{List, Look, certificate};
use mainstay_model::NodeId;
use mainstay_model::status::AddressStanding;
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

    /// The virtual address is the primary's host's, and nobody else's.
    pub(super) fn address(&self, list: &mut List) {
        let (Some(address), Some(primary)) = (self.spec.proxy.address, self.primary) else { return };
        let standing = primary.address.as_ref();
        if !standing.is_some_and(|standing| standing.held) {
            let why = standing.and_then(|standing| standing.problem.as_ref()).map(|why| format!(": {why}"));
            let node = &primary.node;
            let evidence =
                format!("{node} is the primary and has not the address {address}{}", why.unwrap_or_default());
            let hint = format!(
                "put that right on the host of {node} (not permitted: `mainstay apply` writes the unit's drop-in, then `systemctl restart \
                 mainstay-agent` on each node, one after the other, the primary's last); clients reach each node's proxy by its own address \
                 meanwhile"
            );
            list.add(("address-missing", "critical"), evidence, hint);
        } else if let Some(why) =
            standing.and_then(|standing| standing.unannounced.as_ref().or(standing.problem.as_ref()))
        {
            let evidence = format!("{} has the address {address}, and yet: {why}", primary.node);
            let hint =
                "put that right on its host; clients that knew another host for the address may not find it meanwhile";
            list.add(("address-troubled", "warning"), evidence, hint);
        }
        if let Some((other, _)) = self.others_addresses(&primary.node).find(|(_, standing)| standing.held) {
            let evidence = format!("{other} has the address {address} as well and is not the primary");
            let hint = "it ends within the lease; if it does not, restart the agent there: its kernel then takes the address away";
            list.add(("address-doubled", "warning"), evidence, hint);
        }
        for (node, standing) in self.others_addresses(&primary.node).filter(|(_, standing)| standing.foreign) {
            let why = standing.problem.as_deref().unwrap_or_default();
            let evidence = format!("{node} is not the primary: {why}");
            let hint = format!(
                "take it away on the host of {node} (`ip -o address` shows where it is): two hosts answer for it, and {node} could not take it as primary"
            );
            list.add(("address-doubled", "warning"), evidence, &hint);
        }
    }

    fn others_addresses(&self, primary: &NodeId) -> impl Iterator<Item = (&NodeId, &AddressStanding)> {
        let others = self.answers.values().filter(move |answer| answer.node != *primary);
        others.filter_map(|answer| Some((&answer.node, answer.address.as_ref()?)))
    }
}
