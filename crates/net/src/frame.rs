//! Frames: `u32 length of what follows │ u8 kind │ u8 channel │ u64 id │ body`, integers big-endian.
//!
//! The accepting side's first frame is `Hello`: only then does the caller know that its certificate was accepted. The header is
//! checked before any room for the body is made.

use mainstay_ports::peer::Channel;
use std::io::{Error, ErrorKind};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest body on every channel but Raft's, in bytes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// The longest body on Raft's channel (a snapshot of the whole store goes in one message), in bytes.
pub const RAFT_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Kind, channel, id.
const HEADER: usize = 10;
/// A body that has begun must be here within this.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest body on a channel, in bytes.
#[must_use]
pub fn body_max(channel: Channel) -> usize {
    match channel {
        Channel::Raft => RAFT_BODY_BYTES_MAX,
        Channel::Store | Channel::Mind | Channel::Route | Channel::Ask => BODY_BYTES_MAX,
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The acceptor's first: "you are in".
    Hello,
    /// One way.
    Message,
    /// Wants an answer with the same id.
    Request,
    /// The answer.
    Answer,
    /// The answer is an error, a text.
    Refused,
    /// "Are you there?"
    Ping,
    /// "Yes."
    Pong,
}

/// A kind's number on the wire is its place here.
const KINDS: [Kind; 7] =
    [Kind::Hello, Kind::Message, Kind::Request, Kind::Answer, Kind::Refused, Kind::Ping, Kind::Pong];
/// A channel's number on the wire is its place here.
const CHANNELS: [Channel; 5] = [Channel::Raft, Channel::Store, Channel::Mind, Channel::Route, Channel::Ask];

/// The place in one of the two tables; an unknown one becomes a number that the other side refuses.
fn place<T: PartialEq>(table: &[T], wanted: &T) -> u8 {
    table.iter().position(|each| each == wanted).and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX)
}

/// A whole frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) channel: Channel,
    pub(crate) id: u64,
    pub(crate) body: Vec<u8>,
}

impl Frame {
    /// A frame without body.
    pub(crate) fn bare(kind: Kind) -> Frame {
        Frame { kind, channel: Channel::Ask, id: 0, body: Vec::new() }
    }

    /// Appends its bytes.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let length = u32::try_from(HEADER + self.body.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.push(place(&KINDS, &self.kind));
        out.push(place(&CHANNELS, &self.channel));
        out.extend_from_slice(&self.id.to_be_bytes());
        out.extend_from_slice(&self.body);
    }
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

/// Reads the next frame. Waits for its first bytes for as long as it takes, for the rest not.
pub(crate) async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Frame> {
    let first = reader.read_u8().await?;
    let rest = async {
        let mut head = [0_u8; 3 + HEADER];
        reader.read_exact(&mut head).await?;
        let [l1, l2, l3, kind, channel, id @ ..] = head;
        let length = u32::from_be_bytes([first, l1, l2, l3]);
        let body = usize::try_from(length).ok().and_then(|length| length.checked_sub(HEADER));
        let body = body.ok_or_else(|| invalid("a frame shorter than its header"))?;
        let kind = *KINDS.get(usize::from(kind)).ok_or_else(|| invalid("a frame of no known kind"))?;
        let channel = *CHANNELS.get(usize::from(channel)).ok_or_else(|| invalid("a frame on no known channel"))?;
        if body > body_max(channel) {
            return Err(invalid("a frame longer than its channel allows"));
        }
        let mut frame = Frame { kind, channel, id: u64::from_be_bytes(id), body: vec![0; body] };
        reader.read_exact(&mut frame.body).await?;
        Ok(frame)
    };
    tokio::time::timeout(BODY_TIMEOUT, rest).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_kind_and_channel_survives_a_round_trip() {
        for kind in KINDS {
            for channel in CHANNELS {
                let frame = Frame { kind, channel, id: 7 << 40, body: b"body".to_vec() };
                let mut bytes = Vec::new();
                frame.put(&mut bytes);
                assert_eq!(read_frame(&mut bytes.as_slice()).await.unwrap(), frame);
            }
        }
    }

    #[tokio::test]
    async fn lies_about_the_length_cost_no_memory() {
        for (length, kind, channel) in
            [(9_u32, 1, 0), (u32::MAX, 1, 0), (1024 * 1024 + 11, 1, 2), (10, 7, 0), (10, 1, 5)]
        {
            let mut bytes = length.to_be_bytes().to_vec();
            bytes.extend_from_slice(&[kind, channel]);
            bytes.extend_from_slice(&[0; 64]);
            let error = read_frame(&mut bytes.as_slice()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{length} {kind} {channel}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_ends_the_connection() {
        let (mut near, mut far) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut far, &[0, 0, 0, 20, 1, 0]).await.unwrap();
        let error = read_frame(&mut near).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
