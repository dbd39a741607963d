//! The command line of `pki` and `join`. Nothing is done here.

use crate::cli::Which;
use clap::{Args, Subcommand};
use mainstay_model::NodeId;
use std::path::PathBuf;
use std::time::Duration;

/// `pki`.
#[derive(Args, Clone, Debug)]
#[command(arg_required_else_help = true)]
pub(crate) struct Pki {
    #[command(subcommand)]
    pub(crate) command: PkiCommand,
}

/// What the authority's side does.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Make the cluster's authority, an administrator's certificate and the application's password
    Init(Init),
    /// Issue certificates: as a join token, or with --out as files to copy
    Issue(Issue),
    /// Answer hosts and people that join with a token
    Serve(Serve),
    /// Show what was issued, and which tokens are open
    List(List),
}

/// `pki init`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Makes pki/ and secrets/ beside the file. Keep pki/ca.key safe: whoever has it can join the cluster.\n\n\
                        Examples:\n  mainstay pki init --config /etc/mainstay/mainstay.toml"
)]
pub(crate) struct Init {
    #[command(flatten)]
    pub(crate) which: Which,
}

/// Who a certificate is for.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct ForWhom {
    /// A node of the file
    #[arg(value_name = "NODE")]
    pub(crate) node: Option<NodeId>,
    /// A proxy on a host of its own
    #[arg(long, value_name = "NAME")]
    pub(crate) proxy: Option<String>,
    /// A person or program that may switch over, fail over without loss, restart, pause and resume
    #[arg(long, value_name = "NAME")]
    pub(crate) operator: Option<String>,
    /// One that may look
    #[arg(long, value_name = "NAME")]
    pub(crate) reader: Option<String>,
    /// One that may change everything
    #[arg(long, value_name = "NAME")]
    pub(crate) admin: Option<String>,
}

/// `pki issue`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "The token goes to standard output alone, everything else to standard error. It works once.\n\n\
                        Examples:\n  mainstay pki issue db2\n  mainstay pki issue --proxy app1 --valid 15m\n  \
                        mainstay pki issue db2 --out /root/db2-keys\n  mainstay pki issue --operator ann"
)]
pub(crate) struct Issue {
    #[command(flatten)]
    pub(crate) which: Which,
    #[command(flatten)]
    pub(crate) whom: ForWhom,
    /// Where the node is reached, if it is not in the file (yet)
    #[arg(long, value_name = "HOST", conflicts_with_all = ["proxy", "operator", "reader", "admin"])]
    pub(crate) host: Option<String>,
    /// The node that is not in the file will be a witness
    #[arg(long, requires = "host")]
    pub(crate) witness: bool,
    /// Write certificates and keys into this new directory, to be carried over by hand
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// For how long the token can be used
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time, conflicts_with = "out")]
    pub(crate) valid: Duration,
}

/// `pki serve`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Ends when every open token is used, or the time is over.\n\nExamples:\n  mainstay pki serve --for 15m"
)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Where to listen
    #[arg(long, value_name = "HOST:PORT", default_value = "0.0.0.0:7422")]
    pub(crate) listen: String,
    /// For how long
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = time)]
    pub(crate) limit: Duration,
}

/// `pki list`.
#[derive(Args, Clone, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) which: Which,
}

/// Who joins.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct AsWhom {
    /// This host is this node of the file
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<NodeId>,
    /// This host runs a proxy of this name
    #[arg(long, value_name = "NAME")]
    pub(crate) proxy: Option<String>,
    /// An operator works here
    #[arg(long, value_name = "NAME")]
    pub(crate) operator: Option<String>,
    /// A reader works here
    #[arg(long, value_name = "NAME")]
    pub(crate) reader: Option<String>,
    /// An administrator works here
    #[arg(long, value_name = "NAME")]
    pub(crate) admin: Option<String>,
}

/// `join`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Keys are made on this host and never leave it. Nothing is changed if anything fails.\n\n\
                        Examples:\n  mainstay join --config /etc/mainstay/mainstay.toml --node db2 --at 10.0.0.1 --token - < token\n  \
                        mainstay join --node db2 --bundle /root/db2-keys\n  \
                        mainstay join --proxy app1 --token - --at 10.0.0.1 < token")]
pub(crate) struct Join {
    /// The cluster's mainstay.toml
    #[arg(long, value_name = "FILE", env = "MAINSTAY_CONFIG")]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) whom: AsWhom,
    /// A file with the token that `pki issue` printed, or `-` for standard input
    #[arg(long, value_name = "FILE", requires = "at", required_unless_present = "bundle", conflicts_with = "bundle")]
    pub(crate) token: Option<String>,
    /// Where `pki serve` listens [default port: 7422]
    #[arg(long, value_name = "HOST[:PORT]", requires = "token")]
    pub(crate) at: Option<String>,
    /// The directory that `pki issue --out` wrote
    #[arg(long, value_name = "DIR")]
    pub(crate) bundle: Option<PathBuf>,
    /// The operating-system user that database servers run as
    #[arg(long, value_name = "USER", default_value = "postgres")]
    pub(crate) user: String,
    /// Replace certificates and keys that are there already
    #[arg(long)]
    pub(crate) again: bool,
}

/// `15m`, `1h 30m`, `2d`: between a second and thirty days.
fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time between 1s and 30d, such as 90s, 15m, 1h or 2d");
    // Days of 24 hours: nothing here depends on a calendar.
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok());
    let length = match days {
        Some(days) => Duration::from_secs(days.saturating_mul(86_400)),
        None => text.parse::<jiff::SignedDuration>().ok().and_then(|time| time.try_into().ok()).ok_or_else(wrong)?,
    };
    let fits = (Duration::from_secs(1)..=Duration::from_secs(30 * 86_400)).contains(&length);
    if fits { Ok(length) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::time;
    use crate::cli::Cli;
    use clap::Parser as _;
    use std::time::Duration;

    #[test]
    fn times_are_read_and_bounded() {
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(time("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(time("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "0s", "-1h", "31d", "soon", "10"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn exactly_one_is_named_and_a_token_needs_a_place() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        parse("mainstay pki issue db1 --config a").unwrap();
        parse("mainstay pki issue --proxy app1").unwrap();
        parse("mainstay pki issue db4 --host h --witness").unwrap();
        parse("mainstay join --config a --node db1 --token t --at h").unwrap();
        parse("mainstay join --config a --operator ann --bundle d").unwrap();
        for bad in [
            "mainstay pki issue",
            "mainstay pki issue db1 --proxy app1",
            "mainstay pki issue db1 --out x --valid 1h",
            "mainstay pki issue --proxy app1 --host h",
            "mainstay join --config a --token t --at h",
            "mainstay join --config a --node db1",
            "mainstay join --config a --node db1 --token t",
            "mainstay join --config a --node db1 --token t --at h --bundle d",
            "mainstay join --config a --node db1 --proxy p --bundle d",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
