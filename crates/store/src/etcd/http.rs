//! Connections to one member of an etcd: HTTP/1.1, plain or over TLS, kept open between requests.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use mainstay_model::etcd::Endpoint;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fmt::Display;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

/// The longest answer that is taken, in bytes: all keys of a cluster, and their base64.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Connections that are kept open to one member while nothing is asked.
const IDLE_MAX: usize = 8;

type Sender = SendRequest<Full<Bytes>>;

/// How a request failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The member has certainly not got it.
    Unsent(String),
    /// It may have.
    Lost(String),
}

/// The files for TLS. They are read anew for each connection, so that renewed ones are taken up.
#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    pub(crate) ca: PathBuf,
    pub(crate) own: Option<(PathBuf, PathBuf)>,
}

fn named<E: Display>(path: &Path) -> impl Fn(E) -> String {
    let path = path.display().to_string();
    move |error| format!("{path}: {error}")
}

/// Reads a file that its owner alone may read.
pub(crate) fn read_secret(path: &Path) -> Result<String, String> {
    let mode = std::fs::metadata(path).map_err(named(path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "{} can be read by others than its owner (mode {mode:03o}): chmod 600 it, and replace the secret if others may have read it",
            path.display()
        ));
    }
    std::fs::read_to_string(path).map_err(named(path))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = std::fs::read(path).map_err(named(path))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(named(path))?;
    if found.is_empty() { Err(format!("{} holds no certificate", path.display())) } else { Ok(found) }
}

impl TlsFiles {
    /// What they say, or why they can not be used.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(named(&self.ca))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = versions.map_err(|error| error.to_string())?.with_root_certificates(roots);
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let text = read_secret(key)?;
                let secret = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(named(key))?;
                builder.with_client_auth_cert(certificates(certificate)?, secret).map_err(named(certificate))?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// The way to one member.
pub(crate) struct Door {
    pub(crate) endpoint: Endpoint,
    tls: Option<TlsFiles>,
    idle: Mutex<Vec<Sender>>,
}

impl Door {
    pub(crate) fn new(endpoint: Endpoint, tls: Option<TlsFiles>) -> Self {
        Self { endpoint, tls, idle: Mutex::default() }
    }

    /// One request and its whole answer. Connecting may take until `connect_by`, everything until `deadline`.
    pub(crate) async fn post(
        &self,
        (path, token): (&str, Option<&str>),
        body: Bytes,
        connect_by: Instant,
        deadline: Instant,
    ) -> Result<(u16, Bytes), Failed> {
        let mut sender = self.sender(connect_by.min(deadline)).await.map_err(Failed::Unsent)?;
        let response = self.send(&mut sender, (path, token), body, deadline).await?;
        let status = response.status().as_u16();
        let whole = timeout_at(deadline, Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect()).await;
        let whole = whole.map_err(|_| self.lost(&"its answer did not end in time"))?;
        let bytes = whole.map_err(|error| self.lost(&error))?.to_bytes();
        self.keep(sender);
        Ok((status, bytes))
    }

    /// One request whose answer is read piece by piece, on a connection of its own.
    pub(crate) async fn open(
        &self,
        (path, token): (&str, Option<&str>),
        body: Bytes,
        deadline: Instant,
    ) -> Result<(u16, Incoming), Failed> {
        let mut sender = self.connect(deadline).await.map_err(Failed::Unsent)?;
        let response = self.send(&mut sender, (path, token), body, deadline).await?;
        Ok((response.status().as_u16(), response.into_body()))
    }

    /// Connections that are open may lead nowhere.
    pub(crate) fn forget(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(sender);
        }
    }

    fn lost(&self, error: &dyn Display) -> Failed {
        Failed::Lost(format!("{}: {error}", self.endpoint))
    }

    async fn sender(&self, deadline: Instant) -> Result<Sender, String> {
        loop {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut sender) = kept else { return self.connect(deadline).await };
            // Not ready: the member has closed it meanwhile.
            if matches!(timeout_at(deadline, sender.ready()).await, Ok(Ok(()))) {
                return Ok(sender);
            }
        }
    }

    async fn send(
        &self,
        sender: &mut Sender,
        (path, token): (&str, Option<&str>),
        body: Bytes,
        deadline: Instant,
    ) -> Result<Response<Incoming>, Failed> {
        let host = self.endpoint.to_string();
        let host = host.split_once("://").map_or(host.as_str(), |(_, host)| host);
        let mut request = Request::post(path).header("host", host).header("content-type", "application/json");
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let request = request.body(Full::new(body)).map_err(|error| Failed::Unsent(error.to_string()))?;
        match timeout_at(deadline, sender.try_send_request(request)).await {
            Err(_) => Err(self.lost(&"no answer in time")),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(mut error)) => {
                let unsent = error.take_message().is_some();
                let text = format!("{}: {}", self.endpoint, error.into_error());
                Err(if unsent { Failed::Unsent(text) } else { Failed::Lost(text) })
            }
        }
    }

    async fn connect(&self, deadline: Instant) -> Result<Sender, String> {
        let failed = |error: &dyn Display| format!("{}: {error}", self.endpoint);
        let connected = timeout_at(deadline, async {
            let stream = TcpStream::connect((self.endpoint.host.as_str(), self.endpoint.port)).await;
            let stream = stream.map_err(|error| failed(&error))?;
            let _ = stream.set_nodelay(true);
            match self.endpoint.tls {
                false => start(stream).await,
                true => {
                    let files = self.tls.as_ref().ok_or_else(|| failed(&"https without store.ca_file"))?;
                    let name = ServerName::try_from(self.endpoint.host.clone()).map_err(|error| failed(&error))?;
                    let stream = TlsConnector::from(files.config()?).connect(name, stream).await;
                    start(stream.map_err(|error| failed(&error))?).await
                }
            }
            .map_err(|error| failed(&error))
        });
        connected.await.unwrap_or_else(|_| Err(failed(&"no connection in time")))
    }
}

/// The connection lives as long as what sends on it.
async fn start(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Sender, hyper::Error> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to etcd ended");
        }
    });
    Ok(sender)
}
