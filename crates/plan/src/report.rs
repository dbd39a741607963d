//! What a plan says: numbered sections of statements and tables, each line marked with where it comes from. How it looks is elsewhere
//! (`markdown`, `html`).

use serde::Serialize;

/// Where a statement comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// Seen on a machine: on which, and when.
    Measured(String),
    /// Follows from what is measured or declared.
    Derived,
    /// Stands in the file; nobody has proved it.
    Declared,
    /// Nobody said it: the default of the file's key.
    Default,
}

impl Mark {
    /// For people.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Measured(on) => format!("measured on {on}"),
            Self::Derived => "derived".to_owned(),
            Self::Declared => "declared".to_owned(),
            Self::Default => "declared (default)".to_owned(),
        }
    }
}

/// One sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Statement {
    /// What is said.
    pub text: String,
    /// Where it comes from.
    pub mark: Mark,
}

/// A line of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// As many as the head has.
    pub cells: Vec<String>,
    /// Where it comes from.
    pub mark: Mark,
}

/// A part of a section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Block {
    /// Sentences.
    Say(Vec<Statement>),
    /// A table.
    Table {
        /// What it shows.
        caption: String,
        /// Names of the columns.
        head: Vec<String>,
        /// The lines; never none.
        rows: Vec<Row>,
    },
    /// Lines to paste into a shell or a file.
    Code {
        /// What they are.
        caption: String,
        /// The lines.
        text: String,
    },
    /// The picture of the nodes (drawn in HTML, left out elsewhere).
    Picture,
}

/// A section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Section {
    /// From 1.
    pub number: usize,
    /// Its name for programs.
    pub key: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// What stands in it.
    pub blocks: Vec<Block>,
}

impl Section {
    /// Empty.
    #[must_use]
    pub(crate) fn new(number: usize, key: &'static str, title: &'static str) -> Section {
        Section { number, key, title, blocks: Vec::new() }
    }

    /// A sentence; those that follow each other make one paragraph list.
    pub(crate) fn say(&mut self, mark: Mark, text: impl Into<String>) {
        let statement = Statement { text: text.into(), mark };
        if let Some(Block::Say(lines)) = self.blocks.last_mut() {
            lines.push(statement);
        } else {
            self.blocks.push(Block::Say(vec![statement]));
        }
    }

    /// A table, unless it has no lines.
    pub(crate) fn table(&mut self, caption: impl Into<String>, head: &[&str], rows: Vec<Row>) {
        if !rows.is_empty() {
            let head = head.iter().map(|name| (*name).to_owned()).collect();
            self.blocks.push(Block::Table { caption: caption.into(), head, rows });
        }
    }

    /// Lines to paste.
    pub(crate) fn code(&mut self, caption: impl Into<String>, text: impl Into<String>) {
        self.blocks.push(Block::Code { caption: caption.into(), text: text.into() });
    }
}

/// A line of a table.
pub(crate) fn row<const N: usize>(mark: Mark, cells: [impl Into<String>; N]) -> Row {
    Row { cells: cells.into_iter().map(Into::into).collect(), mark }
}

/// A line of a table, of texts that were made here.
#[macro_export]
#[doc(hidden)]
macro_rules! cells {
    ($mark:expr; $($cell:expr),+ $(,)?) => {
        $crate::report::Row { cells: vec![$($cell.to_string()),+], mark: $mark }
    };
}

/// A document: a plan or a runbook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What it is: `Plan`, `Runbook`.
    pub kind: &'static str,
    /// The cluster's name.
    pub cluster: String,
    /// The day it was made.
    pub date: String,
    /// What to read if nothing else is read.
    pub summary: Vec<Statement>,
    /// The sections.
    pub sections: Vec<Section>,
    /// The picture of the nodes, as SVG.
    #[serde(skip)]
    pub picture: String,
}
