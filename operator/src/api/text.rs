//! Values that are text in a resource: identifiers, LSNs, quantities, durations.
//!
//! The schema's pattern refuses most nonsense at the API server. What was stored nevertheless is refused when it is parsed, and never
//! when a resource is read: one unreadable resource would otherwise blind the operator to all.

use std::borrow::Cow;
use std::time::Duration;

use model::{Lsn, TenantId, TimelineId};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// Why a text in a resource makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ParseTextError {
    text: String,
    expected: &'static str,
}

impl ParseTextError {
    fn new(text: &str, expected: &'static str) -> Self {
        ParseTextError { text: text.into(), expected }
    }
}

/// 16 bytes as 32 lower-case hexadecimal digits: a tenant's or a timeline's id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HexId(pub String);

impl HexId {
    /// As a tenant's id.
    pub fn tenant(&self) -> Result<TenantId, ParseTextError> {
        self.0.parse().map_err(|_| ParseTextError::new(&self.0, "a tenant id of 32 hexadecimal digits"))
    }

    /// As a timeline's id.
    pub fn timeline(&self) -> Result<TimelineId, ParseTextError> {
        self.0.parse().map_err(|_| ParseTextError::new(&self.0, "a timeline id of 32 hexadecimal digits"))
    }
}

impl JsonSchema for HexId {
    fn schema_name() -> Cow<'static, str> {
        "HexId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9a-f]{32}$", "maxLength": 32 })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// A place in the WAL, `X/Y` in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LsnText(pub String);

impl LsnText {
    /// What it names.
    pub fn lsn(&self) -> Result<Lsn, ParseTextError> {
        self.0.parse().map_err(|_| ParseTextError::new(&self.0, "an LSN such as 0/16B3748"))
    }
}

impl JsonSchema for LsnText {
    fn schema_name() -> Cow<'static, str> {
        "Lsn".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$", "maxLength": 17 })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// A length of time as Go writes it: `90s`, `1h30m`, `250ms`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DurationText(pub String);

/// Units of a [`DurationText`] and their nanoseconds.
const DURATION_UNITS: [(&str, u64); 4] =
    [("ms", 1_000_000), ("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000)];

impl DurationText {
    /// How long it is.
    pub fn duration(&self) -> Result<Duration, ParseTextError> {
        parse_duration(&self.0).ok_or_else(|| ParseTextError::new(&self.0, "a duration such as 90s or 1h30m"))
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut nanos = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: u64 = rest[..digits].parse().ok()?;
        let (unit, length) = DURATION_UNITS.iter().find(|(unit, _)| rest[digits..].starts_with(unit))?;
        nanos = nanos.checked_add(count.checked_mul(*length)?)?;
        rest = &rest[digits + unit.len()..];
    }
    (!text.is_empty()).then(|| Duration::from_nanos(nanos))
}

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9]+(ms|h|m|s))+$", "maxLength": 32 })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// A number of bytes as Kubernetes writes it: `64Mi`, `1Gi`, `500M`, or a plain number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct ByteQuantity(pub String);

/// Suffixes of a [`ByteQuantity`] and what they multiply by.
const QUANTITY_SUFFIXES: [(&str, u64); 11] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("", 1),
];

impl ByteQuantity {
    /// How many bytes.
    pub fn bytes(&self) -> Result<u64, ParseTextError> {
        QUANTITY_SUFFIXES
            .iter()
            .find_map(|(suffix, factor)| self.0.strip_suffix(suffix).map(|number| (number, factor)))
            .and_then(|(number, factor)| number.parse::<u64>().ok()?.checked_mul(*factor))
            .ok_or_else(|| ParseTextError::new(&self.0, "a number of bytes such as 64Mi"))
    }
}

impl<'de> Deserialize<'de> for ByteQuantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum NumberOrText {
            Number(u64),
            Text(String),
        }
        Ok(ByteQuantity(match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(number) => number.to_string(),
            NumberOrText::Text(text) => text,
        }))
    }
}

impl JsonSchema for ByteQuantity {
    fn schema_name() -> Cow<'static, str> {
        "ByteQuantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "anyOf": [{ "type": "integer" }, { "type": "string" }],
            "pattern": "^[0-9]+(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$",
            "maxLength": 20,
        })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// Tells one value from another: 16 hexadecimal digits, the same for the same value in every process and version (FNV-1a over its JSON).
pub fn fingerprint(value: &impl Serialize) -> String {
    let json = serde_json::to_vec(value).expect("specs have only text as keys");
    let hash = json.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let read = |text: &str| DurationText(text.into()).duration().ok();
        assert_eq!(read("1h30m"), Some(Duration::from_mins(90)));
        assert_eq!(read("168h"), Some(Duration::from_hours(168)));
        assert_eq!(read("250ms"), Some(Duration::from_millis(250)));
        for wrong in ["", "5", "s", "5 s", "-1s", "1.5h", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn quantities_are_numbers_or_text() {
        let read = |json: &str| serde_json::from_str::<ByteQuantity>(json).unwrap().bytes().ok();
        assert_eq!(read("\"64Mi\""), Some(64 << 20));
        assert_eq!(read("\"5M\""), Some(5_000_000));
        assert_eq!(read("1024"), Some(1024));
        for wrong in ["\"\"", "\"Mi\"", "\"1.5Gi\"", "\"-1\"", "\"99999999Pi\""] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_text_that_is_wrong_is_named_in_its_error() {
        assert_eq!(
            LsnText("0-16".into()).lsn().unwrap_err().to_string(),
            "\"0-16\" is not an LSN such as 0/16B3748"
        );
        assert!(HexId("zz".into()).tenant().is_err());
        assert_eq!(LsnText("1/a".into()).lsn().unwrap().to_string(), "1/A");
    }
}
