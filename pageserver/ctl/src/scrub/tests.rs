use std::sync::Arc;

use codec::index_part::IndexPart;
use engine::claim::Claim;
use engine::object_path::ObjectPath;
use engine::ports::{Body, Bucket, PutIf};
use model::{Generation, LayerName, LayerObjectName, Lsn, TimelineId, Tli};

use super::clean::check_owner;
use super::finding::Kind;
use super::layer;
use super::*;
use crate::made::{History, Server, copy, make, overwrite, paths, tenant, trunk};

#[derive(Default)]
struct Found(Vec<Finding>);

impl Report for Found {
    fn found(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    fn progress(&mut self, _: &str, _: &Totals) {}
}

impl Found {
    fn kinds(&self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = self.0.iter().map(|finding| finding.kind).collect();
        kinds.sort_unstable();
        kinds
    }
}

async fn scrub(bucket: &Arc<dyn Bucket>, deleting: Option<Deleting>) -> (Found, Totals, Option<Deleted>) {
    let look =
        Look { bucket: bucket.clone(), tenant: None, jobs: 2, grace: Duration::ZERO, now: SystemTime::now() };
    let mut found = Found::default();
    let (totals, deleted) = scrub_all(&look, deleting, &mut found).await.unwrap();
    (found, totals, deleted)
}

async fn look(bucket: &Arc<dyn Bucket>) -> Found {
    scrub(bucket, None).await.0
}

async fn delete(bucket: &Arc<dyn Bucket>) -> Deleted {
    scrub(bucket, Some(Deleting { take_over: false })).await.2.unwrap()
}

fn branch_id() -> TimelineId {
    "0000000000000000000000000000b0b0".parse().unwrap()
}

/// A timeline with layers of all kinds and WAL above them, and a branch.
async fn history() -> Arc<dyn Bucket> {
    let bucket = make().await;
    let server = Server::start(&bucket).await;
    let mut history = History::new();
    let timeline = server.timeline(trunk());
    for round in 0..8 {
        for number in 0..10 {
            history.write(number as u32 % 3, number as u32, round * 100 + number);
        }
        history.feed(&timeline).await;
        if round < 7 {
            timeline.checkpoint().await.unwrap();
        }
        if round == 3 {
            server.branch(branch_id(), trunk(), timeline.last_record_lsn()).await;
            server.maintain(trunk(), 8 << 10).await;
        }
    }
    only_what_is_named(&bucket).await;
    timeline.seal_now().await.unwrap();
    // As a crash leaves it: what ends in good order has no WAL above its layers.
    let left = copy(&bucket).await;
    server.stop().await;
    left
}

/// Until what was collected is gone from the bucket, too.
async fn only_what_is_named(bucket: &Arc<dyn Bucket>) {
    let prefix = engine::object_path::timeline_prefix(tenant(), trunk());
    for _ in 0..200 {
        let layers = paths(bucket, &prefix).await.iter().filter(|path| !path.contains("index_part")).count();
        if newest_index(bucket, trunk()).await.1.layer_metadata.len() == layers {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("what was collected is still there");
}

async fn newest_index(bucket: &Arc<dyn Bucket>, timeline: TimelineId) -> (String, IndexPart) {
    let prefix = engine::object_path::index_prefix(tenant(), timeline);
    let path = paths(bucket, &prefix).await.pop().unwrap();
    let bytes = bucket.get(&path, None).await.unwrap().bytes;
    (path, IndexPart::from_json(&bytes).unwrap())
}

async fn some_layer(bucket: &Arc<dyn Bucket>, is_delta: bool) -> String {
    let (_, index) = newest_index(bucket, trunk()).await;
    let (name, metadata) = index.layer_metadata.iter().find(|(name, _)| name.is_delta() == is_delta).unwrap();
    layer::layer_path(tenant(), trunk(), name, metadata)
}

#[tokio::test]
async fn a_sound_bucket_is_clean_and_all_of_it_was_looked_at() {
    let bucket = history().await;
    let (found, totals, _) = scrub(&bucket, None).await;
    assert_eq!(found.0, []);
    assert_eq!((totals.tenants, totals.timelines), (1, 2));
    assert!(totals.layers >= 3 && totals.values > 30 && totals.wal_objects > 0, "{totals:?}");
}

#[tokio::test]
async fn a_flipped_byte_anywhere_in_a_layer_is_found() {
    let bucket = history().await;
    for is_delta in [true, false] {
        let path = some_layer(&bucket, is_delta).await;
        let length = bucket.head(&path).await.unwrap().size as usize;
        // Summary, values, padding, checksums, index.
        for at in [3, 5_000, 8_192, 8_292, length - 8_192 * 2 + 40, length - 8_100, length - 1] {
            overwrite(&bucket, &path, |bytes| bytes[at] ^= 0x10).await;
            let mut found = look(&bucket).await.0;
            // What a branch begins with may be in it.
            found.retain(|finding| {
                finding.kind != Kind::UnreadableBranchPoint || !finding.what.contains(&path)
            });
            assert_eq!(found.len(), 1, "{at} of {path}: {found:?}");
            assert!(found[0].kind.is_damage() && found[0].object == path, "{found:?}");
            overwrite(&bucket, &path, |bytes| bytes[at] ^= 0x10).await;
        }
    }
    assert_eq!(look(&bucket).await.0, []);
}

#[tokio::test]
async fn layers_that_are_missing_or_of_another_size_or_another_layer_are_found() {
    let bucket = history().await;
    let path = some_layer(&bucket, true).await;
    let whole = bucket.get(&path, None).await.unwrap().bytes;
    overwrite(&bucket, &path, |bytes| bytes.truncate(bytes.len() - 8192)).await;
    assert_eq!(look(&bucket).await.kinds(), [Kind::WrongSize]);
    bucket.delete(std::slice::from_ref(&path)).await.unwrap();
    assert_eq!(look(&bucket).await.kinds(), [Kind::MissingLayer]);
    overwrite(&bucket, &path, |bytes| bytes.extend_from_slice(&whole)).await;
    let (index_path, mut index) = newest_index(&bucket, trunk()).await;
    let details = index.layer_metadata.values_mut().find_map(|metadata| metadata.palimpsest.as_mut());
    details.unwrap().crc32c ^= 1;
    overwrite(&bucket, &index_path, |bytes| *bytes = index.to_json()).await;
    assert_eq!(look(&bucket).await.kinds(), [Kind::WrongChecksum]);
}

#[tokio::test]
async fn an_index_that_cannot_be_read_is_found_and_nothing_of_its_timeline_is_called_an_orphan() {
    let bucket = history().await;
    let (path, _) = newest_index(&bucket, trunk()).await;
    overwrite(&bucket, &path, |bytes| bytes.truncate(bytes.len() / 2)).await;
    let found = look(&bucket).await;
    assert_eq!(found.kinds(), [Kind::MalformedIndex]);
    let before = paths(&bucket, "").await;
    let deleted = delete(&bucket).await;
    assert_eq!((deleted.objects, paths(&bucket, "").await), (0, before));
}

#[tokio::test]
async fn wal_that_counts_is_read() {
    let bucket = history().await;
    let wal = paths(&bucket, "palimpsest/wal/").await;
    let whole = bucket.get(&wal[0], None).await.unwrap().bytes;
    overwrite(&bucket, &wal[0], |bytes| bytes[60] ^= 1).await;
    assert_eq!(look(&bucket).await.kinds(), [Kind::DamagedWal]);
    overwrite(&bucket, &wal[0], |bytes| *bytes = whole.to_vec()).await;
    // An owner that inherited it names it; then it must be there.
    let (path, mut index) = newest_index(&bucket, trunk()).await;
    let Ok(ObjectPath::Wal { tli, start, end, generation, .. }) = wal[0].parse() else {
        panic!("{}", wal[0])
    };
    let size = whole.len() as u64;
    let named = codec::index_part::WalObjectEntry { tli, start, end, generation, size };
    index.palimpsest.as_mut().unwrap().wal_objects = vec![named];
    overwrite(&bucket, &path, |bytes| *bytes = index.to_json()).await;
    assert_eq!(look(&bucket).await.0, []);
    bucket.delete(&wal).await.unwrap();
    assert_eq!(look(&bucket).await.kinds(), [Kind::MissingWal]);
}

#[tokio::test]
async fn a_branch_without_its_ancestor_or_where_that_ends_before_it_is_found() {
    let bucket = history().await;
    let (path, mut index) = newest_index(&bucket, branch_id()).await;
    let sound = index.clone();
    index.update_metadata(|metadata| metadata.ancestor_lsn = Lsn(0x0900_0000));
    overwrite(&bucket, &path, |bytes| *bytes = index.to_json()).await;
    assert_eq!(look(&bucket).await.kinds(), [Kind::UnreadableBranchPoint]);
    // Below the ancestor's beginning there is nothing.
    index.update_metadata(|metadata| metadata.ancestor_lsn = Lsn(0x0100_0000));
    overwrite(&bucket, &path, |bytes| *bytes = index.to_json()).await;
    assert_eq!(look(&bucket).await.kinds(), [Kind::UnreadableBranchPoint]);
    let nobody = Some("11".repeat(16).parse().unwrap());
    index.update_metadata(|metadata| metadata.ancestor_timeline = nobody);
    overwrite(&bucket, &path, |bytes| *bytes = index.to_json()).await;
    assert_eq!(look(&bucket).await.kinds(), [Kind::MissingAncestor]);
    overwrite(&bucket, &path, |bytes| *bytes = sound.to_json()).await;
    assert_eq!(look(&bucket).await.0, []);
}

#[tokio::test]
async fn small_objects_that_make_no_sense_and_names_that_are_not_ours_are_found() {
    let bucket = history().await;
    let rubbish = |path: String| {
        let bucket = bucket.clone();
        async move { overwrite(&bucket, &path, |bytes| *bytes = b"{\"a\":".to_vec()).await }
    };
    let tenant = tenant();
    rubbish(ObjectPath::Claim { tenant, generation: Generation(1) }.to_string()).await;
    rubbish(ObjectPath::Config { tenant, generation: Generation(2) }.to_string()).await;
    rubbish(format!("tenants/{tenant}/heatmap-v1.json")).await;
    rubbish(format!("tenants/{tenant}/tenant-manifest-00000001.json")).await;
    rubbish(format!("tenants/{tenant}/timelines/{}/note.txt", trunk())).await;
    let expected = [
        Kind::MalformedClaim,
        Kind::MalformedConfig,
        Kind::MalformedHeatMap,
        Kind::MalformedManifest,
        Kind::Unknown,
    ];
    assert_eq!(look(&bucket).await.kinds(), expected);
}

/// An orphan of each kind: a layer and a WAL object of an owner that was superseded, one of a timeline that never came to be, an index that nobody will ask for.
async fn put_orphans(bucket: &Arc<dyn Bucket>) -> Vec<String> {
    let tenant = tenant();
    let name = LayerName::Delta { keys: model::Key::ALL, lsns: Lsn(0x900_0001)..Lsn(0x900_0101) };
    let name = LayerObjectName { layer: name, generation: Some(Generation(1)) };
    let never: TimelineId = "22".repeat(16).parse().unwrap();
    let wal = |timeline| ObjectPath::Wal {
        tenant,
        timeline,
        tli: Tli(1),
        start: Lsn(0x900_0000),
        end: Lsn(0x900_1000),
        generation: Generation(1),
    };
    let only_wal: TimelineId = "33".repeat(16).parse().unwrap();
    let orphans: Vec<String> = [
        wal(only_wal),
        ObjectPath::Layer { tenant, timeline: trunk(), name: name.clone() },
        ObjectPath::Layer { tenant, timeline: never, name },
        wal(trunk()),
        wal(never),
    ]
    .iter()
    .map(ToString::to_string)
    .collect();
    for path in &orphans {
        bucket.put(path, Body::Bytes(bytes::Bytes::from_static(b"x")), PutIf::Absent).await.unwrap();
    }
    orphans
}

#[tokio::test]
async fn orphans_of_each_kind_are_found_and_deleted_and_nothing_else_is() {
    let bucket = history().await;
    assert_eq!(look(&bucket).await.0, []);
    // Two owners more, so that the first ones' indexes are asked for by nobody.
    for _ in 0..2 {
        Server::start(&bucket).await.stop().await;
    }
    let mut orphans = put_orphans(&bucket).await;
    let found = look(&bucket).await;
    let mut seen: Vec<String> = found.0.iter().map(|finding| finding.object.clone()).collect();
    let old: Vec<String> = seen.iter().filter(|path| path.contains("index_part")).cloned().collect();
    assert!(old.len() >= 2, "{:?}", found.0);
    orphans.extend(old);
    orphans.sort();
    seen.sort();
    assert_eq!(seen, orphans);
    let before = paths(&bucket, "").await;
    let deleted = delete(&bucket).await;
    assert_eq!(deleted.left_alone, Vec::<String>::new());
    let after = paths(&bucket, "").await;
    assert!(orphans.iter().all(|path| !after.contains(path)), "{after:?}");
    // The owner before keeps its index; the claim and the own indexes are new.
    let gone: Vec<&String> =
        before.iter().filter(|path| !after.contains(path) && !orphans.contains(path)).collect();
    assert!(gone.iter().all(|path| path.contains("index_part")), "{gone:?}");
    assert_eq!(look(&bucket).await.0, []);
    // And it can still be served.
    let server = Server::start(&bucket).await;
    let timeline = server.timeline(trunk());
    timeline.page(crate::made::rel(0), 0, timeline.last_record_lsn()).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn what_the_present_owner_put_is_not_judged_until_the_tenant_is_claimed() {
    let bucket = history().await;
    // What compaction had just replaced at the crash.
    let before = scrub(&bucket, None).await.1.of_present_owner;
    let (_, index) = newest_index(&bucket, trunk()).await;
    let generation = index.layer_metadata.values().filter_map(|metadata| metadata.generation).max();
    let name = LayerName::Delta { keys: model::Key::ALL, lsns: Lsn(0x900_0001)..Lsn(0x900_0101) };
    let name = LayerObjectName { layer: name, generation };
    let path = ObjectPath::Layer { tenant: tenant(), timeline: trunk(), name }.to_string();
    bucket.put(&path, Body::Bytes(bytes::Bytes::from_static(b"x")), PutIf::Absent).await.unwrap();
    let (found, totals, _) = scrub(&bucket, None).await;
    assert_eq!((found.0, totals.of_present_owner), (vec![], before + 1));
    delete(&bucket).await;
    assert!(!paths(&bucket, "").await.contains(&path));
    assert_eq!(look(&bucket).await.0, []);
}

#[tokio::test]
async fn deletions_that_broke_off_are_found_and_finished() {
    let bucket = history().await;
    // The index says so, the tombstone is not there yet.
    let (path, mut index) = newest_index(&bucket, branch_id()).await;
    index.deleted_at = Some(codec::index_part::UtcTime::from_system_time(SystemTime::now()));
    overwrite(&bucket, &path, |bytes| *bytes = index.to_json()).await;
    assert_eq!(look(&bucket).await.kinds(), [Kind::UnfinishedDeletion]);
    delete(&bucket).await;
    assert_eq!(look(&bucket).await.0, []);
    assert!(paths(&bucket, "tenants/").await.iter().all(|path| !path.contains(&branch_id().to_string())));
    // The tombstone is there, and so are objects.
    overwrite(&bucket, &path, |bytes| *bytes = index.to_json()).await;
    assert_eq!(look(&bucket).await.kinds(), [Kind::Remains]);
    delete(&bucket).await;
    assert_eq!(look(&bucket).await.0, []);
    // The tenant was deleted.
    engine::deletion::claim_deletion(&*bucket, tenant()).await.unwrap();
    assert!(look(&bucket).await.kinds().iter().all(|kind| *kind == Kind::Remains));
    delete(&bucket).await;
    assert_eq!(look(&bucket).await.0, []);
    assert!(paths(&bucket, "tenants/").await.is_empty());
}

#[tokio::test]
async fn a_deleted_ancestor_of_a_branch_is_found_and_not_deleted() {
    let bucket = history().await;
    let (path, mut index) = newest_index(&bucket, trunk()).await;
    index.deleted_at = Some(codec::index_part::UtcTime::from_system_time(SystemTime::now()));
    overwrite(&bucket, &path, |bytes| *bytes = index.to_json()).await;
    assert_eq!(look(&bucket).await.kinds(), [Kind::DeletedAncestor, Kind::UnfinishedDeletion]);
    let layers = paths(&bucket, "tenants/").await.len();
    assert_eq!(delete(&bucket).await.left_alone.len(), 1);
    assert!(paths(&bucket, "tenants/").await.len() >= layers);
}

#[tokio::test]
async fn a_tenant_that_an_operator_gave_away_is_only_cleaned_when_that_is_said() {
    let bucket = history().await;
    put_orphans(&bucket).await;
    let by = engine::claim::ClaimedBy {
        pool_uid: "pool".into(),
        pod: "ps-0".into(),
        pod_uid: "uid".into(),
        instance: "a".into(),
        attempt: "1".into(),
    };
    let owner = Claim::confirm(bucket.clone(), tenant(), Generation(9), &by).await.unwrap();
    let refused = check_owner(&*bucket, tenant(), false).await.unwrap_err().to_string();
    assert!(refused.contains("pod ps-0") && refused.contains("--take-over"), "{refused}");
    owner.validate().await.unwrap();
    scrub(&bucket, Some(Deleting { take_over: true })).await;
    assert!(owner.validate().await.is_err());
}
