//! Names and numbers that identify things. Separate types, so that the compiler sees a mix-up.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A name that does not have the form `[a-z][a-z0-9-]*`, or is longer than 40 characters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a name: use a letter a-z, then letters, digits or '-', 40 characters at most")]
pub struct BadName {
    /// What was given.
    pub given: String,
}

fn check_name(name: &str) -> Result<(), BadName> {
    let mut characters = name.chars();
    let first = characters.next().is_some_and(|c| c.is_ascii_lowercase());
    let rest = characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if first && rest && name.len() <= 40 { Ok(()) } else { Err(BadName { given: name.to_owned() }) }
}

macro_rules! name {
    ($type:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);
        impl $type {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// When the text is no name.
            pub fn new(name: impl Into<String>) -> Result<Self, BadName> {
                let name = name.into();
                check_name(&name)?;
                Ok(Self(name))
            }
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $type {
            type Error = BadName;
            fn try_from(name: String) -> Result<Self, BadName> {
                Self::new(name)
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl std::str::FromStr for $type {
            type Err = BadName;
            fn from_str(name: &str) -> Result<Self, BadName> {
                Self::new(name)
            }
        }
    };
}

name!(NodeId, "A node's name: `[a-z][a-z0-9-]*`.");
name!(ClusterName, "A cluster's name: `[a-z][a-z0-9-]*`.");
name!(RepositoryName, "A repository's name: `[a-z][a-z0-9-]*`.");

impl RepositoryName {
    /// That of the only one, where the specification gives it none.
    #[must_use]
    pub fn main() -> Self {
        Self("main".to_owned())
    }
}

/// The number that rises each time the right to be primary changes hands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

/// How many terms one incarnation has. No cluster elects so often: at one election a second it would take eleven days without a pause.
pub const TERMS_PER_INCARNATION: u64 = 1_000_000;

impl Term {
    /// The term that follows.
    #[must_use]
    pub const fn next(self) -> Term {
        Term(self.0 + 1)
    }
    /// How often the cluster's store was rebuilt from one node (`mainstay recover`) before this term. A term of a later incarnation is
    /// higher than every term of an earlier one, so whatever compares terms also keeps the members of a lost store out.
    #[must_use]
    pub const fn incarnation(self) -> u64 {
        self.0 / TERMS_PER_INCARNATION
    }
    /// The first term of the next incarnation.
    #[must_use]
    pub const fn next_incarnation(self) -> Term {
        Term((self.incarnation() + 1) * TERMS_PER_INCARNATION)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One copy of the data: a random number drawn anew whenever a data directory is made or cloned. A wiped, re-cloned
/// or half-rewound directory is another copy, and never answers for the old one. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CopyId(std::num::NonZeroU64);

impl CopyId {
    /// The copy of this number; `None` for 0, which means "not whole".
    #[must_use]
    pub fn new(number: u64) -> Option<CopyId> {
        std::num::NonZeroU64::new(number).map(CopyId)
    }
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for CopyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<CopyId> for String {
    fn from(copy: CopyId) -> String {
        copy.to_string()
    }
}

impl TryFrom<String> for CopyId {
    type Error = String;
    fn try_from(text: String) -> Result<CopyId, String> {
        u64::from_str_radix(&text, 16).ok().and_then(CopyId::new).ok_or_else(|| format!("{text:?} is not a copy id"))
    }
}

/// The identifier that `initdb` gave the cluster's data; every copy carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
