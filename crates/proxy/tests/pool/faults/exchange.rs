//! What clients say around a commit, and what they may believe of what they hear. Absent: faults.

use crate::requests::{Message, Session, bind, describe, execute, parse, query, sync};

/// One way to write a row.
pub struct Exchange {
    pub name: &'static str,
    /// What is sent, one by one: each is answered up to `ReadyForQuery`.
    steps: fn(u32) -> Vec<Vec<Message>>,
    /// The rows of its transaction.
    pub rows: usize,
    /// A `COMMIT` tells that it is done; else `ReadyForQuery` does.
    by_tag: bool,
}

/// Every way that is tried. Each begins outside of a transaction.
pub const EXCHANGES: [Exchange; 6] = [
    Exchange {
        name: "simple",
        steps: |id| vec![vec![query("begin")], vec![query(&insert(id, 0))], vec![query("commit")]],
        rows: 1,
        by_tag: true,
    },
    Exchange {
        name: "simple, one text",
        steps: |id| vec![vec![query(&format!("begin;{};commit", insert(id, 0)))]],
        rows: 1,
        by_tag: true,
    },
    Exchange { name: "simple, alone", steps: |id| vec![vec![query(&insert(id, 0))]], rows: 1, by_tag: false },
    Exchange {
        name: "extended",
        steps: |id| {
            let name = format!("s{id}");
            let insert = vec![parse(&name, &insert(id, 0)), describe(&name), bind(&name), execute(), sync()];
            vec![[run("begin"), vec![sync()]].concat(), insert, [run("commit"), vec![sync()]].concat()]
        },
        rows: 1,
        by_tag: true,
    },
    Exchange {
        name: "pipeline",
        steps: |id| vec![[run("begin"), run(&insert(id, 0)), run("commit"), vec![sync()]].concat()],
        rows: 1,
        by_tag: true,
    },
    Exchange {
        name: "pipeline without begin",
        steps: |id| vec![[run(&insert(id, 0)), run(&insert(id, 1)), vec![sync()]].concat()],
        rows: 2,
        by_tag: false,
    },
];

fn insert(id: u32, row: u32) -> String {
    format!("insert into l values({id},{row})")
}

fn run(text: &str) -> Vec<Message> {
    vec![parse("", text), bind(""), execute()]
}

/// What a client may believe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belief {
    Done,
    NotDone,
    Unknown,
}

/// What a client was told.
#[derive(Debug, Default)]
pub struct Told {
    /// It was told that its rows are there.
    acknowledged: bool,
    /// The codes of errors.
    codes: Vec<String>,
    /// The session has ended.
    pub closed: bool,
    /// The step that was sent last, and whether it is the last one.
    step: usize,
    last: bool,
}

impl Exchange {
    /// Goes on until something goes wrong, as an application would.
    pub async fn run(&self, session: &mut Session, id: u32) -> Told {
        let steps = (self.steps)(id);
        let mut told = Told::default();
        for (at, step) in steps.iter().enumerate() {
            (told.step, told.last) = (at, at + 1 == steps.len());
            // What can not be written was refused; why is still to be read.
            let _ = session.try_send(step).await;
            loop {
                match session.message().await {
                    None => {
                        told.closed = true;
                        return told;
                    }
                    Some(('E', body)) => told.codes.push(code(&body)),
                    Some(('C', body)) => told.acknowledged |= self.by_tag && body == b"COMMIT\0",
                    Some(('Z', body)) => {
                        assert!(body != b"T" || !told.last, "{}: its transaction is still open", self.name);
                        break;
                    }
                    Some(_) => {}
                }
            }
            if !told.codes.is_empty() {
                return told;
            }
        }
        // Many drivers look for no more than that nothing went wrong.
        told.acknowledged = true;
        told
    }
}

impl Told {
    /// What it may believe by what it was told. `spoken_to`: a session must not end without a word.
    pub fn belief(&self, what: &str, spoken_to: bool) -> Belief {
        for code in &self.codes {
            let may_be = match code.as_str() {
                "40001" => !self.acknowledged,
                // A statement that begins a transaction might have committed by itself; one within it can not.
                "08007" => self.step == 0 || self.last,
                _ => false,
            };
            assert!(may_be, "{what}: {self:?}");
        }
        let silent = self.closed && self.codes.is_empty() && !self.acknowledged;
        assert!(!spoken_to || !silent, "{what}: it ended without a word: {self:?}");
        if self.acknowledged {
            Belief::Done
        } else if !self.last || self.codes.iter().any(|code| code == "40001") {
            Belief::NotDone
        } else {
            Belief::Unknown
        }
    }
}

fn code(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.split('\0').find_map(|field| field.strip_prefix('C')).unwrap_or_default().to_owned()
}
