//! What agent and guard say to each other: one JSON object per line, over a Unix socket, bounded in length.
//! Absent: any secret, and any order that would need more than the server's own process.

use mainstay_model::{Moment, Span, Term};
use mainstay_ports::process::{GuardStatus, ProcessError, StartCommand, StopMode};
use serde::{Deserialize, Serialize};

/// The longest line that either side accepts, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;

/// What may be asked of a guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Start the server.
    Start {
        /// How.
        command: StartCommand,
        /// It may serve as primary at once, until that moment.
        primary: Option<(Term, Moment)>,
    },
    /// Move the deadline.
    Extend {
        /// The term that the asker holds.
        term: Term,
        /// Until when.
        deadline: Moment,
    },
    /// Ask the server to stop.
    Stop {
        /// How.
        mode: StopMode,
    },
    /// Ask the server to read its configuration again.
    Reload,
    /// Kill every process of the server; answered when none is left, or when all that are left are doomed.
    Fence {
        /// For the log.
        reason: String,
    },
    /// What do you know?
    Status,
    /// Answered when no server runs.
    Exited,
    /// Stop the server fast, fence what is left after `within`, then end. Answered just before the end.
    Shutdown {
        /// How long the fast stop may take.
        within: Span,
    },
}

/// A numbered question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the asker; the answer carries it.
    pub id: u64,
    /// The question.
    pub ask: Ask,
}

/// What a guard answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The server runs, under this process id.
    Started(u32),
    /// Done.
    Done,
    /// Killed, but these processes are stuck in the kernel with SIGKILL pending.
    Doomed(Vec<u32>),
    /// What the guard knows.
    Status(GuardStatus),
    /// Not done, and why.
    Failed(ProcessError),
}

/// A numbered answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The question's number.
    pub id: u64,
    /// The answer.
    pub answer: Answer,
}

/// A line, ready to send.
///
/// # Errors
/// When it would be longer than [`MAX_FRAME`].
pub(crate) fn encode(frame: &impl Serialize) -> Result<Vec<u8>, String> {
    let mut line = serde_json::to_vec(frame).map_err(|e| e.to_string())?;
    line.push(b'\n');
    if line.len() > MAX_FRAME {
        return Err(format!("a frame of {} bytes is longer than the limit of {MAX_FRAME}", line.len()));
    }
    Ok(line)
}

/// Reads a request. A question that this guard does not know keeps its number, so that the refusal can carry it.
///
/// # Errors
/// The number of the question (0 if even that is missing) and what is wrong with it.
pub(crate) fn decode_request(line: &[u8]) -> Result<Request, (u64, String)> {
    #[derive(Deserialize)]
    struct Numbered {
        #[serde(default)]
        id: u64,
    }
    serde_json::from_slice(line).map_err(|e| {
        let id = serde_json::from_slice::<Numbered>(line).map_or(0, |n| n.id);
        (id, format!("this guard does not understand the request: {e}"))
    })
}

/// Collects bytes and gives whole lines back.
#[derive(Default, Debug)]
pub(crate) struct Lines {
    bytes: Vec<u8>,
}

impl Lines {
    /// Adds what was read.
    ///
    /// # Errors
    /// When a line grows beyond [`MAX_FRAME`].
    pub(crate) fn push(&mut self, read: &[u8]) -> Result<(), String> {
        self.bytes.extend_from_slice(read);
        let tail = self.bytes.iter().rev().position(|b| *b == b'\n').unwrap_or(self.bytes.len());
        if tail > MAX_FRAME { Err(format!("a line longer than {MAX_FRAME} bytes")) } else { Ok(()) }
    }

    /// The next whole line, without its end.
    pub(crate) fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.bytes.iter().position(|b| *b == b'\n')?;
        let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
        line.pop();
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_whatever_the_pieces() {
        let mut lines = Lines::default();
        lines.push(b"one\ntw").unwrap();
        assert_eq!(lines.next_line().unwrap(), b"one");
        assert_eq!(lines.next_line(), None);
        lines.push(b"o\n\n").unwrap();
        assert_eq!(lines.next_line().unwrap(), b"two");
        assert_eq!(lines.next_line().unwrap(), b"");
        assert_eq!(lines.next_line(), None);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut lines = Lines::default();
        assert!(lines.push(&vec![b'x'; MAX_FRAME]).is_ok());
        assert!(lines.push(b"x").is_err());
    }

    #[test]
    fn an_unknown_question_keeps_its_number() {
        let (id, text) = decode_request(br#"{"id":7,"ask":{"dance":{}}}"#).unwrap_err();
        assert_eq!(id, 7);
        assert!(text.contains("dance"), "{text}");
    }

    #[test]
    fn requests_survive_the_wire() {
        let request = Request { id: 3, ask: Ask::Extend { term: Term(4), deadline: Moment(5) } };
        let line = encode(&request).unwrap();
        assert_eq!(decode_request(&line).unwrap(), request);
    }
}
