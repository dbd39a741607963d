//! Options of `archive`.

use super::Which;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `archive`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Archive {
    #[command(subcommand)]
    pub(crate) verb: ArchiveVerb,
}

/// What can be done with the archive.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ArchiveVerb {
    /// Show how far the log is archived, and what is wrong
    Status(ArchiveStatus),
    /// Make the key of an encrypted repository
    Key(ArchiveKey),
}

/// `archive status`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  mainstay archive status\n  mainstay archive status --json | jq .lag_segments")]
pub(crate) struct ArchiveStatus {
    #[command(flatten)]
    pub(crate) which: Which,
}

/// `archive key`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Whoever has FILE reads the repository; FILE.public lets a host write only. Name one of them as vault.key_file, and keep FILE\n\
                  where it is not lost together with the hosts: without it an encrypted repository is lost.\n\n\
                  Examples:\n  mainstay archive key /etc/mainstay/vault.key"
)]
pub(crate) struct ArchiveKey {
    /// The new file
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}
