//! Every leaf of what was read, and the one verdict on each: what has none yet is not forgotten, it is told of at the end.

use super::yaml::{Item, Node, Scalar};
use serde::Serialize;

/// So many bytes the paths of all leaves may take: one long key stands above many.
const PATHS_MAX: usize = 32 << 20;

/// What became of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It is kept: the file says the same, or Mainstay does so anyway.
    Carried,
    /// Something else stands for it.
    Changed,
    /// Nothing stands for it.
    Left,
}

/// A leaf's verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) fate: Fate,
    /// The key that it became, if one did.
    pub(super) to: Option<String>,
    /// What it says; never of what is left, which may be a secret.
    pub(super) value: Option<String>,
    pub(super) text: String,
}

impl Verdict {
    pub(super) fn carried(to: impl Into<String>, value: impl Into<String>) -> Verdict {
        Verdict { fate: Fate::Carried, to: Some(to.into()), value: Some(value.into()), text: String::new() }
    }

    /// What Mainstay does without being told.
    pub(super) fn anyway(text: impl Into<String>) -> Verdict {
        Verdict { fate: Fate::Carried, to: None, value: None, text: text.into() }
    }

    pub(super) fn changed(to: Option<&str>, value: impl Into<String>, text: impl Into<String>) -> Verdict {
        Verdict { fate: Fate::Changed, to: to.map(str::to_owned), value: Some(value.into()), text: text.into() }
    }

    pub(super) fn left(text: impl Into<String>) -> Verdict {
        Verdict { fate: Fate::Left, to: None, value: None, text: text.into() }
    }
}

/// The end of a branch: a scalar, or a list or mapping without anything in it.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) file: usize,
    pub(super) line: usize,
    /// Keys; an item of a list is `[0]`.
    pub(super) path: Vec<String>,
    /// `None`: an empty list or mapping.
    pub(super) scalar: Option<Scalar>,
}

impl Leaf {
    /// `postgresql.pg_hba[0]`.
    pub(super) fn key(&self) -> String {
        let mut key = String::new();
        for part in &self.path {
            if !key.is_empty() && !part.starts_with('[') {
                key.push('.');
            }
            key.push_str(part);
        }
        key
    }

    /// What it says; `None`: nothing.
    pub(super) fn said(&self) -> Option<&Scalar> {
        self.scalar.as_ref().filter(|scalar| !scalar.is_null())
    }
}

/// A leaf's place in the book.
pub(super) type Id = usize;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Book {
    leaves: Vec<Leaf>,
    verdicts: Vec<Option<Verdict>>,
    /// What the paths take, in bytes.
    paths: usize,
}

impl Book {
    /// Takes in a file.
    ///
    /// # Errors
    /// When its leaves' paths take more than a configuration's do.
    pub(super) fn add(&mut self, file: usize, root: &Item) -> Result<(), String> {
        self.walk(file, root, &mut Vec::new())
    }

    fn walk(&mut self, file: usize, item: &Item, path: &mut Vec<String>) -> Result<(), String> {
        match &item.node {
            Node::Scalar(scalar) => self.leaf(file, item.line, path, Some(scalar))?,
            Node::List(items) if items.is_empty() => self.leaf(file, item.line, path, None)?,
            Node::Map(pairs) if pairs.is_empty() => self.leaf(file, item.line, path, None)?,
            Node::List(items) => {
                for (place, item) in items.iter().enumerate() {
                    path.push(format!("[{place}]"));
                    self.walk(file, item, path)?;
                    path.pop();
                }
            }
            Node::Map(pairs) => {
                for (key, item) in pairs {
                    path.push(key.clone());
                    self.walk(file, item, path)?;
                    path.pop();
                }
            }
        }
        Ok(())
    }

    fn leaf(&mut self, file: usize, line: usize, path: &[String], scalar: Option<&Scalar>) -> Result<(), String> {
        self.paths += path.iter().map(String::len).sum::<usize>();
        if self.paths > PATHS_MAX {
            return Err(format!("line {line}: its keys are longer than those of a configuration"));
        }
        self.leaves.push(Leaf { file, line, path: path.to_vec(), scalar: scalar.cloned() });
        self.verdicts.push(None);
        Ok(())
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Id, &Leaf, Option<&Verdict>)> {
        let verdicts = self.verdicts.iter().map(Option::as_ref);
        self.leaves.iter().zip(verdicts).enumerate().map(|(id, (leaf, verdict))| (id, leaf, verdict))
    }

    /// The leaf of exactly this path, if it says something.
    pub(super) fn find(&self, file: usize, path: &[&str]) -> Option<(Id, &Scalar)> {
        self.leaves.iter().enumerate().find_map(|(id, leaf)| {
            let here = leaf.file == file && leaf.path.iter().map(String::as_str).eq(path.iter().copied());
            Some((id, leaf.said()?)).filter(|_| here)
        })
    }

    /// Every leaf below this path that says something, with the rest of its path.
    pub(super) fn under(&self, file: usize, path: &[&str]) -> Vec<(Id, Vec<String>, Scalar)> {
        let below = self.leaves.iter().enumerate().filter(|(_, leaf)| {
            let same = leaf.path.iter().map(String::as_str).zip(path).all(|(part, wanted)| part == *wanted);
            leaf.file == file && leaf.path.len() > path.len() && same
        });
        let rest = |(id, leaf): (Id, &Leaf)| Some((id, leaf.path.get(path.len()..)?.to_vec(), leaf.said()?.clone()));
        below.filter_map(rest).collect()
    }

    /// The verdict on a leaf. The first one stays.
    pub(super) fn say(&mut self, id: Id, verdict: Verdict) {
        if let Some(place) = self.verdicts.get_mut(id).filter(|place| place.is_none()) {
            *place = Some(verdict);
        }
    }
}
