//! Until when this node's certificates are valid. The files are looked at again each minute, since `join --again` renews them.

use mainstay_model::layout::NodeLayout;
use mainstay_model::{Moment, Span};
use mainstay_net::pki;
use mainstay_ports::clock::boot_now;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// How old a look may be.
const AGE: Span = Span(60_000);

/// One certificate of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateEnd {
    /// What it is for: `agent`, `proxy`, `server`, `replication`, `authority`.
    pub purpose: String,
    /// Until when it is valid, seconds since 1970.
    pub until: i64,
}

/// Looks at the files.
#[derive(Debug)]
pub struct Certificates {
    files: Vec<(&'static str, PathBuf)>,
    seen: Mutex<Option<(Moment, Vec<CertificateEnd>)>>,
}

impl Certificates {
    /// Those of this node.
    #[must_use]
    pub fn of(layout: &NodeLayout) -> Self {
        let files = vec![
            ("agent", layout.node_cert()),
            ("proxy", layout.proxy_cert()),
            ("server", layout.server_cert()),
            ("replication", layout.replication_cert()),
            ("authority", layout.ca_cert()),
        ];
        Self { files, seen: Mutex::default() }
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
        let mut ends = Vec::new();
        for (purpose, path) in &self.files {
            let text = tokio::fs::read_to_string(path).await.unwrap_or_default();
            if let Ok(until) = pki::valid_until(&text) {
                ends.push(CertificateEnd { purpose: (*purpose).to_owned(), until });
            }
        }
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, ends.clone()));
        ends
    }
}
