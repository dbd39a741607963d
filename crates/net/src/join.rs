//! Joining: how a host, a proxy or a person comes to its certificates with a token that works once.
//!
//! The token names the authority by its fingerprint, so the joiner knows whom it speaks to before it shows the token; the joiner makes
//! its keys itself and sends requests only. One connection, one question, one answer; both bounded. What a token allows, and that it is used
//! once, is decided behind [`Answers`]. Absent: any other use of the port, and callers' certificates (the joiner has none yet).

use crate::identity::{Identity, Role};
use crate::link::HANDSHAKE_TIMEOUT;
use crate::pki::fingerprint_of;
use crate::tls::{self, certificates};
use crate::{Issued, NetError, reason, socket};
use mainstay_model::ClusterName;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{Error as Tls, RootCertStore};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const ALPN: &[u8] = b"mainstay-join/1";
/// A question or an answer, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Joiners at once; more are closed at once.
const JOINERS_MAX: usize = 8;
/// A joiner's whole visit.
const VISIT_TIMEOUT: Duration = Duration::from_secs(10);
/// A refused joiner waits this long for its answer: with [`JOINERS_MAX`] it bounds how fast tokens can be guessed.
const REFUSAL_PAUSE: Duration = Duration::from_millis(500);

/// What a joiner asks for.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The token's public part.
    pub id: String,
    /// The token's secret part.
    pub secret: String,
    /// Which cluster the joiner's file is of.
    pub cluster: String,
    /// The role's word: `node`, `proxy`, `admin`, `operator`, `reader`.
    pub role: String,
    /// The name.
    pub name: String,
    /// Requests to certify keys (PEM), by purpose.
    pub requests: BTreeMap<String, String>,
}

impl std::fmt::Debug for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Question").field("id", &self.id).field("role", &self.role).field("name", &self.name).finish()
    }
}

/// What a welcome joiner gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The cluster authority, PEM.
    pub authority: String,
    /// Certificates (PEM), by purpose.
    pub certificates: BTreeMap<String, String>,
    /// The application role's verifier (nodes that hold data).
    pub verifier: Option<String>,
}

/// Why a joiner was not let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct Refusal {
    /// What is wrong.
    pub error: String,
    /// What to do next.
    pub hint: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Welcome(Welcome),
    Refused(Refusal),
}

/// Decides about joiners. Called by one at a time.
pub trait Answers: Send {
    /// Checks the token, and if it is good, uses it up and certifies.
    ///
    /// # Errors
    /// Why the joiner is refused.
    fn answer(&mut self, question: &Question, from: SocketAddr) -> Result<Welcome, Refusal>;
    /// Is there anybody left to wait for?
    fn done(&self) -> bool;
}

/// Answers joiners until `answers` is done or `limit` is over. Returns whether it is done.
///
/// # Errors
/// When the certificate can not be used.
pub async fn serve(
    socket: TcpListener,
    (authority_pem, shown): (&str, &Issued),
    limit: Duration,
    answers: &mut dyn Answers,
) -> Result<bool, NetError> {
    let acceptor = acceptor(authority_pem, shown)?;
    let places = Arc::new(Semaphore::new(JOINERS_MAX));
    let (questions, mut queue) = mpsc::channel::<Asked>(JOINERS_MAX);
    let accepting = async {
        loop {
            let Ok((stream, from)) = socket.accept().await else {
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let (acceptor, questions) = (acceptor.clone(), questions.clone());
            tokio::spawn(async move {
                // A joiner that does not speak as it should costs its own connection only.
                if let Ok(Err(error)) = timeout(VISIT_TIMEOUT, visit(stream, from, acceptor, questions)).await {
                    tracing::debug!(%error, %from, "a joiner's connection ended");
                }
                drop(place);
            });
        }
    };
    let answering = async {
        while !answers.done() {
            let Some((question, from, reply)) = queue.recv().await else { break };
            let answer = answers.answer(&question, from);
            // The joiner may have gone meanwhile; its token is used all the same.
            let _ = reply.send(match answer {
                Ok(welcome) => Answer::Welcome(welcome),
                Err(refusal) => Answer::Refused(refusal),
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        () = answering => {}
        () = sleep(limit) => {}
    }
    // Joiners that have their answer in hand may still be reading it.
    let _ = timeout(Duration::from_secs(2), places.acquire_many(u32::try_from(JOINERS_MAX).unwrap_or(1))).await;
    Ok(answers.done())
}

type Asked = (Question, SocketAddr, tokio::sync::oneshot::Sender<Answer>);

async fn visit(
    stream: TcpStream,
    from: SocketAddr,
    acceptor: TlsAcceptor,
    questions: mpsc::Sender<Asked>,
) -> std::io::Result<()> {
    socket::tune(&stream);
    let mut stream = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let bytes = receive(&mut stream).await?;
    let answer = match serde_json::from_slice(&bytes) {
        Ok(question) => {
            let (reply, answer) = tokio::sync::oneshot::channel();
            questions.send((question, from, reply)).await.map_err(|_| Error::from(ErrorKind::BrokenPipe))?;
            answer.await.map_err(|_| Error::from(ErrorKind::BrokenPipe))?
        }
        Err(error) => Answer::Refused(Refusal {
            error: format!("the question can not be understood: {error}"),
            hint: "use the same version of mainstay on both hosts".to_owned(),
        }),
    };
    if matches!(answer, Answer::Refused(_)) {
        sleep(REFUSAL_PAUSE).await;
    }
    send(&mut stream, &serde_json::to_vec(&answer)?).await?;
    stream.shutdown().await
}

/// Asks the authority's side at `address` to let us in.
///
/// # Errors
/// When it can not be reached, is not the authority of this fingerprint, or refuses.
pub async fn ask(
    address: SocketAddr,
    (cluster, fingerprint): (&ClusterName, &str),
    question: &Question,
) -> Result<Welcome, NetError> {
    let failed = |reason: String| NetError::Connect { address, reason };
    let exchange = async {
        let tcp = TcpStream::connect(address).await.map_err(|error| failed(reason::connecting(&error)))?;
        socket::tune(&tcp);
        let connector = TlsConnector::from(client(cluster, fingerprint)?);
        let name = ServerName::IpAddress(address.ip().into());
        let stream = connector.connect(name, tcp).await;
        let mut stream = stream.map_err(|error| failed(reason::calling(&error)))?;
        let body = serde_json::to_vec(question).map_err(|error| failed(error.to_string()))?;
        let lost = |error: Error| {
            failed(format!(
                "the connection broke ({error}); if the token counts as used afterwards, issue a new one with `mainstay pki issue`"
            ))
        };
        send(&mut stream, &body).await.map_err(lost)?;
        let bytes = receive(&mut stream).await.map_err(lost)?;
        match serde_json::from_slice(&bytes)
            .map_err(|error| failed(format!("its answer is not understood: {error}")))?
        {
            Answer::Welcome(welcome) if fingerprint_matches(&welcome.authority, fingerprint) => Ok(welcome),
            Answer::Welcome(_) => Err(failed("it sent another authority than the token names".to_owned())),
            Answer::Refused(refusal) => Err(NetError::Join(refusal)),
        }
    };
    timeout(VISIT_TIMEOUT, exchange)
        .await
        .unwrap_or_else(|_| Err(failed(format!("no answer within {} s", VISIT_TIMEOUT.as_secs()))))
}

fn fingerprint_matches(authority_pem: &str, fingerprint: &str) -> bool {
    crate::pki::fingerprint(authority_pem).is_ok_and(|found| found == fingerprint)
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), body: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(body.len()).map_err(Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(body).await?;
    stream.flush().await
}

async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let length = usize::try_from(stream.read_u32().await?).map_err(Error::other)?;
    if length > MESSAGE_BYTES_MAX {
        return Err(Error::new(ErrorKind::InvalidData, "longer than a message may be"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn acceptor(authority_pem: &str, shown: &Issued) -> Result<TlsAcceptor, NetError> {
    let mut chain = certificates(shown.cert_pem.as_bytes())?;
    // The authority itself goes along: the joiner does not have it yet, and compares its fingerprint.
    chain.extend(certificates(authority_pem.as_bytes())?);
    let key = PrivateKeyDer::from_pem_slice(shown.key_pem.as_bytes()).map_err(tls::wrong)?;
    let mut config = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls::wrong)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(tls::wrong)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn client(cluster: &ClusterName, fingerprint: &str) -> Result<Arc<rustls::ClientConfig>, NetError> {
    let judge = AuthorityJudge { cluster: cluster.clone(), fingerprint: fingerprint.to_owned() };
    Ok(tls::speaking(tls::calling(judge)?.with_no_client_auth(), ALPN))
}

/// The authority is the one that the token names, and the certificate shown is its own for this very purpose.
#[derive(Debug)]
struct AuthorityJudge {
    cluster: ClusterName,
    fingerprint: String,
}

impl tls::Judge for AuthorityJudge {
    fn judge(&self, end: &CertificateDer<'_>, between: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Tls> {
        let authority = between.iter().find(|der| fingerprint_of(der) == self.fingerprint);
        let authority = authority.ok_or_else(|| {
            Tls::General(
                "who answers there is not the authority that the token names: the token is of another cluster, \
                 or the address is not that of `mainstay pki serve`"
                    .to_owned(),
            )
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        tls::verify_chain(end, &roots, &[], now)?;
        let identity = Identity::of_certificate(end).map_err(|error| Tls::General(error.to_string()))?;
        if identity.cluster != self.cluster {
            let error = format!("the token is of the cluster {}, the file says {}", identity.cluster, self.cluster);
            return Err(Tls::General(error));
        }
        match identity.role {
            Role::Authority(_) => Ok(()),
            _ => Err(Tls::General(format!("{identity} answers there, not the authority"))),
        }
    }
}
