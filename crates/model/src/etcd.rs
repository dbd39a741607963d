//! Where an etcd is, as people write it, and what its members are seen to be.

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
    fn a_password_is_never_repeated() {
        for text in ["https://root:s3cret@a:1", "root:s3cret@a:1"] {
            let why = Endpoint::parse(text).unwrap_err();
            assert!(!why.contains("s3cret") && why.contains("password_file"), "{why}");
        }
    }
}
