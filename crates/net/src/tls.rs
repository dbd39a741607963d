//! TLS 1.3 with certificates on both sides, against the cluster's authority only, with roles and names compared.
//!
//! Absent: which certificate is in use (see [`crate::credentials`]), session resumption (each connection proves both sides anew), names from DNS (the certificate's URI is the name), the
//! operating system's trust store, and the beginning of a certificate's validity (see [`crate::pki`]).

use crate::NetError;
use crate::identity::{Expect, Identity, parse_certificate};
use mainstay_model::ClusterName;
use mainstay_ports::peer::Caller;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WantsClientCert, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The protocol name of framed messages.
pub const ALPN_FRAMES: &[u8] = b"mainstay/1";
/// The protocol name of PostgreSQL's clients and servers.
pub const ALPN_POSTGRES: &[u8] = b"postgresql";
/// The protocol name of the API.
pub const ALPN_HTTP: &[u8] = b"http/1.1";

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Makes `ring` the process's default, for libraries that do not take a provider. Call it first in `main`; a second call does nothing.
pub fn install_provider() {
    // An `Err` says that one is installed already, which is what we want.
    let _ = ring::default_provider().install_default();
}

pub(crate) fn wrong(error: impl std::fmt::Display) -> NetError {
    NetError::Certificate(error.to_string())
}

pub(crate) fn read(path: &Path) -> Result<String, NetError> {
    std::fs::read_to_string(path).map_err(|source| NetError::File { what: "read", path: path.to_owned(), source })
}

pub(crate) fn read_key(path: &Path) -> Result<String, NetError> {
    let text = read(path)?;
    let metadata = std::fs::metadata(path);
    let metadata = metadata.map_err(|source| NetError::File { what: "look at", path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 { Ok(text) } else { Err(NetError::LooseKey { path: path.to_owned(), mode }) }
}

pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, NetError> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(wrong)
}

/// The time to judge a certificate by: now, or its own beginning if the clock stands before it.
fn judged_at(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<UnixTime, Error> {
    let begins = parse_certificate(certificate).map_err(refused)?.validity().not_before.timestamp();
    let begins = Duration::from_secs(u64::try_from(begins).unwrap_or(0));
    Ok(if now.as_secs() < begins.as_secs() { UnixTime::since_unix_epoch(begins) } else { now })
}

/// Is this certificate one that these authorities issued for answering, and is it still valid?
pub(crate) fn verify_chain(
    end: &CertificateDer<'_>,
    roots: &RootCertStore,
    between: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), Error> {
    let parsed = ParsedCertificate::try_from(end)?;
    let now = judged_at(end, now)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, between, now, algorithms)
}

fn refused(error: NetError) -> Error {
    tracing::debug!(%error, "certificate refused");
    Error::General(error.to_string())
}

/// Who shows this certificate, if it is of this cluster.
fn identity_in(cluster: &ClusterName, certificate: &CertificateDer<'_>) -> Result<Identity, Error> {
    let identity = Identity::of_certificate(certificate).map_err(refused)?;
    if identity.cluster == *cluster {
        return Ok(identity);
    }
    Err(refused(NetError::Certificate(format!("{identity} is not of the cluster {cluster}"))))
}

/// Who is at the other end of an accepted connection.
pub(crate) fn caller_of(cluster: &ClusterName, chain: Option<&[CertificateDer<'_>]>) -> Option<Caller> {
    let certificate = chain?.first()?;
    identity_in(cluster, certificate).ok()?.role.caller()
}

/// For accepting: the chain is the cluster authority's, and the role may call agents.
#[derive(Debug)]
pub(crate) struct CallerVerifier {
    pub(crate) chain: Arc<dyn ClientCertVerifier>,
    pub(crate) cluster: ClusterName,
}

impl ClientCertVerifier for CallerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, judged_at(end_entity, now)?)?;
        let identity = identity_in(&self.cluster, end_entity)?;
        if identity.role.caller().is_some() {
            return Ok(verified);
        }
        Err(refused(NetError::Certificate(format!("{identity} may not call agents"))))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Judges the certificate that whoever is called shows.
pub(crate) trait Judge: std::fmt::Debug + Send + Sync {
    /// Is it the one that was expected? Its signature is verified beside this.
    ///
    /// # Errors
    /// Why it is not.
    fn judge(&self, end: &CertificateDer<'_>, between: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error>;
}

/// For calling: what every call has in common, whoever judges.
#[derive(Debug)]
struct Called<J>(J);

impl<J: Judge> ServerCertVerifier for Called<J> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.judge(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 is required".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The beginning of a configuration for calling: TLS 1.3, with whom `judge` accepts.
pub(crate) fn calling(judge: impl Judge + 'static) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, NetError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(wrong)?;
    // Dangerous only in that the verifier is ours; it verifies the chain, the role and the name.
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(Called(judge))))
}

/// The end of a configuration for calling: this protocol, and no session is taken up again.
pub(crate) fn speaking(mut config: ClientConfig, alpn: &[u8]) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// The chain is the cluster authority's, and role and name are the expected ones.
#[derive(Debug)]
pub(crate) struct AgentJudge {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) cluster: ClusterName,
    pub(crate) expect: Expect,
}

impl Judge for AgentJudge {
    fn judge(&self, end: &CertificateDer<'_>, between: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        verify_chain(end, &self.roots, between, now)?;
        let identity = identity_in(&self.cluster, end)?;
        if self.expect.accepts(&identity.role) {
            return Ok(());
        }
        Err(refused(NetError::Certificate(format!("{identity} answered, {:?} was expected", self.expect))))
    }
}
