//! Which bucket, and opening it.
//!
//! ```text
//! file:///srv/bucket
//! s3://bucket/prefix?endpoint=http://127.0.0.1:7070&region=eu-central-1&path_style=true
//! ```

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::DirectoryBucket;
use super::retry::{BucketMetrics, RetryPolicy, RetryingBucket};
use super::s3::S3Bucket;
use crate::error_story::error_story;
use crate::object_path::ObjectPath;
use crate::ports::{Body, Bucket, BucketError, ETag, PutIf};

/// How long the question for lifecycle rules may take.
const LIFECYCLE_PATIENCE: Duration = Duration::from_secs(10);
/// So many create one object at once to see that only one of them does.
const PROBE_WRITERS: usize = 4;

/// Which bucket, and how hard to try.
#[derive(Clone, Debug)]
pub struct BucketConfig {
    /// Where it is.
    pub url: BucketUrl,
    /// How often, how long and how much at once.
    pub retry: RetryPolicy,
}

/// Where a bucket is. Text form: see the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BucketUrl {
    /// A local directory.
    Directory(PathBuf),
    /// S3 or what speaks its protocol.
    S3(S3Location),
}

/// A bucket of S3.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Location {
    /// Its name.
    pub bucket: String,
    /// What all keys begin with, without slashes at the ends; empty for none.
    pub prefix: String,
    /// Where the store is, when it is not AWS'.
    pub endpoint: Option<String>,
    /// Its region; found as AWS' own tools do when not given.
    pub region: Option<String>,
    /// Whether the bucket's name is part of the path rather than of the host.
    pub path_style: bool,
    /// Found as AWS' own tools do when not given. Never part of the text form.
    pub credentials: Option<S3Credentials>,
}

/// A key pair for S3.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Credentials {
    /// Names the user.
    pub access_key: String,
    /// Secret: not shown in debug output.
    pub secret_key: String,
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// A text that is not a bucket's URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is not the URL of a bucket: {why}")]
pub struct ParseBucketUrlError {
    url: String,
    why: String,
}

impl FromStr for BucketUrl {
    type Err = ParseBucketUrlError;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let wrong = |why: String| ParseBucketUrlError { url: url.into(), why };
        if let Some(path) = url.strip_prefix("file://") {
            let path = decode_percent(path).ok_or_else(|| wrong("a percent escape is malformed".into()))?;
            if !path.starts_with('/') {
                return Err(wrong("the path of file:// must be absolute".into()));
            }
            return Ok(BucketUrl::Directory(path.into()));
        }
        let Some(rest) = url.strip_prefix("s3://") else {
            return Err(wrong("it must begin with file:// or s3://".into()));
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        if bucket.is_empty() {
            return Err(wrong("the bucket's name is missing".into()));
        }
        let mut location = S3Location {
            bucket: bucket.into(),
            prefix: prefix.trim_matches('/').into(),
            ..S3Location::default()
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode_percent(value).ok_or_else(|| wrong("a percent escape is malformed".into()))?;
            match name {
                "endpoint" => location.endpoint = Some(value),
                "region" => location.region = Some(value),
                "path_style" => {
                    location.path_style =
                        value.parse().map_err(|_| wrong("path_style must be true or false".into()))?;
                }
                _ => {
                    return Err(wrong(format!(
                        "unknown option {name:?}; known: endpoint, region, path_style"
                    )));
                }
            }
        }
        Ok(BucketUrl::S3(location))
    }
}

impl fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encode = |text: &str| text.replace('%', "%25").replace('&', "%26").replace('?', "%3F");
        match self {
            BucketUrl::Directory(path) => write!(f, "file://{}", encode(&path.to_string_lossy())),
            BucketUrl::S3(location) => {
                write!(f, "s3://{}", location.bucket)?;
                if !location.prefix.is_empty() {
                    write!(f, "/{}", location.prefix)?;
                }
                let options = [
                    location.endpoint.as_ref().map(|endpoint| format!("endpoint={}", encode(endpoint))),
                    location.region.as_ref().map(|region| format!("region={}", encode(region))),
                    location.path_style.then(|| "path_style=true".to_owned()),
                ];
                let options: Vec<String> = options.into_iter().flatten().collect();
                if options.is_empty() { Ok(()) } else { write!(f, "?{}", options.join("&")) }
            }
        }
    }
}

fn decode_percent(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let mut byte = [0];
            hex::decode_to_slice(tail.get(..2)?, &mut byte).ok()?;
            bytes.push(byte[0]);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

/// Why a bucket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenBucketError {
    /// The directory cannot be made or used.
    #[error("cannot open the bucket in directory {path}")]
    Directory {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is there but lacks what fencing rests on.
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

impl BucketConfig {
    /// A bucket with the default policy.
    pub fn new(url: BucketUrl) -> Self {
        BucketConfig { url, retry: RetryPolicy::default() }
    }

    /// Opens the bucket, with retries until `cancel`, and makes sure that conditional puts hold in it.
    pub async fn open(
        &self,
        metrics: BucketMetrics,
        cancel: CancellationToken,
    ) -> Result<Arc<dyn Bucket>, OpenBucketError> {
        let bucket = self.connect(metrics, cancel).await?;
        probe(&bucket).await?;
        Ok(bucket)
    }

    /// The same without a look whether it can be used: [`probe`] is to follow before anything is believed.
    pub async fn connect(
        &self,
        metrics: BucketMetrics,
        cancel: CancellationToken,
    ) -> Result<Arc<dyn Bucket>, OpenBucketError> {
        let bucket: Arc<dyn Bucket> = match &self.url {
            BucketUrl::Directory(path) => {
                let bucket = DirectoryBucket::open(path)
                    .map_err(|source| OpenBucketError::Directory { path: path.clone(), source })?;
                Arc::new(bucket)
            }
            BucketUrl::S3(location) => {
                let bucket = S3Bucket::connect(location).await;
                warn_of_lifecycle_rules(&bucket).await;
                Arc::new(bucket)
            }
        };
        Ok(Arc::new(RetryingBucket::new(bucket, self.retry.clone(), metrics, cancel)))
    }
}

/// A rule that deletes what history is made of is not ours to refuse, but whoever starts the server should know before it strikes.
async fn warn_of_lifecycle_rules(bucket: &S3Bucket) {
    let asked = tokio::time::timeout(LIFECYCLE_PATIENCE, bucket.lifecycle_threats()).await;
    match asked.map_err(|_| format!("no answer in {LIFECYCLE_PATIENCE:?}")) {
        Ok(Ok(threats)) => {
            for threat in threats {
                tracing::warn!("history would be lost: lifecycle {threat}");
            }
        }
        // Many stores have none, and many roles may not look.
        Ok(Err(error)) => {
            tracing::info!("whether lifecycle rules delete objects is not known: {}", error_story(&error));
        }
        Err(error) => tracing::info!("whether lifecycle rules delete objects is not known: {error}"),
    }
}

/// What is wrong with a bucket.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It does a put whose condition does not hold, or does not do one whose condition holds.
    #[error(
        "the bucket cannot be used: {0}; conditional puts must work, two owners could overwrite each other without them"
    )]
    Condition(&'static str),
    /// It cannot be written, read or listed.
    #[error("the bucket cannot be used")]
    Bucket(#[from] BucketError),
}

/// Creates, replaces and removes a small object to see that the bucket refuses what it must.
pub async fn probe(bucket: &Arc<dyn Bucket>) -> Result<(), ProbeError> {
    let path = ObjectPath::Probe { nonce: rand::random() }.to_string();
    let result = probe_at(bucket, &path).await;
    let removed = bucket.delete(&[path]).await;
    result?;
    Ok(removed?)
}

async fn probe_at(bucket: &Arc<dyn Bucket>, path: &str) -> Result<(), ProbeError> {
    let body = |text: String| Body::Bytes(Bytes::from(text));
    let creations =
        (0..PROBE_WRITERS).map(|writer| bucket.put(path, body(format!("{writer}")), PutIf::Absent));
    let mut created: Option<ETag> = None;
    for result in futures::future::join_all(creations).await {
        match result {
            Ok(_) if created.is_some() => {
                return Err(ProbeError::Condition("it creates an object that exists"));
            }
            Ok(etag) => created = Some(etag),
            Err(BucketError::Precondition(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let Some(created) = created else {
        return Err(ProbeError::Condition("it refuses to create an object that does not exist"));
    };
    let replaced = match bucket.put(path, body("replaced".into()), PutIf::Matches(created.clone())).await {
        Ok(etag) => etag,
        Err(BucketError::Precondition(_)) => {
            return Err(ProbeError::Condition("it refuses to replace an unchanged object"));
        }
        Err(error) => return Err(error.into()),
    };
    match bucket.put(path, body("stale".into()), PutIf::Matches(created)).await {
        Ok(_) => return Err(ProbeError::Condition("it replaces an object that has changed")),
        Err(BucketError::Precondition(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let found = bucket.get(path, None).await?;
    if found.bytes[..] != b"replaced"[..] || found.meta.etag != replaced {
        return Err(ProbeError::Condition("it does not return what was just written"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use async_trait::async_trait;

    use super::*;
    use crate::bucket::MemoryBucket;
    use crate::ports::{ListRequest, Listing, Object, ObjectMeta};

    #[test]
    fn urls_say_where_a_bucket_is() {
        assert_eq!("file:///srv/a%20b".parse(), Ok(BucketUrl::Directory("/srv/a b".into())));
        let text = "s3://bucket/some/prefix?endpoint=http://127.0.0.1:7070&region=eu&path_style=true";
        let url: BucketUrl = text.parse().unwrap();
        let expected = S3Location {
            bucket: "bucket".into(),
            prefix: "some/prefix".into(),
            endpoint: Some("http://127.0.0.1:7070".into()),
            region: Some("eu".into()),
            path_style: true,
            credentials: None,
        };
        assert_eq!(url, BucketUrl::S3(expected));
        assert_eq!(url.to_string(), text);
        for wrong in
            ["", "bucket", "http://x", "file://relative", "s3://", "s3://b?pathstyle=1", "file:///%zz"]
        {
            assert!(wrong.parse::<BucketUrl>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_secret_does_not_show() {
        let keys = S3Credentials { access_key: "public".into(), secret_key: "hidden".into() };
        assert!(!format!("{keys:?}").contains("hidden"));
    }

    #[tokio::test]
    async fn a_directory_opens_and_leaves_nothing_of_the_probe() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}/bucket", folder.path().display()).parse().unwrap();
        let config = BucketConfig::new(url);
        let bucket = config.open(BucketMetrics::new(), CancellationToken::new()).await.unwrap();
        assert!(bucket.list(ListRequest::default()).await.unwrap().objects.is_empty());
    }

    /// As a store that ignores conditions it does not know.
    struct Careless(MemoryBucket);

    #[async_trait]
    impl Bucket for Careless {
        async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
            self.0.get(path, range).await
        }
        async fn put(&self, path: &str, body: Body, _: PutIf) -> Result<ETag, BucketError> {
            self.0.delete(&[path.into()]).await?;
            self.0.put(path, body, PutIf::Absent).await
        }
        async fn list(&self, request: ListRequest<'_>) -> Result<Listing, BucketError> {
            self.0.list(request).await
        }
        async fn head(&self, path: &str) -> Result<ObjectMeta, BucketError> {
            self.0.head(path).await
        }
        async fn delete(&self, paths: &[String]) -> Result<(), BucketError> {
            self.0.delete(paths).await
        }
    }

    #[tokio::test]
    async fn a_bucket_that_ignores_conditions_is_refused() {
        let bucket: Arc<dyn Bucket> = Arc::new(Careless(MemoryBucket::default()));
        let error = probe(&bucket).await.unwrap_err();
        assert!(matches!(error, ProbeError::Condition("it creates an object that exists")), "{error}");
    }
}
