//! What a proxy of whole connections says itself: no, politely. It hears the start-up out, within TLS where the client asks for that and
//! the proxy has a certificate, and answers with a proper error. Bounded in bytes, rounds and time, since anybody can connect.
//! Absent: everything after the start-up; connections that are served carry their TLS through to the server.

use crate::pool::TlsShown;
use mainstay_wire::reply::Reply;
use mainstay_wire::{Startup, WireError};
use rustls::server::Acceptor;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::LazyConfigAcceptor;

/// How long hearing out and answering may take.
pub const POLITE: Duration = Duration::from_secs(3);
const REQUESTS_MAX: usize = 4;
/// The first byte of a client that begins TLS without asking.
const TLS_RECORD: u8 = 0x16;

/// `cannot_connect_now`: worth a retry.
pub const CANNOT_CONNECT_NOW: &str = "57P03";
/// `too_many_connections`.
pub const TOO_MANY_CONNECTIONS: &str = "53300";

/// An error for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// SQLSTATE.
    pub code: &'static str,
    /// What happened.
    pub message: String,
    /// What that means for the client's work.
    pub detail: String,
    /// What to do next.
    pub hint: String,
}

/// What a client wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
    /// To start a session.
    Session,
    /// To cancel a query: expects no answer.
    Cancel,
    /// TLS first. What of it was read already.
    Tls(Vec<u8>),
}

impl Refusal {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        Reply::error("FATAL", self.code, &self.message, &self.detail, &self.hint).encode(&mut out);
        out
    }
}

/// Hears a client out and refuses it; within TLS where it asks for that and this proxy has it.
///
/// # Errors
/// When it broke off, sent something else than a start-up, or took too long; nothing was answered then.
pub async fn refuse<S>(client: &mut S, refusal: &Refusal, tls: Option<&TlsShown>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    tokio::time::timeout(POLITE, tell(client, refusal, tls))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn tell<S>(client: &mut S, refusal: &Refusal, tls: Option<&TlsShown>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut wish = startup(client, tls.is_some()).await?;
    if let Wish::Tls(early) = wish {
        let config = tls.ok_or(io::ErrorKind::InvalidData)?().config;
        let mut hello = Acceptor::default();
        // Reading nothing would be taken for the end.
        if !early.is_empty() {
            hello.read_tls(&mut &early[..])?;
        }
        let mut client = LazyConfigAcceptor::new(hello, client).await?.into_stream(config).await?;
        wish = startup(&mut client, false).await?;
        answer(&mut client, &wish, refusal).await?;
        // A client may take an end without this for a cut by somebody between.
        return client.shutdown().await;
    }
    answer(client, &wish, refusal).await
}

async fn answer<S>(client: &mut S, wish: &Wish, refusal: &Refusal) -> io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    if *wish == Wish::Session {
        client.write_all(&refusal.encode()).await?;
        client.flush().await?;
    }
    Ok(())
}

/// Reads up to the end of the start-up packet, or to where TLS begins if `tls`; declines other encryption as often as a client may ask.
///
/// # Errors
/// As [`refuse`], except that time is not bounded here.
async fn startup<S>(client: &mut S, tls: bool) -> io::Result<Wish>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    for _ in 0..REQUESTS_MAX {
        let mut head = [0; 8];
        client.read_exact(&mut head[..1]).await?;
        if head[0] == TLS_RECORD && tls {
            return Ok(Wish::Tls(vec![TLS_RECORD]));
        }
        client.read_exact(&mut head[1..]).await?;
        let length = head.first_chunk().map_or(0, |length| u32::from_be_bytes(*length));
        let mut whole = head.to_vec();
        let found = match mainstay_wire::startup(&whole).map_err(wrong)? {
            Some((found, _)) => found,
            None => {
                whole.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
                client.read_exact(&mut whole[8..]).await?;
                let found = mainstay_wire::startup(&whole).map_err(wrong)?;
                found.ok_or(io::ErrorKind::InvalidData)?.0
            }
        };
        match found {
            // From here on nothing that comes in clear is believed: it is read as TLS.
            Startup::Ssl if tls => {
                client.write_all(b"S").await?;
                return Ok(Wish::Tls(Vec::new()));
            }
            Startup::Ssl | Startup::Gss => client.write_all(b"N").await?,
            Startup::Cancel { .. } => return Ok(Wish::Cancel),
            Startup::Session { .. } => return Ok(Wish::Session),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "too many requests for encryption"))
}

fn wrong(error: WireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::duplex;

    const CANCEL: u32 = 80_877_102;
    const SSL: u32 = 80_877_103;
    const GSSENC: u32 = 80_877_104;

    fn refusal() -> Refusal {
        let text = |text: &str| text.to_owned();
        let (message, detail, hint) = (text("no primary\0 now"), text("held"), text("retry"));
        Refusal { code: CANNOT_CONNECT_NOW, message, detail, hint }
    }

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
        bytes.extend(code.to_be_bytes());
        bytes.extend(body);
        bytes
    }

    async fn talk(input: &[u8]) -> (io::Result<()>, Vec<u8>) {
        let (mut near, mut far) = duplex(64 * 1024);
        far.write_all(input).await.unwrap();
        far.shutdown().await.unwrap();
        let result = refuse(&mut near, &refusal(), None).await;
        drop(near);
        let mut output = Vec::new();
        far.read_to_end(&mut output).await.unwrap();
        (result, output)
    }

    #[tokio::test]
    async fn encryption_is_declined_and_a_session_gets_the_error() {
        let input = [packet(GSSENC, b""), packet(SSL, b""), packet(196_608, b"user\0app\0\0")].concat();
        let (result, output) = talk(&input).await;
        result.unwrap();
        assert_eq!(&output[..3], b"NNE");
        let length = u32::from_be_bytes(output[3..7].try_into().unwrap()) as usize;
        assert_eq!(output.len(), 3 + length, "the length covers all but the tag");
        assert!(output.ends_with(b"C57P03\0Mno primary now\0Dheld\0Hretry\0\0"));
    }

    #[tokio::test]
    async fn a_cancel_request_gets_silence() {
        let (result, output) = talk(&packet(CANCEL, &[0; 8])).await;
        result.unwrap();
        assert!(output.is_empty());
    }

    #[tokio::test]
    async fn huge_short_and_endless_starts_are_refused_without_memory_or_answer() {
        let huge = [u32::MAX.to_be_bytes(), 196_608_u32.to_be_bytes()].concat();
        let tiny = [7_u32.to_be_bytes(), 196_608_u32.to_be_bytes()].concat();
        let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
        for input in [&huge[..], &tiny, &hello, b"GET / HTTP/1.1\r\n\r\n", b"", &packet(2 << 16, b"")] {
            let (result, output) = talk(input).await;
            assert!(result.is_err() && output.is_empty(), "{input:?}");
        }
        let (result, output) = talk(&packet(SSL, b"").repeat(100)).await;
        assert!(result.is_err());
        assert_eq!(output.len(), REQUESTS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_dawdles_is_left() {
        let (mut near, mut far) = duplex(64);
        far.write_all(&packet(196_608, &[0; 20])[..12]).await.unwrap();
        assert_eq!(refuse(&mut near, &refusal(), None).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    proptest! {
        #[test]
        fn any_bytes_end_and_are_answered_only_with_n_or_an_error(input in prop::collection::vec(any::<u8>(), 0..600)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let (result, output) = runtime.block_on(talk(&input));
            let declined = output.iter().take_while(|byte| **byte == b'N').count();
            prop_assert!(declined <= REQUESTS_MAX);
            let rest = &output[declined..];
            prop_assert!(rest.is_empty() || (result.is_ok() && rest[0] == b'E'));
        }
    }
}
