//! What is told of consumption, in the shape that Neon's receivers know.

use std::time::{Duration, SystemTime};

use model::{TenantId, TimelineId};
use serde_json::{Value, json};

/// Events that are sent at once.
pub const MOST_AT_ONCE: usize = 1000;

/// A number that somebody bills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it counts.
    pub metric: Metric,
    /// Whose.
    pub tenant: TenantId,
    /// Of which timeline; `None` for the whole tenant.
    pub timeline: Option<TimelineId>,
    /// When.
    pub when: When,
    /// The number.
    pub value: u64,
    /// By which a repeat is known.
    pub key: String,
}

/// What an event counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// End of the newest record: bytes of WAL since the cluster began.
    WrittenSize,
    /// Bytes of WAL that were written in a time.
    WrittenDataBytesDelta,
    /// Bytes of WAL since the branch point.
    WrittenSizeSinceParent,
    /// Bytes of all relations.
    TimelineLogicalSize,
    /// Bytes in the bucket: layers, and raw WAL that no layer covers yet.
    RemoteStorageSize,
    /// Bytes of layers on the local disk.
    ResidentSize,
    /// What the history costs.
    SyntheticStorageSize,
}

impl Metric {
    fn name(self) -> &'static str {
        match self {
            Metric::WrittenSize => "written_size",
            Metric::WrittenDataBytesDelta => "written_data_bytes_delta",
            Metric::WrittenSizeSinceParent => "written_size_since_parent",
            Metric::TimelineLogicalSize => "timeline_logical_size",
            Metric::RemoteStorageSize => "remote_storage_size",
            Metric::ResidentSize => "resident_size",
            Metric::SyntheticStorageSize => "synthetic_storage_size",
        }
    }
}

/// What time a number is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// So much there is at this time.
    Absolute(SystemTime),
    /// So much more it became from one time to another.
    Incremental(SystemTime, SystemTime),
}

impl Event {
    /// As it is sent.
    pub fn json(&self) -> Value {
        let mut json = match self.when {
            When::Absolute(time) => json!({"type": "absolute", "time": text(time)}),
            When::Incremental(start, stop) => {
                json!({"type": "incremental", "start_time": text(start), "stop_time": text(stop)})
            }
        };
        json["metric"] = self.metric.name().into();
        json["idempotency_key"] = (&*self.key).into();
        json["value"] = self.value.into();
        json["tenant_id"] = json!(self.tenant);
        if let Some(timeline) = self.timeline {
            json["timeline_id"] = json!(timeline);
        }
        json
    }
}

fn text(time: SystemTime) -> String {
    humantime::format_rfc3339_micros(time).to_string()
}

/// Makes keys that no other event has: `<time>-<server>-<number of four digits>`.
#[derive(Debug)]
pub struct Keys {
    server: String,
    time: SystemTime,
    next: u16,
}

impl Keys {
    /// Of a server whose name no other has.
    pub fn new(server: String) -> Keys {
        Keys { server, time: SystemTime::UNIX_EPOCH, next: 0 }
    }

    /// Keys of a later time, if it is one: a clock that was set back makes no key twice.
    pub fn begin(&mut self, now: SystemTime) {
        if now > self.time {
            (self.time, self.next) = (now, 0);
        }
    }

    /// The next one.
    pub fn make(&mut self) -> String {
        if self.next == 10_000 {
            self.time += Duration::from_micros(1);
            self.next = 0;
        }
        self.next += 1;
        format!("{}-{}-{:04}", text(self.time), self.server, self.next - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn at(micros: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(1_790_000_000_000_000 + micros)
    }

    #[test]
    fn events_look_as_receivers_know_them() {
        let event = Event {
            metric: Metric::WrittenDataBytesDelta,
            tenant: TenantId([0x11; 16]),
            timeline: Some(TimelineId([0x22; 16])),
            when: When::Incremental(at(0), at(1_500_000)),
            value: u64::MAX,
            key: "k".into(),
        };
        assert_eq!(
            event.json(),
            json!({
                "type": "incremental",
                "start_time": "2026-09-21T14:13:20.000000Z",
                "stop_time": "2026-09-21T14:13:21.500000Z",
                "metric": "written_data_bytes_delta",
                "idempotency_key": "k",
                "value": u64::MAX,
                "tenant_id": "11111111111111111111111111111111",
                "timeline_id": "22222222222222222222222222222222",
            })
        );
        let event = Event {
            metric: Metric::SyntheticStorageSize,
            timeline: None,
            when: When::Absolute(at(0)),
            ..event
        };
        assert_eq!(event.json()["type"], "absolute");
        assert_eq!(event.json()["time"], "2026-09-21T14:13:20.000000Z");
        assert!(event.json().get("timeline_id").is_none());
    }

    #[test]
    fn no_key_is_made_twice() {
        let mut keys = Keys::new("pod-0".into());
        let mut made = HashSet::new();
        for round in [5, 3, 5, 6, 20] {
            keys.begin(at(round));
            for _ in 0..25_000 {
                assert!(made.insert(keys.make()));
            }
        }
        keys.begin(at(1_000_000));
        assert_eq!(keys.make(), "2026-09-21T14:13:21.000000Z-pod-0-0000");
    }
}
