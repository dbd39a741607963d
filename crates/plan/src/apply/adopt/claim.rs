//! When the old server may be stopped: its node alone may make the first copy, and does so anew.

use mainstay_model::{ClaimState, NodeId, Term};

/// What one answer of the node's agent means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Not yet.
    Wait,
    /// The node has asked again since it was first seen to hold the right, so that this is no view of long ago, and what it began before the
    /// adoption was noted has ended without a copy.
    Ready,
    /// A first copy exists.
    Over(Term),
}

/// What counts of the record: its state, its holder, its term.
pub type Seat<'a> = (ClaimState, Option<&'a NodeId>, Term);

/// What was seen so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Claim {
    first: Option<Term>,
}

impl Claim {
    /// What this answer means: the founder by the specification in force, and the record.
    pub fn see(&mut self, node: &NodeId, founder: Option<&NodeId>, record: Option<Seat<'_>>) -> Seen {
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
