//! `import`: command lines only.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `import`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Import {
    #[command(subcommand)]
    pub(crate) from: ImportFrom,
}

/// From what.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ImportFrom {
    /// Make the file of a cluster from a Patroni configuration, and say what became of each line
    Patroni(ImportPatroni),
}

/// `import patroni`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Give it the patroni.yml of each node, and what `patronictl show-config` prints: that is what is in force, bootstrap.dcs is what was once.\n\
                  Every line of them is told of, once: carried over, changed (and why), or left behind (and why). Passwords go neither into the file nor\n\
                  into the report. Nothing is started, and no host is asked; docs/import.md goes on from there.\n\n\
                  The file goes to standard output and the report to standard error; with --output the report goes to standard output.\n\n\
                  Examples:\n  mainstay import patroni db1/patroni.yml db2/patroni.yml db3/patroni.yml dynamic.yml --output mainstay.toml\n  \
                  patronictl -c patroni.yml show-config > dynamic.yml\n  \
                  mainstay import patroni patroni.yml dynamic.yml --json | jq '.entries[] | select(.fate == \"left\")'"
)]
pub(crate) struct ImportPatroni {
    /// Each node's patroni.yml, and the output of `patronictl show-config`
    #[arg(value_name = "FILE", required = true, num_args = 1..=64)]
    pub(crate) files: Vec<PathBuf>,
    /// Write the file there; one that is there is never replaced
    #[arg(long, short = 'o', value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}
