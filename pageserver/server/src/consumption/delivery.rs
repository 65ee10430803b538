//! Sending what one round brought, however long that takes. No more than one round ever waits, so an endpoint that is away costs the memory of that
//! one; and a batch is sent again as it was, so a receiver that took it already knows it by its keys.

use std::collections::VecDeque;
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use tokio::time::Instant;

use super::event::{Event, MOST_AT_ONCE};
use super::sink::{SendError, Sink};
use crate::metrics::registered;

/// Pause after the first failure; each one after it is twice as long …
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// What is counted.
#[derive(Clone)]
pub struct ConsumptionMetrics {
    events: IntCounterVec,
    waiting: IntGauge,
    /// Rounds that were left out because the one before was not taken yet.
    pub rounds_left_out: IntCounter,
    /// Tenants whose meters could not be read or stored in a round.
    pub unmetered: IntCounter,
}

impl ConsumptionMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Self {
        const WELL_FORMED: &str = "the name is well-formed";
        let counter =
            |name: &str, help: &str| registered(registry, IntCounter::new(name, help).expect(WELL_FORMED));
        let events = Opts::new(
            "palimpsest_consumption_events_total",
            "Consumption events: sent, failed (and sent again later), dropped (refused for good)",
        );
        let waiting = IntGauge::new("palimpsest_consumption_events_waiting", "Consumption events to be sent");
        ConsumptionMetrics {
            events: registered(registry, IntCounterVec::new(events, &["outcome"]).expect(WELL_FORMED)),
            waiting: registered(registry, waiting.expect(WELL_FORMED)),
            rounds_left_out: counter(
                "palimpsest_consumption_rounds_left_out_total",
                "Rounds of consumption events that were left out because an earlier one was not taken yet",
            ),
            unmetered: counter(
                "palimpsest_consumption_unmetered_total",
                "Tenants whose meters could not be read or stored in a round: a later one counts what they wrote",
            ),
        }
    }

    fn count(&self, outcome: &str, events: usize) {
        self.events.with_label_values(&[outcome]).inc_by(events as u64);
    }
}

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was taken.
    Taken,
    /// It is refused for good.
    Refused,
}

/// Batches of one round that are not through yet.
#[derive(Debug, Default)]
pub struct Delivery {
    batches: VecDeque<Vec<Event>>,
}

impl Delivery {
    /// Whether all is through.
    pub fn is_done(&self) -> bool {
        self.batches.is_empty()
    }

    /// The events of a round. Only when the one before is through.
    pub fn begin(&mut self, events: Vec<Event>, metrics: &ConsumptionMetrics) {
        debug_assert!(self.is_done());
        metrics.waiting.set(events.len() as i64);
        let mut events = events.into_iter();
        loop {
            let batch: Vec<Event> = events.by_ref().take(MOST_AT_ONCE).collect();
            if batch.is_empty() {
                return;
            }
            self.batches.push_back(batch);
        }
    }

    /// Sends batch after batch, and again what fails, until all is through or it is too late for another attempt.
    pub async fn go_on(
        &mut self,
        sink: &Sink,
        until: Instant,
        metrics: &ConsumptionMetrics,
        mut ended: impl FnMut(&Event, Fate),
    ) {
        let mut pause = FIRST_PAUSE;
        while let Some(batch) = self.batches.front() {
            let fate = match sink.send(batch).await {
                Ok(()) => {
                    metrics.count("sent", batch.len());
                    Fate::Taken
                }
                Err(SendError::Refused(why)) => {
                    tracing::error!(events = batch.len(), "consumption events are refused: {why}");
                    metrics.count("dropped", batch.len());
                    Fate::Refused
                }
                Err(SendError::Later(why)) => {
                    tracing::warn!(events = batch.len(), "consumption events are not taken yet: {why}");
                    metrics.count("failed", batch.len());
                    let wait = pause.mul_f64(rand::random_range(0.8..1.2));
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    if Instant::now() + wait >= until {
                        return;
                    }
                    tokio::time::sleep(wait).await;
                    continue;
                }
            };
            pause = FIRST_PAUSE;
            metrics.waiting.sub(batch.len() as i64);
            for event in self.batches.pop_front().unwrap_or_default() {
                ended(&event, fate);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};
    use std::time::SystemTime;

    use axum::http::StatusCode;
    use model::TenantId;
    use serde_json::Value;

    use super::super::event::{Keys, Metric, When};
    use super::super::sink::Endpoint;
    use super::*;

    /// What a receiver does with a request.
    #[derive(Clone, Copy)]
    enum Answer {
        Status(u16),
        /// It takes the events and then says nothing.
        Silence,
    }

    /// A receiver: knows repeats by their keys.
    #[derive(Default)]
    struct Receiver {
        answers: VecDeque<Answer>,
        batches: Vec<usize>,
        /// How often each came, and its value.
        received: BTreeMap<String, (usize, u64)>,
    }

    type SharedReceiver = Arc<Mutex<Receiver>>;

    async fn receive(
        axum::extract::State(receiver): axum::extract::State<SharedReceiver>,
        axum::Json(body): axum::Json<Value>,
    ) -> StatusCode {
        let answer = {
            let mut receiver = receiver.lock().unwrap();
            let answer = receiver.answers.pop_front().unwrap_or(Answer::Status(200));
            let events = body["events"].as_array().unwrap();
            receiver.batches.push(events.len());
            if matches!(answer, Answer::Silence | Answer::Status(200)) {
                for event in events {
                    let (key, value) = (&event["idempotency_key"], event["value"].as_u64().unwrap());
                    let known = receiver.received.entry(key.as_str().unwrap().into()).or_insert((0, value));
                    assert_eq!(known.1, value, "a repeat says the same");
                    known.0 += 1;
                }
            }
            answer
        };
        match answer {
            Answer::Status(status) => StatusCode::from_u16(status).unwrap(),
            Answer::Silence => std::future::pending().await,
        }
    }

    async fn receiver(answers: &[Answer]) -> (SharedReceiver, Sink) {
        let receiver = Receiver { answers: answers.iter().copied().collect(), ..Receiver::default() };
        let receiver = Arc::new(Mutex::new(receiver));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/usage?from=test", listener.local_addr().unwrap());
        let routes = axum::Router::new()
            .route("/usage", axum::routing::post(receive))
            .layer(axum::extract::DefaultBodyLimit::max(8 << 20))
            .with_state(Arc::clone(&receiver));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let endpoint = endpoint.parse().unwrap();
        (receiver, Sink { endpoint, roots: None, token: None, timeout: Duration::from_millis(500) })
    }

    fn events(count: usize) -> Vec<Event> {
        let mut keys = Keys::new("1".into());
        let event = |value| Event {
            metric: Metric::RemoteStorageSize,
            tenant: TenantId([1; 16]),
            timeline: None,
            when: When::Absolute(SystemTime::UNIX_EPOCH),
            value,
            key: keys.make(),
        };
        (0..count as u64).map(event).collect()
    }

    fn later(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[tokio::test]
    async fn what_fails_is_sent_again_with_the_same_keys_until_it_is_taken() {
        let (receiver, sink) = receiver(&[Answer::Status(500), Answer::Silence]).await;
        let metrics = ConsumptionMetrics::register(&Registry::new());
        let mut delivery = Delivery::default();
        delivery.begin(events(2_500), &metrics);
        assert_eq!(metrics.waiting.get(), 2_500);
        let mut taken = 0;
        delivery
            .go_on(&sink, later(3_600), &metrics, |_, fate| taken += usize::from(fate == Fate::Taken))
            .await;
        assert!(delivery.is_done());
        assert_eq!((taken, metrics.waiting.get()), (2_500, 0));
        let receiver = receiver.lock().unwrap();
        assert_eq!(receiver.batches, [1_000, 1_000, 1_000, 1_000, 500]);
        assert_eq!(receiver.received.len(), 2_500);
        let repeated = receiver.received.values().filter(|(times, _)| *times == 2).count();
        assert_eq!(repeated, 1_000, "the batch that was taken in silence");
        let count = |outcome: &str| metrics.events.with_label_values(&[outcome]).get();
        assert_eq!((count("sent"), count("failed"), count("dropped")), (2_500, 2_000, 0));
    }

    #[tokio::test]
    async fn what_is_not_taken_in_time_waits_and_goes_first() {
        let (receiver, sink) = receiver(&[Answer::Status(503)]).await;
        let metrics = ConsumptionMetrics::register(&Registry::new());
        let mut delivery = Delivery::default();
        delivery.begin(events(3), &metrics);
        delivery.go_on(&sink, Instant::now(), &metrics, |_, _| panic!("nothing is through")).await;
        assert!(!delivery.is_done() && metrics.waiting.get() == 3);
        let mut taken = Vec::new();
        delivery.go_on(&sink, later(60), &metrics, |event, _| taken.push(event.key.clone())).await;
        assert!(delivery.is_done());
        assert!(taken.iter().eq(receiver.lock().unwrap().received.keys()));
    }

    #[tokio::test]
    async fn a_batch_that_is_refused_does_not_hold_up_the_others() {
        let (receiver, sink) = receiver(&[Answer::Status(400)]).await;
        let metrics = ConsumptionMetrics::register(&Registry::new());
        let mut delivery = Delivery::default();
        delivery.begin(events(1_001), &metrics);
        let mut refused = 0;
        delivery
            .go_on(&sink, later(60), &metrics, |_, fate| refused += usize::from(fate == Fate::Refused))
            .await;
        assert_eq!((refused, receiver.lock().unwrap().received.len()), (1_000, 1));
        assert_eq!(metrics.events.with_label_values(&["dropped"]).get(), 1_000);
    }

    #[tokio::test]
    async fn nobody_listening_is_a_failure_that_passes() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint: Endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        drop(listener);
        let sink = Sink { endpoint, roots: None, token: None, timeout: Duration::from_secs(5) };
        assert!(matches!(sink.send(&events(1)).await, Err(SendError::Later(_))));
    }

    #[tokio::test]
    async fn a_file_gets_a_line_for_each_event_and_a_cut_line_spoils_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("usage");
        let endpoint: Endpoint = format!("file://{}", path.display()).parse().unwrap();
        let sink = Sink { endpoint, roots: None, token: None, timeout: Duration::from_secs(5) };
        std::fs::write(&path, "{\"cut").unwrap();
        for _ in 0..2 {
            sink.send(&events(2)).await.unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let whole: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        assert_eq!((text.lines().count(), whole.len()), (5, 4));
        assert_eq!(whole[0]["metric"], "remote_storage_size");
    }

    #[test]
    fn an_endpoint_is_http_or_a_file() {
        for bad in ["", "usage", "ftp://host/x", "file://relative", "http://", "/file"] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad:?}");
        }
        assert_eq!("file:///a/b".parse(), Ok(Endpoint::File("/a/b".into())));
        assert!(matches!("https://host:1/x?y=z".parse(), Ok(Endpoint::Http(_))));
    }
}
