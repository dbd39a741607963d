//! What a process shows and trusts, and the taking up of renewed files while it runs.
//!
//! `join --again` puts new files in place of the old ones. Every new connection, in and out, uses what [`Credentials::renew`] read last;
//! open ones go on with what they began with. Files that can not be used (half-written, another's, ended) change nothing. Absent: the
//! renewal itself, which needs the authority.

use crate::NetError;
use crate::identity::{Expect, Identity, parse_certificate};
use crate::link::lock;
use crate::seldom::Seldom;
use crate::tls::{
    ALPN_FRAMES, ALPN_HTTP, ALPN_POSTGRES, AgentJudge, CallerVerifier, calling, certificates, provider, read, read_key,
    speaking, wrong,
};
use mainstay_model::ClusterName;
use mainstay_ports::clock::wall_now_ms;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// What a process shows and trusts: certificate, key, authority.
pub struct Credentials {
    identity: Identity,
    files: Option<Files>,
    held: Mutex<Arc<Papers>>,
}

/// Where they were read from.
struct Files {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

/// The three texts, PEM.
#[derive(PartialEq, Eq)]
struct Texts {
    ca: String,
    cert: String,
    key: String,
}

/// One state of them, with what is made from it.
struct Papers {
    texts: Texts,
    identity: Identity,
    until: i64,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    callers: Arc<ServerConfig>,
    clients: Arc<ServerConfig>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// An error that says which file it is about.
fn with_path(error: NetError, path: &Path) -> NetError {
    match error {
        NetError::Certificate(reason) => NetError::Certificate(format!("{}: {reason}", path.display())),
        other => other,
    }
}

fn now_seconds() -> i64 {
    i64::try_from(wall_now_ms() / 1000).unwrap_or(i64::MAX)
}

impl Files {
    fn read(&self) -> Result<Texts, NetError> {
        Ok(Texts { ca: read(&self.ca)?, cert: read(&self.cert)?, key: read_key(&self.key)? })
    }
}

impl Papers {
    fn of(cluster: &ClusterName, texts: Texts) -> Result<Self, NetError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(texts.ca.as_bytes())? {
            roots.add(root).map_err(wrong)?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(texts.cert.as_bytes())?;
        let own = chain.first().ok_or_else(|| NetError::Certificate("no certificate in the file".to_owned()))?;
        let identity = Identity::of_certificate(own)?;
        if identity.cluster != *cluster {
            return Err(NetError::Certificate(format!("{identity} is not of the cluster {cluster}")));
        }
        let until = parse_certificate(own)?.validity().not_after.timestamp();
        let key = PrivateKeyDer::from_pem_slice(texts.key.as_bytes()).map_err(wrong)?;
        let callers = callers_config(cluster, &roots, &chain, &key)?;
        let clients = clients_config(&chain, &key)?;
        Ok(Self { texts, identity, until, chain, key, roots, callers, clients })
    }
}

/// For accepting callers of the cluster. Both protocols are offered.
fn callers_config(
    cluster: &ClusterName,
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, NetError> {
    let verified = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider()).build().map_err(wrong)?;
    let verifier = CallerVerifier { chain: verified, cluster: cluster.clone() };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(wrong)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain.to_vec(), key.clone_key())
        .map_err(wrong)?;
    config.alpn_protocols = vec![ALPN_FRAMES.to_vec(), ALPN_HTTP.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For accepting clients of the database, who prove themselves by other means.
fn clients_config(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, NetError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(wrong)?
        .with_no_client_auth()
        .with_single_cert(chain.to_vec(), key.clone_key())
        .map_err(wrong)?;
    config.alpn_protocols = vec![ALPN_POSTGRES.to_vec()];
    Ok(Arc::new(config))
}

impl Credentials {
    /// Reads the three files.
    ///
    /// # Errors
    /// When one can not be read, the key is readable by others or is another certificate's, or the certificate is another cluster's.
    pub fn load(cluster: &ClusterName, ca: &Path, cert: &Path, key: &Path) -> Result<Arc<Self>, NetError> {
        let files = Files { ca: ca.to_owned(), cert: cert.to_owned(), key: key.to_owned() };
        let papers = Papers::of(cluster, files.read()?).map_err(|error| with_path(error, cert))?;
        Ok(Self::holding(papers, Some(files)))
    }

    /// Takes the three texts.
    ///
    /// # Errors
    /// When one can not be read, the key is another certificate's, or the certificate is another cluster's.
    pub fn from_pem(cluster: &ClusterName, ca: &str, cert: &str, key: &str) -> Result<Arc<Self>, NetError> {
        let texts = Texts { ca: ca.to_owned(), cert: cert.to_owned(), key: key.to_owned() };
        Ok(Self::holding(Papers::of(cluster, texts)?, None))
    }

    fn holding(papers: Papers, files: Option<Files>) -> Arc<Self> {
        Arc::new(Self { identity: papers.identity.clone(), files, held: Mutex::new(Arc::new(papers)) })
    }

    fn held(&self) -> Arc<Papers> {
        Arc::clone(&lock(&self.held))
    }

    /// Reads the files again. True: they have changed, and count for every new connection from now on.
    ///
    /// # Errors
    /// When they can not be used: unreadable, not belonging together, another's, or ended by our clock while those in use have not. What is
    /// in use stays.
    pub fn renew(&self) -> Result<bool, NetError> {
        let Some(files) = &self.files else { return Ok(false) };
        let (texts, held) = (files.read()?, self.held());
        if texts == held.texts {
            return Ok(false);
        }
        let issued = crate::Issued { cert_pem: texts.cert.clone(), key_pem: texts.key.clone() };
        let found = issued.check_issued_by(&texts.ca).and_then(|()| Papers::of(&self.identity.cluster, texts));
        let papers = found.map_err(|error| with_path(error, &files.cert))?;
        let refused = |why: String| Err(with_path(NetError::Certificate(why), &files.cert));
        if papers.identity != self.identity {
            return refused(format!("it names {}, and this is {}", papers.identity, self.identity));
        }
        let now = now_seconds();
        if papers.until <= now && now < held.until {
            return refused("it has expired, and the one in use has not".to_owned());
        }
        *lock(&self.held) = Arc::new(papers);
        Ok(true)
    }

    /// Takes up renewed files for ever; `taken` is called after each time. Looking may wait on a disk, so a thread for such things does it.
    pub(crate) async fn keep_renewed(self: Arc<Self>, mut taken: impl FnMut()) {
        if self.files.is_none() {
            return;
        }
        let (mut before, mut said) = (None, Seldom::default());
        loop {
            tokio::time::sleep(LOOK).await;
            let this = Arc::clone(&self);
            let Ok(looked) = tokio::task::spawn_blocking(move || this.renew()).await else { continue };
            let why = looked.as_ref().err().map(ToString::to_string);
            if let Ok(true) = looked {
                tracing::info!(identity = %self.identity, "a renewed certificate is in use for new connections");
                taken();
            }
            // Files are replaced one by one: what is seen once may be the middle of that.
            if let Some(why) = why.as_ref().filter(|why| before.as_ref() == Some(*why) && said.may_say(why)) {
                tracing::warn!(%why, "changed certificate files are not taken up; the ones in use go on: `mainstay join --again` makes new ones");
            }
            before = why;
        }
    }

    /// Who this is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Until when the certificate in use is valid, in seconds since 1970.
    #[must_use]
    pub fn valid_until(&self) -> i64 {
        self.held().until
    }

    /// Has the certificate in use ended, by our clock?
    #[must_use]
    pub fn expired(&self) -> bool {
        self.valid_until() <= now_seconds()
    }

    /// Configuration for accepting callers of the cluster, with what is in use now. Both protocols are offered.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.held().callers)
    }

    /// Configuration for accepting clients of the database, who prove themselves by other means; and the certificate that they will see.
    #[must_use]
    pub fn clients_config(&self) -> (Arc<ServerConfig>, Vec<u8>) {
        let held = self.held();
        (Arc::clone(&held.clients), held.chain.first().map(|own| own.to_vec()).unwrap_or_default())
    }

    /// Configuration for calling an agent, or a database server, with one protocol (such as [`ALPN_FRAMES`]), with what is in use now.
    ///
    /// # Errors
    /// When certificate and key do not belong together.
    pub fn client_config(&self, expect: Expect, alpn: &[u8]) -> Result<Arc<ClientConfig>, NetError> {
        let held = self.held();
        let judge = AgentJudge { roots: Arc::clone(&held.roots), cluster: self.identity.cluster.clone(), expect };
        let config = calling(judge)?.with_client_auth_cert(held.chain.clone(), held.key.clone_key()).map_err(wrong)?;
        Ok(speaking(config, alpn))
    }
}
