//! Whole listings, page after page.

use crate::ports::{Bucket, BucketError, ListRequest, Listing};

/// All objects below a prefix, and folded prefixes where the request has a delimiter. Takes as much memory as there is to tell; a request's limit is one
/// of pages. Lists late only where the store does.
pub async fn list_all(bucket: &dyn Bucket, request: ListRequest<'_>) -> Result<Listing, BucketError> {
    let mut all = Listing::default();
    let mut after = request.after.map(str::to_owned);
    loop {
        let page = bucket.list(ListRequest { after: after.as_deref(), ..request }).await?;
        all.objects.extend(page.objects);
        all.prefixes.extend(page.prefixes);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(all),
        }
    }
}

/// The paths of all objects below a prefix.
pub async fn list_paths(bucket: &dyn Bucket, prefix: &str) -> Result<Vec<String>, BucketError> {
    let all = list_all(bucket, ListRequest { prefix, ..ListRequest::default() }).await?;
    Ok(all.objects.into_iter().map(|object| object.path).collect())
}
