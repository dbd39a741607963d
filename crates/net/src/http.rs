//! HTTP/1.1 over the same port: what serves it, and a small client for commands.

use crate::credentials::Credentials;
use crate::identity::Expect;
use crate::link::open_tls;
use crate::reason;
use crate::tls::ALPN_HTTP;
use crate::{NetError, ServerStream};
use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use mainstay_ports::peer::Caller;
use std::net::SocketAddr;
use std::time::Duration;

/// The longest answer that the client takes, in bytes.
pub const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A request's head must be here within this; also ends a connection that lies idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Serves one accepted connection. Which caller may do what is decided behind this door.
#[async_trait]
pub trait HttpServe: Send + Sync {
    /// Returns when the connection has ended.
    async fn serve(&self, stream: ServerStream, caller: Caller);
}

/// Runs a hyper service on an accepted connection, with limits on the head. The [`Caller`] stands in each request's extensions.
pub async fn serve_service<S, B>(stream: ServerStream, caller: Caller, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: hyper::body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let with_caller = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(caller.clone());
        service.call(request)
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), with_caller)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an API connection ended");
    }
}

/// Asks an agent's API once: connects, sends, reads the whole answer, closes. The path begins with `/`.
///
/// # Errors
/// When the agent can not be reached, does not answer within `limit`, or its answer is longer than [`ANSWER_BYTES_MAX`].
/// A status of 400 and above is no error here.
pub async fn request(
    credentials: &Credentials,
    address: SocketAddr,
    expect: Expect,
    (method, path): (&str, &str),
    body: Option<&serde_json::Value>,
    limit: Duration,
) -> Result<(u16, Vec<u8>), NetError> {
    let exchange = async {
        let stream = open_tls(address, credentials.client_config(expect, ALPN_HTTP)?).await?;
        let answer = exchange(stream, address, (method, path), body).await;
        answer.map_err(|error| match credentials.expired() {
            // The other side's refusal may come too late to be read.
            true => failed(address, (method, path), &reason::ours_expired()),
            false => failed(address, (method, path), &*error),
        })
    };
    let late = || failed(address, (method, path), &format!("no answer within {} ms", limit.as_millis()));
    tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| Err(late()))
}

fn failed(address: SocketAddr, (method, path): (&str, &str), reason: &(impl std::fmt::Display + ?Sized)) -> NetError {
    NetError::Http { method: method.to_owned(), path: path.to_owned(), address, reason: reason.to_string() }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(
    stream: crate::link::ClientStream,
    address: SocketAddr,
    (method, path): (&str, &str),
    body: Option<&serde_json::Value>,
) -> Result<(u16, Vec<u8>), AnyError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let bytes = body.map(serde_json::to_vec).transpose()?;
    let mut request = Request::builder().method(method).uri(path).header("host", address.to_string());
    request = request.header("accept", "application/json");
    if bytes.is_some() {
        request = request.header("content-type", "application/json");
    }
    let request = request.body(Full::new(Bytes::from(bytes.unwrap_or_default())))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes();
        Ok((status, body.to_vec()))
    };
    tokio::pin!(answer, connection);
    let (mut open, mut broken) = (true, None);
    loop {
        tokio::select! {
            biased;
            answered = &mut answer => return answered.map_err(|error| broken.take().unwrap_or(error)),
            // Who refuses a request that is too long answers and closes while it is still being sent: the answer counts.
            ended = &mut connection, if open => {
                open = false;
                broken = ended.err().map(AnyError::from);
            }
        }
    }
}
