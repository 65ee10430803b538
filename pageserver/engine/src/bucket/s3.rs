//! S3, or what speaks its protocol, as a bucket.
//!
//! The store must be strongly consistent and honour `If-None-Match: *` and `If-Match` on puts; [`super::probe`] finds out.

use std::ops::Range;
use std::time::SystemTime;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::config::S3Location;
use super::file_body::FileBody;
use super::lifecycle;
use super::{AFTER_PREFIX, DELETE_BATCH, LIST_PAGE, ShortFile, check_path, rejected, unavailable};
use crate::ports::{
    Body, Bucket, BucketError, ETag, ListRequest, ListedObject, Listing, Object, ObjectMeta, PutIf,
};

/// A bucket of S3, or a prefix within one.
#[derive(Clone, Debug)]
pub struct S3Bucket {
    client: Client,
    bucket: String,
    /// Empty, or with a slash at the end.
    prefix: String,
}

impl S3Bucket {
    /// Prepares to talk to a bucket; sends nothing yet, except what it takes to find credentials when none are given.
    pub async fn connect(location: &S3Location) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http);
        if let Some(region) = &location.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(keys) = &location.credentials {
            loader = loader.credentials_provider(Credentials::new(
                &keys.access_key,
                &keys.secret_key,
                None,
                None,
                "configuration",
            ));
        }
        let shared = loader.load().await;
        let mut config = aws_sdk_s3::config::Builder::from(&shared)
            .force_path_style(location.path_style)
            // Trying again, and how long an attempt may take, are the business of one layer, which is not this one.
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder().connect_timeout(std::time::Duration::from_secs(10)).build(),
            );
        if let Some(endpoint) = &location.endpoint {
            config = config.endpoint_url(endpoint);
        }
        if shared.region().is_none() {
            // Stores with an endpoint of their own seldom care; AWS says if it is wrong.
            config = config.region(Region::new("us-east-1"));
        }
        let prefix = location.prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        S3Bucket { client: Client::from_conf(config.build()), bucket: location.bucket.clone(), prefix }
    }

    /// What the bucket's lifecycle rules would do to our objects, in words. Stores without such rules answer with an error.
    pub async fn lifecycle_threats(&self) -> Result<Vec<String>, BucketError> {
        let asked = self.client.get_bucket_lifecycle_configuration().bucket(&self.bucket).send().await;
        match asked {
            Ok(configuration) => Ok(lifecycle::threats(configuration.rules(), &self.prefix)),
            Err(error) if error.code() == Some("NoSuchLifecycleConfiguration") => Ok(Vec::new()),
            Err(error) => Err(failed("get lifecycle rules of", &self.bucket, error)),
        }
    }

    fn key(&self, operation: &'static str, path: &str) -> Result<String, BucketError> {
        check_path(operation, path)?;
        Ok(format!("{}{path}", self.prefix))
    }
}

#[async_trait]
impl Bucket for S3Bucket {
    async fn get(&self, path: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        let key = self.key("get", path)?;
        let mut request = self.client.get_object().bucket(&self.bucket).key(key);
        if let Some(range) = &range {
            if range.is_empty() {
                return Err(rejected("get", path, "the range is empty"));
            }
            request = request.range(format!("bytes={}-{}", range.start, range.end - 1));
        }
        let response = request.send().await.map_err(|error| failed("get", path, error))?;
        let size = match response.content_range() {
            // bytes <first>-<last>/<size>
            Some(text) => text.rsplit_once('/').and_then(|(_, size)| size.parse().ok()),
            None => response.content_length().and_then(|length| u64::try_from(length).ok()),
        };
        let size =
            size.ok_or_else(|| unavailable("get", path, "the answer does not tell the object's size"))?;
        let etag = etag_of("get", path, response.e_tag())?;
        let modified = response.last_modified().and_then(system_time);
        let expected = match range {
            None => size,
            Some(range) => range.end.min(size).saturating_sub(range.start),
        };
        let bytes =
            response.body.collect().await.map_err(|error| unavailable("get", path, error))?.into_bytes();
        if bytes.len() as u64 != expected {
            let what = format!("{} bytes came, expected {expected}", bytes.len());
            return Err(unavailable("get", path, what));
        }
        Ok(Object { bytes, meta: ObjectMeta { size, etag, modified } })
    }

    async fn put(&self, path: &str, body: Body, condition: PutIf) -> Result<ETag, BucketError> {
        let key = self.key("put", path)?;
        let body = match body {
            Body::Bytes(bytes) => ByteStream::from(bytes),
            Body::File { file, length } => {
                let found = file.length().map_err(|error| rejected("put", path, error))?;
                if found < length {
                    return Err(rejected("put", path, ShortFile { found, expected: length }));
                }
                ByteStream::from_body_1_x(FileBody::new(file, length))
            }
        };
        let request = self.client.put_object().bucket(&self.bucket).key(key).body(body);
        let (request, replaces) = match condition {
            PutIf::Absent => (request.if_none_match("*"), false),
            PutIf::Matches(etag) => (request.if_match(etag.0), true),
        };
        match request.send().await {
            Ok(response) => etag_of("put", path, response.e_tag()),
            Err(error) => Err(match failed("put", path, error) {
                // What should be replaced is not there. A missing bucket looks alike; it is found when the process starts.
                BucketError::NotFound(path) if replaces => BucketError::Precondition(path),
                BucketError::NotFound(path) => rejected("put", &path, "there is no such bucket"),
                error => error,
            }),
        }
    }

    async fn copy(&self, from: &str, to: &str) -> Result<ETag, BucketError> {
        let (source, key) = (self.key("copy", from)?, self.key("copy", to)?);
        // Not every store looks at the condition of a copy. One that does not replaces what is there by the same bytes, if both are copies of
        // one object; for everything else there is this.
        match self.head(to).await {
            Ok(_) => return Err(BucketError::Precondition(to.into())),
            Err(BucketError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        // Our paths need no escapes; a prefix may.
        let source: String = format!("{}/{source}", self.bucket)
            .bytes()
            .map(|byte| match byte {
                b'/' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
                _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .collect();
        let request = self.client.copy_object().bucket(&self.bucket).key(key).copy_source(source);
        let error = match request.if_none_match("*").send().await {
            Ok(response) => {
                let etag = response.copy_object_result().and_then(|result| result.e_tag());
                return etag_of("copy", to, etag);
            }
            Err(error) => error,
        };
        if error.raw_response().is_some_and(|response| response.status().as_u16() == 501) {
            let found = self.get(from, None).await?;
            return self.put(to, Body::Bytes(found.bytes), PutIf::Absent).await;
        }
        Err(match failed("copy", to, error) {
            BucketError::NotFound(_) => BucketError::NotFound(from.into()),
            error => error,
        })
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<Listing, BucketError> {
        let limit = request.limit.unwrap_or(LIST_PAGE).min(LIST_PAGE);
        let mut call = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(format!("{}{}", self.prefix, request.prefix))
            .max_keys(limit as i32);
        if let Some(after) = request.after {
            call = call.start_after(format!("{}{after}", self.prefix));
        }
        if request.delimiter {
            call = call.delimiter("/");
        }
        let response = call.send().await.map_err(|error| failed("list", request.prefix, error))?;
        let own = |key: Option<&str>| {
            let path = key.and_then(|key| key.strip_prefix(&self.prefix)).map(str::to_owned);
            path.ok_or_else(|| unavailable("list", request.prefix, "a key without our prefix was listed"))
        };
        let mut listing = Listing::default();
        for object in response.contents() {
            listing.objects.push(ListedObject {
                path: own(object.key())?,
                size: object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
                modified: object.last_modified().and_then(system_time),
            });
        }
        for prefix in response.common_prefixes() {
            listing.prefixes.push(own(prefix.prefix())?);
        }
        if response.is_truncated() == Some(true) {
            let object = listing.objects.last().map(|object| object.path.clone());
            let prefix = listing.prefixes.last().map(|prefix| format!("{prefix}{AFTER_PREFIX}"));
            listing.next = object.max(prefix);
            if listing.next.is_none() {
                return Err(unavailable("list", request.prefix, "an empty page claims to have a next one"));
            }
        }
        Ok(listing)
    }

    async fn head(&self, path: &str) -> Result<ObjectMeta, BucketError> {
        let key = self.key("head", path)?;
        let response = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(key)
            .send()
            .await
            .map_err(|error| failed("head", path, error))?;
        let size = response.content_length().and_then(|length| u64::try_from(length).ok());
        Ok(ObjectMeta {
            size: size.ok_or_else(|| unavailable("head", path, "the answer does not tell the size"))?,
            etag: etag_of("head", path, response.e_tag())?,
            modified: response.last_modified().and_then(system_time),
        })
    }

    async fn delete(&self, paths: &[String]) -> Result<(), BucketError> {
        let Some(first) = paths.first() else { return Ok(()) };
        if paths.len() > DELETE_BATCH {
            return Err(rejected("delete", first, format!("{} paths in one delete", paths.len())));
        }
        let mut delete = Delete::builder().quiet(true);
        for path in paths {
            let object = ObjectIdentifier::builder().key(self.key("delete", path)?);
            delete = delete.objects(object.build().map_err(|error| rejected("delete", path, error))?);
        }
        let delete = delete.build().map_err(|error| rejected("delete", first, error))?;
        let response = self
            .client
            .delete_objects()
            .bucket(&self.bucket)
            .delete(delete)
            .send()
            .await
            .map_err(|error| failed("delete", first, error))?;
        for error in response.errors() {
            let code = error.code().unwrap_or_default();
            let path = error.key().unwrap_or(first);
            match code {
                "NoSuchKey" => {}
                "AccessDenied" | "InvalidArgument" | "MalformedXML" => {
                    return Err(rejected("delete", path, code));
                }
                _ => return Err(unavailable("delete", path, code)),
            }
        }
        Ok(())
    }
}

fn system_time(time: &DateTime) -> Option<SystemTime> {
    SystemTime::try_from(*time).ok()
}

fn etag_of(operation: &'static str, path: &str, etag: Option<&str>) -> Result<ETag, BucketError> {
    etag.map(|etag| ETag(etag.into())).ok_or_else(|| unavailable(operation, path, "the answer has no ETag"))
}

/// What an error of the SDK means. Conditions that fail are not among the modelled errors, so the status decides.
fn failed<E>(operation: &'static str, path: &str, error: SdkError<E, HttpResponse>) -> BucketError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code).unwrap_or_default().to_owned();
    // Built before the request was sent, so that sending it again is no different.
    let malformed = matches!(error, SdkError::ConstructionFailure(_));
    match status {
        _ if malformed => rejected(operation, path, error),
        Some(404) if code == "NoSuchBucket" => rejected(operation, path, error),
        Some(404) => BucketError::NotFound(path.into()),
        Some(412) => BucketError::Precondition(path.into()),
        // Two conditional requests at once; a clock or credentials that will be renewed; overload.
        Some(408 | 409 | 429) => unavailable(operation, path, error),
        Some(400 | 403)
            if matches!(code.as_str(), "ExpiredToken" | "RequestTimeout" | "TokenRefreshRequired") =>
        {
            unavailable(operation, path, error)
        }
        Some(400..500) => rejected(operation, path, error),
        _ => unavailable(operation, path, error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use testkit::{Fault, FaultProxy, Versitygw, versitygw};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::bucket::config::{BucketConfig, BucketUrl, S3Credentials};
    use crate::bucket::retry::{BucketMetrics, RetryPolicy, RetryingBucket};

    fn location(endpoint: String, prefix: &str) -> S3Location {
        S3Location {
            bucket: Versitygw::BUCKET.into(),
            prefix: prefix.into(),
            endpoint: Some(endpoint),
            region: None,
            path_style: true,
            credentials: Some(S3Credentials {
                access_key: versitygw::ACCESS_KEY.into(),
                secret_key: versitygw::SECRET_KEY.into(),
            }),
        }
    }

    fn body(bytes: impl Into<Bytes>) -> Body {
        Body::Bytes(bytes.into())
    }

    /// Gives up soon enough for tests.
    fn policy() -> RetryPolicy {
        RetryPolicy {
            first_pause: Duration::from_millis(5),
            longest_pause: Duration::from_millis(50),
            reads_give_up_after: Duration::from_millis(500),
            timeout: Duration::from_secs(2),
            small_timeout: Duration::from_secs(1),
            ..RetryPolicy::default()
        }
    }

    #[tokio::test]
    async fn a_real_s3_server_keeps_the_contract_with_and_without_a_prefix() {
        let server = Versitygw::start().await.unwrap();
        for prefix in ["", "some/prefix"] {
            let bucket = S3Bucket::connect(&location(server.endpoint(), prefix)).await;
            crate::bucket::contract::keeps_the_contract(Arc::new(bucket)).await;
        }
    }

    #[tokio::test]
    async fn a_real_s3_server_passes_the_probe_and_is_left_as_it_was() {
        let server = Versitygw::start().await.unwrap();
        let config = BucketConfig::new(BucketUrl::S3(location(server.endpoint(), "p")));
        let bucket = config.open(BucketMetrics::new(), CancellationToken::new()).await.unwrap();
        assert!(bucket.list(ListRequest::default()).await.unwrap().objects.is_empty());
    }

    #[tokio::test]
    async fn a_listing_of_several_pages_goes_on_where_it_ended() {
        let server = Versitygw::start().await.unwrap();
        let bucket = S3Bucket::connect(&location(server.endpoint(), "")).await;
        // Files on the server's own disk: a thousand puts would take longer than what is tested.
        let folder = server.objects().join("many");
        std::fs::create_dir(&folder).unwrap();
        for n in 0..1500 {
            std::fs::write(folder.join(format!("{n:04}")), b"x").unwrap();
        }
        let paths = crate::listing::list_paths(&bucket, "many/").await.unwrap();
        assert_eq!(paths.len(), 1500);
        assert!(paths.is_sorted());
        bucket.delete(&paths[..1000]).await.unwrap();
        bucket.delete(&paths[1000..]).await.unwrap();
        assert!(crate::listing::list_paths(&bucket, "many/").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_will_never_work_is_told_from_what_may_work_later() {
        let mut server = Versitygw::start().await.unwrap();
        let good = location(server.endpoint(), "");
        let no_bucket = S3Location { bucket: "elsewhere".into(), ..good.clone() };
        let keys = S3Credentials { access_key: versitygw::ACCESS_KEY.into(), secret_key: "wrong".into() };
        let no_keys = S3Location { credentials: Some(keys), ..good.clone() };
        for wrong in [no_bucket, no_keys] {
            let bucket = S3Bucket::connect(&wrong).await;
            let put = bucket.put("a", body("x"), PutIf::Absent).await;
            assert!(matches!(put, Err(BucketError::Rejected { .. })), "{put:?}");
            let list = bucket.list(ListRequest::default()).await;
            assert!(matches!(list, Err(BucketError::Rejected { .. })), "{list:?}");
        }
        let bucket = S3Bucket::connect(&good).await;
        server.kill();
        let away = bucket.get("a", None).await;
        assert!(matches!(away, Err(BucketError::Unavailable { .. })), "{away:?}");
    }

    #[tokio::test]
    async fn cut_and_refused_answers_are_waited_out_and_nothing_is_put_twice() {
        let server = Versitygw::start().await.unwrap();
        let proxy = FaultProxy::start(server.port()).await.unwrap();
        let s3 = Arc::new(S3Bucket::connect(&location(proxy.endpoint(), "")).await);
        let bucket =
            Arc::new(RetryingBucket::new(s3, policy(), BucketMetrics::new(), CancellationToken::new()));
        let content = Bytes::from(vec![7; 1 << 20]);
        let mut etag = bucket.put("big", body(content.clone()), PutIf::Absent).await.unwrap();
        let faults = [
            Fault::Refuse,
            Fault::Status(500),
            Fault::Status(503),
            Fault::Stall,
            // The whole request goes through, its answer does not.
            Fault::CutAfter { bytes: 0 },
            Fault::CutAfter { bytes: 100_000 },
        ];
        for (n, fault) in faults.into_iter().enumerate() {
            proxy.set(fault);
            let away = bucket.get("big", Some(0..1 << 20)).await;
            assert!(matches!(away, Err(BucketError::Unavailable { .. })), "{fault:?}: {away:?}");
            let create = tokio::spawn({
                let bucket = bucket.clone();
                async move { bucket.put(&format!("new-{n}"), body("x"), PutIf::Absent).await }
            });
            let replaced = Bytes::from(vec![n as u8; 1 << 20]);
            let replace = tokio::spawn({
                let (bucket, etag, replaced) = (bucket.clone(), etag.clone(), replaced.clone());
                async move { bucket.put("big", body(replaced), PutIf::Matches(etag)).await }
            });
            // Long enough for both to be sent under the fault, whether they get through or not.
            tokio::time::sleep(Duration::from_millis(100)).await;
            proxy.set(Fault::None);
            create.await.unwrap().unwrap_or_else(|error| panic!("{fault:?}: {error:?}"));
            etag = replace.await.unwrap().unwrap_or_else(|error| panic!("{fault:?}: {error:?}"));
            assert!(bucket.get("big", None).await.unwrap().bytes == replaced, "{fault:?}");
        }
    }
}
