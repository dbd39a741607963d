//! Where an etcd is, as people write it, what its members are seen to be, and what is to be mended when it does not answer.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The most members that may be named.
pub const ENDPOINTS_MAX: usize = 9;
const STANDARD_PORT: u16 = 2379;

/// One member of an etcd: `http://HOST:PORT` or `https://HOST:PORT`. Without a port it is 2379.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Over TLS.
    pub tls: bool,
    /// An address or a name; an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

impl Endpoint {
    /// From its text.
    ///
    /// # Errors
    /// What is wrong with it. What may hold a password is not repeated.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ if text.contains('@') => return Err(no_user()),
            _ => return Err(format!("{text:?} is no address of an etcd: write https://HOST:PORT or http://HOST:PORT")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            return Err(no_user());
        }
        if rest.contains(['/', '?', '#']) {
            return Err(format!("{text:?}: an endpoint has no path; keys stand under store.prefix"));
        }
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, after)) => (host, after.strip_prefix(':').or((!after.is_empty()).then_some("?"))),
            None => rest.rsplit_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Ok(STANDARD_PORT), str::parse).ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| format!("{text:?}: the port is a number from 1 to 65535"))?;
        let is_address = rest.starts_with('[') && host.parse::<std::net::Ipv6Addr>().is_ok();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' || byte == b'_';
        let is_name = !rest.starts_with('[') && !host.is_empty() && host.bytes().all(plain);
        if !is_address && !is_name {
            return Err(format!("{text:?}: the host is an address or a name (an IPv6 address in brackets)"));
        }
        Ok(Self { tls, host: host.to_owned(), port })
    }
}

fn no_user() -> String {
    "an endpoint holds no user and no password: name them as store.user and store.password_file".to_owned()
}

/// What a member says of itself that reaches too few of the others.
pub const NO_LEADER: &str = "it knows no leader";

/// What to do about a failure that is not a member's being away: a file or a setting of the node, or of etcd. `None`: nothing of that kind.
#[must_use]
pub fn advice(why: &str) -> Option<&'static str> {
    let known: [(&[&str], &str); 9] = [
        (
            &["sees of etcd can not be kept"],
            "make room on the volume of the file that is named, or give the agent's user the right to write it; the agent tries again by itself",
        ),
        (
            &["can be read by others than its owner"],
            "take the file's rights from the others (chmod 600, owned by the agent's user); it is read anew at the next login or connection",
        ),
        (
            &["No such file or directory", "Permission denied (os error", "holds no certificate", "Is a directory"],
            "put the file that is named there, readable for the agent's user, or mend [store] in this node's file and restart its agent",
        ),
        (
            &["invalid peer certificate", "https without store.ca_file"],
            "mend store.ca_file (the authority of etcd's certificates), or etcd's own certificate (it must name the host of store.endpoints, and be valid)",
        ),
        (
            &["CommonName of client"],
            "etcd's gateway refuses a client's certificate with a common name (CN): make one with names as subject alternatives only, for \
             store.cert_file",
        ),
        (
            &["received fatal alert"],
            "etcd refuses the certificate that it is shown, or misses one: mend store.cert_file and store.key_file (of the authority that etcd \
             trusts, and valid)",
        ),
        (
            &["authentication is not enabled"],
            "etcd has no users (`etcdctl auth enable`): enable them, or take store.user and store.password_file out of this node's file and restart its agent",
        ),
        (
            &["authentication failed", "user name not found", "user name is empty", "password not set"],
            "mend store.user or store.password_file in this node's file (and restart its agent), or the password in it: etcd refuses the login",
        ),
        (
            &["etcdserver: permission denied"],
            "etcd's user may not use the cluster's keys: `etcdctl role grant-permission ROLE readwrite --prefix=true PREFIX/`",
        ),
    ];
    known.iter().find(|(texts, _)| texts.iter().any(|text| why.contains(text))).map(|(_, advice)| *advice)
}

/// One member as a node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStanding {
    /// Its endpoint.
    pub endpoint: String,
    /// What is wrong with it, if something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// It leads.
    #[serde(default)]
    pub leads: bool,
    /// The size of its database, bytes.
    #[serde(default)]
    pub bytes: u64,
}

/// An etcd as a node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdStanding {
    /// It answers: its members agree, within the last few seconds.
    pub works: bool,
    /// Why it does not, if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Its members, in the order of the file.
    #[serde(default)]
    pub members: Vec<MemberStanding>,
    /// Alarms that etcd has raised, `NOSPACE` for one.
    #[serde(default)]
    pub alarms: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_written() {
        for (text, whole) in [
            ("http://10.0.0.1:2379", "http://10.0.0.1:2379"),
            ("https://etcd-1.example.org/", "https://etcd-1.example.org:2379"),
            ("https://[fd00::1]:2380", "https://[fd00::1]:2380"),
            ("http://[::1]", "http://[::1]:2379"),
        ] {
            assert_eq!(Endpoint::parse(text).map(|endpoint| endpoint.to_string()), Ok(whole.to_owned()));
        }
        for text in
            ["", "10.0.0.1:2379", "ftp://a", "http://", "http://a:0", "http://a:x", "http://a/v3", "http://fd00::1:3"]
        {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_lost_member_is_told_by_its_text() {
        let of = |why: &str| advice(why).unwrap_or("nothing");
        assert!(of("/etc/p can be read by others than its owner (mode 644): chmod 600 it").contains("chmod 600"));
        assert!(of("/etc/p: No such file or directory (os error 2)").contains("put the file"));
        assert!(of("https://e:2379: invalid peer certificate: UnknownIssuer").contains("store.ca_file"));
        assert!(of("CommonName of client sending a request against gateway will be ignored").contains("common name"));
        assert!(of("log in as m: etcdserver: authentication is not enabled").contains("auth enable"));
        for away in ["http://e:2379: Connection refused (os error 111)", "no connection in time", NO_LEADER] {
            assert_eq!(advice(away), None, "{away}");
        }
    }

    #[test]
    fn a_password_is_never_repeated() {
        for text in ["https://root:s3cret@a:1", "root:s3cret@a:1"] {
            let why = Endpoint::parse(text).unwrap_err();
            assert!(!why.contains("s3cret") && why.contains("password_file"), "{why}");
        }
    }
}
