//! What every bucket must do, run over each of them.

use std::sync::Arc;

use bytes::Bytes;

use super::{DirectoryBucket, MemoryBucket};
use crate::disk::LocalDisk;
use crate::ports::{Body, Bucket, BucketError, Disk as _, ETag, ListRequest, PutIf};

fn body(text: &str) -> Body {
    Body::Bytes(Bytes::copy_from_slice(text.as_bytes()))
}

async fn put_all(bucket: &dyn Bucket, paths: &[&str]) {
    for path in paths {
        bucket.put(path, body(path), PutIf::Absent).await.unwrap();
    }
}

/// Follows `next` to the end; answers objects and prefixes in the order in which they came.
async fn list_all(bucket: &dyn Bucket, request: ListRequest<'_>) -> (Vec<String>, Vec<String>) {
    let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
    let mut after = request.after.map(str::to_owned);
    loop {
        let page = bucket.list(ListRequest { after: after.as_deref(), ..request }).await.unwrap();
        if let Some(limit) = request.limit {
            assert!(page.objects.len() + page.prefixes.len() <= limit);
        }
        objects.extend(page.objects.into_iter().map(|object| object.path));
        prefixes.extend(page.prefixes);
        match page.next {
            Some(next) => after = Some(next),
            None => return (objects, prefixes),
        }
    }
}

/// All of the contract. `bucket` is empty.
pub(super) async fn keeps_the_contract(bucket: Arc<dyn Bucket>) {
    objects_come_back_whole_and_in_parts(&*bucket).await;
    conditions_decide(&*bucket).await;
    one_of_many_creators_wins(&bucket).await;
    one_of_many_replacers_wins(&bucket).await;
    files_are_stored(&*bucket).await;
    copies_are_objects_of_their_own(&*bucket).await;
    listings_are_in_byte_order_and_resume(&*bucket).await;
}

async fn objects_come_back_whole_and_in_parts(bucket: &dyn Bucket) {
    assert!(matches!(bucket.get("c1/none", None).await, Err(BucketError::NotFound(_))));
    assert!(matches!(bucket.head("c1/none").await, Err(BucketError::NotFound(_))));
    let etag = bucket.put("c1/object", body("0123456789"), PutIf::Absent).await.unwrap();
    let whole = bucket.get("c1/object", None).await.unwrap();
    assert_eq!((&whole.bytes[..], whole.meta.size, &whole.meta.etag), (&b"0123456789"[..], 10, &etag));
    assert_eq!(bucket.head("c1/object").await.unwrap().etag, etag);
    let part = bucket.get("c1/object", Some(3..6)).await.unwrap();
    assert_eq!((&part.bytes[..], part.meta.size, &part.meta.etag), (&b"345"[..], 10, &etag));
    assert_eq!(&bucket.get("c1/object", Some(8..100)).await.unwrap().bytes[..], b"89");
    for range in [10..11, 50..60] {
        let past = bucket.get("c1/object", Some(range)).await;
        assert!(matches!(past, Err(BucketError::Rejected { .. })), "{past:?}");
    }
    bucket.put("c1/empty", body(""), PutIf::Absent).await.unwrap();
    assert_eq!(bucket.get("c1/empty", None).await.unwrap().bytes.len(), 0);
    bucket.delete(&["c1/object".into(), "c1/none".into(), "c1/empty".into()]).await.unwrap();
    assert!(matches!(bucket.get("c1/object", None).await, Err(BucketError::NotFound(_))));
}

async fn copies_are_objects_of_their_own(bucket: &dyn Bucket) {
    put_all(bucket, &["c7/one", "c7/two"]).await;
    let etag = bucket.copy("c7/one", "c7/deep/copy").await.unwrap();
    let copy = bucket.get("c7/deep/copy", None).await.unwrap();
    assert_eq!((&copy.bytes[..], &copy.meta.etag), (&b"c7/one"[..], &etag));
    for from in ["c7/one", "c7/two"] {
        let again = bucket.copy(from, "c7/deep/copy").await;
        assert!(matches!(again, Err(BucketError::Precondition(_))), "{again:?}");
    }
    let none = bucket.copy("c7/none", "c7/other").await;
    assert!(matches!(none, Err(BucketError::NotFound(_))), "{none:?}");
    bucket.delete(&["c7/one".into()]).await.unwrap();
    assert_eq!(&bucket.get("c7/deep/copy", None).await.unwrap().bytes[..], b"c7/one");
    bucket.delete(&["c7/two".into(), "c7/deep/copy".into()]).await.unwrap();
}

async fn conditions_decide(bucket: &dyn Bucket) {
    let first = bucket.put("c2/object", body("first"), PutIf::Absent).await.unwrap();
    let again = bucket.put("c2/object", body("again"), PutIf::Absent).await;
    assert!(matches!(again, Err(BucketError::Precondition(_))), "{again:?}");
    let second = bucket.put("c2/object", body("other"), PutIf::Matches(first.clone())).await.unwrap();
    assert_ne!(first, second, "content of the same size has another tag");
    for stale in [first, ETag("\"0123456789abcdef0123456789abcdef\"".into())] {
        let put = bucket.put("c2/object", body("stale"), PutIf::Matches(stale)).await;
        assert!(matches!(put, Err(BucketError::Precondition(_))), "{put:?}");
    }
    assert_eq!(&bucket.get("c2/object", None).await.unwrap().bytes[..], b"other");
    let missing = bucket.put("c2/missing", body("x"), PutIf::Matches(second)).await;
    assert!(matches!(missing, Err(BucketError::Precondition(_))), "{missing:?}");
    assert!(matches!(bucket.get("c2/missing", None).await, Err(BucketError::NotFound(_))));
}

async fn one_of_many_creators_wins(bucket: &Arc<dyn Bucket>) {
    for round in 0..5 {
        let path = format!("c3/{round}");
        let puts = (0..10).map(|writer| {
            let (bucket, path) = (bucket.clone(), path.clone());
            tokio::spawn(async move { bucket.put(&path, body(&writer.to_string()), PutIf::Absent).await })
        });
        let results = futures::future::join_all(puts).await;
        // A store may also ask to try again, but must not say yes twice.
        let winners: Vec<_> = (0..10).filter(|writer| matches!(results[*writer], Ok(Ok(_)))).collect();
        assert_eq!(winners.len(), 1, "round {round}: {results:?}");
        assert_eq!(bucket.get(&path, None).await.unwrap().bytes, winners[0].to_string().as_bytes());
    }
}

async fn one_of_many_replacers_wins(bucket: &Arc<dyn Bucket>) {
    let mut etag = bucket.put("c4", body("start"), PutIf::Absent).await.unwrap();
    for round in 0..5 {
        let puts = (0..10).map(|writer| {
            let (bucket, etag) = (bucket.clone(), etag.clone());
            let text = format!("{round} {writer}");
            tokio::spawn(async move { bucket.put("c4", body(&text), PutIf::Matches(etag)).await })
        });
        let results = futures::future::join_all(puts).await;
        let winners: Vec<_> =
            results.iter().filter_map(|result| result.as_ref().unwrap().as_ref().ok()).collect();
        assert_eq!(winners.len(), 1, "round {round}: {results:?}");
        etag = winners[0].clone();
        assert_eq!(bucket.head("c4").await.unwrap().etag, etag);
    }
}

async fn files_are_stored(bucket: &dyn Bucket) {
    let folder = tempfile::tempdir().unwrap();
    let file = LocalDisk::new(folder.path()).create("file").unwrap();
    let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    file.write_at(&content, 0).unwrap();
    let from_file = |length| Body::File { file: Arc::clone(&file), length };
    bucket.put("c5/file", from_file(1_000_000), PutIf::Absent).await.unwrap();
    let found = bucket.get("c5/file", None).await.unwrap();
    assert!(found.bytes[..] == content[..1_000_000]);
    let short = bucket.put("c5/short", from_file(2_000_000), PutIf::Absent).await;
    assert!(matches!(short, Err(BucketError::Rejected { .. })), "{short:?}");
    assert!(matches!(bucket.head("c5/short").await, Err(BucketError::NotFound(_))));
}

async fn listings_are_in_byte_order_and_resume(bucket: &dyn Bucket) {
    // `-` sorts before `/`, `0` after it: a folder's content does not sort where its bare name would.
    let paths = ["l/a-b", "l/a/b", "l/a/c/d", "l/a0", "l/b/x", "l/c", "m/z"];
    put_all(bucket, &paths).await;
    let all = ListRequest { prefix: "l/", ..ListRequest::default() };
    assert_eq!(list_all(bucket, all).await.0, paths[..6]);
    for limit in 1..4 {
        assert_eq!(list_all(bucket, ListRequest { limit: Some(limit), ..all }).await.0, paths[..6]);
    }
    let after = |after| ListRequest { after: Some(after), ..all };
    assert_eq!(list_all(bucket, after("l/a/b")).await.0, paths[2..6]);
    assert_eq!(list_all(bucket, after("l/a/bb")).await.0, paths[2..6]);
    assert_eq!(list_all(bucket, after("l/b")).await.0, paths[4..6]);
    assert!(list_all(bucket, after("m")).await.0.is_empty());
    assert_eq!(list_all(bucket, after("a")).await.0, paths[..6]);

    let folded = ListRequest { delimiter: true, ..all };
    for limit in [None, Some(1), Some(2)] {
        let (objects, prefixes) = list_all(bucket, ListRequest { limit, ..folded }).await;
        assert_eq!(objects, ["l/a-b", "l/a0", "l/c"], "{limit:?}");
        assert_eq!(prefixes, ["l/a/", "l/b/"], "{limit:?}");
    }
    let (objects, prefixes) = list_all(bucket, ListRequest { prefix: "l/a", ..folded }).await;
    assert_eq!((objects, prefixes), (vec!["l/a-b".into(), "l/a0".into()], vec!["l/a/".to_owned()]));
    let nothing = list_all(bucket, ListRequest { prefix: "nothing/", ..ListRequest::default() }).await;
    assert_eq!(nothing, (vec![], vec![]));
    let sizes = bucket.list(ListRequest { prefix: "m/", ..ListRequest::default() }).await.unwrap();
    assert_eq!(sizes.objects[0].size, 3);
    let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
    bucket.delete(&paths).await.unwrap();
    assert!(list_all(bucket, all).await.0.is_empty());
    assert!(list_all(bucket, folded).await.1.is_empty());
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    keeps_the_contract(Arc::new(MemoryBucket::default())).await;
}

#[tokio::test]
async fn a_directory_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    keeps_the_contract(Arc::new(DirectoryBucket::open(folder.path()).unwrap())).await;
}
