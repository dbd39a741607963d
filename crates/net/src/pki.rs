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
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use x509_parser::extensions::GeneralName;

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

/// A key made here, and the request to certify it: the key never travels.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRequest {
    /// The private key, PEM. Never log it.
    pub key_pem: String,
    /// The request that goes to the authority, PEM.
    pub request_pem: String,
}

impl fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRequest").finish_non_exhaustive()
    }
}

impl KeyRequest {
    /// Makes a key and its request. The request names nobody: whom a certificate is for is the authority's word.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn create() -> Result<KeyRequest, NetError> {
        let key = KeyPair::generate().map_err(wrong("make a key"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(wrong("make a request"))?;
        let request_pem = request.pem().map_err(wrong("make a request"))?;
        Ok(KeyRequest { key_pem: key.serialize_pem(), request_pem })
    }

    /// Puts the key together with the certificate that came back.
    ///
    /// # Errors
    /// When the certificate is for another key.
    pub fn with(self, cert_pem: String) -> Result<Issued, NetError> {
        if !belongs(&cert_pem, &self.key_pem)? {
            return Err(NetError::Certificate("the certificate that came back is for another key".to_owned()));
        }
        Ok(Issued { cert_pem, key_pem: self.key_pem })
    }
}

/// Is the certificate for this key?
///
/// # Errors
/// When one of the two can not be read.
pub fn belongs(cert_pem: &str, key_pem: &str) -> Result<bool, NetError> {
    let key = KeyPair::from_pem(key_pem).map_err(wrong("the own key"))?;
    let ders = crate::tls::certificates(cert_pem.as_bytes())?;
    let first = ders.first().ok_or_else(|| NetError::Certificate("there is no certificate".to_owned()))?;
    Ok(parse_certificate(first)?.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
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

/// Valid from a day ago until `valid` from now.
fn params(valid: Duration, common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = Duration::from_millis(wall_now_ms());
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(Duration::from_secs(DAY));
    params.not_after = epoch + now + valid;
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
        let mut params = params(Duration::from_secs(AUTHORITY_DAYS * DAY), &format!("mainstay authority of {cluster}"));
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

    /// Which cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Issues a certificate for a role, valid for one year. `hosts` are the addresses or names under which it is reached.
    ///
    /// # Errors
    /// When a name or host has no proper form.
    pub fn issue(&self, role: &Role, hosts: &[String]) -> Result<Issued, NetError> {
        self.issue_for(role, hosts, Duration::from_secs(ISSUED_DAYS * DAY))
    }

    /// The same, valid for this long from now.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn issue_for(&self, role: &Role, hosts: &[String], valid: Duration) -> Result<Issued, NetError> {
        let key = KeyPair::generate().map_err(wrong("make a key"))?;
        let cert_pem = self.certify(role, hosts, valid, &key)?;
        Ok(Issued { cert_pem, key_pem: key.serialize_pem() })
    }

    /// Certifies a key that was made elsewhere (see [`KeyRequest`]), for a role and hosts that the authority's side chose: of the request
    /// only the key is used, once its signature has shown that the asker holds it. Returns the certificate, PEM.
    ///
    /// # Errors
    /// When the request is not genuine, or a name or host has no proper form.
    pub fn sign(&self, role: &Role, hosts: &[String], request_pem: &str) -> Result<String, NetError> {
        let request = CertificateSigningRequestParams::from_pem(request_pem).map_err(wrong("the request"))?;
        self.certify(role, hosts, Duration::from_secs(ISSUED_DAYS * DAY), &request.public_key)
    }

    fn certify(
        &self,
        role: &Role,
        hosts: &[String],
        valid: Duration,
        key: &impl PublicKeyData,
    ) -> Result<String, NetError> {
        check_free_name(role.name())?;
        let mut params = params(valid, role.name());
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
        let cert = params.signed_by(key, &self.issuer).map_err(wrong("sign a certificate"))?;
        Ok(cert.pem())
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
        // A proxy answers the database's clients, and asks agents.
        Role::Node(_) | Role::Proxy(_) => vec![ServerAuth, ClientAuth],
        Role::Server(_) | Role::Authority(_) => vec![ServerAuth],
        Role::Replication(_) | Role::Admin(_) | Role::Operator(_) | Role::Reader(_) => {
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

impl Issued {
    /// Is this certificate one of that authority's, for the key beside it?
    ///
    /// # Errors
    /// When it is not, or one of the texts can not be read.
    pub fn check_issued_by(&self, authority_pem: &str) -> Result<(), NetError> {
        let key = KeyPair::from_pem(&self.key_pem).map_err(wrong("the key"))?;
        let (ours, theirs) =
            (crate::tls::certificates(self.cert_pem.as_bytes())?, crate::tls::certificates(authority_pem.as_bytes())?);
        let ([own], [authority]) = (&ours[..], &theirs[..]) else {
            return Err(NetError::Certificate("one certificate and one authority are expected".to_owned()));
        };
        let (own, authority) = (parse_certificate(own)?, parse_certificate(authority)?);
        if own.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(NetError::Certificate("the certificate and the key do not belong together".to_owned()));
        }
        own.verify_signature(Some(authority.public_key()))
            .map_err(|_| NetError::Certificate("the certificate is not this authority's".to_owned()))
    }
}

/// The SHA-256 of a certificate, in hexadecimal: what a join token names the authority by.
///
/// # Errors
/// When the text holds no certificate, or several.
pub fn fingerprint(cert_pem: &str) -> Result<String, NetError> {
    match &crate::tls::certificates(cert_pem.as_bytes())?[..] {
        [der] => Ok(fingerprint_of(der)),
        others => Err(NetError::Certificate(format!("one certificate is expected, not {}", others.len()))),
    }
}

pub(crate) fn fingerprint_of(der: &[u8]) -> String {
    hexadecimal(ring::digest::digest(&ring::digest::SHA256, der).as_ref())
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Who a certificate (PEM) names, and until when it is valid (seconds since 1970).
///
/// # Errors
/// When it can not be read, or names nobody of a cluster.
pub fn describe(cert_pem: &str) -> Result<(Identity, i64), NetError> {
    let ders = crate::tls::certificates(cert_pem.as_bytes())?;
    let first = ders.first().ok_or_else(|| NetError::Certificate("no certificate in the file".to_owned()))?;
    Ok((Identity::of_certificate(first)?, parse_certificate(first)?.validity().not_after.timestamp()))
}

/// Under which addresses and names the holder of a certificate (PEM) is reached, as the certificate says.
///
/// # Errors
/// When it can not be read.
pub fn hosts(cert_pem: &str) -> Result<Vec<String>, NetError> {
    let ders = crate::tls::certificates(cert_pem.as_bytes())?;
    let first = ders.first().ok_or_else(|| NetError::Certificate("no certificate in the file".to_owned()))?;
    let certificate = parse_certificate(first)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| NetError::Certificate(format!("its alternative names can not be read: {error}")))?;
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    };
    Ok(names.iter().flat_map(|names| &names.value.general_names).filter_map(name).collect())
}

fn address(bytes: &[u8]) -> Option<String> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let found = four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    found.ok().map(|address| address.to_string())
}

/// Is this authority (PEM) that of the cluster, by its name?
///
/// # Errors
/// When it is another's, or can not be read.
pub fn check_name_of_authority(cluster: &ClusterName, cert_pem: &str) -> Result<(), NetError> {
    let ders = crate::tls::certificates(cert_pem.as_bytes())?;
    let first = ders.first().ok_or_else(|| NetError::Certificate("no certificate in the file".to_owned()))?;
    let key = parse_certificate(first)?.public_key().subject_public_key.data.to_vec();
    check_authority(cluster, cert_pem, &key)
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
    fn a_request_certifies_its_key_and_nothing_else_that_it_says() {
        let authority = Authority::create(&cluster("orders")).unwrap();
        let mut params = CertificateParams::default();
        let key = KeyPair::generate().unwrap();
        params.subject_alt_names.push(SanType::URI("mainstay://orders/admin/eve".try_into().unwrap()));
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        let role = Role::Reader("ann".to_owned());
        let (identity, _) = describe(&authority.sign(&role, &[], &request).unwrap()).unwrap();
        assert_eq!(identity.role, role, "what the request asks to be called is not listened to");

        let (mine, other) = (KeyRequest::create().unwrap(), KeyRequest::create().unwrap());
        let cert = authority.sign(&role, &[], &mine.request_pem).unwrap();
        assert!(other.with(cert.clone()).is_err(), "a certificate for another key is noticed");
        assert!(mine.with(cert).is_ok());
        // One letter of the signature, which stands at the end.
        let at = request.rfind("\n-----END").unwrap() - 12;
        let other = if &request[at..=at] == "A" { "B" } else { "A" };
        let mut forged = request.clone();
        forged.replace_range(at..=at, other);
        let error = authority.sign(&role, &[], &forged).unwrap_err().to_string();
        assert!(error.contains("the request"), "{error}");
    }

    #[test]
    fn a_certificate_says_where_its_holder_is_reached() {
        let authority = Authority::create(&cluster("orders")).unwrap();
        let node = Role::parse("node", "db1").unwrap();
        let hosts = ["10.0.0.1", "2001:db8::7", "db1.example.org"].map(str::to_owned);
        let issued = authority.issue(&node, &hosts).unwrap();
        assert_eq!(super::hosts(&issued.cert_pem).unwrap(), hosts);
        assert_eq!(super::hosts(authority.cert_pem()).unwrap(), [""; 0]);
        assert!(super::hosts("nonsense").is_err());
        assert!(check_name_of_authority(&cluster("orders"), authority.cert_pem()).is_ok());
        let error = check_name_of_authority(&cluster("bills"), authority.cert_pem()).unwrap_err().to_string();
        assert!(error.contains("authority of orders"), "{error}");
        assert!(check_name_of_authority(&cluster("orders"), &issued.cert_pem).is_err());
    }

    #[test]
    fn a_fingerprint_is_of_one_certificate() {
        let authority = Authority::create(&cluster("orders")).unwrap();
        assert_eq!(fingerprint(authority.cert_pem()).unwrap().len(), 64);
        assert!(fingerprint(&authority.cert_pem().repeat(2)).is_err());
        assert!(fingerprint("").is_err());
    }

    #[test]
    fn keys_do_not_show_in_debug_output() {
        let authority = Authority::create(&cluster("orders")).unwrap();
        let issued = authority.issue(&Role::Proxy("p1".to_owned()), &[]).unwrap();
        let request = KeyRequest::create().unwrap();
        assert!(!format!("{authority:?} {issued:?} {request:?}").contains("PRIVATE"));
    }
}
