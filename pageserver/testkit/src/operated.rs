//! A pageserver under an operator, which is the test.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use model::{Lsn, TenantId, TimelineId};
use proto::v1::create_timeline_request::Origin;
use proto::v1::pageserver_client::PageserverClient;
use proto::v1::{
    AttachRequest, Branch, CreateTimelineRequest, DetachRequest, GetStatusRequest, Mode, Mutation, Primary,
    ShardStatus, Status, StorageState, TimelineState, TimelineStatus,
};
use tempfile::NamedTempFile;
use tonic::Request;
use tonic::transport::Channel;

use crate::port::Port;
use crate::{BucketAt, Pageserver};

const TOKEN: &str = "a token of the tests alone";

/// A pageserver that does what it is told over the control API. Dropping it kills it.
#[derive(Debug)]
pub struct Operated {
    /// The server.
    pub server: Pageserver,
    /// Its control API.
    pub client: PageserverClient<Channel>,
    /// Which process it is.
    pub instance: String,
    control: Port,
    _token: NamedTempFile,
}

async fn client_of(address: &str) -> Result<PageserverClient<Channel>> {
    let channel = Channel::from_shared(format!("http://{address}"))?.connect().await?;
    Ok(PageserverClient::new(channel))
}

impl Operated {
    /// Starts a pageserver under the name of a pod, and waits until it says that its bucket can be used.
    pub async fn start(bucket: BucketAt, pod: &str, settings: &[(&str, &str)]) -> Result<Operated> {
        let mut operated = Self::start_without_bucket(bucket, pod, settings).await?;
        operated.look_again().await?;
        Ok(operated)
    }

    /// The same without waiting for its bucket.
    pub async fn start_without_bucket(
        bucket: BucketAt,
        pod: &str,
        settings: &[(&str, &str)],
    ) -> Result<Operated> {
        let control = Port::take()?;
        let token = NamedTempFile::new()?;
        std::fs::write(token.path(), TOKEN)?;
        let (address, file) = (control.address(), token.path().display().to_string());
        let own = [
            ("listen_control_addr", address.as_str()),
            ("control_token_file", &file),
            ("pod_name", pod),
            ("pod_uid", "a pod of the tests"),
        ];
        let server = Pageserver::start(bucket, &[&own, settings].concat()).await?;
        let client = client_of(&address).await?;
        let mut operated = Operated { server, client, instance: String::new(), control, _token: token };
        operated.instance = operated.status().await?.instance;
        Ok(operated)
    }

    /// Connects anew after the process was started again, and waits until its bucket can be used.
    pub async fn look_again(&mut self) -> Result<()> {
        self.client = client_of(&self.control.address()).await?;
        let since = Instant::now();
        loop {
            let status = self.status().await?;
            self.instance.clone_from(&status.instance);
            if status.storage.is_some_and(|storage| storage.state() == StorageState::Conditional) {
                return Ok(());
            }
            ensure!(since.elapsed() < Duration::from_secs(20), "the bucket cannot be used");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A request with the operator's token.
    pub fn request<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().expect("is text"));
        request
    }

    /// What a change says of itself.
    pub fn mutation(&self, tenant: TenantId, generation: u32, attempt: &str) -> Option<Mutation> {
        Some(Mutation {
            tenant_shard_id: tenant.to_string(),
            generation,
            attempt: attempt.into(),
            expected_instance: self.instance.clone(),
        })
    }

    /// All that the server tells of itself.
    pub async fn status(&mut self) -> Result<Status> {
        Ok(self.client.get_status(Self::request(GetStatusRequest {})).await?.into_inner())
    }

    /// What it tells of a tenant; `None` when it has none of it.
    pub async fn shard(&mut self, tenant: TenantId) -> Result<Option<ShardStatus>> {
        let shards = self.status().await?.shards;
        Ok(shards.into_iter().find(|shard| shard.tenant_shard_id == tenant.to_string()))
    }

    /// What it tells of a timeline, once `is` holds.
    pub async fn timeline_when(
        &mut self,
        tenant: TenantId,
        timeline: TimelineId,
        is: impl Fn(&TimelineStatus) -> bool,
    ) -> Result<TimelineStatus> {
        let since = Instant::now();
        loop {
            let shard = self.shard(tenant).await?;
            let told = shard.iter().flat_map(|shard| &shard.timelines);
            let told = told.into_iter().find(|told| told.timeline_id == timeline.to_string()).cloned();
            if let Some(told) = told.clone().filter(|told| is(told)) {
                return Ok(told);
            }
            ensure!(since.elapsed() < Duration::from_mins(1), "it is still {told:?} of {shard:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Attaches a tenant as its only owner.
    pub async fn attach(
        &mut self,
        tenant: TenantId,
        generation: u32,
        attempt: &str,
    ) -> Result<(), tonic::Status> {
        let mutation = self.mutation(tenant, generation, attempt);
        let request = AttachRequest {
            mutation,
            mode: Mode::Single.into(),
            pool_uid: "a pool of the tests".into(),
            ..AttachRequest::default()
        };
        self.client.attach(Self::request(request)).await.map(drop)
    }

    /// Lets a tenant go, and stores what is in memory first. Answers whether all of it is in the bucket.
    pub async fn detach(&mut self, tenant: TenantId, generation: u32) -> Result<bool, tonic::Status> {
        let mutation = self.mutation(tenant, generation, "detach");
        let flush_within = Some(prost_types::Duration { seconds: 10, nanos: 0 });
        let request = DetachRequest { mutation, flush_within };
        Ok(self.client.detach(Self::request(request)).await?.into_inner().flushed)
    }

    /// Makes a timeline of a primary, or asks for it again.
    pub async fn import(
        &mut self,
        tenant: TenantId,
        generation: u32,
        timeline: TimelineId,
        conninfo: &str,
    ) -> Result<(), tonic::Status> {
        let primary = Primary { conninfo: conninfo.into(), ..Primary::default() };
        self.create(tenant, generation, timeline, Origin::Import(primary)).await
    }

    /// Makes a branch, or asks for it again.
    pub async fn branch(
        &mut self,
        tenant: TenantId,
        generation: u32,
        timeline: TimelineId,
        (ancestor, lsn): (TimelineId, Lsn),
    ) -> Result<(), tonic::Status> {
        let branch = Branch { ancestor_timeline_id: ancestor.to_string(), lsn: lsn.to_string() };
        self.create(tenant, generation, timeline, Origin::Branch(branch)).await
    }

    async fn create(
        &mut self,
        tenant: TenantId,
        generation: u32,
        timeline: TimelineId,
        origin: Origin,
    ) -> Result<(), tonic::Status> {
        let request = CreateTimelineRequest {
            mutation: self.mutation(tenant, generation, "create"),
            timeline_id: timeline.to_string(),
            origin: Some(origin),
            ..CreateTimelineRequest::default()
        };
        self.client.create_timeline(Self::request(request)).await.map(drop)
    }

    /// Waits until a timeline can be read up to an LSN.
    pub async fn wait_for(&mut self, tenant: TenantId, timeline: TimelineId, lsn: Lsn) -> Result<()> {
        let reached = |told: &TimelineStatus| {
            told.state() == TimelineState::Active
                && told.last_record_lsn.parse::<Lsn>().is_ok_and(|last| last >= lsn)
        };
        self.timeline_when(tenant, timeline, reached)
            .await
            .with_context(|| format!("waiting for {lsn}"))
            .map(drop)
    }
}
