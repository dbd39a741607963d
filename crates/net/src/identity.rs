//! Who somebody is: a role and a name within one cluster, as the certificate's URI says it.
//!
//! `mainstay://<cluster>/<role>/<name>`, for example `mainstay://orders/node/db1`. A certificate has exactly one such URI. The roles
//! `server` and `replication` belong to the database servers: the database's superuser can read those keys, so they open nothing here.

use crate::NetError;
use mainstay_model::{ClusterName, NodeId};
use mainstay_ports::peer::Caller;
use std::fmt;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a certificate lets its holder be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// An agent: answers and calls.
    Node(NodeId),
    /// A node's database server: TLS towards clients and replicas.
    Server(NodeId),
    /// A replica's stream towards its primary; the name is the database role (also the certificate's common name).
    Replication(String),
    /// A person or program that may change everything.
    Admin(String),
    /// One that may switch over, fail over without loss, restart, pause and resume.
    Operator(String),
    /// One that may look.
    Reader(String),
    /// A proxy.
    Proxy(String),
    /// Who answers for the cluster authority when hosts and people join; calls nobody.
    Authority(String),
}

impl Role {
    /// The word in the URI.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Role::Node(_) => "node",
            Role::Server(_) => "server",
            Role::Replication(_) => "replication",
            Role::Admin(_) => "admin",
            Role::Operator(_) => "operator",
            Role::Reader(_) => "reader",
            Role::Proxy(_) => "proxy",
            Role::Authority(_) => "authority",
        }
    }

    /// The name in the URI, and the certificate's common name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Role::Node(name) | Role::Server(name) => name.as_str(),
            Role::Replication(name)
            | Role::Admin(name)
            | Role::Operator(name)
            | Role::Reader(name)
            | Role::Proxy(name)
            | Role::Authority(name) => name,
        }
    }

    /// Who this is to a handler; `None` for the database servers' roles and the authority's, which may not call agents.
    #[must_use]
    pub fn caller(&self) -> Option<Caller> {
        match self {
            Role::Node(name) => Some(Caller::Node(name.clone())),
            Role::Admin(name) => Some(Caller::Admin(name.clone())),
            Role::Operator(name) => Some(Caller::Operator(name.clone())),
            Role::Reader(name) => Some(Caller::Reader(name.clone())),
            Role::Proxy(name) => Some(Caller::Proxy(name.clone())),
            Role::Server(_) | Role::Replication(_) | Role::Authority(_) => None,
        }
    }

    /// The role of this word and name.
    ///
    /// # Errors
    /// When there is no such role, or the name has no proper form.
    pub fn parse(word: &str, name: &str) -> Result<Role, NetError> {
        let node = || NodeId::new(name).map_err(|bad| NetError::Certificate(bad.to_string()));
        let free = || check_free_name(name).map(|()| name.to_owned());
        match word {
            "node" => Ok(Role::Node(node()?)),
            "server" => Ok(Role::Server(node()?)),
            "replication" => Ok(Role::Replication(free()?)),
            "admin" => Ok(Role::Admin(free()?)),
            "operator" => Ok(Role::Operator(free()?)),
            "reader" => Ok(Role::Reader(free()?)),
            "proxy" => Ok(Role::Proxy(free()?)),
            "authority" => Ok(Role::Authority(free()?)),
            other => Err(NetError::Certificate(format!("no role is called {other:?}"))),
        }
    }
}

/// Checks the name of an admin, a proxy or a database role: it stands in a URI and in logs.
pub(crate) fn check_free_name(name: &str) -> Result<(), NetError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=63).contains(&name.len()) && name.chars().all(fits) {
        return Ok(());
    }
    Err(NetError::Certificate(format!("{name:?} is not a name: use 1 to 63 letters, digits, '-', '_' or '.'")))
}

/// A role in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Which cluster.
    pub cluster: ClusterName,
    /// Role and name.
    pub role: Role,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mainstay://{}/{}/{}", self.cluster, self.role.word(), self.role.name())
    }
}

impl Identity {
    /// Reads the URI.
    ///
    /// # Errors
    /// When it is not of the form `mainstay://<cluster>/<role>/<name>`.
    pub fn parse(uri: &str) -> Result<Identity, NetError> {
        let wrong = || NetError::Certificate(format!("{uri:?} is not mainstay://<cluster>/<role>/<name>"));
        let rest = uri.strip_prefix("mainstay://").ok_or_else(wrong)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [cluster, word, name] = parts[..] else { return Err(wrong()) };
        let cluster = ClusterName::new(cluster).map_err(|bad| NetError::Certificate(bad.to_string()))?;
        Ok(Identity { cluster, role: Role::parse(word, name)? })
    }

    /// Reads who a certificate names. Says nothing about whether the certificate is genuine.
    ///
    /// # Errors
    /// When it can not be read, or does not have exactly one of our URIs.
    pub fn of_certificate(der: &[u8]) -> Result<Identity, NetError> {
        let certificate = parse_certificate(der)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| NetError::Certificate(format!("its alternative names can not be read: {error}")))?;
        let mut found = None;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            let GeneralName::URI(uri) = name else { continue };
            if uri.starts_with("mainstay://") && found.replace(Identity::parse(uri)?).is_some() {
                return Err(NetError::Certificate("it names two roles; one is allowed".to_owned()));
            }
        }
        found.ok_or_else(|| NetError::Certificate("it names no role of a cluster".to_owned()))
    }
}

pub(crate) fn parse_certificate(der: &[u8]) -> Result<X509Certificate<'_>, NetError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(NetError::Certificate("bytes follow its end".to_owned())),
        Err(error) => Err(NetError::Certificate(format!("it can not be read: {error}"))),
    }
}

/// Whom a caller insists on meeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// This node's agent.
    Node(NodeId),
    /// Any agent of the cluster (a command that knows only an address).
    AnyNode,
    /// This node's database server.
    Server(NodeId),
}

impl Expect {
    /// Is this the one?
    #[must_use]
    pub fn accepts(&self, role: &Role) -> bool {
        match (self, role) {
            (Expect::Node(wanted), Role::Node(name)) => wanted == name,
            (Expect::AnyNode, Role::Node(_)) => true,
            (Expect::Server(wanted), Role::Server(name)) => wanted == name,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uri_survives_a_round_trip() {
        for uri in
            ["mainstay://orders/node/db1", "mainstay://o/replication/mainstay_replicator", "mainstay://o/admin/Ann.B"]
        {
            assert_eq!(Identity::parse(uri).unwrap().to_string(), uri);
        }
    }

    #[test]
    fn what_is_not_exactly_a_uri_of_ours_is_refused() {
        for uri in [
            "mainstay://orders/node/",
            "mainstay://orders/node/DB1",
            "mainstay://orders/root/db1",
            "mainstay://orders/node/db1/x",
            "mainstay:///node/db1",
            "http://orders/node/db1",
            "mainstay://orders/admin/a b",
            "",
        ] {
            assert!(Identity::parse(uri).is_err(), "{uri}");
        }
    }

    #[test]
    fn a_servers_or_replication_certificate_is_no_caller() {
        assert_eq!(Role::Server(NodeId::new("db1").unwrap()).caller(), None);
        assert_eq!(Role::Replication("r".to_owned()).caller(), None);
    }
}
