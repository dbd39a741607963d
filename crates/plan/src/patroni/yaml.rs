//! A YAML document as a tree that knows its lines. Scalars stay as they were written: what a word means is the reader's to say.
//!
//! Bounded: what an alias repeats counts each time, so no short file grows into a large tree.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use std::collections::BTreeMap;

/// So many nodes a tree may have; a configuration has hundreds.
const NODES_MAX: usize = 50_000;
/// So many bytes of text: files are of 4 MiB at most, and aliases repeat little.
const TEXT_MAX: usize = 16 << 20;
/// So deep it may be.
const DEPTH_MAX: usize = 64;

/// Text of the file, with how it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Not quoted: it may be a number, a boolean or nothing.
    pub(super) plain: bool,
}

impl Scalar {
    /// Does it say nothing?
    pub(super) fn is_null(&self) -> bool {
        self.plain && matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }

    /// What it says as a boolean, by the words of YAML 1.1, in which Patroni reads.
    pub(super) fn boolean(&self) -> Option<bool> {
        match self.text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Some(true),
            "false" | "no" | "off" => Some(false),
            _ => None,
        }
    }
}

/// A node and the line it begins in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) line: usize,
    pub(super) node: Node,
}

/// What stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Scalar(Scalar),
    List(Vec<Item>),
    /// Keys are unique, in the order of the file.
    Map(Vec<(String, Item)>),
}

/// What a tree takes.
#[derive(Clone, Copy, Default)]
struct Size {
    nodes: usize,
    /// Bytes, of scalars and keys.
    text: usize,
}

impl Size {
    fn of(item: &Item) -> Size {
        let mut size = Size { nodes: 1, text: 0 };
        match &item.node {
            Node::Scalar(scalar) => size.text += scalar.text.len(),
            Node::List(items) => items.iter().for_each(|item| size.add(Size::of(item))),
            Node::Map(pairs) => pairs.iter().for_each(|(key, item)| {
                size.text += key.len();
                size.add(Size::of(item));
            }),
        }
        size
    }

    fn add(&mut self, other: Size) {
        self.nodes += other.nodes;
        self.text += other.text;
    }
}

/// A list or mapping that has not ended yet.
struct Open {
    anchor: usize,
    line: usize,
    what: Inside,
}

enum Inside {
    List(Vec<Item>),
    Map { pairs: Vec<(String, Item)>, lines: BTreeMap<String, usize>, key: Option<(String, usize)>, merged: Vec<Item> },
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: BTreeMap<usize, Item>,
    size: Size,
    root: Option<Item>,
}

/// Reads one document.
///
/// # Errors
/// What is wrong, with its line.
pub(super) fn read(text: &str) -> Result<Item, String> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| format!("line {}: {}", error.marker().line(), error.info()))?;
        builder.take(event, span)?;
    }
    builder.root.ok_or_else(|| "it is empty".to_owned())
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), String> {
        let line = span.start.line();
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let text_by_tag = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                let plain = style == ScalarStyle::Plain && !text_by_tag;
                let node = Node::Scalar(Scalar { text: text.into_owned(), plain });
                let item = Item { line, node };
                self.grow(Size::of(&item), line)?;
                self.put(item, anchor)
            }
            Event::Alias(anchor) => {
                let named = self.anchors.get(&anchor);
                let size = named.map(Size::of);
                let size = size.ok_or_else(|| format!("line {line}: an alias stands within what it names"))?;
                // Before it is repeated: afterwards it may be too late.
                self.grow(size, line)?;
                let item = self.anchors.get(&anchor).cloned();
                item.map_or(Ok(()), |item| self.put(item, 0))
            }
            Event::SequenceStart(anchor, _) => self.begin(anchor, line, Inside::List(Vec::new())),
            Event::MappingStart(anchor, _) => {
                let what = Inside::Map { pairs: Vec::new(), lines: BTreeMap::new(), key: None, merged: Vec::new() };
                self.begin(anchor, line, what)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(format!("line {line}: a second document begins; one is expected"))
            }
            _ => Ok(()),
        }
    }

    fn grow(&mut self, by: Size, line: usize) -> Result<(), String> {
        self.size.add(by);
        if self.size.nodes > NODES_MAX || self.size.text > TEXT_MAX || self.open.len() > DEPTH_MAX {
            return Err(format!("line {line}: it is larger or deeper than a configuration is"));
        }
        Ok(())
    }

    fn begin(&mut self, anchor: usize, line: usize, what: Inside) -> Result<(), String> {
        self.grow(Size { nodes: 1, text: 0 }, line)?;
        self.open.push(Open { anchor, line, what });
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let Some(Open { anchor, line, what }) = self.open.pop() else { return Ok(()) };
        let node = match what {
            Inside::List(items) => Node::List(items),
            Inside::Map { mut pairs, mut lines, merged, .. } => {
                // What the mapping itself says comes before what it takes over from others.
                for (key, item) in merged.into_iter().flat_map(mappings) {
                    if lines.insert(key.clone(), item.line).is_none() {
                        pairs.push((key, item));
                    }
                }
                Node::Map(pairs)
            }
        };
        self.put(Item { line, node }, anchor)
    }

    fn put(&mut self, item: Item, anchor: usize) -> Result<(), String> {
        if anchor > 0 {
            // What is kept for aliases is a second one.
            self.grow(Size::of(&item), item.line)?;
            self.anchors.insert(anchor, item.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(item);
            return Ok(());
        };
        match &mut open.what {
            Inside::List(items) => items.push(item),
            Inside::Map { pairs, lines, key, merged } => match (key.take(), item.node) {
                (None, Node::Scalar(scalar)) => *key = Some((scalar.text, item.line)),
                (None, _) => return Err(format!("line {}: a key is a word, not a list or a mapping", item.line)),
                (Some((name, _)), node) if name == "<<" => merged.push(Item { line: item.line, node }),
                (Some((name, line)), node) => {
                    if let Some(first) = lines.insert(name.clone(), line) {
                        return Err(format!("line {line}: {name:?} stands in line {first} already"));
                    }
                    pairs.push((name, Item { line: item.line, node }));
                }
            },
        }
        Ok(())
    }
}

/// The pairs of a mapping, or of each mapping of a list.
fn mappings(item: Item) -> Vec<(String, Item)> {
    match item.node {
        Node::Map(pairs) => pairs,
        Node::List(items) => items.into_iter().flat_map(mappings).collect(),
        Node::Scalar(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(item: &Item) -> String {
        match &item.node {
            Node::Scalar(scalar) => format!("{}@{}", scalar.text, item.line),
            Node::List(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
            Node::Map(pairs) => {
                let pairs = pairs.iter().map(|(key, item)| format!("{key}:{}", shown(item)));
                format!("{{{}}}", pairs.collect::<Vec<_>>().join(" "))
            }
        }
    }

    #[test]
    fn a_tree_knows_its_lines() {
        let text = "# head\na: 1\nb:\n- x\n- 'y'\nc: {d: on}\ne:\n";
        assert_eq!(shown(&read(text).unwrap()), "{a:1@2 b:[x@4 y@5] c:{d:on@6} e:@7}");
        assert_eq!(shown(&read("{\"ttl\": 30, \"x\": [1, 2]}").unwrap()), "{ttl:30@1 x:[1@1 2@1]}");
    }

    #[test]
    fn aliases_and_merges_are_taken_in() {
        let text = "base: &b\n  x: 1\n  y: 2\nown:\n  <<: *b\n  y: 3\nagain: *b\n";
        assert_eq!(shown(&read(text).unwrap()), "{base:{x:1@2 y:2@3} own:{y:3@6 x:1@2} again:{x:1@2 y:2@3}}");
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_line() {
        let error = |text: &str| read(text).unwrap_err();
        assert!(error("a: 1\na: 2\n").contains("line 2: \"a\" stands in line 1"));
        assert!(error("a: 1\n---\nb: 2\n").contains("second document"));
        assert!(error("a: {{ b }}: 1\n").contains("line 1"), "{}", error("a: {{ b }}: 1\n"));
        assert!(error("a: [1, 2\nb: 3\n").contains("line"));
        assert!(error("").contains("empty"));
        assert!(error("a: &a [*a]\n").contains("line 1"), "{}", error("a: &a [*a]\n"));
    }

    #[test]
    fn no_short_file_grows_into_a_large_tree() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let last = level - 1;
            let row: Vec<String> = (0..10).map(|_| format!("*a{last}")).collect();
            text.push_str(&format!("a{level}: &a{level} [{}]\n", row.join(", ")));
        }
        assert!(read(&text).unwrap_err().contains("larger or deeper"));
        let deep = "[".repeat(5000);
        assert!(read(&deep).is_err());
    }

    #[test]
    fn text_counts_each_time_it_is_repeated() {
        let long = "x".repeat(2 << 20);
        let many = |what: &str| format!("a: &a {what}\nb: [{}]\n", vec!["*a"; 40].join(", "));
        assert!(read(&many(&long)).unwrap_err().contains("larger or deeper"));
        assert!(read(&many(&format!("{{{}: 1}}", "k".repeat(1000)))).is_ok());
        assert!(read(&many("x")).is_ok());
        // Keys count as values do.
        let mut keys = format!("a: &a\n  ? {long}\n  : 1\n");
        (0..40).for_each(|place| keys.push_str(&format!("b{place}: *a\n")));
        assert!(read(&keys).unwrap_err().contains("larger or deeper"));
        // Each anchor keeps one more.
        let nested =
            format!("{}{long}{}\n", (0..30).map(|place| format!("&n{place} [")).collect::<String>(), "]".repeat(30));
        assert!(read(&nested).unwrap_err().contains("larger or deeper"));
    }
}
