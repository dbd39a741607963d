//! Why a connection failed, in words that name the thing: expired, another cluster's, refused.
//!
//! The texts hold no times and ports, so that the same trouble reads the same each time and is said once.

use rustls::{AlertDescription, CertificateError, Error as Tls};
use std::io::{Error, ErrorKind};

fn tls(error: &Error) -> Option<&Tls> {
    error.get_ref()?.downcast_ref::<Tls>()
}

/// Why a TCP connection could not be made.
pub(crate) fn connecting(error: &Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused: nothing listens there".to_owned(),
        _ => error.to_string(),
    }
}

/// Why the other side and we did not accept each other, from the caller's side.
pub(crate) fn calling(error: &Error) -> String {
    match tls(error) {
        Some(Tls::InvalidCertificate(why)) => format!("its certificate {}", bad(why)),
        Some(Tls::AlertReceived(AlertDescription::CertificateExpired)) => {
            "it says that our certificate has expired".to_owned()
        }
        Some(Tls::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError)) => {
            "it does not know the authority of our certificate (is it of another cluster?)".to_owned()
        }
        Some(Tls::AlertReceived(alert)) => format!("it refused our certificate ({alert:?})"),
        Some(Tls::General(text)) => text.clone(),
        Some(other) => format!("TLS: {other}"),
        None => error.to_string(),
    }
}

/// Our own certificate has ended, by our own clock.
pub(crate) fn ours_expired() -> String {
    "our certificate has expired; `mainstay pki issue` and `mainstay join --again` give a new one".to_owned()
}

/// Why a caller was refused, if its certificate (or ours, by its word) was the reason.
pub(crate) fn certificate(error: &Error) -> Option<String> {
    match tls(error)? {
        Tls::InvalidCertificate(why) => Some(format!("the caller's certificate {}", bad(why))),
        Tls::NoCertificatesPresented => Some("the caller showed no certificate".to_owned()),
        Tls::General(text) => Some(text.clone()),
        Tls::AlertReceived(AlertDescription::CertificateExpired) => {
            Some("the caller says that our certificate has expired".to_owned())
        }
        Tls::AlertReceived(AlertDescription::UnknownCA) => {
            Some("the caller does not know the authority of our certificate (is it of another cluster?)".to_owned())
        }
        _ => None,
    }
}

fn bad(why: &CertificateError) -> String {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "has expired; `mainstay pki issue` and `mainstay join --again` give a new one".to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("is not of this cluster's authority (invalid peer certificate: {why:?}); is it of another cluster?")
        }
        CertificateError::ApplicationVerificationFailure => "was refused".to_owned(),
        other => format!("is not accepted (invalid peer certificate: {other:?})"),
    }
}

/// Does this reason say that a certificate has expired? For programs that must tell the reasons apart.
#[must_use]
pub fn says_expired(reason: &str) -> bool {
    reason.contains("has expired")
}
