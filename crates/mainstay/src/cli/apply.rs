//! The command line of `apply`, and of what it runs on each host. Nothing is done here.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `apply`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Hosts are reached with your own ssh program, as its configuration says (keys in an agent, jump hosts, known hosts). As root it works at\n\
                  once, as another user with sudo. It looks at every host first, says what it would do and why, and asks. If anything stands in the way\n\
                  nothing is done on any host. A run that ended half-way is simply typed again; where everything is as the file says nothing is changed.\n\n\
                  pki/ and secrets/ of the cluster lie beside the file: keep them with it.\n\n\
                  Examples:\n  mainstay apply\n  mainstay apply --file orders/mainstay.toml --user admin --sudo-password ~/.sudo-password\n  \
                  mainstay apply --check\n  \
                  mainstay plan --config mainstay.toml --json > plan.json && mainstay apply --plan plan.json\n  mainstay apply --remove --yes --json"
)]
pub(crate) struct Apply {
    /// The cluster's file
    #[arg(long, value_name = "FILE", default_value = "mainstay.toml", env = "MAINSTAY_CONFIG")]
    pub(crate) file: PathBuf,
    /// Look and say what would be done, and do nothing; the exit status is 3 if there is something to do
    #[arg(long)]
    pub(crate) check: bool,
    /// A plan that was looked at (`mainstay plan --json > FILE`): refuse if the file or what is in force has changed since
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: Option<PathBuf>,
    /// Let it install PostgreSQL from the distribution (Debian, Ubuntu) where it is missing
    #[arg(long)]
    pub(crate) packages: bool,
    /// Take nodes that are gone from the file out of the cluster; their data stay on their hosts
    #[arg(long)]
    pub(crate) remove: bool,
    /// The file is one that was in force earlier, and it is to be so again
    #[arg(long)]
    pub(crate) back: bool,
    /// The user to log in as [default: as ssh's configuration says]
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Another configuration of ssh than ~/.ssh/config
    #[arg(long, value_name = "FILE")]
    pub(crate) ssh_config: Option<PathBuf>,
    /// A file with the password for sudo in its first line, or `-` for standard input [default: asked on the terminal, if sudo wants one]
    #[arg(long, value_name = "FILE")]
    pub(crate) sudo_password: Option<PathBuf>,
    /// The program for the hosts, if they are of another architecture than this machine [default: this one]
    #[arg(long, value_name = "FILE")]
    pub(crate) program: Option<PathBuf>,
    /// How many seconds a new cluster, or a new node, may take until it does its part
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) wait: u64,
}

/// `host`: what `apply` runs on a host. Each reads one JSON object from standard input and prints one.
#[derive(Args, Clone, Debug)]
pub(crate) struct Host {
    #[command(subcommand)]
    pub(crate) verb: HostVerb,
}

/// What is done on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum HostVerb {
    /// Show what there is
    Look,
    /// Move this program to its place
    Install,
    /// Install the engine's packages
    Packages,
    /// Write file, settings and unit
    Configure,
    /// Stop the server that is to be adopted, and move its data to the node
    Adopt,
    /// Start the agent and let it be kept
    Start,
    /// Let the agent begin anew
    Reload,
    /// End the agent in order and start it from the program's place
    Restart,
    /// End the agent
    Retire,
    /// Show how the cluster is, as this node's agent sees it
    Status,
    /// Write through the write address
    Prove,
}

#[cfg(test)]
mod tests {
    use crate::cli::{Cli, Command};
    use clap::Parser as _;

    #[test]
    fn apply_takes_its_file_and_the_common_options() {
        let line = "mainstay apply --file x.toml --check --packages --remove --user ann --sudo-password - --yes --json";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        assert!(cli.global.yes && cli.global.json);
        let Command::Apply(options) = cli.command else { panic!("not apply") };
        assert!(options.check && options.packages && options.remove && !options.back);
        assert_eq!((options.user.as_deref(), options.wait), (Some("ann"), 600));
        assert!(Cli::try_parse_from("mainstay apply --wait 0".split(' ')).is_err());
    }
}
