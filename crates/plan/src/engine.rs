//! Which engine suits the stated needs, with reasons. Mainstay runs PostgreSQL; the others are judged so that a team learns early if it needs one.

use mainstay_model::requirements::Requirements;

/// How well an engine serves a need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// Not.
    No,
    /// With limits.
    Partly,
    /// Well.
    Yes,
}

impl Fit {
    /// For people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Partly => "partly",
            Self::Yes => "yes",
        }
    }
}

/// The engines, in the order of the columns.
pub const ENGINES: [&str; 4] = ["PostgreSQL", "MySQL", "MariaDB", "MongoDB"];

/// A need, how each engine serves it, and the reason for the difference.
pub struct Judged {
    /// The need's word.
    pub need: &'static str,
    /// In the order of [`ENGINES`].
    pub fits: [Fit; 4],
    /// Why.
    pub reason: &'static str,
}

use Fit::{No, Partly, Yes};

const TABLE: [Judged; 13] = [
    Judged {
        need: "transactions",
        fits: [Yes, Yes, Yes, Partly],
        reason: "MongoDB has transactions over several documents, limited to 60 s by default, and advises against leaning on them",
    },
    Judged {
        need: "joins",
        fits: [Yes, Yes, Yes, Partly],
        reason: "MongoDB joins by $lookup stages, in the order in which they are written",
    },
    Judged { need: "constraints", fits: [Yes, Yes, Yes, No], reason: "MongoDB has no foreign keys" },
    Judged {
        need: "documents",
        fits: [Yes, Partly, Partly, Yes],
        reason: "PostgreSQL indexes jsonb as a whole (GIN); MySQL and MariaDB index single expressions of it",
    },
    Judged {
        need: "geometry",
        fits: [Yes, Partly, Partly, Partly],
        reason: "PostGIS; the others know fewer functions and reference systems",
    },
    Judged {
        need: "full-text",
        fits: [Yes, Yes, Yes, Partly],
        reason: "built in; MongoDB allows one text index for each collection",
    },
    Judged {
        need: "vectors",
        fits: [Yes, Partly, Yes, Partly],
        reason: "pgvector; MariaDB has a vector index from 11.7 on; MySQL's community server has the type and no index; MongoDB has it in its cloud service first",
    },
    Judged {
        need: "time-series",
        fits: [Yes, Partly, Partly, Yes],
        reason: "PostgreSQL with partitions and BRIN indexes, MongoDB with time-series collections",
    },
    Judged {
        need: "schema-changes",
        fits: [Yes, Partly, Partly, Yes],
        reason: "PostgreSQL changes schemas in transactions and adds columns and indexes without blocking writes; MySQL and MariaDB do some changes in place; MongoDB has no schema to change",
    },
    Judged {
        need: "many-clients",
        fits: [Partly, Yes, Yes, Yes],
        reason: "PostgreSQL has one process for each connection: beyond a thousand it wants a pooler",
    },
    Judged {
        need: "sharding",
        fits: [No, No, No, Yes],
        reason: "of these only MongoDB shards by itself; for the others several clusters, split by the application",
    },
    Judged {
        need: "many-writers",
        fits: [No, Partly, Partly, No],
        reason: "MySQL Group Replication and Galera take writes on several nodes, and reject those that conflict at commit",
    },
    Judged {
        need: "no-loss",
        fits: [Yes, Partly, Partly, Yes],
        reason: "quorum commit (ANY n) and majority write concern; semi-synchronous replication of MySQL falls back to asynchronous when it times out",
    },
];

/// The stated needs, judged.
#[must_use]
pub fn judged(asked: &Requirements) -> Vec<&'static Judged> {
    TABLE.iter().filter(|judged| asked.needs.iter().any(|need| need == judged.need)).collect()
}

/// Each engine with how many needs it does not serve, and serves partly.
#[must_use]
pub fn suited(asked: &Requirements) -> Vec<(&'static str, Fit)> {
    let judged = judged(asked);
    let worst = |place: usize| judged.iter().filter_map(|each| each.fits.get(place)).min().copied().unwrap_or(Yes);
    ENGINES.iter().enumerate().map(|(place, name)| (*name, worst(place))).collect()
}

/// Needs that PostgreSQL does not serve: what is wrong, what to do instead.
#[must_use]
pub fn unsuited(asked: &Requirements) -> Vec<(String, String)> {
    let judged = judged(asked);
    let missing = judged.iter().filter(|each| each.fits[0] == No);
    missing
        .map(|each| {
            let instead = if each.need == "sharding" {
                "several clusters, each with its part of the data; or take \"sharding\" out of needs"
            } else {
                "one primary takes all writes and replicas take reads: take \"many-writers\" out of needs; or run MySQL Group Replication or Galera, which Mainstay does not"
            };
            let text = format!("requirements.needs says {:?}, and engine postgres does not serve it: {}", each.need, each.reason);
            (text, instead.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::requirements::NEEDS;

    #[test]
    fn every_need_is_judged() {
        let known: Vec<&str> = NEEDS.iter().map(|(word, _)| *word).collect();
        assert_eq!(TABLE.iter().map(|each| each.need).collect::<Vec<_>>(), known);
    }
}
