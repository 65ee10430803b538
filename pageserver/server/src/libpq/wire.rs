//! Messages after the startup packet.
//!
//! ```text
//! | tag u8 | length u32 BE, counts itself, not the tag | body |
//! ```

use bytes::BufMut;

/// Bytes before a message's body.
pub const HEAD: usize = 5;

/// Bytes that cannot be a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The length is less than its own four bytes, or more than is ever needed.
    #[error("message {tag:?} of {length} bytes: expected 4 to {limit}", tag = char::from(*tag))]
    Length {
        /// First byte of the message.
        tag: u8,
        /// The length it claims.
        length: u32,
        /// The most that is accepted here.
        limit: usize,
    },
}

/// The first message of `input`, when all of it is there: its tag and its body. It occupies `HEAD + body.len()` bytes.
pub fn frame(input: &[u8], limit: usize) -> Result<Option<(u8, &[u8])>, WireError> {
    let Some((head, rest)) = input.split_first_chunk::<HEAD>() else { return Ok(None) };
    let [tag, length @ ..] = *head;
    let length = u32::from_be_bytes(length);
    let body = (length as usize).checked_sub(4).filter(|_| length as usize <= limit);
    let body = body.ok_or(WireError::Length { tag, length, limit })?;
    Ok(rest.get(..body).map(|body| (tag, body)))
}

/// The text up to the first NUL, and what follows it. `None` without a NUL or when it is not UTF-8.
pub fn cstring(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

/// Appends a message whose body `write` appends.
pub fn message(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.put_u8(tag);
    let at = out.len();
    out.put_u32(0);
    write(out);
    let length = (out.len() - at) as u32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

fn put_cstring(out: &mut Vec<u8>, text: &str) {
    // A NUL inside would end the text early and shift what follows.
    out.extend(text.bytes().filter(|byte| *byte != 0));
    out.put_u8(0);
}

/// Asks for a password in clear text.
pub fn authentication_cleartext(out: &mut Vec<u8>) {
    message(out, b'R', |out| out.extend_from_slice(&3u32.to_be_bytes()));
}

/// `AuthenticationOk`.
pub fn authentication_ok(out: &mut Vec<u8>) {
    message(out, b'R', |out| out.put_u32(0));
}

/// `ParameterStatus`.
pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    message(out, b'S', |out| {
        put_cstring(out, name);
        put_cstring(out, value);
    });
}

/// `ReadyForQuery`, never in a transaction.
pub fn ready_for_query(out: &mut Vec<u8>) {
    message(out, b'Z', |out| out.put_u8(b'I'));
}

/// `ErrorResponse` with just severity, SQLSTATE and message.
pub fn error_response(out: &mut Vec<u8>, sqlstate: &str, text: &str) {
    message(out, b'E', |out| {
        for (field, value) in [(b'S', "ERROR"), (b'C', sqlstate), (b'M', text)] {
            out.put_u8(field);
            put_cstring(out, value);
        }
        out.put_u8(0);
    });
}

/// `CommandComplete`.
pub fn command_complete(out: &mut Vec<u8>) {
    message(out, b'C', |out| put_cstring(out, "SELECT 1"));
}

/// `RowDescription` of text columns.
pub fn row_description(out: &mut Vec<u8>, columns: &[&str]) {
    message(out, b'T', |out| {
        out.put_u16(columns.len() as u16);
        for column in columns {
            put_cstring(out, column);
            out.put_u32(0); // no table
            out.put_u16(0); // no column of it
            out.put_u32(25); // type text
            out.put_i16(-1); // of any length
            out.put_i32(-1); // without modifier
            out.put_u16(0); // in text
        }
    });
}

/// `DataRow` of texts.
pub fn data_row(out: &mut Vec<u8>, values: &[Option<&str>]) {
    message(out, b'D', |out| {
        out.put_u16(values.len() as u16);
        for value in values {
            match value {
                None => out.put_i32(-1),
                Some(text) => {
                    out.put_i32(text.len() as i32);
                    out.put_slice(text.as_bytes());
                }
            }
        }
    });
}

/// `CopyOutResponse` (`H`) or `CopyBothResponse` (`W`), of text without columns.
pub fn copy_response(out: &mut Vec<u8>, tag: u8) {
    message(out, tag, |out| {
        out.put_u8(0);
        out.put_u16(0);
    });
}

/// A message without a body.
pub fn bare(out: &mut Vec<u8>, tag: u8) {
    message(out, tag, |_| {});
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_found_only_when_all_of_it_is_there() {
        let mut out = Vec::new();
        error_response(&mut out, "XX000", "with\0nul");
        for cut in 0..out.len() {
            assert_eq!(frame(&out[..cut], 1000), Ok(None));
        }
        let (tag, body) = frame(&out, 1000).unwrap().unwrap();
        assert_eq!(tag, b'E');
        assert_eq!(body, b"SERROR\0CXX000\0Mwithnul\0\0");
    }

    #[test]
    fn lengths_that_cannot_be_are_refused_before_the_body_arrives() {
        assert!(frame(b"Q\0\0\0\x03", 100).is_err());
        assert!(frame(b"Q\0\0\0\x65", 100).is_err());
        assert!(frame(b"Q\xff\xff\xff\xff", 100).is_err());
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error() {
        for bytes in crate::libpq::garbage::any_bytes(1000) {
            if let Ok(Some((_, body))) = frame(&bytes, 1 << 20) {
                assert!(HEAD + body.len() <= bytes.len());
            }
            let _ = cstring(&bytes);
        }
    }
}
