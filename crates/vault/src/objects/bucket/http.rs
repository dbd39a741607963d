//! Requests to a bucket's server: signed as its dialect has it, bounded in time, tried again where that may help.
//!
//! What comes out is an answer of the server, or that it could not be reached: an answer that is cut off or from something in between
//! is never taken for one.

use super::answers::reason;
use super::dialect::{Dialect, Pairs};
use crate::objects::ObjectError;
use mainstay_model::bucket::Address;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use ureq::http::{HeaderMap, Request};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

/// Times that a request is made.
pub(super) const TRIES: u32 = 6;
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(10);
/// No answer is longer: a segment of the log has a gibibyte at most, and what surrounds it little.
const ANSWER_MAX: u64 = 1100 << 20;
/// An error that is told after the answer began stands in so many bytes.
const CODE_MAX: usize = 4096;
/// Where systems keep the authorities that they trust.
const AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What is asked.
#[derive(Default)]
pub(super) struct Ask<'a> {
    pub(super) method: &'static str,
    /// The object's whole name; empty: the bucket.
    pub(super) name: String,
    /// Sorted by name.
    pub(super) query: Pairs,
    pub(super) headers: Pairs,
    pub(super) body: &'a [u8],
}

/// What the server says.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    /// How often it was asked.
    pub(super) tries: u32,
    /// An error's code. What an object holds is none, whatever it says.
    pub(super) code: String,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
    pub(super) fn good(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// A server, and how it is reached.
pub(super) struct Http {
    pub(super) address: Address,
    pub(super) dialect: Box<dyn Dialect>,
    agent: Agent,
}

fn authorities(named: Option<&Path>) -> Result<Vec<Certificate<'static>>, ObjectError> {
    let from_environment = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
    let standard = || AUTHORITIES.iter().map(std::path::PathBuf::from).find(|path| path.exists());
    let file = named.map(Path::to_owned).or(from_environment).or_else(standard).ok_or_else(|| {
        let says = "this host has no certificates of authorities: install ca-certificates, or name a file in the address (&ca=/FILE)";
        ObjectError::Refused(says.into())
    })?;
    let wrong = |why: String| ObjectError::Refused(format!("the authorities in {}: {why}", file.display()));
    let text = std::fs::read(&file).map_err(|e| wrong(e.to_string()))?;
    let items = parse_pem(&text).filter_map(Result::ok);
    let all: Vec<_> = items
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate.to_owned()),
            _ => None,
        })
        .collect();
    if all.is_empty() { Err(wrong("it holds no certificate".into())) } else { Ok(all) }
}

/// A part of a time, so that many who wait do not come back at once.
fn jitter(most: Duration) -> Duration {
    let byte = crate::keys::random::<1>().map_or(128, |bytes: [u8; 1]| bytes[0]);
    most * (u32::from(byte) + 64) / 320
}

impl Http {
    pub(super) fn new(address: Address, dialect: Box<dyn Dialect>) -> Result<Http, ObjectError> {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent("mainstay")
            .timeout_connect(Some(CONNECT.min(address.timeout)))
            .timeout_global(Some(address.timeout));
        if address.scheme() == "https" {
            let roots = RootCerts::Specific(Arc::new(authorities(address.ca.as_deref())?));
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let tls = TlsConfig::builder().root_certs(roots).unversioned_rustls_crypto_provider(provider);
            config = config.tls_config(tls.build()).https_only(true);
        }
        Ok(Http { address, dialect, agent: config.build().into() })
    }

    fn request<'a>(&self, ask: &Ask<'a>) -> Result<Request<&'a [u8]>, ObjectError> {
        let letter = self.dialect.signed(&self.address, ask)?;
        let mut request = Request::builder().method(ask.method).uri(letter.uri);
        for (name, value) in letter.headers {
            request = request.header(name, value);
        }
        request.body(ask.body).map_err(|e| ObjectError::Refused(format!("a request that can not be: {e}")))
    }

    /// Asks once. The error is a sentence: nobody was reached.
    fn once(&self, ask: &Ask<'_>) -> Result<Result<Answer, String>, ObjectError> {
        let request = self.request(ask)?;
        let broken = |e: ureq::Error| Ok(Err(e.to_string()));
        let answer = match self.agent.run(request) {
            Ok(answer) => answer,
            Err(error) => return broken(error),
        };
        let (parts, mut body): (_, Body) = answer.into_parts();
        let length = parts.headers.get("content-length").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let bytes = if ask.method == "HEAD" {
            Vec::new()
        } else {
            match body.with_config().limit(ANSWER_MAX).read_to_vec() {
                Ok(bytes) => bytes,
                Err(error) => return broken(error),
            }
        };
        if ask.method != "HEAD" && length.is_some_and(|length| length != bytes.len() as u64) {
            return Ok(Err(format!("an answer of {} bytes, {length:?} were announced", bytes.len())));
        }
        let (status, headers) = (parts.status.as_u16(), parts.headers);
        let code = match status {
            // One that begins well may yet tell of a failure.
            200 if ask.method == "POST" => self.dialect.code(&headers, bytes.get(..CODE_MAX).unwrap_or(&bytes)),
            200..300 => String::new(),
            _ => self.dialect.code(&headers, &bytes),
        };
        Ok(Ok(Answer { status, headers, body: bytes, tries: 1, code }))
    }

    /// Asks until there is an answer that counts, so many times at most. Whoever asks for something that may be there in part says by
    /// `whole` whether the answer is.
    pub(super) fn ask(
        &self,
        ask: &Ask<'_>,
        tries: u32,
        whole: impl Fn(&Answer) -> bool,
    ) -> Result<Answer, ObjectError> {
        let mut longest = FIRST;
        let mut said = String::new();
        for turn in 1..=tries.max(1) {
            match self.once(ask)? {
                Ok(answer) if self.dialect.again(&answer) => {
                    said = format!("{} {}", answer.status, reason(&answer.code, &answer.body));
                }
                Ok(answer) if answer.good() && !whole(&answer) => said = "an answer that is not whole".into(),
                Ok(answer) => return Ok(Answer { tries: turn, ..answer }),
                Err(says) => said = says,
            }
            if turn < tries {
                std::thread::sleep(jitter(longest));
                longest = (longest * 2).min(LONGEST);
            }
        }
        let (place, most) = (self.address.shown(), tries.max(1));
        Err(ObjectError::Unreachable(format!(
            "{place}: {said} (asked {most} times; is the endpoint right and the network well?)"
        )))
    }

    /// An answer that says no, as an error.
    pub(super) fn refusal(&self, answer: &Answer) -> ObjectError {
        let says = format!("{}: {} {}", self.address.shown(), answer.status, reason(&answer.code, &answer.body));
        self.dialect.refusal(answer, says)
    }
}
