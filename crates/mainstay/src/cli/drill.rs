//! Options of `drill`.

use super::Which;
use clap::Args;
use mainstay_model::NodeId;
use mainstay_model::drill::DrillKind;
use std::path::PathBuf;

/// `drill`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Kinds: kill-server, stop-server, isolate-primary, switchover, lose-replica, lose-proxy (`mainstay drill --list` says more).\n\n\
                  A client of its own writes a marker row every few milliseconds and reads meanwhile, as the role app. What it was told is held\n\
                  against [requirements] of the cluster's file. A drill is refused while anything is amiss, a backup runs, or the declared\n\
                  outages of the last thirty days would be exceeded. The agent ends what it began by itself, whatever becomes of this command.\n\n\
                  Exit status: 0 as asked for, 1 not, or data lost, 2 wrong command line, 3 not now (the reason is said).\n\n\
                  Examples:\n  mainstay drill --list\n  mainstay drill kill-server --dry-run\n  mainstay drill kill-server\n  \
                  mainstay drill lose-replica --node db3 --yes --json"
)]
pub(crate) struct Drill {
    #[command(flatten)]
    pub(crate) which: Which,
    /// What to rehearse
    #[arg(value_name = "KIND", required_unless_present = "list")]
    pub(crate) kind: Option<DrillKind>,
    /// Show what can be rehearsed, what to expect of it, and what came of it before
    #[arg(long, conflicts_with_all = ["kind", "dry_run"])]
    pub(crate) list: bool,
    /// Say what would happen, and whether it could happen now; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The node that loses its replica or proxy [default: a replica whose confirmation counts; the primary's proxy]
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<NodeId>,
    /// How long a server stays stopped, or a host cut off, in seconds [default: twice the lease]
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=60))]
    pub(crate) lasts: Option<u64>,
    /// Where the page with the picture goes [default: drill-KIND-DATE.html in this directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) page: Option<PathBuf>,
    /// Go on although the declared outages of the last thirty days would be exceeded
    #[arg(long)]
    pub(crate) over_budget: bool,
    /// The database role of the marker's clients; another one than app takes its password from PGPASSWORD
    #[arg(long, value_name = "ROLE", default_value = "app")]
    pub(crate) role: String,
    /// The database of the marker's table
    #[arg(long, value_name = "NAME", default_value = "app")]
    pub(crate) database: String,
}
