//! Claims in a bucket that fails when it is told to.

use std::sync::Arc;

use bytes::Bytes;
use model::{Generation, TenantShardId};

use crate::bucket::MemoryBucket;
use crate::bucket::faulty::FaultyBucket;
use crate::object_path::ObjectPath;
use crate::ports::{Body, Bucket, PutIf};

pub fn tenant() -> TenantShardId {
    "00112233445566778899aabbccddeeff".parse().unwrap()
}

pub fn faulty() -> (Arc<FaultyBucket>, Arc<dyn Bucket>) {
    let bucket = FaultyBucket::new(Arc::new(MemoryBucket::default()));
    (bucket.clone(), bucket)
}

pub fn path(generation: u32) -> String {
    ObjectPath::Claim { tenant: tenant(), generation: Generation(generation) }.to_string()
}

pub async fn put(bucket: &dyn Bucket, path: &str) {
    bucket.put(path, Body::Bytes(Bytes::from_static(b"{}")), PutIf::Absent).await.unwrap();
}
