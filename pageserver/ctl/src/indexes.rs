//! Finds `index_part.json` objects: in a file, in a directory (a bucket, or any part of one), in S3, or behind an HTTP address.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use codec::index_part::IndexPart;
use engine::bucket::BucketUrl;
use engine::bucket::directory::DirectoryBucket;
use engine::bucket::s3::S3Bucket;
use engine::listing::list_paths;
use engine::ports::Bucket;
use http_body_util::{BodyExt as _, Full};
use model::{Generation, TimelineId};

const INDEX: &str = "index_part.json";

/// Most bytes of an answer over HTTP: an index of a million layers has fewer.
const MAX_ANSWER: usize = 1 << 30;

/// An index, and where it was.
pub struct FoundIndex {
    /// Path or address.
    pub place: String,
    /// Of which timeline, as far as the path tells.
    pub timeline: Option<TimelineId>,
    /// Who wrote it, as far as the path tells.
    pub generation: Option<Generation>,
    /// What it says.
    pub index: IndexPart,
}

/// The indexes at `place`: of each timeline the one of the highest generation.
pub async fn find(place: &str) -> anyhow::Result<Vec<FoundIndex>> {
    if place.starts_with("http://") || place.starts_with("https://") {
        return Ok(vec![parse(place, &http_get(place).await?)?]);
    }
    if place.starts_with("s3://") {
        return find_in_s3(place).await;
    }
    let path = PathBuf::from(place.strip_prefix("file://").unwrap_or(place));
    if path.is_file() {
        return Ok(vec![read(&path)?]);
    }
    let mut paths = Vec::new();
    collect(&path, &mut paths).with_context(|| format!("cannot list {}", path.display()))?;
    let paths = paths.iter().map(|path| path.to_string_lossy().into_owned());
    let found: Vec<FoundIndex> =
        newest(paths).iter().map(|path| read(Path::new(path))).collect::<anyhow::Result<_>>()?;
    if found.is_empty() {
        bail!("there is no {INDEX} under {}", path.display());
    }
    Ok(found)
}

/// An object that lies beside the indexes of `place`, by its path as indexes have theirs; `None` when it is not there, or cannot be had.
pub async fn read_beside(place: &str, path: &str) -> Option<Bytes> {
    if place.starts_with("http") {
        return None;
    }
    if place.starts_with("s3://") {
        return Some(connect(place).await.ok()?.get(path, None).await.ok()?.bytes);
    }
    std::fs::read(path).ok().map(Bytes::from)
}

/// The bucket at `place`, if it is one: S3 or a directory.
pub async fn bucket(place: &str) -> anyhow::Result<Option<Arc<dyn Bucket>>> {
    if place.starts_with("s3://") {
        return Ok(Some(Arc::new(connect(place).await?)));
    }
    let path = PathBuf::from(place.strip_prefix("file://").unwrap_or(place));
    if !path.is_dir() {
        return Ok(None);
    }
    let bucket = DirectoryBucket::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Some(Arc::new(bucket)))
}

async fn connect(url: &str) -> anyhow::Result<S3Bucket> {
    let BucketUrl::S3(location) = url.parse()? else { bail!("{url} is not an S3 address") };
    Ok(S3Bucket::connect(&location).await)
}

async fn find_in_s3(url: &str) -> anyhow::Result<Vec<FoundIndex>> {
    let bucket = connect(url).await?;
    let paths = list_paths(&bucket, "tenants/").await.with_context(|| format!("cannot list {url}"))?;
    let mut found = Vec::new();
    for path in newest(paths.into_iter().filter(|path| is_index(path))) {
        let object = bucket.get(&path, None).await.with_context(|| format!("cannot read {path}"))?;
        found.push(parse(&path, &object.bytes)?);
    }
    if found.is_empty() {
        bail!("there is no {INDEX} in {url}");
    }
    Ok(found)
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn is_index(path: &str) -> bool {
    file_name(path).strip_prefix(INDEX).is_some_and(|rest| rest.is_empty() || generation(rest).is_some())
}

/// From what follows the name.
fn generation(suffix: &str) -> Option<Generation> {
    suffix.strip_prefix('-')?.parse().ok()
}

/// Of each folder the index of the highest generation.
fn newest(paths: impl Iterator<Item = String>) -> Vec<String> {
    let mut by_folder = BTreeMap::<String, (Option<Generation>, String)>::new();
    for path in paths {
        let folder = path[..path.len() - file_name(&path).len()].to_owned();
        let generation = generation(file_name(&path).strip_prefix(INDEX).unwrap_or_default());
        match by_folder.get(&folder) {
            Some((known, _)) if *known >= generation => {}
            _ => drop(by_folder.insert(folder, (generation, path))),
        }
    }
    by_folder.into_values().map(|(_, path)| path).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), paths)?;
        } else if entry.file_name().to_str().is_some_and(is_index) {
            paths.push(entry.path());
        }
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<FoundIndex> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&path.to_string_lossy(), &bytes)
}

fn parse(place: &str, bytes: &[u8]) -> anyhow::Result<FoundIndex> {
    let index = IndexPart::from_json(bytes).with_context(|| place.to_owned())?;
    let timeline = place.rsplit('/').nth(1).and_then(|folder| folder.parse().ok());
    let generation = file_name(place).strip_prefix(INDEX).and_then(generation);
    Ok(FoundIndex { place: place.to_owned(), timeline, generation, index })
}

/// The body of a successful answer to a GET.
pub async fn http_get(url: &str) -> anyhow::Result<Bytes> {
    let uri: hyper::Uri = url.parse().with_context(|| format!("{url} is not an address"))?;
    if uri.scheme_str() != Some("http") {
        bail!("{url}: only http:// is supported here; fetch the object with another tool and pass the file");
    }
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .build_http::<Full<Bytes>>();
    let response = client.get(uri).await.with_context(|| format!("cannot reach {url}"))?;
    let status = response.status();
    let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!("{url}: the answer broke off: {error}"))?
        .to_bytes();
    if !status.is_success() {
        bail!("{url} answers {status}: {}", String::from_utf8_lossy(&body).trim());
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_timeline_the_newest_index_counts() {
        let paths = [
            "t/a/index_part.json",
            "t/a/index_part.json-0000000a",
            "t/a/index_part.json-00000009",
            "t/b/index_part.json-00000001",
        ];
        assert!(paths.iter().all(|path| is_index(path)));
        assert!(!is_index("t/a/index_part.json-x") && !is_index("t/a/index_part.jsonx"));
        let found = newest(paths.iter().map(ToString::to_string));
        assert_eq!(found, ["t/a/index_part.json-0000000a", "t/b/index_part.json-00000001"]);
    }
}
