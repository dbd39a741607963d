//! What a schedule leaves behind: a number that tells two runs apart, and on replay a text for people.

use crate::event::{Happening, Node};
use crate::shape::{MS, Micros};

/// See the module.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Is the text kept?
    pub on: bool,
    /// The text.
    pub lines: Vec<String>,
    hash: u64,
}

impl Trace {
    /// An empty trace.
    #[must_use]
    pub fn new(on: bool) -> Trace {
        Trace { on, lines: Vec::new(), hash: 0xCBF2_9CE4_8422_2325 }
    }

    /// The number of everything so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    fn mix(&mut self, number: u64) {
        self.hash = (self.hash ^ number).wrapping_mul(0x0100_0000_01B3).rotate_left(23);
    }

    /// Takes an event in.
    pub fn fold(&mut self, at: Micros, what: &Happening) {
        let kind = match what {
            Happening::Tick(node, number) => 1 + *node as u64 + number * 16,
            Happening::Input(node, ..) => 2000 + *node as u64,
            Happening::Peer { to, from, .. } => 3000 + (to * 8 + from) as u64,
            Happening::Request(request) => 4000 + request.id,
            Happening::Order(node, number) => 5000 + *node as u64 + number * 16,
            Happening::Fault(fault, node) => 6000 + *fault as u64 * 8 + *node as u64,
            _ => 7000,
        };
        self.mix(at);
        self.mix(kind);
    }

    /// Takes the end in.
    pub fn finish(&mut self, last_entry: u64, acknowledged: u64) {
        self.mix(last_entry);
        self.mix(acknowledged);
    }

    /// Adds a line.
    pub fn line(&mut self, at: Micros, node: Option<Node>, text: String) {
        let who = node.map_or("--".to_owned(), |node| format!("n{node}"));
        self.lines.push(format!("{:>6}.{:03} {who} {text}", at / MS, at % MS));
    }
}
