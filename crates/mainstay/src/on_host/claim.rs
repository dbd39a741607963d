//! Whether the cluster is ready for an existing server's data: its node alone may make the first copy, and does so anew.

use crate::client::{Agents, decode};
use crate::failure::{Failure, Outcome};
use crate::on_host::CONFIG;
use crate::target::Target;
use mainstay_model::api::{SpecAnswer, Standing};
use mainstay_model::{ClaimState, NodeId, Term};
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// How long this node may take to hold the right to make the first copy: a store is founded and led.
const CLAIM: Duration = Duration::from_secs(120);
const EACH: Duration = Duration::from_millis(100);

/// What one answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// Not yet.
    Wait,
    /// The node has asked again since it was first seen to hold the right, so that this is no view of long ago, and what it began before the
    /// adoption was noted has ended without a copy.
    Ready,
    /// A first copy exists.
    Over(Term),
}

/// What counts of the record: its state, its holder, its term.
type Seat<'a> = (ClaimState, Option<&'a NodeId>, Term);

/// What was seen so far.
#[derive(Default)]
struct Claim {
    first: Option<Term>,
}

impl Claim {
    fn see(&mut self, node: &NodeId, founder: Option<&NodeId>, record: Option<Seat<'_>>) -> Seen {
        let Some((state, holder, term)) = record else { return Seen::Wait };
        if state != ClaimState::Founding {
            return Seen::Over(term);
        }
        // As long as others may found as well, holding the right means nothing: what is in force must name this node.
        if holder != Some(node) || founder != Some(node) {
            self.first = None;
            return Seen::Wait;
        }
        if term > *self.first.get_or_insert(term) { Seen::Ready } else { Seen::Wait }
    }
}

/// Waits until the cluster is ready. The existing server goes on meanwhile.
///
/// # Errors
/// When it has a first copy already, or does not become ready in time.
pub(super) async fn until_claimed(node: &NodeId) -> Outcome {
    let agents = Agents::of(&Target::read(Path::new(CONFIG))?)?;
    let until = Instant::now() + CLAIM;
    let mut claim = Claim::default();
    loop {
        let spec = agents.ask(node, "GET", "/v1/spec", None).await.ok();
        let spec: Option<SpecAnswer> = spec.and_then(|answer| decode(&answer));
        // Without a generation it is the node's own file, which is nobody's wish yet.
        let stored = spec.map(|answer| answer.stored).filter(|stored| stored.generation > 0);
        let founder = stored.as_ref().and_then(|stored| stored.spec.founder());
        let standing = agents.ask(node, "GET", "/v1/standing", None).await.ok();
        let standing: Option<Standing> = standing.and_then(|answer| decode(&answer));
        let record = standing.and_then(|standing| standing.record).map(|(_, record)| record);
        let seat = record.as_ref().map(|record| (record.state, record.holder.as_ref(), record.term));
        match claim.see(node, founder, seat) {
            Seen::Ready => return Ok(()),
            Seen::Over(term) => {
                let what = format!("the cluster has its data already (term {term})");
                return Err(Failure::failed(what)
                    .hint("this run has not touched the existing server; take `adopt` out of the file to leave it"));
            }
            Seen::Wait => {}
        }
        if Instant::now() >= until {
            let what = match founder {
                Some(named) if named == node => "does not hold the right to make the first copy",
                _ => "does not go by a specification in force that names the server to adopt",
            };
            let what = format!("the cluster is not ready: after {} s the agent of {node} {what}", CLAIM.as_secs());
            return Err(Failure::not_now(what).hint(
                "this run has not touched the existing server; more than half of the agents must reach each other: mainstay status, mainstay why",
            ));
        }
        tokio::time::sleep(EACH).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_later_term_of_the_one_founder_in_force_is_ready() {
        let name = |name: &str| NodeId::new(name).unwrap();
        let (me, other) = (name("db1"), name("db2"));
        let mut claim = Claim::default();
        let mut see = |founder: Option<&NodeId>, seat: Option<Seat<'_>>| claim.see(&me, founder, seat);
        let mine = |term| Some((ClaimState::Founding, Some(&me), Term(term)));
        assert_eq!(see(Some(&me), None), Seen::Wait);
        // Nobody in force knows of a founder: an empty copy may be on its way.
        assert_eq!([4, 5].map(|term| see(None, mine(term))), [Seen::Wait, Seen::Wait]);
        assert_eq!(see(Some(&other), mine(6)), Seen::Wait);
        assert_eq!([7, 7].map(|term| see(Some(&me), mine(term))), [Seen::Wait, Seen::Wait]);
        // Another one between them begins the count anew.
        assert_eq!(see(Some(&me), Some((ClaimState::Founding, Some(&other), Term(8)))), Seen::Wait);
        assert_eq!([9, 10].map(|term| see(Some(&me), mine(term))), [Seen::Wait, Seen::Ready]);
        assert_eq!(see(Some(&me), Some((ClaimState::Held, Some(&me), Term(10)))), Seen::Over(Term(10)));
    }
}
