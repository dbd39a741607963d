//! The few bytes of PostgreSQL's protocol that a proxy needs to say no politely: it hears the start-up out, declines
//! encryption, and answers with a proper error. Bounded in bytes, rounds and time, since anybody can connect.
//! Absent: everything after the start-up.

use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The server's own bound on a start-up packet.
pub const STARTUP_BYTES_MAX: usize = 10_000;
/// How long hearing out and answering may take.
pub const POLITE: Duration = Duration::from_secs(2);
const REQUESTS_MAX: usize = 4;
const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSSENC: u32 = 80_877_104;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To start a session.
    Session,
    /// To cancel a query: expects no answer.
    Cancel,
}

impl Refusal {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(256);
        let fields = [
            (b'S', "FATAL"),
            (b'V', "FATAL"),
            (b'C', self.code),
            (b'M', &self.message),
            (b'D', &self.detail),
            (b'H', &self.hint),
        ];
        for (tag, text) in fields {
            body.push(tag);
            body.extend(text.bytes().filter(|byte| *byte != 0));
            body.push(0);
        }
        body.push(0);
        let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
        let mut message = vec![b'E'];
        message.extend(length.to_be_bytes());
        message.extend(body);
        message
    }
}

/// Hears a client out and refuses it.
///
/// # Errors
/// When it broke off, sent something else than a start-up, or took too long; nothing was answered then.
pub async fn refuse<S>(client: &mut S, refusal: &Refusal) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let polite = async {
        if startup(client).await? == Wish::Session {
            client.write_all(&refusal.encode()).await?;
            client.flush().await?;
        }
        Ok(())
    };
    tokio::time::timeout(POLITE, polite).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Reads up to the end of the start-up packet; declines encryption as often as a client may ask.
///
/// # Errors
/// As [`refuse`], except that time is not bounded here.
pub async fn startup<S>(client: &mut S) -> io::Result<Wish>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    for _ in 0..REQUESTS_MAX {
        let (length, code) = (client.read_u32().await?, client.read_u32().await?);
        match (length, code) {
            (8, SSL | GSSENC) => client.write_all(b"N").await?,
            (16, CANCEL) => return Ok(Wish::Cancel),
            _ => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if code >> 16 != 3 || !(8..=STARTUP_BYTES_MAX).contains(&length) {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "not a start-up packet of PostgreSQL"));
                }
                let mut rest = vec![0; length - 8];
                client.read_exact(&mut rest).await?;
                return Ok(Wish::Session);
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "too many requests for encryption"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::duplex;

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
        let result = refuse(&mut near, &refusal()).await;
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
        assert_eq!(refuse(&mut near, &refusal()).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
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
