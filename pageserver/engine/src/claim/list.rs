//! What claims and what owners there are.

use std::time::SystemTime;

use futures::{StreamExt as _, TryStreamExt as _};
use model::{Generation, TenantShardId};

use crate::listing::{list_all, list_paths};
use crate::object_path::{ObjectPath, claims_prefix, index_prefix, timelines_prefix};
use crate::ports::{Bucket, BucketError, ListRequest};

/// Timelines whose indexes are looked for at once while a claim is taken.
const INDEX_LISTINGS: usize = 16;

/// The claims of a tenant shard, ascending; with `from`, only that and those above it.
pub(crate) async fn list_claims(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
    from: Option<Generation>,
) -> Result<Vec<Generation>, BucketError> {
    Ok(list_dated_claims(bucket, tenant, from).await?.into_iter().map(|(claim, _)| claim).collect())
}

/// The same, each with when it came to be by the store's clock.
pub(super) async fn list_dated_claims(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
    from: Option<Generation>,
) -> Result<Vec<(Generation, Option<SystemTime>)>, BucketError> {
    let prefix = claims_prefix(tenant);
    // `after` excludes: the generation before ours brings our own back.
    let after = from
        .and_then(|from| from.0.checked_sub(1))
        .map(|before| ObjectPath::Claim { tenant, generation: Generation(before) }.to_string());
    let request = ListRequest { prefix: &prefix, after: after.as_deref(), ..ListRequest::default() };
    let mut claims = Vec::new();
    for object in list_all(bucket, request).await?.objects {
        if let Ok(ObjectPath::Claim { generation, .. }) = object.path.parse() {
            claims.push((generation, object.modified));
        } else {
            tracing::warn!(path = object.path, "an object that is no claim lies among the claims");
        }
    }
    claims.sort_unstable();
    claims.retain(|(claim, _)| from.is_none_or(|from| *claim >= from));
    Ok(claims)
}

/// The highest generation of any index of the tenant shard: a pageserver that writes no claims may have owned it.
pub(super) async fn highest_index_generation(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
) -> Result<Option<Generation>, BucketError> {
    let timelines = list_timeline_prefixes(bucket, tenant).await?;
    futures::stream::iter(timelines)
        .map(|timeline| async move {
            let paths = list_paths(bucket, &index_prefix(tenant, timeline)).await?;
            let generations = paths.iter().map(|path| match path.parse() {
                Ok(ObjectPath::Index { generation, .. }) => generation,
                _ => None,
            });
            Ok(generations.max().flatten())
        })
        .buffer_unordered(INDEX_LISTINGS)
        .try_fold(None, |a: Option<Generation>, b| async move { Ok(a.max(b)) })
        .await
}

/// The timelines that have any object in Neon's layout, in order.
pub(crate) async fn list_timeline_prefixes(
    bucket: &dyn Bucket,
    tenant: TenantShardId,
) -> Result<Vec<model::TimelineId>, BucketError> {
    let prefix = timelines_prefix(tenant);
    let request = ListRequest { prefix: &prefix, delimiter: true, ..ListRequest::default() };
    let mut timelines = Vec::new();
    for folder in list_all(bucket, request).await?.prefixes {
        if let Ok(timeline) = folder[prefix.len()..].trim_end_matches('/').parse() {
            timelines.push(timeline);
        } else {
            tracing::warn!(folder, "a folder that is no timeline lies among the timelines");
        }
    }
    Ok(timelines)
}
