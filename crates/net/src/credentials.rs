//! What a process shows and trusts, and the taking up of renewed files while it runs.
//!
//! `join --again` puts new files in place of the old ones. Every new connection, in and out, uses what [`Credentials::renew`] read last;
//! open ones go on with what they began with. Files that can not be used (half-written, another's, another authority's, ended) change
//! nothing. Absent: the
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
    /// Why changed files are not taken up, if so.
    refused: Mutex<Option<String>>,
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

/// Which of the three an error is about.
#[derive(Clone, Copy)]
enum Part {
    Ca,
    Cert,
    Key,
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
    fn path(&self, part: Part) -> &Path {
        match part {
            Part::Ca => &self.ca,
            Part::Cert => &self.cert,
            Part::Key => &self.key,
        }
    }

    fn read(&self) -> Result<Texts, NetError> {
        Ok(Texts { ca: read(&self.ca)?, cert: read(&self.cert)?, key: read_key(&self.key)? })
    }
}

impl Papers {
    fn of(cluster: &ClusterName, texts: Texts) -> Result<Self, (Part, NetError)> {
        let of = |part: Part| move |error: NetError| (part, error);
        let mut roots = RootCertStore::empty();
        for root in whole(&texts.ca).map_err(of(Part::Ca))? {
            roots.add(root).map_err(|error| (Part::Ca, wrong(error)))?;
        }
        let roots = Arc::new(roots);
        let chain = whole(&texts.cert).map_err(of(Part::Cert))?;
        let (identity, until) = named(&chain, cluster).map_err(of(Part::Cert))?;
        let key = PrivateKeyDer::from_pem_slice(texts.key.as_bytes());
        let key =
            key.map_err(|error| (Part::Key, NetError::Certificate(format!("not a whole private key: {error}"))))?;
        let callers = callers_config(cluster, &roots, &chain, &key).map_err(of(Part::Key))?;
        let clients = clients_config(&chain, &key).map_err(of(Part::Key))?;
        Ok(Self { texts, identity, until, chain, key, roots, callers, clients })
    }
}

/// The certificates of a file, at least one.
fn whole(text: &str) -> Result<Vec<CertificateDer<'static>>, NetError> {
    let found = certificates(text.as_bytes());
    match found.map_err(|error| NetError::Certificate(format!("not whole: {error}")))? {
        none if none.is_empty() => Err(NetError::Certificate("no certificate in the file".to_owned())),
        some => Ok(some),
    }
}

/// Whom the first of these names, if it is of the cluster, and until when.
fn named(chain: &[CertificateDer<'static>], cluster: &ClusterName) -> Result<(Identity, i64), NetError> {
    let own = chain.first().ok_or_else(|| NetError::Certificate("no certificate in the file".to_owned()))?;
    let identity = Identity::of_certificate(own)?;
    if identity.cluster != *cluster {
        return Err(NetError::Certificate(format!("{identity} is not of the cluster {cluster}")));
    }
    Ok((identity, parse_certificate(own)?.validity().not_after.timestamp()))
}

/// A key of another certificate, in words that say so.
fn together(error: rustls::Error) -> NetError {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            NetError::Certificate("it is not the key of the certificate beside it".to_owned())
        }
        other => wrong(other),
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
        .map_err(together)?;
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
        .map_err(together)?;
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
        let papers = Papers::of(cluster, files.read()?).map_err(|(part, error)| with_path(error, files.path(part)))?;
        Ok(Self::holding(papers, Some(files)))
    }

    /// Takes the three texts.
    ///
    /// # Errors
    /// When one can not be read, the key is another certificate's, or the certificate is another cluster's.
    pub fn from_pem(cluster: &ClusterName, ca: &str, cert: &str, key: &str) -> Result<Arc<Self>, NetError> {
        let texts = Texts { ca: ca.to_owned(), cert: cert.to_owned(), key: key.to_owned() };
        Ok(Self::holding(Papers::of(cluster, texts).map_err(|(_, error)| error)?, None))
    }

    fn holding(papers: Papers, files: Option<Files>) -> Arc<Self> {
        Arc::new(Self {
            identity: papers.identity.clone(),
            files,
            held: Mutex::new(Arc::new(papers)),
            refused: Mutex::default(),
        })
    }

    fn held(&self) -> Arc<Papers> {
        Arc::clone(&lock(&self.held))
    }

    /// Reads the files again. True: they have changed, and count for every new connection from now on.
    ///
    /// # Errors
    /// When they can not be used: unreadable, not belonging together, another's, another authority's (that takes a restart, since it is the
    /// cluster that changes), or ended by our clock while those in use have not. What is in use stays.
    pub fn renew(&self) -> Result<bool, NetError> {
        let looked = self.read_again();
        *lock(&self.refused) = looked.as_ref().err().map(ToString::to_string);
        looked
    }

    /// Why changed files are not taken up, if so.
    #[must_use]
    pub fn refused(&self) -> Option<String> {
        lock(&self.refused).clone()
    }

    fn read_again(&self) -> Result<bool, NetError> {
        let Some(files) = &self.files else { return Ok(false) };
        let (texts, held) = (files.read()?, self.held());
        if texts == held.texts {
            return Ok(false);
        }
        let issued = crate::Issued { cert_pem: texts.cert.clone(), key_pem: texts.key.clone() };
        let ca = texts.ca.clone();
        let found = Papers::of(&self.identity.cluster, texts);
        let papers = found.map_err(|(part, error)| with_path(error, files.path(part)))?;
        if !self.trusts(&ca) {
            let why = "another authority than the one in use; a restart of this process takes it, if that is meant";
            return Err(with_path(NetError::Certificate(why.to_owned()), &files.ca));
        }
        issued.check_issued_by(&ca).map_err(|error| with_path(error, &files.cert))?;
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
        let (mut before, mut said): (Option<String>, _) = (None, Seldom::default());
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

    /// Is this authority (PEM), or one of these, one that is trusted now?
    #[must_use]
    pub fn trusts(&self, ca: &str) -> bool {
        let ours = certificates(self.held().texts.ca.as_bytes()).unwrap_or_default();
        certificates(ca.as_bytes()).unwrap_or_default().iter().any(|root| ours.contains(root))
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
