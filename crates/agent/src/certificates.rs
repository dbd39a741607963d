//! Until when certificates are valid: this node's own, whose files are looked at again each minute since `join --again` renews them, and
//! those that proxies showed. What the agent itself shows is told of what is in use, not of the file.

use mainstay_model::layout::NodeLayout;
use mainstay_model::{Moment, NodeId, Span};
use mainstay_net::{Mesh, pki};
use mainstay_ports::clock::boot_now;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// How old a look may be.
const AGE: Span = Span(60_000);

/// One certificate of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateEnd {
    /// What it is for: `agent`, `proxy`, `server`, `replication`, `authority`; of a proxy elsewhere, its name.
    pub purpose: String,
    /// Until when it is valid, seconds since 1970.
    pub until: i64,
}

fn end(purpose: &str, until: i64) -> CertificateEnd {
    CertificateEnd { purpose: purpose.to_owned(), until }
}

/// Looks at the files.
pub struct Certificates {
    mesh: Arc<Mesh>,
    files: Vec<(&'static str, PathBuf)>,
    seen: Mutex<Option<(Moment, Vec<CertificateEnd>)>>,
}

impl Certificates {
    /// Those of this node.
    #[must_use]
    pub fn of(layout: &NodeLayout, mesh: Arc<Mesh>) -> Self {
        let files = vec![
            ("proxy", layout.proxy_cert()),
            ("server", layout.server_cert()),
            ("replication", layout.replication_cert()),
            ("authority", layout.ca_cert()),
        ];
        Self { mesh, files, seen: Mutex::default() }
    }

    /// When each ends; files that are missing or can not be read are left out.
    pub async fn ends(&self) -> Vec<CertificateEnd> {
        let now = boot_now();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, ends)) = seen
            && now.since(at) < AGE
        {
            return ends;
        }
        let mut ends = vec![end("agent", self.mesh.credentials().valid_until())];
        for (purpose, path) in &self.files {
            let text = tokio::fs::read_to_string(path).await.unwrap_or_default();
            if let Ok(until) = pki::valid_until(&text) {
                ends.push(end(purpose, until));
            }
        }
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, ends.clone()));
        ends
    }

    /// From where agents of this name are connected here.
    #[must_use]
    pub fn places(&self, node: &NodeId) -> Vec<IpAddr> {
        self.mesh.places(node)
    }

    /// Why changed files of the agent are not taken up, if so.
    #[must_use]
    pub fn refused(&self) -> Option<String> {
        self.mesh.credentials().refused()
    }

    /// The proxies that are connected here, and when what each showed ends.
    #[must_use]
    pub fn proxies(&self) -> Vec<CertificateEnd> {
        self.mesh.proxies().into_iter().map(|(name, until)| end(&name, until)).collect()
    }
}
