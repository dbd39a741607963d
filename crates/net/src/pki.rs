//! The cluster authority: one per cluster, made at `up` or `apply`; it issues every certificate of the cluster and nothing else.
//!
//! Valid: the authority ten years, everything it issues one year. Keys are ECDSA P-256. Absent: revocation (replace the authority
//! instead), intermediate authorities, renewal by itself. The beginning of validity is set a day back and not enforced by
//! [`crate::tls`]: a host whose clock was set back must still take part in the cluster.

use crate::files::write_file;
use crate::identity::{Identity, check_free_name, parse_certificate};
use crate::{NetError, Role};
use mainstay_model::ClusterName;
use mainstay_ports::clock::wall_now_ms;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

const DAY: u64 = 24 * 3600;
const AUTHORITY_DAYS: u64 = 3652;
const ISSUED_DAYS: u64 = 365;

fn wrong(what: &str) -> impl Fn(rcgen::Error) -> NetError {
    move |error| NetError::Certificate(format!("{what}: {error}"))
}

/// The cluster authority with its key.
pub struct Authority {
    cluster: ClusterName,
    cert_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key. Never log it.
    pub key_pem: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").finish_non_exhaustive()
    }
}

fn params(days: u64, common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = Duration::from_millis(wall_now_ms());
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(Duration::from_secs(DAY));
    params.not_after = epoch + now + Duration::from_secs(days * DAY);
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params
}

impl Authority {
    /// Makes a new authority.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn create(cluster: &ClusterName) -> Result<Authority, NetError> {
        let key = KeyPair::generate().map_err(wrong("make a key"))?;
        let mut params = params(AUTHORITY_DAYS, &format!("mainstay authority of {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key).map_err(wrong("sign the authority"))?;
        Self::from_pem(cluster, cert.pem(), key.serialize_pem())
    }

    /// Takes an authority from its PEM texts.
    ///
    /// # Errors
    /// When one of them can not be read, they do not belong together, or the authority is another cluster's.
    pub fn from_pem(cluster: &ClusterName, cert_pem: String, key_pem: String) -> Result<Authority, NetError> {
        let key = KeyPair::from_pem(&key_pem).map_err(wrong("the authority's key"))?;
        check_authority(cluster, &cert_pem, key.public_key_raw())?;
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, key).map_err(wrong("the authority"))?;
        Ok(Authority { cluster: cluster.clone(), cert_pem, key_pem, issuer })
    }

    /// Reads an authority from its files.
    ///
    /// # Errors
    /// As [`Authority::from_pem`], or when a file can not be read or the key is readable by others.
    pub fn load(cluster: &ClusterName, cert: &Path, key: &Path) -> Result<Authority, NetError> {
        Self::from_pem(cluster, crate::tls::read(cert)?, crate::tls::read_key(key)?)
    }

    /// Writes the authority's certificate (0644) and key (0600); neither may exist.
    ///
    /// # Errors
    /// See [`write_file`].
    pub fn write(&self, cert: &Path, key: &Path) -> Result<(), NetError> {
        write_file(key, self.key_pem.as_bytes(), 0o600, None, false)?;
        write_file(cert, self.cert_pem.as_bytes(), 0o644, None, false)
    }

    /// The authority's certificate, PEM: what everybody in the cluster trusts, and nothing besides.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Issues a certificate for a role, valid for one year. `hosts` are the addresses or names under which it is reached.
    ///
    /// # Errors
    /// When a name or host has no proper form.
    pub fn issue(&self, role: &Role, hosts: &[String]) -> Result<Issued, NetError> {
        check_free_name(role.name())?;
        let mut params = params(ISSUED_DAYS, role.name());
        let identity = Identity { cluster: self.cluster.clone(), role: role.clone() };
        let uri = identity.to_string().try_into().map_err(wrong("the role's URI"))?;
        params.subject_alt_names.push(SanType::URI(uri));
        for host in hosts {
            params.subject_alt_names.push(host_name(host)?);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages(role);
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(wrong("make a key"))?;
        let cert = params.signed_by(&key, &self.issuer).map_err(wrong("sign a certificate"))?;
        Ok(Issued { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}

fn check_authority(cluster: &ClusterName, cert_pem: &str, public_key: &[u8]) -> Result<(), NetError> {
    let ders = crate::tls::certificates(cert_pem.as_bytes())?;
    let [der] = &ders[..] else {
        return Err(NetError::Certificate(format!("the authority is one certificate, not {}", ders.len())));
    };
    let certificate = parse_certificate(der)?;
    if certificate.public_key().subject_public_key.data.as_ref() != public_key {
        return Err(NetError::Certificate("the authority's certificate and key do not belong together".to_owned()));
    }
    let wanted = format!("CN=mainstay authority of {cluster}");
    let found = certificate.subject().to_string();
    if found == wanted {
        return Ok(());
    }
    Err(NetError::Certificate(format!("this is the authority {found:?}, not that of the cluster {cluster}")))
}

fn host_name(host: &str) -> Result<SanType, NetError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    if host.is_empty() || host.len() > 253 || !host.chars().all(fits) {
        return Err(NetError::Certificate(format!("{host:?} is neither an IP address nor a host name")));
    }
    let name = host.try_into().map_err(wrong(&format!("the host name {host:?}")))?;
    Ok(SanType::DnsName(name))
}

fn usages(role: &Role) -> Vec<ExtendedKeyUsagePurpose> {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    match role {
        Role::Node(_) => vec![ServerAuth, ClientAuth],
        Role::Server(_) => vec![ServerAuth],
        Role::Replication(_) | Role::Admin(_) | Role::Operator(_) | Role::Reader(_) | Role::Proxy(_) => {
            vec![ClientAuth]
        }
    }
}

impl Issued {
    /// Writes certificate (0644) and key (0600) for this owner (`None`: ours). With `replace` old files give way, without they are errors.
    ///
    /// # Errors
    /// See [`write_file`].
    pub fn write(&self, cert: &Path, key: &Path, owner: Option<(u32, u32)>, replace: bool) -> Result<(), NetError> {
        write_file(key, self.key_pem.as_bytes(), 0o600, owner, replace)?;
        write_file(cert, self.cert_pem.as_bytes(), 0o644, owner, replace)
    }
}

/// When a certificate ends to be valid, in seconds since 1970.
///
/// # Errors
/// When it can not be read.
pub fn valid_until(cert_pem: &str) -> Result<i64, NetError> {
    let ders = crate::tls::certificates(cert_pem.as_bytes())?;
    let first = ders.first().ok_or_else(|| NetError::Certificate("no certificate in the file".to_owned()))?;
    Ok(parse_certificate(first)?.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str) -> ClusterName {
        ClusterName::new(name).unwrap()
    }

    #[test]
    fn an_authority_comes_back_from_its_files_and_keeps_issuing() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("ca.crt"), dir.path().join("ca.key"));
        Authority::create(&cluster("orders")).unwrap().write(&cert, &key).unwrap();
        let again = Authority::load(&cluster("orders"), &cert, &key).unwrap();
        let issued =
            again.issue(&Role::Admin("ann".to_owned()), &["10.0.0.1".to_owned(), "db1.example".to_owned()]).unwrap();
        let der = crate::tls::certificates(issued.cert_pem.as_bytes()).unwrap();
        let identity = Identity::of_certificate(&der[0]).unwrap();
        assert_eq!(identity.to_string(), "mainstay://orders/admin/ann");
        let until = valid_until(&issued.cert_pem).unwrap() - i64::try_from(wall_now_ms() / 1000).unwrap();
        assert!((364 * 86_400..=365 * 86_400).contains(&until), "{until}");
    }

    #[test]
    fn another_clusters_authority_or_anothers_key_is_said_at_once() {
        let one = Authority::create(&cluster("one")).unwrap();
        let two = Authority::create(&cluster("two")).unwrap();
        assert!(Authority::from_pem(&cluster("two"), one.cert_pem.clone(), one.key_pem.clone()).is_err());
        assert!(Authority::from_pem(&cluster("one"), one.cert_pem.clone(), two.key_pem.clone()).is_err());
    }

    #[test]
    fn a_readable_authority_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("ca.crt"), dir.path().join("ca.key"));
        Authority::create(&cluster("orders")).unwrap().write(&cert, &key).unwrap();
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        assert!(matches!(Authority::load(&cluster("orders"), &cert, &key), Err(NetError::LooseKey { .. })));
    }

    #[test]
    fn names_that_would_bend_the_uri_are_refused() {
        let authority = Authority::create(&cluster("orders")).unwrap();
        assert!(authority.issue(&Role::Admin("a/../node/db1".to_owned()), &[]).is_err());
        assert!(authority.issue(&Role::Admin(String::new()), &[]).is_err());
        assert!(authority.issue(&Role::Proxy("p1".to_owned()), &["not a host".to_owned()]).is_err());
    }

    #[test]
    fn keys_do_not_show_in_debug_output() {
        let authority = Authority::create(&cluster("orders")).unwrap();
        let issued = authority.issue(&Role::Proxy("p1".to_owned()), &[]).unwrap();
        assert!(!format!("{authority:?} {issued:?}").contains("PRIVATE"));
    }
}
