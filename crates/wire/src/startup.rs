//! A client's first packet. Absent: answering it.

use crate::frame::WireError;

/// The server's own bound.
pub const STARTUP_BYTES_MAX: usize = 10_000;
/// Parameters in one packet.
const PARAMETERS_MAX: usize = 64;
/// The code of a request to cancel.
pub const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSSENC: u32 = 80_877_104;

/// What a client wants first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Startup {
    /// TLS.
    Ssl,
    /// Encryption by GSSAPI.
    Gss,
    /// To cancel what the session of this key does.
    Cancel {
        /// The session's process, as it was told.
        process: u32,
        /// Its secret.
        secret: u32,
    },
    /// A session with these parameters.
    Session {
        /// The protocol's minor version.
        minor: u16,
        /// Name and value, in the client's order.
        parameters: Vec<(String, String)>,
    },
}

/// Reads the packet at the beginning of these bytes, and how long it is; `None`: not all of it is there.
///
/// # Errors
/// When it is not one, as soon as that can be told.
pub fn startup(bytes: &[u8]) -> Result<Option<(Startup, usize)>, WireError> {
    let Some(head) = bytes.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head) as usize;
    if !(8..=STARTUP_BYTES_MAX).contains(&length) {
        return Err(WireError::Startup("its length"));
    }
    let Some(code) = bytes.get(4..8).and_then(|code| code.first_chunk::<4>()) else { return Ok(None) };
    let code = u32::from_be_bytes(*code);
    let known = matches!((length, code), (8, SSL | GSSENC) | (16, CANCEL)) || code >> 16 == 3;
    if !known {
        return Err(WireError::Startup("its version"));
    }
    let Some(body) = bytes.get(8..length) else { return Ok(None) };
    let wish = match code {
        SSL => Startup::Ssl,
        GSSENC => Startup::Gss,
        CANCEL => {
            let number = |at: usize| body.get(at..at + 4).and_then(|n| n.first_chunk()).map(|n| u32::from_be_bytes(*n));
            let (Some(process), Some(secret)) = (number(0), number(4)) else {
                return Err(WireError::Startup("a cancel request without a key"));
            };
            Startup::Cancel { process, secret }
        }
        _ => {
            Startup::Session { minor: u16::try_from(code & 0xffff).unwrap_or(u16::MAX), parameters: parameters(body)? }
        }
    };
    Ok(Some((wish, length)))
}

fn parameters(body: &[u8]) -> Result<Vec<(String, String)>, WireError> {
    let Some(body) = body.strip_suffix(&[0]) else { return Err(WireError::Startup("it has no end")) };
    if body.is_empty() {
        return Ok(Vec::new());
    }
    let Some(body) = body.strip_suffix(&[0]) else { return Err(WireError::Startup("a parameter without end")) };
    let mut found = Vec::new();
    let mut parts = body.split(|byte| *byte == 0);
    while let Some(name) = parts.next() {
        let Some(value) = parts.next() else { return Err(WireError::Startup("a name without value")) };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| WireError::Startup("not UTF-8"));
        if name.is_empty() || found.len() >= PARAMETERS_MAX {
            return Err(WireError::Startup("too many parameters, or one without name"));
        }
        found.push((text(name)?, text(value)?));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
        bytes.extend(code.to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn each_kind_is_read_whole_and_not_before() {
        let session = packet(196_608, b"user\0app\0database\0shop\0\0");
        for cut in 0..session.len() {
            assert_eq!(startup(&session[..cut]), Ok(None), "{cut}");
        }
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let parameters = vec![text("user", "app"), text("database", "shop")];
        assert_eq!(startup(&session), Ok(Some((Startup::Session { minor: 0, parameters }, session.len()))));
        assert_eq!(startup(&packet(SSL, b"")), Ok(Some((Startup::Ssl, 8))));
        let cancel = packet(CANCEL, &[0, 0, 0, 7, 0, 0, 1, 0]);
        assert_eq!(startup(&cancel), Ok(Some((Startup::Cancel { process: 7, secret: 256 }, 16))));
    }

    #[test]
    fn what_is_not_a_start_is_refused_early() {
        for wrong in [
            packet(196_608, b"user\0app\0"),
            packet(196_608, b"user\0\xff\0\0"),
            packet(196_608, b"user\0app\0database\0\0"),
            packet(196_608, b"\0x\0\0"),
            packet(131_072, b"user\0app\0\0"),
            packet(CANCEL, b"1234567"),
            packet(196_608, &b"a\0b\0".repeat(65)),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![0, 0, 0, 7, 0, 3, 0, 0],
            vec![0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0],
        ] {
            assert!(startup(&wrong).is_err(), "{wrong:?}");
        }
    }
}
