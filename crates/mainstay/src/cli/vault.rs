//! Options of `backup`, `backups`, `verify`, `restore` and `follow`.

use super::Which;
use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args};
use mainstay_model::{NodeId, RepositoryName};
use std::path::PathBuf;

/// `backup`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "A node's agent makes it, a replica's if there is one that is well. It counts when every segment of the log that it needs was read \
                  back\nfrom the repository; then what vault.keep and vault.keep_days no longer keep is removed.\n\n\
                  Examples:\n  mainstay backup\n  mainstay backup --incremental\n  mainstay backup --repository far\n  mainstay backup --from db3 --wait 0"
)]
pub(crate) struct Backup {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Who makes it [default: a replica that is well, else the primary]
    #[arg(long, value_name = "NODE")]
    pub(crate) from: Option<NodeId>,
    /// Only what differs from the newest full backup
    #[arg(long)]
    pub(crate) incremental: bool,
    /// In which of several repositories [default: the first]
    #[arg(long, value_name = "NAME")]
    pub(crate) repository: Option<RepositoryName>,
    /// How many seconds to wait until it counts; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400, value_parser = clap::value_parser!(u64).range(0..=604_800))]
    pub(crate) wait: u64,
}

/// Which repository is meant, and the database in it. It is read by this host.
#[derive(Args, Clone, Debug)]
pub(crate) struct Shelf {
    #[command(flatten)]
    pub(crate) which: Which,
    /// One of the cluster's repositories by its name; or a folder, s3://BUCKET/PREFIX?… or azure://CONTAINER/PREFIX?…, no cluster is needed then [default: the cluster's vault.repository; of several `restore` takes the one that serves, `backups` and `verify` read each]
    #[arg(long, value_name = "NAME|PLACE")]
    pub(crate) repository: Option<PathBuf>,
    /// Its secret key [default: as the cluster's file says]
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// The database's system identifier, if the repository holds several
    #[arg(long, value_name = "NUMBER")]
    pub(crate) system: Option<u64>,
}

/// `backups`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "The repository is read by this host, also while no node runs.\n\n\
                  Examples:\n  mainstay backups\n  mainstay backups --why\n  \
                  mainstay backups --repository /mnt/vault --key-file /root/vault.key --json")]
pub(crate) struct Backups {
    #[command(flatten)]
    pub(crate) shelf: Shelf,
    /// Say why each is kept, or that nothing keeps it
    #[arg(long)]
    pub(crate) why: bool,
}

/// `verify`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Every object of the database is read and checked; nothing is believed because it was written once. Exit status 1: something is wrong,\n\
                  or one of several repositories can not be read.\n\
                  With --drill a node restores a random moment of the past beside its data, lets a server recover it, reads all tables and indexes\n\
                  (pg_amcheck), asks vault.drill_query, measures, and removes the copy. vault.drill_at does the same by a schedule.\n\n\
                  Examples:\n  mainstay verify\n  mainstay verify --repository /mnt/vault --key-file /root/vault.key --json\n  mainstay verify --drill\n  \
                  mainstay verify --drill --on db3 --json"
)]
pub(crate) struct Verify {
    #[command(flatten)]
    pub(crate) shelf: Shelf,
    /// Hold a restore drill
    #[arg(long, conflicts_with_all = ["key_file", "system"])]
    pub(crate) drill: bool,
    /// The node that holds the drill [default: a replica that is well, else the primary]
    #[arg(long, value_name = "NODE", requires = "drill")]
    pub(crate) on: Option<NodeId>,
    /// How many seconds to wait for the drill's end
    #[arg(long, value_name = "SECONDS", requires = "drill", default_value_t = 86_400, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub(crate) wait: u64,
}

/// The name of a restore point: an empty one is an unset variable of a shell, and not the latest moment.
fn point(text: &str) -> Result<String, String> {
    mainstay_model::vault::check_point(text).map(|()| text.to_owned())
}

/// `restore`.
#[derive(Args, Clone, Debug)]
#[command(
    group = ArgGroup::new("moment").args(["time", "lsn", "restore_point", "transaction", "immediate"]),
    group = ArgGroup::new("place").args(["to", "in_place"]).required(true),
    after_help = "With --to a copy of the database as it was at a moment is made in a new directory, beside the cluster, which is not touched. A server\n\
                  recovers it there, reachable through a Unix socket only, and is stopped again; then it is an ordinary data directory.\n\
                  With --in-place the whole cluster goes back to the moment: WHAT WAS COMMITTED LATER IS LOST. Clients are kept out while a node prepares\n\
                  the copy beside its data; then it leads in a new term, and the others are cloned from it. The data of before are kept on that node.\n\
                  With --to and --delta a copy that is there is brought to the moment: WHAT IT HOLDS ELSE IS LOST. What it holds already is not written again.\n\
                  Without a moment: the latest one. The primary ends its open segment of the log first, if an agent can be asked.\n\n\
                  Examples:\n  mainstay restore --to /srv/copy\n  mainstay restore --to /srv/copy --time 'yesterday 14:03'\n  \
                  mainstay restore --to /srv/copy --time 2026-11-26T14:03:00Z --json --yes\n  \
                  mainstay restore --to /srv/copy --time 2h --sql 'select count(*) from orders'\n  \
                  mainstay restore --to /srv/copy --lsn 0/5000148 --repository /mnt/vault --key-file /root/vault.key\n  \
                  mainstay restore --to /srv/copy --delta --yes\n  mainstay restore --in-place --time 'yesterday 14:03'\n  mainstay restore --in-place --lsn 0/5000148 --on db2 --yes --json"
)]
pub(crate) struct Restore {
    #[command(flatten)]
    pub(crate) shelf: Shelf,
    /// The new data directory: not there yet, or empty
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<PathBuf>,
    /// DIR is a copy that `restore` made, or did not end: bring it to the moment, and write only what differs
    #[arg(long, conflicts_with = "in_place")]
    pub(crate) delta: bool,
    /// Take the whole cluster back
    #[arg(long, conflicts_with_all = ["key_file", "system", "sql", "files_only"])]
    pub(crate) in_place: bool,
    /// In place: the node that prepares the copy and leads afterwards [default: the primary]
    #[arg(long, value_name = "NODE", conflicts_with = "to")]
    pub(crate) on: Option<mainstay_model::NodeId>,
    /// All that was committed up to this time
    #[arg(long, value_name = "TIME")]
    pub(crate) time: Option<String>,
    /// Up to this position of the log
    #[arg(long, value_name = "LSN")]
    pub(crate) lsn: Option<mainstay_model::Lsn>,
    /// Up to the restore point of this name (pg_create_restore_point)
    #[arg(long = "restore-point", value_name = "NAME", value_parser = point)]
    pub(crate) restore_point: Option<String>,
    /// Up to this transaction, included
    // Smaller numbers are no transaction's.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(3..))]
    pub(crate) transaction: Option<u32>,
    /// The end of the newest backup, with as little of the log as possible
    #[arg(long)]
    pub(crate) immediate: bool,
    /// Along this timeline [default: the newest that the archive knows]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) timeline: Option<u32>,
    /// From this backup (`mainstay backups`), when the newest is damaged, or is newer than the restore point [default: the newest that fits]
    #[arg(long, value_name = "LABEL", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) backup: Option<String>,
    /// Ask the copy this query once it is recovered, and show the answer
    #[arg(long, value_name = "QUERY", conflicts_with = "files_only", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) sql: Option<String>,
    /// In which database the query is asked
    #[arg(long, value_name = "NAME", default_value = "app", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) database: String,
    /// Only write the files: no server recovers them
    #[arg(long)]
    pub(crate) files_only: bool,
    /// How many seconds the recovery may take
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub(crate) wait: u64,
}

/// `follow`.
#[derive(Args, Clone, Debug)]
#[command(
    group = ArgGroup::new("what").args(["status", "promote", "again"]),
    after_help = "Makes a copy like `restore --to`, of the newest backup, and keeps a server on it that replays the log as it arrives in the repository and can be read:\n\
                  a standby in a place to which nothing leads but the repository. It stays in the foreground, for a service manager; ended and started again it\n\
                  goes on, whatever ended it. A repository that is away is tried again for ever. Nothing is written to the repository.\n\
                  --promote brings in what is archived, says up to which commit, and makes a database of its own of the copy, on a new timeline. THE OLD CLUSTER\n\
                  IS NOT STOPPED BY THAT: see to it first that nobody writes there.\n\
                  Exit status of --status: 0 it follows, 1 it stands still or is older than --most-age.\n\n\
                  Examples:\n  mainstay follow --repository 's3://orders-vault/main?region=eu-central-1' --key-file /etc/mainstay/vault.key --to /srv/follow\n  \
                  mainstay follow --to /srv/follow\n  mainstay follow --status --to /srv/follow --most-age 300 --json\n  mainstay follow --promote --to /srv/follow\n  \
                  mainstay follow --again --to /srv/follow --yes"
)]
pub(crate) struct Follow {
    /// A folder, s3://BUCKET/PREFIX?… or azure://CONTAINER/PREFIX?… [default: the one from which the copy was made]
    #[arg(long, value_name = "PLACE")]
    pub(crate) repository: Option<PathBuf>,
    /// Its secret key [default: as before]
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// The database's system identifier, if the repository holds several
    #[arg(long, value_name = "NUMBER")]
    pub(crate) system: Option<u64>,
    /// The directory of the copy: not there yet, or empty, or one that follows already
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,
    /// From this backup (`mainstay backups`) [default: the newest]
    #[arg(long, value_name = "LABEL", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) backup: Option<String>,
    /// Clients may come over the network, by password, on this port [default: the Unix socket in DIR/mainstay_run only]
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["status", "promote"], value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// At these addresses of this host, as in listen_addresses
    #[arg(long, value_name = "ADDRESSES", requires = "port", default_value = "localhost", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) listen: String,
    /// The directory of the server's programs [default: the distribution's, of the backup's version]
    #[arg(long, value_name = "DIR", conflicts_with = "status")]
    pub(crate) bin_dir: Option<PathBuf>,
    /// Make the copy anew where it lies, of the newest backup: what it holds else is lost
    #[arg(long)]
    pub(crate) again: bool,
    /// Say how it stands
    #[arg(long, conflicts_with_all = ["repository", "key_file", "system", "backup"])]
    pub(crate) status: bool,
    /// With --status: its last commit may be so many seconds old
    // What is needed counts for nothing beside an option that it conflicts with: so each of these is named here, too.
    #[arg(long, value_name = "SECONDS", requires = "status", conflicts_with_all = ["repository", "key_file", "system", "backup", "port", "bin_dir"])]
    pub(crate) most_age: Option<u64>,
    /// Make a database of its own of it
    #[arg(long, conflicts_with_all = ["system", "backup"])]
    pub(crate) promote: bool,
    /// With --promote: how many seconds a repository that can not be read is tried
    #[arg(long, value_name = "SECONDS", requires = "promote", conflicts_with_all = ["system", "backup", "port"], default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub(crate) wait: u64,
}
