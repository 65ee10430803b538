//! The page service: sessions over any bytes, over well-framed messages, and pagestreams.
#![no_main]

use std::cell::LazyCell;

use fuzz::Input;
use libfuzzer_sys::fuzz_target;
use server::libpq::garbage::{TENANT, TIMELINE, into_pagestream, session_of};
use tokio::runtime::{Builder, Runtime};

thread_local! {
    // Its clock stands still, so that waiting takes no time.
    static RUNTIME: LazyCell<Runtime> =
        LazyCell::new(|| Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime"));
}

fn message(tag: u8, body: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    out.extend((4 + body.len() as u32).to_be_bytes());
    out.extend(body);
}

/// A query on the one timeline that there is, where the input does not say another.
fn query(input: &mut Input<'_>) -> Vec<u8> {
    const VERBS: [&str; 8] =
        ["pagestream_v2", "pagestream_v3", "basebackup", "fullbackup", "lease lsn", "show", "set", ""];
    let verb = VERBS[usize::from(input.u8()) % VERBS.len()];
    let mut text = verb.as_bytes().to_vec();
    if input.u8() & 1 == 0 {
        text.extend(format!(" {TENANT} {TIMELINE} ").bytes());
    }
    text.extend(input.short());
    text.push(0);
    text
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let how = input.u8();
    let mut bytes = Vec::new();
    match how % 4 {
        0 => {}
        1 => {
            // A startup packet of right length and version.
            let body = input.short();
            bytes.extend((8 + body.len() as u32).to_be_bytes());
            bytes.extend([0, 3, 0, 0]);
            bytes.extend(body);
        }
        2 => {
            bytes.extend(b"\0\0\0\x17\0\x03\0\0user\0someone\0\0\0");
            bytes[3] = bytes.len() as u8;
            while !input.is_empty() && bytes.len() < 1 << 16 {
                match input.u8() {
                    0 => message(b'Q', &query(&mut input), &mut bytes),
                    1 => message(b'P', &[b"\0", &query(&mut input)[..], b"\0\0"].concat(), &mut bytes),
                    2 => message(b'E', b"\0\0\0\0\0", &mut bytes),
                    3 => message(b'S', b"", &mut bytes),
                    tag => message(tag, input.short(), &mut bytes),
                }
            }
        }
        _ => {
            bytes = into_pagestream(2 + (how >> 2 & 1));
            while !input.is_empty() && bytes.len() < 1 << 16 {
                match input.u8() {
                    tag @ (b'X' | b'c' | b'f' | b'H' | b'S') => message(tag, input.short(), &mut bytes),
                    length => message(b'd', input.bytes(usize::from(length % 64)), &mut bytes),
                }
            }
        }
    }
    bytes.extend(input.0);
    let received = RUNTIME.with(|runtime| runtime.block_on(session_of(&bytes)));
    // What comes back is whole messages of the protocol, after a byte for each refused encryption.
    let mut left = &received[..];
    while let Some((b'N', rest)) = left.split_first() {
        left = rest;
    }
    while !left.is_empty() {
        let length = left.get(1..5).map(|length| u32::from_be_bytes(length.try_into().expect("four bytes")));
        let length = length.expect("a message's head") as usize;
        left = left.get(1 + length..).expect("a whole message");
    }
});
