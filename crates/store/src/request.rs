//! What one member asks of another over the store channel, and the answers.

use crate::codec::{In, Malformed, Out};
use crate::command::Command;
use mainstay_model::{NodeId, Revision};
use mainstay_ports::store::Versioned;
use std::time::Duration;

/// Longest time that a request may name.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// A change of the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    AddLearner,
    AddVoter,
    Remove,
}

/// What to do. Only the leader does it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Cas(Command),
    Read { key: String },
    Transfer { to: NodeId },
    Change { change: Change, node: NodeId },
    Progress { node: NodeId },
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Written at this revision.
    Done(u64),
    /// The key holds something else.
    Conflict(Option<Versioned>),
    /// It may have happened.
    Unknown,
    /// It did not and will not happen; trying again is of no use.
    Never(String),
    /// It did not and will not happen; another try, perhaps with another leader, may work.
    NotProposed(String),
    /// What was read.
    Value(Option<Versioned>),
    /// A change of the members took effect, or a transfer began.
    Started,
    /// How far a member is.
    Progress { member: bool, voter: bool, matched: u64, committed: u64 },
}

impl Request {
    pub(crate) fn encode(&self, group: u64, timeout: Duration) -> Vec<u8> {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let out = Out::default().u64(group).u64(millis);
        match self {
            Request::Cas(command) => out.u8(1).bytes(&command.encode()),
            Request::Read { key } => out.u8(2).bytes(key.as_bytes()),
            Request::Transfer { to } => out.u8(3).bytes(to.as_str().as_bytes()),
            Request::Change { change, node } => {
                let change = match change {
                    Change::AddLearner => 1,
                    Change::AddVoter => 2,
                    Change::Remove => 3,
                };
                out.u8(4).u8(change).bytes(node.as_str().as_bytes())
            }
            Request::Progress { node } => out.u8(5).bytes(node.as_str().as_bytes()),
        }
        .0
    }

    /// The asker's store, the request, and how long it may take.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(u64, Self, Duration), Malformed> {
        let mut input = In(bytes);
        let group = input.u64()?;
        let timeout = Duration::from_millis(input.u64()?).min(TIMEOUT_MAX);
        let request = match input.u8()? {
            1 => Request::Cas(Command::decode(input.bytes()?)?),
            2 => Request::Read { key: input.text()? },
            3 => Request::Transfer { to: node(&mut input)? },
            4 => {
                let change = match input.u8()? {
                    1 => Change::AddLearner,
                    2 => Change::AddVoter,
                    3 => Change::Remove,
                    _ => return Err(Malformed),
                };
                Request::Change { change, node: node(&mut input)? }
            }
            5 => Request::Progress { node: node(&mut input)? },
            _ => return Err(Malformed),
        };
        input.end()?;
        Ok((group, request, timeout))
    }
}

fn node(input: &mut In<'_>) -> Result<NodeId, Malformed> {
    NodeId::new(input.text()?).map_err(|_| Malformed)
}

fn put_versioned(out: Out, versioned: Option<&Versioned>) -> Out {
    match versioned {
        None => out.u8(0),
        Some(versioned) => out.u8(1).u64(versioned.revision.0).bytes(&versioned.value),
    }
}

fn take_versioned(input: &mut In<'_>) -> Result<Option<Versioned>, Malformed> {
    match input.u8()? {
        0 => Ok(None),
        1 => Ok(Some(Versioned { revision: Revision(input.u64()?), value: input.bytes()?.to_vec() })),
        _ => Err(Malformed),
    }
}

impl Answer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let out = Out::default();
        match self {
            Answer::Done(revision) => out.u8(1).u64(*revision),
            Answer::Conflict(present) => put_versioned(out.u8(2), present.as_ref()),
            Answer::Unknown => out.u8(3),
            Answer::Never(why) => out.u8(4).bytes(why.as_bytes()),
            Answer::NotProposed(why) => out.u8(5).bytes(why.as_bytes()),
            Answer::Value(value) => put_versioned(out.u8(6), value.as_ref()),
            Answer::Started => out.u8(7),
            Answer::Progress { member, voter, matched, committed } => {
                out.u8(8).u8(u8::from(*member)).u8(u8::from(*voter)).u64(*matched).u64(*committed)
            }
        }
        .0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = In(bytes);
        let answer = match input.u8()? {
            1 => Answer::Done(input.u64()?),
            2 => Answer::Conflict(take_versioned(&mut input)?),
            3 => Answer::Unknown,
            4 => Answer::Never(input.text()?),
            5 => Answer::NotProposed(input.text()?),
            6 => Answer::Value(take_versioned(&mut input)?),
            7 => Answer::Started,
            8 => Answer::Progress {
                member: input.u8()? == 1,
                voter: input.u8()? == 1,
                matched: input.u64()?,
                committed: input.u64()?,
            },
            _ => return Err(Malformed),
        };
        input.end()?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_round_trip() {
        let node = NodeId::new("db1").unwrap();
        let requests = [
            Request::Cas(Command { key: "k".into(), expected: None, value: vec![1, 2] }),
            Request::Read { key: "k".into() },
            Request::Transfer { to: node.clone() },
            Request::Change { change: Change::Remove, node: node.clone() },
            Request::Progress { node },
        ];
        for request in requests {
            let bytes = request.encode(3, Duration::from_millis(1500));
            assert_eq!(Request::decode(&bytes), Ok((3, request, Duration::from_millis(1500))));
            assert_eq!(Request::decode(&bytes[..bytes.len() - 1]), Err(Malformed));
        }
        let versioned = Versioned { revision: Revision(9), value: vec![3] };
        let answers = [
            Answer::Done(3),
            Answer::Conflict(None),
            Answer::Conflict(Some(versioned)),
            Answer::Unknown,
            Answer::Never("no".into()),
            Answer::NotProposed("later".into()),
            Answer::Value(None),
            Answer::Started,
            Answer::Progress { member: true, voter: false, matched: 1, committed: 2 },
        ];
        for answer in answers {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
    }
}
