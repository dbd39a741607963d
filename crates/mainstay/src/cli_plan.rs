//! The verbs that plan: command lines only.

use crate::cli::{Protection, Which};
use clap::Args;
use mainstay_model::{ClusterName, NodeId};
use std::path::PathBuf;

/// `plan`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "It reads the file (a few node names and hosts are enough; [requirements] says what is asked), looks at this host if it is one of the\n\
                  nodes, asks the running cluster if there is one, and changes nothing. What contradicts itself is refused, with the nearest plans that work.\n\n\
                  Examples:\n  mainstay plan --config mainstay.toml\n  mainstay plan --config mainstay.toml --offline --html plan.html --markdown plan.md\n  \
                  mainstay plan --json | jq '.sections[3]'\n  mainstay plan --write planned.toml && mainstay set --file planned.toml"
)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Plan from the file alone: neither this host nor the cluster is asked
    #[arg(long)]
    pub(crate) offline: bool,
    /// Write the whole plan as Markdown
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// Write the whole plan as one HTML page that needs nothing else, and prints well
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write the cluster's file with the derived server parameters
    #[arg(long, value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,
}

/// `runbook`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "One page for each thing that can happen: how it shows, when to stop, what to type, how long it takes, what is lost, how to verify it and\n\
                  the way back; a card for three in the morning; how to run the database by hand. Without a file it is printed as Markdown.\n\n\
                  When it wrote a file, the agents note from which generation: `status` then says `runbook-outdated` once the specification has changed.\n\n\
                  Examples:\n  mainstay runbook --html runbook.html\n  mainstay runbook --config mainstay.toml --offline --markdown runbook.md"
)]
pub(crate) struct Runbook {
    #[command(flatten)]
    pub(crate) which: Which,
    /// From the file alone: neither this host nor the cluster is asked
    #[arg(long)]
    pub(crate) offline: bool,
    /// Write it as Markdown
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// Write it as one HTML page that needs nothing else, each scenario on a page of its own when printed
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write nothing: nobody keeps a copy any more, so none can be outdated
    #[arg(long, conflicts_with_all = ["offline", "markdown", "html"])]
    pub(crate) forget: bool,
}

/// `init`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "On a terminal it asks; without one (or with --yes) it takes what is given and leaves the rest at the defaults. A file is never replaced.\n\n\
                  Examples:\n  mainstay init\n  mainstay init --name orders --host 10.0.0.1,zone=a --host 10.0.0.2,zone=b --host 10.0.0.3,zone=c,witness\n  \
                  mainstay init --file /etc/mainstay/mainstay.toml --host db1.example.org --yes"
)]
pub(crate) struct Init {
    /// Where to write it
    #[arg(long, value_name = "FILE", default_value = "mainstay.toml")]
    pub(crate) file: PathBuf,
    /// The cluster's name [default: main]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<ClusterName>,
    /// A host, behind it with commas zone=NAME and witness (may be given several times)
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Vec<String>,
    /// How commits are protected [default: strict]
    #[arg(long, value_enum)]
    pub(crate) durability: Option<Protection>,
}

/// `doctor`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "On the node's own host, as root: system, user, directories, ports, memory, the volume of the data, certificates, the way to the other nodes,\n\
                  their clocks and C libraries. Each finding says what was found, why it matters and what mends it; what could not be read is a finding too.\n\
                  Nothing is changed; a file without a name is written for a few seconds to see how fast the disk is.\n\n\
                  Exit status: 0 nothing must be mended (advice may be there), 1 something must, or could not be read.\n\n\
                  Examples:\n  mainstay doctor --config /etc/mainstay/mainstay.toml\n  mainstay doctor --node db1 --all\n  \
                  mainstay doctor --runbook /root/runbook.html\n  mainstay doctor --json | jq '.nodes[].findings[] | select(.severity == \"problem\")'"
)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Which node this host is [default: those whose address is this host's]
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<NodeId>,
    /// Show what is as it should be, too
    #[arg(long, short = 'a')]
    pub(crate) all: bool,
    /// Leave out how fast the disk is: nothing is written
    #[arg(long)]
    pub(crate) no_write: bool,
    /// Does this runbook (HTML or Markdown) still fit the cluster?
    #[arg(long, value_name = "FILE")]
    pub(crate) runbook: Option<PathBuf>,
}
