//! The command line: every verb with its options, help and examples. Nothing is done here.

mod apply;
mod archive;
mod drill;
mod import;
mod vault;
mod verbs;

pub(crate) use crate::cli_plan::*;
pub(crate) use apply::*;
pub(crate) use archive::*;
pub(crate) use drill::*;
pub(crate) use import::*;
pub(crate) use vault::*;
pub(crate) use verbs::*;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mainstay_model::{ClusterName, Durability, NodeId};
use std::ffi::OsString;
use std::path::PathBuf;

/// Keeps a database cluster up.
#[derive(Debug, Parser)]
#[command(
    name = "mainstay",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "Examples:\n  mainstay up                    a cluster of three nodes on this machine\n  \
                  mainstay status                how it is\n  mainstay connect               psql as the application\n  \
                  mainstay switchover            hand the primary's role to a replica\n  \
                  mainstay set                   what is configured, and how to change it\n  \
                  mainstay history               which changes of primary there were\n  \
                  mainstay down --destroy        end it and remove its files\n\n\
                  Exit status: 0 done, 1 failed, 2 wrong command line or file, 3 not now (the reason is said)."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every verb.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Global {
    /// Answer every question with yes
    #[arg(long, short = 'y', global = true)]
    pub(crate) yes: bool,
    /// The last line of standard output is one JSON object, also when it fails
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make and start a cluster on this machine, or start it again
    Up(Up),
    /// Stop a cluster on this machine
    Down(Down),
    /// Show how the cluster is
    Status(Status),
    /// Show which changes of primary there were, and what else happened
    History(History),
    /// Show why it decided as it did, or does nothing
    Why(Why),
    /// Hand the primary's role to a replica
    Switchover(Switchover),
    /// Let a replica take over without the primary's help
    Failover(Failover),
    /// Restart the database servers, in an order that keeps the cluster in service
    Restart(Restart),
    /// Give a node's copy of the data up and clone it anew
    Reinit(Reinit),
    /// Switch automatic take-over, restart and rejoin off
    Pause(Pause),
    /// Switch them on again
    Resume(Resume),
    /// Show or change the specification in force
    Set(Set),
    /// Add, remove or replace nodes
    Node(Node),
    /// Rebuild the cluster from one node when more than half are lost for ever
    Recover(Recover),
    /// Write the file of a new cluster, asking for what matters most
    Init(Init),
    /// Make the file of a cluster from what another program was told
    Import(Import),
    /// Make a plan from the requirements in the file: what it survives, its settings, its maintenance, each with its reason
    Plan(Plan),
    /// Carry the file out on real hosts over ssh: install, configure, start, add and remove nodes, change settings
    Apply(Apply),
    /// Rehearse a failure on this cluster, and measure what clients notice
    Drill(Drill),
    /// Write the emergency plan of this cluster, with its real names, addresses and commands
    Runbook(Runbook),
    /// Look what is amiss on this host, before or after its agent is there, and say what mends it
    Doctor(Doctor),
    /// Look at the archive of the log, and make keys for it
    Archive(Archive),
    /// Make a backup
    Backup(Backup),
    /// Show which backups there are, and why each is kept
    Backups(Backups),
    /// Read all backups and the archived log, and say what can be restored
    Verify(Verify),
    /// Make a copy of the database as it was at a moment, beside the cluster
    Restore(Restore),
    /// Keep a copy that follows the repository, in a place to which nothing else leads (daemon)
    Follow(Follow),
    /// Open psql on the cluster, or print its address
    Connect(Connect),
    /// Make the cluster's authority, and issue certificates from it
    Pki(crate::cli_keys::Pki),
    /// Take this host, a proxy or a person into a cluster
    Join(crate::cli_keys::Join),
    /// Print a shell's completions of this program's commands
    Completions(Completions),
    /// Write the manual pages, for packages
    #[command(hide = true)]
    Manual(Manual),
    /// Run the agent of one node (daemon)
    Agent(Agent),
    /// Run the guard of one node's server (daemon; the agent starts it)
    #[command(hide = true)]
    Guard(Guard),
    /// Run a proxy (daemon)
    Proxy(Proxy),
    /// Work on one host for `apply`
    #[command(hide = true)]
    Host(Host),
    /// Start the daemons of a cluster on this machine, and start them again when they die
    #[command(hide = true)]
    Supervise(Supervise),
}

/// Which cluster is meant.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Which {
    /// The cluster's directory, as `up` made it [default: where `up` puts it]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["config", "name"])]
    pub(crate) dir: Option<PathBuf>,
    /// The cluster's mainstay.toml [env: MAINSTAY_CONFIG]
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    pub(crate) config: Option<PathBuf>,
    /// The name of a cluster on this machine, in the standard place
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<ClusterName>,
    /// Your certificate: a directory with NAME.crt, NAME.key and ca.crt, or its path without .crt [default: pki/admin beside the file]
    #[arg(long, value_name = "PATH", env = "MAINSTAY_IDENTITY", hide_env_values = true)]
    pub(crate) identity: Option<PathBuf>,
}

/// `resume`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  mainstay resume")]
pub(crate) struct Resume {
    #[command(flatten)]
    pub(crate) which: Which,
}

/// `completions`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  mainstay completions bash > /etc/bash_completion.d/mainstay\n  \
                        mainstay completions zsh > ~/.zfunc/_mainstay\n  \
                        mainstay completions fish > ~/.config/fish/completions/mainstay.fish\n\n\
                        The Debian package brings them along.")]
pub(crate) struct Completions {
    /// Whose: bash, elvish, fish, powershell, zsh
    #[arg(value_enum, value_name = "SHELL", hide_possible_values = true)]
    pub(crate) shell: clap_complete::Shell,
}

/// `manual`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Manual {
    /// A directory that exists
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,
}

/// `up`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Without --dir the cluster lies in /var/lib/mainstay/NAME (root) or ~/.local/share/mainstay/NAME.\n\
                        In a directory that holds a cluster already, `up` starts it as it was.\n\n\
                        Examples:\n  mainstay up\n  mainstay up --name orders --nodes 5 --durability available\n  \
                        mainstay up --dir /srv/pg --bin-dir /usr/lib/postgresql/17/bin --json"
)]
pub(crate) struct Up {
    /// Where everything of the cluster is kept
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// The cluster's name [default: main]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<ClusterName>,
    /// How many nodes, 1 to 9 [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) nodes: Option<u8>,
    /// The database engine [default: postgres]
    #[arg(long, value_enum)]
    pub(crate) engine: Option<Engine>,
    /// Where `postgres` and `initdb` are [default: the newest of the distribution's]
    #[arg(long, value_name = "DIR")]
    pub(crate) bin_dir: Option<PathBuf>,
    /// How commits are protected [default: strict]
    #[arg(long, value_enum)]
    pub(crate) durability: Option<Protection>,
    /// A member of an etcd that is the cluster's store, as http://HOST:PORT; once for each member [default: the nodes' own store]
    #[arg(long, value_name = "URL")]
    pub(crate) etcd: Vec<String>,
    /// Stay in the foreground; end the cluster with Ctrl-C
    #[arg(long)]
    pub(crate) foreground: bool,
    /// How many seconds to wait for writes and replicas
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) wait: u64,
}

/// The engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// PostgreSQL
    Postgres,
}

/// How commits are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protection {
    /// Block writes rather than acknowledge what could be lost
    Strict,
    /// Go on alone when no replica is left, and say so
    Available,
    /// Never wait; a take-over may lose the newest writes, and reports them
    Async,
}

impl From<Protection> for Durability {
    fn from(protection: Protection) -> Self {
        match protection {
            Protection::Strict => Durability::Strict,
            Protection::Available => Durability::Available,
            Protection::Async => Durability::Async,
        }
    }
}

/// `down`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  mainstay down\n  mainstay down --dir /srv/pg --destroy --yes")]
pub(crate) struct Down {
    /// The cluster's directory [default: where `up` puts it]
    #[arg(long, value_name = "DIR", conflicts_with = "name")]
    pub(crate) dir: Option<PathBuf>,
    /// The name of a cluster in the standard place
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<ClusterName>,
    /// Remove the directory with all data afterwards (asks first)
    #[arg(long)]
    pub(crate) destroy: bool,
}

/// `status`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  mainstay status\n  mainstay status --watch\n  mainstay status --json | jq .cluster.primary"
)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Show it again each second, until interrupted
    #[arg(long, short = 'w')]
    pub(crate) watch: bool,
}

/// `switchover`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  mainstay switchover\n  mainstay switchover --to db2 --yes")]
pub(crate) struct Switchover {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The next primary [default: the best replica]
    #[arg(long, value_name = "NODE")]
    pub(crate) to: Option<NodeId>,
}

/// `connect`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  mainstay connect\n  mainstay connect --read -- -c 'select count(*) from orders'\n  \
                        psql \"$(mainstay connect --uri)\""
)]
pub(crate) struct Connect {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Use the address for reads
    #[arg(long)]
    pub(crate) read: bool,
    /// Print the address instead of opening psql (it holds the password)
    #[arg(long)]
    pub(crate) uri: bool,
    /// The database role
    #[arg(value_name = "ROLE", default_value = "app")]
    pub(crate) role: String,
    /// Arguments for psql
    #[arg(last = true, value_name = "PSQL ARGUMENTS")]
    pub(crate) psql: Vec<OsString>,
}

/// `agent`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Agent {
    /// The cluster's mainstay.toml
    #[arg(long, value_name = "FILE", env = "MAINSTAY_CONFIG")]
    pub(crate) config: PathBuf,
    /// Which of its nodes this is
    #[arg(long, value_name = "NODE")]
    pub(crate) node: NodeId,
}

/// `guard`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Guard {
    /// The socket on which it listens
    #[arg(long, value_name = "FILE")]
    pub(crate) socket: PathBuf,
    /// Its log
    #[arg(long, value_name = "FILE")]
    pub(crate) log: PathBuf,
}

/// `proxy`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Proxy {
    /// The cluster's mainstay.toml; pki/proxy.crt and proxy.key lie next to it (`join --proxy` makes them)
    #[arg(long, value_name = "FILE", env = "MAINSTAY_CONFIG")]
    pub(crate) config: PathBuf,
    /// The directory in which pki/ lies, if that is not next to the file
    #[arg(long, value_name = "DIR", conflicts_with = "node")]
    pub(crate) dir: Option<PathBuf>,
    /// Be the proxy of this node (its agent starts it so)
    #[arg(long, value_name = "NODE", hide = true)]
    pub(crate) node: Option<NodeId>,
}

/// `supervise`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Supervise {
    /// The cluster's directory
    #[arg(long, value_name = "DIR", required_unless_present = "node", conflicts_with_all = ["node", "config"])]
    pub(crate) dir: Option<PathBuf>,
    /// One node's agent instead, on a host without a service manager: the cluster's mainstay.toml
    #[arg(long, value_name = "FILE", requires = "node")]
    pub(crate) config: Option<PathBuf>,
    /// Which node
    #[arg(long, value_name = "NODE", requires = "config")]
    pub(crate) node: Option<NodeId>,
    /// Become a session of its own
    #[arg(long)]
    pub(crate) detach: bool,
}

#[cfg(test)]
mod tests {
    use super::{Cli, Command};
    use clap::{CommandFactory as _, Parser as _};

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_takes_yes_and_json() {
        for verb in ["up", "down", "status", "history", "why", "switchover", "connect"] {
            let cli = parse(&format!("mainstay {verb} --yes --json")).unwrap();
            assert!(cli.global.yes && cli.global.json, "{verb}");
            parse(&format!("mainstay {verb} --name orders")).unwrap();
            parse(&format!("mainstay {verb} --dir /tmp/x")).unwrap();
        }
        for verb in ["status", "history", "why", "switchover", "connect"] {
            parse(&format!("mainstay {verb} --config /tmp/mainstay.toml")).unwrap();
        }
    }

    #[test]
    fn every_verb_shows_examples() {
        let program = Cli::command();
        let node = program.find_subcommand("node").unwrap();
        let verbs = [
            "status",
            "history",
            "why",
            "switchover",
            "failover",
            "restart",
            "reinit",
            "pause",
            "resume",
            "set",
            "recover",
        ];
        let verbs = verbs.into_iter().map(|verb| program.find_subcommand(verb).unwrap());
        for verb in verbs.chain(["add", "remove", "replace"].map(|verb| node.find_subcommand(verb).unwrap())) {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n  mainstay "), "{}", verb.get_name());
        }
    }

    #[test]
    fn verbs_of_a_running_cluster_take_its_place_and_a_certificate() {
        for verb in [
            "failover",
            "restart",
            "reinit db1",
            "pause",
            "resume",
            "set",
            "recover",
            "node add db4 --host h",
            "node remove db4",
            "node replace db4",
        ] {
            let cli = parse(&format!("mainstay {verb} --yes --json --name orders --identity /tmp/ann")).unwrap();
            assert!(cli.global.yes && cli.global.json, "{verb}");
        }
    }

    #[test]
    fn bad_values_are_usage_errors() {
        for line in [
            "mainstay up --nodes 0",
            "mainstay up --nodes 10",
            "mainstay up --engine oracle",
            "mainstay up --name Orders",
            "mainstay up --durability none",
            "mainstay switchover --to DB2",
            "mainstay status --dir a --config b",
            "mainstay frobnicate",
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.use_stderr(), "{line}");
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn psql_arguments_stand_after_two_dashes() {
        let cli = parse("mainstay connect --read reporting -- -c select").unwrap();
        let Command::Connect(connect) = cli.command else { panic!("not connect") };
        assert_eq!((connect.read, connect.role.as_str(), connect.psql.len()), (true, "reporting", 2));
        let Command::Connect(connect) = parse("mainstay connect").unwrap().command else { panic!("not connect") };
        assert_eq!((connect.role.as_str(), connect.psql.len()), ("app", 0));
    }
}
