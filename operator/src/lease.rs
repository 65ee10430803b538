//! Which of several operators leads: a `Lease` that the leader renews.
//!
//! It only saves work. That two leaders do no harm rests on statuses being written by compare-and-swap and on claims in the bucket; so what
//! matters here is just that the leader is usually one. Time is measured by our own clock, from when we saw a renewal: clocks of others are
//! not compared.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error_story::story;

/// A leader that was not seen to renew for so long may be replaced.
const DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for so long stops leading.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between tries.
const RETRY: Duration = Duration::from_secs(2);
/// A request takes no longer.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// Whose lease, and in which name.
#[derive(Clone, Debug)]
pub struct LeaseSettings {
    /// Namespace of the lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who we are.
    pub identity: String,
}

/// The lease is someone else's, or could not be renewed.
#[derive(Debug, thiserror::Error)]
#[error("the lease {0} was lost")]
pub struct LeaseLost(String);

/// A lease as we see it.
pub struct Leadership {
    api: Api<Lease>,
    settings: LeaseSettings,
    /// What the holder last wrote, and when we first saw it.
    seen: Option<(LeaseSpec, Instant)>,
}

/// What to do about a lease that is there.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// It is ours, or nobody's any more.
    Take,
    /// Someone else leads.
    Wait,
}

impl Leadership {
    /// Nothing is known of the lease yet. The client repeats no writes by itself.
    pub fn new(strict: Client, settings: LeaseSettings) -> Leadership {
        Leadership { api: Api::namespaced(strict, &settings.namespace), settings, seen: None }
    }

    /// Waits until we lead.
    pub async fn acquire(&mut self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            match self.try_hold().await {
                Ok(true) => {
                    tracing::info!(identity = self.settings.identity, "leading");
                    return;
                }
                Ok(false) => {}
                Err(error) => tracing::warn!("cannot get the lease: {}", story(&error)),
            }
            stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
        }
    }

    /// Leads until told to stop, and then lets the lease go; or until it is lost.
    pub async fn keep(&mut self, stop: &CancellationToken) -> Result<(), LeaseLost> {
        let mut renewed = Instant::now();
        loop {
            if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                self.release().await;
                return Ok(());
            }
            match self.try_hold().await {
                Ok(true) => renewed = Instant::now(),
                Ok(false) => return Err(LeaseLost(self.settings.name.clone())),
                Err(error) => tracing::warn!("cannot renew the lease: {}", story(&error)),
            }
            if renewed.elapsed() > RENEW_DEADLINE {
                return Err(LeaseLost(self.settings.name.clone()));
            }
        }
    }

    /// Takes the lease or renews it. Answers whether it is ours.
    async fn try_hold(&mut self) -> kube::Result<bool> {
        let held = tokio::time::timeout(REQUEST_DEADLINE, self.hold()).await;
        match held {
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(false),
            Ok(held) => held,
            Err(_) => Err(kube::Error::Service("no answer in time".into())),
        }
    }

    async fn hold(&mut self) -> kube::Result<bool> {
        let Some(mut lease) = self.api.get_opt(&self.settings.name).await? else {
            let metadata = ObjectMeta { name: Some(self.settings.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.renewed(None)) };
            self.api.create(&PostParams::default(), &lease).await?;
            return Ok(true);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != spec) {
            self.seen = Some((spec.clone(), Instant::now()));
        }
        let unchanged = self.seen.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        if turn(&spec, &self.settings.identity, unchanged) == Turn::Wait {
            return Ok(false);
        }
        lease.spec = Some(self.renewed(Some(&spec)));
        // The version that was read goes along: of two takers one is refused.
        self.api.replace(&self.settings.name, &PostParams::default(), &lease).await?;
        Ok(true)
    }

    /// The lease as ours from now on.
    fn renewed(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = before.filter(|before| before.holder_identity.as_ref() == Some(&self.settings.identity));
        let transitions = before.and_then(|before| before.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.settings.identity.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            acquire_time: ours.and_then(|ours| ours.acquire_time.clone()).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if ours.is_some() { transitions } else { transitions.saturating_add(1) }),
            ..LeaseSpec::default()
        }
    }

    /// Lets others lead at once.
    async fn release(&mut self) {
        let release = async {
            let Some(mut lease) = self.api.get_opt(&self.settings.name).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_ref() != Some(&self.settings.identity) {
                return Ok(());
            }
            spec.holder_identity = None;
            self.api.replace(&self.settings.name, &PostParams::default(), &lease).await.map(drop)
        };
        match tokio::time::timeout(REQUEST_DEADLINE, release).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("cannot let go of the lease: {}", story(&error)),
            Err(_) => tracing::warn!("cannot let go of the lease in time"),
        }
    }
}

/// `unchanged`: how long we have seen the lease as it is.
fn turn(spec: &LeaseSpec, identity: &str, unchanged: Duration) -> Turn {
    let length = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let length = length.map_or(DURATION, Duration::from_secs);
    match spec.holder_identity.as_deref() {
        None | Some("") => Turn::Take,
        Some(holder) if holder == identity => Turn::Take,
        Some(_) if unchanged > length => Turn::Take,
        Some(_) => Turn::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: Option<&str>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: holder.map(Into::into),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_when_it_is_ours_or_nobodys_or_not_renewed() {
        let second = Duration::from_secs(1);
        let table = [
            (held_by(None), Duration::ZERO, Turn::Take),
            (held_by(Some("")), Duration::ZERO, Turn::Take),
            (held_by(Some("me")), 100 * second, Turn::Take),
            (held_by(Some("other")), 15 * second, Turn::Wait),
            (held_by(Some("other")), 16 * second, Turn::Take),
            (
                LeaseSpec { lease_duration_seconds: Some(-1), ..held_by(Some("other")) },
                14 * second,
                Turn::Wait,
            ),
        ];
        for (spec, unchanged, expected) in table {
            assert_eq!(turn(&spec, "me", unchanged), expected, "{spec:?} {unchanged:?}");
        }
    }
}
