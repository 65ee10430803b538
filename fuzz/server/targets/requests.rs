//! Texts from operators, clients and buckets: commands, connection strings, instants, names of files and objects. The first byte says which.
#![no_main]

use engine::bucket::BucketUrl;
use engine::import::path::kind_of;
use engine::object_path::ObjectPath;
use libfuzzer_sys::fuzz_target;
use model::PgMajor;
use server::config::{ByteCount, Span};
use server::http::timelines::parse_rfc3339;
use server::libpq::command::Command;
use server::source::conninfo::ConnInfo;

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match kind % 8 {
        0 => drop(text.parse::<Command>()),
        1 => {
            if let Ok(info) = text.parse::<ConnInfo>() {
                let again: ConnInfo = info.to_string().parse().expect("what we say, we understand");
                let mut said = info;
                said.password = None;
                assert_eq!(again, said);
            }
        }
        2 => drop(parse_rfc3339(text)),
        3 => drop(text.parse::<Span>()),
        4 => drop(text.parse::<ByteCount>()),
        5 => drop(text.parse::<BucketUrl>()),
        6 => {
            if let Ok(path) = text.parse::<ObjectPath>() {
                assert_eq!(path.to_string(), text, "an object has one name");
            }
        }
        _ => {
            for pg in PgMajor::ALL {
                let _ = kind_of(pg, text);
            }
        }
    }
});
