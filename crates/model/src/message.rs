//! What agents tell each other. One-way messages: they may be lost, late or repeated.

use crate::{CopyId, LogEnd, Moment, Position, Revision, ServerState, Span, Term, Timeline};
use serde::{Deserialize, Serialize};

/// A node's standing, sent to every peer each ping interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Random per process life: tells a restarted agent from the old one.
    pub life: u64,
    /// The node's promise.
    pub promise: Term,
    /// The newest record it has seen.
    pub revision: Revision,
    /// Its copy, if whole.
    pub copy: Option<CopyId>,
    /// What its server does.
    pub server: ServerState,
    /// It is primary of this term: its own successful write says so, and its deadline lies ahead.
    pub primary_of: Option<Term>,
    /// Clients may enter (primary only).
    pub open: bool,
    /// How far its log reaches, as last observed (a hint for people and for the order of candidates, never a proof).
    pub position: Option<Position>,
    /// How long ago it last heard the record's holder; `None` = never.
    pub holder_heard: Option<Span>,
    /// By the sender's clock.
    pub sent: Moment,
    /// The newest presence of the receiver that the sender has read was sent then, by the receiver's own clock: what comes back to whoever sent it
    /// proves when this was said, whatever clocks do. Versions before this have none.
    #[serde(default)]
    pub echo: Option<Moment>,
}

/// A recruit's answer: "I follow no older term, my stream is cut, and here my log ends."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The term it promised.
    pub term: Term,
    /// Its copy.
    pub copy: CopyId,
    /// The exact end of its log.
    pub end: LogEnd,
}

/// A message between agents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Periodic.
    Presence(Presence),
    /// "Would you answer me, and do you hear the holder of this term?" Sent before a term is raised.
    Ask {
        /// The term whose holder is in doubt.
        term: Term,
    },
    /// Reply to `Ask`.
    Told {
        /// The term asked about.
        term: Term,
        /// It heard that holder within the suspicion time.
        hears: bool,
        /// It would answer a recruit: whole copy, no newer term known.
        would_answer: bool,
    },
    /// "Promise term T, cut your stream, tell me where your log ends."
    Recruit {
        /// The candidate's term.
        term: Term,
    },
    /// Reply to `Recruit`.
    Answer(Answer),
    /// The primary to its replicas: on which timeline it really runs (a hint that speeds up following).
    Open {
        /// Its term.
        term: Term,
        /// Its timeline.
        timeline: Timeline,
    },
}
