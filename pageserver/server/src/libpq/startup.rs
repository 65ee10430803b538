//! The first packet of a connection.
//!
//! ```text
//! | length u32 BE, counts itself, 8 to 10,000 | code u32 BE | body |
//! ```
//!
//! Codes: 3.x in the high half is a start with NUL-terminated names and values, closed by an empty name; 80877102 cancels, 80877103 asks
//! for TLS, 80877104 for GSS encryption.

use super::wire::cstring;

const CANCEL: u32 = 80_877_102;
const TLS: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

/// Longest packet accepted, as in Postgres.
const LONGEST: u32 = 10_000;

/// What a client opens with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It would like TLS or GSS encryption; it takes no for an answer and opens again.
    Encryption,
    /// It wants a query of another connection cancelled.
    Cancel,
    /// It starts a session.
    Start {
        /// For the log.
        application_name: String,
    },
}

/// Bytes that open no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// The length is out of bounds. A TLS handshake without asking looks like this, and HTTP does.
    #[error("invalid startup packet: length {0}, expected 8 to {LONGEST}")]
    Length(u32),
    /// Not a version that ever was.
    #[error("invalid startup packet: unsupported protocol {}.{}", .0 >> 16, .0 & 0xFFFF)]
    Protocol(u32),
    /// Names and values are not NUL-terminated UTF-8 in pairs.
    #[error("invalid startup packet: malformed parameters")]
    Parameters,
}

/// What a client may ask for before its startup packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Early {
    /// TLS.
    Tls,
    /// GSS encryption.
    Gss,
}

/// What the first eight bytes of a connection ask for; `None` when something else begins with them.
pub fn early_request(first: [u8; 8]) -> Option<Early> {
    let number = |at: usize| u32::from_be_bytes([first[at], first[at + 1], first[at + 2], first[at + 3]]);
    match (number(0), number(4)) {
        (8, TLS) => Some(Early::Tls),
        (8, GSS) => Some(Early::Gss),
        _ => None,
    }
}

/// The packet at the start of `input` when all of it is there, and how many bytes it occupies.
pub fn parse(input: &[u8]) -> Result<Option<(Opening, usize)>, StartupError> {
    let Some((length, rest)) = input.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length);
    if !(8..=LONGEST).contains(&length) {
        return Err(StartupError::Length(length));
    }
    let Some(packet) = rest.get(..length as usize - 4) else { return Ok(None) };
    let (code, mut body) = packet.split_first_chunk::<4>().expect("the length is at least 8");
    let opening = match u32::from_be_bytes(*code) {
        CANCEL => Opening::Cancel,
        TLS | GSS => Opening::Encryption,
        code if code >> 16 == 3 => {
            let mut application_name = String::new();
            loop {
                let (name, rest) = cstring(body).ok_or(StartupError::Parameters)?;
                if name.is_empty() {
                    break;
                }
                let (value, rest) = cstring(rest).ok_or(StartupError::Parameters)?;
                if name == "application_name" {
                    application_name = value.chars().filter(|c| !c.is_control()).take(64).collect();
                }
                body = rest;
            }
            Opening::Start { application_name }
        }
        code => return Err(StartupError::Protocol(code)),
    };
    Ok(Some((opening, length as usize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        [&(8 + body.len() as u32).to_be_bytes()[..], &code.to_be_bytes(), body].concat()
    }

    #[test]
    fn a_start_names_its_application() {
        let bytes = packet(3 << 16, b"user\0cloud_admin\0application_name\0psql\n\0\0");
        let start = Opening::Start { application_name: "psql".into() };
        assert_eq!(parse(&bytes), Ok(Some((start, bytes.len()))));
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Ok(None));
        }
    }

    #[test]
    fn other_openings_are_told_apart() {
        assert_eq!(parse(&packet(TLS, b"")), Ok(Some((Opening::Encryption, 8))));
        assert_eq!(parse(&packet(GSS, b"")), Ok(Some((Opening::Encryption, 8))));
        assert_eq!(parse(&packet(CANCEL, &[0; 8])), Ok(Some((Opening::Cancel, 16))));
        assert_eq!(parse(&packet(2 << 16, b"")), Err(StartupError::Protocol(2 << 16)));
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Err(StartupError::Length(u32::from_be_bytes(*b"GET "))));
        assert_eq!(parse(&packet(3 << 16, b"user\0x")), Err(StartupError::Parameters));
    }

    #[test]
    fn any_bytes_are_an_opening_or_an_error() {
        for bytes in crate::libpq::garbage::any_bytes(1000) {
            if let Ok(Some((_, length))) = parse(&bytes) {
                assert!(length <= bytes.len());
            }
        }
    }
}
