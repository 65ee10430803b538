use std::collections::BTreeSet;

use codec::index_part::NotPortable;
use codec::value::{Change, Value};
use codec::wal::build::{BlockDraft, RecordDraft};
use engine::index_keeper::IndexKeeper;
use model::{KeyRange, LsnRange, RmgrId};

use super::*;
use crate::made::{
    BASE, History, PG, Server, Writer, base_entries, copy, empty_index, make, overwrite, page_of, paths, rel,
    tenant, trunk,
};

async fn violations(bucket: &Arc<dyn Bucket>, all: bool) -> (Vec<Violation>, Totals) {
    let mut totals = Totals::default();
    let reports = verify_tenant(bucket, tenant(), None, all, 2, &mut totals).await.unwrap();
    (reports.into_iter().flat_map(|report| report.told).collect(), totals)
}

fn branch_id(number: u32) -> TimelineId {
    format!("{:032x}", 0xb0 + number).parse().unwrap()
}

#[tokio::test]
async fn a_portable_timeline_stays_one_whatever_compaction_and_collection_do_to_it() {
    let bucket = make().await;
    let mut server = Server::start(&bucket).await;
    let mut history = History::new();
    let mut kinds: BTreeSet<&str> = BTreeSet::new();
    let mut number = 0;
    let mut write = |history: &mut History, rel_number, block| {
        number += 1;
        history.write(rel_number, block, number);
    };
    // Relations grow a block at a time: what lies between would be zeros of our own kind.
    for block in 0..24 {
        (0..3).for_each(|rel_number| write(&mut history, rel_number, block));
    }
    for round in 0..30u32 {
        for step in 0..20 {
            // Some pages are hot.
            let block = if step % 2 == 0 { step % 3 } else { (round * 7 + step * 5) % 24 };
            write(&mut history, step % 3, block);
        }
        let timeline = server.timeline(trunk());
        history.feed(&timeline).await;
        timeline.checkpoint().await.unwrap();
        if round % 9 == 4 {
            server.branch(branch_id(round), trunk(), timeline.last_record_lsn()).await;
        }
        kinds.extend(server.maintain(trunk(), [0, 20 << 10][round as usize % 2]).await);
        if round % 10 == 9 {
            server.stop().await;
            server = Server::start(&bucket).await;
        }
        if round % 5 == 4 {
            let (found, totals) = violations(&copy(&bucket).await, false).await;
            assert_eq!(found, [], "round {round}");
            assert!(totals.timelines >= 1 && totals.keys > 80, "{totals:?}");
        }
    }
    assert!(kinds.contains("merge") && kinds.contains("trim"), "{kinds:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_portable_timeline_stays_one_when_it_leaves_its_ancestor_and_when_it_is_archived() {
    let bucket = make().await;
    let mut server = Server::start(&bucket).await;
    let mut history = History::new();
    let mut number = 0_u32;
    let mut write = |history: &mut History, count: u32| {
        for step in 0..count {
            number += 1;
            // Relations grow a block at a time: what lies between would be zeros of our own kind.
            history.write(step % 3, (number / 3) % 24, number.into());
        }
    };
    let sound = async |bucket: &Arc<dyn Bucket>, what: &str| {
        let (found, totals) = violations(&copy(bucket).await, false).await;
        assert_eq!(found, [], "{what}");
        assert_eq!(totals.skipped, 0, "{what}");
    };
    for round in 0..6 {
        let [sibling, branch] = [branch_id(2 * round), branch_id(2 * round + 1)];
        for branch in [sibling, branch] {
            write(&mut history, 60);
            let timeline = server.timeline(trunk());
            history.feed(&timeline).await;
            timeline.checkpoint().await.unwrap();
            server.branch(branch, trunk(), timeline.last_record_lsn()).await;
            server.maintain(trunk(), [0, 20 << 10][round as usize % 2]).await;
        }
        // The ancestor goes on, and its layers reach beyond the branch point.
        write(&mut history, 30);
        let timeline = server.timeline(trunk());
        history.feed(&timeline).await;
        timeline.checkpoint().await.unwrap();
        server.tenants.detach_ancestor(tenant().tenant, branch).await.unwrap();
        sound(&bucket, "detached").await;
        server.maintain(branch, 0).await;
        server.maintain(trunk(), 0).await;
        sound(&bucket, "detached and compacted").await;
        for archived in [sibling, branch] {
            let archive = server.tenants.archive_timeline(tenant().tenant, archived, async |_| None);
            archive.await.unwrap();
        }
        sound(&bucket, "archived").await;
        if round % 2 == 0 {
            server.stop().await;
            server = Server::start(&bucket).await;
        }
        for archived in [branch, sibling] {
            server.tenants.unarchive_timeline(tenant().tenant, archived).await.unwrap();
        }
        sound(&bucket, "opened again").await;
    }
    server.stop().await;
}

type Images = Vec<(Key, Vec<u8>)>;
type Changes = Vec<(Key, Lsn, Vec<u8>)>;

/// A timeline to be written: a relation of three blocks, an image of everything, changes above it, an image of the relation.
struct Draft {
    index: IndexPart,
    images: Vec<(KeyRange, Lsn, Images)>,
    deltas: Vec<(KeyRange, LsnRange, Changes)>,
}

fn after(bytes: u64) -> Lsn {
    BASE.add(bytes)
}

fn block(number: u32) -> Key {
    Key::rel_block(rel(0), number)
}

fn image(bytes: &[u8]) -> Vec<u8> {
    Value::Image(bytes).to_bytes()
}

/// A record about a block of the relation that needs the page before it.
fn change(number: u32) -> Vec<u8> {
    let block =
        BlockDraft { id: 0, rel: rel(0), block: number, will_init: false, image: None, data: vec![1, 2, 3] };
    let draft = RecordDraft { blocks: vec![block], ..RecordDraft::new(RmgrId::HEAP, 0, vec![0; 8]) };
    Value::Change(Change::Postgres { will_init: false, record: &draft.encode(PG, BASE) }).to_bytes()
}

fn relation() -> Vec<(Key, Vec<u8>)> {
    let mut entries: Vec<(Key, Vec<u8>)> = (0..3).map(|n| (block(n), page_of(n.into()).to_vec())).collect();
    entries.push((Key::rel_size(rel(0)), 3u32.to_le_bytes().to_vec()));
    entries
}

impl Draft {
    fn sound() -> Draft {
        let mut base = base_entries();
        base.extend(relation());
        base.push((Key::rel_directory_entry(rel(0)), b"r".to_vec()));
        base.sort_by_key(|(key, _)| *key);
        let rel_keys = Key::rel_range(rel(0));
        let mut index = empty_index();
        index.update_metadata(|metadata| metadata.disk_consistent_lsn = after(0x400));
        Draft {
            index,
            images: vec![(Key::ALL, BASE, base), (rel_keys.clone(), after(0x200), relation())],
            deltas: vec![
                (
                    rel_keys,
                    after(1)..after(0x101),
                    vec![
                        (block(0), after(0x40), change(0)),
                        (block(0), after(0x80), image(&page_of(7)[..])),
                        (block(1), after(0x40), change(1)),
                    ],
                ),
                (
                    Key::ALL,
                    after(0x101)..after(0x401),
                    vec![(block(1), after(0x180), change(1)), (block(2), after(0x300), change(2))],
                ),
            ],
        }
    }

    async fn store(mut self) -> Arc<dyn Bucket> {
        let bucket: Arc<dyn Bucket> = Arc::new(engine::bucket::MemoryBucket::default());
        let writer = Writer::take(&bucket, trunk()).await;
        for (keys, lsn, entries) in &self.images {
            writer.image(&mut self.index, keys.clone(), *lsn, entries).await;
        }
        for (keys, lsns, versions) in &self.deltas {
            writer.delta(&mut self.index, keys.clone(), lsns.clone(), versions).await;
        }
        IndexKeeper::create(writer.claim, trunk(), self.index).await.unwrap();
        bucket
    }
}

/// The rules that are broken when this is done to a sound timeline.
async fn broken_by(plant: impl FnOnce(&mut Draft)) -> Vec<Rule> {
    let mut draft = Draft::sound();
    plant(&mut draft);
    let (found, _) = violations(&draft.store().await, true).await;
    let rules: BTreeSet<Rule> = found.iter().map(|violation| violation.rule).collect();
    rules.into_iter().collect()
}

fn of_base(draft: &mut Draft, key: Key, change: impl FnOnce(&mut Vec<u8>)) {
    let entry = draft.images[0].2.iter_mut().find(|(other, _)| *other == key).unwrap();
    change(&mut entry.1);
}

#[tokio::test]
async fn nothing_is_said_of_a_sound_timeline() {
    assert_eq!(broken_by(|_| {}).await, []);
}

#[tokio::test]
async fn histories_that_reach_nothing_are_caught() {
    let without =
        |draft: &mut Draft, key| draft.images.iter_mut().for_each(|image| image.2.retain(|(k, _)| *k != key));
    // No image has the block, its first change needs one.
    assert_eq!(broken_by(|draft| without(draft, block(1))).await, [Rule::History, Rule::CompleteImage]);
    // A version that needs none is enough.
    let fine = |draft: &mut Draft| {
        without(draft, block(0));
        draft.deltas[0].2.remove(0);
        draft.images.truncate(1);
    };
    assert_eq!(broken_by(fine).await, []);
    // The image in between says that the block does not exist.
    let hole = |draft: &mut Draft| draft.images[1].2.retain(|(key, _)| *key != block(2));
    assert_eq!(broken_by(hole).await, [Rule::History, Rule::CompleteImage]);
}

#[tokio::test]
async fn image_layers_that_lack_what_exists_are_caught_and_those_that_lack_what_does_not_are_fine() {
    let hole = |draft: &mut Draft| draft.images[1].2.retain(|(key, _)| *key != block(0));
    assert_eq!(broken_by(hole).await, [Rule::CompleteImage]);
    let size = |draft: &mut Draft| draft.images[1].2.retain(|(key, _)| *key != Key::rel_size(rel(0)));
    assert_eq!(broken_by(size).await, [Rule::CompleteImage]);
    // The relation was truncated before.
    let truncated = |draft: &mut Draft| {
        draft.images[1].2.retain(|(key, _)| *key == block(0));
        draft.images[1].2.push((Key::rel_size(rel(0)), 1u32.to_le_bytes().to_vec()));
        let size = (Key::rel_size(rel(0)), after(0x90), image(&1u32.to_le_bytes()));
        draft.deltas[0].2.push(size);
        draft.deltas.truncate(1);
    };
    assert_eq!(broken_by(truncated).await, []);
    // The relation was dropped before.
    let dropped = |draft: &mut Draft| {
        draft.deltas.truncate(1);
        let entry = (Key::rel_directory_entry(rel(0)), after(0x90), image(b""));
        draft.deltas.push((Key::ALL, after(0x101)..after(0x181), vec![(entry.0, after(0x120), entry.2)]));
        let other = (block(9), page_of(1).to_vec());
        draft.images[1] = (Key::rel_range(rel(0)), after(0x200), vec![other]);
    };
    assert_eq!(broken_by(dropped).await, []);
}

#[tokio::test]
async fn deltas_that_begin_within_another_are_caught_unless_they_share_no_key_or_have_but_one() {
    let with = |keys: KeyRange| {
        move |draft: &mut Draft| {
            let version = (keys.start, after(0x90), image(&page_of(1)[..]));
            draft.deltas.push((keys, after(0x81)..after(0x101), vec![version]));
        }
    };
    assert_eq!(broken_by(with(block(0)..block(2))).await, [Rule::DeltaOverlap]);
    assert_eq!(broken_by(with(block(0)..block(1))).await, []);
    let other = Key::rel_block(rel(1), 0);
    assert_eq!(broken_by(with(other..Key::rel_block(rel(1), 5))).await, []);
}

#[tokio::test]
async fn layers_of_the_future_and_of_before_the_beginning_are_caught() {
    let end = |lsn| move |draft: &mut Draft| draft.index.update_metadata(|m| m.disk_consistent_lsn = lsn);
    assert_eq!(broken_by(end(after(0x3f8))).await, [Rule::FutureLayer]);
    assert_eq!(broken_by(|draft: &mut Draft| draft.images[1].1 = after(0x408)).await, [Rule::FutureLayer]);
    let begin = |draft: &mut Draft| draft.index.update_metadata(|m| m.initdb_lsn = after(8));
    assert_eq!(broken_by(begin).await, [Rule::Metadata]);
}

#[tokio::test]
async fn metadata_that_does_not_fit_together_is_caught() {
    let with = |change: fn(&mut codec::index_part::TimelineMetadata)| {
        move |draft: &mut Draft| draft.index.update_metadata(change)
    };
    // Nor can anything be read then.
    let beyond = broken_by(with(|m| m.latest_gc_cutoff_lsn = after(0x800))).await;
    assert_eq!(beyond, [Rule::Metadata, Rule::Readable]);
    assert_eq!(broken_by(with(|m| m.prev_record_lsn = Some(after(0x400)))).await, [Rule::Metadata]);
    assert_eq!(broken_by(with(|m| m.ancestor_lsn = BASE)).await, [Rule::Metadata]);
    assert_eq!(broken_by(with(|m| m.pg_version = model::PgMajor::V18)).await[0], Rule::Index);
    let nothing = |draft: &mut Draft| {
        draft.images.clear();
        draft.deltas.clear();
    };
    assert_eq!(broken_by(nothing).await[0], Rule::Index);
}

#[tokio::test]
async fn values_that_neon_does_not_know_are_caught() {
    let change = |key, bytes: Vec<u8>| move |draft: &mut Draft| of_base(draft, key, |value| *value = bytes);
    for (key, bytes) in [
        (Key::DB_DIRECTORY, vec![0; 7]),
        (Key::relation_map(1663, 5), vec![0; 512]),
        (Key::CHECKPOINT, vec![0; 80]),
        (Key::CONTROL_FILE, vec![0; 512]),
        (Key::rel_size(rel(0)), vec![0; 8]),
        (Key::rel_directory_entry(rel(0)), b"x".to_vec()),
        (Key::TWO_PHASE_DIRECTORY, vec![0; 9]),
        (block(2), vec![0; 4096]),
    ] {
        assert!(broken_by(change(key, bytes)).await.contains(&Rule::Value), "{key}");
    }
    let put =
        |key, value: Vec<u8>| move |draft: &mut Draft| draft.deltas[1].2.push((key, after(0x380), value));
    let zero = Value::Change(Change::ZeroPage).to_bytes();
    assert_eq!(broken_by(put(block(2), zero)).await, [Rule::Value]);
    let committed = Change::Committed { xids: vec![1_000], time: model::PgTimestamp(1) };
    assert_eq!(broken_by(put(block(2), Value::Change(committed).to_bytes())).await, [Rule::Value]);
    let short = Value::Change(Change::Postgres { will_init: false, record: &[40; 40] }).to_bytes();
    assert_eq!(broken_by(put(block(2), short)).await, [Rule::Value]);
    let tablespaces = |draft: &mut Draft| {
        draft.images[0].2.push((Key::TABLESPACE_DIRECTORY, vec![1, 0, 0, 0, 0]));
        draft.images[0].2.sort_by_key(|(key, _)| *key);
    };
    assert_eq!(broken_by(tablespaces).await, [Rule::KeySpace]);
}

#[tokio::test]
async fn two_contents_of_one_version_are_caught_and_the_same_twice_is_not() {
    let with = |number| {
        move |draft: &mut Draft| {
            let version = (block(0), after(0x80), image(&page_of(number)[..]));
            draft.deltas.push((block(0)..block(1), after(0x80)..after(0x81), vec![version]));
        }
    };
    assert_eq!(broken_by(with(8)).await, [Rule::OneContent]);
    assert_eq!(broken_by(with(7)).await, []);
}

#[tokio::test]
async fn a_cluster_that_lacks_what_every_one_has_is_caught() {
    for key in [Key::CONTROL_FILE, Key::TWO_PHASE_DIRECTORY, Key::relation_map(1663, 5)] {
        let without = |draft: &mut Draft| draft.images[0].2.retain(|(other, _)| *other != key);
        assert_eq!(broken_by(without).await, [Rule::Cluster], "{key}");
    }
}

#[tokio::test]
async fn files_that_are_missing_or_damaged_or_say_that_they_are_others_are_caught() {
    let bucket = Draft::sound().store().await;
    let path =
        paths(&bucket, "tenants/").await.into_iter().find(|path| !path.contains("index_part")).unwrap();
    let whole = bucket.get(&path, None).await.unwrap().bytes.to_vec();
    let rules = || async { violations(&bucket, false).await.0.iter().map(|v| v.rule).collect::<Vec<_>>() };
    bucket.delete(std::slice::from_ref(&path)).await.unwrap();
    assert_eq!(rules().await, [Rule::Readable]);
    overwrite(&bucket, &path, |bytes| *bytes = whole[..whole.len() - 8192].to_vec()).await;
    assert_eq!(rules().await, [Rule::Readable]);
    overwrite(&bucket, &path, |bytes| {
        *bytes = whole.clone();
        bytes[8_200] ^= 1;
    })
    .await;
    assert_eq!(rules().await, [Rule::Readable]);
    overwrite(&bucket, &path, |bytes| {
        *bytes = whole.clone();
        bytes[0] = 0;
    })
    .await;
    assert_eq!(rules().await, [Rule::Summary]);
}

#[tokio::test]
async fn an_index_whose_end_is_not_a_multiple_of_8_or_told_twice_is_caught() {
    let bucket = Draft::sound().store().await;
    let path = paths(&bucket, "tenants/").await.into_iter().find(|path| path.contains("index_part")).unwrap();
    let text = String::from_utf8(bucket.get(&path, None).await.unwrap().bytes.to_vec()).unwrap();
    let end = format!("\"disk_consistent_lsn\":\"{}\"", after(0x400));
    assert_eq!(text.matches(&end).count(), 2);
    for (count, by) in [(1, 8), (2, 1)] {
        let other = format!("\"disk_consistent_lsn\":\"{}\"", after(0x400 + by));
        overwrite(&bucket, &path, |bytes| *bytes = text.replacen(&end, &other, count).into_bytes()).await;
        let (found, _) = violations(&bucket, false).await;
        assert_eq!(found.iter().map(|violation| violation.rule).collect::<Vec<_>>(), [Rule::Index]);
    }
}

#[tokio::test]
async fn branches_are_held_against_their_ancestors() {
    let bucket = Draft::sound().store().await;
    let writer = Writer::take(&bucket, branch_id(1)).await;
    let mut index = empty_index();
    index.update_metadata(|metadata| {
        metadata.ancestor_timeline = Some(trunk());
        metadata.ancestor_lsn = after(0x400);
        metadata.disk_consistent_lsn = after(0x500);
    });
    let versions = [(block(1), after(0x480), change(1)), (block(7), after(0x480), change(7))];
    writer.delta(&mut index, Key::ALL, after(0x401)..after(0x501), &versions).await;
    IndexKeeper::create(writer.claim, branch_id(1), index.clone()).await.unwrap();
    let (found, totals) = violations(&bucket, false).await;
    // Block 1 goes back to the ancestor's; block 7 to nothing.
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].rule, found[0].key.clone()), (Rule::History, Some(block(7).to_string())));
    assert_eq!((totals.timelines, totals.skipped), (2, 0));

    let writer = Writer::take(&bucket, branch_id(2)).await;
    index.layer_metadata.clear();
    index.update_metadata(|metadata| {
        metadata.ancestor_lsn = after(0x800);
        metadata.initdb_lsn = after(8);
    });
    index.palimpsest.as_mut().unwrap().not_portable = vec![NotPortable::OwnValues];
    IndexKeeper::create(writer.claim, branch_id(2), index).await.unwrap();
    assert_eq!(violations(&bucket, false).await.1.skipped, 1);
    let (found, _) = violations(&bucket, true).await;
    let of_second = found.iter().filter(|violation| violation.timeline == branch_id(2).to_string());
    // It ends before it begins, elsewhere than where it begins, its ancestor ends earlier, and began at another place.
    assert_eq!(of_second.map(|violation| violation.rule).collect::<Vec<_>>(), [Rule::Metadata; 4]);
}

#[test]
fn files_that_are_too_large_or_no_whole_blocks_are_caught() {
    for size in [4_500_008_192, 8_191] {
        let mut index = empty_index();
        let name = LayerName::Image { keys: Key::ALL, lsn: BASE };
        let metadata = codec::index_part::LayerMetadata {
            file_size: size,
            generation: None,
            shard: model::ShardIndex::UNSHARDED,
            palimpsest: None,
            unknown: codec::index_part::Unknown::new(),
        };
        index.layer_metadata.insert(name, metadata);
        let mut violations = Violations::new(trunk());
        names::check(&index, None, &mut violations);
        assert_eq!(violations.told.iter().map(|v| v.rule).collect::<Vec<_>>(), [Rule::Size], "{size}");
    }
}
